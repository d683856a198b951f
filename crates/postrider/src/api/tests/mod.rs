//! The API as its callers meet it, over the real engine and the memory store.

mod access;
mod acks;
mod androidpn;
mod apps_and_devices;
mod calls;
mod edges;
mod fields;
mod hostile;
mod hostile_h2;
mod jobs;
mod lists;
mod places;
mod proxied;
mod repeats;
mod serving;
mod tokens;
mod trail;
mod webhooks;
mod who;

use super::auth::Peer;
use super::{Api, ApiLimits, router};
use crate::gateway::{Door, Full, Place, Speaks};
use crate::proof::Proofs;
use crate::tokens::Tokens;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use postrider_core::Engine;
use postrider_core::access::Access;
use postrider_core::command::{Command, Outcome, Registration};
use postrider_core::id::*;
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::{Attach, Client, secret_hash};
use postrider_outbound::attempts::Policy;
use postrider_outbound::client::{self, Lookup, Times};
use postrider_outbound::guard::Rules;
use postrider_outbound::seal::Keys;
use postrider_outbound::webhooks::{Settings, Webhooks};
use postrider_store::MemoryStore;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

pub const ADMIN_KEY: &str = "test-admin-key";

/// Compares a generated file with the checked-in one; with `UPDATE=1` writes it.
pub fn same_as_checked_in(path: &str, text: &str) {
    let file = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        checked_in == text,
        "{path} is not what the code says; UPDATE=1 cargo test -p postrider rewrites it"
    );
}

/// Time that moves when a test says so.
#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> UnixMillis {
        self.0.load(Ordering::SeqCst)
    }
}

/// Nobody takes a socket.
struct NoDoor;

impl Door for NoDoor {
    fn reserve(&self, _: SocketAddr, _: bool) -> Result<Place, Full> {
        Ok(Place::of_nobody())
    }
    fn adopt(&self, _: std::net::TcpStream, _: Place, _: Speaks, _: bytes::Bytes) {}
    fn acknowledged(&self, _: ConnectionRef, _: Vec<u64>) {}
}

/// Connections that only remember how they end.
struct Watched(Arc<Mutex<Vec<Farewell>>>);

impl Connections for Watched {
    fn wake_anew(&self, _: &[ConnectionRef]) {}
    fn wake(&self, _: &[ConnectionRef]) {}
    fn deliver(&self, _: &Live, _: Vec<LiveTarget>) {}
    fn close(&self, _: ConnectionRef, why: Farewell) {
        self.0.lock().unwrap().push(why);
    }
}

/// Numbers that differ, and are the same in each run.
#[derive(Default)]
struct TestChance(Mutex<u128>);

impl Chance for TestChance {
    fn bits128(&self) -> u128 {
        let mut state = self.0.lock().unwrap();
        *state += 1;
        (*state).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }
}

/// Webhooks by the default settings; no name has an address here.
fn webhooks(engine: &Engine) -> Webhooks {
    let times = Times { connect: Duration::from_secs(5), answer: Duration::from_secs(5) };
    let lookup: Lookup = Arc::new(|_| Box::pin(async { Ok(Vec::new()) }));
    let tls = crate::dial::outbound_tls(None).unwrap();
    let client = client::Client::new(Arc::new(Rules::default()), tls, times, lookup);
    let settings = Settings { policy: Policy::default(), in_flight_max: 8 };
    let key = Arc::new(Keys::parse(&"5a".repeat(32)).unwrap());
    let show = crate::api::show_events(engine.store.clone());
    Webhooks::new(engine.clone(), client, settings, show, Arc::new(move |_| Ok(key.clone())))
}

/// A server without sockets: two apps, their keys, nothing else.
pub struct World {
    pub api: Api,
    pub router: Router,
    pub store: MemoryStore,
    /// How connections were ended.
    pub closed: Arc<Mutex<Vec<Farewell>>>,
    clock: Arc<TestClock>,
}

impl World {
    pub fn new() -> World {
        World::with(ApiLimits::default(), Limits::default())
    }

    /// With everything there that is off by default.
    pub fn with(api_limits: ApiLimits, limits: Limits) -> World {
        let api_limits = ApiLimits { demo: true, echo: true, xmpp: true, androidpn: true, ..api_limits };
        World::with_exactly(api_limits, limits)
    }

    pub fn with_exactly(api_limits: ApiLimits, limits: Limits) -> World {
        World::made(api_limits, limits, Access::default())
    }

    pub fn with_access(access: Access) -> World {
        let api_limits = ApiLimits { demo: true, ..ApiLimits::default() };
        World::made(api_limits, Limits::default(), access)
    }

    fn made(api_limits: ApiLimits, limits: Limits, access: Access) -> World {
        let store = MemoryStore::new();
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000)));
        let port: Arc<dyn Store> = Arc::new(store.clone());
        let engine = Engine::new(port, limits, access, clock.clone(), Arc::new(TestChance::default()));
        let closed: Arc<Mutex<Vec<Farewell>>> = Arc::default();
        engine.attach_connections(Arc::new(Watched(closed.clone())));
        let changed = Arc::new(crate::api::EventsChanged::default());
        let notify = changed.clone();
        store.watch_events().on_new(move |_, apps| notify.tell(apps));
        let webhooks = webhooks(&engine);
        let told = webhooks.clone();
        store.watch_events().on_new(move |position, apps| told.told(position, apps));
        let tokens = Arc::new(Tokens::new(Some(tokens::issuer(None)), &TestChance::default()));
        let api = Api::new(
            engine,
            AppNo(0),
            changed,
            api_limits,
            (tokens, Proofs { are_kept: false }),
            (Arc::new(NoDoor), webhooks),
        );
        let world = World { router: router(api.clone()), api, store, closed, clock };
        for app in ["default", "other"] {
            let outcome =
                world.submit(Command::CreateApp { id: app.into(), name: app.into(), at: world.clock.now() });
            let Outcome::AppCreated(no) = outcome else { panic!("{outcome:?}") };
            for (scope, name) in [
                (KeyScope::App, "app"),
                (KeyScope::Send, "send"),
                (KeyScope::Read, "read"),
                (KeyScope::Register, "register"),
            ] {
                world.add_key(Some(no), &format!("{app}-{name}-key"), scope);
            }
        }
        world.add_key(None, ADMIN_KEY, KeyScope::Admin);
        world
    }

    fn submit(&self, command: Command) -> Outcome {
        let (tell, told) = std::sync::mpsc::channel();
        let done: Done = Box::new(move |outcomes| tell.send(outcomes).unwrap());
        self.api.engine.store.submit(vec![command], done);
        told.recv().unwrap().unwrap().remove(0)
    }

    fn add_key(&self, app: Option<AppNo>, key: &str, scope: KeyScope) {
        let stored = StoredKey {
            id: format!("id-of-{key}"),
            name: String::new(),
            scope,
            hash: secret_hash(key.as_bytes()),
            created_at: self.clock.now(),
            revoked_at: None,
        };
        assert_eq!(self.submit(Command::AddKey { app, key: stored, keys_max: 0 }), Outcome::Done);
    }

    pub fn advance(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// One request through the router.
    pub async fn request(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
        let mut request = request;
        if request.extensions().get::<Peer>().is_none() {
            request.extensions_mut().insert(Peer(([192, 0, 2, 1], 1234).into()));
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (parts.status, parts.headers, value)
    }

    /// `line` is method and path, `by` the bearer token.
    pub async fn call(&self, by: &str, line: &str, body: Value) -> (u16, Value) {
        self.call_with(by, line, body, &[]).await
    }

    pub async fn call_with(
        &self,
        by: &str,
        line: &str,
        body: Value,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        if !by.is_empty() {
            request = request.header("authorization", format!("Bearer {by}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
        };
        let (status, _, value) = self.request(request.body(body).unwrap()).await;
        (status.as_u16(), value)
    }

    /// As the app's server; the answer must have this status.
    pub async fn ok(&self, status: u16, line: &str, body: Value) -> Value {
        let (got, value) = self.call("default-app-key", line, body).await;
        assert_eq!(got, status, "{line}: {value}");
        value
    }

    /// Registers a device; gives what it signs in with.
    pub async fn device(&self, id: &str) -> String {
        let made = self.ok(201, "POST /v1/devices", json!({ "device_id": id, "platform": "android" })).await;
        format!("{id}:{}", made["device_secret"].as_str().unwrap())
    }

    /// A JWT of the app's server with these claims, good for ten minutes.
    pub fn jwt(&self, mut claims: Value) -> String {
        let now = self.clock.now() / 1_000;
        claims["exp"] = json!(now + 600);
        tokens::signed(jsonwebtoken::Algorithm::HS256, tokens::SECRET, &claims)
    }

    /// Sends to one device; gives the message's id.
    pub async fn message_to(&self, device: &str) -> String {
        let message = json!({ "audience": { "device": device }, "data": 1 });
        let sent = self.ok(202, "POST /v1/messages", message).await;
        sent["message_id"].as_str().unwrap().to_owned()
    }

    /// Connects a device as a gateway does.
    pub fn connect(&self, id: &str) -> u32 {
        let engine = &self.api.engine;
        let device = engine.store.device_by_id(AppNo(0), id).map(|at| at.device);
        let attach = Attach {
            client: Client { app: AppNo(0), id: id.into(), device },
            connection: ConnectionRef { shard: 0, slot: 1, generation: 1 },
            clean: false,
            expiry_secs: 3600,
            will: None,
            takes_pushes: false,
            hears_peers: false,
        };
        engine.connect(attach).ok().unwrap().session
    }
}

/// The code of a refusal.
pub fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("none")
}
