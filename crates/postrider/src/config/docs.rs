//! The example file and `docs/config.md`, written from the table of settings.

use super::bounds;
use super::load::{ENV_ALIASES, defaults, env_name};
use super::sections::{KeyDoc, SECTIONS, SectionDoc};
use std::fmt::Write;
use toml::Value;

/// A file with every setting at its default, commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# Every setting of postrider, with its default. Take the # away from what you want otherwise.\n\
         # Written by `postrider config example`. Look into it with `postrider config check --config FILE`.\n",
    );
    let defaults = defaults();
    for section in SECTIONS {
        text.push('\n');
        section.doc.iter().for_each(|line| push_comment(&mut text, line));
        _ = writeln!(text, "[{}]", section.name);
        for key in section.keys {
            text.push('\n');
            key.doc.iter().for_each(|line| push_comment(&mut text, line));
            let value = defaults.get(section.name).and_then(|keys| keys.get(key.name));
            _ = writeln!(text, "#{} = {}", key.name, value.map(written).unwrap_or_default());
        }
    }
    text
}

fn push_comment(text: &mut String, line: &str) {
    _ = writeln!(text, "# {}", line.trim());
}

/// The value as it stands in a file.
fn written(value: &Value) -> String {
    match value {
        Value::Integer(number) => grouped(*number),
        other => other.to_string(),
    }
}

/// Numbers from 10,000 on in groups of three, as TOML allows.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

/// The reference page.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Written by `postrider config docs`; do not edit.\n\n\
         A server runs well without a configuration. What you want otherwise goes into a TOML file \
         (`postrider serve --config FILE`), into the environment, or onto the command line; the later ones win:\n\n\
         1. the defaults below,\n\
         2. the file,\n\
         3. the environment: `mqtt.keepalive_max_secs` is `POSTRIDER_MQTT_KEEPALIVE_MAX_SECS`; lists are separated by commas,\n\
         4. flags: `--data DIR`, `--set mqtt.keepalive_max_secs=600`.\n\n\
         An unknown key is an error that names the nearest known one. `postrider config check` tells everything that is \
         wrong at once; `postrider config example` prints a file to begin with.\n\n\
         Some variables have a shorter name as well:\n\n| variable | key |\n| --- | --- |\n",
    );
    for (name, section, key) in ENV_ALIASES {
        _ = writeln!(text, "| `{name}` | `{section}.{key}` (also `{}`) |", env_name(section, key));
    }
    text.push_str(
        "\n`POSTRIDER_PRESET_APP_KEY` and `POSTRIDER_PRESET_ADMIN_KEY` preset the key of the first app and the administrator's \
         key: 32 characters at least, drawn at random. Where they are not set, `POSTRIDER_APP_KEY` and \
         `POSTRIDER_ADMIN_KEY` do, which the command line reads as well. A preset key that was revoked stays revoked. Keys \
         are not read from the file: secrets do not belong there.\n",
    );
    SECTIONS.iter().for_each(|section| push_section(&mut text, section));
    text
}

fn push_section(text: &mut String, section: &SectionDoc) {
    _ = write!(text, "\n## `[{}]`\n\n{}\n\n", section.name, joined(section.doc));
    text.push_str("| key | default | from – to | what it does |\n| --- | --- | --- | --- |\n");
    let defaults = defaults();
    for key in section.keys {
        let value = defaults.get(section.name).and_then(|keys| keys.get(key.name));
        _ = writeln!(
            text,
            "| {} | `{}` | {} | {} |",
            code(key),
            value.map(written).unwrap_or_default(),
            value.and_then(Value::as_integer).map(|_| range(section.name, key.name)).unwrap_or_default(),
            joined(key.doc)
        );
    }
}

/// What a number may be.
fn range(section: &str, key: &str) -> String {
    let (least, most) = bounds::of(section, key).into_inner();
    format!("{} – {}", grouped(least), grouped(most))
}

fn code(key: &KeyDoc) -> String {
    format!("`{}`", key.name)
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
