//! The man pages and the shell completions, made from the command line's own definition:
//! `cargo run --example manual -- FOLDER`. For packages; the binary knows nothing of it.

use std::path::Path;
use std::{fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;
use threepid_shim::command::Cli;

/// As they are installed below `/usr/share`.
pub fn write(folder: &Path) -> io::Result<()> {
    // `help` says nothing that `--help` does not.
    let command = Cli::command().disable_help_subcommand(true);
    let pages = folder.join("man/man1");
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(command.clone(), &pages)?;
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/threepid-shim"),
        (Shell::Zsh, "zsh/vendor-completions/_threepid-shim"),
        (Shell::Fish, "fish/vendor_completions.d/threepid-shim.fish"),
    ] {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().unwrap_or(folder))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), "threepid-shim", &mut script);
        // clap_complete 4.6 takes the dash in our name for a step to a subcommand in some places and not in others.
        let script = String::from_utf8_lossy(&script).replace("threepid__subcmd__shim", "threepid__shim");
        fs::write(file, script)?;
    }
    Ok(())
}

#[cfg_attr(test, expect(dead_code, reason = "the tests call `write`"))]
fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("name the folder to write into"))?;
    write(Path::new(&folder))
}
