//! From settings to what the parts of the server want: units and names change here, values do not.

use super::Config;
use super::values::Sync;
use crate::gateway::GatewayConfig;
use crate::gateway::admission::AdmissionLimits;
use postrider_core::access::Access;
use postrider_core::id::AppNo;
use postrider_core::limits::Limits;
use postrider_proto::{Qos, mqtt, ws};
use postrider_store::{EmbeddedConfig, SyncMode};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DAY_SECS: u64 = 24 * 60 * 60;

impl Config {
    pub fn core_limits(&self) -> Limits {
        let l = &self.limits;
        Limits {
            payload_bytes_max: l.payload_bytes_max,
            recipients_max: l.recipients_max,
            direct_max: l.direct_max,
            inbox_max: l.inbox_max,
            inbox_bytes_max: l.inbox_bytes_max,
            broadcasts_max: l.broadcasts_max,
            ttl_max: Duration::from_secs(l.ttl_max_secs),
            ttl_default: Duration::from_secs(l.ttl_default_secs),
            idempotency_key_bytes_max: l.idempotency_key_bytes_max,
            idempotency_keep: Duration::from_secs(l.idempotency_keep_secs),
            name_bytes_max: l.name_bytes_max,
            tags_max: l.tags_max,
            attributes_max: l.attributes_max,
            audience_clauses_max: l.audience_clauses_max,
            devices_max: l.devices_max,
            subscriptions_max: l.subscriptions_max,
            retained_max: l.retained_max,
            retained_sent_max: l.retained_sent_max,
            session_expiry_max_secs: l.session_expiry_max_secs,
            idle_sessions_max: l.idle_sessions_max,
            connects_per_minute_max: l.connects_per_minute_max,
            wills_max: l.wills_max,
            history_keep: Duration::from_secs(l.history_keep_secs),
            history_max: l.history_max,
            content_cache_bytes_max: l.content_cache_bytes_max,
        }
    }

    pub fn core_access(&self) -> Access {
        let a = self.access.clone();
        Access {
            publish: a.publish,
            subscribe: a.subscribe,
            subscribe_deny: a.subscribe_deny,
            refusal_code: a.refusal_code,
            retain: a.retain,
            anonymous: a.anonymous,
        }
    }

    pub fn mqtt_server(&self) -> mqtt::ServerConfig {
        let m = &self.mqtt;
        mqtt::ServerConfig {
            packet_bytes_max_before_auth: m.packet_bytes_max_before_auth,
            packet_bytes_max: m.packet_bytes_max,
            connect_timeout_ms: m.connect_timeout_secs * 1_000,
            client_id_is_strict: m.client_id_strict,
            limits: mqtt::Limits {
                client_id_bytes_max: m.client_id_bytes_max,
                user_bytes_max: m.user_bytes_max,
                password_bytes_max: m.password_bytes_max,
                topic_bytes_max: m.topic_bytes_max,
                topic_levels_max: m.topic_levels_max,
                user_properties_max: m.user_properties_max,
                user_property_bytes_max: m.user_property_bytes_max,
                filters_max: m.filters_max,
            },
            topic_alias_maximum: m.topic_alias_max,
            receive_maximum: m.receive_max,
            awaiting_release_max: m.awaiting_release_max,
            inflight_max: m.inflight_max,
            server_keepalive_secs: (m.keepalive_max_secs > 0).then_some(m.keepalive_max_secs),
            keepalive_zero_secs: m.keepalive_zero_secs,
            retain_available: m.retain_available,
            wildcard_available: m.wildcard_available,
            shared_available: m.shared_available,
            maximum_qos: Qos::from_u8(m.qos_max).unwrap_or_default(),
            session_expiry_secs_max: self.limits.session_expiry_max_secs,
            bad_acks_per_minute_max: m.bad_acks_per_minute_max,
        }
    }

    /// MQTT packets come in WebSocket messages: those may be as large as these.
    pub fn websocket(&self) -> ws::WsConfig {
        let bytes = self.mqtt.packet_bytes_max.max(ws::WsConfig::default().message_bytes_max);
        ws::WsConfig { frame_bytes_max: bytes, message_bytes_max: bytes, ..ws::WsConfig::default() }
    }

    /// The number of threads that serve connections.
    pub fn workers(&self) -> usize {
        match self.gateway.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }

    /// `app`: the number of the app that `mqtt.app` names.
    pub fn gateway(&self, app: AppNo) -> GatewayConfig {
        let g = &self.gateway;
        GatewayConfig {
            workers: self.workers(),
            admission: AdmissionLimits {
                connections_max: g.connections_max,
                unauthenticated_max: g.unauthenticated_max,
                unauthenticated_per_address_max: g.unauthenticated_per_address_max,
                per_address_max: g.per_address_max,
            },
            mqtt: Arc::new(self.mqtt_server()),
            websocket: Arc::new(self.websocket()),
            app,
            out_bytes_max: g.out_bytes_max,
            waiting_max: g.waiting_max,
            slow_reader_ms: g.slow_reader_secs * 1_000,
            publishes_per_sec: g.publishes_per_sec,
            publishes_burst: g.publishes_burst,
        }
    }

    /// The embedded store. `on_fatal` is the caller's to set.
    pub fn embedded_store(&self) -> EmbeddedConfig {
        let s = &self.store;
        EmbeddedConfig {
            sync: match s.sync {
                Sync::Synced => SyncMode::Synced,
                Sync::Relaxed => SyncMode::Relaxed,
            },
            group_commands_max: s.group_commands_max,
            group_bytes_max: s.group_bytes_max,
            queue_commands_max: s.queue_commands_max,
            queue_bytes_max: s.queue_bytes_max,
            segment_bytes: s.segment_bytes,
            checkpoint_bytes: s.checkpoint_bytes,
            checkpoint_every: Duration::from_secs(s.checkpoint_secs),
            events_bytes_max: s.events_bytes_max,
            events_age_max: Duration::from_secs(s.events_days * DAY_SECS),
            min_free_bytes: s.min_free_bytes,
            min_free_percent: s.min_free_percent,
            reserve_bytes: s.reserve_bytes,
            allow_open_to_others: s.allow_open_to_others,
            ..EmbeddedConfig::new(self.data_dir())
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.store.dir)
    }

    /// Certificate and key of the TLS listeners, where they are set.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        let (certificate, key) = (Path::new(&self.tls.certificate), Path::new(&self.tls.key));
        (!self.tls.certificate.is_empty()).then_some((certificate, key))
    }
}
