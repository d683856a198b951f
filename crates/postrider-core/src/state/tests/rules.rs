//! Recorded journals: the same commands leave the same state and the same receipts, by the rules of
//! each release that this one knows.
//!
//! `rules/N.journal` was executed by the rules N; `rules/digests.txt` says what came of it. That of
//! the first rules was made by the code of release 0.1. Where a test here fails, a rule has changed:
//! see the head of `state/rules.rs`. If these rules were never released, or only the stored form of a
//! state is another, `UPDATE=1 cargo test -p postrider-core rules` writes the digests anew. New rules,
//! or a new command, need a journal more: `RECORD=3 cargo test -p postrider-core rules` makes one
//! of what [`Sender`] thinks of.

use super::*;
use crate::jobs::{JobKind, JobName, JobOutcome};
use crate::state::rules::{OLDEST_RULES, RULES};
use crate::stored;
use crate::stored::codec::Fields;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Commands in a recorded journal.
const COMMANDS: usize = 2_500;
/// The last tag of a command that a journal was recorded of.
const RECORDED_TAGS: u32 = 31;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/state/tests/rules")
}

/// A command with the length of its content.
struct Recorded {
    bytes: Vec<u8>,
    content_len: u32,
}

fn read(name: &str) -> Vec<Recorded> {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((head, behind)) = rest.split_at_checked(8) {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (command, behind) = behind.split_at(word(0) as usize);
        all.push(Recorded { bytes: command.to_vec(), content_len: word(4) });
        rest = behind;
    }
    all
}

/// What comes of a journal: the digest of the state, and of all receipts.
fn outcome(journal: &[Recorded], rules: u32) -> String {
    let mut state = State::default();
    assert!(state.follow(rules));
    let (mut effects, mut receipts) = (Effects::default(), Vec::new());
    for (n, Recorded { bytes, content_len }) in journal.iter().enumerate() {
        let command = stored::get_command(bytes).unwrap();
        let (file, offset) = if *content_len > 0 { (1, n as u32 * 1000) } else { (0, 0) };
        state.execute(&command, BlobRef { file, offset, len: *content_len }, &mut effects);
        effects.events.drain(..).for_each(|event| stored::put_event(&event, &mut receipts));
        effects.over.clear();
        state.settle(state.seq());
    }
    assert_eq!(state.audit().apps.iter().map(|(_, app)| app.gap()).sum::<i64>(), 0);
    let receipts: [u8; 32] = Sha256::digest(&receipts).into();
    let receipts = u64::from_be_bytes(*receipts.first_chunk().unwrap());
    format!("{:032x} {receipts:016x}", state.digest())
}

/// Journals with the rules in their names, in order.
fn journals() -> Vec<(u32, String)> {
    let names = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut found: Vec<(u32, String)> = names
        .filter_map(|name| {
            let name = name.to_str()?.to_owned();
            let stem = name.strip_suffix(".journal")?;
            let rules = stem.split('-').next()?.parse().ok()?;
            Some((rules, name))
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn the_same_commands_leave_the_same_state_by_the_rules_of_each_release() {
    if let Ok(name) = std::env::var("RECORD") {
        record(&format!("{name}.journal"));
    }
    let mut lines = String::new();
    for (rules, name) in journals() {
        lines += &format!("{name} {}\n", outcome(&read(&name), rules));
    }
    let digests = folder().join("digests.txt");
    if std::env::var_os("UPDATE").is_some() || std::env::var_os("RECORD").is_some() {
        std::fs::write(&digests, &lines).unwrap();
    }
    let pinned = std::fs::read_to_string(&digests).unwrap();
    assert_eq!(
        lines, pinned,
        "the same commands leave another state, or other receipts, than before. A journal that was \
         not closed would be replayed to something else than its server has told: raise RULES and \
         keep what was (state/rules.rs), or see the head of state/tests/rules.rs"
    );
    let known: std::collections::BTreeSet<u32> = journals().iter().map(|(rules, _)| *rules).collect();
    assert_eq!(known, (OLDEST_RULES..=RULES).collect(), "each of the rules has a recorded journal");
}

#[test]
fn the_recorded_journals_tell_rules_apart() {
    let journal = read("1.journal");
    assert_ne!(outcome(&journal, 1), outcome(&journal, 2));
}

#[test]
fn every_command_is_in_a_recorded_journal() {
    let mut tags = std::collections::BTreeSet::new();
    for recorded in read("2.journal") {
        let (_, record) = recorded.bytes.split_first().unwrap();
        tags.insert(Fields(record).next().unwrap().unwrap().0);
    }
    assert_eq!(tags, (1..=RECORDED_TAGS).collect());
}

fn record(name: &str) {
    let mut sender = Sender::new(7);
    let mut bytes = Vec::new();
    for _ in 0..COMMANDS {
        let mut command = sender.next();
        let content_len = command.take_content().map_or(0, |content| content.payload.len() as u32);
        let mut record = Vec::new();
        stored::put_command(&command, &mut record);
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&content_len.to_le_bytes());
        bytes.extend_from_slice(&record);
        sender.learn(command, content_len);
    }
    std::fs::write(folder().join(name), bytes).unwrap();
}

/// Thinks of commands of every kind, by chance, so that they meet each other: few devices, few keys,
/// short lives, small inboxes.
struct Sender {
    random: u64,
    now: UnixMillis,
    names: u64,
    /// Executes along, to know which devices and messages there are.
    state: State,
    sent: Vec<(AppNo, MessageId, Seq)>,
}

impl Sender {
    fn new(seed: u64) -> Sender {
        Sender { random: seed, now: 1_700_000_000_000, names: 0, state: State::default(), sent: Vec::new() }
    }

    /// SplitMix64.
    fn chance(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.chance() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn app(&mut self) -> AppNo {
        AppNo(self.below(self.state.apps.len() as u64) as u32)
    }

    fn device_of(&mut self, app: AppNo) -> DeviceNo {
        let count = self.state.apps[app.0 as usize].devices.len() as u64;
        DeviceNo(self.below(count + 1) as u32)
    }

    fn at(&mut self) -> DeviceRef {
        let app = self.app();
        DeviceRef { app, device: self.device_of(app) }
    }

    fn learn(&mut self, command: Command, content_len: u32) {
        let outcome = self.state.execute(
            &command,
            BlobRef { len: content_len, ..BlobRef::default() },
            &mut Effects::default(),
        );
        if let (Command::Accept(message), Outcome::Accepted(accepted)) = (&command, outcome)
            && !accepted.repeated
        {
            self.sent.push((message.app, message.id, accepted.seq));
        }
    }

    fn next(&mut self) -> Command {
        self.now += self.pick(&[0, 1, 40, 700, 3000]);
        if self.state.apps.is_empty() {
            return Command::CreateApp { id: "app-0".into(), name: "App".into(), at: self.now };
        }
        match self.below(100) {
            0..=3 => self.of_apps(),
            4..=13 => self.of_registrations(),
            14..=18 => self.of_devices(),
            19..=35 => self.of_sessions(),
            36..=66 => self.accept(),
            67..=83 => self.progress(),
            84..=86 => {
                let (app, message, _) = self.known_message();
                Command::Cancel { app, message, now: self.now }
            }
            87..=90 => {
                let age = self.pick(&[2_000, 30_000, 200_000]);
                Command::Expire {
                    now: self.now,
                    limit: self.pick(&[1, 3, 2000]),
                    history_before: self.now - age,
                    history_max: self.pick(&[2, 10, 40, 1000]),
                }
            }
            91..=94 => self.of_jobs(),
            _ => self.retain(),
        }
    }

    fn of_apps(&mut self) -> Command {
        let (app, now) = (self.app(), self.now);
        match self.below(12) {
            0..=1 if self.state.apps.len() < 6 => {
                let id = format!("app-{}", self.below(7));
                Command::CreateApp { id, name: "App".into(), at: now }
            }
            0..=4 => {
                let hash = [self.name() as u8; 32];
                let id = format!("key-{}", self.below(9));
                let (name, scope) = ("k".into(), KeyScope::App);
                let key = StoredKey { id, name, scope, hash, created_at: now, revoked_at: None };
                Command::AddKey { app: (!self.one_in(3)).then_some(app), key, keys_max: 0 }
            }
            5..=6 => Command::RevokeKey { app: Some(app), key_id: format!("key-{}", self.below(9)), at: now },
            7 => Command::RenameApp { app, name: format!("App {}", self.below(3)) },
            8 if app.0 > 1 => Command::CloseApp { app, now },
            _ => Command::EmptyApp { app, limit: self.pick(&[1, 5, 1000]), now },
        }
    }

    /// A job, and the lease that somebody has on it.
    fn known_job(&mut self) -> (JobNo, u64) {
        let all: Vec<(JobNo, u64)> =
            self.state.jobs.records.iter().map(|(no, job)| (*no, job.leases)).collect();
        if all.is_empty() { (JobNo(1), 1) } else { self.pick(&all) }
    }

    fn of_jobs(&mut self) -> Command {
        let (now, (job, lease)) = (self.now, self.known_job());
        let until = now + self.pick(&[0, 500, 20_000]);
        match self.below(12) {
            0..=2 => {
                let (app, kind) = (self.pick(&[None, Some(AppNo(0)), Some(AppNo(2))]), JobKind::Webhook);
                let name = JobName { app, kind, subject: self.below(3) };
                Command::OpenJob { name, cursor: self.below(9), due_at: until, now }
            }
            3..=5 => {
                let kind = self.pick(&JobKind::ALL);
                let (worker, max) = (self.below(3), self.pick(&[1, 5]));
                Command::ClaimJobs { kind, worker, max, until, now, only: None }
            }
            6..=8 => {
                let outcomes = [
                    JobOutcome::Again,
                    JobOutcome::Rest { until: UnixMillis::MAX },
                    JobOutcome::Keep { until },
                    JobOutcome::Failed { retry_at: until, error: "no answer".into() },
                    JobOutcome::Parked { error: "refused".into() },
                    JobOutcome::Closed,
                ];
                let cursor = self.one_in(2).then_some(lease * 10);
                Command::SettleJob { job, lease, cursor, outcome: self.pick(&outcomes), now }
            }
            9 => Command::WakeJobs { jobs: vec![job], failed_too: self.one_in(2), now },
            10 => Command::RewindJob { job, cursor: 3, now },
            _ => Command::CloseJob { job, now },
        }
    }

    fn idempotency(&mut self) -> Option<Idempotency> {
        self.one_in(4).then(|| Idempotency {
            key: u128::from(self.below(40)),
            request: u128::from(self.below(2)),
            keep_until: self.now + self.below(100_000),
            keys_max: self.pick(&[0, 5, 100]),
        })
    }

    fn of_registrations(&mut self) -> Command {
        let number = self.name();
        let registration = Box::new(Registration {
            app: self.app(),
            id: format!("device-{}", if self.one_in(15) { 1 } else { number }),
            secret_hash: (!self.one_in(6)).then_some([number as u8; 32]),
            profile: Profile {
                platform: self.pick(&Platform::ALL),
                alias: self.one_in(3).then(|| "alias".into()),
                tags: vec!["b".into(), "a".into(), "b".into()],
                attributes: [("n".to_owned(), Attribute::Integer(number as i64))].into(),
                ..Profile::default()
            },
            now: self.now,
            idempotency: self.idempotency(),
            origin: self.pick(&[None, Some(Origin::Xmpp)]),
            quota: None,
        });
        if self.one_in(3) {
            let proof_keys = self.pick(&[Box::default(), vec![7; 20].into()]);
            return Command::Enroll { registration, proof_keys };
        }
        Command::Register(registration)
    }

    fn of_devices(&mut self) -> Command {
        let (at, now) = (self.at(), self.now);
        match self.below(10) {
            0..=1 => {
                let proof_keys = self.pick(&[Box::default(), vec![8; 9].into()]);
                Command::ChangeSecret { at, secret_hash: [9; 32], proof_keys }
            }
            2..=4 => {
                let alias = self.pick(&[None, Some(None), Some(Some("other".to_owned()))]);
                let (add_tags, remove_tags) = (vec!["z".into()], vec!["a".into()]);
                let change = ProfileChange { alias, add_tags, remove_tags, ..ProfileChange::default() };
                Command::ChangeDevice { at, change }
            }
            5 => Command::DeleteDevice { at, now },
            6 => Command::ClearInbox { at, now },
            7..=8 => Command::Seen { at, now },
            _ => Command::HearPeers { at, hears: self.one_in(2) },
        }
    }

    fn share(&mut self) -> (Option<String>, String) {
        (self.one_in(2).then(|| "crew".into()), format!("work/{}", self.below(2)))
    }

    fn of_sessions(&mut self) -> Command {
        let (at, now) = (self.at(), self.now);
        match self.below(17) {
            0..=4 => {
                let expiry_secs = self.below(30) as u32;
                Command::OpenSession { at, expiry_secs, fresh: self.one_in(4), now }
            }
            5..=7 => Command::LeaveSession { at, expiry_secs: self.pick(&[5, 20, u32::MAX]), now },
            8 => Command::EndSession { at, now },
            9..=13 => {
                let (share, filter) = self.share();
                let subscription = StoredSubscription {
                    filter,
                    share,
                    qos: self.below(3) as u8,
                    no_local: false,
                    retain_as_published: true,
                    id: self.one_in(2).then_some(5),
                };
                Command::Subscribe { at, subscriptions: vec![subscription] }
            }
            14 => Command::Unsubscribe { at, filters: vec![self.share()] },
            _ => {
                let stay = self.sent.iter().rev().take(3).map(|(_, _, seq)| *seq).collect();
                let shares = self.one_in(2).then(|| vec![share_name("crew", "work/1")]);
                Command::HandOn(Box::new(HandOn {
                    at,
                    stay,
                    shares,
                    only_here: self.one_in(2),
                    inbox_max: 5,
                    inbox_bytes_max: 900,
                }))
            }
        }
    }

    fn targets(&mut self, app: AppNo, is_push: bool) -> Targets {
        if !is_push && self.one_in(2) {
            let share = share_name("crew", &format!("work/{}", self.below(2)));
            let (member, qos) = (self.device_of(app), self.below(3) as u8);
            return Targets::Shared(Box::new(SharedTarget { share, member, qos, retain: self.one_in(2) }));
        }
        let count = self.pick(&[1, 1, 4, 9]);
        let devices: DeviceSet = (0..count).map(|_| self.device_of(app).0).collect();
        if is_push && self.one_in(3) {
            return Targets::Broadcast(devices);
        }
        let target = |device| Target {
            device: DeviceNo(device),
            qos: if is_push { 1 } else { self.below(3) as u8 },
            retain: self.one_in(5),
            subscription_ids: if is_push { Vec::new() } else { vec![self.below(3) as u32] },
        };
        Targets::Direct(devices.iter().map(target).collect())
    }

    fn accept(&mut self) -> Command {
        let (app, is_push) = (self.app(), !self.one_in(3));
        let targets = self.targets(app, is_push);
        let number = u128::from(self.name());
        let is_peer = is_push && matches!(targets, Targets::Direct(_)) && self.one_in(5);
        Command::Accept(Box::new(NewMessage {
            app,
            id: if is_push { MessageId::new(self.now, number) } else { MessageId(0) },
            targets,
            accepted_at: self.now,
            expires_at: self.now + 1 + self.below(60_000),
            priority: self.pick(&[Priority::Low, Priority::Normal, Priority::Normal, Priority::High]),
            collapse_key: (is_push && !self.one_in(3)).then(|| format!("key {}", self.below(3))),
            backlog: self.pick(&[Backlog::All, Backlog::Latest, Backlog::Last(2), Backlog::Last(65_535)]),
            idempotency: self.idempotency(),
            tracked: is_push,
            push: is_push,
            reject_when_full: self.one_in(8),
            inbox_max: 3 + self.below(20) as u32,
            inbox_bytes_max: 300 + self.below(3000) as u32,
            peer_inbox_max: if is_peer { 2 } else { 0 },
            room: None,
            submission: (is_push && self.one_in(2)).then(|| Submission::default().into()),
            content: self.content(),
        }))
    }

    fn content(&mut self) -> Option<Arc<Content>> {
        let payload = vec![0; 10 + self.below(300) as usize].into();
        Some(Arc::new(Content { payload, ..Content::default() }))
    }

    fn known_message(&mut self) -> (AppNo, MessageId, Seq) {
        let newest = self.sent.iter().rev().take(30).copied().collect::<Vec<_>>();
        if newest.is_empty() { (AppNo(0), MessageId(1), 1) } else { self.pick(&newest) }
    }

    fn progress(&mut self) -> Command {
        let (app, ..) = self.known_message();
        let mut steps = Vec::new();
        for _ in 0..1 + self.below(4) {
            let (_, id, seq) = self.known_message();
            let steps_of_all = [
                Step::Delivered,
                Step::Delivered,
                Step::Delivered,
                Step::Displayed,
                Step::Clicked,
                Step::Dismissed,
                Step::Rejected,
                Step::HandedOver,
            ];
            let step = self.pick(&steps_of_all);
            let reason = if step == Step::Rejected { Reason::TooLarge } else { Reason::None };
            let is_named = id.0 != 0 && self.one_in(2);
            let which = if is_named { Which::Id(id) } else { Which::Seq(seq) };
            let device = self.device_of(app);
            let sent_at = self.one_in(3).then_some(self.now);
            steps.push(Progress { device, which, step, reason, sent_at });
        }
        Command::Progress { app, steps, now: self.now }
    }

    fn retain(&mut self) -> Command {
        let (app, topic) = (self.app(), format!("topic/{}", self.below(4)));
        let expires_at = if self.one_in(2) { u64::MAX } else { self.now + self.below(9000) };
        let content = self.content();
        let message =
            (!self.one_in(4)).then_some(RetainedMessage { qos: 1, expires_at, room: None, content });
        Command::Retain { app, topic, message }
    }
}
