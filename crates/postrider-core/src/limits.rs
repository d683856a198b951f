//! Every maximum that the core keeps, in one table. The numbers in brackets are those of the reliability study.

use std::time::Duration;

/// Defaults are those of an internet-facing server; profiles for trusted networks and suites set them otherwise.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a message's payload (L10).
    pub payload_bytes_max: usize,
    /// Devices that one message may name one by one (L26).
    pub recipients_max: usize,
    /// Above this many devices a message is stored once as a broadcast.
    pub direct_max: usize,
    /// Undelivered messages and bytes of a device's inbox (L30).
    pub inbox_max: u32,
    pub inbox_bytes_max: u32,
    /// Live broadcasts of an app.
    pub broadcasts_max: usize,
    /// Open messages of an app, and bytes of their contents: beyond, the app is refused and nobody else.
    pub app_messages_max: u64,
    pub app_bytes_max: u64,
    /// Idempotency keys that an app keeps: beyond, the oldest go.
    pub idempotency_keys_max: u32,
    /// Messages of other devices that wait for one device; they give way to pushes.
    pub peer_inbox_max: u32,
    pub ttl_max: Duration,
    pub ttl_default: Duration,
    /// Bytes of an idempotency key (A33), and how long one is remembered at least (P2).
    pub idempotency_key_bytes_max: usize,
    pub idempotency_keep: Duration,
    /// Keys of transient messages and of publishes on topics that an app's table in memory remembers.
    pub transient_keys_max: usize,
    /// Bytes of a collapse key, tag, alias, attribute name; tags and attributes of a device.
    pub name_bytes_max: usize,
    pub tags_max: usize,
    pub attributes_max: usize,
    /// Bytes of alias, tags, attributes and provider tokens of a device together; and of a device that
    /// registered itself, or says them itself.
    pub profile_bytes_max: usize,
    pub own_profile_bytes_max: usize,
    /// Clauses of an audience expression, nested ones counted.
    pub audience_clauses_max: usize,
    /// Devices of an app (L35).
    pub devices_max: u64,
    /// Those of them that registered themselves: by a key of the scope `register`, by XMPP, on the
    /// demonstration page.
    pub own_devices_max: u64,
    /// Devices that were not seen for so long are deleted; 0: none are.
    pub prune_unseen: Duration,
    /// Subscriptions of a session (L13).
    pub subscriptions_max: usize,
    /// Retained messages of an app, and sent to one new subscription.
    pub retained_max: usize,
    /// Bytes of the retained messages of an app.
    pub retained_bytes_max: u64,
    pub retained_sent_max: usize,
    /// Longest session expiry granted (P9).
    pub session_expiry_max_secs: u32,
    /// Sessions without subscriptions that are kept in memory after their connection.
    pub idle_sessions_max: usize,
    /// Connects of one device in a minute (L33); 0: no limit.
    pub connects_per_minute_max: u32,
    /// Polls of one device that wait at the same time (L29).
    pub polls_per_device_max: usize,
    /// Delayed wills waiting, and their bytes.
    pub wills_max: usize,
    pub wills_bytes_max: usize,
    /// Bytes of what protocols keep for sessions that may be resumed, all together; the oldest goes first.
    pub saved_bytes_max: usize,
    /// Acknowledgements that wait while the store takes nothing; beyond it they are forgotten, and the deliveries sent again.
    pub put_off_acks_max: usize,
    /// Reports: how long and how many are kept after a message ended.
    pub history_keep: Duration,
    pub history_max: u32,
    /// Whether reports keep title and body of notifications.
    pub report_texts: bool,
    /// Bytes of recent contents kept in memory for draining.
    pub content_cache_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        const DAY: u64 = 24 * 60 * 60;
        Limits {
            payload_bytes_max: 64 * 1024,
            recipients_max: 1_000,
            direct_max: 64,
            inbox_max: 1_000,
            inbox_bytes_max: 4 * 1024 * 1024,
            broadcasts_max: 10_000,
            app_messages_max: 20_000_000,
            app_bytes_max: 8 * 1024 * 1024 * 1024,
            idempotency_keys_max: 5_000_000,
            peer_inbox_max: 100,
            ttl_max: Duration::from_secs(30 * DAY),
            ttl_default: Duration::from_secs(28 * DAY),
            idempotency_key_bytes_max: 64,
            idempotency_keep: Duration::from_secs(DAY),
            transient_keys_max: 100_000,
            name_bytes_max: 64,
            tags_max: 1_000,
            attributes_max: 100,
            profile_bytes_max: 64 * 1024,
            own_profile_bytes_max: 8 * 1024,
            audience_clauses_max: 64,
            devices_max: 1_000_000,
            own_devices_max: 500_000,
            prune_unseen: Duration::ZERO,
            subscriptions_max: 32,
            retained_max: 10_000,
            retained_bytes_max: 64 * 1024 * 1024,
            retained_sent_max: 1_000,
            session_expiry_max_secs: 30 * DAY as u32,
            idle_sessions_max: 10_000,
            connects_per_minute_max: 15,
            polls_per_device_max: 2,
            wills_max: 100_000,
            wills_bytes_max: 64 * 1024 * 1024,
            saved_bytes_max: 256 * 1024 * 1024,
            put_off_acks_max: 1_000_000,
            history_keep: Duration::from_secs(30 * DAY),
            history_max: 1_000_000,
            report_texts: true,
            content_cache_bytes_max: 32 * 1024 * 1024,
        }
    }
}
