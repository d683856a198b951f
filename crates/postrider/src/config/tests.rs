//! What the configuration promises, by example.

use super::*;
use std::path::{Path, PathBuf};

fn errors(result: Result<Config, ConfigError>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(ConfigError(problems)) => problems,
    }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn same(a: &Config, b: &Config) -> bool {
    toml::to_string(a).unwrap() == toml::to_string(b).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
    let text = "[limits]\ninbox_max = 5\n\n# more\ninbox_byte_max = 7\n";
    let found = errors(Config::from_text("a.toml", text));
    assert_eq!(
        found,
        ["a.toml:5: unknown key `inbox_byte_max` in [limits]; did you mean `inbox_bytes_max`?"]
    );
}

#[test]
fn every_mistake_is_told_at_once_in_the_order_of_the_lines() {
    let text = "[listne]\nhttp = 1\n[mqtt]\ninflight_max = \"many\"\nretain = true\n[listen]\nxmpp = \"5222\"\nhttp = \"8080\"\n";
    let found = errors(Config::from_text("a.toml", text)).join("\n");
    for part in [
        "a.toml:1: unknown section [listne]; did you mean [listen]?",
        "a.toml:4: `mqtt.inflight_max`: ",
        "a.toml:5: unknown key `retain` in [mqtt]; it belongs into [access]",
        "a.toml:7: `listen.xmpp`: `5222` is not an address",
        "a.toml:8: `listen.http`: `8080` is not an address",
    ] {
        assert!(found.contains(part), "{part}\n--\n{found}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let found = errors(Config::from_text("a.toml", "[limits]\n\ninbox_max = = 5\n"));
    assert!(found[0].starts_with("a.toml:3: "), "{found:?}");
    let found = errors(Config::from_text("a.toml", "inbox_max = 5\n"));
    assert_eq!(found, ["a.toml:1: `inbox_max` stands outside of any section; it belongs into [limits]"]);
}

const KEY: &str = "a-preset-key-0123456789abcdefghij";

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, "[mqtt]\nkeepalive_max_secs = 1\ninflight_max = 2\nreceive_max = 3\n").unwrap();
    let sources = Sources {
        file: Some(path),
        env: env(&[
            ("POSTRIDER_MQTT_KEEPALIVE_MAX_SECS", "10"),
            ("POSTRIDER_MQTT_INFLIGHT_MAX", "20"),
            ("POSTRIDER_ACCESS_PUBLISH", "a/#, b"),
            ("POSTRIDER_HTTP_LISTEN", "127.0.0.1:0"),
            ("POSTRIDER_LISTEN_OPS", "localhost:1"),
            ("POSTRIDER_LISTEN_MQTT_TLS", "off"),
            ("POSTRIDER_DATA", "/env"),
            ("POSTRIDER_APP_KEY", "of-the-command-line-0123456789abcdef"),
            ("POSTRIDER_PRESET_APP_KEY", KEY),
        ]),
        set: vec!["mqtt.keepalive_max_secs=1_00".into()],
        data: Some("/flag".into()),
    };
    let config = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
    let mqtt = &config.mqtt;
    assert_eq!((mqtt.keepalive_max_secs, mqtt.inflight_max, mqtt.receive_max), (100, 20, 3));
    assert_eq!(config.access.publish, ["a/#", "b"]);
    assert_eq!((config.listen.http.port(), config.listen.ops.port(), config.listen.mqtt_tls), (0, 1, None));
    assert_eq!((config.store.dir.as_str(), config.keys.app.as_deref()), ("/flag", Some(KEY)));
}

#[test]
fn short_or_equal_preset_keys_are_refused() {
    for (app, admin) in [("x", KEY), (KEY, "y"), (KEY, KEY), (&KEY[..31], KEY)] {
        let sources = Sources {
            env: env(&[("POSTRIDER_APP_KEY", app), ("POSTRIDER_ADMIN_KEY", admin)]),
            ..Sources::default()
        };
        let found = errors(Config::load(&sources));
        assert!(found.len() == 1 && found[0].contains("_KEY"), "{found:?}");
        assert!(!found[0].contains(KEY), "keys are not told: {found:?}");
    }
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let sources = Sources {
        env: env(&[("POSTRIDER_LIMITS_INBOX_MAX", "lots"), ("POSTRIDER_ACCESS_RETAIN", "maybe")]),
        set: vec!["limits.inbx_max=1".into(), "nonsense".into(), "limit.inbox_max=1".into()],
        ..Sources::default()
    };
    let found = errors(Config::load(&sources)).join("\n");
    for part in [
        "POSTRIDER_LIMITS_INBOX_MAX: `limits.inbox_max`: ",
        "POSTRIDER_ACCESS_RETAIN: `access.retain`: ",
        "--set limits.inbx_max=1: unknown key `inbx_max` in [limits]; did you mean `inbox_max`?",
        "--set nonsense: write section.key=value",
        "unknown section [limit]; did you mean [limits]?",
    ] {
        assert!(found.contains(part), "{part}\n--\n{found}");
    }
}

#[test]
fn a_variable_that_is_nearly_one_is_warned_of_and_others_are_left_alone() {
    let sources = Sources {
        env: env(&[("POSTRIDER_LIMITS_INBOX_MX", "5"), ("POSTRIDER_SERVICE_HOST", "x")]),
        ..Sources::default()
    };
    let config = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("POSTRIDER_LIMITS_INBOX_MAX"));
}

#[test]
fn contradictions_are_all_told() {
    let text = "[listen]\nhttp = \"127.0.0.1:1883\"\nmqtt_tls = \"127.0.0.1:8883\"\n[limits]\nttl_max_secs = 5\n\
                [access]\nsubscribe = [\"a#\"]\nrefusal_code = 1\n[mqtt]\ninflight_max = 0\n[log]\nlevel = \"loud=\"\n";
    let config = Config::from_text("a.toml", text).unwrap_or_else(|error| panic!("{error}"));
    let found = config.problems().join("\n");
    for part in [
        "listen.mqtt: ",
        "listen.mqtt_tls: ",
        "limits.ttl_default_secs: ",
        "access.subscribe: ",
        "access.refusal_code: ",
        "mqtt.inflight_max: ",
        "log.level: ",
    ] {
        assert!(found.contains(part), "{part}\n--\n{found}");
    }
    assert!(Config::default().problems().is_empty(), "{:?}", Config::default().problems());
}

/// `#key = value` lines made real.
fn uncommented(example: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    example.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_the_defaults() {
    let example = docs::example();
    for text in [example.clone(), uncommented(&example)] {
        let config = Config::from_text("example", &text).unwrap_or_else(|error| panic!("{error}"));
        assert!(same(&config, &Config::default()), "{text}");
    }
}

#[test]
fn the_checked_in_docs_are_those_that_are_written_today() {
    for (path, text) in [("docs/config.md", docs::reference()), ("postrider.example.toml", docs::example())] {
        let path = repository().join(path);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{} is old: run the tests with UPDATE=1", path.display());
    }
}

#[test]
fn the_profiles_are_good() {
    for name in ["conformance", "bench"] {
        let path = repository().join(format!("profiles/{name}.toml"));
        let sources = Sources { file: Some(path), ..Sources::default() };
        let config = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.access.anonymous, "{name}");
        let told = config.mqtt_server();
        if name == "conformance" {
            assert!(
                told.packet_bytes_max < 65_535 && told.receive_maximum == 20 && told.topic_alias_maximum >= 1
            );
            assert_eq!((told.server_keepalive_secs, config.core_access().refusal_code), (Some(60), 0x80));
        }
    }
}

#[test]
fn the_defaults_are_those_of_the_parts_they_configure() {
    let config = Config::default();
    assert_eq!(
        format!("{:?}", config.core_limits()),
        format!("{:?}", postrider_core::limits::Limits::default())
    );
    assert_eq!(
        format!("{:?}", config.core_access()),
        format!("{:?}", postrider_core::access::Access::default())
    );
    let ours = postrider_proto::mqtt::ServerConfig {
        // The core's limit, which is one for all protocols.
        session_expiry_secs_max: config.limits.session_expiry_max_secs,
        ..Default::default()
    };
    assert_eq!(format!("{:?}", config.mqtt_server()), format!("{ours:?}"));
}

#[test]
fn fuzz_config() {
    postrider_fuzz::run("config", |data| {
        let Ok(text) = std::str::from_utf8(data) else { return };
        match Config::from_text("file", text) {
            Ok(config) => _ = config.problems(),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

#[test]
fn the_settings_speak_of_nothing_that_is_not_in_the_repository() {
    let page = docs::reference();
    let bytes = page.as_bytes();
    for (at, _) in page.match_indices(['L', 'A', 'P', 'H']) {
        let alone = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        let numbered = bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
        assert!(!(alone && numbered), "{}", &page[at.saturating_sub(60)..(at + 4).min(page.len())]);
    }
    assert!(!page.contains("study"));
}

/// Every number that can be set: section, key, default.
fn numbers() -> Vec<(String, String, i64)> {
    let table = super::load::defaults();
    let mut all = Vec::new();
    for (section, keys) in &table {
        for (key, value) in keys.as_table().into_iter().flatten() {
            all.extend(value.as_integer().map(|number| (section.clone(), key.clone(), number)));
        }
    }
    all
}

fn with_number(name: &str, number: i64) -> Result<Config, ConfigError> {
    Config::load(&Sources { set: vec![format!("{name}={number}")], ..Sources::default() })
}

#[test]
fn every_number_has_bounds_around_its_default_and_is_refused_in_words_beyond_them() {
    for (section, key, default) in numbers() {
        let bounds = super::bounds::of(&section, &key);
        assert!(bounds.contains(&default), "{section}.{key}: {default}");
        let name = format!("{section}.{key}");
        for number in [bounds.start() - 1, bounds.end() + 1, i64::MAX] {
            let found = errors(with_number(&name, number)).join("\n");
            assert!(found.contains(&name) || found.contains(&key), "{name}={number}: {found}");
        }
    }
}

#[test]
fn an_origin_has_a_scheme_and_no_path() {
    for bad in ["example.org", "https://", "https://a.example/", "https://a.example/x", "a b"] {
        let set = vec![format!("http.origins={bad}")];
        let found = errors(Config::load(&Sources { set, ..Sources::default() })).join("\n");
        assert!(found.contains("http.origins"), "{bad}: {found}");
    }
    for good in ["*", "https://a.example", "http://localhost:3000", "capacitor://localhost"] {
        let set = vec![format!("http.origins={good}")];
        assert!(Config::load(&Sources { set, ..Sources::default() }).is_ok(), "{good}");
    }
}
