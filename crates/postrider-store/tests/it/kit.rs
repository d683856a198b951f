//! What the tests share: commands in one line each, a store on a disk that misbehaves, and a ledger of what was promised.

use postrider_core::command::*;
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedConfig, EmbeddedStore, OpenError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const APP: AppNo = AppNo(0);
pub const DIR: &str = "/data";
/// The time at which most things happen in tests.
pub const NOW: UnixMillis = 1_700_000_000_000;
pub const LATER: UnixMillis = NOW + 3_600_000;

/// A clock that moves when a test says so: milliseconds since [`NOW`].
#[derive(Default)]
pub struct HandClock(pub AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> UnixMillis {
        NOW + self.0.load(Ordering::SeqCst)
    }
}

/// Numbers that differ, and are the same in each run.
pub struct Counting(pub AtomicU64);

impl Chance for Counting {
    fn bits128(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::SeqCst)) << 64 | 7
    }
}

pub fn device(no: u32) -> DeviceRef {
    DeviceRef { app: APP, device: DeviceNo(no) }
}

pub fn id(n: u64) -> MessageId {
    MessageId::new(NOW, u128::from(n))
}

/// Submits and waits.
pub fn run(store: &dyn Store, commands: Vec<Command>) -> Result<Vec<Outcome>, StoreError> {
    let (tell, told) = std::sync::mpsc::channel();
    store.submit(commands, Box::new(move |result| drop(tell.send(result))));
    told.recv_timeout(Duration::from_secs(60)).expect("a batch is told")
}

pub fn run_one(store: &dyn Store, command: Command) -> Outcome {
    run(store, vec![command]).unwrap().remove(0)
}

pub fn create_app() -> Command {
    Command::CreateApp { id: "app".into(), name: "App".into(), at: NOW }
}

pub fn register(name: &str) -> Command {
    Command::Register(Box::new(Registration {
        origin: None,
        quota: None,
        app: APP,
        id: name.into(),
        secret_hash: Some([7; 32]),
        profile: Profile::default(),
        now: NOW,
        idempotency: None,
    }))
}

/// A push to some devices, with a content that tells its number.
pub fn message(n: u64, devices: &[u32]) -> NewMessage {
    let targets = devices
        .iter()
        .map(|no| Target { device: DeviceNo(*no), qos: 1, retain: false, subscription_ids: Vec::new() })
        .collect();
    NewMessage {
        app: APP,
        id: id(n),
        targets: Targets::Direct(targets),
        accepted_at: NOW,
        expires_at: LATER,
        priority: Priority::Normal,
        collapse_key: None,
        backlog: Backlog::All,
        idempotency: None,
        tracked: true,
        push: true,
        reject_when_full: false,
        inbox_max: 1000,
        inbox_bytes_max: 4 << 20,
        peer_inbox_max: 0,
        room: None,
        submission: None,
        content: Some(content(n)),
    }
}

pub fn content(n: u64) -> Arc<Content> {
    let payload = format!("message {n} ").repeat(1 + (n % 7) as usize * 3);
    Arc::new(Content { topic: None, payload: payload.into(), properties: None })
}

pub fn accept(n: u64, devices: &[u32]) -> Command {
    Command::Accept(Box::new(message(n, devices)))
}

pub fn delivered(device: u32, seq: Seq) -> Command {
    step(device, Which::Seq(seq), Step::Delivered)
}

pub fn step(device: u32, which: Which, step: Step) -> Command {
    let device = DeviceNo(device);
    let steps = vec![Progress { device, which, step, reason: Reason::None, sent_at: None }];
    Command::Progress { app: APP, steps, now: NOW + 1 }
}

pub fn expire(now: UnixMillis) -> Command {
    Command::Expire { now, limit: 1000, history_before: 0, history_max: u32::MAX }
}

pub fn acceptance(outcome: &Outcome) -> &Acceptance {
    match outcome {
        Outcome::Accepted(acceptance) => acceptance,
        other => panic!("{other:?}"),
    }
}

/// An app with devices 0, 1, … `count - 1`.
pub fn populate(store: &dyn Store, count: u32) {
    let mut commands = vec![create_app()];
    commands.extend((0..count).map(|no| register(&format!("device-{no}"))));
    run(store, commands).unwrap();
}

/// The same after a crash that may have left a part of it: a batch is not one transaction, each command is.
pub fn populate_rest(store: &dyn Store, count: u32) {
    if store.app(APP).is_none() {
        run_one(store, create_app());
    }
    for no in 0..count {
        if store.device(device(no)).is_none() {
            run_one(store, register(&format!("device-{no}")));
        }
    }
}

pub fn inbox(store: &dyn Store, no: u32) -> Vec<Pending> {
    store.pending(device(no), Position::default(), 10_000, NOW)
}

/// Books that do not balance are the end of every test.
pub fn assert_balanced(store: &dyn Store) {
    for (app, audit) in store.audit().apps {
        assert_eq!(audit.gap(), 0, "{app:?} {audit:?}");
    }
}

/// Small bounds, so that a few messages make segments, checkpoints and full queues.
pub fn small(dir: impl Into<PathBuf>) -> EmbeddedConfig {
    EmbeddedConfig {
        segment_bytes: 4 * 1024,
        checkpoint_bytes: u64::MAX,
        close_checkpoint_bytes: 0,
        events_segment_bytes: 2 * 1024,
        min_free_bytes: 0,
        min_free_percent: 0,
        reserve_bytes: 0,
        ..EmbeddedConfig::new(dir)
    }
}

pub fn open(files: &FaultyFiles) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(small(DIR), Arc::new(files.clone()))
}

pub fn data(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// What a store has promised: to be held against it after a fault.
#[derive(Clone, Default)]
pub struct Promises {
    /// Acknowledged as accepted: message to (number, devices).
    pub accepted: BTreeMap<u64, (Seq, Vec<u32>)>,
    /// Submitted, whatever was answered.
    pub tried: BTreeMap<u64, Vec<u32>>,
    /// Acknowledged as delivered; and those whose answer never came.
    pub ended: Vec<(u64, u32)>,
    pub ending: Vec<(u64, u32)>,
}

impl Promises {
    /// Accepts a message; the error, if there was one.
    pub fn accept(&mut self, store: &dyn Store, n: u64, devices: &[u32]) -> Result<(), StoreError> {
        self.tried.insert(n, devices.to_vec());
        let outcomes = run(store, vec![accept(n, devices)])?;
        self.accepted.insert(n, (acceptance(&outcomes[0]).seq, devices.to_vec()));
        Ok(())
    }

    /// Accepts several messages, for one device, in one batch.
    pub fn accept_many(
        &mut self,
        store: &dyn Store,
        numbers: std::ops::Range<u64>,
        device: u32,
    ) -> Result<(), StoreError> {
        self.tried.extend(numbers.clone().map(|n| (n, vec![device])));
        let outcomes = run(store, numbers.clone().map(|n| accept(n, &[device])).collect())?;
        for (n, outcome) in numbers.zip(&outcomes) {
            self.accepted.insert(n, (acceptance(outcome).seq, vec![device]));
        }
        Ok(())
    }

    /// Reports the oldest open delivery of a device as delivered.
    pub fn acknowledge(&mut self, store: &dyn Store, device: u32) -> Result<(), StoreError> {
        let open = self.accepted.iter().find(|(n, (_, devices))| {
            devices.contains(&device)
                && !self.ended.contains(&(**n, device))
                && !self.ending.contains(&(**n, device))
        });
        let Some((n, (seq, _))) = open else { return Ok(()) };
        let (n, seq) = (*n, *seq);
        self.ending.push((n, device));
        run(store, vec![delivered(device, seq)])?;
        self.ending.retain(|end| *end != (n, device));
        self.ended.push((n, device));
        Ok(())
    }

    /// Everything promised is there, nothing that was never submitted is, and every content is what it was.
    pub fn assert_kept(&self, store: &dyn Store, devices: u32) {
        assert_balanced(store);
        for no in 0..devices {
            let open: BTreeMap<MessageId, Pending> =
                inbox(store, no).into_iter().filter_map(|p| Some((p.id?, p))).collect();
            for (n, (seq, targets)) in self.accepted.iter().filter(|(_, (_, t))| t.contains(&no)) {
                let _ = targets;
                let end = (*n, no);
                match open.get(&id(*n)) {
                    Some(_) if self.ended.contains(&end) => {
                        panic!("message {n} was delivered to {no} and is back")
                    }
                    Some(pending) => assert_eq!(pending.seq, *seq),
                    None if self.ended.contains(&end) || self.ending.contains(&end) => {}
                    None => panic!("message {n} for {no} is lost"),
                }
            }
            for (message, pending) in open {
                let n = self.tried.keys().find(|n| id(**n) == message);
                let n = *n.unwrap_or_else(|| panic!("{message:?} was never sent"));
                assert_eq!(store.content(pending.blob).unwrap().payload, content(n).payload);
            }
        }
    }
}

/// SplitMix64, for tests that want chance with a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
