//! What numbers are told apart by. Every value is one of a few that this program names: none comes from a peer.

use prometheus_client::encoding::EncodeLabelSet;

/// Labels of a forwarded request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Forwarded {
    /// The class of the answer: `1xx` to `5xx`.
    pub(super) status: &'static str,
}

/// Labels of an intercepted request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Intercepted {
    pub route: &'static str,
    pub outcome: &'static str,
}

/// Labels of an intercepted request that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Failed {
    pub(super) route: &'static str,
    /// As in the log: `client`, `homeserver`, `store`, `smtp`, `sms` or `shim`.
    pub(super) fault: &'static str,
}

/// Labels of a refusal of the shim's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Refused {
    pub(super) route: &'static str,
    pub(super) errcode: &'static str,
}

/// Labels of a validation session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Verified {
    pub purpose: &'static str,
    pub medium: &'static str,
}

/// Label of something that a limit refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitReached {
    /// Its key in `[limits]`.
    pub limit: &'static str,
}

/// Labels of a message handed to a mail server or gateway, or not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Delivered {
    pub medium: &'static str,
    /// `delivered`, or the stage that failed: `connect`, `tls`, `auth`, `mail_from`, `rcpt`, `data`, `gateway`, ...
    pub outcome: &'static str,
}

/// Label of the time that handing over took.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveredBy {
    pub medium: &'static str,
}

/// Labels of the time that one stage of handing over took.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Staged {
    pub medium: &'static str,
    pub stage: &'static str,
}

/// Label of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reloaded {
    /// `applied` or `failed`.
    pub outcome: &'static str,
}

/// Label of a connection that was closed as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TurnedAway {
    /// Its key in `[limits]`.
    pub limit: &'static str,
}

/// Label of one of the doors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Door {
    /// `clients` or `identity`.
    pub door: &'static str,
}

/// Label of something asked of the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreOperation {
    /// `get`, `update` or `limit`.
    pub operation: &'static str,
}

/// Label of the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreKind {
    /// `memory`, `file` or `redis`.
    pub kind: &'static str,
}

/// Labels of the program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Build {
    pub(super) version: &'static str,
    pub(super) commit: &'static str,
}
