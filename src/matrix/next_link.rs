//! `next_link`: where the browser goes after the click, and where it may not.

use serde::{Deserialize, Serialize};

use super::Sid;

/// Where the browser goes after the click: http or https, a host, no user info, visible ASCII only, at most 2048 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NextLink(String);

impl NextLink {
    pub const MAX: usize = 2048;

    /// `allowed` hosts, lower case; empty: any. The grammar is narrower than a URL's, so that no two parsers can
    /// disagree on the host: no backslash, no `@` before the path, no `https:host`.
    pub fn parse(written: &str, allowed: &[String]) -> Option<Self> {
        let visible = written.bytes().all(|b| (0x21..=0x7e).contains(&b) && !b"\\\"<>^`{|}".contains(&b));
        if written.len() > Self::MAX || !visible || smuggles_control_bytes(written) {
            return None;
        }
        let link = Self(written.to_owned());
        let host = link.host()?.to_ascii_lowercase();
        let in_brackets = host.starts_with('[') && host.ends_with(']');
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        let bracketed = in_brackets && host.bytes().all(|b| b.is_ascii_hexdigit() || b"[]:.".contains(&b));
        let port_fits = link.port().is_none_or(|port| port.parse::<u16>().is_ok());
        let named = !host.is_empty() && (plain || bracketed) && port_fits;
        (named && (allowed.is_empty() || allowed.contains(&host))).then_some(link)
    }

    /// The link with our sid at the very end of the string, after any fragment: Element resumes only so (P§4.4).
    pub fn with_sid(&self, sid: &Sid) -> String {
        let separator = if self.0.contains('?') { '&' } else { '?' };
        format!("{}{separator}sid={}", self.0, sid.as_str())
    }

    /// The host as written, for the page: the person sees where the click leads.
    pub fn host(&self) -> Option<&str> {
        let authority = self.authority()?;
        match authority.find(']') {
            Some(end) => authority.get(..=end),
            None => authority.split(':').next(),
        }
    }

    /// `https://host[:port]`, for `form-action`.
    pub fn origin(&self) -> Option<&str> {
        let scheme = self.0.find("://")? + 3;
        self.0.get(..scheme + self.authority()?.len())
    }

    fn port(&self) -> Option<&str> {
        let after_host = self.authority()?.get(self.host()?.len()..)?;
        (!after_host.is_empty()).then(|| after_host.strip_prefix(':').unwrap_or("not a port"))
    }

    fn authority(&self) -> Option<&str> {
        let (scheme, rest) = self.0.split_once("://")?;
        let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        known.then(|| rest.split(['/', '?', '#']).next().unwrap_or_default())
    }
}

/// `%0d`, `%0a` and `%00` have no place in a link, and some servers decode them into header fields.
fn smuggles_control_bytes(written: &str) -> bool {
    let lower = written.to_ascii_lowercase();
    ["%00", "%0a", "%0d"].iter().any(|escape| lower.contains(escape))
}
