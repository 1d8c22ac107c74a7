//! Man pages and completions, as groff and bash take them.

use std::process::Command;

#[path = "../../deploy/manual.rs"]
mod made;

#[test]
fn every_command_has_a_page_that_groff_formats_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    made::write(folder.path()).unwrap();
    let pages: Vec<_> =
        std::fs::read_dir(folder.path().join("man/man1")).unwrap().map(|page| page.unwrap().path()).collect();
    for name in ["", "-serve", "-check", "-doctor", "-config", "-config-from-synapse", "-session-show", "-version"] {
        assert!(pages.iter().any(|page| page.ends_with(format!("threepid-shim{name}.1"))), "{name}: {pages:?}");
    }
    for page in pages {
        let output = Command::new("groff").args(["-man", "-ww", "-Tutf8", "-P-cbou"]).arg(&page).output();
        let output = output.expect("Debian's groff-base is installed");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\nNAME\n") && text.contains("\nSYNOPSIS\n"), "{page:?}: {text}");
    }
}

#[test]
fn bash_completes_commands_and_their_options() {
    let folder = tempfile::tempdir().unwrap();
    made::write(folder.path()).unwrap();
    let complete = |words: &str| {
        let script = "source \"$1\"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                      \
                      $(complete -p threepid-shim | sed 's/.*-F \\([^ ]*\\).*/\\1/') threepid-shim \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
                      echo \"${COMPREPLY[*]}\"";
        let file = folder.path().join("bash-completion/completions/threepid-shim");
        let output = Command::new("bash").args(["-c", script, "bash"]).arg(file).arg(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("threepid-shim do"), "doctor");
    assert_eq!(complete("threepid-shim config f"), "from-synapse");
    assert_eq!(complete("threepid-shim config from-synapse --c"), "--config");
    assert_eq!(complete("threepid-shim doctor --s"), "--send-test-mail");
    for file in ["zsh/vendor-completions/_threepid-shim", "fish/vendor_completions.d/threepid-shim.fish"] {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text.contains("from-synapse") && text.contains("send-test-mail"), "{file}");
    }
}
