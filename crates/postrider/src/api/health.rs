//! The operations listener: alive, ready, measured. For operators and their machines; it has no secrets and takes no input.

use crate::gateway::GatewayMetrics;
use crate::supervise::Supervisor;
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use postrider_core::Engine;
use postrider_core::id::AppNo;
use postrider_core::jobs::JobState;
use postrider_core::model::Step;
use postrider_core::port::AppView;
use postrider_core::webhooks::Webhook;
use postrider_outbound::webhooks::Webhooks;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

type Durations = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What operators see of the API.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    /// By `method`, `route`, `status`.
    pub requests: Family<[(&'static str, String); 3], Counter>,
    /// By `route`.
    pub durations: Durations,
    pub panics: Counter,
    /// By `limit`: devices that wanted to register themselves.
    pub registrations_refused: Family<[(&'static str, String); 1], Counter>,
    pub http: HttpMetrics,
}

/// What operators see of the connections of the API's listener.
#[derive(Clone, Debug, Default)]
pub struct HttpMetrics {
    pub connections: Gauge,
    pub refused: Counter,
}

impl Default for ApiMetrics {
    fn default() -> ApiMetrics {
        ApiMetrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(duration_buckets),
            panics: Counter::default(),
            registrations_refused: Family::default(),
            http: HttpMetrics::default(),
        }
    }
}

fn duration_buckets() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0])
}

impl ApiMetrics {
    /// Adds the metrics to a registry with the prefix `postrider`.
    pub fn refused_registration(&self, limit: &str) {
        self.registrations_refused.get_or_create(&[("limit", limit.to_owned())]).inc();
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register("api_requests", "Requests of the HTTP API", self.requests.clone());
        registry.register_with_unit(
            "api_request_duration",
            "Time from a request's head to its answer's",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "api_connections",
            "Open connections of the HTTP API",
            self.http.connections.clone(),
        );
        let help = "Connections of the HTTP API not let in";
        registry.register("api_connections_refused", help, self.http.refused.clone());
        registry.register(
            "api_registrations_refused",
            "Devices that were not let register themselves, by limit",
            self.registrations_refused.clone(),
        );
        registry.register("api_panics", "Requests whose handler panicked", self.panics.clone());
    }

    pub fn count(&self, method: &Method, route: String, status: StatusCode, took: Duration) {
        // Methods are the caller's words: only the known ones become labels.
        let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let labels =
            [("method", method.to_owned()), ("route", route.clone()), ("status", status.as_str().to_owned())];
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&[("route", route)]).observe(took.as_secs_f64());
    }
}

fn register_gateway(gateway: &GatewayMetrics, registry: &mut Registry) {
    for (name, help, counter) in [
        ("gateway_connections_accepted", "Connections let in", &gateway.connections_accepted),
        ("gateway_messages_in", "Messages that devices published", &gateway.messages_in),
        ("gateway_messages_out", "Messages written to devices", &gateway.messages_out),
        (
            "gateway_bad_acks",
            "Acknowledgements of deliveries that were not open for the device",
            &gateway.bad_acks,
        ),
        ("gateway_writes", "Writes to sockets", &gateway.writes),
        ("gateway_panics", "Connections whose handling panicked", &gateway.panics),
        ("gateway_slow_readers_closed", "Connections closed for not reading", &gateway.slow_readers_closed),
        ("gateway_keepalive_timeouts", "Connections closed for silence", &gateway.keepalive_timeouts),
    ] {
        registry.register(name, help, counter.clone());
    }
    for (name, help, counter) in [
        ("gateway_received", "Bytes read from devices", &gateway.bytes_in),
        ("gateway_sent", "Bytes written to devices", &gateway.bytes_out),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
    }
    for (name, help, family) in [
        ("gateway_connections_closed", "Connections that ended, by kind", &gateway.connections_closed),
        ("gateway_connections_refused", "Connections not let in, by limit", &gateway.connections_refused),
        ("gateway_messages_dropped", "Live messages not taken, by reason", &gateway.messages_dropped),
    ] {
        registry.register(name, help, family.clone());
    }
}

/// Numbers that are asked for only when they are looked at: the store's and the books'.
pub struct StoreCollector {
    pub engine: Engine,
    pub webhooks: Webhooks,
    /// Connections of the gateways: open, and of those not signed in.
    pub connections: Box<dyn Fn() -> (usize, usize) + Send + Sync>,
}

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_store(&mut encoder)?;
        self.encode_connections(&mut encoder)?;
        self.encode_jobs(&mut encoder)?;
        self.encode_apps(&mut encoder)?;
        self.encode_webhooks(&mut encoder)
    }
}

impl StoreCollector {
    fn encode_store(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.engine.store.stats();
        for (name, help, value) in [
            ("store_commands", "Commands executed", stats.commands),
            ("store_commits", "Groups of commands made durable", stats.commits),
            ("store_checkpoints", "Checkpoints written", stats.checkpoints),
            ("store_quarantined", "Damaged records found", stats.quarantined),
        ] {
            counter(encoder, name, help, None, value)?;
        }
        let bytes = Some(&Unit::Bytes);
        counter(encoder, "store_written", "Bytes written to files", bytes, stats.bytes_written)?;
        for (name, help, micros) in [
            ("store_commit", "Time spent in commits, syncs included", stats.commit_micros_total),
            ("store_sync", "Time spent waiting for the disk to sync", stats.sync_micros_total),
        ] {
            let seconds = ConstCounter::new(micros as f64 / 1e6);
            let unit = Some(&Unit::Seconds);
            seconds.encode(encoder.encode_descriptor(name, help, unit, seconds.metric_type())?)?;
        }
        gauge(encoder, "store_disk", "Bytes that the store's files take", bytes, stats.disk_bytes)?;
        let help = "Bytes of receipts that could not be written to their file so far";
        gauge(encoder, "store_receipts_waiting", help, bytes, stats.receipts_waiting_bytes)?;
        gauge(encoder, "store_queue", "Commands that wait for a commit", None, stats.queue)?;
        gauge(encoder, "open_messages", "Messages with open deliveries", None, stats.open_messages)?;
        gauge(encoder, "open_deliveries", "Deliveries that have not ended", None, stats.open_deliveries)?;
        let refuses = u64::from(self.engine.store.refuses().is_some());
        gauge(encoder, "store_refuses", "1 while nothing new is accepted", None, refuses)
    }

    fn encode_connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (open, unauthenticated) = (self.connections)();
        gauge(encoder, "connections", "Open connections of the gateways", None, open as u64)?;
        let help = "Open connections that have not signed in";
        gauge(encoder, "connections_unauthenticated", help, None, unauthenticated as u64)?;
        let help = "Bytes kept so that lost connections may be resumed";
        gauge(encoder, "sessions_saved", help, Some(&Unit::Bytes), self.engine.saved_bytes() as u64)?;
        let help = "Delayed wills dropped because too many waited";
        counter(encoder, "wills_dropped", help, None, self.engine.wills_dropped())?;
        let help = "Devices deleted because they were not seen for devices.prune_unseen_days";
        counter(encoder, "devices_pruned", help, None, self.engine.devices_pruned())?;
        let help = "Acknowledgements that wait until the store takes them";
        gauge(encoder, "acks_put_off", help, None, self.engine.put_off_acks() as u64)?;
        let signed_in = self.engine.connected_count() as u64;
        gauge(encoder, "sessions_connected", "Sessions with a connection", None, signed_in)?;
        let help = "Idempotency keys of transient messages and of publishes on topics that are remembered";
        gauge(encoder, "transient_keys", help, None, self.engine.transient_keys() as u64)
    }

    fn encode_jobs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (stats, now) = (self.engine.store.job_stats(), self.engine.clock.now());
        let zero = ConstGauge::new(0i64).metric_type();
        let help = "Jobs that are open, by kind and state";
        let mut family = encoder.encode_descriptor("jobs", help, None, zero)?;
        for stats in &stats {
            for (state, count) in JobState::NAMES.into_iter().zip(stats.count) {
                let labels = [("kind", stats.kind.name()), ("state", state)];
                ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "For how long the oldest job that is due has waited for a worker";
        let mut family = encoder.encode_descriptor("jobs_due_age", help, Some(&Unit::Seconds), zero)?;
        for stats in &stats {
            let age = stats.due_since.map_or(0, |since| now.saturating_sub(since));
            let labels = [("kind", stats.kind.name())];
            ConstGauge::new(age as f64 / 1e3).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_apps(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let store = &self.engine.store;
        let apps = store.apps();
        let zero = ConstCounter::new(0u64);
        let mut family =
            encoder.encode_descriptor("messages_accepted", "Messages accepted", None, zero.metric_type())?;
        for app in &apps {
            ConstCounter::new(app.counters.messages).encode(family.encode_family(&[("app", &*app.id)])?)?;
        }
        let of_steps = |app: &AppView| {
            Step::ALL
                .into_iter()
                .filter(|s| s.ends())
                .map(|s| (s.name(), app.counters.ended[s as usize]))
                .collect()
        };
        let help = "Deliveries that ended, by how they ended";
        counts_by_app(
            encoder,
            ("deliveries_ended", help),
            "state",
            apps.iter().map(|app| (&*app.id, of_steps(app))),
        )?;
        let mut gauges = |name, help, number: &dyn Fn(&AppView) -> i64| {
            gauge_by_app(encoder, (name, help, None), apps.iter().map(|app| (&*app.id, number(app))))
        };
        gauges("deliveries_open", "Deliveries that are open", &|app| app.open as i64)?;
        let help = "Deliveries created, less those that ended or are open: 0, or something is wrong";
        gauges("accounting_gap", help, &|app| self.engine.gap(app))?;
        let help = "Bytes of the contents of open messages, which limits.app_bytes_max bounds";
        gauges("app_bytes", help, &|app| store.kept(app.no).1 as i64)?;
        gauges("devices", "Registered devices", &|app| app.devices as i64)
    }
}

/// A number for each app.
fn gauge_by_app<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    apps: impl Iterator<Item = (&'a str, i64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, ConstGauge::new(0i64).metric_type())?;
    for (app, number) in apps {
        ConstGauge::new(number).encode(family.encode_family(&[("app", app)])?)?;
    }
    Ok(())
}

/// What a label says, and how many there were.
type Counted = Vec<(&'static str, u64)>;

/// Numbers that only grow, by a label, for each app.
fn counts_by_app<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &str,
    apps: impl Iterator<Item = (&'a str, Counted)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
    for (app, counted) in apps {
        for (value, count) in counted {
            ConstCounter::new(count).encode(family.encode_family(&[("app", app), (label, value)])?)?;
        }
    }
    Ok(())
}

/// Webhooks of one app.
struct OfApp {
    id: String,
    no: AppNo,
    webhooks: Vec<Webhook>,
}

impl StoreCollector {
    /// By app: an app has few webhooks, but there may be many apps.
    fn encode_webhooks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let store = &self.engine.store;
        let with = |app: AppView| {
            let webhooks = store.webhooks(app.no);
            (!webhooks.is_empty()).then_some(OfApp { id: app.id, no: app.no, webhooks })
        };
        let apps: Vec<OfApp> = store.apps().into_iter().filter_map(with).collect();
        let now = self.engine.clock.now();
        let lag = |app: &OfApp| {
            let waits = |webhook: &Webhook| self.webhooks.status(app.no, &webhook.id).waiting_since;
            let since = app.webhooks.iter().filter_map(waits).min();
            since.map_or(0, |since| now.saturating_sub(since) / 1_000)
        };
        let failing = |webhook: &&Webhook| webhook.progress.attempts > 0 || webhook.stopped.is_some();
        let failing = |app: &OfApp| app.webhooks.iter().filter(failing).count() as i64;
        let help = "Age of the oldest event that a webhook of the app has not delivered yet";
        let rows = apps.iter().map(|app| (&*app.id, lag(app) as i64));
        gauge_by_app(encoder, ("webhook_lag", help, Some(&Unit::Seconds)), rows)?;
        let help = "Webhooks whose last attempt failed, or that were stopped";
        let rows = apps.iter().map(|app| (&*app.id, failing(app)));
        gauge_by_app(encoder, ("webhooks_failing", help, None), rows)?;
        let sent = |app: &OfApp| self.webhooks.counts(app.no);
        let rows = apps
            .iter()
            .map(|app| (&*app.id, sent(app)))
            .map(|(id, sent)| (id, vec![("delivered", sent.delivered), ("failed", sent.failed)]));
        let help = "Requests to receivers of webhooks, by how they ended";
        counts_by_app(encoder, ("webhook_requests", help), "outcome", rows)?;
        let rows = apps
            .iter()
            .map(|app| (&*app.id, sent(app)))
            .map(|(id, sent)| (id, vec![("delivered", sent.events), ("failed", sent.events_given_up)]));
        let help = "Events of webhooks, by what became of them";
        counts_by_app(encoder, ("webhook_events", help), "outcome", rows)
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value as i64);
    gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
}

/// What the operations listener shows.
#[derive(Clone)]
pub struct Ops {
    engine: Engine,
    supervisor: Supervisor,
    registry: Arc<Registry>,
}

impl Ops {
    /// `connections`: those of the gateways that are open, and of these the ones that have not signed in.
    pub fn new(
        (engine, supervisor, webhooks): (Engine, Supervisor, Webhooks),
        api: ApiMetrics,
        gateway: GatewayMetrics,
        connections: impl Fn() -> (usize, usize) + Send + Sync + 'static,
    ) -> Ops {
        let mut registry = Registry::with_prefix("postrider");
        api.register(&mut registry);
        register_gateway(&gateway, &mut registry);
        let connections = Box::new(connections);
        registry.register_collector(Box::new(StoreCollector {
            engine: engine.clone(),
            webhooks,
            connections,
        }));
        Ops { engine, supervisor, registry: Arc::new(registry) }
    }
}

/// The routes of the operations listener.
pub fn router(ops: Ops) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

/// Whether the server takes messages.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    refuses: Option<String>,
    /// What an operator should know although everything is accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    sessions_connected: usize,
}

impl Readiness {
    fn of(ops: &Ops) -> Readiness {
        if let Some(ended) = ops.supervisor.ended() {
            // Nothing else is asked: what ended may be what would answer.
            let refuses = Some(ended.why.clone());
            return Readiness { ready: false, refuses, warnings: Vec::new(), sessions_connected: 0 };
        }
        let stopping = ops.supervisor.is_stopping().then(|| "the server is stopping".to_owned());
        let refuses = stopping.or_else(|| ops.engine.store.refuses().map(|why| why.to_string()));
        Readiness {
            ready: refuses.is_none(),
            refuses,
            warnings: ops.engine.store.warnings(),
            sessions_connected: ops.engine.connected_count(),
        }
    }
}

async fn ready(State(ops): State<Ops>) -> Response {
    // It looks at the disk, and tries what failed once more.
    let readiness = super::aside(move || Readiness::of(&ops)).await;
    let refusal = |_| Readiness {
        ready: false,
        refuses: Some("looking after it failed".to_owned()),
        warnings: Vec::new(),
        sessions_connected: 0,
    };
    let readiness = readiness.unwrap_or_else(refusal);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let encoded = super::aside(move || {
        let mut text = String::new();
        text::encode(&mut text, &ops.registry).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
