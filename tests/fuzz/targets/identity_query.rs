//! What a homeserver writes to the identity door: a query or a form, or JSON.
//!
//! The pairs are those of a decoder byte for byte, each name once; what is read from a body reads as itself again.

use threepid_shim::body::{Fields, Form};
use threepid_shim::identity::asked::Asked;
use threepid_shim::matrix::{Address, ClientSecret, Medium, Sid};

pub fn run(data: &[u8]) {
    let pairs = decoded(data);
    let twice = (1..pairs.len()).any(|at| pairs[..at].iter().any(|(name, _)| *name == pairs[at].0));
    let form = Form::parse(data);
    assert_eq!(form.is_none(), twice || pairs.len() > 50);
    if let Some(form) = &form {
        for (name, value) in &pairs {
            assert_eq!(form.get(name), Some(value.as_str()));
        }
        for name in ["sid", "client_secret", "token", "nonce"] {
            assert_eq!(form.get(name).is_some(), pairs.iter().any(|(other, _)| other == name));
        }
        if let Some(sid) = form.get("sid").and_then(Sid::parse) {
            assert_eq!((sid.as_str().len(), Sid::is_ours(sid.as_str())), (37, true));
        }
    }
    if let (Some(Fields::Form(fields)), false) = (Fields::parse(data), data.starts_with(b"{")) {
        assert!(pairs.iter().all(|(name, value)| fields.get(name) == Some(value)));
    }
    for medium in [Medium::Email, Medium::Msisdn] {
        let Ok(asked) = Asked::parse(data, medium) else { continue };
        let (secret, address) = (asked.client_secret.expose(), asked.threepid.address.expose());
        assert!(ClientSecret::parse(secret).is_some() && asked.threepid.medium == medium);
        let again = match medium {
            Medium::Email => Address::email(address),
            Medium::Msisdn => Address::msisdn("GB", &format!("+{address}")),
        };
        assert_eq!(again.as_ref(), Ok(&asked.threepid.address), "canonical");
        assert!(
            !address.bytes().any(|byte| byte <= b' ' || byte >= 0x7f || b"<>,;:\"()[]\\".contains(&byte)),
            "{address}"
        );
    }
}

/// The WHATWG's application/x-www-form-urlencoded parser, step by step.
fn decoded(data: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| {
        let mut out = Vec::new();
        let mut rest = bytes;
        while let [first, others @ ..] = rest {
            let hex = |at: usize| others.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            rest = others;
            match (first, hex(0), hex(1)) {
                (b'+', ..) => out.push(b' '),
                (b'%', Some(high), Some(low)) => {
                    out.push(u8::try_from(high * 16 + low).expect("two digits"));
                    rest = &others[2..];
                }
                _ => out.push(*first),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pieces = data.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| match piece.iter().position(|byte| *byte == b'=') {
            Some(at) => (text(&piece[..at]), text(&piece[at + 1..])),
            None => (text(piece), String::new()),
        })
        .collect()
}
