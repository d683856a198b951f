//! The world: one queue of happenings in virtual time, and the network between those who take part.
//!
//! ```text
//!   devices ⇄ links (delay, cut at any byte, half-open, slow) ⇄ server ⇄ store over a faulty disk
//!   app servers ⇄ requests (lost, answered twice, never answered) ⇄ server
//! ```

use crate::Report;
use crate::chance::{Random, SimClock};
use crate::devices::{Device, Receipt};
use crate::jobs::Jobs;
use crate::ledger::{About, Ledger};
use crate::plan::{Plan, Road};
use crate::polls::{Answered, Poll};
use crate::providers::Handover;
use crate::requests::Request;
use crate::server::{Answer, Server, Turn};
use postrider_core::id::{MessageId, Seq};
use postrider_core::port::Clock;
use postrider_store::faulty::FaultyFiles;
use std::collections::BTreeMap;
use std::sync::Arc;

/// When every world begins.
pub const BEGIN: u64 = 1_700_000_000_000;
/// From the end of the faults to the canaries, and from those to the reckoning.
pub const CALM_MS: u64 = 25_000;
pub const CANARY_MS: u64 = 15_000;

/// What can happen.
#[derive(Debug)]
pub enum Happening {
    Turn {
        life: u64,
    },
    Step {
        life: u64,
    },
    Beat,
    ToServer {
        link: u64,
        bytes: Vec<u8>,
    },
    ToDevice {
        link: u64,
        bytes: Vec<u8>,
    },
    ServerSees {
        link: u64,
    },
    DeviceSees {
        link: u64,
    },
    DeviceActs {
        device: usize,
        link: u64,
    },
    DeviceConnects {
        device: usize,
    },
    DeviceAcks {
        link: u64,
        device: usize,
        receipt: Receipt,
        id: Option<MessageId>,
    },
    DevicePolls {
        device: usize,
    },
    PollArrives {
        no: u64,
        poll: Poll,
        life: u64,
    },
    PollAnswered {
        device: usize,
        no: u64,
        answer: Answered,
    },
    PollFails {
        device: usize,
        no: u64,
    },
    DevicePostsAcks {
        device: usize,
        deliveries: Vec<(Seq, Option<MessageId>)>,
    },
    AcksArrive {
        device: usize,
        seqs: Vec<Seq>,
    },
    PathActs {
        device: usize,
    },
    DeviceWakes {
        device: usize,
    },
    /// Of a device that slept.
    Read {
        device: usize,
        link: u64,
        bytes: Vec<u8>,
    },
    SenderActs,
    WorkersAct,
    ProviderActs,
    NextProvider {
        handover: Handover,
    },
    RequestArrives {
        request: u64,
    },
    RequestTimeout {
        request: u64,
        attempt: u32,
    },
    AnswerArrives {
        request: u64,
        answer: Answer,
    },
    Fault,
    Restart,
    SpaceReturns,
    Watch,
    Calm,
    Canaries,
    Reckoning,
}

/// A connection of a device, as the network has it.
#[derive(Debug)]
pub struct Link {
    pub device: usize,
    pub life: u64,
    up_at: u64,
    down_at: u64,
    /// Bytes that still get through, up and down, where it is cut.
    left: Option<(usize, usize)>,
    /// Its path went dead: nothing gets through any more, and nobody is told.
    pub is_dead: bool,
}

/// See the module.
pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub clock: Arc<SimClock>,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    pub events: u64,
    pub files: FaultyFiles,
    pub server: Option<Server>,
    pub life: u64,
    turn_planned: bool,
    step_planned: bool,
    pub links: BTreeMap<u64, Link>,
    pub next_link: u64,
    /// The devices of polls that are at the server.
    pub poll_of: BTreeMap<u64, usize>,
    pub devices: Vec<Device>,
    pub names: BTreeMap<(u32, String), (usize, bool)>,
    pub requests: BTreeMap<u64, Request>,
    pub next_push: u64,
    pub ledger: Ledger,
    pub jobs: Jobs,
    pub cursors: BTreeMap<u32, u64>,
    /// Acknowledgements taken when it was last looked.
    pub acks_seen: u64,
    /// When the server came back last; how late a push was at worst, and sessions that went on with an earlier stream.
    pub back_at: u64,
    pub worst_ms: u64,
    pub resumed: u64,
    pub calm: bool,
    pub over: bool,
}

impl World {
    pub fn new(plan: Plan) -> World {
        let random = Random::new(plan.seed);
        let names =
            plan.devices.iter().enumerate().map(|(i, d)| {
                ((d.app, format!("d{i}")), (i, d.inbox_qos == postrider_proto::Qos::AtMostOnce))
            });
        let names = names.collect();
        let devices = plan.devices.iter().enumerate().map(|(i, d)| Device::new(i, d.clone())).collect();
        World {
            files: FaultyFiles::new(plan.seed),
            random,
            clock: Arc::new(SimClock::new(BEGIN)),
            now: BEGIN,
            queue: BTreeMap::new(),
            order: 0,
            events: 0,
            server: None,
            life: 0,
            turn_planned: false,
            step_planned: false,
            links: BTreeMap::new(),
            next_link: 1,
            poll_of: BTreeMap::new(),
            devices,
            names,
            requests: BTreeMap::new(),
            next_push: 1,
            ledger: Ledger::default(),
            jobs: Jobs::new(plan.jobs),
            cursors: BTreeMap::new(),
            acks_seen: 0,
            back_at: BEGIN,
            worst_ms: 0,
            resumed: 0,
            calm: false,
            over: false,
            plan,
        }
    }

    pub fn report(&mut self) -> Report {
        Report {
            seed: self.plan.seed,
            hash: self.ledger.hash,
            virtual_ms: self.now - BEGIN,
            happenings: self.events,
            lives: self.life + 1,
            pushes: self.ledger.pushes.len() as u64,
            transmissions: self.ledger.transmissions,
            repeats: self.ledger.repeats,
            ends: self.ledger.ends(),
            violation: self.ledger.broken.take(),
        }
    }

    pub fn at(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), happening);
    }

    pub fn after(&mut self, ms: u64, happening: Happening) {
        self.at(self.now.saturating_add(ms), happening);
    }

    pub fn note(&mut self, about: About, line: String) {
        self.ledger.note(self.now, about, line);
    }

    /// Runs until the reckoning, or the first broken promise.
    pub fn run(&mut self) {
        self.found();
        self.after(self.plan.beat_ms, Happening::Beat);
        self.after(1_000, Happening::Watch);
        for device in 0..self.devices.len() {
            if !self.devices[device].plan.roads.is_empty() {
                let at = self.random.between(0, 2_000);
                self.after(at, Happening::DeviceConnects { device });
            }
            if self.devices[device].plan.polls {
                let at = self.random.between(0, 2_000);
                self.after(at, Happening::DevicePolls { device });
            }
        }
        self.paths_begin();
        self.jobs_begin();
        self.after(100, Happening::SenderActs);
        if self.plan.provider_every_ms.is_some() {
            self.after(1_000, Happening::ProviderActs);
        }
        if self.plan.hurts_server() || self.plan.checkpoints {
            self.after(self.plan.fault_every_ms, Happening::Fault);
        }
        self.after(self.plan.chaos_ms, Happening::Calm);
        while !self.over && self.ledger.broken.is_none() {
            let Some(((at, _), happening)) = self.queue.pop_first() else { break };
            self.now = self.now.max(at);
            self.clock.set(self.now);
            self.events += 1;
            self.happen(happening);
            self.plan_work();
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Turn { life } if life == self.life => self.turn(),
            Happening::Step { life } if life == self.life => self.step(),
            Happening::Turn { .. } | Happening::Step { .. } => {}
            Happening::Beat => self.beat(),
            Happening::ToServer { link, bytes } => self.arrive_up(link, bytes),
            Happening::ToDevice { link, bytes } => self.arrive_down(link, &bytes),
            Happening::ServerSees { link } => {
                // On a dead path no end arrives either.
                let is_dead = self.is_dead(link);
                if let Some(server) = self.server.as_mut().filter(|_| !is_dead) {
                    server.broke(link);
                }
                self.turn_planned_now();
            }
            Happening::DeviceSees { link } => self.device_sees(link),
            Happening::DeviceActs { device, link } => self.device_acts(device, link),
            Happening::DeviceConnects { device } => self.device_connects(device),
            Happening::DeviceAcks { link, device, receipt, id } => {
                self.device_acks(link, device, receipt, id)
            }
            Happening::DevicePolls { device } => self.device_polls(device),
            Happening::PollArrives { no, poll, life } => self.poll_arrives(no, poll, life),
            Happening::PollAnswered { device, no, answer } => self.poll_answered(device, no, answer),
            Happening::PollFails { device, no } => self.poll_fails(device, no),
            Happening::DevicePostsAcks { device, deliveries } => self.device_posts_acks(device, deliveries),
            Happening::AcksArrive { device, seqs } => self.acks_arrive(device, &seqs),
            Happening::PathActs { device } => self.path_acts(device),
            Happening::DeviceWakes { device } => self.device_wakes(device),
            Happening::Read { device, link, bytes } => self.device_reads(device, link, &bytes),
            Happening::SenderActs => self.sender_acts(),
            Happening::WorkersAct => self.workers_act(),
            Happening::ProviderActs => self.provider_acts(),
            Happening::NextProvider { handover } => self.next_provider(handover),
            Happening::RequestArrives { request } => self.request_arrives(request),
            Happening::RequestTimeout { request, attempt } => self.request_timeout(request, attempt),
            Happening::AnswerArrives { request, answer } => self.answer_arrives(request, answer),
            Happening::Fault => self.fault(),
            Happening::Restart => self.restart(),
            Happening::SpaceReturns => self.files.set_quota(None),
            Happening::Watch => self.watch(),
            Happening::Calm => self.calm_down(),
            Happening::Canaries => self.send_canaries(),
            Happening::Reckoning => self.reckon(),
        }
    }

    pub fn turn_planned_now(&mut self) {
        if self.server.is_some() && !self.turn_planned {
            self.turn_planned = true;
            let delay = self.random.below(4);
            self.after(delay, Happening::Turn { life: self.life });
        }
    }

    /// A turn where mail waits, a step where the store has something to do, an end where it failed.
    fn plan_work(&mut self) {
        let Some(server) = &self.server else { return };
        let (works, idle) = (server.has_work(), server.stepper.is_idle());
        if works {
            self.turn_planned_now();
        }
        if !idle && !self.step_planned {
            self.step_planned = true;
            let delay = self.random.between(0, self.plan.disk_max_ms);
            self.after(delay, Happening::Step { life: self.life });
        }
    }

    pub fn begin_life(&mut self, server: Server) {
        self.server = Some(server);
        self.turn_planned = false;
        self.step_planned = false;
    }

    pub fn turn(&mut self) {
        self.turn_planned = false;
        self.with_server(self.life, Server::turn);
        let Some(server) = &mut self.server else { return };
        let (written, closed) = (std::mem::take(&mut server.written), std::mem::take(&mut server.closed));
        let (answers, answered) = (std::mem::take(&mut server.answers), std::mem::take(&mut server.answered));
        for (link, bytes) in written {
            self.send_down(link, bytes);
        }
        for link in closed.into_iter().filter(|link| !self.is_dead(*link)).collect::<Vec<_>>() {
            let at = self.links.get(&link).map_or(self.now, |l| l.down_at.max(self.now));
            self.at(at + 1, Happening::DeviceSees { link });
        }
        for (request, answer) in answers {
            self.answer_leaves(request, answer);
        }
        for (poll, answer) in answered {
            self.poll_leaves(poll, answer);
        }
    }

    /// Does something with the server, if it still lives that life.
    pub fn with_server(&mut self, life: u64, does: impl FnOnce(&mut Server, &mut Turn<'_>)) {
        if let Some(mut server) = self.server.take_if(|_| life == self.life) {
            does(&mut server, &mut Turn { now: self.now, ledger: &mut self.ledger, names: &self.names });
            self.server = Some(server);
        }
    }

    fn step(&mut self) {
        use postrider_store::Stepped;
        self.step_planned = false;
        let Some(server) = &mut self.server else { return };
        let stepped = server.stepper.step();
        let failed = server.stepper.has_failed();
        let durable = server.stepper.durable();
        self.note(About::default(), format!("store: {stepped:?}, {durable} durable"));
        if stepped == Stepped::Refused {
            self.ledger.forget_taken();
        }
        if stepped != Stepped::Written {
            self.read_receipts();
        }
        if failed {
            self.note(About::default(), "store: failed".to_owned());
            self.crash(self.plan.power_cuts);
        }
    }

    fn beat(&mut self) {
        self.after(self.plan.beat_ms, Happening::Beat);
        if let Some(server) = &self.server {
            server.engine.tick();
        }
        for device in 0..self.devices.len() {
            self.device_looks_at_clock(device);
        }
        self.turn_planned_now();
    }

    // The network.

    pub fn open_link(&mut self, device: usize) -> u64 {
        let id = self.next_link;
        self.next_link += 1;
        let (life, now) = (self.life, self.now);
        let link = Link { device, life, up_at: now, down_at: now, left: None, is_dead: false };
        self.links.insert(id, link);
        id
    }

    pub fn accept_link(&mut self, link: u64, road: Road) {
        if let Some(server) = &mut self.server {
            server.accept(link, road, self.clock.now());
        }
    }

    pub fn send_up(&mut self, link: u64, bytes: Vec<u8>) {
        let delay = self.latency();
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.is_dead {
            let device = l.device;
            return self.write_to_dead(device, link);
        }
        l.up_at = l.up_at.max(self.now + delay);
        let at = l.up_at;
        self.at(at, Happening::ToServer { link, bytes });
    }

    fn send_down(&mut self, link: u64, bytes: Vec<u8>) {
        let delay = self.latency();
        let calm = self.calm;
        let Some(l) = self.links.get_mut(&link) else { return };
        let slow = self.plan.devices[l.device].bytes_per_sec.filter(|_| !calm);
        let takes = slow.map_or(0, |rate| bytes.len() as u64 * 1000 / rate);
        l.down_at = l.down_at.max(self.now + delay) + takes;
        let at = l.down_at;
        self.at(at, Happening::ToDevice { link, bytes });
    }

    pub fn latency(&mut self) -> u64 {
        self.random.between(0, self.plan.latency_max_ms)
    }

    fn arrive_up(&mut self, link: u64, mut bytes: Vec<u8>) {
        let Some(l) = self.links.get_mut(&link).filter(|l| !l.is_dead) else { return };
        if let Some((left, _)) = &mut l.left {
            bytes.truncate(*left);
            *left -= bytes.len();
        }
        let alive = l.life == self.life;
        if let Some(server) = self.server.as_mut().filter(|_| alive) {
            // Torn into pieces, as the network likes.
            server.receive(link, &bytes);
        }
        self.turn_planned_now();
    }

    fn arrive_down(&mut self, link: u64, bytes: &[u8]) {
        if let Some(server) = &mut self.server {
            server.flowed(link, bytes.len());
        }
        self.turn_planned_now();
        let Some(l) = self.links.get_mut(&link).filter(|l| !l.is_dead) else { return };
        let mut n = bytes.len();
        if let Some((_, left)) = &mut l.left {
            n = n.min(*left);
            *left -= n;
        }
        let device = l.device;
        self.device_reads(device, link, &bytes[..n]);
    }

    /// Cuts a link at some byte. Both ends learn of it in their own time, or not at all for long.
    pub fn cut(&mut self, link: u64) {
        let (up, down) = (self.random.below(80) as usize, self.random.below(200) as usize);
        let Some(l) = self.links.get_mut(&link).filter(|l| l.left.is_none()) else { return };
        l.left = Some((up, down));
        let device = l.device;
        self.devices[device].cut_at = self.now;
        let half_open = self.random.permille(300);
        let server_sees = if half_open { 30_000 } else { self.random.between(0, 500) };
        self.after(server_sees, Happening::ServerSees { link });
        let device_sees = if self.random.permille(300) { 20_000 } else { self.random.between(0, 500) };
        self.after(device_sees, Happening::DeviceSees { link });
        let about = About { push: None, device: Some(device) };
        self.note(about, format!("network: connection {link} is cut"));
    }
}
