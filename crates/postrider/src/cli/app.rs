//! `app`: tenants and their keys.

use super::Failure;
use super::remote::{AdminRemote, Api, segment};
use super::screen::{Screen, Style, clean, count};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  postrider app create shop --name 'The shop'\n  postrider app key add shop --scope send\n  \
        postrider app key add shop --scope register --name 'the web page'"
)]
pub struct Args {
    #[command(flatten)]
    remote: AdminRemote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List all apps.
    List,
    /// Make an app.
    Create {
        /// Lower-case letters, digits, - and _; for good.
        id: String,
        /// For people; the id where it is left out.
        #[arg(long)]
        name: Option<String>,
    },
    /// Give an app another name.
    Rename { id: String, name: String },
    /// Delete an app: its keys at once, its devices and what waits for them step by step.
    Delete {
        id: String,
        /// The id once more: nothing brings the app back.
        #[arg(long, value_name = "ID")]
        confirm: String,
    },
    /// Keys of an app.
    Key {
        #[command(subcommand)]
        what: KeyWhat,
    },
}

#[derive(Debug, Subcommand)]
enum KeyWhat {
    /// Make a key; it is shown this once.
    Add {
        app: String,
        /// What it may do.
        #[arg(long, value_enum, default_value = "app")]
        scope: Scope,
        /// What it is for.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List the keys of an app, without the keys themselves.
    List { app: String },
    /// Take a key out of use, at once.
    Revoke {
        app: String,
        /// Its id, as `list` shows it.
        key_id: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scope {
    /// Everything within the app.
    App,
    /// Send, and read reports.
    Send,
    /// Read.
    Read,
    /// Register new devices and nothing else: may stand in a web page.
    Register,
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    match args.what {
        What::List => list(&api, screen),
        What::Create { id, name } => {
            let app = api.post("/v1/apps", &json!({ "id": id, "name": name }))?;
            done(screen, &app, &format!("The app {id} is there. A key for it: postrider app key add {id}"));
            Ok(())
        }
        What::Rename { id, name } => {
            let app = api.patch(&format!("/v1/apps/{}", segment(&id)), &json!({ "name": name }))?;
            done(screen, &app, &format!("The app {id} is called {name}."));
            Ok(())
        }
        What::Delete { id, confirm } if id == confirm => {
            api.delete(&format!("/v1/apps/{}", segment(&id)))?;
            done(screen, &json!({ "deleted": id }), &format!("The app {id} is deleted."));
            Ok(())
        }
        What::Delete { id, .. } => {
            Err(Failure::Usage(format!("to delete the app with all that it has: --confirm {id}")))
        }
        What::Key { what } => key(&api, what, screen),
    }
}

fn done(screen: &Screen, answer: &Value, sentence: &str) {
    if screen.json { screen.value(answer) } else { screen.line(sentence) }
}

fn list(api: &Api, screen: &Screen) -> Result<(), Failure> {
    let apps = api.list("/v1/apps", &[], "apps")?;
    if screen.json {
        screen.value(&json!({ "apps": apps }));
        return Ok(());
    }
    let number = |value: &Value| count(value.as_u64().unwrap_or(0));
    let row = |app: &Value| {
        let text = |name: &str| app[name].as_str().unwrap_or("").to_owned();
        vec![
            text("id"),
            text("name"),
            number(&app["devices"]),
            number(&app["messages"]),
            number(&app["deliveries"]["open"]),
        ]
    };
    screen.table(
        &["id", "name", "devices", "messages", "open deliveries"],
        &apps.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

fn key(api: &Api, what: KeyWhat, screen: &Screen) -> Result<(), Failure> {
    match what {
        KeyWhat::Add { app, scope, name } => {
            let scope = scope.to_possible_value().map(|v| v.get_name().to_owned());
            let path = format!("/v1/apps/{}/keys", segment(&app));
            let key = api.post(&path, &json!({ "scope": scope, "name": name }))?;
            if screen.json {
                screen.value(&key);
                return Ok(());
            }
            let text = |name: &str| clean(key[name].as_str().unwrap_or("")).into_owned();
            screen.line(format!(
                "{}   {}",
                screen.style(Style::Bold, text("key")),
                screen.style(Style::Dim, text("id"))
            ));
            screen.note("This is the only time that it is shown.");
        }
        KeyWhat::List { app } => {
            let answer = api.get(&format!("/v1/apps/{}/keys", segment(&app)))?;
            if screen.json {
                screen.value(&answer);
                return Ok(());
            }
            let row = |key: &Value| {
                let text = |name: &str| key[name].as_str().unwrap_or("").to_owned();
                vec![text("id"), text("scope"), text("name"), text("created_at"), text("revoked_at")]
            };
            let rows: Vec<_> = answer["keys"].as_array().into_iter().flatten().map(row).collect();
            screen.table(&["id", "scope", "name", "created", "revoked"], &rows);
        }
        KeyWhat::Revoke { app, key_id } => {
            api.delete(&format!("/v1/apps/{}/keys/{}", segment(&app), segment(&key_id)))?;
            done(screen, &json!({ "revoked": key_id }), &format!("{key_id} is out of use."));
        }
    }
    Ok(())
}
