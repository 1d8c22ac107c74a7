//! Fields of a body that may be a JSON object or a form, since its senders disagree.

use super::{Form, Object};

/// The body's fields, however they are written.
pub enum Fields<'a> {
    Json(Object<'a>),
    Form(Form),
}

impl<'a> Fields<'a> {
    /// `None` when the body is neither a JSON object nor a form.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        if body.first().is_some_and(|first| *first == b'{') {
            return Object::parse(body).ok().map(Self::Json);
        }
        Form::parse(body).map(Self::Form)
    }

    /// A string, or an integer as one.
    pub fn get(&self, name: &str) -> Option<String> {
        match self {
            Self::Json(object) => {
                let integer = || object.get(name)?.get().parse::<i64>().ok().map(|number| number.to_string());
                object.string(name).or_else(integer)
            }
            Self::Form(form) => form.get(name).map(str::to_owned),
        }
    }
}
