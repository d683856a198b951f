//! `bench push`: the way of a push measured from end to end, over the same API and the same protocol that others use.
//!
//! Publishers post messages at a rate, or as fast as they are accepted; a swarm of devices (`swarm`) on one thread takes and
//! acknowledges them. Each message has a number, so that at the end it is known whether every one arrived, once, at the
//! right device.

mod publish;
mod swarm;

use super::Failure;
use super::remote::{Api, Remote};
use super::screen::{Screen, Style, count};
use crate::platform::OsChance;
use clap::Subcommand;
use postrider_core::port::Chance;
use publish::Published;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use swarm::{Received, Swarm};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Pushes through the API to devices connected over MQTT; checks that each arrives exactly once.
    #[command(after_help = "\
The server should run with profiles/bench.toml: its usual limits count clients by address.
Examples:
  postrider bench push --devices 10000 --messages 1000000              as fast as it goes, in batches of 100
  postrider bench push --devices 1000 --messages 60000 --batch 1 --rate 2000   single posts, accept latency")]
    Push(PushArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub struct PushArgs {
    /// The server's MQTT address.
    #[arg(long, env = "POSTRIDER_MQTT", value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    mqtt: String,
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    devices: u32,
    /// Messages in all, each to one device.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: u64,
    /// Messages of one request; 1 posts them one by one.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    batch: u64,
    /// Requests under way at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    publishers: u32,
    /// Messages in a second; 0: as fast as they are accepted.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Bytes of each message's data, about.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Seconds without any arrival after which the rest is given up.
    #[arg(long, default_value_t = 10)]
    patience: u64,
    /// Leave the devices registered.
    #[arg(long)]
    keep: bool,
}

/// What publishers and devices share.
pub struct Shared {
    pub start: Instant,
    /// Number of the next message.
    pub next: AtomicU64,
    pub accepted: AtomicU64,
    pub publishing_done: AtomicBool,
}

impl Shared {
    /// Microseconds since the start.
    pub fn now_micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let What::Push(push) = args.what;
    let api = args.remote.api()?;
    let run = format!("bench-{:06x}", OsChance.bits128() as u32 & 0xff_ffff);
    screen.note(format!("Registering {} devices …", count(push.devices.into())));
    let devices = publish::register(&api, &run, push.devices)?;
    screen.note("Connecting them …");
    let mut swarm = Swarm::connect(&push.mqtt, &devices, push.messages).map_err(Failure::failed)?;
    screen.note(format!("Sending {} messages …", count(push.messages)));
    let measured = measure(&api, &push, &run, &mut swarm)?;
    drop(swarm);
    if !push.keep {
        screen.note("Deleting the devices …");
        publish::unregister(&api, &devices)?;
    }
    let report = Report::new(&push, measured);
    report.show(screen);
    if report.exact { Ok(()) } else { Err(Failure::Failed("not every message arrived exactly once".into())) }
}

/// What a run gave.
struct Measured {
    published: Published,
    received: Received,
    /// When the server had every acknowledgement in its books, as far as asking could tell.
    recorded_micros: u64,
    /// Deliveries that the server still waits for.
    unacknowledged: u64,
}

fn measure(api: &Api, push: &PushArgs, run: &str, swarm: &mut Swarm) -> Result<Measured, Failure> {
    let shared = Shared {
        start: Instant::now(),
        next: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        publishing_done: AtomicBool::new(false),
    };
    let shared = &shared;
    let patience = Duration::from_secs(push.patience);
    let (published, received) = std::thread::scope(|scope| {
        let publishing = scope.spawn(move || {
            let published = publish::all(api, push, run, shared);
            shared.publishing_done.store(true, Ordering::Release);
            published
        });
        let received = swarm.receive(shared, patience).map_err(Failure::failed);
        let published = publishing.join().map_err(|_| Failure::failed("a publisher panicked"))??;
        Ok::<_, Failure>((published, received?))
    })?;
    let unacknowledged = publish::settle(api, run, patience)?;
    Ok(Measured { published, received, recorded_micros: shared.now_micros(), unacknowledged })
}

/// The numbers, as they are told.
struct Report {
    exact: bool,
    value: Value,
    lines: [(&'static str, String); 6],
}

impl Report {
    fn new(push: &PushArgs, measured: Measured) -> Report {
        let Measured { mut published, mut received, recorded_micros, unacknowledged } = measured;
        let rate = |number: u64, micros: u64| (number as f64 * 1e6 / micros.max(1) as f64) as u64;
        let recorded = received.once.saturating_sub(unacknowledged);
        let [acknowledged_rate, arrived_rate, accepted_rate] = [
            rate(recorded, recorded_micros),
            rate(received.once, received.last_micros),
            rate(published.accepted, published.micros),
        ];
        let accept = [50, 99, 100].map(|p| percentile(&mut published.latencies, p));
        let arrive = [50, 99, 100].map(|p| percentile(&mut received.latencies, p));
        let lost = published.accepted.saturating_sub(received.once);
        let wrong = [lost, received.repeated, received.strays, unacknowledged, published.refused];
        let exact = wrong == [0; 5];
        let value = json!({
            "devices": push.devices, "messages": push.messages, "batch": push.batch, "publishers": push.publishers,
            "rate": push.rate, "data_bytes": push.bytes, "seconds": recorded_micros as f64 / 1e6,
            "acknowledged_per_sec": acknowledged_rate, "arrived_per_sec": arrived_rate, "accepted_per_sec": accepted_rate,
            "acknowledged": recorded, "arrived": received.once, "accepted": published.accepted,
            "lost": wrong[0], "repeated": wrong[1], "strays": wrong[2], "unacknowledged": wrong[3], "refused": wrong[4],
            "accept_latency": latency(accept), "arrival_latency": latency(arrive), "exact": exact,
        });
        let [lost, repeated, strays, open, refused] = wrong.map(count);
        let per_sec = |rate: u64, number: u64| format!("{}/s  ({})", count(rate), count(number));
        let lines = [
            ("acknowledged, in the books", per_sec(acknowledged_rate, recorded)),
            ("arrived", per_sec(arrived_rate, received.once)),
            ("accepted", per_sec(accepted_rate, published.accepted)),
            ("a request's answer after", said(accept)),
            ("arrival after", said(arrive)),
            (
                "exactness",
                format!(
                    "{lost} lost, {repeated} repeated, {strays} at a wrong device, {open} open, {refused} refused"
                ),
            ),
        ];
        Report { exact, value, lines }
    }

    fn show(&self, screen: &Screen) {
        if screen.json {
            return screen.value(&self.value);
        }
        for (name, text) in &self.lines {
            screen.line(format!("{}{text}", screen.style(Style::Dim, format!("{name:<28}"))));
        }
    }
}

fn latency([p50, p99, max]: [u64; 3]) -> Value {
    json!({ "p50_us": p50, "p99_us": p99, "max_us": max })
}

fn said([p50, p99, max]: [u64; 3]) -> String {
    format!("p50 {}, p99 {}, max {}", millis(p50), millis(p99), millis(max))
}

fn millis(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1_000, micros % 1_000 / 10)
}

/// The value below which so many in a hundred lie; sorts. 0 where there is none.
fn percentile(values: &mut [u32], percent: usize) -> u64 {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).map_or(0, |value| u64::from(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut values: Vec<u32> = (1..=200).rev().collect();
        assert_eq!([50, 99, 100].map(|p| percentile(&mut values, p)), [100, 198, 200]);
        assert_eq!(percentile(&mut [], 99), 0);
        assert_eq!(percentile(&mut [7], 50), 7);
        assert_eq!(millis(12_345), "12.34 ms");
    }
}
