//! What no single value can tell: settings that contradict each other, or that no server could run with.

use super::bounds;
use super::sections::Config;
use crate::bootstrap::KEY_LEN_MIN;
use postrider_outbound::seal::Keys;

impl Config {
    /// Everything that is wrong, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_listeners(&mut problems);
        self.check_access(&mut problems);
        self.check_numbers(&mut problems);
        self.check_origins(&mut problems);
        self.check_pairs(&mut problems);
        if !self.log.level.split(',').all(is_log_directive) {
            problems.push(format!(
                "log.level: `{}`: write error, warn, info, debug, trace or off, or `part=level`, separated by commas",
                self.log.level
            ));
        }
        self.check_keys(&mut problems);
        if self.store.dir.is_empty() {
            problems.push("store.dir: must not be empty".into());
        }
        problems
    }

    /// A short key can be guessed over the network.
    fn check_keys(&self, problems: &mut Vec<String>) {
        let presets = [("POSTRIDER_APP_KEY", &self.keys.app), ("POSTRIDER_ADMIN_KEY", &self.keys.admin)];
        for (variable, key) in presets {
            if key.as_ref().is_some_and(|key| key.chars().count() < KEY_LEN_MIN) {
                problems.push(format!(
                    "{variable}: a preset key has at least {KEY_LEN_MIN} characters, drawn at random, \
                     such as `openssl rand -hex 32` gives"
                ));
            }
        }
        let sealing = self.keys.secrets.as_ref().map(|keys| Keys::parse(&keys.replace(',', "\n")));
        if let Some(Err(why)) = sealing {
            problems.push(format!("POSTRIDER_SECRETS_KEY: {why}"));
        }
        if self.keys.app.is_some() && self.keys.app == self.keys.admin {
            problems.push("POSTRIDER_APP_KEY and POSTRIDER_ADMIN_KEY: must not be the same key".into());
        }
    }

    fn check_listeners(&self, problems: &mut Vec<String>) {
        let listen = &self.listen;
        let all = [
            ("listen.http", Some(listen.http)),
            ("listen.ops", Some(listen.ops)),
            ("listen.mqtt", Some(listen.mqtt)),
            ("listen.mqtt_tls", listen.mqtt_tls),
            ("listen.xmpp", listen.xmpp),
            ("listen.xmpp_tls", listen.xmpp_tls),
        ];
        for (at, (name, address)) in all.iter().enumerate() {
            let Some(address) = address.filter(|a| a.port() != 0) else { continue };
            if let Some((other, _)) = all[..at].iter().find(|(_, other)| *other == Some(address)) {
                problems.push(format!("{name}: {address} is taken by {other}"));
            }
        }
        let tls = &self.tls;
        if tls.certificate.is_empty() != tls.key.is_empty() {
            problems.push("tls: `certificate` and `key` are set together or not at all".into());
        }
        for (name, _) in all.iter().filter(|(name, address)| name.ends_with("_tls") && address.is_some()) {
            if tls.certificate.is_empty() && !tls.self_signed {
                problems.push(format!("{name}: needs `tls.certificate` and `tls.key`"));
            }
        }
    }

    fn check_access(&self, problems: &mut Vec<String>) {
        let access = &self.access;
        let lists = [
            ("access.publish", &access.publish),
            ("access.subscribe", &access.subscribe),
            ("access.subscribe_deny", &access.subscribe_deny),
        ];
        for (name, patterns) in lists {
            for pattern in patterns.iter().filter(|pattern| !is_filter(pattern)) {
                problems.push(format!(
                    "{name}: `{pattern}` is no topic filter: `#` stands alone at the end, `+` alone between slashes"
                ));
            }
        }
        if access.refusal_code < 0x80 {
            problems.push(
                "access.refusal_code: refusals are 128 and above; below it the filter would be granted"
                    .into(),
            );
        }
    }

    /// The first of each pair must not be above the second.
    fn check_pairs(&self, problems: &mut Vec<String>) {
        let (limits, mqtt, http, store) = (&self.limits, &self.mqtt, &self.http, &self.store);
        let ordered = [
            ("limits.ttl_default_secs", limits.ttl_default_secs, "limits.ttl_max_secs", limits.ttl_max_secs),
            (
                "store.group_commands_max",
                store.group_commands_max as u64,
                "store.queue_commands_max",
                store.queue_commands_max as u64,
            ),
            (
                "store.group_bytes_max",
                store.group_bytes_max as u64,
                "store.queue_bytes_max",
                store.queue_bytes_max as u64,
            ),
            (
                "http.body_bytes_max",
                http.body_bytes_max as u64,
                "http.batch_bytes_max",
                http.batch_bytes_max as u64,
            ),
            (
                "limits.payload_bytes_max",
                limits.payload_bytes_max as u64,
                "http.body_bytes_max",
                http.body_bytes_max as u64,
            ),
            (
                "xmpp.stanza_bytes_max_before_auth",
                self.xmpp.stanza_bytes_max_before_auth as u64,
                "xmpp.stanza_bytes_max",
                self.xmpp.stanza_bytes_max as u64,
            ),
            (
                "mqtt.packet_bytes_max_before_auth",
                mqtt.packet_bytes_max_before_auth as u64,
                "mqtt.packet_bytes_max",
                mqtt.packet_bytes_max as u64,
            ),
        ];
        for (low, value, high, bound) in ordered {
            if value > bound {
                problems.push(format!("{low}: {value} is above {high}, which is {bound}"));
            }
        }
    }

    /// Every number is within its bounds.
    fn check_numbers(&self, problems: &mut Vec<String>) {
        let Ok(table) = toml::Table::try_from(self) else {
            return problems.push("a number is too large".into());
        };
        for (section, keys) in table.iter().filter_map(|(name, keys)| Some((name, keys.as_table()?))) {
            for (key, number) in keys.iter().filter_map(|(key, value)| Some((key, value.as_integer()?))) {
                let bounds = bounds::of(section, key);
                if !bounds.contains(&number) {
                    let (least, most) = bounds.into_inner();
                    problems.push(format!("{section}.{key}: {number} is not from {least} to {most}"));
                }
            }
        }
    }

    /// Origins are compared letter by letter with what browsers send.
    fn check_origins(&self, problems: &mut Vec<String>) {
        for origin in self.http.origins.iter().filter(|origin| *origin != "*") {
            let host = origin.split_once("://").map(|(_, host)| host).unwrap_or_default();
            if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
                problems.push(format!(
                    "http.origins: `{origin}` is no origin: write scheme and host, such as https://app.example"
                ));
            }
        }
    }
}

/// `info`, or `postrider::gateway=debug`. A filter would take `verbose` for the name of a part, and log nothing.
fn is_log_directive(directive: &str) -> bool {
    let level = directive.rsplit('=').next().unwrap_or_default().trim();
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    known.iter().any(|name| name.eq_ignore_ascii_case(level))
        && tracing_subscriber::EnvFilter::try_new(directive).is_ok()
}

/// MQTT 5 §4.7.1.
fn is_filter(filter: &str) -> bool {
    let levels: Vec<_> = filter.split('/').collect();
    let last = levels.len() - 1;
    let fits = |(at, level): (usize, &&str)| match *level {
        "#" => at == last,
        "+" => true,
        level => !level.contains(['+', '#', '\0']),
    };
    !filter.is_empty() && filter.len() <= 65_535 && levels.iter().enumerate().all(fits)
}
