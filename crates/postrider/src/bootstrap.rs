//! The first start: an app to begin with, and keys, shown once.

use crate::platform::new_secret;
use postrider_core::command::{Command, Outcome};
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::{KeyScope, StoredKey};
use postrider_core::port::{Chance, Store, StoreError};
use postrider_core::session::secret_hash;
use std::sync::mpsc;

/// The app that exists from the beginning.
pub const FIRST_APP: &str = "default";

/// Keys from the environment, for containers and tests.
#[derive(Clone, Default)]
pub struct PresetKeys {
    pub app: Option<String>,
    pub admin: Option<String>,
}

/// What was made now, and can be shown only now.
#[derive(Clone, Default)]
pub struct NewKeys {
    pub app: Option<String>,
    pub admin: Option<String>,
}

/// Makes sure that there is an app and that there are keys. Idempotent: a second start makes nothing.
pub fn ensure(
    store: &dyn Store,
    chance: &dyn Chance,
    now: UnixMillis,
    preset: &PresetKeys,
) -> Result<(AppNo, NewKeys), StoreError> {
    let app = match store.app_by_id(FIRST_APP) {
        Some(app) => app,
        None => {
            match submit(store, Command::CreateApp { id: FIRST_APP.into(), name: "Default".into(), at: now })?
            {
                Outcome::AppCreated(app) => app,
                other => {
                    return Err(StoreError::Failed(format!("the first app could not be made: {other:?}")));
                }
            }
        }
    };
    let made = NewKeys {
        app: ensure_key(store, chance, now, (Some(app), KeyScope::App, "prk_"), preset.app.as_deref())?,
        admin: ensure_key(store, chance, now, (None, KeyScope::Admin, "pra_"), preset.admin.as_deref())?,
    };
    Ok((app, made))
}

/// The key that was made, where one had to be made and was not preset.
fn ensure_key(
    store: &dyn Store,
    chance: &dyn Chance,
    now: UnixMillis,
    (app, scope, prefix): (Option<AppNo>, KeyScope, &str),
    preset: Option<&str>,
) -> Result<Option<String>, StoreError> {
    let existing = store.keys(app);
    let key = match preset {
        Some(preset) if store.key(&secret_hash(preset.as_bytes())).is_some() => return Ok(None),
        Some(preset) => preset.to_owned(),
        None if existing.iter().any(|k| k.scope == scope) => return Ok(None),
        None => new_secret(prefix, chance),
    };
    let name = if preset.is_some() { "preset" } else { "first" };
    let id = format!("{name}-{}", existing.len() + 1);
    let hash = secret_hash(key.as_bytes());
    let stored = StoredKey { id, name: name.into(), scope, hash, created_at: now, revoked_at: None };
    match submit(store, Command::AddKey { app, key: stored })? {
        Outcome::Done => Ok(preset.is_none().then_some(key)),
        other => Err(StoreError::Failed(format!("a key could not be stored: {other:?}"))),
    }
}

/// One command, waited for: only here, before anybody else is there.
fn submit(store: &dyn Store, command: Command) -> Result<Outcome, StoreError> {
    let (tell, told) = mpsc::channel();
    store.submit(vec![command], Box::new(move |outcomes| _ = tell.send(outcomes)));
    let outcomes = told.recv().map_err(|_| StoreError::Closed)??;
    outcomes.into_iter().next().ok_or(StoreError::Missing)
}
