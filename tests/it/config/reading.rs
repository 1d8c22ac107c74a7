//! What becomes of what was written: units, paths, secrets, files.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use threepid_shim::config::{
    Config, EmailTransport, Endpoint, Faults, HomeserverAddress, IdentityTls, Rate, RouteMode, SmsTransport, Smtp,
    TwilioSender,
};

use super::GOOD;

fn from_text(more: &str) -> Config {
    Config::from_text(&format!("{GOOD}{more}")).unwrap_or_else(|faults| panic!("{faults}"))
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, Faults> {
    let good = [("SERVER_NAME", "example.org"), ("PUBLIC_BASE_URL", "https://matrix.example.org")];
    let good = good.into_iter().chain([("EMAIL__FROM", "noreply@example.org")]);
    let all = good.chain(variables.iter().copied());
    Config::load(None, all.map(|(name, value)| (format!("THREEPID_SHIM__{name}"), value.to_owned())))
}

/// `shim.toml` in the folder, written from `GOOD` and more.
fn load(folder: &Path, more: &str) -> Result<Config, String> {
    let file = folder.join("shim.toml");
    fs::write(&file, format!("{GOOD}{more}")).unwrap();
    Config::load(Some(&file), std::iter::empty())
        .map_err(|faults| faults.to_string().replace(&format!("{}/", folder.display()), ""))
}

fn smtp(config: Config) -> Smtp {
    let EmailTransport::Smtp(smtp) = config.email.transport else { panic!("not smtp") };
    smtp
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn units_are_read() {
    let config = from_text(
        "shutdown.delay = \"500ms\"\nshutdown.grace = \"10m\"\nsession.unvalidated_lifetime = \"24h\"
session.validated_lifetime = \"7d\"\nlimits.submit_token_per_ip = \"3/90s\"\n",
    );
    assert_eq!(config.shutdown.delay, Duration::from_millis(500));
    assert_eq!(config.shutdown.grace, Duration::from_secs(600));
    assert_eq!(config.session.unvalidated_lifetime, Duration::from_secs(24 * 3600));
    assert_eq!(config.session.validated_lifetime, Duration::from_secs(7 * 24 * 3600));
    assert_eq!(config.limits.submit_token_per_ip, Rate { count: 3, per: Duration::from_secs(90) });
}

#[test]
fn addresses_are_read() {
    let config = from_text(
        "listen.clients = [\"[::1]:0\", \"unix:/run/shim.sock\"]\nhomeserver.url = \"http://[::1]:8008/\"
clients.trusted_proxies = [\"10.0.0.0/8\", \"fd00::7\"]\nsession.next_link_hosts = [\"App.Example.org\", \"::1\"]\n",
    );
    let unix = Endpoint::Unix(PathBuf::from("/run/shim.sock"));
    assert_eq!(config.listen.clients, [Endpoint::Tcp("[::1]:0".parse().unwrap()), unix]);
    assert_eq!(config.homeserver.address, HomeserverAddress::Tcp { host: "::1".to_owned(), port: 8008 });
    let proxy: IpAddr = "fd00::7".parse().unwrap();
    assert_eq!(config.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), proxy.into()]);
    assert_eq!(config.session.next_link_hosts, ["app.example.org", "[::1]"]);
    let unix = from_text("homeserver.url = \"unix:/run/synapse.sock\"\n").homeserver.address;
    assert_eq!(unix, HomeserverAddress::Unix(PathBuf::from("/run/synapse.sock")));
}

#[test]
fn doors_that_cannot_collide_may_share_a_port() {
    from_text(
        "listen.clients = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nlisten.admin = [\"127.0.0.2:8091\", \"[::]:8091\"]\n",
    );
}

#[test]
fn the_public_base_url_is_spelled_as_browsers_spell_an_origin() {
    let rows = [
        ("HTTPS://Matrix.Example.org:443/", "https://matrix.example.org", "https://matrix.example.org"),
        ("https://matrix.example.org:8443", "https://matrix.example.org:8443", "https://matrix.example.org:8443"),
        ("https://example.org/Matrix//", "https://example.org/Matrix", "https://example.org"),
        ("http://[::1]:80", "http://[::1]", "http://[::1]"),
    ];
    for (written, url, origin) in rows {
        let config = Config::from_text(&GOOD.replace("https://matrix.example.org", written)).unwrap();
        assert_eq!((config.public_base_url.as_str(), config.public_base_url.origin()), (url, origin));
        assert_eq!(config.warnings, Vec::<String>::new(), "{written}");
    }
}

#[test]
fn the_environment_gives_lists_by_commas_or_as_toml() {
    let rows = [("a.org, b.org", vec!["a.org", "b.org"]), ("[\"a.org\"]", vec!["a.org"]), ("", vec![])];
    for (value, expected) in rows {
        let config = from_environment(&[("SESSION__NEXT_LINK_HOSTS", value)]).unwrap();
        assert_eq!(config.session.next_link_hosts, expected);
    }
}

#[test]
fn the_environment_gives_numbers_booleans_and_deep_keys() {
    let config = from_environment(&[
        ("ROUTES__ACCOUNT_3PID__EMAIL", "forward"),
        ("SESSION__HIDE_EXISTENCE", "true"),
        ("EMAIL__TRANSPORT", "smtp"),
        ("EMAIL__HOST", "mail.example.org"),
        ("EMAIL__PORT", "2525"),
    ])
    .unwrap();
    assert_eq!(config.routes.account_3pid_email, RouteMode::Forward);
    assert!(config.session.hide_existence);
    assert_eq!(smtp(config).port, 2525);
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_fault() {
    let faults = from_environment(&[("EMAIL__PASSWORD", "hunter\u{fffd}")]).unwrap_err();
    assert_eq!(faults.to_string(), "environment: THREEPID_SHIM__EMAIL__PASSWORD: is not UTF-8; write it in UTF-8");
}

#[test]
fn files_to_be_read_are_beside_the_configuration_and_files_to_be_written_in_the_state_dir() {
    let folder = tempfile::tempdir().unwrap();
    let config = load(folder.path(), "state_dir = \"state\"\nemail.directory = \"mails\"\n").unwrap();
    assert_eq!(config.state_dir, folder.path().join("state"));
    let EmailTransport::File { directory } = config.email.transport else { panic!("not file") };
    assert_eq!(directory, folder.path().join("state/mails"));
}

const MAIL_SERVER: &str = "email.transport = \"smtp\"\nemail.host = \"mail.example.org\"\nemail.username = \"shim\"\n";

#[test]
fn a_password_file_lies_beside_the_configuration_and_its_line_end_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    for (content, expected) in [("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), (" hunter2", " hunter2")] {
        private(&folder.path().join("password"), content);
        let config = load(folder.path(), &format!("{MAIL_SERVER}email.password_file = \"password\"\n")).unwrap();
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(smtp(config).login.unwrap().password.expose(), expected);
    }
    private(&folder.path().join("password"), "\n");
    let fault = load(folder.path(), &format!("{MAIL_SERVER}email.password_file = \"password\"\n")).unwrap_err();
    assert_eq!(fault, "shim.toml:7: email.password_file: password is empty; write the secret into it");
}

/// S§4.23.
#[test]
fn a_secret_that_everybody_may_read_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    private(&password, "hunter2");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let config = load(folder.path(), &format!("{MAIL_SERVER}email.password_file = \"password\"\n")).unwrap();
    assert!(config.warnings[0].contains("shim.toml:7: email.password_file: every user"), "{:?}", config.warnings);
    let config = load(folder.path(), &format!("{MAIL_SERVER}email.password = \"hunter2\"\n")).unwrap();
    assert!(config.warnings[0].contains("shim.toml:7: email.password: every user"), "{:?}", config.warnings);
}

/// S§4.23.
#[test]
fn secrets_are_not_in_debug_output() {
    let gateways = [
        "sms.transport = \"twilio\"\nsms.account = \"AC0\"\nsms.from = \"x\"\nsms.token = \"hunter2\"\n",
        "sms.transport = \"http\"\nsms.url = \"https://localhost/hunter2\"\nsms.body = \"hunter2\"
sms.headers = { X-Key = \"hunter2\" }\nsms.signature_header = \"X\"\nsms.signature_secret = \"hunter2\"\n",
    ];
    for gateway in gateways {
        let config = from_text(&format!("{MAIL_SERVER}email.password = \"hunter2\"\n{gateway}"));
        assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
    }
}

#[test]
fn the_port_of_the_mail_server_follows_from_its_tls() {
    for (tls, port) in [("required", 587), ("implicit", 465)] {
        let config = from_text(&format!(
            "email.transport = \"smtp\"\nemail.host = \"mail.example.org\"\nemail.tls = \"{tls}\"\n"
        ));
        assert_eq!(smtp(config).port, port);
    }
}

#[test]
fn mail_in_clear_stays_on_this_machine_unless_it_is_allowed_to_leave() {
    let in_clear = |host: &str, more: &str| {
        let keys = format!("email.transport = \"smtp\"\nemail.host = \"{host}\"\nemail.tls = \"none\"\n{more}");
        Config::from_text(&format!("{GOOD}{keys}"))
    };
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let config = in_clear(host, "").unwrap();
        assert_eq!((config.warnings.len(), smtp(config).port), (0, 25), "{host}");
    }
    assert!(in_clear("mail.example.org", "").is_err());
    let warnings = in_clear("mail.example.org", "email.allow_plaintext = true\n").unwrap().warnings;
    assert_eq!(
        warnings,
        ["threepid-shim.toml:6: email.tls: mails and links travel in clear to mail.example.org; write \"required\""]
    );
}

#[test]
fn messages_in_clear_stay_on_this_machine_unless_they_are_allowed_to_leave() {
    let in_clear = |host: &str, more: &str| {
        let keys = format!("sms.transport = \"http\"\nsms.url = \"http://{host}/\"\nsms.countries = [\"GB\"]\n{more}");
        Config::from_text(&format!("{GOOD}{keys}"))
    };
    for host in ["localhost", "127.0.0.1:8080", "[::1]"] {
        assert_eq!(in_clear(host, "").unwrap().warnings, Vec::<String>::new());
    }
    assert!(in_clear("sms.example.org", "").is_err());
    let warnings = in_clear("sms.example.org", "sms.allow_plaintext = true\n").unwrap().warnings;
    let expected = "sms.url: numbers, codes and the login travel in clear to sms.example.org; write an https URL";
    assert_eq!(warnings, [format!("threepid-shim.toml:5: {expected}")]);
}

#[test]
fn a_gateway_is_read_and_its_spend_is_limited() {
    let twilio =
        "routes.register.msisdn = \"handle\"\nsms.transport = \"twilio\"\nsms.account = \"AC0\"\nsms.token = \"t\"\n";
    let rows = [
        ("MG0123456789abcdef0123456789abcdef", true),
        ("MGM Grand", false),
        ("+441134960000", false),
        ("AC0123456789abcdef0123456789abcdef", false),
    ];
    for (from, is_service) in rows {
        let config = from_text(&format!("{twilio}sms.from = \"{from}\"\n"));
        assert_eq!(config.routes.register_msisdn, RouteMode::Handle);
        assert_eq!(config.limits.sms_per_number, Rate { count: 3, per: Duration::from_secs(3600) });
        assert_eq!(config.limits.sms_per_country, Rate { count: 100, per: Duration::from_secs(3600) });
        assert_eq!(config.limits.sms_per_day, 500);
        assert!(config.warnings[0].contains("sms.countries: numbers of every country"), "{:?}", config.warnings);
        let SmsTransport::Twilio(twilio) = config.sms.transport else { panic!("not twilio") };
        assert_eq!(
            (twilio.gateway.host.as_str(), twilio.gateway.port, twilio.gateway.https),
            ("api.twilio.com", 443, true)
        );
        assert_eq!(matches!(twilio.sender, TwilioSender::MessagingService(_)), is_service, "{from}");
    }
}

#[test]
fn a_header_with_a_secret_that_everybody_may_read_is_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "sms.transport = \"http\"\nsms.url = \"https://a/\"\nsms.headers = { Authorization = \"x\" }\n";
    private(&folder.path().join("shim.toml"), "");
    let warnings = |config: Config| config.warnings.iter().filter(|it| it.contains("sms.headers: every user")).count();
    assert_eq!(warnings(load(folder.path(), keys).unwrap()), 0);
    fs::set_permissions(folder.path().join("shim.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(warnings(load(folder.path(), keys).unwrap()), 1);
}

#[test]
fn a_sender_is_made_up_only_where_no_mail_is_sent() {
    let senderless = GOOD.replace("email.from = \"noreply@example.org\"\n", "");
    assert!(Config::from_text(&senderless).is_err());
    let unhandled = "routes.register.email = \"refuse\"\nroutes.password.email = \"forward\"
routes.account_3pid.email = \"refuse\"\n";
    for more in ["email.transport = \"log\"\n", unhandled] {
        let config = Config::from_text(&format!("{senderless}{more}")).unwrap();
        assert_eq!(config.email.from.to_string(), "noreply@example.org");
    }
}

#[test]
fn a_homeserver_that_asks_by_itself_needs_a_sender_and_no_open_door() {
    assert!(!from_text("").identity.accept_unannounced);
    let config = from_text("identity.accept_unannounced = true\nidentity.allowed_peers = [\"::/0\"]\n");
    assert!(config.identity.accept_unannounced);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("everybody may have messages sent, and ask"), "{:?}", config.warnings);

    let without_sender = "server_name = \"example.org\"\npublic_base_url = \"https://matrix.example.org\"\n\
                          routes.register.email = \"refuse\"\nroutes.password.email = \"refuse\"\n\
                          routes.account_3pid.email = \"refuse\"\n";
    assert!(Config::from_text(without_sender).is_ok(), "no route mails");
    let faults = Config::from_text(&format!("{without_sender}identity.accept_unannounced = true\n")).unwrap_err();
    assert!(faults.to_string().contains("email.from: is missing"), "{faults}");
}

#[test]
fn what_is_written_for_nothing_is_warned_about() {
    let more = "email.host = \"mail.example.org\"\nstore.url = \"redis://127.0.0.1\"\nsms.from = \"Example\"
routes.named_id_server = \"reject\"\nroutes.trusted_id_servers = [\"vector.im\"]
shutdown.grace = \"10s\"\nidentity.allowed_peers = [\"0.0.0.0/0\"]\n";
    let mut warnings = from_text(more).warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "threepid-shim.toml:10: identity.allowed_peers: with 0.0.0.0/0 everybody may ask which addresses have been confirmed; write the networks that are meant",
            "threepid-shim.toml:4: email.host: is not used unless email.transport is \"smtp\"; remove it",
            "threepid-shim.toml:5: store.url: is not used unless store.kind is \"redis\"; remove it",
            "threepid-shim.toml:6: sms.from: is not used unless sms.transport is \"twilio\" or \"http\"; remove it",
            "threepid-shim.toml:8: routes.trusted_id_servers: says nothing unless routes.named_id_server is \"forward\"; remove it",
            "threepid-shim.toml:9: shutdown.grace: a /sync waits 30 seconds and would be cut; write \"30s\" or more",
        ]
    );
}

#[test]
fn a_certificate_and_its_key_are_taken_and_another_key_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
    private(&folder.path().join("tls.key"), &made.signing_key.serialize_pem());
    private(&folder.path().join("other.key"), &other.serialize_pem());
    let keys = |key| format!("identity.tls.certificate = \"tls.crt\"\nidentity.tls.private_key = \"{key}\"\n");
    let config = load(folder.path(), &keys("tls.key")).unwrap();
    let IdentityTls::Files(files) = config.identity.tls else { panic!("generated") };
    assert_eq!(files.certificate, folder.path().join("tls.crt"));
    let fault = load(folder.path(), &keys("other.key")).unwrap_err();
    assert!(fault.starts_with("shim.toml:4: identity.tls.certificate: cannot be used with its private key"), "{fault}");
    let fault = load(folder.path(), &keys("tls.crt")).unwrap_err();
    assert!(fault.starts_with("shim.toml:5: identity.tls.private_key: tls.crt holds no private key in PEM"), "{fault}");
}

#[test]
fn the_operators_templates_are_read_but_not_hidden_files_or_folders() {
    let folder = tempfile::tempdir().unwrap();
    let templates = folder.path().join("templates");
    fs::create_dir_all(templates.join("..data")).unwrap();
    fs::create_dir_all(templates.join("folder")).unwrap();
    fs::write(templates.join("..data/register.txt"), "Hello").unwrap();
    fs::write(templates.join(".register.txt.swp"), [0xff]).unwrap();
    std::os::unix::fs::symlink("..data/register.txt", templates.join("register.txt")).unwrap();
    let config = load(folder.path(), "").unwrap();
    let found: Vec<_> =
        config.wording.templates.iter().map(|(name, found)| (name.as_str(), found.text.as_str())).collect();
    assert_eq!(found, [("register.txt", "Hello")]);

    fs::write(templates.join("odd.txt"), [0xff]).unwrap();
    let fault = load(folder.path(), "").unwrap_err();
    assert_eq!(fault, "shim.toml: wording.directory: templates/odd.txt is not UTF-8; write it in UTF-8");
    fs::write(templates.join("odd.txt"), vec![b'a'; 1024 * 1024 + 1]).unwrap();
    let fault = load(folder.path(), "").unwrap_err();
    assert!(fault.contains("templates/odd.txt is larger than 1 MiB"), "{fault}");
}
