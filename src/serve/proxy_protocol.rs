//! The PROXY protocol, versions 1 and 2: who a connection comes from, told by the proxy before it in front of the
//! first byte ([specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The header comes with the connection, or within a lost packet's time after it.
const DEADLINE: Duration = Duration::from_secs(5);
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its CR LF.
const LONGEST: usize = 107;

/// Why a connection is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unannounced {
    #[error("no PROXY protocol header")]
    Missing,
    #[error("malformed PROXY protocol header")]
    Malformed,
    #[error("the PROXY protocol header did not come in time")]
    Late,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header, and not a byte behind it. `None`: the proxy speaks for itself, or cannot say.
pub(super) async fn read<S: AsyncRead + Unpin>(io: &mut S) -> Result<Option<IpAddr>, Unannounced> {
    let read = async {
        // Either version's shortest is longer.
        let mut start = [0; SIGNATURE.len()];
        io.read_exact(&mut start).await?;
        if start == SIGNATURE {
            return version_2(io).await;
        }
        if !start.starts_with(b"PROXY ") {
            return Err(Unannounced::Missing);
        }
        let mut line = start.to_vec();
        while !line.ends_with(b"\r\n") {
            // As much as is surely part of it.
            let mut more = [0; 2];
            let (one, _) = more.split_at_mut(1);
            let more = if line.ends_with(b"\r") { one } else { more.as_mut_slice() };
            io.read_exact(more).await?;
            line.extend_from_slice(more);
            if line.len() > LONGEST {
                return Err(Unannounced::Malformed);
            }
        }
        version_1(&line)
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or(Err(Unannounced::Late))
}

/// A whole line.
fn version_1(line: &[u8]) -> Result<Option<IpAddr>, Unannounced> {
    let text = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix("\r\n")?.strip_prefix("PROXY "));
    let text = text.filter(|text| !text.contains(['\r', '\n'])).ok_or(Unannounced::Malformed)?;
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(None);
    }
    source(text).map(Some).ok_or(Unannounced::Malformed)
}

/// Of `TCP4` or `TCP6`, two addresses and two ports.
fn source(text: &str) -> Option<IpAddr> {
    let mut words = text.split(' ');
    let (family, source, destination) = (words.next()?, words.next()?, words.next()?);
    let addresses: [IpAddr; 2] = match family {
        "TCP4" => [source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()],
        "TCP6" => [source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()],
        _ => return None,
    };
    let [source, _destination] = addresses;
    let ports = is_port(words.next()?) && is_port(words.next()?);
    (ports && words.next().is_none()).then(|| source.to_canonical())
}

fn is_port(word: &str) -> bool {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain && word.parse::<u16>().is_ok()
}

/// What is behind the signature.
async fn version_2<S: AsyncRead + Unpin>(io: &mut S) -> Result<Option<IpAddr>, Unannounced> {
    let [version_and_command, family] = [io.read_u8().await?, io.read_u8().await?];
    let length = u64::from(io.read_u16().await?);
    let addresses: u64 = match family {
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        // Datagrams come to no door.
        _ => return Err(Unannounced::Malformed),
    };
    let proxied = match version_and_command {
        0x20 => false,
        0x21 => true,
        _ => return Err(Unannounced::Malformed),
    };
    if proxied && length < addresses {
        return Err(Unannounced::Malformed);
    }
    let (source, told): (Option<IpAddr>, u64) = match family {
        0x11 if proxied => (Some(Ipv4Addr::from_bits(io.read_u32().await?).into()), 4),
        0x21 if proxied => (Some(Ipv6Addr::from_bits(io.read_u128().await?).into()), 16),
        _ => (None, 0),
    };
    // The other addresses, the ports, and whatever else the proxy has to say.
    let rest = length - told;
    if tokio::io::copy(&mut io.take(rest), &mut tokio::io::sink()).await? < rest {
        return Err(Unannounced::Malformed);
    }
    Ok(source.map(|source| source.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEHIND: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// What is read of these bytes with a request behind them: an address, `-` for none, or `refused`.
    async fn announced(header: &[u8]) -> String {
        let bytes = [header, BEHIND].concat();
        let mut io = bytes.as_slice();
        match read(&mut io).await {
            Ok(source) => {
                assert_eq!(io, BEHIND, "what is behind {header:?} is left");
                source.map_or("-".to_owned(), |source| source.to_string())
            }
            Err(_) => "refused".to_owned(),
        }
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, payload].concat()
    }

    #[tokio::test]
    async fn lines_of_version_1_have_one_form() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        let too_long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
        let rows = [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", "192.0.2.7"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 0 65535\r\n", "192.0.2.7"),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "2001:db8::7"),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 1\r\n", "192.0.2.7"),
            ("PROXY UNKNOWN\r\n", "-"),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "-"),
            (&longest, "-"),
            (&too_long, "refused"),
            ("", "refused"),
            ("proxy TCP4 192.0.2.7 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 1\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 1 \r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 1 1\r\n", "refused"),
            ("PROXY TCP4  192.0.2.7 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 65536 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 -1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 +1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 01 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2.07 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY TCP4 192.0.2 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 1 1\r\n", "refused"),
            ("PROXY TCP6 192.0.2.7 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY TCP6 [2001:db8::7] ::1 1 1\r\n", "refused"),
            ("PROXY TCP5 192.0.2.7 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY UDP4 192.0.2.7 198.51.100.1 1 1\r\n", "refused"),
            ("PROXY UNKNOWN a\rb\r\n", "refused"),
            ("PROXY \r\n", "refused"),
        ];
        for (line, expected) in rows {
            assert_eq!(announced(line.as_bytes()).await, expected, "{line:?}");
        }
        assert_eq!(rows.len(), 28);
    }

    #[tokio::test]
    async fn headers_of_version_2_have_one_form() {
        let v4 = [[192, 0, 2, 7], [198, 51, 100, 1], [220, 4, 1, 187]].concat();
        let v6 = ["2001:db8::7", "::1"].map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets()).concat();
        let v6 = [v6, vec![220, 4, 1, 187]].concat();
        let more = [v4.clone(), vec![4, 0, 1, 0], vec![0xea; 60_000]].concat();
        let mut version_1 = v2(0x21, 0x11, &v4);
        version_1[12] = 0x11;
        let rows = [
            (v2(0x21, 0x11, &v4), "192.0.2.7"),
            (v2(0x21, 0x21, &v6), "2001:db8::7"),
            (v2(0x21, 0x11, &more), "192.0.2.7"),
            (v2(0x21, 0x31, &[b'/'; 216]), "-"),
            (v2(0x21, 0x00, &[]), "-"),
            (v2(0x21, 0x00, &[1; 9]), "-"),
            (v2(0x20, 0x00, &[]), "-"),
            (v2(0x20, 0x11, &v4), "-"),
            (v2(0x20, 0x11, &[]), "-"),
            (v2(0x21, 0x11, &v4[..11]), "refused"),
            (v2(0x21, 0x21, &v4), "refused"),
            (v2(0x21, 0x31, &[b'/'; 215]), "refused"),
            (v2(0x21, 0x12, &v4), "refused"),
            (v2(0x21, 0x22, &v6), "refused"),
            (v2(0x21, 0x10, &v4), "refused"),
            (v2(0x21, 0x41, &v4), "refused"),
            (v2(0x22, 0x11, &v4), "refused"),
            (version_1, "refused"),
            (SIGNATURE[..11].to_vec(), "refused"),
        ];
        for (header, expected) in &rows {
            let first = header.get(..40).unwrap_or(header);
            assert_eq!(announced(header).await, *expected, "{first:?}");
        }
        assert_eq!(rows.len(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_does_not_come_is_not_waited_for() {
        let (_proxy, mut io) = tokio::io::duplex(64);
        let begun = tokio::time::Instant::now();
        assert!(matches!(read(&mut io).await, Err(Unannounced::Late)));
        assert_eq!(begun.elapsed(), DEADLINE);
    }

    #[tokio::test]
    async fn a_header_that_is_cut_is_refused() {
        for header in [b"PROXY TCP4 192.0.2.7".to_vec(), v2(0x21, 0x11, &[0; 12])[..20].to_vec()] {
            assert!(read(&mut header.as_slice()).await.is_err());
        }
    }
}
