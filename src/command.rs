//! The command line's own definition, from which help, man page and completions are made; and what its smaller commands say.

pub mod from_synapse;
pub mod templates;
pub mod version;
mod yaml;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const CODES: &str = "Exit codes: 0 well; 1 failed, or no such session (session show); 64 used wrongly; 69 a neighbour cannot be used (doctor),\n\
                     or no shim answers (session show); 78 the configuration is faulty.\n\
                     Any key of the file can come from the environment: THREEPID_SHIM__EMAIL__HOST is email.host.";

/// Gives MSC2263 (requestToken without `id_server`) to a Matrix homeserver that cannot be upgraded.
#[derive(Debug, Parser)]
#[command(name = "threepid-shim", version, after_help = CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Configuration file; without one, defaults and environment
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (the default)
    ///
    /// SIGTERM drains: no new requests, those that are open finish. SIGHUP, or a changed file, reloads.
    Serve,
    /// Say whether the configuration is good
    ///
    /// Every fault at once, each with its line, its key and what to write instead; of templates and languages, too.
    Check,
    /// Try everything that can be wrong around the shim, and say what to change
    ///
    /// Homeserver, callback, mail server, gateway, store, links, clock. Mails nobody unless told to. Run it as the shim's user.
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Send one mail to this address, and so try the mail server to its end
        #[arg(long, value_name = "TO")]
        send_test_mail: Option<String>,
    },
    /// Show or make a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at mails, messages and pages as they go out
    #[command(subcommand)]
    Templates(TemplatesCommand),
    /// Look at what the running shim knows
    #[command(subcommand)]
    Session(SessionCommand),
    /// Say whether the shim of this configuration is alive, by its admin door: for containers without a shell
    Healthcheck,
    /// Have the shim that is process 1 of this container take no more requests, finish those it has, and end
    Drain,
    /// Say which version this is, and what it can use
    Version,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in effect as TOML
    ///
    /// Every key with its value and where that comes from: a line of the file, the environment, the default. No secret is shown.
    Dump,
    /// Make a first configuration from a Synapse's homeserver.yaml, and say what to change there
    ///
    /// Prints threepid-shim.toml: names, listener, ports and mail server as Synapse has them.
    /// DECIDE stands where only you can know; at its end are the lines for homeserver.yaml.
    /// No password is printed. Changes nothing.
    #[command(verbatim_doc_comment)]
    FromSynapse {
        /// homeserver.yaml, and the files of conf.d if there are any, in Synapse's order
        #[arg(required = true, value_name = "HOMESERVER.yaml")]
        files: Vec<PathBuf>,
    },
    /// Print a JSON schema of the configuration file, for editors and tools
    Schema,
}

#[derive(Debug, Subcommand)]
pub enum TemplatesCommand {
    /// List the languages and templates there are, and which of them a file of wording.directory changes
    List,
    /// Write every mail, message and page with sample values into a folder
    ///
    /// A folder for each language: mails as .eml, their parts as .html and .txt, messages as .txt, pages as .html.
    Render {
        /// This language alone, as `templates list` has it
        #[arg(long, value_name = "TAG")]
        language: Option<String>,
        /// Made where it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Print the state of one session, without its address
    ///
    /// The sid is in the log lines about it, and in what the client got. The running shim is asked at its admin door, whatever the store.
    Show {
        /// shim_ and 32 digits
        sid: String,
    },
}
