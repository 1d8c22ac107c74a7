//! A Synapse's homeserver.yaml → the shim's first configuration, with what is left to decide and what to change there.

mod mail;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::command::yaml::{self, YamlError};
use crate::config::quoted;

/// Made by systemd or the container image, and open to the homeserver.
const CA_DIRECTORY: &str = "/var/cache/threepid-shim";

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum FromSynapseError {
    #[error("{}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{}: {source}", file.display())]
    Yaml { file: PathBuf, source: YamlError },
    #[error("{}: this is no table of keys", file.display())]
    NoTable { file: PathBuf },
    #[error("server_name is not there: name the file of conf.d that has it, too")]
    NoServerName,
}

/// A configuration file for the shim.
#[derive(Debug)]
pub struct Made {
    pub text: String,
    /// Lines that say DECIDE.
    pub open: usize,
}

/// From one file or several; as with Synapse's own `-c`, a key of a later one takes the place of an earlier one's.
pub fn make(files: &[PathBuf]) -> Result<Made, FromSynapseError> {
    let mut all = Map::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|source| FromSynapseError::Read { file: file.clone(), source })?;
        match yaml::parse(&text).map_err(|source| FromSynapseError::Yaml { file: file.clone(), source })? {
            Value::Object(keys) => all.extend(keys),
            Value::Null => {}
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(FromSynapseError::NoTable { file: file.clone() });
            }
        }
    }
    from(&Value::Object(all)).ok_or(FromSynapseError::NoServerName)
}

fn from(yaml: &Value) -> Option<Made> {
    let server_name = text(yaml, "server_name")?;
    let mut sheet = Sheet { text: String::new(), changes: String::new(), open: 0 };
    sheet.line(
        "# threepid-shim.toml, made from a homeserver.yaml. Every other key has its default: see config/README.md.",
    );
    sheet.line(format!("server_name = {}", quoted(server_name)));
    let base = text(yaml, "public_baseurl").map(|url| url.trim_end_matches('/'));
    if base.is_none() {
        sheet.decide("public_baseurl is not in homeserver.yaml; this is where clients reach the homeserver today, and then the shim");
    }
    let guess = format!("https://{server_name}");
    sheet.line(format!("public_base_url = {}", quoted(base.unwrap_or(&guess))));
    let ports = Ports::beside(yaml);
    sheet.line("\n[listen]");
    sheet.line(format!(
        "clients = [\"127.0.0.1:{}\"]   # the reverse proxy's /_matrix/client goes here now",
        ports.clients
    ));
    sheet.line(format!("identity = [\"127.0.0.1:{}\"]", ports.identity));
    sheet.line(format!("admin = [\"127.0.0.1:{}\"]", ports.admin));
    listener(&mut sheet, yaml);
    sheet.line("\n[identity]");
    sheet.line(format!("name = \"localhost:{}\"", ports.identity));
    // Where the systemd unit and the container image have it, too.
    sheet.line(format!("ca_directory = {}   # the homeserver reads the CA here", quoted(CA_DIRECTORY)));
    let delegates = yaml.get("account_threepid_delegates").filter(|delegates| delegates.is_object());
    if delegates.is_some() {
        sheet.decide("account_threepid_delegates is a key of Synapse from 1.4 on, which needs no shim for e-mail; to have the shim verify for it, uncomment:");
        sheet.line("# accept_unannounced = true");
    }
    phones(&mut sheet, yaml);
    mail::session(&mut sheet, yaml);
    mail::email(&mut sheet, yaml, server_name);
    trust(&mut sheet, yaml, ports.identity, delegates.is_some());
    let Sheet { text, changes, open } = sheet;
    Some(Made { text: format!("{text}\n# What to change in homeserver.yaml:\n{changes}"), open })
}

/// The file while it is written.
struct Sheet {
    text: String,
    /// In homeserver.yaml, as comments.
    changes: String,
    open: usize,
}

impl Sheet {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn decide(&mut self, what: &str) {
        self.open += 1;
        self.line(format!("# DECIDE: {what}"));
    }

    fn change(&mut self, line: impl AsRef<str>) {
        // A String takes everything.
        writeln!(self.changes, "#   {}", line.as_ref()).ok();
    }
}

fn text<'a>(yaml: &'a Value, key: &str) -> Option<&'a str> {
    yaml.get(key)?.as_str().filter(|text| !text.is_empty())
}

fn texts<'a>(yaml: &'a Value, key: &str) -> Vec<&'a str> {
    yaml.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn listeners(yaml: &Value) -> &[Value] {
    yaml.get("listeners").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Ours, where the homeserver has none of its own.
struct Ports {
    clients: u64,
    identity: u64,
    admin: u64,
}

impl Ports {
    fn beside(yaml: &Value) -> Self {
        let taken: Vec<u64> = listeners(yaml).iter().filter_map(|listener| listener.get("port")?.as_u64()).collect();
        let free = |from: u64| (from..65_536).find(|port| !taken.contains(port)).unwrap_or(from);
        Self { clients: free(8080), identity: free(8091), admin: free(9091) }
    }
}

/// `[homeserver]`: the listener that serves clients in clear.
fn listener(sheet: &mut Sheet, yaml: &Value) {
    let is_client = |listener: &&Value| {
        let resources = listener.get("resources").and_then(Value::as_array).into_iter().flatten();
        resources.flat_map(|resource| texts(resource, "names")).any(|name| name == "client")
    };
    let is_clear = |listener: &&Value| listener.get("tls") != Some(&Value::Bool(true));
    sheet.line("\n[homeserver]");
    let Some(found) = listeners(yaml).iter().filter(is_client).find(is_clear) else {
        sheet.decide("homeserver.yaml has no listener for clients without tls; add one on 127.0.0.1, as the shim speaks no TLS to the homeserver");
        sheet.line("url = \"http://127.0.0.1:8008\"");
        sheet.change("listeners:");
        sheet.change("  - {port: 8008, bind_addresses: ['127.0.0.1'], type: http, tls: false, x_forwarded: true, resources: [{names: [client, federation]}]}");
        return;
    };
    let port = found.get("port").and_then(Value::as_u64).unwrap_or(8008);
    let path = text(found, "path");
    let mut addresses = texts(found, "bind_addresses");
    addresses.extend(text(found, "bind_address"));
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    match path {
        Some(path) => sheet.line(format!("url = {}", quoted(&format!("unix:{path}")))),
        None => sheet.line(format!("url = \"http://{}:{port}\"", host(&addresses))),
    }
    let is_forwarded = found.get("x_forwarded") == Some(&Value::Bool(true));
    let is_open = path.is_none() && (addresses.is_empty() || !addresses.iter().all(IpAddr::is_loopback));
    if is_forwarded && !is_open {
        return;
    }
    sheet.change(format!(
        "listeners: of the one with {}:",
        path.map_or_else(|| format!("port: {port}"), |path| format!("path: {path}"))
    ));
    if !is_forwarded {
        sheet.change("  x_forwarded: true          # clients' addresses in its limits and logs");
    }
    if is_open {
        sheet.change("  bind_addresses: ['127.0.0.1']   # so that nobody gets past the shim; federation may need a listener of its own then");
    }
}

/// Where a listener on these addresses is reached from this machine.
fn host(addresses: &[IpAddr]) -> String {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let has = |address: IpAddr| addresses.contains(&address);
    let one = match addresses.first() {
        None => v4,
        Some(_) if has(v4) || has(Ipv4Addr::UNSPECIFIED.into()) => v4,
        Some(_) if has(v6) || has(Ipv6Addr::UNSPECIFIED.into()) => v6,
        Some(first) => *first,
    };
    if one.is_ipv6() { format!("[{one}]") } else { one.to_string() }
}

fn phones(sheet: &mut Sheet, yaml: &Value) {
    if texts(yaml, "registrations_require_3pid").contains(&"msisdn") {
        sheet.line("\n[routes]");
        sheet.decide("registrations_require_3pid asks for a phone number: give [sms] a transport, and uncomment:");
        sheet.line("# register.msisdn = \"handle\"");
        sheet.line("# account_3pid.msisdn = \"handle\"");
    }
}

/// What the homeserver has to be told so that it believes the shim.
fn trust(sheet: &mut Sheet, yaml: &Value, port: u64, has_delegates: bool) {
    let trusted = texts(yaml, "trusted_third_party_id_servers");
    let name = format!("localhost:{port}");
    if !trusted.contains(&name.as_str()) {
        sheet.change("trusted_third_party_id_servers:");
        for server in trusted {
            sheet.change(format!("  - {server}"));
        }
        sheet.change(format!("  - {name}"));
    }
    let trusts = yaml.pointer("/email/trust_identity_server_for_password_resets") == Some(&Value::Bool(true));
    if !trusts && !has_delegates {
        sheet.change("email:                        # 1.0 to 1.3.1 only");
        sheet.change("  trust_identity_server_for_password_resets: true");
    }
    if let Some(server) = text(yaml, "default_identity_server") {
        sheet.change(format!("default_identity_server: take it out; clients that are told {server} go on naming it"));
    }
    sheet.changes.push_str("# And in its environment (systemctl edit matrix-synapse):\n");
    sheet.change("[Service]");
    sheet.change(format!("Environment=SSL_CERT_FILE={CA_DIRECTORY}/ca-bundle.pem"));
}
