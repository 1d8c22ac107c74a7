//! Which UIA sessions requests are under way with, and for what: the homeserver completes any endpoint with any of them.

use std::sync::Arc;

use dashmap::DashMap;

use crate::matrix::Purpose;

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(Arc<DashMap<String, Vec<Option<Purpose>>>>);

/// One request, until it is answered.
#[derive(Debug)]
pub(super) struct Entered {
    under_way: UnderWay,
    uia_session: String,
    purpose: Option<Purpose>,
}

impl UnderWay {
    pub(super) fn enter(&self, uia_session: &str, purpose: Option<Purpose>) -> Entered {
        self.0.entry(uia_session.to_owned()).or_default().push(purpose);
        Entered { under_way: self.clone(), uia_session: uia_session.to_owned(), purpose }
    }

    /// Whether a request for anything else has it.
    pub(super) fn elsewhere(&self, uia_session: &str, purpose: Purpose) -> bool {
        self.0.get(uia_session).is_some_and(|all| all.iter().any(|other| *other != Some(purpose)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.under_way.0.remove_if_mut(&self.uia_session, |_, all| {
            if let Some(at) = all.iter().position(|purpose| *purpose == self.purpose) {
                all.swap_remove(at);
            }
            all.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_under_way_until_it_is_dropped_and_leaves_nothing_behind() {
        let under_way = UnderWay::default();
        let reset = under_way.enter("uia", Some(Purpose::Password));
        let other = under_way.enter("uia", None);
        drop(under_way.enter("uia", Some(Purpose::Register)));
        assert!(under_way.elsewhere("uia", Purpose::Register));
        drop(other);
        assert!(under_way.elsewhere("uia", Purpose::Register));
        assert!(!under_way.elsewhere("uia", Purpose::Password));
        assert!(!under_way.elsewhere("another", Purpose::Register));
        drop(reset);
        assert!(!under_way.elsewhere("uia", Purpose::Register));
        assert!(under_way.0.is_empty());
    }
}
