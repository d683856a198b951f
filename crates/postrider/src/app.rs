//! Builds the whole from its parts, and takes it apart in order: store → engine → gateways → HTTP, and back.

use crate::bootstrap::{self, NewKeys};
use crate::config::Config;
use crate::gateway::listener::{self, Listens};
use crate::gateway::{Gateway, GatewayConfig, GatewayMetrics};
use crate::platform::{OsChance, SteadyClock};
use crate::tokens::Tokens;
use crate::{api, http, platform, tls};
use postrider_core::Engine;
use postrider_core::id::AppNo;
use postrider_core::port::{Chance, Clock, Store, StoreError};
use postrider_store::{EmbeddedStore, OpenError, OsFiles};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The process ended because the disk failed: restart me, after looking at the disk (sysexits' EX_IOERR).
pub const EXIT_STORE_FAILED: i32 = 74;

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
    /// Made at this start, and shown never again.
    pub new_keys: NewKeys,
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
    let store = Arc::new(open_store(&config)?);
    let clock: Arc<dyn Clock> = Arc::new(start_clock(&store));
    let chance: Arc<dyn Chance> = Arc::new(OsChance);
    let (_, new_keys) = bootstrap::ensure(&*store, &*chance, clock.now(), &config.preset_keys())?;
    let app = store
        .app_by_id(&config.mqtt.app)
        .ok_or_else(|| ServeError::Config(format!("mqtt.app: there is no app {:?}", config.mqtt.app)))?;
    let as_port: Arc<dyn Store> = store.clone();
    let engine = Engine::new(as_port, config.core_limits(), config.core_access(), clock, chance);
    let metrics = GatewayMetrics::default();
    let issuer = config.issuer(|id| store.app_by_id(id)).map_err(ServeError::Config)?;
    let tokens = Arc::new(Tokens::new(issuer, &OsChance));
    let (gateway, places) = start_gateway(&config, &engine, tokens, app, &metrics)?;
    let gateway = Arc::new(gateway);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.http_workers())
        .thread_name("http")
        .enable_all()
        .build()?;
    let ticking = Ticker::start(engine.clone())?;
    let served = runtime.block_on(async {
        let web = Web::start(&config, &engine, app, (&gateway, &metrics), &store)?;
        let at = |what| places.iter().find(|(name, _)| *name == what).map(|(_, at)| *at);
        ready(&Listening {
            http: web.http,
            ops: web.ops,
            mqtt: at("listen.mqtt").unwrap_or(config.listen.mqtt),
            mqtt_tls: at("listen.mqtt_tls"),
            xmpp: at("listen.xmpp"),
            xmpp_tls: at("listen.xmpp_tls"),
            new_keys,
        });
        wait_for_stop(&stop).await;
        tracing::info!("stopping");
        web.stop().await;
        Ok::<(), ServeError>(())
    });
    drop(runtime);
    if let Ok(gateway) = Arc::try_unwrap(gateway) {
        gateway.stop();
    }
    ticking.stop();
    store.close();
    tracing::info!("stopped");
    served
}

fn open_store(config: &Config) -> Result<EmbeddedStore, ServeError> {
    let mut settings = config.store_settings();
    settings.on_fatal = Some(Arc::new(|why| {
        tracing::error!(why, "the store failed; nothing more can be accepted, the process ends");
        std::process::exit(EXIT_STORE_FAILED);
    }));
    if settings.sync == postrider_store::SyncMode::Relaxed {
        tracing::warn!(
            "store.sync is \"relaxed\": what was accepted in the last seconds may be lost with the power"
        );
    }
    let store = EmbeddedStore::open(settings, Arc::new(OsFiles))?;
    for problem in store.problems() {
        tracing::error!(?problem, "damage was found in the store and put into quarantine");
    }
    report_gaps(&store);
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
fn report_gaps(store: &dyn Store) {
    for (app, audit) in store.audit().apps.iter().filter(|(_, a)| a.gap() != 0) {
        tracing::error!(
            app = app.0,
            gap = audit.gap(),
            "the books of deliveries do not balance; see `postrider store check`"
        );
    }
}

/// The names of settings, and where their listeners are.
type Places = Vec<(&'static str, SocketAddr)>;

/// Listeners first, so that a taken port is found before anything runs.
fn start_gateway(
    config: &Config,
    engine: &Engine,
    tokens: Arc<Tokens>,
    app: AppNo,
    metrics: &GatewayMetrics,
) -> Result<(Gateway, Places), ServeError> {
    let tls = tls_of(config).map_err(ServeError::Tls)?;
    let settings: GatewayConfig = config.gateway_settings(app, tls.clone());
    let (mut places, mut by_worker) = (Places::new(), Vec::new());
    by_worker.resize_with(settings.workers, Vec::new);
    let listen = &config.listen;
    let over_tls = |address: Option<SocketAddr>, speaks: fn(_) -> Listens| {
        address.zip(tls.as_ref()).map(|(address, tls)| (address, speaks(tls.config.clone())))
    };
    let wanted = [
        ("listen.mqtt", Some((listen.mqtt, Listens::Mqtt))),
        ("listen.mqtt_tls", over_tls(listen.mqtt_tls, Listens::MqttTls)),
        ("listen.xmpp", listen.xmpp.map(|address| (address, Listens::Xmpp))),
        ("listen.xmpp_tls", over_tls(listen.xmpp_tls, Listens::XmppTls)),
    ];
    for (what, wanted) in wanted {
        let Some((address, speaks)) = wanted else { continue };
        let (bound, listeners) = listener::bind(address, settings.workers)
            .map_err(|why| ServeError::Listen { what, address, why })?;
        places.push((what, bound));
        for (mine, listener) in by_worker.iter_mut().zip(listeners) {
            mine.push((listener, speaks.clone()));
        }
    }
    let gateway = Gateway::start(engine.clone(), tokens, settings, metrics.clone(), by_worker)?;
    Ok((gateway, places))
}

/// The certificate of the settings, or one of our own.
fn tls_of(config: &Config) -> Result<Option<tls::ServerTls>, String> {
    if config.tls.certificate.is_empty() && config.tls.self_signed {
        let file = config.data_dir().join("self-signed.pem");
        tls::make_self_signed(&file)?;
        return tls::server_tls(&file, &file).map(Some);
    }
    if config.tls.certificate.is_empty() {
        return Ok(None);
    }
    let (certificate, key) = config.tls.files()?;
    tls::server_tls(certificate, key).map(Some)
}

/// The HTTP side: the API on one listener, operations on the other.
struct Web {
    http: SocketAddr,
    ops: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Web {
    fn start(
        config: &Config,
        engine: &Engine,
        app: AppNo,
        (gateway, metrics): (&Arc<Gateway>, &GatewayMetrics),
        store: &Arc<EmbeddedStore>,
    ) -> Result<Web, ServeError> {
        let changed = Arc::new(tokio::sync::Notify::new());
        let notify = changed.clone();
        store.watch_events().on_new(move |_| notify.notify_waiters());
        let door = Arc::new(Arc::downgrade(gateway));
        let tokens = gateway.tokens();
        let api =
            api::Api::new(engine.clone(), app, changed, config.api_limits(), (tokens, config.proofs()), door);
        let counts = Arc::downgrade(gateway);
        let connections = move || counts.upgrade().map_or((0, 0), |g| g.counts());
        let ops = api::health::Ops::new(engine.clone(), api.metrics.clone(), metrics.clone(), connections);
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let settings = config.http_settings();
        let mut tasks = Vec::new();
        let mut bind = |what, address, router, metrics| {
            let listener = listener::open(address, false);
            let listener = listener.map_err(|why| ServeError::Listen { what, address, why })?;
            let bound = listener.local_addr()?;
            let (settings, stopping) = (settings.clone(), stopping.clone());
            tasks.push(tokio::spawn(async move {
                if let Err(error) = http::serve(listener, router, settings, metrics, stopping).await {
                    tracing::error!(%error, what, "a listener ended");
                }
            }));
            Ok::<SocketAddr, ServeError>(bound)
        };
        let seen = api.metrics.http.clone();
        let http = bind("listen.http", config.listen.http, api::router(api), seen)?;
        let unseen = api::health::HttpMetrics::default();
        let ops = bind("listen.ops", config.listen.ops, api::health::router(ops), unseen)?;
        Ok(Web { http, ops, stop, tasks })
    }

    async fn stop(self) {
        _ = self.stop.send(true);
        for task in self.tasks {
            _ = tokio::time::timeout(Duration::from_secs(10), task).await;
        }
    }
}

async fn wait_for_stop(stop: &tokio::sync::Notify) {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.notified() => {}
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// The core's time, on a thread of its own.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Ticker {
    fn start(engine: Engine) -> io::Result<Ticker> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            let mut audited = std::time::Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                engine.tick();
                if audited.elapsed() >= AUDIT_EVERY {
                    audited = std::time::Instant::now();
                    report_gaps(&*engine.store);
                }
                std::thread::park_timeout(TICK);
            }
        };
        let thread = std::thread::Builder::new().name("time".into()).spawn(run)?;
        Ok(Ticker { stop, thread })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        _ = self.thread.join();
    }
}
