//! `config check`, `config example`, `config docs`.

use super::Failure;
use super::screen::{Screen, Style};
use crate::config::{Config, ConfigError, Sources, docs};
use crate::opened;
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tell everything that is wrong with a configuration, or that it is good.
    #[command(after_help = "Example: postrider config check --config postrider.toml")]
    Check {
        /// The file.
        #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
        config: Option<PathBuf>,
        /// A setting over the file's, as for `serve`.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print a file with every setting at its default.
    Example,
    /// Print the reference of all settings (Markdown).
    Docs,
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    match args.what {
        What::Check { config, set } => check(Sources { file: config, set, ..Sources::of_process() }, screen),
        What::Example => {
            screen.text(&docs::example());
            Ok(())
        }
        What::Docs => {
            screen.text(&docs::reference());
            Ok(())
        }
    }
}

fn check(sources: Sources, screen: &Screen) -> Result<(), Failure> {
    let loaded = Config::load(&sources).and_then(|config| {
        let problems = opened::problems(&config);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    });
    match loaded {
        Ok(config) if screen.json => {
            screen.value(
                &json!({ "good": true, "problems": [], "warnings": config.warnings, "settings": config }),
            );
        }
        Ok(config) => {
            config.warnings.iter().for_each(|warning| {
                screen.note(format!("{} {warning}", screen.style(Style::Warn, "warning:")))
            });
            let all = [
                ("http", Some(config.listen.http)),
                ("ops", Some(config.listen.ops)),
                ("mqtt", Some(config.listen.mqtt)),
                ("mqtt_tls", config.listen.mqtt_tls),
                ("xmpp", config.listen.xmpp),
                ("xmpp_tls", config.listen.xmpp_tls),
            ];
            let all = all.iter().filter_map(|(name, at)| at.map(|at| format!("{name} {at}")));
            let listeners = all.collect::<Vec<_>>().join(", ");
            screen.line(format!(
                "{} It would listen at {listeners}.",
                screen.style(Style::Good, "The configuration is good.")
            ));
        }
        Err(error) if screen.json => {
            screen.value(&json!({ "good": false, "problems": error.0 }));
            return Err(Failure::Quiet(2));
        }
        Err(error) => return Err(Failure::Usage(error.to_string())),
    }
    Ok(())
}
