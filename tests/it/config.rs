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
    assert_eq!(files.len(), 37);
}

#[test]
fn a_good_file_is_called_good() {
    let output = check(GOOD, &[]);
    assert_eq!((output.status.code(), errors(&output).as_str()), (Some(0), ""));
    assert_eq!(output.stdout, b"configuration is good\n");
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
