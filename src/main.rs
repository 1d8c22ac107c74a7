//! What the command line does: runs each command, prints, ends with its exit code; signals.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "only the command line prints")]

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use threepid_shim::command::templates::{self, RenderError};
use threepid_shim::command::{Cli, Command, ConfigCommand, SessionCommand, TemplatesCommand, from_synapse, version};
use threepid_shim::config::{self, Config, Endpoint, Faults, Source};
use threepid_shim::doctor::Report;
use threepid_shim::matrix::Sid;
use threepid_shim::serve::Listeners;
use threepid_shim::supervisor::Supervisor;
use threepid_shim::{RunError, Signals, container, healthcheck, reload, run, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// BSD's sysexits.h: the command was used wrongly; something was found in an unconfigured or misconfigured state.
const USAGE: u8 = 64;
const BAD_CONFIGURATION: u8 = 78;
/// A neighbour cannot be used.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            // A closed terminal is no reason for another exit code.
            drop(error.print());
            return code;
        }
    };
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => configured(cli.config.as_deref(), serve_until_told),
        Command::Check => configured(cli.config.as_deref(), check),
        Command::Healthcheck => with_admin(cli.config.as_deref(), |admin| {
            exit_code(healthcheck::look(admin).map_err(|error| eprintln!("{:#}", anyhow::Error::new(error))))
        }),
        Command::Config(ConfigCommand::Dump) => configured(cli.config.as_deref(), |config| dump(&config)),
        Command::Config(ConfigCommand::Schema) => print(|out| writeln!(out, "{:#}", config::schema())),
        Command::Config(ConfigCommand::FromSynapse { files }) => from_synapse(&files),
        Command::Templates(command) => configured(cli.config.as_deref(), |config| show_templates(&config, command)),
        Command::Session(SessionCommand::Show { sid }) => show_session(cli.config.as_deref(), &sid),
        Command::Version => print(version::write),
        Command::Doctor { json, send_test_mail } => doctor(cli.config.as_deref(), json, send_test_mail.as_deref()),
        // Without the configuration: it may have become faulty since the start.
        Command::Drain => exit_code(container::drain().map_err(|error| eprintln!("{error}"))),
    }
}

/// With the configuration, if it is good.
fn configured(file: Option<&Path>, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match load(file) {
        Ok(config) => then(config),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

/// With the admin doors, whatever else of the configuration is faulty: it may have become so since the start.
fn with_admin(file: Option<&Path>, then: impl FnOnce(&[Endpoint]) -> ExitCode) -> ExitCode {
    match Source::admin(file, environment()) {
        Ok(admin) => then(&admin),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn check(config: Config) -> ExitCode {
    if let Err(unusable) = reload::check(&config) {
        eprintln!("{unusable}");
        return ExitCode::from(BAD_CONFIGURATION);
    }
    for warning in config.warnings {
        eprintln!("warning: {warning}");
    }
    println!("configuration is good");
    ExitCode::SUCCESS
}

fn dump(config: &Config) -> ExitCode {
    match config.dump() {
        Ok(text) => print(|out| out.write_all(text.as_bytes())),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn from_synapse(files: &[PathBuf]) -> ExitCode {
    match from_synapse::make(files) {
        Ok(made) => {
            let code = print(|out| out.write_all(made.text.as_bytes()));
            eprintln!("{} left to decide: look for DECIDE", made.open);
            code
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn show_templates(config: &Config, command: TemplatesCommand) -> ExitCode {
    let done = match command {
        TemplatesCommand::List => templates::list(config).map(|text| print(|out| out.write_all(text.as_bytes()))),
        TemplatesCommand::Render { language, out } => {
            let said = &mut |file: &Path| eprintln!("{}", file.display());
            templates::render(config, language.as_deref(), &out, said).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(match error {
                RenderError::NoLanguage { .. } => USAGE,
                RenderError::Faulty(_) => BAD_CONFIGURATION,
                RenderError::BuiltIn(_)
                | RenderError::Wording(_)
                | RenderError::Mail(_)
                | RenderError::Write { .. } => 1,
            })
        }
    }
}

fn show_session(file: Option<&Path>, sid: &str) -> ExitCode {
    let Some(sid) = Sid::parse(sid) else {
        eprintln!("{sid:?} is no sid of the shim: write shim_ and 32 digits");
        return ExitCode::from(USAGE);
    };
    with_admin(file, |admin| match healthcheck::session(admin, &sid) {
        Ok(Some(shown)) => print(|out| out.write_all(shown.as_bytes())),
        Ok(None) => {
            eprintln!("no session has this sid, or it is over and forgotten");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::new(error));
            ExitCode::from(UNAVAILABLE)
        }
    })
}

/// A closed pipe has read what it wanted; anything else leaves half of it unsaid.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> ExitCode {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

fn serve_until_told(config: Config) -> ExitCode {
    let Err(error) = serve(config) else { return ExitCode::SUCCESS };
    if let Some(RunError::Unusable(unusable)) = error.downcast_ref() {
        for fault in &unusable.faults {
            tracing::error!("{fault}");
        }
        return if unusable.is_misconfigured { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE };
    }
    tracing::error!("{error:#}");
    ExitCode::FAILURE
}

fn exit_code(done: Result<(), ()>) -> ExitCode {
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn load(file: Option<&Path>) -> Result<Config, Faults> {
    Config::load(file, environment())
}

fn environment() -> impl Iterator<Item = (String, String)> {
    // A variable that is not UTF-8 is none of ours, or is found faulty by the mark that takes the place of its bytes.
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

fn doctor(file: Option<&Path>, json: bool, send_test_mail: Option<&str>) -> ExitCode {
    let config = match load(file) {
        Ok(config) => config,
        Err(faults) => {
            show(&Report::of_faults(&faults), json);
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let file = file.map_or_else(|| "environment".to_owned(), |file| file.display().to_string());
    let report = runtime.block_on(Report::make(&config, file, send_test_mail));
    // A name server that hangs keeps nobody waiting.
    runtime.shutdown_background();
    show(&report, json);
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::from(UNAVAILABLE) }
}

fn show(report: &Report, json: bool) {
    let mut out = io::stdout().lock();
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A closed terminal is no reason for another exit code.
    drop(if json { report.write_json(&mut out) } else { report.write_text(&mut out, colours) });
}

/// Serves until a signal says to stop.
fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let supervisor = match std::env::var_os("NOTIFY_SOCKET") {
            Some(socket) => Supervisor::at(&socket).context("NOTIFY_SOCKET")?,
            None => Supervisor::default(),
        };
        let signals = Signals { supervisor, ..Signals::default() };
        tokio::spawn(on_signals(signals.clone())?);
        tokio::spawn(on_hangup(signals.clone())?);
        open_doors(config, signals).await
    });
    // A look at a file that hangs, on a disk across the network, keeps nobody waiting.
    runtime.shutdown_background();
    served
}

/// Binds the doors and runs until drained.
async fn open_doors(config: Config, signals: Signals) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config.listen)?;
    run(config, listeners, signals).await?;
    Ok(())
}

/// SIGTERM or SIGINT drains; a second one stops at once.
fn on_signals(signals: Signals) -> anyhow::Result<impl Future<Output = ()>> {
    // Listening begins here and not when the task first runs: a signal between the two would kill the process.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        either(&mut terminate, &mut interrupt).await;
        signals.drain.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("a second signal: stopping at once");
        signals.now.cancel();
    })
}

/// SIGHUP reloads.
fn on_hangup(signals: Signals) -> anyhow::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            signals.reload.notify_one();
        }
    })
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
