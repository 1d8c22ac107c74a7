//! `next_link`: where the browser goes after the click, and where it may not.

use serde::{Deserialize, Serialize};

use super::Sid;

/// Where the browser goes after the click: http or https, a host, no user info, visible ASCII only, at most 2048 bytes.
/// Element's has the client_secret in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NextLink(String);

super::secret::hidden!(NextLink);

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
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let bracketed = in_brackets.is_some_and(|host| host.parse::<core::net::Ipv6Addr>().is_ok());
        // Rust reads `+80` as a number; a browser does not.
        let fits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
        let port_fits = link.port().is_none_or(fits);
        let named = !host.is_empty() && (plain || bracketed) && port_fits;
        (named && (allowed.is_empty() || allowed.contains(&host))).then_some(link)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The link with our sid at the very end of the string, after any fragment: Element resumes only so.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sid_goes_to_the_very_end_after_any_fragment() {
        let sid = Sid::from_random([7; 16]);
        let table = [
            ("https://app.example", "?"),
            ("https://app.example/?a=b", "&"),
            ("https://app.example/#/register?client_secret=x&is_url=null&session_id=y", "&"),
            ("https://app.example/#/done", "?"),
        ];
        for (written, separator) in table {
            let link = NextLink::parse(written, &[]).unwrap();
            assert_eq!(link.with_sid(&sid), format!("{written}{separator}sid={}", sid.as_str()));
        }
    }

    #[test]
    fn s4_14_only_an_http_url_with_a_plain_host_is_a_next_link() {
        let hosts = ["good.example".to_owned()];
        for good in
            ["https://good.example", "http://GOOD.example:8080/x", "https://good.example?x", "https://good.example#x"]
        {
            assert!(NextLink::parse(good, &hosts).is_some(), "{good}");
        }
        let long = format!("https://good.example/{}", "a".repeat(2048));
        for bad in [
            "javascript:alert(1)",
            "javascript://good.example/%0aalert(1)",
            "data:text/html,x",
            "file:///etc/passwd",
            "vector://good.example",
            "//good.example",
            "/path",
            "https:good.example",
            "https:/good.example",
            "https:///good.example",
            "https://",
            "https://good@evil.example",
            "https://good.example@evil.example",
            "https://good.example.evil.example",
            "https://good.example\\@evil.example",
            "https://evil.example\\.good.example",
            "https://evil.example/good.example",
            "https://good.example/%0d%0aSet-Cookie:x",
            "https://good.example/%00",
            "https://good.example/\r\nX: y",
            "https://good.example/ x",
            " https://good.example",
            "https://good.example\t",
            "https://good.example:99999",
            "https://good.example:x",
            "https://[::1",
            "https://good%2eexample",
            "https://göod.example",
            "https://good.example/\"<svg>",
            "https://evilgood.example",
            "",
            &long,
        ] {
            assert_eq!(NextLink::parse(bad, &hosts), None, "{bad:?}");
        }
    }

    #[test]
    fn a_port_with_a_sign_and_brackets_around_no_address_are_no_link_to_a_browser() {
        for bad in [
            "https://good.example:+80/",
            "https://good.example:-80/",
            "http://[2001:db0111]:80/",
            "http://[::1::]/",
            "http://[:.]/",
            "http://[1.2.3.4]/",
            "http://[]/",
        ] {
            assert_eq!(NextLink::parse(bad, &[]), None, "{bad:?}");
        }
        for good in ["http://[::ffff:1.2.3.4]", "http://[::]/", "http://[2001:DB8::1]:80/"] {
            assert!(NextLink::parse(good, &[]).is_some(), "{good:?}");
        }
    }

    #[test]
    fn without_an_allow_list_any_host_goes_and_is_named() {
        let link = NextLink::parse("https://app.example:8443/x?y#z", &[]).unwrap();
        assert_eq!((link.host(), link.origin()), (Some("app.example"), Some("https://app.example:8443")));
        let link = NextLink::parse("http://[2001:db8::1]:80/", &[]).unwrap();
        assert_eq!((link.host(), link.origin()), (Some("[2001:db8::1]"), Some("http://[2001:db8::1]:80")));
    }
}
