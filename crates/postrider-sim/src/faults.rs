//! What befalls the server, how it comes back, and what is looked at while it runs and at the end.

use crate::devices::SECRET;
use crate::ledger::{About, Known, Outcome};
use crate::server::Server;
use crate::world::{CALM_MS, Happening, World};
use postrider_core::command::{Command, Registration};
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_core::session::secret_hash;
use postrider_store::OpenError;
use postrider_store::faulty::Fault;

/// How long nothing may move before it counts as a standstill.
const PATIENCE_MS: u64 = 10_000;

impl World {
    /// Two apps and their devices, on a disk without faults.
    pub fn found(&mut self) {
        let server = match Server::open(&self.plan, self.files.clone(), &self.clock, (0, false)) {
            Ok(server) => server,
            Err(error) => {
                return self.ledger.break_rule(
                    "recovers",
                    About::default(),
                    format!("an empty disk: {error}"),
                );
            }
        };
        let mut commands: Vec<Command> = (0..2)
            .map(|no| Command::CreateApp { id: format!("a{no}"), name: String::new(), at: self.now })
            .collect();
        for d in &self.devices {
            let tags = if d.plan.tagged { vec!["t".to_owned()] } else { Vec::new() };
            commands.push(Command::Register(Box::new(Registration {
                origin: None,
                quota: None,
                app: AppNo(d.plan.app),
                id: d.name.clone(),
                secret_hash: Some(secret_hash(SECRET.as_bytes())),
                profile: Profile { tags, ..Profile::default() },
                now: self.now,
                idempotency: None,
            })));
        }
        server.store.submit(commands, Box::new(|_| {}));
        self.begin_life(server);
        while let Some(server) = self.server.as_mut().filter(|s| !s.stepper.is_idle()) {
            server.stepper.step();
        }
        for index in 0..self.devices.len() {
            let d = &self.devices[index];
            let at = self.server.as_ref().and_then(|s| s.store.device_by_id(AppNo(d.plan.app), &d.name));
            let qos0 = d.plan.inbox_qos == postrider_proto::Qos::AtMostOnce;
            let known = Known { index, name: d.name.clone(), qos0, delete_asked: false };
            if let Some(at) = at {
                self.ledger.devices.insert(at, known);
                (self.devices[index].at, self.devices[index].registered) = (Some(at), true);
            }
        }
    }

    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.between(1, self.plan.fault_every_ms * 2);
        self.after(wait, Happening::Fault);
        let Some(server) = &mut self.server else { return };
        let plan = &self.plan;
        let enabled = [plan.kills, plan.power_cuts, plan.disk_errors, plan.disk_full, plan.checkpoints];
        let which: Vec<usize> = (0..enabled.len()).filter(|i| enabled[*i]).collect();
        match self.random.pick(&which) {
            Some(0) => self.crash(false),
            Some(1) => self.crash(true),
            Some(2) if self.random.permille(500) => {
                self.files.fail_syncs();
                self.note(About::default(), "disk: no sync succeeds".to_owned());
            }
            Some(2) => {
                let n = self.random.between(1, 30);
                let fault = if self.random.permille(500) { Fault::Io } else { Fault::Short };
                self.files.fail_at(n, fault, true);
                self.note(About::default(), format!("disk: fails from operation {n} on"));
            }
            Some(3) if self.random.permille(400) => {
                // Full in the middle of a write, though there seemed to be room.
                let n = self.random.between(1, 8);
                self.files.fail_at(n, Fault::Full, false);
                self.note(About::default(), format!("disk: full at operation {n}"));
            }
            Some(3) => {
                let room = self.random.between(0, 6_000);
                self.files.set_quota(Some(self.files.used() + room));
                let lasts = self.random.between(500, 6_000);
                self.after(lasts, Happening::SpaceReturns);
                self.note(About::default(), format!("disk: full after {room} bytes"));
            }
            Some(4) => {
                let made = server.stepper.checkpoint();
                self.note(About::default(), format!("store: checkpoint, {made}"));
                if self.server.as_ref().is_some_and(|s| s.stepper.has_failed()) {
                    self.crash(self.plan.power_cuts);
                }
            }
            _ => {}
        }
    }

    /// The process dies, or the whole machine.
    pub fn crash(&mut self, power: bool) {
        self.note(About::default(), format!("server: dies, power cut: {power}"));
        self.life += 1;
        self.ledger.forget_taken();
        self.files = if power { self.files.cut_power() } else { self.files.kill() };
        self.server = None;
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, l)| l.life + 1 == self.life && !l.is_dead)
            .map(|(no, _)| *no)
            .collect();
        for link in links {
            // A dead machine says nothing; a dead process's connections are reset.
            let sees = if power { self.random.between(0, 12_000) } else { self.random.between(0, 300) };
            self.after(sees, Happening::DeviceSees { link });
        }
        let down = self.random.between(50, 4_000);
        self.after(down, Happening::Restart);
    }

    pub fn restart(&mut self) {
        if self.server.is_some() {
            return;
        }
        let dies_again = !self.calm && self.random.permille(200);
        if dies_again {
            let n = self.random.between(1, 40);
            self.files.fail_at(n, Fault::Io, true);
        }
        let denies = self.plan.rights_change && self.life % 2 == 1;
        match Server::open(&self.plan, self.files.clone(), &self.clock, (self.life, denies)) {
            Ok(server) => {
                self.files.heal();
                self.note(About::default(), format!("server: is back, life {}", self.life));
                let problems = server.store.problems().to_vec();
                if let Some(problem) = problems.first() {
                    let what = format!("nothing rotted, and recovery found: {problem}");
                    self.ledger.break_rule("recovers whole", About::default(), what);
                }
                self.begin_life(server);
                self.back_at = self.now;
                self.check_kept();
                self.read_receipts();
            }
            Err(OpenError::Io { .. }) if dies_again => {
                self.note(About::default(), "server: dies while it recovers".to_owned());
                self.files =
                    if self.random.permille(500) { self.files.cut_power() } else { self.files.kill() };
                let down = self.random.between(50, 1_000);
                self.after(down, Happening::Restart);
            }
            Err(error) if error.to_string().contains("space") => {
                let down = self.random.between(500, 2_000);
                self.after(down, Happening::Restart);
            }
            Err(error) => self.ledger.break_rule("recovers", About::default(), error.to_string()),
        }
    }

    /// What a sender was promised is known to the server, in every life of it.
    fn check_kept(&mut self) {
        self.check_boards();
        self.check_jobs();
        let Some(server) = &self.server else { return };
        let lost = self.ledger.pushes.iter().find_map(|(n, push)| match push.outcome {
            Outcome::Accepted(id) if server.store.message(push.app, id).is_none() => Some((*n, id)),
            _ => None,
        });
        if let Some((n, id)) = lost {
            let what = format!("push {n} was accepted as {id}, and nobody knows it");
            self.ledger.break_rule("accepted is kept", About { push: Some(n), device: None }, what);
        }
    }

    /// New rows of the receipt stream: they tell of what is durable.
    pub fn read_receipts(&mut self) {
        let Some(server) = &self.server else { return };
        let mut rows = Vec::new();
        for app in 0..2 {
            let cursor = self.cursors.entry(app).or_default();
            while let Ok(page) = server.store.events(AppNo(app), *cursor, 1_000) {
                if page.next == *cursor {
                    break;
                }
                *cursor = page.next;
                rows.extend(page.events);
            }
        }
        for row in rows {
            let push = self.ledger.push_of(row.message);
            let at = row.device.map(|device| DeviceRef { app: row.app, device });
            let device = at.and_then(|at| self.ledger.devices.get(&at)).map(|k| k.index);
            let line =
                format!("receipt: {} {:?} {:?} for {:?}", row.message, row.step, row.reason, row.device);
            self.note(About { push, device }, line);
            self.ledger.receipt(&row);
        }
    }

    /// Every fourth beat: the books balance, and who is connected is known to be.
    pub fn watch(&mut self) {
        self.after(self.plan.beat_ms * 4, Happening::Watch);
        self.watch_cycles();
        // To count anew takes the longer the more there is: over days, now and then is enough.
        if self.plan.cycles.is_some() && !self.calm && !self.random.permille(20) {
            return;
        }
        let Some(server) = &self.server else { return };
        let gap = server.store.audit().apps.into_iter().find(|(_, audit)| audit.gap() != 0);
        if let Some((app, audit)) = gap {
            let what = format!("{app:?}: {audit:?}, gap {}", audit.gap());
            self.ledger.break_rule("conservation", About::default(), what);
        }
        let Some(server) = &self.server else { return };
        let forgotten = server.signed_in().into_iter().find(|(at, _)| !server.engine.is_connected(*at));
        if let Some((at, link)) = forgotten.filter(|(at, _)| self.is_wanted(*at)) {
            let device = self.ledger.devices.get(&at).map(|k| k.index);
            let what = format!("{at:?} is signed in on {link}, and the hub does not know it");
            self.ledger.break_rule("takeover is safe", About { push: None, device }, what);
        }
    }

    fn is_wanted(&self, at: DeviceRef) -> bool {
        self.ledger.devices.get(&at).is_some_and(|known| !known.delete_asked)
            && self.server.as_ref().is_some_and(|s| s.mail.is_empty())
    }

    /// The faults end; from now everything has to become well.
    pub fn calm_down(&mut self) {
        self.calm = true;
        if self.plan.paths.is_some() {
            self.paths_return();
        }
        self.note(About::default(), "world: calm".to_owned());
        self.files.heal();
        self.files.set_quota(None);
        self.after(CALM_MS, Happening::Canaries);
    }

    /// Nothing is under way any more: what is not done will never be.
    pub fn reckon(&mut self) {
        if self.still_moves() {
            return self.after(PATIENCE_MS, Happening::Reckoning);
        }
        self.over = true;
        self.watch();
        self.check_kept();
        self.read_receipts();
        if self.server.is_none() {
            return self.ledger.break_rule("liveness", About::default(), "the server is not back".to_owned());
        }
        let waiting: Vec<u64> = self.requests.iter().filter(|(_, r)| !r.done).map(|(no, _)| *no).collect();
        if let Some(no) = waiting.first() {
            let what = format!("request {no} has no answer: {:?}", self.requests.get(no).map(|r| &r.kind));
            self.ledger.break_rule("liveness", About::default(), what);
        }
        for device in 0..self.devices.len() {
            self.reckon_device(device);
        }
        self.reckon_pushes();
        self.reckon_jobs();
        self.reckon_state();
    }

    /// What the server has in memory is what its journal says, and nothing else changed it.
    fn reckon_state(&mut self) {
        while let Some(server) = self.server.as_mut().filter(|server| !server.stepper.is_idle()) {
            server.stepper.step();
        }
        let Some(server) = &self.server else { return };
        let wrong = match server.stepper.live_and_replayed() {
            Ok((live, replayed)) if live == replayed => return,
            Ok((live, replayed)) => format!("live {live:032x}, replayed {replayed:032x}"),
            Err(error) => format!("the files cannot be replayed: {error}"),
        };
        self.ledger.break_rule("replay is the same", About::default(), wrong);
    }

    /// A long backlog on a slow link with a small window is no standstill: as long as acknowledgements come, they are waited
    /// for.
    fn still_moves(&mut self) -> bool {
        let Some(server) = &self.server else { return false };
        let before = std::mem::replace(&mut self.acks_seen, self.ledger.acks_taken);
        let open = |at: &DeviceRef| !server.store.pending(*at, Position::default(), 1, self.now).is_empty();
        let devices = self.devices.iter().filter(|d| d.registered).filter_map(|d| d.at);
        self.acks_seen > before && devices.into_iter().any(|at| open(&at))
    }

    fn reckon_device(&mut self, device: usize) {
        let d = &self.devices[device];
        let (Some(at), Some(server)) = (d.at.filter(|_| d.registered), &self.server) else { return };
        let signed_in = d.plan.roads.is_empty() || d.is_signed_in();
        let mut open = server.store.pending(at, Position::default(), 1_000, self.now);
        if !server.hears_peers(at) {
            // What other devices wrote waits for a connection that understands it.
            open.retain(|one| !server.is_of_peer(one));
        }
        let about = About { push: None, device: Some(device) };
        if !signed_in {
            return self.ledger.break_rule("liveness", about, format!("device {device} did not come back"));
        }
        if let Some(first) = open.first() {
            let push = first.id.and_then(|id| self.ledger.push_of(id));
            let what =
                format!("{} are still open for device {device}, the first is {}", open.len(), first.seq);
            self.ledger.break_rule("liveness", About { push, ..about }, what);
        }
    }

    /// Every delivery of every accepted push has one end, in the report as in the stream.
    fn reckon_pushes(&mut self) {
        let Some(server) = &self.server else { return };
        let mut wrong = None;
        for (n, push) in &self.ledger.pushes {
            let Outcome::Accepted(id) = push.outcome else { continue };
            let deliveries = server.store.deliveries(push.app, id, None, None, 1_000);
            let targeted = server.store.message(push.app, id).map_or(0, |m| m.targeted);
            if targeted != deliveries.len() as u64 {
                wrong = Some((
                    *n,
                    format!("push {n} has {targeted} deliveries and {} reports", deliveries.len()),
                ));
            }
            for delivery in deliveries {
                let count = delivery.timeline.iter().filter(|moment| moment.step.ends()).count();
                let at = DeviceRef { app: push.app, device: delivery.device };
                let was_taken = delivery.timeline.iter().any(|moment| moment.step == Step::Forwarded);
                let rightly = match (delivery.step, delivery.reason) {
                    (Step::Expired, _) => !was_taken,
                    (Step::HandedOver, Reason::Ttl) => was_taken,
                    _ => true,
                };
                if !rightly {
                    wrong = Some((*n, format!("push {n} for {at:?}: {:?}", delivery.timeline)));
                }
                let told = self.ledger.end_of(id, at);
                let long_past = self.now > id.at() + push.ttl_secs * 1000 + 2_000;
                let is_gone = self.ledger.devices.get(&at).is_none_or(|k| k.delete_asked);
                let must_end = long_past || !is_gone;
                if count > 1 || (must_end && count != 1) || (count == 1 && told.is_none()) {
                    let what =
                        format!("push {n} for {at:?}: {:?}, the stream told {told:?}", delivery.timeline);
                    wrong = Some((*n, what));
                }
            }
        }
        if let Some((id, what)) = self.ledger.superseded_by_nothing() {
            wrong = Some((self.ledger.push_of(id).unwrap_or_default(), what));
        }
        if let Some((n, what)) = wrong {
            self.ledger.break_rule("one end", About { push: Some(n), device: None }, what);
        }
    }
}
