//! What `tests/bench/run` loads proxies with. Each subcommand prints one line of JSON, or the word that it is ready.

mod answers;
mod arguments;
mod closed;
mod handshakes;
mod hold;
mod homeserver;
mod meter;
mod open;
mod respond;
mod start;
mod tls;
mod verify;
mod wire;

use arguments::Arguments;

const USAGE: &str = "load respond    --listen ADDR [--unix PATH]           answer everything with next to no work
load closed     --to ADDR WINDOW [--connections N] [--target PATH] [--up BYTES] [--tls] [--request-token]
load open       --to ADDR WINDOW [--connections N] [--target PATH] [--rate N]
load handshakes --to ADDR WINDOW [--threads N]        a new TLS connection for every request
load hold       --to ADDR --responder ADDR [--connections N] [--pids P,P]
load start      --to ADDR [--core N] -- COMMAND...    time from the command's start to its first answer
load homeserver --listen ADDR --identity ADDR,ADDR    answers requestToken by asking the identity servers in turn
load verify     --to ADDR,ADDR --identity ADDR,ADDR --listen ADDR --mail ADDR WINDOW [--connections N]
                whole verifications through several shims, with homeserver and mail server in this process
WINDOW: [--seconds S] [--warm S] [--pids P,P] [--core N]: what is counted, and whose CPU time";

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let run: fn(Arguments) -> Outcome = match command.as_str() {
        "respond" => respond::run,
        "closed" => closed::run,
        "open" => open::run,
        "handshakes" => handshakes::run,
        "hold" => hold::run,
        "start" => start::run,
        "homeserver" => homeserver::run,
        "verify" => verify::run,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(64);
        }
    };
    if let Err(error) = Arguments::parse(words).map_err(Into::into).and_then(run) {
        eprintln!("load {command}: {error}");
        std::process::exit(1);
    }
}
