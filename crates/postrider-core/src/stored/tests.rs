use super::*;
use crate::command::*;
use crate::id::*;
use crate::jobs::*;
use crate::model::*;
use crate::webhooks::*;
use proptest::prelude::*;

fn subscription() -> StoredSubscription {
    StoredSubscription {
        filter: "a/+/#".into(),
        share: Some(String::new()),
        qos: 2,
        no_local: true,
        retain_as_published: true,
        id: Some(0),
    }
}

fn registration() -> Box<Registration> {
    let attributes = [
        ("city".to_owned(), Attribute::Text("Köln".into())),
        ("none".to_owned(), Attribute::Text(String::new())),
        ("zero".to_owned(), Attribute::Number(-0.0)),
        ("off".to_owned(), Attribute::Bool(false)),
        ("least".to_owned(), Attribute::Integer(i64::MIN)),
    ];
    Box::new(Registration {
        app: AppNo(1),
        id: "phone".into(),
        secret_hash: Some([0; 32]),
        profile: Profile {
            platform: Platform::Harmony,
            alias: Some(String::new()),
            tags: vec!["a".into(), String::new()],
            attributes: attributes.into(),
            provider_tokens: [("fcm".to_owned(), "t".repeat(300))].into(),
        },
        now: u64::MAX,
        idempotency: Some(Idempotency { key: u128::MAX, request: 0, keep_until: 9, keys_max: 3 }),
        origin: Some(Origin::Xmpp),
        quota: Some(DeviceQuota { all_max: u64::MAX, own_max: 0 }),
    })
}

fn message(targets: Targets) -> Command {
    Command::Accept(Box::new(NewMessage {
        app: AppNo(0),
        id: MessageId(7 << 100),
        targets,
        accepted_at: 1,
        expires_at: 2,
        priority: Priority::Low,
        collapse_key: Some("k".into()),
        backlog: Backlog::Last(u16::MAX),
        idempotency: None,
        tracked: true,
        push: true,
        reject_when_full: true,
        inbox_max: 3,
        inbox_bytes_max: 4,
        peer_inbox_max: 5,
        room: Some(Room { messages_max: 0, bytes_max: u64::MAX, broadcasts_max: 7 }),
        submission: Some(Submission { title: Some(String::new()), ..Submission::default() }.into()),
        content: None,
    }))
}

fn hand_on(shares: Option<Vec<String>>) -> Command {
    let at = DeviceRef { app: AppNo(0), device: DeviceNo(3) };
    let (stay, only_here) = (vec![0, 1 << 60], shares.is_some());
    Command::HandOn(Box::new(HandOn { at, stay, shares, only_here, inbox_max: 1, inbox_bytes_max: u32::MAX }))
}

fn change() -> ProfileChange {
    ProfileChange {
        platform: Some(Platform::Android),
        alias: Some(None),
        tags: Some(Vec::new()),
        add_tags: vec!["x".into()],
        remove_tags: vec!["y".into()],
        attributes: [("gone".to_owned(), None), ("on".to_owned(), Some(Attribute::Bool(true)))].into(),
        provider_tokens: [("fcm".to_owned(), None)].into(),
    }
}

fn job_commands() -> Vec<Command> {
    let settle = |cursor, outcome| Command::SettleJob { job: JobNo(1), lease: 0, cursor, outcome, now: 3 };
    let name = |app| JobName { app, kind: JobKind::Webhook, subject: 0 };
    let error = String::new;
    vec![
        Command::OpenJob { name: name(None), cursor: 0, due_at: 0, now: 1 },
        Command::OpenJob { name: name(Some(AppNo(0))), cursor: u64::MAX, due_at: u64::MAX, now: 1 },
        Command::ClaimJobs {
            kind: JobKind::EmptyApp,
            worker: u64::MAX,
            max: 1,
            until: 2,
            now: 1,
            only: Some(JobNo(0)),
        },
        settle(None, JobOutcome::Again),
        settle(Some(0), JobOutcome::Rest { until: 0 }),
        settle(Some(9), JobOutcome::Keep { until: u64::MAX }),
        settle(None, JobOutcome::Failed { retry_at: 0, error: "no".into() }),
        settle(None, JobOutcome::Failed { retry_at: 7, error: error() }),
        settle(None, JobOutcome::Parked { error: error() }),
        settle(None, JobOutcome::Closed),
        Command::WakeJobs { jobs: vec![JobNo(0), JobNo(300)], failed_too: true, now: 1 },
        Command::WakeJobs { jobs: Vec::new(), failed_too: false, now: 1 },
        Command::RewindJob { job: JobNo(4), cursor: 0, now: 1 },
        Command::CloseJob { job: JobNo(4), now: 1 },
    ]
}

fn retained() -> RetainedMessage {
    let room = Some(RetainedRoom { messages_max: 3, bytes_max: 0 });
    RetainedMessage { qos: 1, expires_at: u64::MAX, room, content: None }
}

/// One of each kind, with what is easily lost: empty texts within options, zeros, both ends.
// tidy: table
fn commands() -> Vec<Command> {
    let at = DeviceRef { app: AppNo(2), device: DeviceNo(0) };
    let key = StoredKey {
        id: "k".into(),
        name: String::new(),
        scope: KeyScope::Register,
        hash: [3; 32],
        created_at: 5,
        revoked_at: Some(0),
    };
    let target = Target { device: DeviceNo(0), qos: 0, retain: true, subscription_ids: vec![0, 300] };
    let progress = |which| Progress {
        device: DeviceNo(4),
        which,
        step: Step::HandedOver,
        reason: Reason::SessionEnded,
        sent_at: Some(0),
    };
    let retained = retained();
    vec![
        Command::CreateApp { id: "a".into(), name: "名".into(), at: 1 },
        Command::AddKey { app: Some(AppNo(0)), key, keys_max: 1_000 },
        Command::RevokeKey { app: None, key_id: "k".into(), at: 2 },
        Command::Register(registration()),
        Command::ChangeDevice { at, change: change() },
        Command::ChangeDevice { at, change: ProfileChange::default() },
        Command::DeleteDevice { at, now: 1 },
        Command::OpenSession { at, expiry_secs: u32::MAX, fresh: true, now: 1 },
        Command::LeaveSession { at, expiry_secs: 0, now: 1 },
        Command::EndSession { at, now: 1 },
        Command::Subscribe { at, subscriptions: vec![subscription()] },
        Command::Unsubscribe { at, filters: vec![(Some(String::new()), "f".into()), (None, String::new())] },
        message(Targets::Direct(vec![target])),
        message(Targets::Direct(Vec::new())),
        message(Targets::Broadcast((0..100_000).collect())),
        message(Targets::Broadcast(DeviceSet::new())),
        message(Targets::Shared(Box::new(SharedTarget {
            share: "g/a/b".into(),
            member: DeviceNo(0),
            qos: 2,
            retain: true,
        }))),
        hand_on(None),
        hand_on(Some(Vec::new())),
        hand_on(Some(vec!["g/a".into(), String::new()])),
        Command::Progress {
            app: AppNo(0),
            steps: vec![progress(Which::Seq(0)), progress(Which::Id(MessageId(0)))],
            now: 8,
        },
        Command::Forward(Box::new(Forward {
            app: AppNo(1),
            road: "fcm".into(),
            deliveries: vec![(DeviceNo(0), 0), (DeviceNo(7), 9)],
            now: 3,
        })),
        Command::Cancel { app: AppNo(0), message: MessageId(1), now: 1 },
        Command::Expire { now: 0, limit: 0, history_before: 0, history_max: u32::MAX },
        Command::Retain { app: AppNo(0), topic: "t".into(), message: Some(retained) },
        Command::Retain { app: AppNo(0), topic: "t".into(), message: None },
        Command::Enroll { registration: registration(), proof_keys: Box::default() },
        Command::HearPeers { at, hears: true },
        Command::ChangeSecret { at, secret_hash: [1; 32], proof_keys: vec![9; 200].into() },
        Command::Seen { at, now: 7 },
        Command::ClearInbox { at, now: 1 },
        Command::RenameApp { app: AppNo(2), name: "n".into() },
        Command::CloseApp { app: AppNo(2), now: 1 },
        Command::EmptyApp { app: AppNo(2), limit: 5, now: 1 },
        put_webhook(),
        Command::DropWebhook { app: AppNo(0), id: "w".into() },
        moved_webhook(None),
        moved_webhook(Some(WebhookStop::Gone)),
        Command::ReplayWebhook { app: AppNo(0), id: "w".into(), position: 0 },
    ]
}

fn put_webhook() -> Command {
    let sealed = |until| SealedSecret { sealed: [0, 7].into(), until };
    Command::PutWebhook(Box::new(PutWebhook {
        app: AppNo(0),
        id: "w".into(),
        seen: 3,
        settings: WebhookSettings {
            url: "https://a.example/".into(),
            steps: vec![Step::Accepted, Step::Expired],
            batch_max: 1,
        },
        secrets: vec![sealed(None), sealed(Some(0))],
        enabled: false,
        webhooks_max: 9,
        now: 1,
    }))
}

fn moved_webhook(stop: Option<WebhookStop>) -> Command {
    let failure = WebhookFailure {
        at: 1,
        what: "timeout".into(),
        attempt: 2,
        request_id: "r".into(),
        events: 3,
        gave_up: true,
    };
    let progress = WebhookProgress {
        position: 1,
        sending: stop.map(|_| WebhookBatch { to: 9, epoch: u64::MAX, events: 2 }),
        attempts: 3,
        failing_since: Some(0),
        next_at: 4,
        delivered_at: None,
        delivered: 5,
        given_up: 6,
    };
    Command::MoveWebhook(Box::new(MoveWebhook {
        app: AppNo(0),
        id: "w".into(),
        version: 1,
        progress,
        failure: stop.map(|_| failure),
        stop,
        lease: 7,
        outcome: JobOutcome::Keep { until: 8 },
        now: 9,
    }))
}

#[test]
fn every_command_is_read_as_it_was_written() {
    for command in commands().into_iter().chain(job_commands()) {
        let mut bytes = Vec::new();
        put_command(&command, &mut bytes);
        let read = get_command(&bytes).unwrap();
        assert_eq!(format!("{read:?}"), format!("{command:?}"));
    }
}

/// The bytes of these records are on disks: a change here is a change of the format.
#[test]
fn the_bytes_of_a_command_do_not_change() {
    let bytes = |command: &Command| {
        let mut bytes = Vec::new();
        put_command(command, &mut bytes);
        bytes
    };
    let leave = Command::LeaveSession {
        at: DeviceRef { app: AppNo(1), device: DeviceNo(300) },
        expiry_secs: 60,
        now: 5,
    };
    assert_eq!(bytes(&leave), b"\xf3\x42\x0b\x0a\x05\x08\x01\x10\xac\x02\x10\x3c\x18\x05");
    let cancel = Command::Cancel { app: AppNo(0), message: MessageId(1), now: 1 };
    assert_eq!(bytes(&cancel), b"\xf3\x72\x14\x12\x10\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x18\x01");
}

#[test]
fn a_field_of_a_newer_release_is_refused_rather_than_passed_over() {
    let mut bytes = Vec::new();
    put_command(
        &Command::EndSession { at: DeviceRef { app: AppNo(1), device: DeviceNo(1) }, now: 1 },
        &mut bytes,
    );
    // One field more in the body of the only field: its length stands in the third byte.
    bytes[2] += 2;
    bytes.extend_from_slice(&[15 << 3, 1]);
    assert_eq!(get_command(&bytes).unwrap_err(), Bad::UnknownField(15));
    assert_eq!(get_command(&[THIRD, 120, 1]).unwrap_err(), Bad::Malformed);
    assert_eq!(get_command(&[THIRD]).unwrap_err(), Bad::Missing);
}

#[test]
fn contents_and_receipts_are_read_as_they_were_written() {
    let properties = ContentProperties {
        payload_is_utf8: true,
        expires: true,
        content_type: Some(String::new()),
        response_topic: None,
        correlation: Some(vec![0, 1].into()),
        user: vec![("k".into(), String::new()), ("k".into(), "v".into())],
    };
    for content in [
        Content::default(),
        Content {
            topic: Some(String::new()),
            payload: vec![0xf3; 70_000].into(),
            properties: Some(Box::new(properties)),
        },
    ] {
        let mut bytes = Vec::new();
        put_content(&content, &mut bytes);
        assert_eq!(get_content(&bytes), Ok(content));
    }
    let event = ReceiptEvent {
        position: 1,
        at: 2,
        app: AppNo(0),
        message: MessageId(u128::MAX),
        device: Some(DeviceNo(0)),
        step: Step::Accepted,
        reason: Reason::Ttl,
        count: 0,
        submission: Some(Submission { key: "k".into(), ..Submission::default() }.into()),
        road: Some("".into()),
    };
    let mut bytes = Vec::new();
    put_event(&event, &mut bytes);
    assert_eq!(get_event(&bytes), Ok(event));
}

proptest! {
    #[test]
    fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), third in any::<bool>()) {
        let bytes = if third { [&[THIRD], &bytes[..]].concat() } else { bytes };
        let _ = (get_command(&bytes), get_content(&bytes), get_event(&bytes));
        let _ = (read_state(3, &bytes), read_state(2, &bytes));
    }

    #[test]
    fn a_damaged_command_never_panics(at in any::<prop::sample::Index>(), bit in 0u8..8, which in any::<prop::sample::Index>()) {
        let all = [commands(), job_commands()].concat();
        let mut bytes = Vec::new();
        put_command(&all[which.index(all.len())], &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = get_command(&bytes);
    }
}
