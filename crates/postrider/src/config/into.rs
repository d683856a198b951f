//! From settings to what the parts of the server want: units and names change here, values do not.

use super::values::Sync;
use super::{Config, Tls};
use crate::api::ApiLimits;
use crate::bootstrap::PresetKeys;
use crate::gateway::admission::AdmissionLimits;
use crate::gateway::{GatewayConfig, XmppSettings};
use crate::http::HttpConfig;
use crate::proof::Proofs;
use crate::tls::ServerTls;
use crate::tokens::Issuer;
use jsonwebtoken::{Algorithm, DecodingKey};
use postrider_core::access::Access;
use postrider_core::id::AppNo;
use postrider_core::limits::Limits;
use postrider_outbound::attempts::Policy;
use postrider_outbound::client::{Client, Times, system_lookup};
use postrider_outbound::guard::Rules;
use postrider_outbound::webhooks;
use postrider_proto::json::JsonConfig;
use postrider_proto::{Qos, mqtt, ws, xmpp};
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
            app_messages_max: l.app_messages_max,
            app_bytes_max: l.app_bytes_max,
            idempotency_keys_max: l.idempotency_keys_max,
            peer_inbox_max: l.peer_inbox_max,
            ttl_max: Duration::from_secs(l.ttl_max_secs),
            ttl_default: Duration::from_secs(l.ttl_default_secs),
            idempotency_key_bytes_max: l.idempotency_key_bytes_max,
            idempotency_keep: Duration::from_secs(l.idempotency_keep_secs),
            transient_keys_max: l.transient_keys_max,
            name_bytes_max: l.name_bytes_max,
            tags_max: l.tags_max,
            attributes_max: l.attributes_max,
            profile_bytes_max: l.profile_bytes_max,
            own_profile_bytes_max: l.own_profile_bytes_max,
            audience_clauses_max: l.audience_clauses_max,
            devices_max: l.devices_max,
            own_devices_max: l.own_devices_max,
            prune_unseen: Duration::from_secs(u64::from(self.devices.prune_unseen_days) * DAY_SECS),
            subscriptions_max: l.subscriptions_max,
            retained_max: l.retained_max,
            retained_bytes_max: l.retained_bytes_max,
            retained_sent_max: l.retained_sent_max,
            session_expiry_max_secs: l.session_expiry_max_secs,
            idle_sessions_max: l.idle_sessions_max,
            connects_per_minute_max: l.connects_per_minute_max,
            polls_per_device_max: 2,
            wills_max: l.wills_max,
            wills_bytes_max: l.wills_bytes_max,
            saved_bytes_max: l.saved_bytes_max,
            put_off_acks_max: l.put_off_acks_max,
            history_keep: Duration::from_secs(l.history_keep_secs),
            history_max: l.history_max,
            report_texts: l.report_texts,
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
            own_alias_and_tags: a.own_alias_and_tags,
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

    /// `offers_tls`: there is a certificate to switch to TLS with.
    pub fn xmpp_server(&self, offers_tls: bool) -> xmpp::ServerConfig {
        let x = &self.xmpp;
        let defaults = xmpp::ServerConfig::default();
        let stanza = |bytes_max, like: xmpp::StanzaLimits| xmpp::StanzaLimits { bytes_max, ..like };
        xmpp::ServerConfig {
            host: x.host.clone(),
            before_auth: stanza(x.stanza_bytes_max_before_auth, defaults.before_auth),
            after_auth: stanza(x.stanza_bytes_max, defaults.after_auth),
            offers_tls,
            allows_plaintext: x.allow_plaintext,
            offers_registration: x.registration,
            offers_legacy_auth: x.legacy_sign_in,
            androidpn_api_key: self.androidpn.api_key.clone(),
            inflight_max: x.inflight_max,
            resume_ms: x.resume_secs * 1_000,
            probe_after_ms: x.probe_after_secs * 1_000,
            answer_timeout_ms: x.answer_timeout_secs * 1_000,
            ..defaults
        }
    }

    fn speaks_xmpp(&self) -> bool {
        self.listen.xmpp.or(self.listen.xmpp_tls).is_some()
    }

    /// What is kept of the secrets of new devices, beside their hash.
    pub fn proofs(&self) -> Proofs {
        Proofs { are_kept: self.xmpp.scram && self.speaks_xmpp() }
    }

    /// MQTT packets come in WebSocket messages: those may be as large as these.
    pub fn websocket(&self) -> ws::WsConfig {
        let bytes = self.mqtt.packet_bytes_max.max(ws::WsConfig::default().message_bytes_max);
        ws::WsConfig { frame_bytes_max: bytes, message_bytes_max: bytes, ..ws::WsConfig::default() }
    }

    /// The limits of MQTT where they mean the same.
    pub fn json(&self) -> JsonConfig {
        let m = &self.mqtt;
        JsonConfig {
            window: usize::from(m.inflight_max),
            hello_ms: m.connect_timeout_secs * 1_000,
            topic_bytes_max: m.topic_bytes_max,
            topic_levels_max: m.topic_levels_max,
            filters_max: m.filters_max,
            ..JsonConfig::default()
        }
    }

    /// Whose JWTs are believed. `app` tells the number of an app.
    pub fn issuer(&self, app: impl Fn(&str) -> Option<AppNo>) -> Result<Option<Issuer>, String> {
        let j = &self.jwt;
        if j.key_file.is_empty() {
            return Ok(None);
        }
        let bytes =
            std::fs::read(&j.key_file).map_err(|why| format!("jwt.key_file {}: {why}", j.key_file))?;
        let (algorithm, key) = match j.algorithm.as_str() {
            "HS256" if bytes.trim_ascii().len() < 32 => {
                return Err("jwt.key_file: a secret of 32 bytes at least".into());
            }
            "HS256" => (Algorithm::HS256, Ok(DecodingKey::from_secret(bytes.trim_ascii()))),
            "RS256" => (Algorithm::RS256, DecodingKey::from_rsa_pem(&bytes)),
            "ES256" => (Algorithm::ES256, DecodingKey::from_ec_pem(&bytes)),
            "EdDSA" => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&bytes)),
            other => return Err(format!("jwt.algorithm: {other:?} is none of HS256, RS256, ES256, EdDSA")),
        };
        let key = key.map_err(|why| format!("jwt.key_file {}: {why}", j.key_file))?;
        let app = app(&j.app).ok_or_else(|| format!("jwt.app: there is no app {:?}", j.app))?;
        let audience = Some(j.audience.clone()).filter(|a| !a.is_empty());
        Ok(Some(Issuer { app, algorithm, key, audience }))
    }

    /// `app`: the number of the app that `mqtt.app` names. `tls`: the certificate, where there is one.
    pub fn gateway_settings(&self, app: AppNo, tls: Option<ServerTls>) -> GatewayConfig {
        let g = &self.gateway;
        GatewayConfig {
            admission: AdmissionLimits {
                connections_max: g.connections_max,
                unauthenticated_max: g.unauthenticated_max,
                unauthenticated_per_address_max: g.unauthenticated_per_address_max,
                per_address_max: g.per_address_max,
                failures_burst: g.failures_burst,
                failure_secs: g.failure_secs,
                registrations_burst: self.xmpp.registrations_burst,
                registration_secs: self.xmpp.registration_secs,
            },
            mqtt_proxies: self.proxy_protocol.mqtt.clone(),
            xmpp_proxies: self.proxy_protocol.xmpp.clone(),
            mqtt: Arc::new(self.mqtt_server()),
            websocket: Arc::new(self.websocket()),
            json: Arc::new(self.json()),
            xmpp: XmppSettings {
                server: Arc::new(self.xmpp_server(tls.is_some())),
                binds_channels: self.xmpp.channel_binding,
                device_messages: self.xmpp.device_messages,
                proofs: self.proofs(),
            },
            tls,
            app,
            bad_acks_per_minute_max: g.bad_acks_per_minute_max,
            out_bytes_max: g.out_bytes_max,
            waiting_max: g.waiting_max,
            waiting_bytes_max: g.waiting_bytes_max,
            mailbox_bytes_max: g.mailbox_bytes_max,
            account_jobs_max: self.xmpp.account_jobs_max,
            slow_reader_ms: g.slow_reader_secs * 1_000,
            publishes_per_sec: g.publishes_per_sec,
            publishes_burst: g.publishes_burst,
        }
    }

    /// Threads that serve connections of devices.
    pub fn gateway_workers(&self) -> usize {
        threads(self.gateway.workers)
    }

    /// The embedded store. `on_fatal` is the caller's to set.
    pub fn store_settings(&self) -> EmbeddedConfig {
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

    pub fn api_limits(&self) -> ApiLimits {
        let h = &self.http;
        ApiLimits {
            threads: self.http_workers(),
            body_bytes_max: h.body_bytes_max,
            batch_bytes_max: h.batch_bytes_max,
            batch_max: h.batch_max,
            body_time_max: Duration::from_secs(h.body_timeout_secs),
            body_bytes_per_sec_min: h.body_bytes_per_sec_min,
            registrations_burst: h.registrations_burst,
            registration_secs: h.registration_secs,
            key_registrations_burst: h.key_registrations_burst,
            key_registrations_per_sec: h.key_registrations_per_sec,
            changes_burst: h.changes_burst,
            auth_failures_burst: h.auth_failures_burst,
            auth_failure_secs: h.auth_failure_secs,
            pushes_per_sec: h.pushes_per_sec,
            pushes_burst: h.pushes_burst,
            bytes_per_sec: h.bytes_per_sec,
            bytes_burst: h.bytes_burst,
            page_max: h.page_max,
            bad_acks_per_minute_max: self.gateway.bad_acks_per_minute_max,
            polls_max: h.polls_max,
            webhooks_max: self.webhooks.per_app_max,
            poll_max: Duration::from_secs(h.poll_wait_max_secs),
            origins: h.origins.clone(),
            demo: h.demo,
            echo: h.echo,
            compression: h.compression,
            xmpp: self.speaks_xmpp(),
            androidpn: self.androidpn.api,
            androidpn_keyless: self.androidpn.keyless_loopback,
            ..ApiLimits::default()
        }
    }

    pub fn http_settings(&self) -> HttpConfig {
        let h = &self.http;
        HttpConfig {
            head_time_max: Duration::from_secs(h.head_timeout_secs),
            idle_max: Duration::from_secs(h.idle_secs),
            write_stall_max: Duration::from_secs(h.slow_reader_secs),
            head_bytes_max: h.head_bytes_max,
            head_fields_max: h.head_fields_max,
            uri_bytes_max: h.uri_bytes_max,
            streams_max: h.streams_max,
            trusted_proxies: h.trusted_proxies.clone(),
            connections_max: h.connections_max,
            connections_per_address_max: h.connections_per_address_max,
            proxies: self.proxy_protocol.http.clone(),
            drain_max: Duration::from_secs(h.stop_secs),
            ..HttpConfig::default()
        }
    }

    /// Threads that serve HTTP requests.
    pub fn http_workers(&self) -> usize {
        threads(self.http.workers)
    }

    /// How webhooks are sent, and whom they may reach.
    pub fn webhook_client(&self) -> Result<Client, String> {
        let w = &self.webhooks;
        let allowed = w.allow_networks.clone();
        let rules = Rules {
            allow_http: w.allow_http,
            ports: w.ports.clone(),
            is_allowed: Arc::new(move |address| allowed.contain(address)),
        };
        let ca_file = Some(Path::new(&w.ca_file)).filter(|file| !file.as_os_str().is_empty());
        let times = Times {
            connect: Duration::from_secs(w.connect_secs),
            answer: Duration::from_secs(w.answer_secs),
        };
        Ok(Client::new(Arc::new(rules), crate::dial::outbound_tls(ca_file)?, times, system_lookup()))
    }

    pub fn webhook_settings(&self) -> webhooks::Settings {
        let w = &self.webhooks;
        webhooks::Settings {
            policy: Policy { wait_max_ms: w.retry_max_secs * 1_000, give_up_ms: w.give_up_secs * 1_000 },
            in_flight_max: w.in_flight_max,
        }
    }

    /// Keys given by the environment.
    pub fn preset_keys(&self) -> PresetKeys {
        self.keys.clone()
    }
}

impl Tls {
    /// Certificate and key.
    pub fn files(&self) -> Result<(&Path, &Path), String> {
        if self.certificate.is_empty() || self.key.is_empty() {
            return Err("`tls.certificate` and `tls.key` are not set".into());
        }
        Ok((Path::new(&self.certificate), Path::new(&self.key)))
    }
}

/// 0 means one for each core.
fn threads(set: usize) -> usize {
    match set {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        set => set,
    }
}
