//! `[branding]`: all of it may be left out.

use std::sync::Arc;

use crate::config::branding::{Branding, Logo};
use crate::config::check::Check;
use crate::config::raw::RawConfig;

impl Check<'_> {
    pub(crate) fn branding(&mut self, raw: &RawConfig) -> Branding {
        let logo = self.beside(&raw.branding_logo).and_then(|path| self.noted(&raw.branding_logo, Logo::read(&path)));
        Branding {
            name: raw.branding_name.value.clone(),
            logo: logo.map(Arc::new),
            colour: raw.branding_colour.value,
            support: raw.branding_support.value.clone(),
            footer: raw.branding_footer.value.clone(),
        }
    }
}
