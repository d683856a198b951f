//! What a seed decides before the world begins: its size, and which faults happen in it. Each seed switches on a part of
//! the faults only, so that every one of them is also seen alone.

use crate::chance::Random;
use postrider_proto::Qos;
use postrider_proto::mqtt::Level;

/// One world. Chances are in a thousandth, times in milliseconds.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub devices: Vec<DevicePlan>,
    pub chaos_ms: u64,
    /// Between two requests of the app servers, on average.
    pub request_every_ms: u64,
    pub request_lost: u64,
    pub answer_lost: u64,
    /// Between two bad moments of a device's connection, on average.
    pub trouble_every_ms: u64,
    pub latency_max_ms: u64,
    /// How long a write, a sync and a telling take, at most.
    pub disk_max_ms: u64,
    /// Between two faults of the server, on average; which ones.
    pub fault_every_ms: u64,
    pub kills: bool,
    pub power_cuts: bool,
    pub disk_errors: bool,
    pub disk_full: bool,
    pub checkpoints: bool,
    pub storms: bool,
    pub rights_change: bool,
    pub devices_come_and_go: bool,
    pub inbox_max: u32,
    pub direct_max: usize,
    pub segment_bytes: u64,
    pub window: u16,
    /// Retained messages, wills and shared subscriptions.
    pub more_topics: bool,
    /// Of XMPP: the silence after which a client is asked, and how long it has to answer.
    pub probe_after_ms: u64,
    pub answer_timeout_ms: u64,
    /// Between two looks at clocks.
    pub beat_ms: u64,
    /// Between two deliveries that a provider takes, on average.
    pub provider_every_ms: Option<u64>,
    /// Paths that go dead without a word, and devices that sleep.
    pub paths: Option<Paths>,
    /// The faults end when each device was in session so often.
    pub cycles: Option<u64>,
    /// There are jobs and workers, by chance of their own from this seed.
    pub jobs: Option<u64>,
}

/// What befalls the way to a device, and the device itself.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Between two times, on average.
    pub trouble_every_ms: u64,
    /// How long a path is dead, and a device sleeps, at most.
    pub dead_ms_max: u64,
    pub sleep_ms_max: u64,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    Mqtt,
    /// JSON over WebSocket.
    Json,
    Xmpp,
}

/// What a device's client of XMPP is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlan {
    /// It knows what androidpn phones know, and nothing of what follows but its keep-alive.
    pub is_androidpn: bool,
    /// XEP-0198; and enables it only after its presence.
    pub manages: bool,
    pub counts_late: bool,
    /// XEP-0184.
    pub receipts: bool,
    /// It says the next thing without waiting to be asked for it.
    pub pipelines: bool,
    /// XEP-0352: now and then it takes only what is urgent.
    pub rests: bool,
    pub keepalive_ms: u64,
}

impl StreamPlan {
    pub const ANDROIDPN: StreamPlan = StreamPlan {
        is_androidpn: true,
        manages: false,
        counts_late: false,
        receipts: false,
        pipelines: false,
        rests: false,
        keepalive_ms: 10_000,
    };

    fn of(r: &mut Random) -> StreamPlan {
        if r.permille(400) {
            return StreamPlan::ANDROIDPN;
        }
        StreamPlan {
            is_androidpn: false,
            manages: r.permille(750),
            counts_late: r.permille(200),
            receipts: r.permille(500),
            pipelines: r.permille(300),
            rests: r.permille(300),
            keepalive_ms: 10_000,
        }
    }
}

/// One device's character.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    pub app: u32,
    /// What its connections speak: each time one of these. None: it has no connections.
    pub roads: Vec<Road>,
    /// It polls, beside its connections if it has some.
    pub polls: bool,
    pub level: Level,
    pub clean: bool,
    pub session_secs: u32,
    pub inbox_qos: Qos,
    pub topics: bool,
    /// How long it takes to acknowledge, at most.
    pub ack_max_ms: u64,
    pub forges: bool,
    pub repeats_acks: bool,
    /// Bytes it takes in a second, where that is few.
    pub bytes_per_sec: Option<u64>,
    pub tagged: bool,
    pub stream: StreamPlan,
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let mut providers = Random::new(seed ^ 0x7072_6f76_6964_6572);
        let every_ms = providers.permille(500).then(|| providers.between(100, 3_000));
        Plan { provider_every_ms: every_ms, ..Plan::without_providers(seed) }
    }

    /// The world that a seed made before there were providers.
    pub fn without_providers(seed: u64) -> Plan {
        let mut plan = Plan::without_jobs(seed);
        let mut r = Random::new(seed ^ 0x6a6f_6273_0000);
        plan.jobs = r.permille(350).then(|| r.next());
        plan
    }

    /// The world that a seed made before there were jobs.
    pub fn without_jobs(seed: u64) -> Plan {
        let mut plan = Plan::without_xmpp(seed);
        plan.speak_xmpp(&mut Random::new(seed ^ 0x786d_7070_7300));
        plan
    }

    /// The world that a seed made before devices spoke XMPP.
    pub fn without_xmpp(seed: u64) -> Plan {
        let mut r = Random::new(seed ^ 0x706f_7374_7269_6465);
        let mut roads = Random::new(seed ^ 0x726f_6164_7300);
        let mixed = roads.permille(700);
        let devices = (0..r.between(2, 9)).map(|_| device(&mut r, mixed.then_some(&mut roads))).collect();
        Plan {
            seed,
            devices,
            chaos_ms: r.between(15_000, 60_000),
            request_every_ms: r.between(60, 600),
            request_lost: if r.permille(500) { r.between(0, 150) } else { 0 },
            answer_lost: if r.permille(700) { r.between(0, 300) } else { 0 },
            trouble_every_ms: if r.permille(800) { r.between(500, 10_000) } else { u64::MAX / 4 },
            latency_max_ms: r.between(1, 200),
            disk_max_ms: if r.permille(500) { r.between(1, 10) } else { r.between(10, 300) },
            fault_every_ms: r.between(1_500, 15_000),
            kills: r.permille(500),
            power_cuts: r.permille(500),
            disk_errors: r.permille(300),
            disk_full: r.permille(300),
            checkpoints: r.permille(600),
            storms: r.permille(400),
            rights_change: r.permille(500),
            devices_come_and_go: r.permille(500),
            inbox_max: if r.permille(400) { r.between(3, 12) as u32 } else { 1_000 },
            direct_max: r.between(1, 4) as usize,
            segment_bytes: r.between(3, 24) * 1024,
            more_topics: roads.permille(500),
            window: if r.permille(500) { r.between(1, 4) as u16 } else { 32 },
            probe_after_ms: 10_000,
            answer_timeout_ms: 10_000,
            beat_ms: 250,
            provider_every_ms: None,
            paths: None,
            cycles: None,
            jobs: None,
        }
    }

    /// By chance of its own, so that worlds without XMPP are what they were before there was any.
    fn speak_xmpp(&mut self, r: &mut Random) {
        if r.permille(500) {
            return;
        }
        for device in &mut self.devices {
            match r.below(6) {
                0 | 1 => {}
                2 | 3 => device.roads = vec![Road::Xmpp],
                _ => device.roads.push(Road::Xmpp),
            }
            device.stream = StreamPlan::of(r);
        }
        let paths = Paths {
            trouble_every_ms: r.between(3_000, 15_000),
            dead_ms_max: r.between(1_000, 30_000),
            sleep_ms_max: r.between(1_000, 30_000),
        };
        self.paths = r.permille(500).then_some(paths);
    }

    /// Whether the server is ever hurt.
    pub fn hurts_server(&self) -> bool {
        self.kills || self.power_cuts || self.disk_errors || self.disk_full
    }
}

/// What a device speaks, and whether it polls.
fn roads(r: &mut Random) -> (Vec<Road>, bool) {
    match r.below(10) {
        0..=2 => (vec![Road::Mqtt], false),
        3 | 4 => (vec![Road::Json], false),
        5 | 6 => (vec![Road::Mqtt, Road::Json], false),
        7 => (Vec::new(), true),
        8 => (vec![Road::Json], true),
        _ => (vec![Road::Mqtt, Road::Json], true),
    }
}

/// Without chance for roads it speaks MQTT.
fn device(r: &mut Random, by: Option<&mut Random>) -> DevicePlan {
    let (roads, polls) = by.map_or((vec![Road::Mqtt], false), roads);
    let level = match r.below(4) {
        0 => Level::V31,
        1 => Level::V311,
        _ => Level::V5,
    };
    let qos = match r.below(8) {
        0 => Qos::AtMostOnce,
        1 | 2 => Qos::ExactlyOnce,
        _ => Qos::AtLeastOnce,
    };
    let clean = r.permille(250);
    DevicePlan {
        app: r.below(2) as u32,
        roads,
        polls,
        level,
        clean,
        session_secs: if clean { 0 } else { r.between(5, 3_600) as u32 },
        inbox_qos: qos,
        topics: r.permille(500),
        ack_max_ms: if r.permille(600) { r.between(0, 50) } else { r.between(100, 2_000) },
        forges: r.permille(200),
        repeats_acks: r.permille(200),
        bytes_per_sec: r.permille(150).then(|| r.between(200, 2_000)),
        tagged: r.permille(500),
        stream: StreamPlan::ANDROIDPN,
    }
}
