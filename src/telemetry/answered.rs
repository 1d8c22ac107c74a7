//! The end of a request that the shim looked into: its counts, its place among the last refusals, its one line.

use std::time::Duration;

use http::StatusCode;

use super::{Ended, Metrics, Outcome, Refused, RequestId, Subject, fault};
use crate::matrix::Errcode;

/// What became of such a request.
#[derive(Debug)]
pub struct Answered<'a> {
    pub route: &'static str,
    pub outcome: Outcome,
    pub status: StatusCode,
    /// Of the shim's own refusal.
    pub errcode: Option<Errcode>,
    /// Whether the shim answers here by itself, also without an error code.
    pub is_ours: bool,
    pub subject: &'a Subject,
    pub request_id: &'a RequestId,
    pub took: Duration,
}

impl Metrics {
    /// `what` begins the line.
    pub fn answered(&self, answered: &Answered<'_>, what: &'static str) {
        let Answered { route, subject, request_id, took, .. } = *answered;
        let (outcome, errcode) = (answered.outcome.as_str(), answered.errcode.map(Errcode::as_str));
        let by_us = errcode.or(answered.is_ours.then_some(""));
        let fault = fault(answered.status, by_us);
        self.count_intercepted(&Ended { route, outcome, fault, errcode, took });
        let (status, fault) = (answered.status.as_u16(), fault.as_str());
        let errcode = errcode.or(subject.errcode().filter(|_| !answered.status.is_success()));
        self.recent.answered(Refused {
            at: self.recent.now(),
            route,
            by: if by_us.is_some() { "shim" } else { "homeserver" },
            status,
            errcode: errcode.map(str::to_owned),
            fault,
            request_id: request_id.clone(),
        });
        tracing::info!(
            route,
            outcome,
            status,
            errcode,
            sid = subject.sid(),
            medium = subject.medium(),
            fault,
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            %request_id,
            trace_id = subject.trace_id(),
            "{what}"
        );
    }
}
