//! First line: hosts that are allowed, with `,` between them; none: any. Behind it: a next_link.
//!
//! What is taken is a link of that host to a browser's parser, too, and stays what it is in a header, a policy and a page.

use http::HeaderValue;
use threepid_shim::matrix::{NextLink, Sid};
use url::{Host, Url};

use super::first_line;

pub fn run(data: &[u8]) {
    let (hosts, written) = first_line(data);
    let (hosts, written) = (String::from_utf8_lossy(hosts), String::from_utf8_lossy(written));
    let hosts: Vec<String> = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
    let Some(link) = NextLink::parse(&written, &hosts) else { return };
    assert_eq!(link.as_str(), written);
    assert!(written.len() <= NextLink::MAX);
    assert!(written.bytes().all(|byte| (0x21..0x7f).contains(&byte) && !b"\"<>\\`".contains(&byte)), "{written}");
    let (host, origin) = (link.host().expect("a host"), link.origin().expect("an origin"));
    assert!(hosts.is_empty() || hosts.contains(&host.to_ascii_lowercase()), "{host}");
    assert!(!host.is_empty() && written.starts_with(origin));
    assert!(origin.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:/[]".contains(&byte)), "{origin}");

    let redirected = link.with_sid(&Sid::from_random([7; 16]));
    assert!(redirected.starts_with(&*written) && redirected.ends_with("sid=shim_07070707070707070707070707070707"));
    let location = HeaderValue::from_str(&redirected).expect("it goes into a header");
    assert_eq!(location.as_bytes(), redirected.as_bytes());
    browsed(&redirected, host, origin);
}

/// A browser takes the link to the host that the page has named, or nowhere.
fn browsed(redirected: &str, host: &str, origin: &str) {
    // A label that IDNA forbids, or a last one of digits that is no IPv4 address.
    let Ok(url) = Url::parse(redirected) else {
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let number = last.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
        let labels = host.split('.').any(|label| label.is_empty() || label.to_ascii_lowercase().starts_with("xn--"));
        return assert!(number || labels, "{redirected}");
    };
    assert!(["http", "https"].contains(&url.scheme()), "{redirected}");
    assert!(url.username().is_empty() && url.password().is_none(), "{redirected}");
    match url.host().expect("a host") {
        Host::Domain(domain) => assert_eq!(domain, host.to_ascii_lowercase()),
        // Written as it may be (0x7f.1), a browser says itself that it is an address.
        Host::Ipv4(_) => assert!(host.bytes().all(|byte| byte.is_ascii_hexdigit() || b".xX".contains(&byte)), "{host}"),
        Host::Ipv6(ip) => assert_eq!(host.trim_matches(['[', ']']).parse(), Ok(ip)),
    }
    let plain = Url::parse(origin).expect("an origin is a link");
    assert_eq!(plain.origin(), url.origin());
}
