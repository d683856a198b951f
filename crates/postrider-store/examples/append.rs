//! Measures the embedded store on a real disk: durable commands per second, recovery, bytes on disk.
//!
//! `cargo run --release -p postrider-store --example append -- [DIR] [OPEN_DELIVERIES]`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use postrider_core::command::*;
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::{EmbeddedConfig, EmbeddedStore, OsFiles};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const APP: AppNo = AppNo(0);
const DEVICES: u32 = 100_000;
const BATCH: usize = 100;
const NOW: UnixMillis = 1_700_000_000_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("postrider-append"), PathBuf::from);
    let deliveries: u64 = args.next().map_or(1_000_000, |text| text.parse().unwrap());
    for callers in [1, 8, 64] {
        let _ = std::fs::remove_dir_all(&dir);
        let store = open(&dir);
        populate(&store);
        rate(&store, callers, Duration::from_secs(5));
    }
    let _ = std::fs::remove_dir_all(&dir);
    recovery(&dir, deliveries);
    let _ = std::fs::remove_dir_all(&dir);
}

fn open(dir: &Path) -> EmbeddedStore {
    let config = EmbeddedConfig { min_free_percent: 1, ..EmbeddedConfig::new(dir) };
    EmbeddedStore::open(config, Arc::new(OsFiles)).unwrap()
}

fn run(store: &EmbeddedStore, commands: Vec<Command>) -> Vec<Outcome> {
    let (tell, told) = std::sync::mpsc::channel();
    store.submit(commands, Box::new(move |result| tell.send(result).unwrap()));
    told.recv().unwrap().unwrap()
}

fn populate(store: &EmbeddedStore) {
    run(store, vec![Command::CreateApp { id: "a".into(), name: "a".into(), at: NOW }]);
    for chunk in (0..DEVICES).collect::<Vec<_>>().chunks(1000) {
        let register = |no: &u32| {
            Command::Register(Box::new(Registration {
                origin: None,
                quota: None,
                app: APP,
                id: format!("device-{no}"),
                secret_hash: Some([0; 32]),
                profile: Profile::default(),
                now: NOW,
                idempotency: None,
            }))
        };
        run(store, chunk.iter().map(register).collect());
    }
}

fn accept(n: u64) -> Command {
    let device = DeviceNo((n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % DEVICES);
    let content = Content { topic: None, payload: vec![n as u8; 256].into(), properties: None };
    Command::Accept(Box::new(NewMessage {
        app: APP,
        id: MessageId::new(NOW, u128::from(n)),
        targets: Targets::Direct(vec![Target {
            device,
            qos: 1,
            retain: false,
            subscription_ids: Vec::new(),
        }]),
        accepted_at: NOW,
        expires_at: NOW + 86_400_000,
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
        content: Some(Arc::new(content)),
    }))
}

/// Each caller has one batch under way at a time.
fn rate(store: &EmbeddedStore, callers: usize, time: Duration) {
    let next = AtomicU64::new(0);
    let before = store.stats();
    let began = Instant::now();
    let mut waits: Vec<u64> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers)
            .map(|_| {
                scope.spawn(|| {
                    let mut waits = Vec::new();
                    while began.elapsed() < time {
                        let from = next.fetch_add(BATCH as u64, Ordering::Relaxed);
                        let asked = Instant::now();
                        run(store, (from..from + BATCH as u64).map(accept).collect());
                        waits.push(asked.elapsed().as_micros() as u64);
                    }
                    waits
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let secs = began.elapsed().as_secs_f64();
    let stats = store.stats();
    waits.sort_unstable();
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize] as f64 / 1000.0;
    let commits = (stats.commits - before.commits).max(1);
    let commands = stats.commands - before.commands;
    println!(
        "{callers:>3} callers: {:>8.0} accepts/s  wait p50 {:.1} p99 {:.1} max {:.1} ms  {} a commit  \
         sync {:.2} of {:.2} ms  {:.0} bytes each  {} checkpoints",
        commands as f64 / secs,
        at(0.5),
        at(0.99),
        at(0.9999),
        commands / commits,
        (stats.sync_micros_total - before.sync_micros_total) as f64 / commits as f64 / 1000.0,
        (stats.commit_micros_total - before.commit_micros_total) as f64 / commits as f64 / 1000.0,
        (stats.bytes_written - before.bytes_written) as f64 / commands as f64,
        stats.checkpoints,
    );
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0) / 1024
}

fn recovery(dir: &Path, deliveries: u64) {
    let config = EmbeddedConfig {
        checkpoint_bytes: u64::MAX,
        close_checkpoint_bytes: 0,
        min_free_percent: 1,
        ..EmbeddedConfig::new(dir)
    };
    let open = || EmbeddedStore::open(config.clone(), Arc::new(OsFiles)).unwrap();
    let store = open();
    populate(&store);
    let empty = store.stats().disk_bytes;
    for from in (0..deliveries).step_by(4000) {
        run(&store, (from..deliveries.min(from + 4000)).map(accept).collect());
    }
    let used = store.stats().disk_bytes - empty;
    println!(
        "{deliveries} open deliveries: {:.0} bytes on disk each, {} MiB resident",
        used as f64 / deliveries as f64,
        rss()
    );
    drop(store);
    let timed = |what: &str| {
        let began = Instant::now();
        let store = open();
        println!(
            "recovery {what}: {:.2} s, {} open",
            began.elapsed().as_secs_f64(),
            store.stats().open_deliveries
        );
        store
    };
    let store = timed("from the journal");
    let began = Instant::now();
    store.checkpoint_now().unwrap();
    println!("checkpoint in the background: {:.2} s, {} MiB resident", began.elapsed().as_secs_f64(), rss());
    // How long a caller waits while the next one is made.
    run(&store, (deliveries..deliveries + 4000).map(accept).collect());
    std::thread::scope(|scope| {
        let making = scope.spawn(|| store.checkpoint_now().unwrap());
        let (mut worst, mut n) = (Duration::ZERO, deliveries + 10_000);
        while !making.is_finished() {
            let asked = Instant::now();
            run(&store, vec![accept(n)]);
            (worst, n) = (worst.max(asked.elapsed()), n + 1);
        }
        println!("longest wait for a commit meanwhile: {worst:?}");
    });
    println!("on disk with two checkpoints: {} MiB", store.stats().disk_bytes >> 20);
    drop(store);
    drop(timed("from the checkpoint"));
}
