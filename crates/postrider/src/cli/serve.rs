//! `serve`: reads the configuration, starts logging, and hands over to `app::serve`.

use super::Failure;
use super::screen::{Screen, Style};
use crate::app::{self, Listening};
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
    app::serve(config, stop, |listening| {
        show_new_keys(listening, screen);
        screen.line(listening.to_string());
    })
    .map_err(Failure::failed)
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

/// Keys made at this start, on standard error: once, and in no log file format.
fn show_new_keys(listening: &Listening, screen: &Screen) {
    let keys = &listening.new_keys;
    for (what, variable, key) in
        [("app", "POSTRIDER_APP_KEY", &keys.app), ("administrator", "POSTRIDER_ADMIN_KEY", &keys.admin)]
    {
        if let Some(key) = key {
            screen.note(format!(
                "New key of the {what}, shown this once:  {}",
                screen.style(Style::Bold, format!("{variable}={key}"))
            ));
        }
    }
}
