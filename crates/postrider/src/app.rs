//! Builds the whole from its parts, and takes it apart in order: store → engine → gateways → HTTP, and back.

use crate::bootstrap::{self, FirstKeys};
use crate::config::Config;
use crate::gateway::{Door, Gateway, GatewayConfig, GatewayMetrics};
use crate::http::HttpConfig;
use crate::networks::Networks;
use crate::opened::{OPS_CONNECTIONS_MAX, Opened, Seats};
use crate::platform::{OsChance, SteadyClock};
use crate::supervise::{EXIT_PART_ENDED, EXIT_STORE_FAILED, Supervisor, TOLD_FOR};
use crate::tokens::Tokens;
use crate::{api, http, planted, platform, secrets};
use postrider_core::Engine;
use postrider_core::id::AppNo;
use postrider_core::port::{Audit, Chance, Clock, Store, StoreError};
use postrider_outbound::webhooks::Webhooks;
use postrider_store::{EmbeddedStore, FailedBy, OpenError, OsFiles};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often time passes for the core.
const TICK: Duration = Duration::from_millis(250);

/// How often the books are balanced without being asked.
const AUDIT_EVERY: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the store could not be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the store refused: {0}")]
    Store(#[from] StoreError),
    #[error("{what} {address} could not be opened: {why}")]
    Listen { what: &'static str, address: SocketAddr, why: io::Error },
    #[error("tls: {0}")]
    Tls(String),
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Keys(#[from] bootstrap::KeysError),
    /// It served, and could not go on.
    #[error("{why}")]
    Ended { exit_code: u8, why: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where the server listens, once it does; printed as the machine-readable line of the design, §11.
#[derive(Clone)]
pub struct Listening {
    pub http: SocketAddr,
    pub ops: SocketAddr,
    pub mqtt: SocketAddr,
    pub mqtt_tls: Option<SocketAddr>,
    pub xmpp: Option<SocketAddr>,
    pub xmpp_tls: Option<SocketAddr>,
    /// Where the first keys lie, until somebody has noted them.
    pub first_keys: Option<PathBuf>,
}

impl Listening {
    fn of(opened: &Opened, config: &Config, first_keys: Option<PathBuf>) -> Listening {
        let at = |what| opened.place(what);
        Listening {
            http: at("listen.http").unwrap_or(config.listen.http),
            ops: at("listen.ops").unwrap_or(config.listen.ops),
            mqtt: at("listen.mqtt").unwrap_or(config.listen.mqtt),
            mqtt_tls: at("listen.mqtt_tls"),
            xmpp: at("listen.xmpp"),
            xmpp_tls: at("listen.xmpp_tls"),
            first_keys,
        }
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listening http={} ops={} mqtt={}", self.http, self.ops, self.mqtt)?;
        let others = [("mqtt_tls", self.mqtt_tls), ("xmpp", self.xmpp), ("xmpp_tls", self.xmpp_tls)];
        others
            .iter()
            .filter_map(|(name, at)| Some((name, (*at)?)))
            .try_for_each(|(name, at)| write!(f, " {name}={at}"))
    }
}

/// Runs until SIGTERM, SIGINT or `stop`. `ready` is called once everything listens.
pub fn serve(
    config: Config,
    stop: Arc<tokio::sync::Notify>,
    ready: impl FnOnce(&Listening) + Send,
) -> Result<(), ServeError> {
    let open_files_max = platform::raise_open_files();
    tracing::info!(open_files_max, version = env!("CARGO_PKG_VERSION"), "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.http_workers())
        .thread_name("http")
        .enable_all()
        .build()?;
    let signals = {
        let _context = runtime.enter();
        Signals::new()?
    };
    let supervisor = Supervisor::default();
    let store = Arc::new(open_store(&config, &supervisor)?);
    // Whatever may fail comes before the keys: a start that fails must not take them with it.
    let mut opened = Opened::open(&config)?;
    check_apps(&config, &*store)?;
    let clock: Arc<dyn Clock> = Arc::new(start_clock(&store));
    let chance: Arc<dyn Chance> = Arc::new(OsChance);
    let first_keys = FirstKeys::in_folder(&config.data_dir());
    bootstrap::ensure(&*store, &*chance, clock.now(), &config.preset_keys(), &first_keys)?;
    let app = store
        .app_by_id(&config.mqtt.app)
        .ok_or_else(|| ServeError::Config(format!("mqtt.app: there is no app {:?}", config.mqtt.app)))?;
    let seats = seats(&config, open_files_max);
    let as_port: Arc<dyn Store> = store.clone();
    let engine = Engine::new(as_port, config.core_limits(), config.core_access(), clock, chance);
    let metrics = GatewayMetrics::default();
    let issuer = config.issuer(|id| store.app_by_id(id)).map_err(ServeError::Config)?;
    let tokens = Arc::new(Tokens::new(issuer, &OsChance));
    let watched = (&engine, &supervisor);
    let gateway = start_gateway(&config, watched, tokens, (app, seats), &metrics, &mut opened)?;
    let gateway = Arc::new(gateway);
    let ticking = Ticker::start(engine.clone(), &supervisor)?;
    let listening = Listening::of(&opened, &config, first_keys.is_there());
    let webhooks = start_webhooks(&config, &engine, &store)?;
    let web = runtime.block_on(async {
        let sending = Sending::start(&webhooks, &supervisor);
        let door = (&gateway, &metrics);
        let web = Web::start(&config, watched, (app, seats), (door, &webhooks), &store, opened)?;
        tracing::info!("{listening}");
        ready(&listening);
        until_stop(&stop, signals, &supervisor).await;
        supervisor.stopping();
        tracing::info!("stopping");
        let mut web = web;
        web.stop_api().await;
        sending.stop().await;
        Ok::<Web, ServeError>(web)
    });
    gateway.stop();
    ticking.stop();
    store.close();
    // Until the end, whoever probes it is told.
    web.map(|web| runtime.block_on(web.stop_ops()))?;
    drop(runtime);
    match supervisor.ended() {
        Some(ended) => Err(ServeError::Ended { exit_code: ended.exit_code, why: ended.why.clone() }),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Apps that the settings name are there, or are about to be made.
fn check_apps(config: &Config, store: &dyn Store) -> Result<(), ServeError> {
    let jwt = Some(&config.jwt.app).filter(|_| !config.jwt.key_file.is_empty());
    for (setting, app) in [("mqtt.app", Some(&config.mqtt.app)), ("jwt.app", jwt)] {
        let Some(app) = app else { continue };
        if app != bootstrap::FIRST_APP && store.app_by_id(app).is_none() {
            return Err(ServeError::Config(format!("{setting}: there is no app {app:?}")));
        }
    }
    Ok(())
}

/// How many connections there may be, by the settings and by what the operating system allows.
fn seats(config: &Config, open_files_max: Option<u64>) -> Seats {
    let (http, gateway) = (config.http.connections_max, config.gateway.connections_max);
    let seats = Seats::new(open_files_max, platform::open_files(), http, gateway);
    if seats.http < http || (gateway > 0 && seats.gateway < gateway) {
        tracing::warn!(
            open_files_max,
            http = seats.http,
            gateway = seats.gateway,
            "the limit of open files allows fewer connections than the settings (ulimit -n, LimitNOFILE)"
        );
    }
    seats
}

fn open_store(config: &Config, supervisor: &Supervisor) -> Result<EmbeddedStore, ServeError> {
    let mut settings = config.store_settings();
    let supervisor = supervisor.clone();
    settings.on_fatal = Some(Arc::new(move |by, why| {
        let exit_code = match by {
            FailedBy::Disk => EXIT_STORE_FAILED,
            FailedBy::Panic => EXIT_PART_ENDED,
        };
        supervisor.fail(exit_code, &format!("the store failed: {why}"));
    }));
    if settings.sync == postrider_store::SyncMode::Relaxed {
        tracing::warn!(
            "store.sync is \"relaxed\": what was accepted in the last seconds may be lost with the power"
        );
    }
    let store = EmbeddedStore::open(settings, Arc::new(OsFiles))?;
    for problem in store.problems() {
        tracing::error!(%problem, "damage was found in the store and put into quarantine");
    }
    report_gaps(&store.audit());
    Ok(store)
}

fn start_clock(store: &EmbeddedStore) -> SteadyClock {
    let clock = SteadyClock::starting_after(store.last_time(), store.time_mark());
    if let Some(Err(error)) = clock.mark().map(|mark| store.keep_time_mark(&mark)) {
        // Only the next start has use for it.
        tracing::warn!(%error, "no mark of the time could be kept: the next start will believe the wall clock");
    }
    clock
}

/// Every delivery must be open or ended (P1); where that is not so, an operator has to know.
fn report_gaps(audit: &Audit) {
    for (app, audit) in audit.apps.iter().filter(|(_, a)| a.gap() != 0) {
        tracing::error!(
            app = app.0,
            gap = audit.gap(),
            "the books of deliveries do not balance; see `postrider store check`"
        );
    }
}

/// The gateways, on listeners that are open.
fn start_gateway(
    config: &Config,
    (engine, supervisor): (&Engine, &Supervisor),
    tokens: Arc<Tokens>,
    (app, seats): (AppNo, Seats),
    metrics: &GatewayMetrics,
    opened: &mut Opened,
) -> Result<Gateway, ServeError> {
    let mut settings: GatewayConfig = config.gateway_settings(app, opened.tls.clone());
    settings.admission.connections_max = seats.gateway;
    let listeners = std::mem::take(&mut opened.gateway);
    Ok(Gateway::start(engine.clone(), tokens, settings, metrics.clone(), (listeners, supervisor.clone()))?)
}

/// Webhooks, told of new receipts from now on.
fn start_webhooks(
    config: &Config,
    engine: &Engine,
    store: &Arc<EmbeddedStore>,
) -> Result<Webhooks, ServeError> {
    let client = config.webhook_client().map_err(ServeError::Config)?;
    let keys = secrets::key_ring(config, engine.chance.clone());
    let show = api::show_events(engine.store.clone());
    let webhooks = Webhooks::new(engine.clone(), client, config.webhook_settings(), show, keys);
    let told = webhooks.clone();
    store.watch_events().on_new(move |position, apps| told.told(position, apps));
    Ok(webhooks)
}

/// The part that sends webhooks.
struct Sending {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Sending {
    fn start(webhooks: &Webhooks, supervisor: &Supervisor) -> Sending {
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let sending = tokio::spawn(webhooks.clone().run(stopping));
        Sending { stop, task: tokio::spawn(supervisor.clone().watch_task("webhooks", sending)) }
    }

    /// What is in flight has a few seconds; what it does not finish, the next start sends again.
    async fn stop(self) {
        _ = self.stop.send(true);
        _ = tokio::time::timeout(Duration::from_secs(5), self.task).await;
    }
}

/// The HTTP side: the API on one listener, operations on the other.
struct Web {
    api: Served,
    ops: Served,
}

/// A listener that serves.
struct Served {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    fn start(
        (what, listener): (&'static str, TcpListener),
        router: axum::Router,
        settings: HttpConfig,
        metrics: api::health::HttpMetrics,
        supervisor: &Supervisor,
    ) -> Served {
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let serving = tokio::spawn(http::serve(listener, router, settings, metrics, stopping));
        Served { stop, task: tokio::spawn(supervisor.clone().watch_task(what, serving)) }
    }

    async fn stop(&mut self) {
        _ = self.stop.send(true);
        _ = tokio::time::timeout(Duration::from_secs(10), &mut self.task).await;
    }
}

impl Web {
    fn start(
        config: &Config,
        (engine, supervisor): (&Engine, &Supervisor),
        (app, seats): (AppNo, Seats),
        ((gateway, metrics), webhooks): ((&Arc<Gateway>, &GatewayMetrics), &Webhooks),
        store: &Arc<EmbeddedStore>,
        opened: Opened,
    ) -> Result<Web, ServeError> {
        let changed = Arc::new(api::EventsChanged::default());
        let notify = changed.clone();
        store.watch_events().on_new(move |_, apps| notify.tell(apps));
        let door = Arc::new(Arc::downgrade(gateway));
        let tokens = (gateway.tokens(), config.proofs());
        let out = (door as Arc<dyn Door>, webhooks.clone());
        let api = api::Api::new(engine.clone(), app, changed, config.api_limits(), tokens, out);
        let counts = Arc::downgrade(gateway);
        let connections = move || counts.upgrade().map_or((0, 0), |g| g.counts());
        let watched = (engine.clone(), supervisor.clone(), webhooks.clone());
        let ops = api::health::Ops::new(watched, api.metrics.clone(), metrics.clone(), connections);
        let settings = config.http_settings();
        let few = HttpConfig {
            connections_max: OPS_CONNECTIONS_MAX,
            // Nothing stands before this listener.
            proxies: Networks::default(),
            ..settings.clone()
        };
        let settings = HttpConfig { connections_max: seats.http, ..settings };
        let seen = api.metrics.http.clone();
        let http = ("listen.http", opened.http);
        let api = Served::start(http, api::router(api), settings, seen, supervisor);
        let unseen = api::health::HttpMetrics::default();
        let at = ("listen.ops", opened.ops);
        let ops = Served::start(at, api::health::router(ops), few, unseen, supervisor);
        Ok(Web { api, ops })
    }

    async fn stop_api(&mut self) {
        self.api.stop().await;
    }

    async fn stop_ops(mut self) {
        self.ops.stop().await;
    }
}

/// What the process is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: [Signal; 2],
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// Until one comes that asks to stop. The others have ended many a server that somebody only wanted to tell something:
    /// a terminal that closes, a log that was rotated.
    async fn ask_to_stop(mut self) {
        let [first, second] = &mut self.user;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::info!("SIGHUP: nothing is read anew; restart to change settings"),
                _ = first.recv() => tracing::info!("SIGUSR1 is ignored"),
                _ = second.recv() => tracing::info!("SIGUSR2 is ignored"),
            }
        }
    }
}

async fn until_stop(stop: &tokio::sync::Notify, signals: Signals, supervisor: &Supervisor) {
    tokio::select! {
        () = stop.notified() => {}
        () = signals.ask_to_stop() => {}
        () = supervisor.failed() => tokio::time::sleep(TOLD_FOR).await,
    }
}

/// The core's time, on a thread of its own.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Ticker {
    fn start(engine: Engine, supervisor: &Supervisor) -> io::Result<Ticker> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, supervisor, watched) = (stop.clone(), supervisor.clone(), supervisor.clone());
        let run = move || {
            let mut audited = std::time::Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                planted::panic_in_thread("time");
                engine.tick();
                if engine.is_half_changed() {
                    supervisor.fail(EXIT_PART_ENDED, "a panic left the sessions half changed");
                }
                if audited.elapsed() >= AUDIT_EVERY {
                    audited = std::time::Instant::now();
                    report_gaps(&engine.audit());
                }
                std::thread::park_timeout(TICK);
            }
        };
        let thread =
            std::thread::Builder::new().name("time".into()).spawn(move || watched.watch("time", run))?;
        Ok(Ticker { stop, thread })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        _ = self.thread.join();
    }
}
