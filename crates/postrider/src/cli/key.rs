//! `key`: the first keys, and the way back for whoever has lost them. On the data folder itself, whose owner needs no key.

use super::Failure;
use super::screen::{Screen, Style, count};
use crate::bootstrap::{FIRST_APP, FirstKeys, KeyOf, Keys};
use crate::config::{Config, PRESETS, Sources};
use crate::platform::{OsChance, SteadyClock};
use clap::Subcommand;
use postrider_core::port::{Clock, Store};
use postrider_store::{EmbeddedStore, OpenError, OsFiles};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a new key of an app and one of the administrator. The server has to be stopped.
    #[command(after_help = "\
Examples:
  postrider key reset --data /var/lib/postrider
  postrider key reset --data /var/lib/postrider --revoke     and end all older ones, which somebody else may have")]
    Reset {
        #[command(flatten)]
        place: Place,
        /// The app that gets a key.
        #[arg(long, default_value = FIRST_APP)]
        app: String,
        /// Revoke all other keys of the administrator, and all other keys of the app with every right.
        #[arg(long)]
        revoke: bool,
    },
    /// Remove the file of the first keys: you have noted them.
    Seen {
        #[command(flatten)]
        place: Place,
    },
}

/// Whose data folder.
#[derive(Debug, clap::Args)]
struct Place {
    /// The data folder.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// The configuration file that names it.
    #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
    config: Option<PathBuf>,
}

impl Place {
    fn config(self) -> Result<Config, Failure> {
        let sources = Sources { file: self.config, data: self.data, ..Sources::of_process() };
        // Presets are of no account here, and the variables may hold what a client uses.
        let env = sources.env.into_iter().filter(|(name, _)| !PRESETS.contains(&name.as_str())).collect();
        Config::load(&Sources { env, ..sources }).map_err(|error| Failure::Usage(error.to_string()))
    }
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    match args.what {
        What::Reset { place, app, revoke } => reset(&place.config()?, &app, revoke, screen),
        What::Seen { place } => seen(&place.config()?, screen),
    }
}

fn reset(config: &Config, app: &str, revoke: bool, screen: &Screen) -> Result<(), Failure> {
    let dir = config.data_dir();
    if !dir.is_dir() {
        return Err(Failure::failed(OpenError::NoSuchFolder(dir)));
    }
    let store =
        EmbeddedStore::open(config.store_settings(), Arc::new(OsFiles)).map_err(|error| match error {
            OpenError::Locked(dir) => Failure::failed(OpenError::Running(dir)),
            other => Failure::failed(other),
        })?;
    let missing = || Failure::Usage(format!("there is no app {app:?} in {}", dir.display()));
    let app = store.app_by_id(app).ok_or_else(missing)?;
    let clock = SteadyClock::starting_after(store.last_time(), store.time_mark());
    let first_keys = FirstKeys::in_folder(&dir);
    let keys = Keys { store: &store, chance: &OsChance, now: clock.now(), first_keys: &first_keys };
    let (mut made, mut revoked) = (Vec::new(), 0);
    for of in [KeyOf::app(app), KeyOf::PLATFORM] {
        let key = keys.make(&of, "reset").map_err(Failure::failed)?;
        if revoke {
            revoked += keys.revoke_others(&of, &key).map_err(Failure::failed)?;
        }
        made.push((of.variable, key));
    }
    store.close();
    show(&made, revoked, screen);
    // They were shown just now, to whoever asked for them.
    first_keys.remove().map_err(Failure::failed)?;
    Ok(())
}

fn show(made: &[(&str, String)], revoked: usize, screen: &Screen) {
    if screen.json {
        let [app, admin] = made else { return };
        return screen.value(&json!({ "app_key": app.1, "admin_key": admin.1, "revoked": revoked }));
    }
    made.iter().for_each(|(variable, key)| screen.line(format!("{variable}={key}")));
    let older = match revoked {
        0 => "Older keys are as they were.".to_owned(),
        revoked => format!("Older keys revoked: {}.", count(revoked as u64)),
    };
    screen.note(format!("{} {older}", screen.style(Style::Good, "Note them now.")));
}

fn seen(config: &Config, screen: &Screen) -> Result<(), Failure> {
    let dir = config.data_dir();
    let removed = FirstKeys::in_folder(&dir).remove().map_err(Failure::failed)?;
    if screen.json {
        screen.value(&json!({ "removed": removed }));
    } else if removed {
        screen.line("The file of the first keys is gone.");
    } else {
        screen.line(format!("There was none in {}.", dir.display()));
    }
    Ok(())
}
