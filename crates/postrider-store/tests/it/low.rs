//! While space is low, what grows is refused, and what must always find room is taken: each command,
//! in each store.

use crate::full::{KIB, fill, limited};
use crate::kit::*;
use postrider_core::command::*;
use postrider_core::id::*;
use postrider_core::jobs::{JobKind, JobName, JobOutcome};
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::MemoryStore;
use postrider_store::faulty::FaultyFiles;

const JOB: JobName = JobName { app: Some(APP), kind: JobKind::Webhook, subject: 1 };
const DEVICE: DeviceRef = DeviceRef { app: APP, device: DeviceNo(0) };
const KINDS: usize = 31;

/// Each command has its place here and in the tables below; [`Command::grows`] does not compile
/// before a new one has decided.
fn kind(command: &Command) -> usize {
    match command {
        Command::CreateApp { .. } => 0,
        Command::AddKey { .. } => 1,
        Command::RevokeKey { .. } => 2,
        Command::Register(_) => 3,
        Command::ChangeDevice { .. } => 4,
        Command::DeleteDevice { .. } => 5,
        Command::OpenSession { .. } => 6,
        Command::LeaveSession { .. } => 7,
        Command::EndSession { .. } => 8,
        Command::Subscribe { .. } => 9,
        Command::Unsubscribe { .. } => 10,
        Command::Accept(_) => 11,
        Command::Progress { .. } => 12,
        Command::Cancel { .. } => 13,
        Command::Expire { .. } => 14,
        Command::Retain { .. } => 15,
        Command::Enroll { .. } => 16,
        Command::ChangeSecret { .. } => 17,
        Command::Seen { .. } => 18,
        Command::HearPeers { .. } => 19,
        Command::ClearInbox { .. } => 20,
        Command::RenameApp { .. } => 21,
        Command::CloseApp { .. } => 22,
        Command::EmptyApp { .. } => 23,
        Command::HandOn(_) => 24,
        Command::OpenJob { .. } => 25,
        Command::ClaimJobs { .. } => 26,
        Command::SettleJob { .. } => 27,
        Command::WakeJobs { .. } => 28,
        Command::RewindJob { .. } => 29,
        Command::CloseJob { .. } => 30,
        // Commands that came later: they are tried where they belong.
        #[allow(unreachable_patterns)]
        _ => KINDS,
    }
}

fn registration(name: &str) -> Box<Registration> {
    match register(name) {
        Command::Register(registration) => registration,
        other => panic!("{other:?}"),
    }
}

fn change(change: ProfileChange) -> Command {
    Command::ChangeDevice { at: DEVICE, change }
}

/// What is refused: it brings something new to keep.
fn growing() -> Vec<Command> {
    let subscription = StoredSubscription {
        filter: "a/#".into(),
        share: None,
        qos: 1,
        no_local: false,
        retain_as_published: false,
        id: None,
    };
    let retained = RetainedMessage { qos: 1, expires_at: LATER, room: None, content: Some(content(1)) };
    let attributes = [("city".to_owned(), Some(Attribute::Text("Ulm".into())))];
    vec![
        Command::CreateApp { id: "second".into(), name: "Second".into(), at: NOW },
        register("more"),
        Command::Enroll { registration: registration("more"), proof_keys: ProofKeys::default() },
        change(ProfileChange { add_tags: vec!["vip".into()], ..ProfileChange::default() }),
        change(ProfileChange { alias: Some(Some("ann".into())), ..ProfileChange::default() }),
        change(ProfileChange { attributes: attributes.into(), ..ProfileChange::default() }),
        Command::Subscribe { at: DEVICE, subscriptions: vec![subscription] },
        accept(20_000, &[0]),
        Command::Accept(Box::new(NewMessage {
            targets: Targets::Broadcast(DeviceSet::from_iter([0, 1])),
            ..message(20_001, &[])
        })),
        Command::Retain { app: APP, topic: "t".into(), message: Some(retained) },
        Command::OpenJob { name: JOB, cursor: 0, due_at: NOW, now: NOW },
    ]
}

/// What is taken: it ends something, or devices could not come back and acknowledge without it, or
/// somebody is shut out by it.
fn lasting() -> Vec<Command> {
    let key = StoredKey {
        id: "k".into(),
        name: String::new(),
        scope: KeyScope::App,
        hash: [3; 32],
        created_at: NOW,
        revoked_at: None,
    };
    let hand_on = HandOn {
        at: DEVICE,
        stay: Vec::new(),
        shares: None,
        only_here: false,
        inbox_max: 10,
        inbox_bytes_max: 10_000,
    };
    vec![
        Command::AddKey { app: Some(APP), key, keys_max: 10 },
        Command::RevokeKey { app: Some(APP), key_id: "k".into(), at: NOW },
        change(ProfileChange { remove_tags: vec!["t".into()], ..ProfileChange::default() }),
        change(ProfileChange { alias: Some(None), ..ProfileChange::default() }),
        Command::OpenSession { at: DEVICE, expiry_secs: 60, fresh: false, now: NOW },
        Command::Unsubscribe { at: DEVICE, filters: vec![(None, "a/#".into())] },
        Command::LeaveSession { at: DEVICE, expiry_secs: 60, now: NOW },
        Command::EndSession { at: DEVICE, now: NOW },
        step(0, Which::Id(id(0)), Step::Delivered),
        Command::Cancel { app: APP, message: id(1), now: NOW },
        expire(NOW),
        Command::Retain { app: APP, topic: "t".into(), message: None },
        Command::ChangeSecret { at: DEVICE, secret_hash: [9; 32], proof_keys: ProofKeys::default() },
        Command::Seen { at: DEVICE, now: NOW },
        Command::HearPeers { at: DEVICE, hears: true },
        Command::HandOn(Box::new(hand_on)),
        Command::ClearInbox { at: DEVICE, now: NOW },
        Command::DeleteDevice { at: DEVICE, now: NOW },
        Command::RenameApp { app: APP, name: "Other".into() },
        Command::ClaimJobs { kind: JobKind::Webhook, worker: 1, max: 1, until: LATER, now: NOW, only: None },
        Command::SettleJob {
            job: JobNo(0),
            lease: 1,
            cursor: None,
            outcome: JobOutcome::Failed { retry_at: LATER, error: "no".into() },
            now: NOW,
        },
        Command::WakeJobs { jobs: vec![JobNo(0)], failed_too: true, now: NOW },
        Command::RewindJob { job: JobNo(0), cursor: 0, now: NOW },
        Command::CloseJob { job: JobNo(0), now: NOW },
        Command::CloseApp { app: APP, now: NOW },
        Command::EmptyApp { app: APP, limit: 100, now: NOW },
    ]
}

fn refuses_what_grows(store: &dyn Store) {
    assert!(matches!(store.refuses(), Some(StoreError::StorageLow { .. })));
    for command in growing() {
        assert!(command.grows(), "{command:?}");
        let told = run(store, vec![command.clone()]);
        assert!(matches!(told, Err(StoreError::StorageLow { .. })), "{command:?}: {told:?}");
        // In company too: of a batch that brings something new, nothing is done.
        let told = run(store, vec![expire(NOW), command.clone()]);
        assert!(matches!(told, Err(StoreError::StorageLow { .. })), "{command:?} in a batch: {told:?}");
    }
    for command in lasting() {
        assert!(!command.grows(), "{command:?}");
        assert!(run(store, vec![command.clone()]).is_ok(), "{command:?}");
    }
}

#[test]
fn each_command_is_in_the_table() {
    let mut kinds: Vec<usize> = growing().iter().chain(&lasting()).map(kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, (0..KINDS).collect::<Vec<_>>());
}

#[test]
fn while_space_is_low_the_memory_store_refuses_what_grows_and_nothing_else() {
    let store = MemoryStore::new();
    populate(&store, 2);
    (0..2).for_each(|n| _ = run_one(&store, accept(n, &[0])));
    store.refuse(Some(StoreError::StorageLow { free_bytes: 0 }));
    refuses_what_grows(&store);
}

#[test]
fn while_space_is_low_the_embedded_store_refuses_what_grows_and_nothing_else() {
    let files = FaultyFiles::new(1);
    files.set_quota(Some(128 * KIB));
    let store = limited(&files);
    populate(&store, 2);
    assert!(fill(&store, &mut Promises::default(), 0) > 50);
    refuses_what_grows(&store);
}
