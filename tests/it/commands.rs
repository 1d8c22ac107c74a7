//! The commands that an operator types, as the binary answers them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::client::creds;
use crate::legacy::{legacy, unique};
use crate::process::Process;
use crate::shim::link_of;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const GOOD: &str = "server_name = \"example.org\"\npublic_base_url = \"https://matrix.example.org\"\n";

/// In a folder whose `threepid-shim.toml` this is, with this environment and nothing else of ours.
pub fn run(text: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("threepid-shim.toml"), text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_threepid-shim"))
        .current_dir(folder.path())
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the shim starts")
}

pub fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Every command there is, by its words.
fn commands(of: &clap::Command, before: &[String]) -> Vec<Vec<String>> {
    let mut all = vec![before.to_vec()];
    for command in of.get_subcommands() {
        let words = [before, &[command.get_name().to_owned()]].concat();
        all.extend(commands(command, &words));
    }
    all
}

#[test]
fn every_command_has_help_that_says_what_it_does_and_fits_a_terminal() {
    let all = commands(&<threepid_shim::command::Cli as clap::CommandFactory>::command(), &[]);
    assert!(all.len() >= 10, "{all:?}");
    for words in all {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = run(GOOD, &arguments, &[]);
        let help = said(&output);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let first = help.lines().next().unwrap();
        assert!(first.split_whitespace().count() >= 3 && !first.starts_with("Usage"), "{words:?}: {help}");
        assert!(
            help.contains(&format!("Usage: {}", [&["threepid-shim".to_owned()], &words[..]].concat().join(" "))),
            "{help}"
        );
        assert!(help.lines().all(|line| line.chars().count() <= 132), "{words:?}: {help}");
    }
}

#[test]
fn what_is_in_effect_is_dumped_from_file_and_environment_and_a_faulty_file_is_not() {
    let text = format!(
        "{GOOD}[email]\ntransport = \"smtp\"\nhost = \"mail.example.org\"\nfrom = \"a@example.org\"\nusername = \"u\"\n"
    );
    let environment = [
        ("THREEPID_SHIM__EMAIL__PASSWORD", "s3cr3t"),
        ("THREEPID_SHIM__LIMITS__CONNECTIONS", "77"),
        ("THREEPID_SHIM__LISTEN__H2C", "true"),
        ("THREEPID_SHIM__SESSION__NEXT_LINK_HOSTS", "a.example.org, b.example.org"),
    ];
    let output = run(&text, &["config", "dump", "--config", "threepid-shim.toml"], &environment);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let dumped = said(&output);
    for line in [
        "host = \"mail.example.org\"  # threepid-shim.toml:5",
        "password = \"(set)\"  # environment",
        "connections = 77  # environment",
        "h2c = true  # environment",
        "next_link_hosts = [\"a.example.org\", \"b.example.org\"]  # environment",
        "level = \"info\"  # default",
    ] {
        assert!(dumped.lines().any(|dumped| dumped == line), "{line}\n{dumped}");
    }
    assert!(!dumped.contains("s3cr3t"));
    let again = run(&dumped, &["check", "--config", "threepid-shim.toml"], &[]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let faulty = run("servername = 1\n", &["config", "dump", "--config", "threepid-shim.toml"], &[]);
    assert_eq!((faulty.status.code(), said(&faulty)), (Some(78), String::new()));
}

/// Where `tests/run install` puts what it installs.
fn cache() -> String {
    std::env::var("THREEPID_SHIM_TEST_CACHE")
        .unwrap_or_else(|_| format!("{}/.cache/threepid-shim-tests", std::env::var("HOME").unwrap()))
}

/// What python-jsonschema says of a file: nothing, or the fault.
fn by_schema(schema: &Path, text: &str) -> String {
    let program = "import json, sys, tomllib, jsonschema\n\
                   schema = json.load(open(sys.argv[1]))\n\
                   jsonschema.Draft202012Validator.check_schema(schema)\n\
                   faults = jsonschema.Draft202012Validator(schema).iter_errors(tomllib.loads(sys.stdin.read()))\n\
                   print('\\n'.join(f'{fault.json_path}: {fault.message}' for fault in faults))\n";
    let mut python = Command::new(format!("{}/kubernetes/bin/python", cache()))
        .args(["-c", program])
        .arg(schema)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tests/run install has made the venv with jsonschema");
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    said(&output).trim().to_owned()
}

#[test]
fn the_schema_takes_what_the_shim_takes_and_refuses_what_it_refuses() {
    let output = run("", &["config", "schema"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    std::fs::write(&schema, &output.stdout).unwrap();
    let shipped = std::fs::read_to_string(Path::new(ROOT).join("config/threepid-shim.toml")).unwrap();
    assert_eq!(by_schema(&schema, &shipped), "");
    let written =
        "[listen]\ntls = { certificate = \"c\", private_key = \"k\" }\n[email]\nport = 25\ntransport = \"smtp\"\n";
    assert_eq!(by_schema(&schema, &format!("{GOOD}{written}")), "");
    let rows = [
        ("email = { port = 0 }", "$.email.port: 0 is less than the minimum"),
        ("email = { port = 65536 }", "$.email.port: 65536 is greater than the maximum"),
        ("email = { port = \"25\" }", "$.email.port: '25' is not of type 'integer'"),
        ("store = { kind = \"disk\" }", "$.store.kind: 'disk' is not one of"),
        ("routes.register.email = \"drop\"", "$.routes.register.email: 'drop' is not one of"),
        ("shutdown = { grace = \"soon\" }", "$.shutdown.grace: 'soon' does not match"),
        ("listen = { clients = \"127.0.0.1:1\" }", "$.listen.clients: '127.0.0.1:1' is not of type 'array'"),
        ("listen = { h2c = \"yes\" }", "$.listen.h2c: 'yes' is not of type 'boolean'"),
        ("sms = { headers = { A = 1 } }", "$.sms.headers.A: 1 is not of type 'string'"),
        ("emial = { port = 25 }", "$: Additional properties are not allowed ('emial' was unexpected)"),
        ("email = { prot = 25 }", "$.email: Additional properties are not allowed ('prot' was unexpected)"),
    ];
    for (line, fault) in rows {
        let text = format!("{GOOD}{line}\n");
        let found = by_schema(&schema, &text);
        assert!(found.starts_with(fault) && found.lines().count() == 1, "{line}: {found}");
        let check = run(&text, &["check", "--config", "threepid-shim.toml"], &[]);
        assert_eq!(check.status.code(), Some(78), "{line}: the shim refuses it, too");
    }
    assert_eq!(by_schema(&schema, "server_name = \"example.org\"\n"), "$: 'public_base_url' is a required property");
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_threepid-shim"))
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

/// What `config from-synapse` makes of this text, and what `check` says of that.
fn from_synapse(files: &[(&str, &str)]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let shim = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        command.current_dir(folder.path()).args(arguments).env_clear().output().unwrap()
    };
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let names = files.iter().map(|(name, _)| *name);
    let output = shim(&["config", "from-synapse"].into_iter().chain(names).collect::<Vec<_>>());
    let made = said(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let open = made.matches("# DECIDE: ").count();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("{open} left to decide: look for DECIDE\n"));
    std::fs::write(folder.path().join("threepid-shim.toml"), &made).unwrap();
    std::fs::write(folder.path().join("smtp-password"), "x").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path().join("smtp-password"), mode).unwrap();
    let check = shim(&["check", "--config", "threepid-shim.toml"]);
    (made, String::from_utf8([check.stderr, check.stdout].concat()).unwrap())
}

/// As Debian's package and Synapse's own installation begin.
#[test]
fn what_synapse_1_3_1_writes_as_its_first_homeserver_yaml_becomes_a_good_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(format!("{}/synapse-1.3.1/bin/python", cache()))
        .args(["-m", "synapse.app.homeserver", "--generate-config", "-H", "example.org", "--report-stats=no"])
        .args(["-c", "homeserver.yaml"])
        .current_dir(folder.path())
        .output()
        .expect("tests/run install has installed Synapse 1.3.1");
    let text = std::fs::read_to_string(folder.path().join("homeserver.yaml"));
    let text = text.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let (made, checked) = from_synapse(&[("homeserver.yaml", &text)]);
    assert_eq!(checked, "configuration is good\n", "{made}");
    for line in [
        "server_name = \"example.org\"",
        "url = \"http://127.0.0.1:8008\"",
        "transport = \"file\"",
        "#     - localhost:8091",
    ] {
        assert!(made.lines().any(|made| made == line), "{line}\n{made}");
    }
}

#[test]
fn a_homeserver_yaml_with_everything_in_it_becomes_a_good_configuration_without_its_password() {
    let first = "server_name: elsewhere.org\npublic_baseurl: https://matrix.example.org/\nlisteners:\n\
        - {port: 8448, type: http, tls: true, resources: [{names: [client, federation]}]}\n\
        - &door {port: 8018, bind_addresses: ['::', '0.0.0.0'], type: http, resources: [{names: [client]}]}\n\
        - {port: 8080, type: replication}\n- {port: 8091, type: metrics}\n\
        email:\n  smtp_host: mail.example.org\n  smtp_port: 587\n  smtp_user: \"us\\\"er\"\n  smtp_pass: s3cr3t\n\
        \x20 notif_from: \"Your %(app)s server <noreply@example.org>\"\n  app_name: Example\n\
        \x20 riot_base_url: https://riot.example.org/app\n  validation_token_lifetime: 2h\n  template_dir: /t\n\
        trusted_third_party_id_servers: [matrix.org, vector.im]\nregistrations_require_3pid: [email, msisdn]\n\
        default_identity_server: https://vector.im\naccount_threepid_delegates: {msisdn: 'https://localhost:8091'}\n";
    let (made, checked) =
        from_synapse(&[("homeserver.yaml", first), ("server_name.yaml", "server_name: example.org\n")]);
    assert_eq!(checked, "configuration is good\n", "{made}");
    assert!(!made.contains("s3cr3t") && !made.contains("elsewhere"), "{made}");
    let mut from = 0;
    for line in [
        "server_name = \"example.org\"",
        "public_base_url = \"https://matrix.example.org\"",
        "clients = [\"127.0.0.1:8081\"]   # the reverse proxy's /_matrix/client goes here now",
        "identity = [\"127.0.0.1:8092\"]",
        "admin = [\"127.0.0.1:9091\"]",
        "url = \"http://127.0.0.1:8018\"",
        "name = \"localhost:8092\"",
        "# accept_unannounced = true",
        "# register.msisdn = \"handle\"",
        "unvalidated_lifetime = \"7200s\"   # email.validation_token_lifetime",
        "# next_link_hosts = [\"riot.example.org\"]",
        "transport = \"smtp\"",
        "host = \"mail.example.org\"",
        "port = 587",
        "tls = \"required\"",
        "username = \"us\\\"er\"",
        "password_file = \"smtp-password\"",
        "from = \"Your Example server <noreply@example.org>\"",
        "#   listeners: of the one with port: 8018:",
        "#     bind_addresses: ['127.0.0.1']   # so that nobody gets past the shim; federation may need a listener of its own then",
        "#     - matrix.org",
        "#     - vector.im",
        "#     - localhost:8092",
        "#   default_identity_server: take it out; clients that are told https://vector.im go on naming it",
    ] {
        let found = made[from..].find(&format!("{line}\n")).unwrap_or_else(|| panic!("{line}, in its order\n{made}"));
        from += found + line.len();
    }
}

#[test]
fn a_file_that_is_no_homeserver_yaml_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        ("a: [\n", "homeserver.yaml: line "),
        ("- a\n", "homeserver.yaml: this is no table of keys\n"),
        ("report_stats: no\n", "server_name is not there: "),
    ];
    for (text, fault) in rows {
        std::fs::write(folder.path().join("homeserver.yaml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        let output =
            command.args(["config", "from-synapse", "homeserver.yaml"]).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with(fault), "{errors}");
        assert_eq!((output.status.code(), output.stdout), (Some(78), Vec::new()));
    }
}

/// Through real Synapse: the running shim is asked, so that a locked file is nobody's trouble.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_shown_on_its_way_from_mail_to_consumed_and_never_its_address_or_token() {
    let synapse = legacy("1.3.1");
    let process = Process::start(&synapse.address, synapse.door(), "[store]\nkind = \"file\"\n").serving().await;
    let (client, name, secret) = (process.client(), unique("shown"), unique("very-secret"));
    let config = process.config_file();
    let show = |sid: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        command.args(["session", "show", sid, "--config"]).arg(&config).output().unwrap()
    };
    let sid = client.request_token("register", &format!("{name}@example.org"), &secret, 3).await.sid();
    let link = link_of(&process.outbox().pop().unwrap());
    let requested = said(&show(&sid));
    client.click(&link).await;
    let validated = said(&show(&sid));
    client.register(&name, creds(&sid, &secret)).await.ok();
    let consumed = said(&show(&sid));
    for (shown, state) in [(&requested, "requested: "), (&validated, "validated: "), (&consumed, "consumed: ")] {
        assert!(shown.starts_with(&format!("state        {state}")), "{shown}");
        assert!(shown.contains("delivered    yes, last for send_attempt 3\n"), "{shown}");
        let token = link.split("token=").nth(1).unwrap().split('&').next().unwrap();
        assert!(![&name, &secret, token].into_iter().any(|private| shown.contains(private)), "{shown}");
    }
    assert!(validated.contains("bound        no\n") && consumed.contains("bound        to the client"), "{consumed}");
    let unknown = show(&format!("shim_{}", "0".repeat(32)));
    assert_eq!((unknown.status.code(), said(&unknown)), (Some(1), String::new()));
    assert_eq!(show("../readyz").status.code(), Some(64));
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("shim.toml");
    std::fs::copy(&config, &alone).unwrap();
    drop(process);
    let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
    let nobody = command.args(["session", "show", &sid, "--config"]).arg(&alone).output().unwrap();
    assert_eq!(nobody.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("nobody answers at "), "{nobody:?}");
}

#[test]
fn templates_are_listed_and_written_out_as_they_would_go_out() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("not/there");
    let good = format!("{GOOD}email = {{ transport = \"file\", from = \"Example <noreply@example.org>\" }}\n");
    let listed = run(&good, &["templates", "list", "--config", "threepid-shim.toml"], &[]);
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    let listed = said(&listed);
    assert_eq!(listed.lines().filter(|line| line.starts_with("language")).count(), 12, "{listed}");
    assert!(listed.contains("template  mail.html     built in"), "{listed}");

    let render = |more: &[&str]| {
        let words = ["templates", "render", "--config", "threepid-shim.toml", "--out", out.to_str().unwrap()];
        run(&good, &[&words, more].concat(), &[])
    };
    let output = render(&["--language", "AR"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let files = std::fs::read_dir(out.join("ar")).unwrap().count();
    assert_eq!(files, 4 * 4 + 13, "four files for each purpose, and every page");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "Arabic alone");
    let eml = std::fs::read_to_string(out.join("ar/mail-register.eml")).unwrap();
    assert!(eml.is_ascii() && eml.contains("\r\nSubject: =?utf-8?") && eml.contains("multipart/alternative"), "{eml}");
    let page = std::fs::read_to_string(out.join("ar/page-confirm-register.html")).unwrap();
    assert!(page.contains("<html lang=\"ar\" dir=\"rtl\">"), "{page}");

    assert_eq!(render(&[]).status.code(), Some(0));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 12);
    let output = render(&["--language", "tlh"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no language tlh; there are ar, de, en"));
}
