//! The configuration as an operator meets it: through the command line, its exit codes and what it prints.

mod manual;
mod reading;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A configuration that is good, without a table at its end: more keys may follow.
const GOOD: &str = "server_name = \"example.org\"
public_base_url = \"https://matrix.example.org\"
email.from = \"noreply@example.org\"
";

fn shim(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_threepid-shim"))
        .current_dir(folder)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the shim starts")
}

fn check(text: &str, environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shim.toml"), text).unwrap();
    shim(folder.path(), &["check", "--config", "shim.toml"], environment)
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_fault_of_a_faulty_file_is_named_in_one_go() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config/faulty");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let expected: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("#= FILE")).map(|rest| format!("{name}{rest}")).collect();
        assert!(!expected.is_empty(), "{name} expects no fault");
        let output = shim(&folder, &["check", "--config", name], &[]);
        assert_eq!(errors(&output).lines().collect::<Vec<_>>(), expected, "{name}");
        assert_eq!(output.status.code(), Some(78), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
    }
    assert_eq!(files.len(), 38);
}

#[test]
fn a_good_file_is_called_good() {
    let output = check(GOOD, &[]);
    assert_eq!((output.status.code(), errors(&output).as_str()), (Some(0), ""));
    assert_eq!(output.stdout, b"configuration is good\n");
}

/// Everything that is wrong beyond the file itself, in the same form; and a start says it, and ends the same way.
#[test]
fn check_names_each_faulty_template_catalogue_and_message_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
    std::fs::create_dir(folder.path().join("templates")).unwrap();
    put("templates/mail.txt", "{{ t.title }}\n{{ sever_name }}\n");
    put("templates/subject.txt", "{% if %}");
    put(
        "templates/de.json",
        "{\n  \"mail\": {\n    \"opne\": \"Weiter\",\n    \"lifetime\": \"Bald vorbei.\"\n  }\n}\n",
    );
    put("templates/sv.json", "{ \"direction\": \"ltr\",\n }");
    put("templates/read.me", "");
    let keys = "[listen]\nclients = [\"127.0.0.1:0\"]\nidentity = [\"127.0.0.1:0\"]\nadmin = []\n[wording]\ndefault_language = \"tlh\"\n";
    let sms = "[sms]\ntransport = \"http\"\nurl = \"http://127.0.0.1/{{ nonsense }}\"\nbody = '{{ to }}'\ncountries = [\"GB\"]\n";
    put("shim.toml", &format!("{GOOD}state_dir = \"state\"\n{keys}{sms}"));
    let output = shim(folder.path(), &["check", "--config", "shim.toml"], &[]);
    let expected = [
        "shim.toml:10: wording.default_language: there is no language tlh; write one of ",
        "templates/de.json:3: mail.opne: is no key; did you mean mail.open?",
        "templates/de.json:4: mail.lifetime: leaves {lifetime} out; write where it stands, as the English text does",
        "templates/subject.txt:1: wording.directory: syntax error: ",
        "templates/sv.json:2: not JSON: ",
        "templates/read.me: wording.directory: there is no such template; remove it, or name it one of subject.txt, ",
        "shim.toml:13: sms.url: undefined value",
        "shim.toml:14: sms.body: does not give JSON",
    ];
    let said = errors(&output);
    assert_eq!(said.lines().count(), expected.len(), "{said}");
    for (line, expected) in said.lines().zip(expected) {
        assert!(line.starts_with(expected) && line.contains("; "), "{expected}\n{said}");
    }
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(78), b"".as_slice()));

    // What can be compiled is tried, and only then.
    for file in ["subject.txt", "de.json", "sv.json", "read.me"] {
        std::fs::remove_file(folder.path().join("templates").join(file)).unwrap();
    }
    put("shim.toml", &format!("{GOOD}state_dir = \"state\"\n{}", keys.replace("tlh", "en")));
    let fault = "templates/mail.txt:2: wording.directory: undefined value: `sever_name` is undefined; write a name that config/README.md lists for this template";
    let output = shim(folder.path(), &["check", "--config", "shim.toml"], &[]);
    assert_eq!((errors(&output).trim_end(), output.status.code()), (fault, Some(78)));
    let output = shim(folder.path(), &["serve", "--config", "shim.toml"], &[]);
    assert!(errors(&output).contains(fault), "{output:?}");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let output = shim(folder.path(), &["templates", "render", "--out", "out", "--config", "shim.toml"], &[]);
    assert_eq!((errors(&output).trim_end(), output.status.code()), (fault, Some(78)));
    std::fs::remove_file(folder.path().join("templates/mail.txt")).unwrap();
    assert_eq!(shim(folder.path(), &["check", "--config", "shim.toml"], &[]).status.code(), Some(0));
}

#[test]
fn a_warning_is_printed_and_the_configuration_is_good_all_the_same() {
    let output = check(&GOOD.replace("https://matrix", "http://matrix"), &[]);
    assert_eq!(
        errors(&output),
        "warning: shim.toml:2: public_base_url: the links in mails and their tokens travel in clear; write an https URL\n"
    );
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"configuration is good\n".as_slice()));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let output = shim(folder.path(), &["check", "--config", "absent.toml"], &[]);
    assert_eq!(
        errors(&output),
        "absent.toml: --config: cannot be read: No such file or directory (os error 2); write the path of a configuration file\n"
    );
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn serve_is_the_default_and_refuses_a_faulty_file() {
    for arguments in [&[][..], &["serve"]] {
        let folder = tempfile::tempdir().unwrap();
        let output = shim(folder.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(78));
        assert_eq!(
            errors(&output).lines().collect::<Vec<_>>(),
            [
                "environment: THREEPID_SHIM__SERVER_NAME: is missing; write a server name such as \"example.org\"",
                "environment: THREEPID_SHIM__PUBLIC_BASE_URL: is missing; write a URL such as \"https://matrix.example.org\"",
                "environment: THREEPID_SHIM__EMAIL__FROM: is missing; write \"Example <noreply@example.org>\"",
            ]
        );
    }
}

#[test]
fn bad_arguments_end_with_64_and_help_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let rows: [(&[&str], i32); 6] = [
        (&["chek"], 64),
        (&["--confg", "x"], 64),
        (&["check", "--config"], 64),
        (&["check", "serve"], 64),
        (&["--help"], 0),
        (&["--version"], 0),
    ];
    for (arguments, code) in rows {
        assert_eq!(shim(folder.path(), arguments, &[]).status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn the_environment_is_stronger_than_the_file() {
    let text = format!("{GOOD}log.level = \"loud\"\n");
    assert_eq!(check(&text, &[]).status.code(), Some(78));
    assert_eq!(check(&text, &[("THREEPID_SHIM__LOG__LEVEL", "warn")]).status.code(), Some(0));
}

#[test]
fn faults_of_the_environment_name_the_variable_and_follow_those_of_the_file() {
    let text = format!("{GOOD}log.format = \"xml\"\n");
    let variables = [
        ("THREEPID_SHIM__EMIAL__HOST", "mail.example.org"),
        ("THREEPID_SHIM__email__host", "mail.example.org"),
        ("THREEPID_SHIM__ROUTES__REGISTER__EMAIL", "nothing"),
        ("THREEPID_SHIM__EMAIL__MAX_CONNECTIONS", "many"),
        ("THREEPID_SHIM_OTHER", "is not ours: one underscore"),
        ("PATH", "/bin"),
    ];
    let output = check(&text, &variables);
    let printed = errors(&output);
    let mut lines: Vec<&str> = printed.lines().collect();
    assert_eq!(
        lines.remove(0),
        "shim.toml:4: log.format: \"xml\" is none of the words it takes; write \"text\" or \"json\""
    );
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "environment: THREEPID_SHIM__EMAIL__MAX_CONNECTIONS: \"many\" is not a number; write a number from 1 to 1000",
            "environment: THREEPID_SHIM__EMIAL__HOST: names no key; did you mean THREEPID_SHIM__EMAIL__HOST?",
            "environment: THREEPID_SHIM__ROUTES__REGISTER__EMAIL: \"nothing\" is none of the words it takes; write \"handle\", \"forward\", \"refuse\" or \"observe\"",
            "environment: THREEPID_SHIM__email__host: names no key; unset it, or write THREEPID_SHIM__SECTION__KEY",
        ]
    );
}

#[test]
fn no_fault_repeats_a_secret() {
    let rows = [
        format!("{GOOD}email.pasword = \"hunter2\"\n"),
        format!("{GOOD}email.password = [\"hunter2\"]\n"),
        format!("{GOOD}email.password = \"hunter2\" oops\n"),
        format!("{GOOD}email.password = \"hunter2\n"),
        format!("{GOOD}sms.headers = {{ Authorization = \"hunter2\", Odd = 1 }}\n"),
        format!("{GOOD}sms.url = \"https://shim:hunter2@localhost\"\n"),
        format!("{GOOD}sms.base_url = \"ftp://localhost/?key=hunter2\"\n"),
        format!("{GOOD}store.url = \"redis//:hunter2@localhost\"\n"),
        format!("{GOOD}store.url = \"redis://:hunter2@localhost\"\n"),
        GOOD.replace("https://", "https://shim:hunter2@"),
    ];
    for text in &rows {
        let output = check(text, &[]);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(!errors(&output).contains("hunter2"), "{}", errors(&output));
    }
    let output = check(GOOD, &[("THREEPID_SHIM__EMAIL__PASWORD", "hunter2")]);
    assert!(output.status.code() == Some(78) && !errors(&output).contains("hunter2"), "{}", errors(&output));
}
