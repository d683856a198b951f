//! `serve`: reads the configuration, starts logging, and hands over to `app::serve`.

use super::Failure;
use super::screen::{Screen, Style};
use crate::app::{self, Listening, ServeError};
use crate::config::{Config, LogFormat, Sources};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything has a default: `postrider serve --data ./data` is a whole platform, open to this machine only.
Examples:
  postrider serve --data /var/lib/postrider --config /etc/postrider.toml
  postrider serve --set listen.http=0.0.0.0:8080 --set listen.mqtt=0.0.0.0:1883

Once ready, one line goes to standard output: listening http=… ops=… mqtt=… xmpp=…
The first start makes keys; they lie in DIR/first-keys until you remove it. Lost them? `postrider key reset`.
Settings: `postrider config example`, docs/config.md. Every one is also a variable, such as POSTRIDER_LOG_LEVEL.")]
pub struct Args {
    /// The data folder.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
    config: Option<PathBuf>,
    /// A setting, over file and environment; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let sources = Sources { file: args.config, set: args.set, data: args.data, ..Sources::of_process() };
    let config = Config::load(&sources).map_err(|error| Failure::Usage(error.to_string()))?;
    start_logging(&config)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let stop = Arc::new(tokio::sync::Notify::new());
    let are_shown = config.log.format == LogFormat::Text && std::env::var_os("JOURNAL_STREAM").is_none();
    app::serve(config, stop, |listening| {
        show_first_keys(listening, are_shown, screen);
        screen.line(listening.to_string());
    })
    .map_err(|error| match error {
        ServeError::Ended { exit_code, why } => Failure::Ended { exit_code, why },
        other => Failure::failed(other),
    })
}

/// Log lines go to standard error; standard output has the one line for programs.
pub fn start_logging(config: &Config) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(&config.log.level).map_err(|e| Failure::Usage(format!("log.level: {e}")))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(Failure::failed)
}

/// The first keys, as long as nobody has noted them. What reads logs of a server is not its administrator: lines in JSON, and
/// a journal, are told of the file only.
fn show_first_keys(listening: &Listening, are_shown: bool, screen: &Screen) {
    let Some(path) = &listening.first_keys else { return };
    let file = path.display();
    if !are_shown {
        tracing::info!(%file, "the first keys lie in a file; remove it when they are noted: postrider key seen");
        return;
    }
    let keys = std::fs::read_to_string(path).unwrap_or_default();
    screen.note("The first keys, of the app and of the administrator:");
    keys.lines().for_each(|key| screen.note(format!("  {}", screen.style(Style::Bold, key))));
    screen.note(format!("They lie in {file}, and are shown until you remove it: postrider key seen"));
}
