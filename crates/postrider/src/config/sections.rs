//! Every setting, once: its type, its default, and the sentence that explains it. The structs, the example file and
//! `docs/config.md` all come from here, so a setting without an explanation does not compile.

use super::values::{LogFormat, Sync, address, address_or_off, ports};
use crate::api::ApiLimits;
use crate::bootstrap::PresetKeys;
use crate::gateway::admission::AdmissionLimits;
use crate::http::HttpConfig;
use crate::networks::Networks;
use postrider_core::access::Access as CoreAccess;
use postrider_core::limits::Limits as CoreLimits;
use postrider_proto::xmpp::ServerConfig as XmppConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One key, for the docs. A line of its comment each.
pub struct KeyDoc {
    pub name: &'static str,
    pub doc: &'static [&'static str],
}

/// One section, for the docs.
pub struct SectionDoc {
    pub name: &'static str,
    pub doc: &'static [&'static str],
    pub keys: &'static [KeyDoc],
}

/// Writes each section down as a struct with its defaults, and all of them as a table for the docs.
macro_rules! settings {
    ($(
        $(#[doc = $story:literal])+
        [$section:ident] $Type:ident {
            $( $(#[doc = $doc:literal])+ $(#[serde($how:meta)])? $key:ident: $type:ty = $default:expr, )+
        }
    )+) => {
        $(
            $(#[doc = $story])+
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $Type {
                $( $(#[doc = $doc])+ $(#[serde($how)])? pub $key: $type, )+
            }

            impl Default for $Type {
                fn default() -> $Type {
                    $Type { $( $key: $default, )+ }
                }
            }
        )+

        /// All settings of a server.
        #[derive(Clone, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $( pub $section: $Type, )+
            /// From the environment only: secrets do not belong into the file.
            #[serde(skip)]
            pub keys: PresetKeys,
            /// What looked odd while loading, for the log.
            #[serde(skip)]
            pub warnings: Vec<String>,
        }

        /// The same, to be read by people.
        pub const SECTIONS: &[SectionDoc] = &[$(
            SectionDoc {
                name: stringify!($section),
                doc: &[$($story),+],
                keys: &[$( KeyDoc { name: stringify!($key), doc: &[$($doc),+] }, )+],
            },
        )+];
    };
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn core() -> CoreLimits {
    CoreLimits::default()
}

fn admission() -> AdmissionLimits {
    AdmissionLimits::default()
}

fn api() -> ApiLimits {
    ApiLimits::default()
}

fn xmpp() -> XmppConfig {
    XmppConfig::default()
}

fn http() -> HttpConfig {
    HttpConfig::default()
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

settings! {
    /// Where the server listens. An address is IP:PORT; port 0 takes a free one. Everything is bound to this machine alone
    /// until you say otherwise: `0.0.0.0:8080` is open to the network.
    [listen] Listen {
        /// HTTP: the API under `/v1`, MQTT over WebSocket at `/mqtt`, XMPP over WebSocket at `/xmpp-websocket`.
        #[serde(with = "address")]
        http: SocketAddr = local(8080),
        /// Operations: `/healthz`, `/readyz`, `/metrics`. Not for the public.
        #[serde(with = "address")]
        ops: SocketAddr = local(9090),
        /// MQTT without TLS.
        #[serde(with = "address")]
        mqtt: SocketAddr = local(1883),
        /// MQTT with TLS, usually at port 8883; needs the section `[tls]`. `off`: not at all.
        #[serde(with = "address_or_off")]
        mqtt_tls: Option<SocketAddr> = None,
        /// XMPP, which switches to TLS by STARTTLS where there is a certificate. `off`: not at all.
        #[serde(with = "address_or_off")]
        xmpp: Option<SocketAddr> = Some(local(5222)),
        /// XMPP with TLS from the first byte (XEP-0368), usually at port 5223. `off`: not at all.
        #[serde(with = "address_or_off")]
        xmpp_tls: Option<SocketAddr> = None,
    }

    /// The certificate of the TLS listeners.
    [tls] Tls {
        /// A PEM file with the certificate and those that vouch for it, in that order.
        certificate: String = String::new(),
        /// A PEM file with the private key.
        key: String = String::new(),
        /// Without files of your own: make a certificate at the first start, which lies in the data folder and which nobody
        /// vouches for. Enough for phones that accept any, such as androidpn's.
        self_signed: bool = false,
    }

    /// The embedded store: a folder of files.
    [store] Store {
        /// The data folder; also `--data DIR` and `POSTRIDER_DATA`. Made where it is missing.
        dir: String = "postrider-data".into(),
        /// When something counts as stored. `synced`: the disk said so, nothing accepted is lost whatever fails.
        /// `relaxed`: the operating system has it, which survives the death of the process and not that of the machine.
        sync: Sync = Sync::Synced,
        /// Commands that share one sync of the disk, at most.
        group_commands_max: usize = 4_000,
        /// Bytes that share one sync of the disk, at most.
        group_bytes_max: usize = 8 * MIB,
        /// Commands that may wait to be written; beyond it requests are answered `overloaded`.
        queue_commands_max: usize = 100_000,
        /// Bytes that may wait to be written.
        queue_bytes_max: usize = 64 * MIB,
        /// Bytes at which a file of the journal is closed and the next begun.
        segment_bytes: u64 = 64 * MIB as u64,
        /// Bytes of journal after which a checkpoint is made. More: less writing; less: a faster start after a crash.
        checkpoint_bytes: u64 = 64 * MIB as u64,
        /// Seconds after which a checkpoint is made at the latest, so that deleted data leaves the disk.
        checkpoint_secs: u64 = 6 * 3_600,
        /// Days that the stream of events (receipts) is kept.
        events_days: u64 = 30,
        /// Bytes of the stream of events that are kept at most, whatever their age.
        events_bytes_max: u64 = 1_024 * MIB as u64,
        /// Below this many free bytes on the disk, new messages and devices are refused.
        min_free_bytes: u64 = 1_024 * MIB as u64,
        /// Below this share of the disk free, in percent, too.
        min_free_percent: u8 = 10,
        /// Bytes held back, so that acknowledgements still find room on a full disk.
        reserve_bytes: u64 = 64 * MIB as u64,
        /// Accept a data folder that other users of the machine can look into.
        allow_open_to_others: bool = false,
    }

    /// How much of everything.
    [limits] Limits {
        /// Bytes of a message's payload.
        payload_bytes_max: usize = core().payload_bytes_max,
        /// Devices that one message may name one by one; for more there are tags and topics.
        recipients_max: usize = core().recipients_max,
        /// With more devices than this a message is stored once, as a broadcast, and not once for each device.
        direct_max: usize = core().direct_max,
        /// Undelivered messages that wait for one device; the oldest of the lowest priority is evicted then.
        inbox_max: u32 = core().inbox_max,
        /// Bytes of undelivered messages that wait for one device.
        inbox_bytes_max: u32 = core().inbox_bytes_max,
        /// Live broadcasts of an app.
        broadcasts_max: usize = core().broadcasts_max,
        /// Open messages of an app. Beyond it the app's own messages are refused (`app_full`), and nobody else's.
        app_messages_max: u64 = core().app_messages_max,
        /// Bytes of the contents of an app's open messages. Beyond it likewise. With several apps, keep the sum below the
        /// size of the disk.
        app_bytes_max: u64 = core().app_bytes_max,
        /// Idempotency keys that an app keeps; beyond it the oldest are forgotten before their time. Some 200 bytes of memory
        /// each.
        idempotency_keys_max: u32 = core().idempotency_keys_max,
        /// Messages of other devices (XMPP) that may wait for one device; beyond it their senders are refused. A push that
        /// finds the inbox full takes their place first.
        peer_inbox_max: u32 = core().peer_inbox_max,
        /// Seconds that a message may live; a sender's longer wish is refused.
        ttl_max_secs: u64 = core().ttl_max.as_secs(),
        /// Seconds that a message lives when its sender names none.
        ttl_default_secs: u64 = core().ttl_default.as_secs(),
        /// Bytes of an `Idempotency-Key`.
        idempotency_key_bytes_max: usize = core().idempotency_key_bytes_max,
        /// Seconds that an `Idempotency-Key` is remembered at least.
        idempotency_keep_secs: u64 = core().idempotency_keep.as_secs(),
        /// Keys of transient messages and of publishes on topics that are remembered of an app, in memory; the oldest is
        /// forgotten for a new one.
        transient_keys_max: usize = core().transient_keys_max,
        /// Bytes of a tag, an alias, a collapse key, the name of an attribute.
        name_bytes_max: usize = core().name_bytes_max,
        /// Tags of a device.
        tags_max: usize = core().tags_max,
        /// Attributes of a device.
        attributes_max: usize = core().attributes_max,
        /// Bytes of alias, tags, attributes and provider tokens of a device together.
        profile_bytes_max: usize = core().profile_bytes_max,
        /// The same for what a device says of itself, and for devices that register themselves.
        own_profile_bytes_max: usize = core().own_profile_bytes_max,
        /// Clauses of an audience expression, nested ones counted.
        audience_clauses_max: usize = core().audience_clauses_max,
        /// Devices of an app.
        devices_max: u64 = core().devices_max,
        /// Those of them that registered themselves: with a key of the scope `register`, by XMPP, on the page of
        /// `http.demo`. When there are so many, the oldest that never connected makes room; otherwise no more are taken.
        /// So many sessions of anonymous clients are kept beside them.
        own_devices_max: u64 = core().own_devices_max,
        /// Subscriptions of a device.
        subscriptions_max: usize = core().subscriptions_max,
        /// Retained messages of an app.
        retained_max: usize = core().retained_max,
        /// Bytes of the retained messages of an app; more are refused with `retained_full`, to MQTT 5 with 0x97.
        retained_bytes_max: u64 = core().retained_bytes_max,
        /// Retained messages sent to one new subscription.
        retained_sent_max: usize = core().retained_sent_max,
        /// Seconds that an MQTT session may outlive its connection; longer wishes are lowered to it.
        session_expiry_max_secs: u32 = core().session_expiry_max_secs,
        /// Sessions without subscriptions that are kept in memory after their connection.
        idle_sessions_max: usize = core().idle_sessions_max,
        /// Connects of one device in a minute; 0: no limit.
        connects_per_minute_max: u32 = core().connects_per_minute_max,
        /// Delayed wills that wait.
        wills_max: usize = core().wills_max,
        /// Bytes of such wills; what goes beyond either is dropped, with a warning and in `postrider_wills_dropped`.
        wills_bytes_max: usize = core().wills_bytes_max,
        /// Bytes kept in memory so that lost connections may be resumed (XMPP streams, messages in flight), all together. Beyond
        /// it the oldest are forgotten: those clients begin anew, and are sent again what they did not acknowledge.
        saved_bytes_max: usize = core().saved_bytes_max,
        /// Acknowledgements that wait in memory while the store takes nothing (space is low). Beyond it they are forgotten, and
        /// those deliveries are sent again.
        put_off_acks_max: usize = core().put_off_acks_max,
        /// Seconds that the report of a message is kept after its end.
        history_keep_secs: u64 = core().history_keep.as_secs(),
        /// Reports kept of messages that ended.
        history_max: u32 = core().history_max,
        /// Whether reports and lists of messages show title and body of what was sent. Off: only to whom, by which key
        /// and what became of it.
        report_texts: bool = core().report_texts,
        /// Bytes of recent contents kept in memory, for messages that go to many.
        content_cache_bytes_max: usize = core().content_cache_bytes_max,
    }

    /// What becomes of devices in the course of time.
    [devices] Devices {
        /// Days after which a device that was not seen is deleted, with what waits for it; 0: none is. One that was never
        /// seen counts from its registration. Some hundred are deleted in a second, and none in the first hour after a start.
        prune_unseen_days: u32 = 0,
    }

    /// What devices may do on MQTT topics. Patterns are topic filters; `{device}` stands for the device's own id. Pushes
    /// (`$push/inbox`) and receipts (`$push/receipts`) are always allowed.
    [access] Access {
        /// Topics that devices may publish to.
        publish: Vec<String> = CoreAccess::default().publish,
        /// Filters that devices may subscribe to.
        subscribe: Vec<String> = CoreAccess::default().subscribe,
        /// Filters refused although `subscribe` covers them.
        subscribe_deny: Vec<String> = CoreAccess::default().subscribe_deny,
        /// MQTT 5's reason code for a refused filter: 135 says "not authorized"; some old clients know 128 only.
        refusal_code: u8 = CoreAccess::default().refusal_code,
        /// Whether devices may leave retained messages on topics.
        retain: bool = CoreAccess::default().retain,
        /// Whether clients that are not registered may connect, without a password.
        anonymous: bool = CoreAccess::default().anonymous,
        /// Whether devices may set their own alias and tags, and so choose for which user and which groups they receive
        /// messages. Otherwise the app's server says them: by an app key, or by a JWT with the claims `alias` and `tags`.
        own_alias_and_tags: bool = CoreAccess::default().own_alias_and_tags,
    }

    /// The MQTT protocol.
    [mqtt] Mqtt {
        /// The app of clients that name none. Others sign in as `APP/DEVICE`.
        app: String = crate::bootstrap::FIRST_APP.into(),
        /// Seconds of the longest keep-alive. MQTT 5 clients that ask for more, or for none, are told this one; 0: as
        /// they like.
        keepalive_max_secs: u16 = 1_200,
        /// Seconds after which a silent client is cut that asked for no keep-alive; 0: never.
        keepalive_zero_secs: u32 = 3_600,
        /// Seconds from the connection to its complete CONNECT.
        connect_timeout_secs: u64 = 5,
        /// Bytes of a packet before the client has signed in.
        packet_bytes_max_before_auth: usize = 16 * KIB,
        /// Bytes of a packet after that; MQTT 5 clients are told.
        packet_bytes_max: usize = 64 * KIB,
        /// Refuse client identifiers with characters other than `A-Z a-z 0-9 . _ : @ / -` and the space.
        client_id_strict: bool = true,
        /// Bytes of a client identifier.
        client_id_bytes_max: usize = 128,
        /// Bytes of a user name.
        user_bytes_max: usize = 128,
        /// Bytes of a password.
        password_bytes_max: usize = 1_024,
        /// Bytes of a topic.
        topic_bytes_max: usize = 512,
        /// Levels of a topic.
        topic_levels_max: usize = 16,
        /// User properties of a packet.
        user_properties_max: usize = 16,
        /// Bytes of the user properties of a packet together.
        user_property_bytes_max: usize = 4 * KIB,
        /// Filters of one SUBSCRIBE.
        filters_max: usize = 16,
        /// Topic aliases, for each direction.
        topic_alias_max: u16 = 16,
        /// QoS 1 and 2 messages that an MQTT 5 client may have on their way to us; it is told.
        receive_max: u16 = 32,
        /// QoS 2 messages of an older client that wait for their release.
        awaiting_release_max: u16 = 32,
        /// Messages on their way to a client that it has not acknowledged; more wait in the inbox.
        inflight_max: u16 = 32,
        /// Whether retained messages are offered at all.
        retain_available: bool = true,
        /// Whether filters may have `+` and `#`.
        wildcard_available: bool = true,
        /// Whether `$share/GROUP/FILTER` is offered.
        shared_available: bool = true,
        /// The highest quality of service that clients may publish with: 0, 1 or 2.
        qos_max: u8 = 2,
        /// Acknowledgements of nothing in a minute, beyond which the connection ends.
        bad_acks_per_minute_max: u16 = 100,
    }

    /// The XMPP protocol.
    [xmpp] Xmpp {
        /// Sign-in and registration without TLS; for loopback and tests. Over WebSocket the HTTP side sees to TLS.
        allow_plaintext: bool = false,
        /// Whether devices may register by themselves, into the app `mqtt.app` (XEP-0077).
        registration: bool = false,
        /// Registrations of one address or IPv6 /64 network that are heard at once.
        registrations_burst: u32 = 20,
        /// Seconds after which one more is heard.
        registration_secs: u64 = 60,
        /// Registrations and changes of passwords that may wait for their keys to be derived, which takes some milliseconds each;
        /// what comes beyond it is answered `resource-constraint`. One connection may have one of them.
        account_jobs_max: usize = 64,
        /// Whether clients from before SASL may sign in (XEP-0078), which show their password inside of TLS.
        legacy_sign_in: bool = false,
        /// The host that this server is, as in `user@host`: streams and stanzas to another are refused. Empty: whatever clients
        /// call it, which suits phones that are set to an address.
        host: String = String::new(),
        /// Keep what SCRAM needs of each secret when it is set: some milliseconds of work for each device. Devices registered
        /// while this is off can only sign in with PLAIN.
        scram: bool = true,
        /// Offer SCRAM with channel binding. Some old clients ask for a kind that TLS 1.3 has not, and fail over it.
        channel_binding: bool = true,
        /// Whether devices of an app may write to each other.
        device_messages: bool = true,
        /// Bytes of a stanza before the client has signed in.
        stanza_bytes_max_before_auth: usize = xmpp().before_auth.bytes_max,
        /// Bytes of a stanza after that.
        stanza_bytes_max: usize = xmpp().after_auth.bytes_max,
        /// Deliveries on their way to a client that it has not acknowledged; more wait in the inbox.
        inflight_max: usize = xmpp().inflight_max,
        /// Seconds in which a lost stream may be resumed.
        resume_secs: u64 = xmpp().resume_ms / 1_000,
        /// Seconds of silence after which a client is asked whether it is there.
        probe_after_secs: u64 = xmpp().probe_after_ms / 1_000,
        /// Seconds in which it has to answer, or to acknowledge what it was sent.
        answer_timeout_secs: u64 = xmpp().answer_timeout_ms / 1_000,
    }

    /// What unmodified androidpn phones and the app servers behind them expect. Phones also want `xmpp.registration`,
    /// `xmpp.legacy_sign_in` and a certificate, be it `tls.self_signed`.
    [androidpn] Androidpn {
        /// Whether `/notification.do` and `/notification_api.do` send, and `/user_api.do` and `/session.do` list.
        api: bool = false,
        /// Whether requests from this machine itself need no key, as they never did; for the app `mqtt.app`.
        keyless_loopback: bool = false,
        /// What phones read in `<apiKey>`.
        api_key: String = "1234567890".into(),
    }

    /// The connections of devices, whatever they speak. 0 means: no limit.
    [gateway] Gateway {
        /// Threads that serve connections; 0: one for each processor core.
        workers: usize = 0,
        /// Connections in all; what the operating system allows comes first.
        connections_max: usize = admission().connections_max,
        /// Connections that have not signed in, in all.
        unauthenticated_max: usize = admission().unauthenticated_max,
        /// Connections that have not signed in, of one address or IPv6 /64 network.
        unauthenticated_per_address_max: usize = admission().unauthenticated_per_address_max,
        /// Connections of one address or IPv6 /64 network.
        per_address_max: usize = admission().per_address_max,
        /// Wrong credentials of one address before it is only told that it tries too often, and gets 20 SCRAM challenges a
        /// second at most. A challenge that is left unanswered counts as wrong. Right credentials always pass.
        failures_burst: u32 = admission().failures_burst,
        /// Seconds after which one more wrong try of such an address is heard.
        failure_secs: u64 = admission().failure_secs,
        /// Acknowledgements of nothing that a connection of the JSON protocol may send in a minute before it is ended, and that a
        /// device may send over HTTP, after the first 1,000, before it is answered `acks_too_often`. MQTT has its own number.
        bad_acks_per_minute_max: u32 = 100,
        /// Bytes queued to one connection, beyond which messages at QoS 0 are dropped.
        out_bytes_max: usize = 64 * KIB,
        /// Messages above QoS 0 without an inbox entry that wait for one connection's window.
        waiting_max: usize = 1_000,
        /// Bytes of such messages; what goes beyond either is dropped and counted as `queue_full`.
        waiting_bytes_max: usize = MIB,
        /// Bytes of live messages that wait for one thread; what goes beyond it is dropped and counted as `worker_busy`.
        mailbox_bytes_max: usize = 64 * MIB,
        /// Seconds that a client may read nothing of what is sent to it, before it is cut.
        slow_reader_secs: u64 = 30,
        /// Publishes, subscriptions, receipts and stanzas of one connection in a second; 0: no limit.
        publishes_per_sec: u32 = 10,
        /// How many of them may come at once all the same.
        publishes_burst: u32 = 50,
    }

    /// Proxies that say for which client a connection is by the PROXY protocol, version 1 or 2 (HAProxy's `send-proxy`,
    /// stunnel's `protocol = proxy`, load balancers of clouds). Limits by address then count the clients, not the proxy.
    /// Networks are written like `10.0.0.0/8`. Every connection from them has to begin with the header; one that does not is
    /// closed, and a header from anywhere else is believed by nobody.
    [proxy_protocol] ProxyProtocol {
        /// Proxies before `listen.mqtt` and `listen.mqtt_tls`.
        mqtt: Networks = Networks::default(),
        /// Proxies before `listen.xmpp` and `listen.xmpp_tls`.
        xmpp: Networks = Networks::default(),
        /// Proxies before `listen.http`.
        http: Networks = Networks::default(),
    }

    /// The HTTP API.
    [http] Http {
        /// Threads that serve requests; 0: one for each processor core.
        workers: usize = 0,
        /// Connections open at once.
        connections_max: usize = http().connections_max,
        /// Connections open at once of one address or IPv6 /64 network.
        connections_per_address_max: usize = http().connections_per_address_max,
        /// Proxies that stand before the HTTP listener, as addresses or networks: `["127.0.0.1", "10.0.0.0/8"]`. Of requests
        /// that come from them, the client's address is taken from `X-Forwarded-For` or `Forwarded` (the rightmost address
        /// that is not in this list), and the host from `X-Forwarded-Host`, `Forwarded`. Without it, all clients behind a
        /// proxy count as one address in every limit. Name only proxies that set these headers themselves.
        trusted_proxies: Networks = http().trusted_proxies,
        /// Bytes of a request's head.
        head_bytes_max: usize = http().head_bytes_max,
        /// Fields of a request's head.
        head_fields_max: usize = http().head_fields_max,
        /// Bytes of a request's path and query.
        uri_bytes_max: usize = http().uri_bytes_max,
        /// Seconds in which the head has to be there.
        head_timeout_secs: u64 = http().head_time_max.as_secs(),
        /// Seconds in which the body has to be there.
        body_timeout_secs: u64 = api().body_time_max.as_secs(),
        /// Bytes of a body that have to come in a second, after the first few seconds.
        body_bytes_per_sec_min: usize = api().body_bytes_per_sec_min,
        /// Seconds that an idle connection is kept.
        idle_secs: u64 = http().idle_max.as_secs(),
        /// Seconds that a client may take nothing of an answer before it is cut.
        slow_reader_secs: u64 = http().write_stall_max.as_secs(),
        /// Streams of one HTTP/2 connection at once.
        streams_max: u32 = http().streams_max,
        /// Bytes of a request's body.
        body_bytes_max: usize = api().body_bytes_max,
        /// Bytes of the body of a batch.
        batch_bytes_max: usize = api().batch_bytes_max,
        /// Messages of a batch.
        batch_max: usize = api().batch_max,
        /// Messages that an app may send in a second; 0: no limit.
        pushes_per_sec: u64 = api().pushes_per_sec,
        /// Messages that an app may send at once all the same.
        pushes_burst: u64 = api().pushes_burst,
        /// Bytes of the bodies that an app's requests may bring in a second; 0: no limit. Those by keys of the scope `register`
        /// have an allowance of the same size for themselves.
        bytes_per_sec: u64 = api().bytes_per_sec,
        /// Bytes that they may bring at once all the same; a larger body counts as so many.
        bytes_burst: u64 = api().bytes_burst,
        /// Devices of one address or IPv6 /64 network that may register at once by themselves: with a key of the scope
        /// `register`, or on the page of `http.demo`.
        registrations_burst: u64 = api().registrations_burst,
        /// Seconds after which one more may; 0: no limit.
        registration_secs: u64 = api().registration_secs,
        /// Devices that may register at once with one key of the scope `register`, from all addresses.
        key_registrations_burst: u64 = api().key_registrations_burst,
        /// How many more may in each second; 0: no limit.
        key_registrations_per_sec: u64 = api().key_registrations_per_sec,
        /// Changes of its own profile or secret that a device may make at once, before it may make one a second.
        changes_burst: u64 = api().changes_burst,
        /// Wrong credentials of one address that are answered at once.
        auth_failures_burst: u64 = api().auth_failures_burst,
        /// After them, one in so many seconds.
        auth_failure_secs: u64 = api().auth_failure_secs,
        /// Entries of a page, at most.
        page_max: usize = api().page_max,
        /// Requests of one app that wait for events at once.
        polls_max: usize = api().polls_max,
        /// Seconds that a request may wait for events.
        poll_wait_max_secs: u64 = api().poll_max.as_secs(),
        /// Origins of web pages that may connect and read answers, such as `https://app.example`; `*` allows all.
        origins: Vec<String> = api().origins,
        /// Whether `/demo` is there, a page to try everything out, where each visitor gets a device. Not for production.
        demo: bool = api().demo,
        /// Whether WebSocket messages of `/ws` are compressed for clients that offer it (permessage-deflate). It costs more
        /// processor time than it is worth for short pushes.
        compression: bool = api().compression,
        /// Whether `/_test/echo` sends every WebSocket message back, for outside test suites. Not for production.
        echo: bool = api().echo,
        /// Seconds that requests under way may still take when the server stops.
        stop_secs: u64 = http().drain_max.as_secs(),
    }

    /// Devices that sign in with a JWT of their app's server (RFC 7519), besides those with a secret. Off without a key.
    /// The claims: `sub`, the device's id, and `exp`, at most a day after `iat`.
    [jwt] Jwt {
        /// A file with the key that the signatures are checked with: a public key in PEM, or for HS256 the secret itself.
        key_file: String = String::new(),
        /// `HS256`, `RS256`, `ES256` or `EdDSA`. A token that says another is refused.
        algorithm: String = "ES256".into(),
        /// The app whose devices sign in so.
        app: String = "default".into(),
        /// What the claim `aud` has to be; empty: it is not looked at.
        audience: String = String::new(),
    }

    /// Receipts that are posted to receivers of the apps. What apps name must not lead into your
    /// network: only public addresses are connected to, unless you say otherwise here.
    [webhooks] Webhooks {
        /// Webhooks of an app, at most.
        per_app_max: u32 = 20,
        /// Whether `http://` will do too, in clear. For tests and networks of your own.
        allow_http: bool = false,
        /// Ports that may be connected to; empty: all.
        #[serde(with = "ports")]
        ports: Vec<u16> = vec![443],
        /// Addresses or networks that may be connected to although they are not public:
        /// `["10.1.2.0/24"]`.
        allow_networks: Networks = Networks::default(),
        /// A file with certificates in PEM that are trusted beside those of this machine.
        ca_file: String = String::new(),
        /// Seconds that a connection may take to come about.
        connect_secs: u64 = 5,
        /// Seconds that a receiver may take to answer.
        answer_secs: u64 = 15,
        /// Requests in flight at once, to all receivers; each webhook has at most one.
        in_flight_max: usize = 256,
        /// Seconds between two attempts, at most: the wait grows from a second to this.
        retry_max_secs: u64 = 3_600,
        /// Seconds after which a request that failed for so long is given up.
        give_up_secs: u64 = 3 * 24 * 3_600,
    }

    /// The key that seals secrets in the store, such as those of webhooks.
    [secrets] Secrets {
        /// A file that only its owner may read, with 64 hexadecimal digits; of several lines the first seals and all open.
        /// Empty: `secrets.key` in the data folder, made when it is first needed. Keep a copy of it, apart from the copies
        /// of the data. `POSTRIDER_SECRETS_KEY` goes before the file.
        key_file: String = String::new(),
    }

    /// What the server tells of itself, on its standard error.
    [log] Log {
        /// `error`, `warn`, `info`, `debug` or `trace`; also by part, as in `info,postrider::gateway=debug`.
        level: String = "info".into(),
        /// `text` for people, `json` for machines.
        format: LogFormat = LogFormat::Text,
    }
}
