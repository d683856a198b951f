//! Phones that lose their way again and again, for as long as it takes: dead paths, sleep, cuts, restarts of the server, while
//! pushes flow. What is promised then is a time, too.

use crate::Report;
use crate::chance::Random;
use crate::ledger::About;
use crate::plan::{DevicePlan, Paths, Plan, Road, StreamPlan};
use crate::requests::Request;
use crate::world::World;
use postrider_core::id::AppNo;
use postrider_core::model::Step;
use postrider_core::port::{Position, Store};
use postrider_proto::Qos;
use postrider_proto::mqtt::Level;

/// The server's times, and the phone's, in the proportions of their defaults.
const PROBE_AFTER_MS: u64 = 30_000;
const ANSWER_TIMEOUT_MS: u64 = 10_000;
const KEEPALIVE_MS: u64 = 15_000;
/// A dial that nobody answers, then the longest wait of a device before it dials again.
const RECONNECT_MS: u64 = 5_000 + 20_000;

/// A push arrives so long after the path returned, at the latest: the server finds out that a connection is dead, the phone too,
/// and it comes back.
pub const PROMISED_MS: u64 = PROBE_AFTER_MS + ANSWER_TIMEOUT_MS + KEEPALIVE_MS + RECONNECT_MS;

/// What came of it.
#[derive(Debug)]
pub struct Cycles {
    pub report: Report,
    /// Of the phone that came back least often, and of all.
    pub fewest: u64,
    pub sessions: u64,
    pub resumed: u64,
    /// Pushes that were accepted; whose report says delivered; that their phone has shown.
    pub accepted: usize,
    pub delivered: usize,
    pub shown: usize,
    /// Pushes of which the report and the phone's log say different things.
    pub disagreed: usize,
    /// From the return of the path to the arrival, at worst.
    pub worst_ms: u64,
    /// Connections, and sessions that have one, at the end.
    pub connections: usize,
    pub connected: usize,
}

/// Phones of all kinds, until each was in session so often.
pub fn reconnect_cycles(seed: u64, phones: usize, cycles: u64) -> Cycles {
    let mut world = World::new(plan(seed, phones, cycles));
    world.run();
    world.count_cycles()
}

fn plan(seed: u64, phones: usize, cycles: u64) -> Plan {
    let mut random = Random::new(seed);
    Plan {
        devices: (0..phones).map(|index| phone(index, &mut random)).collect(),
        chaos_ms: u64::MAX / 4,
        request_every_ms: 15_000,
        trouble_every_ms: 300_000,
        latency_max_ms: 150,
        disk_max_ms: 20,
        fault_every_ms: 900_000,
        kills: true,
        power_cuts: true,
        checkpoints: true,
        disk_errors: false,
        disk_full: false,
        storms: false,
        rights_change: false,
        devices_come_and_go: false,
        more_topics: false,
        inbox_max: 1_000,
        window: 32,
        probe_after_ms: PROBE_AFTER_MS,
        answer_timeout_ms: ANSWER_TIMEOUT_MS,
        beat_ms: 2_000,
        paths: Some(Paths { trouble_every_ms: 90_000, dead_ms_max: 300_000, sleep_ms_max: 120_000 }),
        cycles: Some(cycles),
        jobs: None,
        ..Plan::without_xmpp(seed)
    }
}

/// In turn an androidpn phone, a client with stream management, and one without.
fn phone(index: usize, random: &mut Random) -> DevicePlan {
    let ordinary = StreamPlan {
        is_androidpn: false,
        manages: index % 3 == 1,
        receipts: random.permille(500),
        pipelines: random.permille(300),
        ..StreamPlan::ANDROIDPN
    };
    let stream = if index.is_multiple_of(3) { StreamPlan::ANDROIDPN } else { ordinary };
    DevicePlan {
        app: (index % 2) as u32,
        roads: vec![Road::Xmpp],
        polls: false,
        level: Level::V5,
        clean: false,
        session_secs: 3_600,
        inbox_qos: Qos::AtLeastOnce,
        topics: false,
        ack_max_ms: 500,
        forges: false,
        repeats_acks: false,
        bytes_per_sec: None,
        tagged: false,
        stream: StreamPlan { keepalive_ms: KEEPALIVE_MS, ..stream },
    }
}

impl World {
    /// A plain push to one of the phones.
    pub fn draw_cycle_push(&mut self) -> Request {
        let device = self.random.below(self.devices.len() as u64) as usize;
        let app = AppNo(self.devices[device].plan.app);
        self.draw_push(app, Some(device))
    }

    /// Now and then: nothing is late, and perhaps it is enough.
    pub fn watch_cycles(&mut self) {
        let Some(cycles) = self.plan.cycles.filter(|_| !self.calm) else { return };
        for device in 0..self.devices.len() {
            self.check_in_time(device);
        }
        if self.devices.iter().all(|d| d.sessions > cycles) {
            self.calm_down();
        }
    }

    fn check_in_time(&mut self, device: usize) {
        let (Some(server), Some(at)) = (&self.server, self.devices[device].at) else { return };
        let open = server.store.pending(at, Position::default(), 1, self.now);
        let Some(first) = open.first() else { return };
        let since = self.well_since(device).max(first.accepted_at);
        if self.now > since + PROMISED_MS {
            let push = first.id.and_then(|id| self.ledger.push_of(id));
            let waits = self.now - since;
            let what = format!("{} waits for device {device} for {waits} ms, on a good path", first.seq);
            self.ledger.break_rule("in time", About { push, device: Some(device) }, what);
        }
    }

    /// Since when nothing is wrong with the device, its path and the server.
    fn well_since(&self, device: usize) -> u64 {
        let d = &self.devices[device];
        d.dead_until.max(d.asleep_until).max(d.cut_at).max(self.back_at)
    }

    /// A push arrived for the first time.
    pub fn note_arrival(&mut self, device: usize, accepted_at: u64) {
        let since = self.well_since(device).max(accepted_at);
        self.worst_ms = self.worst_ms.max(self.now.saturating_sub(since));
    }

    fn count_cycles(mut self) -> Cycles {
        let (mut accepted, mut delivered, mut shown, mut disagreed) = (0, 0, 0, 0);
        let server = self.server.as_ref();
        for (app, id) in self.ledger.accepted_pushes() {
            accepted += 1;
            let reports = server.map(|s| s.store.deliveries(app, id, None, None, 10)).unwrap_or_default();
            let is_delivered =
                reports.iter().any(|one| one.timeline.iter().any(|moment| moment.step == Step::Delivered));
            let is_shown = self.ledger.is_shown(id);
            delivered += usize::from(is_delivered);
            shown += usize::from(is_shown);
            disagreed += usize::from(is_delivered != is_shown);
        }
        Cycles {
            fewest: self.devices.iter().map(|d| d.sessions).min().unwrap_or_default(),
            sessions: self.devices.iter().map(|d| d.sessions).sum(),
            resumed: self.resumed,
            accepted,
            delivered,
            shown,
            disagreed,
            worst_ms: self.worst_ms,
            connections: server.map_or(0, |s| s.conns.len()),
            connected: server.map_or(0, |s| s.engine.connected_count()),
            report: self.report(),
        }
    }
}

impl std::fmt::Display for Cycles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cycles { fewest, sessions, resumed, accepted, worst_ms, report, .. } = self;
        let hours = report.virtual_ms as f64 / 3_600_000.0;
        write!(
            f,
            "{sessions} sessions ({resumed} resumed, {fewest} of one phone at least), {} lives of the server, {accepted} pushes \
             in {hours:.1} simulated hours; the slowest came {:.1} s after its path was back",
            report.lives,
            *worst_ms as f64 / 1000.0
        )
    }
}
