//! Where settings come from, the later ones over the earlier: defaults, the file, the environment, flags.
//!
//! Each value is tried on its own, so that every mistake is told at once, and each with its place: a line of the file, the
//! name of a variable, a flag.

use super::sections::{Config, SECTIONS};
use serde::Deserialize;
use std::ops::Range;
use std::path::PathBuf;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// Everything a configuration is made from. The environment is handed in: tests have their own.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    pub env: Vec<(String, String)>,
    /// `key=value`, as given to `--set`.
    pub set: Vec<String>,
    /// As given to `--data`.
    pub data: Option<String>,
}

impl Sources {
    /// The process's own environment.
    pub fn of_process() -> Sources {
        // Names and values that are not text cannot be ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Sources { env: std::env::vars_os().filter_map(text).collect(), ..Sources::default() }
    }
}

/// All that is wrong with a configuration, a sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Shorter names that the design promises, beside `POSTRIDER_<SECTION>_<KEY>`.
pub const ENV_ALIASES: [(&str, &str, &str); 8] = [
    ("POSTRIDER_HTTP_LISTEN", "listen", "http"),
    ("POSTRIDER_OPS_LISTEN", "listen", "ops"),
    ("POSTRIDER_MQTT_LISTEN", "listen", "mqtt"),
    ("POSTRIDER_MQTT_TLS_LISTEN", "listen", "mqtt_tls"),
    ("POSTRIDER_XMPP_LISTEN", "listen", "xmpp"),
    ("POSTRIDER_XMPP_TLS_LISTEN", "listen", "xmpp_tls"),
    ("POSTRIDER_DATA", "store", "dir"),
    ("POSTRIDER_LOG", "log", "level"),
];

/// Variables that are read elsewhere.
const ENV_OTHERS: [&str; 4] =
    ["POSTRIDER_SERVER", "POSTRIDER_MQTT", "POSTRIDER_CONFIG", "POSTRIDER_WEBHOOK_SECRET"];

/// Preset keys. The last two are what the commands of the command line read too: whoever has them in a shell for those, and
/// starts a server there, presets its keys without meaning to. The first two are for servers only, and win.
pub const PRESETS: [&str; 4] =
    ["POSTRIDER_PRESET_APP_KEY", "POSTRIDER_PRESET_ADMIN_KEY", "POSTRIDER_APP_KEY", "POSTRIDER_ADMIN_KEY"];

/// So alike that it is a slip of the finger.
const ALIKE: f64 = 0.75;

/// The variable of a key.
pub fn env_name(section: &str, key: &str) -> String {
    format!("POSTRIDER_{section}_{key}").to_uppercase()
}

impl Config {
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut loading = Loading { table: Table::new(), problems: Vec::new(), defaults: defaults() };
        if let Some(path) = &sources.file {
            match std::fs::read_to_string(path) {
                Ok(text) => loading.add_file(&path.display().to_string(), &text),
                Err(error) => loading.problems.push(format!("{}: {error}", path.display())),
            }
        }
        let (keys, warnings) = loading.add_env(&sources.env);
        if let Some(dir) = &sources.data {
            loading.add_text("--data", "store", "dir", dir);
        }
        sources.set.iter().for_each(|text| loading.add_flag(text));
        let mut config = loading.finish()?;
        (config.keys, config.warnings) = (keys, warnings);
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// A file's text alone over the defaults, for tests and for what is built in.
    #[cfg(test)]
    pub fn from_text(name: &str, text: &str) -> Result<Config, ConfigError> {
        let mut loading = Loading { table: Table::new(), problems: Vec::new(), defaults: defaults() };
        loading.add_file(name, text);
        loading.finish()
    }
}

/// The defaults as a table, which also tells the kind of each value.
pub fn defaults() -> Table {
    Table::try_from(Config::default()).expect("the defaults are plain numbers, texts and lists")
}

struct Loading {
    /// What was given so far.
    table: Table,
    problems: Vec<String>,
    defaults: Table,
}

impl Loading {
    fn finish(self) -> Result<Config, ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError(self.problems));
        }
        Config::deserialize(self.table).map_err(|error| ConfigError(vec![error.message().to_owned()]))
    }

    /// Takes one value, or notes that it does not fit.
    fn add(&mut self, place: &str, section: &str, key: &str, value: Value) {
        let alone = Table::from_iter([(key.to_owned(), value.clone())]);
        match Config::deserialize(Table::from_iter([(section.to_owned(), Value::Table(alone))])) {
            Ok(_) => {
                let keys = self.table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                keys.as_table_mut().map(|keys| keys.insert(key.to_owned(), value));
            }
            Err(error) => self.problems.push(format!("{place}: `{section}.{key}`: {}", error.message())),
        }
    }

    /// Takes a value from where everything is text: its kind is that of the default.
    fn add_text(&mut self, place: &str, section: &str, key: &str, text: &str) {
        let value = match self.defaults.get(section).and_then(|keys| keys.get(key)) {
            Some(Value::Integer(_)) => text.replace('_', "").parse().ok().map(Value::Integer),
            Some(Value::Boolean(_)) => text.parse().ok().map(Value::Boolean),
            Some(Value::Array(_)) if text.trim_start().starts_with('[') => list(text),
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(Value::from).collect()))
            }
            _ => Some(Value::from(text)),
        };
        match value {
            Some(value) => self.add(place, section, key, value),
            // Its own error says best what was expected.
            None => self.add(place, section, key, Value::from(text)),
        }
    }

    fn add_file(&mut self, name: &str, text: &str) {
        let (parsed, values) = match (DeTable::parse(text), text.parse::<Table>()) {
            (Ok(parsed), Ok(values)) => (parsed, values),
            (Err(error), _) | (_, Err(error)) => {
                let line = error.span().map_or(1, |span| line_of(text, &span));
                return self.problems.push(format!("{name}:{line}: {}", error.message()));
            }
        };
        for (section, keys) in parsed.get_ref() {
            let at = format!("{name}:{}", line_of(text, &section.span()));
            let section: &str = section.get_ref();
            let DeValue::Table(keys) = keys.get_ref() else {
                self.problems.push(format!("{at}: {}", outside_of_sections(section)));
                continue;
            };
            if !SECTIONS.iter().any(|known| known.name == section) {
                self.problems.push(format!("{at}: {}", unknown_section(section)));
                continue;
            }
            self.add_section(name, text, section, keys, &values);
        }
    }

    fn add_section(&mut self, name: &str, text: &str, section: &str, keys: &DeTable<'_>, values: &Table) {
        let line = |key: &Spanned<toml::de::DeString<'_>>| line_of(text, &key.span());
        // In the order of the file, so that the mistakes are in the order of its lines.
        let mut ordered: Vec<_> = keys.keys().collect();
        ordered.sort_by_key(|key| key.span().start);
        for spanned in ordered {
            let place = format!("{name}:{}", line(spanned));
            let key: &str = spanned.get_ref();
            let value = values.get(section).and_then(|keys| keys.get(key));
            match value.filter(|_| is_known(section, key)) {
                Some(value) => self.add(&place, section, key, value.clone()),
                None => self.problems.push(format!("{place}: {}", unknown_key(section, key))),
            }
        }
    }

    /// The keys that were preset, and what looks like a slip. Unknown variables are no mistake: container platforms
    /// set some of their own (`POSTRIDER_SERVICE_HOST`).
    fn add_env(&mut self, env: &[(String, String)]) -> (crate::bootstrap::PresetKeys, Vec<String>) {
        let known = known_variables();
        let (mut keys, mut warnings) = (crate::bootstrap::PresetKeys::default(), Vec::new());
        let mut ours: Vec<_> =
            env.iter().filter(|(name, value)| name.starts_with("POSTRIDER_") && !value.is_empty()).collect();
        ours.sort();
        for (name, value) in ours {
            match name.as_str() {
                // In order of their names, so that these come last.
                "POSTRIDER_PRESET_APP_KEY" | "POSTRIDER_APP_KEY" => keys.app = Some(value.clone()),
                "POSTRIDER_SECRETS_KEY" => keys.secrets = Some(value.clone()),
                "POSTRIDER_PRESET_ADMIN_KEY" | "POSTRIDER_ADMIN_KEY" => keys.admin = Some(value.clone()),
                _ => match known.iter().find(|(variable, ..)| variable == name) {
                    Some((_, section, key)) => self.add_text(name, section, key, value),
                    None if ENV_OTHERS.contains(&name.as_str()) => {}
                    None => {
                        let near = nearest(name, known.iter().map(|(variable, ..)| variable.as_str()));
                        let near = near.filter(|near| strsim::jaro_winkler(name, near) > 0.93);
                        warnings
                            .extend(near.map(|near| format!("{name} is no setting; did you mean {near}?")));
                    }
                },
            }
        }
        (keys, warnings)
    }

    fn add_flag(&mut self, text: &str) {
        let parts = text.split_once('=').and_then(|(name, value)| {
            let (section, key) = name.trim().split_once('.')?;
            Some((section, key, value.trim()))
        });
        let Some((section, key, value)) = parts else {
            return self.problems.push(format!("--set {text}: write section.key=value"));
        };
        if is_known(section, key) {
            self.add_text(&format!("--set {text}"), section, key, value);
        } else if SECTIONS.iter().any(|known| known.name == section) {
            self.problems.push(format!("--set {text}: {}", unknown_key(section, key)));
        } else {
            self.problems.push(format!("--set {text}: {}", unknown_section(section)));
        }
    }
}

fn list(text: &str) -> Option<Value> {
    format!("list = {text}").parse::<Table>().ok()?.remove("list")
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static str> {
    let found = SECTIONS.iter().find(|known| known.name == section);
    found.into_iter().flat_map(|known| known.keys.iter().map(|key| key.name))
}

fn is_known(section: &str, key: &str) -> bool {
    keys_of(section).any(|known| known == key)
}

/// Every variable with its key; the short names first.
fn known_variables() -> Vec<(String, &'static str, &'static str)> {
    let short = ENV_ALIASES.iter().map(|(name, section, key)| ((*name).to_owned(), *section, *key));
    let long = SECTIONS.iter().flat_map(|section| {
        section.keys.iter().map(|key| (env_name(section.name, key.name), section.name, key.name))
    });
    short.chain(long).collect()
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > ALIKE).then_some(best.1)
}

fn unknown_key(section: &str, key: &str) -> String {
    let elsewhere = SECTIONS.iter().find(|other| other.keys.iter().any(|known| known.name == key));
    match (elsewhere, nearest(key, keys_of(section))) {
        (Some(other), _) => {
            format!("unknown key `{key}` in [{section}]; it belongs into [{}]", other.name)
        }
        (None, Some(near)) => format!("unknown key `{key}` in [{section}]; did you mean `{near}`?"),
        (None, None) => {
            let all: Vec<_> = keys_of(section).collect();
            format!("unknown key `{key}` in [{section}], which has {}", all.join(", "))
        }
    }
}

fn unknown_section(section: &str) -> String {
    match nearest(section, SECTIONS.iter().map(|known| known.name)) {
        Some(near) => format!("unknown section [{section}]; did you mean [{near}]?"),
        None => {
            let all: Vec<_> = SECTIONS.iter().map(|known| known.name).collect();
            format!("unknown section [{section}]; there are {}", all.join(", "))
        }
    }
}

fn outside_of_sections(key: &str) -> String {
    match SECTIONS.iter().find(|section| is_known(section.name, key)) {
        Some(section) => format!("`{key}` stands outside of any section; it belongs into [{}]", section.name),
        None => format!("unknown key `{key}`; every setting stands in a section, such as [limits]"),
    }
}
