//! Workers over the memory store, with receivers over real sockets. Waits are shortened; nothing
//! here depends on how fast anything is.

use super::*;
use crate::client::{Times, system_lookup};
use crate::guard::Rules;
use crate::seal::key_line;
use postrider_core::access::Access;
use postrider_core::command::{Command, NewMessage, Registration};
use postrider_core::id::MessageId;
use postrider_core::limits::Limits;
use postrider_core::model::{Backlog, Content, Priority, Profile, Step, Target, Targets};
use postrider_core::port::{Chance, Clock, Store};
use postrider_core::webhooks::{PutWebhook, WebhookSettings, WebhookStop};
use postrider_store::MemoryStore;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: [u8; 24] = [7; 24];

struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> UnixMillis {
        1_700_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

struct Counter(AtomicU64);

impl Chance for Counter {
    fn bits128(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c)
    }
}

/// One request, as a receiver saw it.
#[derive(Clone, Debug)]
struct Seen {
    id: String,
    signatures: String,
    timestamp: u64,
    body: Vec<u8>,
}

impl Seen {
    fn events(&self) -> Vec<Value> {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["type"], "delivery.events");
        body["data"]["events"].as_array().unwrap().clone()
    }

    fn positions(&self) -> Vec<u64> {
        self.events().iter().map(|event| event["position"].as_u64().unwrap()).collect()
    }
}

/// A receiver that answers each request as it is told: with a status, or by closing (0). When it
/// was told nothing more, it takes everything.
struct Receiver {
    url: String,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Receiver {
    async fn answering(script: Vec<u16>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/in", listener.local_addr().unwrap());
        let (tell, seen) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(script.into_iter()));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, tell.clone(), script.clone()));
            }
        });
        Receiver { url, seen }
    }

    async fn next(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("a request").unwrap()
    }

    /// Requests until so many different events came; they are in order.
    async fn until(&mut self, events: usize) -> (Vec<Seen>, Vec<u64>) {
        let (mut requests, mut positions) = (Vec::new(), Vec::new());
        while positions.len() < events {
            let seen = self.next().await;
            positions.extend(seen.positions());
            positions.dedup();
            requests.push(seen);
            positions.sort_unstable();
            positions.dedup();
        }
        (requests, positions)
    }
}

async fn serve(
    mut socket: tokio::net::TcpStream,
    tell: mpsc::UnboundedSender<Seen>,
    script: Arc<Mutex<std::vec::IntoIter<u16>>>,
) {
    let mut bytes = Vec::new();
    loop {
        let Some(seen) = read_request(&mut socket, &mut bytes).await else { return };
        let status = lock(&script).next().unwrap_or(200);
        if status == 0 {
            return;
        }
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        _ = tell.send(seen);
    }
}

async fn read_request(socket: &mut tokio::net::TcpStream, bytes: &mut Vec<u8>) -> Option<Seen> {
    let mut part = vec![0; 16 * 1024];
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
            let original = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let field = |name: &str| {
                let at = head.find(&format!("\r\n{name}: ")).unwrap() + name.len() + 4;
                original[at..].split("\r\n").next().unwrap().to_owned()
            };
            let len: usize = field("content-length").parse().unwrap();
            if bytes.len() >= end + 4 + len {
                let body = bytes[end + 4..end + 4 + len].to_vec();
                bytes.drain(..end + 4 + len);
                return Some(Seen {
                    id: field("webhook-id"),
                    signatures: field("webhook-signature"),
                    timestamp: field("webhook-timestamp").parse().unwrap(),
                    body,
                });
            }
        }
        match socket.read(&mut part).await {
            Ok(len @ 1..) => bytes.extend_from_slice(&part[..len]),
            _ => return None,
        }
    }
}

/// A store with two apps, and a server's webhooks over it.
struct World {
    store: MemoryStore,
    engine: Engine,
    webhooks: Webhooks,
    stop: watch::Sender<bool>,
    running: JoinHandle<Result<(), String>>,
    messages: u64,
}

impl World {
    fn new() -> World {
        let store = MemoryStore::new();
        let world = World::over(store, 1);
        for app in ["one", "two"] {
            world.submit(Command::CreateApp { id: app.into(), name: String::new(), at: 1 });
        }
        for app in [AppNo(0), AppNo(1)] {
            world.submit(Command::Register(Box::new(Registration {
                app,
                id: "phone".into(),
                secret_hash: Some([1; 32]),
                profile: Profile::default(),
                now: 1,
                idempotency: None,
                quota: None,
                origin: None,
            })));
        }
        world
    }

    /// A start of a server on this store, with that key for secrets.
    fn over(store: MemoryStore, key: u8) -> World {
        let clock = Arc::new(RealClock(Instant::now()));
        let chance = Arc::new(Counter(AtomicU64::new(u64::from(key))));
        let port = Arc::new(store.clone());
        let engine = Engine::new(port, Limits::default(), Access::default(), clock, chance);
        let is_allowed = |ip: std::net::IpAddr| ip.is_loopback();
        let rules = Rules { allow_http: true, ports: Vec::new(), is_allowed: Arc::new(is_allowed) };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let times = Times { connect: PATIENCE, answer: PATIENCE };
        let client = Client::new(Arc::new(rules), Arc::new(tls), times, system_lookup());
        let policy = Policy { wait_max_ms: 10, ..Policy::default() };
        let keys = Arc::new(Keys::parse(&key_line(&[key; 32])).unwrap());
        let show: Show = Arc::new(|_, events| {
            let row = |event: ReceiptEvent| json!({ "position": event.position, "step": event.step.name() });
            events.into_iter().map(row).collect()
        });
        let settings = Settings { policy, in_flight_max: 4 };
        let webhooks =
            Webhooks::new(engine.clone(), client, settings, show, Arc::new(move |_| Ok(keys.clone())));
        let told = webhooks.clone();
        store.watch_events().on_new(move |position, apps| told.told(position, apps));
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(webhooks.clone().run(stopping));
        World { store, engine, webhooks, stop, running, messages: 0 }
    }

    fn submit(&self, command: Command) {
        let (tell, told) = std::sync::mpsc::channel();
        self.engine.store.submit(vec![command], Box::new(move |outcomes| tell.send(outcomes).unwrap()));
        let outcome = told.recv().unwrap().unwrap().remove(0);
        assert!(!matches!(outcome, postrider_core::command::Outcome::Refused(_)), "{outcome:?}");
    }

    fn put(&self, app: AppNo, id: &str, url: &str, settings: WebhookSettings, enabled: bool) {
        let old = self.store_webhook(app, id);
        let secret = self.webhooks.seal(app, id, &Secret::of_bytes(&SECRET).unwrap()).unwrap();
        let put = PutWebhook {
            app,
            id: id.into(),
            seen: old.map_or(0, |old| old.version),
            settings: WebhookSettings { url: url.into(), ..settings },
            secrets: vec![secret],
            enabled,
            webhooks_max: 9,
            now: self.engine.clock.now(),
        };
        self.submit(Command::PutWebhook(Box::new(put)));
        self.webhooks.changed(app, id);
    }

    fn store_webhook(&self, app: AppNo, id: &str) -> Option<Webhook> {
        self.engine.store.webhook(app, id)
    }

    /// A message to the app's device: some receipts.
    fn message(&mut self, app: AppNo) {
        self.messages += 1;
        let target = Target {
            device: postrider_core::id::DeviceNo(0),
            qos: 1,
            retain: false,
            subscription_ids: Vec::new(),
        };
        self.submit(Command::Accept(Box::new(NewMessage {
            app,
            id: MessageId::new(self.messages, u128::from(self.messages)),
            targets: Targets::Direct(vec![target]),
            accepted_at: self.engine.clock.now(),
            expires_at: u64::MAX / 2,
            priority: Priority::Normal,
            collapse_key: None,
            backlog: Backlog::All,
            idempotency: None,
            tracked: true,
            push: true,
            reject_when_full: false,
            inbox_max: 1_000_000,
            inbox_bytes_max: u32::MAX,
            peer_inbox_max: 0,
            room: None,
            submission: None,
            content: Some(Arc::new(Content::default())),
        })));
    }

    /// The server ends at once, whatever is under way.
    async fn kill(self) -> MemoryStore {
        self.running.abort();
        _ = self.running.await;
        self.store
    }

    /// Waits until something holds of a webhook.
    async fn eventually(&self, app: AppNo, id: &str, holds: impl Fn(&Webhook) -> bool) -> Webhook {
        let looking = async {
            loop {
                if let Some(webhook) = self.store_webhook(app, id).filter(&holds) {
                    return webhook;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("it comes to hold")
    }
}

/// Waits until it holds. What a worker knows beside the store it notes after what it stored.
async fn until(words: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.expect(words);
}

fn batches_of(batch_max: u32) -> WebhookSettings {
    WebhookSettings { batch_max, ..WebhookSettings::default() }
}

const ONE: AppNo = AppNo(0);
const TWO: AppNo = AppNo(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_away_misses_nothing_and_gets_nothing_twice_under_two_ids() {
    let mut world = World::new();
    let script = vec![503, 0, 500, 301, 0, 200, 429, 0, 0, 200, 404];
    let mut receiver = Receiver::answering(script).await;
    world.put(ONE, "w", &receiver.url, batches_of(3), true);
    for _ in 0..20 {
        world.message(ONE);
        world.message(TWO);
    }
    let rows = world.store.events(ONE, 0, 1_000).unwrap().events;
    let wanted: Vec<u64> = rows.iter().map(|row| row.position).collect();
    let (requests, positions) = receiver.until(wanted.len()).await;
    assert_eq!(positions, wanted);
    let mut ids: HashMap<u64, String> = HashMap::new();
    let mut newest = 0;
    for request in &requests {
        for position in request.positions() {
            let id = ids.entry(position).or_insert_with(|| request.id.clone());
            assert_eq!(*id, request.id, "receipt {position} came under two ids");
        }
        let first = request.positions()[0];
        assert!(first >= newest, "receipt {first} came after {newest}");
        newest = first;
        let mine =
            signatures(&[Secret::of_bytes(&SECRET).unwrap()], &request.id, request.timestamp, &request.body);
        assert_eq!(request.signatures, mine);
    }
    let webhook = world.eventually(ONE, "w", |webhook| webhook.progress.sending.is_none()).await;
    assert_eq!(webhook.progress.delivered, wanted.len() as u64);
    let said: BTreeSet<&str> = webhook.failures.iter().map(|failure| failure.what.as_str()).collect();
    assert!(said.contains("status_5xx") && said.contains("broken"), "{said:?}");
    until("nothing waits", || world.webhooks.status(ONE, "w").waiting_since.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_with_the_same_requests() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(vec![500; 50]).await;
    world.put(ONE, "w", &receiver.url, batches_of(2), true);
    (0..5).for_each(|_| world.message(ONE));
    let before = receiver.next().await;
    let wanted = world.store.events(ONE, 0, 1_000).unwrap().events.len();
    let store = world.kill().await;
    let world = World::over(store, 1);
    let (requests, positions) = receiver.until(wanted).await;
    assert_eq!(positions.len(), wanted);
    assert_eq!((&requests[0].id, requests[0].positions()), (&before.id, before.positions()));
    assert_eq!(requests[0].body, before.body);
    drop(world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_never_answers_holds_up_no_other() {
    let mut world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/", silent.local_addr().unwrap());
    let mut receiver = Receiver::answering(Vec::new()).await;
    for id in ["silent-1", "silent-2"] {
        world.put(ONE, id, &silent_url, batches_of(1), true);
    }
    world.put(ONE, "w", &receiver.url, batches_of(10), true);
    world.put(TWO, "w", &receiver.url, batches_of(10), true);
    for _ in 0..5 {
        world.message(ONE);
        world.message(TWO);
    }
    let all = [ONE, TWO].map(|app| world.store.events(app, 0, 1_000).unwrap().events.len());
    let (_, positions) = receiver.until(all.iter().sum()).await;
    assert_eq!(positions.len(), all.iter().sum::<usize>());
    let waits = || world.webhooks.status(ONE, "silent-1").waiting_since.is_some();
    until("the silent one is known to wait", waits).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_gets_the_steps_that_it_wants() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(Vec::new()).await;
    let steps = vec![Step::Cancelled];
    let settings = WebhookSettings { steps, batch_max: 5, ..WebhookSettings::default() };
    world.put(ONE, "w", &receiver.url, settings, true);
    world.message(ONE);
    let cancel = Command::Cancel { app: ONE, message: MessageId::new(1, 1), now: world.engine.clock.now() };
    world.submit(cancel);
    let events = receiver.next().await.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["step"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gone_stops_a_webhook_until_its_owner_switches_it_on() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(vec![410]).await;
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    world.message(ONE);
    let first = receiver.next().await;
    let stopped = world.eventually(ONE, "w", |webhook| webhook.stopped.is_some()).await;
    assert_eq!((stopped.stopped, stopped.failures[0].what.as_str()), (Some(WebhookStop::Gone), "gone"));
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    assert_eq!(receiver.next().await.id, first.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_switched_off_keeps_its_events_for_later() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(Vec::new()).await;
    world.put(ONE, "w", &receiver.url, batches_of(100), false);
    world.message(ONE);
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    assert_eq!(receiver.next().await.positions()[0], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_sends_again_from_where_it_is_told() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(Vec::new()).await;
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    (0..3).for_each(|_| world.message(ONE));
    let wanted = world.store.events(ONE, 0, 1_000).unwrap().events.len();
    receiver.until(wanted).await;
    world.eventually(ONE, "w", |webhook| webhook.progress.sending.is_none()).await;
    world.submit(Command::ReplayWebhook { app: ONE, id: "w".into(), position: 1 });
    world.webhooks.changed(ONE, "w");
    let (_, positions) = receiver.until(wanted - 1).await;
    assert_eq!(positions[0], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_does_not_open_parks_its_webhook_and_a_new_one_lets_it_go_on() {
    let mut receiver = Receiver::answering(Vec::new()).await;
    let mut world = World::new();
    let parked = "http://127.0.0.1:9/";
    world.put(ONE, "w", parked, batches_of(100), false);
    let store = world.kill().await;
    world = World::over(store, 2);
    let mut put = world.store_webhook(ONE, "w").unwrap();
    put.settings.url.clone_from(&receiver.url);
    // Switched on without another secret: it is the one of the other key.
    world.submit(Command::PutWebhook(Box::new(PutWebhook {
        app: ONE,
        id: "w".into(),
        seen: put.version,
        settings: put.settings,
        secrets: put.secrets,
        enabled: true,
        webhooks_max: 9,
        now: 5,
    })));
    world.webhooks.changed(ONE, "w");
    world.message(ONE);
    until("it is parked", || world.webhooks.status(ONE, "w").is_parked).await;
    let url = receiver.url.clone();
    world.put(ONE, "w", &url, batches_of(100), true);
    assert_eq!(receiver.next().await.positions()[0], 1);
    until("it goes on", || !world.webhooks.status(ONE, "w").is_parked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_webhook_sends_nothing_and_one_that_comes_back_begins_anew() {
    let mut world = World::new();
    let mut receiver = Receiver::answering(Vec::new()).await;
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    world.submit(Command::DropWebhook { app: ONE, id: "w".into() });
    world.webhooks.changed(ONE, "w");
    world.message(ONE);
    let before = world.store.last_receipt();
    world.put(ONE, "w", &receiver.url, batches_of(100), true);
    world.message(ONE);
    assert!(receiver.next().await.positions()[0] > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_tested_once_at_a_time_and_stopping_is_quick() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.put(ONE, "w", &format!("http://{}/", silent.local_addr().unwrap()), batches_of(1), false);
    let webhook = world.store_webhook(ONE, "w").unwrap();
    let (webhooks, of) = (world.webhooks.clone(), webhook.clone());
    let first = tokio::spawn(async move { webhooks.test(ONE, &of).await });
    let _socket = silent.accept().await.unwrap();
    assert!(world.webhooks.test(ONE, &webhook).await.is_none());
    first.abort();
    _ = first.await;
    assert!(lock(&world.webhooks.0.testing).is_empty());
    world.stop.send(true).unwrap();
    assert_eq!(timeout(PATIENCE, world.running).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_for_a_webhook_is_a_job_that_shows_what_hinders_it() {
    let mut world = World::new();
    let mut failing = Receiver::answering(vec![500; 10_000]).await;
    world.put(ONE, "w", &failing.url, batches_of(3), true);
    world.message(ONE);
    for _ in 0..3 {
        failing.next().await;
    }
    let webhook = world.eventually(ONE, "w", |webhook| webhook.progress.attempts >= 2).await;
    let name = webhook.job(ONE);
    let job = world.engine.store.job_named(&name).unwrap();
    assert!(job.failures >= 2, "{job:?}");
    assert_eq!(job.last_error.as_deref(), Some("status_5xx"));
    // Another receiver: it is tried at once, and the job goes on from the same place.
    let mut taking = Receiver::answering(Vec::new()).await;
    world.put(ONE, "w", &taking.url, batches_of(3), true);
    taking.next().await;
    let done = |webhook: &Webhook| webhook.progress.delivered > 0 && webhook.progress.sending.is_none();
    let webhook = world.eventually(ONE, "w", done).await;
    let after = world.engine.store.job_named(&name).unwrap();
    assert_eq!((after.no, after.failures, after.cursor), (job.no, 0, webhook.progress.position));
    world.submit(Command::DropWebhook { app: ONE, id: "w".into() });
    assert_eq!(world.engine.store.job(job.no), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_with_nothing_to_send_leaves_no_job_that_is_due() {
    let world = World::new();
    let receiver = Receiver::answering(Vec::new()).await;
    world.put(ONE, "w", &receiver.url, batches_of(3), true);
    let webhook = world.store_webhook(ONE, "w").unwrap();
    let resting = JobState::Waiting { until: UnixMillis::MAX };
    let rests = || world.engine.store.job_named(&webhook.job(ONE)).unwrap().state == resting;
    until("the job rests", rests).await;
}
