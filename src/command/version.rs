//! Which version this is and what it can use.

use std::io::{self, Write};

use crate::config::keys;
use crate::telemetry::commit;

/// Version, commit, machine, and what each `kind` or `transport` may be.
pub fn write(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "threepid-shim {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "commit           {}", commit())?;
    writeln!(out, "machine          {} {}", std::env::consts::ARCH, std::env::consts::OS)?;
    for key in keys().into_iter().filter(|key| ["store.kind", "email.transport", "sms.transport"].contains(&key.name)) {
        writeln!(out, "{:16} {}", key.name, key.takes.replace(" | ", " "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_says_the_version_and_every_transport() {
        let mut said = Vec::new();
        super::write(&mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        for line in [
            concat!("threepid-shim ", env!("CARGO_PKG_VERSION")),
            "store.kind       memory file redis",
            "email.transport  smtp file log",
            "sms.transport    none twilio http log",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}\n{said}");
        }
    }
}
