//! The least and the most that each number of the settings may be. A number outside of them is refused with a sentence before
//! anything starts, rather than met by an overflow, a division by zero or a server that refuses everybody.
//!
//! Most follow from the unit at the end of the name; `EXCEPTIONS` has the others. `docs/config.md` shows them.

use std::ops::RangeInclusive;

const DAY: i64 = 24 * 3_600;
const YEARS: i64 = 10 * 365 * DAY;
const MIB: i64 = 1024 * 1024;
const TIB: i64 = MIB * MIB;

/// Section, key, least, most.
const EXCEPTIONS: &[(&str, &str, i64, i64)] = &[
    // 0 says "never", "none" or "at once" here.
    ("mqtt", "keepalive_max_secs", 0, 65_535),
    ("mqtt", "keepalive_zero_secs", 0, YEARS),
    ("limits", "session_expiry_max_secs", 0, u32::MAX as i64),
    ("limits", "history_keep_secs", 0, YEARS),
    ("limits", "idempotency_keep_secs", 0, YEARS),
    ("limits", "content_cache_bytes_max", 0, TIB),
    ("store", "min_free_bytes", 0, TIB),
    ("store", "reserve_bytes", 0, TIB),
    ("http", "poll_wait_max_secs", 0, DAY),
    ("http", "stop_secs", 0, 3_600),
    ("devices", "prune_unseen_days", 0, 3_650),
    ("http", "registration_secs", 0, DAY),
    ("xmpp", "resume_secs", 0, YEARS),
    // A place in a segment has 32 bits.
    ("store", "segment_bytes", 4_096, 1 << 30),
    // A size in an inbox has 32 bits.
    ("limits", "inbox_bytes_max", 1, u32::MAX as i64),
    // A packet's length has 28 bits.
    ("mqtt", "packet_bytes_max", 128, 256 * MIB - 1),
    ("mqtt", "packet_bytes_max_before_auth", 128, 256 * MIB - 1),
    // In MQTT, texts have lengths of 16 bits.
    ("mqtt", "client_id_bytes_max", 1, 65_535),
    ("mqtt", "user_bytes_max", 1, 65_535),
    ("mqtt", "password_bytes_max", 1, 65_535),
    ("mqtt", "topic_bytes_max", 1, 65_535),
    ("mqtt", "topic_alias_max", 0, 65_535),
    ("mqtt", "qos_max", 0, 2),
    ("access", "refusal_code", 128, 255),
    ("store", "min_free_percent", 0, 90),
    // Below these not even a plain request fits.
    ("http", "head_bytes_max", 1_024, 16 * MIB),
    ("http", "head_fields_max", 8, 10_000),
    ("http", "uri_bytes_max", 64, 65_534),
    ("http", "streams_max", 1, 10_000),
    ("http", "page_max", 1, 1_000_000),
    ("http", "connections_max", 1, 1_000_000_000),
    ("http", "connections_per_address_max", 1, 1_000_000_000),
    ("http", "pushes_burst", 0, 1_000_000_000),
    ("http", "bytes_per_sec", 0, TIB),
    ("http", "bytes_burst", 1_024, TIB),
    // A webhook without room would be none.
    ("webhooks", "in_flight_max", 1, 10_000),
    ("webhooks", "per_app_max", 0, 10_000),
    ("webhooks", "connect_secs", 1, 60),
    ("webhooks", "answer_secs", 1, 120),
    // They are multiplied with a burst, in microseconds.
    ("http", "auth_failure_secs", 1, DAY),
    ("gateway", "failure_secs", 1, DAY),
    ("xmpp", "registration_secs", 1, DAY),
];

/// What is counted of each kind of thing: at least one, where the settings have always said so.
const POSITIVE: &[(&str, &str)] = &[
    ("limits", "recipients_max"),
    ("limits", "inbox_max"),
    ("mqtt", "receive_max"),
    ("mqtt", "inflight_max"),
    ("mqtt", "awaiting_release_max"),
    ("mqtt", "filters_max"),
    ("xmpp", "inflight_max"),
    ("http", "batch_max"),
    ("store", "group_commands_max"),
    ("store", "queue_commands_max"),
];

/// What a number may be.
pub fn of(section: &str, key: &str) -> RangeInclusive<i64> {
    if let Some((.., least, most)) = EXCEPTIONS.iter().find(|(s, k, ..)| (*s, *k) == (section, key)) {
        return *least..=*most;
    }
    // "0 means: no limit" for what the gateways admit.
    let no_limit = matches!(section, "gateway" | "xmpp");
    let least = i64::from(POSITIVE.contains(&(section, key)));
    match key {
        "workers" => 0..=256,
        key if key.ends_with("_secs") => 1..=YEARS,
        key if key.ends_with("_days") => 1..=3_650,
        key if key.ends_with("_burst") => i64::from(!no_limit)..=100_000_000,
        "out_bytes_max" => 1..=TIB,
        key if key.contains("bytes") => i64::from(!no_limit)..=TIB,
        _ => least..=1_000_000_000,
    }
}
