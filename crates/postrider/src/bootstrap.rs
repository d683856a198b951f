//! The first start: an app to begin with, and keys. They lie in a file of the data folder that only its owner can read, until
//! somebody has noted them: a start that fails, a terminal that is closed or a log that is thrown away takes no key with it,
//! and no log keeps one.

use crate::platform::{new_secret, write_private};
use postrider_core::command::{Command, Outcome, Refusal};
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::{KeyScope, StoredKey};
use postrider_core::port::{Chance, Store, StoreError};
use postrider_core::session::secret_hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The app that exists from the beginning.
pub const FIRST_APP: &str = "default";
/// The variables that clients read keys from, as they stand in the file of the first keys.
pub const APP_KEY_VARIABLE: &str = "POSTRIDER_APP_KEY";
pub const ADMIN_KEY_VARIABLE: &str = "POSTRIDER_ADMIN_KEY";
/// Characters of a preset key, at least.
pub const KEY_LEN_MIN: usize = 32;
/// The file of the first keys, in the data folder.
const FIRST_KEYS: &str = "first-keys";

/// Keys from the environment, for containers and tests.
#[derive(Clone, Default)]
pub struct PresetKeys {
    pub app: Option<String>,
    pub admin: Option<String>,
    /// What secrets are sealed with.
    pub secrets: Option<String>,
}

/// Why there are no keys to begin with.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("the store refused: {0}")]
    Store(#[from] StoreError),
    #[error("the keys could not be written to {0}: {1}")]
    File(PathBuf, io::Error),
}

/// The file in which the first keys lie until somebody removes it.
pub struct FirstKeys(PathBuf);

impl FirstKeys {
    pub fn in_folder(dir: &Path) -> FirstKeys {
        FirstKeys(dir.join(FIRST_KEYS))
    }

    /// Where it is, if it is.
    pub fn is_there(&self) -> Option<PathBuf> {
        Some(self.0.clone()).filter(|path| path.is_file())
    }

    /// What is in it: `VARIABLE=key`, a line each.
    pub fn read(&self) -> io::Result<String> {
        std::fs::read_to_string(&self.0)
    }

    /// Somebody has noted them. False if there was no file.
    pub fn remove(&self) -> io::Result<bool> {
        match std::fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a key, in place of an older one of the same variable, on stable storage.
    fn keep(&self, variable: &str, key: &str) -> Result<(), KeysError> {
        self.write(variable, key).map_err(|error| KeysError::File(self.0.clone(), error))
    }

    fn write(&self, variable: &str, key: &str) -> io::Result<()> {
        let old = match self.read() {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let others = old.lines().filter(|line| !line.starts_with(&format!("{variable}=")));
        let mut text: String = others.map(|line| format!("{line}\n")).collect();
        text += &format!("{variable}={key}\n");
        write_private(&self.0, &text)
    }
}

/// Makes sure that there is an app and that there are keys. Idempotent: a second start makes nothing.
pub fn ensure(
    store: &dyn Store,
    chance: &dyn Chance,
    now: UnixMillis,
    preset: &PresetKeys,
    first_keys: &FirstKeys,
) -> Result<AppNo, KeysError> {
    let app = match store.app_by_id(FIRST_APP) {
        Some(app) => app,
        None => {
            let create = Command::CreateApp { id: FIRST_APP.into(), name: "Default".into(), at: now };
            match submit(store, create)? {
                Outcome::AppCreated(app) => app,
                other => return Err(failed("the first app could not be made", &other)),
            }
        }
    };
    let keys = Keys { store, chance, now, first_keys };
    keys.ensure(&KeyOf::app(app), preset.app.as_deref())?;
    keys.ensure(&KeyOf::PLATFORM, preset.admin.as_deref())?;
    Ok(app)
}

/// Which key: an app's, or the administrator's.
pub struct KeyOf {
    pub app: Option<AppNo>,
    pub scope: KeyScope,
    pub variable: &'static str,
    prefix: &'static str,
}

impl KeyOf {
    pub const PLATFORM: KeyOf =
        KeyOf { app: None, scope: KeyScope::Admin, variable: ADMIN_KEY_VARIABLE, prefix: "pra_" };

    pub fn app(app: AppNo) -> KeyOf {
        KeyOf { app: Some(app), scope: KeyScope::App, variable: APP_KEY_VARIABLE, prefix: "prk_" }
    }
}

/// Makes keys.
pub struct Keys<'a> {
    pub store: &'a dyn Store,
    pub chance: &'a dyn Chance,
    pub now: UnixMillis,
    pub first_keys: &'a FirstKeys,
}

impl Keys<'_> {
    fn ensure(&self, of: &KeyOf, preset: Option<&str>) -> Result<(), KeysError> {
        let existing = self.store.keys(of.app);
        let Some(key) = preset else {
            return match existing.iter().any(|k| k.scope == of.scope) {
                true => Ok(()),
                false => self.make(of, "first").map(drop),
            };
        };
        let hash = secret_hash(key.as_bytes());
        match existing.iter().find(|k| k.hash == hash).map(|k| k.revoked_at) {
            Some(None) => return Ok(()),
            // The answer to a key that leaked must not be a server that never starts again.
            Some(Some(_)) => {
                tracing::warn!(variable = of.variable, "the preset key was revoked: it is passed over");
                return Ok(());
            }
            None => {}
        }
        match self.add(of, key, "preset")? {
            true => tracing::info!(variable = of.variable, "the preset key was added"),
            false => {
                tracing::warn!(
                    variable = of.variable,
                    "the preset key is in use elsewhere: it is passed over"
                );
            }
        }
        Ok(())
    }

    /// A new key. First it lies in the file, then it is one: so nothing can take it away before it was seen.
    pub fn make(&self, of: &KeyOf, name: &str) -> Result<String, KeysError> {
        let key = new_secret(of.prefix, self.chance);
        self.first_keys.keep(of.variable, &key)?;
        match self.add(of, &key, name)? {
            true => Ok(key),
            false => Err(StoreError::Failed("a new key is known already".into()).into()),
        }
    }

    /// False where there is such a key already, of another app or of the platform.
    fn add(&self, of: &KeyOf, key: &str, name: &str) -> Result<bool, KeysError> {
        let existing = self.store.keys(of.app);
        let free = |n: &usize| existing.iter().all(|k| k.id != format!("{name}-{n}"));
        let number = (existing.len() + 1..).find(free).unwrap_or_default();
        let stored = StoredKey {
            id: format!("{name}-{number}"),
            name: name.into(),
            scope: of.scope,
            hash: secret_hash(key.as_bytes()),
            created_at: self.now,
            revoked_at: None,
        };
        match submit(self.store, Command::AddKey { app: of.app, key: stored, keys_max: 0 })? {
            Outcome::Done => Ok(true),
            Outcome::Refused(Refusal::Exists) => Ok(false),
            other => Err(failed("a key could not be stored", &other)),
        }
    }

    /// Ends all keys of the kind but one.
    pub fn revoke_others(&self, of: &KeyOf, key: &str) -> Result<usize, KeysError> {
        let hash = secret_hash(key.as_bytes());
        let mut revoked = 0;
        for other in self.store.keys(of.app) {
            if other.scope != of.scope || other.revoked_at.is_some() || other.hash == hash {
                continue;
            }
            submit(self.store, Command::RevokeKey { app: of.app, key_id: other.id, at: self.now })?;
            revoked += 1;
        }
        Ok(revoked)
    }
}

fn failed(what: &str, outcome: &Outcome) -> KeysError {
    StoreError::Failed(format!("{what}: {outcome:?}")).into()
}

/// One command, waited for: only here, where nobody else is there.
fn submit(store: &dyn Store, command: Command) -> Result<Outcome, StoreError> {
    let (tell, told) = mpsc::channel();
    store.submit(vec![command], Box::new(move |outcomes| _ = tell.send(outcomes)));
    let outcomes = told.recv().map_err(|_| StoreError::Closed)??;
    outcomes.into_iter().next().ok_or(StoreError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::OsChance;
    use postrider_store::MemoryStore;
    use std::os::unix::fs::PermissionsExt;

    struct World {
        store: MemoryStore,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            World { store: MemoryStore::new(), dir: tempfile::tempdir().unwrap() }
        }

        fn first_keys(&self) -> FirstKeys {
            FirstKeys::in_folder(self.dir.path())
        }

        fn ensure(&self, app: Option<&str>, admin: Option<&str>) -> Result<AppNo, KeysError> {
            let preset = PresetKeys {
                app: app.map(str::to_owned),
                admin: admin.map(str::to_owned),
                ..PresetKeys::default()
            };
            ensure(&self.store, &OsChance, 1, &preset, &self.first_keys())
        }

        fn is_known(&self, key: &str) -> bool {
            self.store.key(&secret_hash(key.as_bytes())).is_some()
        }

        /// The keys of the file, by variable.
        fn written(&self) -> Vec<(String, String)> {
            let text = self.first_keys().read().unwrap_or_default();
            text.lines()
                .map(|line| line.split_once('=').unwrap())
                .map(|(v, k)| (v.into(), k.into()))
                .collect()
        }
    }

    #[test]
    fn first_keys_lie_in_a_file_of_the_owner_until_it_is_removed() {
        let world = World::new();
        world.ensure(None, None).unwrap();
        let written = world.written();
        let variables: Vec<&str> = written.iter().map(|(variable, _)| variable.as_str()).collect();
        assert_eq!(variables, [APP_KEY_VARIABLE, ADMIN_KEY_VARIABLE]);
        assert!(written.iter().all(|(_, key)| world.is_known(key)));
        let mode = std::fs::metadata(world.first_keys().is_there().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        world.ensure(None, None).unwrap();
        assert_eq!(world.written(), written, "a second start makes no others");
        assert!(world.first_keys().remove().unwrap());
        world.ensure(None, None).unwrap();
        assert_eq!(world.first_keys().is_there(), None);
    }

    #[test]
    fn a_start_that_ends_between_the_file_and_the_key_makes_another() {
        let world = World::new();
        world.store.fail_next(StoreError::Overloaded);
        assert!(world.ensure(None, None).is_err(), "the app");
        world.first_keys().keep(APP_KEY_VARIABLE, "prk_never-stored").unwrap();
        world.ensure(None, None).unwrap();
        assert!(world.written().iter().all(|(_, key)| world.is_known(key)), "{:?}", world.written());
    }

    #[test]
    fn preset_keys_are_in_no_file() {
        let world = World::new();
        world.ensure(Some("preset-app"), Some("preset-admin")).unwrap();
        assert!(world.is_known("preset-app") && world.is_known("preset-admin"));
        assert_eq!(world.first_keys().is_there(), None);
    }

    #[test]
    fn a_revoked_preset_key_is_passed_over_at_every_later_start() {
        let world = World::new();
        let app = world.ensure(Some("leaked"), Some("admin")).unwrap();
        let key_id = world.store.keys(Some(app))[0].id.clone();
        submit(&world.store, Command::RevokeKey { app: Some(app), key_id, at: 2 }).unwrap();
        for _ in 0..2 {
            world.ensure(Some("leaked"), Some("admin")).unwrap();
            assert!(!world.is_known("leaked"));
        }
        world.ensure(Some("another"), Some("admin")).unwrap();
        assert!(world.is_known("another"));
    }

    #[test]
    fn a_preset_key_that_is_in_use_elsewhere_is_passed_over() {
        let world = World::new();
        world.ensure(Some("one-for-both"), Some("one-for-both")).unwrap();
        world.ensure(Some("one-for-both"), Some("one-for-both")).unwrap();
        assert!(world.is_known("one-for-both"));
    }

    #[test]
    fn a_new_key_can_end_all_others_of_its_kind() {
        let world = World::new();
        let app = world.ensure(Some("lost"), Some("admin")).unwrap();
        let first_keys = world.first_keys();
        let keys = Keys { store: &world.store, chance: &OsChance, now: 3, first_keys: &first_keys };
        let made = keys.make(&KeyOf::app(app), "reset").unwrap();
        assert!(world.is_known("lost") && world.is_known(&made));
        assert_eq!(keys.revoke_others(&KeyOf::app(app), &made).unwrap(), 1);
        assert!(!world.is_known("lost") && world.is_known(&made) && world.is_known("admin"));
    }
}
