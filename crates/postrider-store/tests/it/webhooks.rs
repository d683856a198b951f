//! Webhooks and the places in the receipt stream that they live by, over kills and restarts.

use crate::kit::*;
use postrider_core::command::{Command, NewMessage, Outcome};
use postrider_core::jobs::*;
use postrider_core::port::Store;
use postrider_core::webhooks::*;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedStore, MemoryStore};
use std::sync::Arc;

fn put(id: &str) -> Command {
    Command::PutWebhook(Box::new(PutWebhook {
        app: APP,
        id: id.into(),
        seen: 0,
        settings: WebhookSettings { url: "https://a.example/".into(), steps: Vec::new(), batch_max: 7 },
        secrets: vec![SealedSecret { sealed: [1, 2, 3].into(), until: None }],
        enabled: true,
        webhooks_max: 9,
        now: NOW,
    }))
}

/// Its worker claims the job, and says that the receiver is gone.
fn moved(store: &dyn Store, id: &str) -> Command {
    let webhook = store.webhook(APP, id).unwrap();
    let job = store.job_named(&webhook.job(APP)).unwrap().no;
    let (kind, until) = (JobKind::Webhook, NOW + 1_000);
    let claim = Command::ClaimJobs { kind, worker: 1, max: 1, until, now: NOW, only: Some(job) };
    let Outcome::JobsClaimed(claimed) = run_one(store, claim) else { panic!() };
    let progress = WebhookProgress {
        sending: Some(WebhookBatch { to: 9, epoch: store.epoch_of(9), events: 2 }),
        attempts: 3,
        failing_since: Some(NOW),
        next_at: NOW + 5,
        ..webhook.progress
    };
    let failure = WebhookFailure {
        at: NOW,
        what: "timeout".into(),
        attempt: 3,
        request_id: "msg_x".into(),
        events: 2,
        gave_up: false,
    };
    Command::MoveWebhook(Box::new(MoveWebhook {
        app: APP,
        id: id.into(),
        version: webhook.version,
        progress,
        failure: Some(failure),
        stop: Some(WebhookStop::Gone),
        lease: claimed[0].lease,
        outcome: JobOutcome::Parked { error: "gone".into() },
        now: NOW,
    }))
}

#[test]
fn a_webhook_is_after_a_kill_and_after_a_checkpoint_what_it_was() {
    let files = FaultyFiles::new(1);
    let store = open(&files).unwrap();
    populate(&store, 1);
    for id in ["one", "two"] {
        assert_eq!(run_one(&store, put(id)), Outcome::Done);
    }
    assert_eq!(run_one(&store, moved(&store, "two")), Outcome::Done);
    let before = store.webhooks(APP);
    let jobs = store.jobs(JobFilter::default(), None, 9);
    assert_eq!(jobs.0.iter().map(|job| job.state.name()).collect::<Vec<_>>(), ["due", "parked"]);
    drop(store);
    let killed = open(&files.kill()).unwrap();
    assert_eq!(killed.webhooks(APP), before);
    assert_eq!(killed.jobs(JobFilter::default(), None, 9), jobs);
    killed.checkpoint_now().unwrap();
    assert_eq!(run_one(&killed, Command::DropWebhook { app: APP, id: "one".into() }), Outcome::Done);
    drop(killed);
    let again = open(&files.kill()).unwrap();
    assert_eq!(again.webhooks(APP), before[1..]);
}

#[test]
fn a_receipt_keeps_the_start_that_gave_it_out() {
    let files = FaultyFiles::new(2);
    let mut starts = Vec::new();
    for round in 0..3 {
        let store = open(&files).unwrap();
        if round == 0 {
            populate(&store, 1);
        }
        for n in 0..5 {
            run_one(&store, accept(round * 5 + n, &[0]));
        }
        starts.push(store.epoch());
        for receipt in 1..=store.last_receipt() {
            let of = starts[(receipt as usize - 1) / 5];
            assert_eq!(store.epoch_of(receipt), of, "receipt {receipt} in round {round}");
        }
    }
}

#[test]
fn a_time_leads_to_the_place_before_its_receipts() {
    let files = FaultyFiles::new(3);
    let (memory, embedded) = (MemoryStore::new(), open(&files).unwrap());
    for store in [&memory as &dyn Store, &embedded] {
        populate(store, 1);
        // Three messages in each tenth of a second, over many files.
        for n in 0..900 {
            let message = NewMessage { accepted_at: NOW + n / 3 * 100, ..message(n, &[0]) };
            run_one(store, Command::Accept(Box::new(message)));
        }
    }
    let agrees = |store: &EmbeddedStore| {
        for at in (0..31_000).step_by(37).chain([0, 99, 100, 101, 29_900, 29_901]) {
            let at = NOW - 500 + at;
            assert_eq!(store.receipt_before(at), memory.receipt_before(at), "{at}");
        }
    };
    agrees(&embedded);
    assert_eq!(embedded.receipt_before(0), Ok(0));
    assert_eq!(embedded.receipt_before(u64::MAX), Ok(900));
    drop(embedded);
    agrees(&EmbeddedStore::open(small(DIR), Arc::new(files.kill())).unwrap());
}
