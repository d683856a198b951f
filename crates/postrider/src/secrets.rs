//! The key that seals secrets which have to be read again, such as those of webhooks. It lies in a
//! file of its own, so that a copy of the data without it opens none of them.

use crate::config::Config;
use crate::platform::write_private;
use postrider_core::port::Chance;
use postrider_outbound::seal::{Keys, key_line};
use postrider_outbound::webhooks::KeyRing;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file, where the settings name none.
const SECRETS_KEY: &str = "secrets.key";

/// Where the key comes from: the environment, or a file that is made when a secret is first sealed.
pub fn key_ring(config: &Config, chance: Arc<dyn Chance>) -> KeyRing {
    let path = match config.secrets.key_file.as_str() {
        "" => config.data_dir().join(SECRETS_KEY),
        named => PathBuf::from(named),
    };
    let preset = config.keys.secrets.clone();
    let known: Mutex<Option<Arc<Keys>>> = Mutex::default();
    Arc::new(move |make| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*known {
            return Ok(keys.clone());
        }
        let text = match &preset {
            Some(preset) => preset.replace(',', "\n"),
            None => read_or_make(&path, make, &*chance)?,
        };
        let from = || preset.as_ref().map_or(path.display().to_string(), |_| "POSTRIDER_SECRETS_KEY".into());
        let keys = Arc::new(Keys::parse(&text).map_err(|why| format!("{}: {why}", from()))?);
        *known = Some(keys.clone());
        Ok(keys)
    })
}

fn read_or_make(path: &Path, make: bool, chance: &dyn Chance) -> Result<String, String> {
    let named = |why: io::Error| format!("{}: {why}", path.display());
    match std::fs::metadata(path) {
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            Err(format!("{}: others may read it; chmod 600 it", path.display()))
        }
        Ok(_) => std::fs::read_to_string(path).map_err(named),
        Err(why) if why.kind() == io::ErrorKind::NotFound && make => {
            let text = make_key(path, chance).map_err(named)?;
            tracing::warn!(
                path = %path.display(),
                "a key for secrets was made: keep a copy of it apart from the copies of the data"
            );
            Ok(text)
        }
        Err(why) => Err(named(why)),
    }
}

/// On stable storage, before anything is sealed with it.
fn make_key(path: &Path, chance: &dyn Chance) -> io::Result<String> {
    let text = format!("{}\n", *key_line(&chance.bytes()));
    write_private(path, &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::OsChance;

    fn ring(dir: &Path, preset: Option<String>) -> KeyRing {
        let mut config = Config::default();
        config.store.dir = dir.display().to_string();
        config.keys.secrets = preset;
        key_ring(&config, Arc::new(OsChance))
    }

    #[test]
    fn a_key_is_made_once_and_opens_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ring(dir.path(), None)(false).is_err(), "opening makes none");
        let sealed = ring(dir.path(), None)(true).unwrap().seal("c", b"x", [1; 24]).unwrap();
        assert!(ring(dir.path(), None)(false).unwrap().open("c", &sealed).is_ok());
        let mode = std::fs::metadata(dir.path().join(SECRETS_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_may_read_and_one_that_is_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(SECRETS_KEY);
        std::fs::write(&file, "00".repeat(32)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(ring(dir.path(), None)(true).is_err_and(|why| why.contains("chmod 600")));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(ring(dir.path(), None)(true).is_ok());
        std::fs::write(&file, "no key").unwrap();
        assert!(ring(dir.path(), None)(true).is_err());
    }

    #[test]
    fn keys_of_the_environment_go_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let old = Keys::parse(&"01".repeat(32)).unwrap().seal("c", b"x", [1; 24]).unwrap();
        let preset = format!("{},{}", "02".repeat(32), "01".repeat(32));
        assert!(ring(dir.path(), Some(preset))(true).unwrap().open("c", &old).is_ok());
        assert!(!dir.path().join(SECRETS_KEY).exists());
    }
}
