//! What crosses a door, one file per trip.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::string_slice,
    clippy::format_push_string,
    clippy::unchecked_time_subtraction,
    clippy::type_complexity,
    clippy::similar_names,
    clippy::cloned_ref_to_slice_refs,
    clippy::too_many_lines,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::unused_async,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "a test that cannot go on should stop where it stands, and its helpers are shared inside this crate only"
)]

mod attacks;
mod browser;
mod certificates;
mod client;
mod clients;
mod commands;
mod completion;
mod config;
mod delegate;
mod dendrite;
mod disk;
mod doctor;
mod email;
mod faults;
mod flows;
mod forward;
mod fuzz;
mod gateway;
mod held;
mod homeserver;
mod http2;
mod identity;
mod ingress;
mod killed;
mod languages;
mod layers;
mod legacy;
mod limits;
mod lists;
mod logged;
mod mailbox;
mod monitoring;
mod observe;
mod operations;
mod pages;
mod phone_numbers;
mod phones;
mod policies;
mod postfix;
mod process;
mod proxy_protocol;
mod redis;
mod reload;
mod replicas;
mod request_token;
mod secure;
mod separate_add;
mod sequences;
mod shim;
mod sms;
mod smuggling;
mod stand_aside;
mod status;
mod store;
mod supervisor;
mod table;
mod versions;
mod websocket;
