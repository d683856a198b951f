//! What every store does, whatever it is made of.

use crate::kit::*;
use postrider_core::command::*;
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{EmbeddedStore, MemoryStore};
use std::sync::Arc;

/// Each test runs against each store.
macro_rules! contract {
    ($($name:ident)*) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&|| Box::new(super::MemoryStore::new())); })*
        }
        mod embedded {
            $(#[test] fn $name() { super::$name(&|| super::embedded_store()); })*
        }
    };
}

type Make<'a> = &'a dyn Fn() -> Box<dyn Store>;

fn embedded_store() -> Box<dyn Store> {
    Box::new(EmbeddedStore::open(small(DIR), Arc::new(FaultyFiles::new(1))).unwrap())
}

contract! {
    an_accepted_message_lies_in_the_inbox_with_its_content
    a_delivery_leaves_the_inbox_when_it_is_acknowledged
    acknowledging_twice_takes_one_step
    a_delivery_is_named_open_to_its_own_device_until_it_ends
    an_inbox_is_in_the_order_of_acceptance_and_urgent_ones_are_first
    a_drain_goes_on_behind_its_position
    a_collapse_key_keeps_the_latest
    a_full_inbox_evicts_the_oldest_or_refuses
    what_expires_leaves_the_inbox_and_is_counted
    a_cancelled_message_leaves_every_inbox
    the_same_idempotency_key_gives_the_same_answer
    a_broadcast_reaches_the_devices_that_were_there
    a_session_outlives_its_connection_until_it_expires
    a_retained_message_stays_on_its_topic_until_it_is_taken_away
    bytes_of_retained_messages_are_counted_until_they_go
    a_report_tells_the_steps_of_every_device
    receipts_are_read_in_order_and_from_any_position
    receipts_of_another_app_are_not_shown
    a_deleted_device_is_forgotten_and_its_deliveries_are_ended
    keys_are_found_until_they_are_revoked
    devices_are_found_by_tag_alias_and_platform
    devices_that_registered_themselves_are_counted_until_they_were_there
    a_refused_command_changes_nothing
    a_batch_is_executed_in_order
    new_receipts_are_told
    a_content_that_was_never_there_is_missing
}

fn populated(make: Make<'_>, devices: u32) -> Box<dyn Store> {
    let store = make();
    populate(&*store, devices);
    store
}

fn an_accepted_message_lies_in_the_inbox_with_its_content(make: Make<'_>) {
    let store = populated(make, 2);
    let outcome = run_one(&*store, accept(1, &[1]));
    let accepted = acceptance(&outcome);
    assert_eq!((accepted.id, accepted.targeted, accepted.repeated), (id(1), 1, false));
    assert_eq!(inbox(&*store, 0), vec![]);
    let pending = inbox(&*store, 1);
    assert_eq!((pending.len(), pending[0].seq, pending[0].id), (1, accepted.seq, Some(id(1))));
    assert_eq!(*store.content(pending[0].blob).unwrap(), *content(1));
    assert_balanced(&*store);
}

fn a_delivery_leaves_the_inbox_when_it_is_acknowledged(make: Make<'_>) {
    let store = populated(make, 2);
    let seq = acceptance(&run_one(&*store, accept(1, &[0, 1]))).seq;
    assert_eq!(run_one(&*store, delivered(0, seq)), Outcome::Progressed { taken: 1 });
    assert_eq!((inbox(&*store, 0).len(), inbox(&*store, 1).len()), (0, 1));
    let app = store.app(APP).unwrap();
    assert_eq!((app.counters.created, app.counters.open()), (2, 1));
    assert_balanced(&*store);
}

fn acknowledging_twice_takes_one_step(make: Make<'_>) {
    let store = populated(make, 1);
    let seq = acceptance(&run_one(&*store, accept(1, &[0]))).seq;
    assert_eq!(run_one(&*store, delivered(0, seq)), Outcome::Progressed { taken: 1 });
    assert_eq!(run_one(&*store, delivered(0, seq)), Outcome::Progressed { taken: 0 });
    assert_eq!(run_one(&*store, delivered(0, 999)), Outcome::Progressed { taken: 0 });
    assert_balanced(&*store);
}

fn a_delivery_is_named_open_to_its_own_device_until_it_ends(make: Make<'_>) {
    let store = populated(make, 2);
    let direct = acceptance(&run_one(&*store, accept(1, &[0]))).seq;
    let cast = NewMessage { targets: Targets::Broadcast(DeviceSet::from_iter([0, 1])), ..message(2, &[]) };
    let cast = acceptance(&run_one(&*store, Command::Accept(Box::new(cast)))).seq;
    let of = |device_no| store.open_deliveries(device(device_no), &[cast, 999, direct]);
    assert_eq!((of(0), of(1), of(7)), (vec![cast, direct], vec![cast], Vec::<Seq>::new()));
    run_one(&*store, delivered(0, direct));
    run_one(&*store, delivered(0, cast));
    assert_eq!((of(0), of(1)), (Vec::<Seq>::new(), vec![cast]));
    let elsewhere = DeviceRef { app: AppNo(9), device: DeviceNo(1) };
    assert!(store.open_deliveries(elsewhere, &[cast]).is_empty());
}

fn an_inbox_is_in_the_order_of_acceptance_and_urgent_ones_are_first(make: Make<'_>) {
    let store = populated(make, 1);
    for n in 1..=3 {
        run_one(&*store, accept(n, &[0]));
    }
    let urgent = NewMessage { priority: Priority::High, ..message(4, &[0]) };
    run_one(&*store, Command::Accept(Box::new(urgent)));
    let order: Vec<_> = inbox(&*store, 0).iter().map(|p| p.id.unwrap()).collect();
    assert_eq!(order, vec![id(4), id(1), id(2), id(3)]);
}

fn a_drain_goes_on_behind_its_position(make: Make<'_>) {
    let store = populated(make, 1);
    for n in 1..=5 {
        run_one(&*store, accept(n, &[0]));
    }
    let first = store.pending(device(0), Position::default(), 2, NOW);
    assert_eq!(first.len(), 2);
    store.sent(APP, &[(DeviceNo(0), first[0].seq)], NOW);
    let position = Position { urgent: 0, normal: first[1].seq };
    let rest = store.pending(device(0), position, 10, NOW);
    assert_eq!(rest.iter().map(|p| p.id.unwrap()).collect::<Vec<_>>(), vec![id(3), id(4), id(5)]);
    let again = store.pending(device(0), Position::default(), 2, NOW);
    assert_eq!((again[0].sent_before, again[1].sent_before), (true, false));
}

fn a_collapse_key_keeps_the_latest(make: Make<'_>) {
    let store = populated(make, 1);
    for n in 1..=3 {
        let new =
            NewMessage { collapse_key: Some("score".into()), backlog: Backlog::Latest, ..message(n, &[0]) };
        run_one(&*store, Command::Accept(Box::new(new)));
    }
    let pending = inbox(&*store, 0);
    assert_eq!(pending.iter().map(|p| p.id.unwrap()).collect::<Vec<_>>(), vec![id(3)]);
    let ended = store.app(APP).unwrap().counters.ended;
    assert_eq!(ended[Step::Superseded as usize], 2);
    assert_balanced(&*store);
}

fn a_full_inbox_evicts_the_oldest_or_refuses(make: Make<'_>) {
    let store = populated(make, 1);
    for n in 1..=3 {
        run_one(&*store, Command::Accept(Box::new(NewMessage { inbox_max: 2, ..message(n, &[0]) })));
    }
    let order: Vec<_> = inbox(&*store, 0).iter().map(|p| p.id.unwrap()).collect();
    assert_eq!(order, vec![id(2), id(3)]);
    let new = NewMessage { inbox_max: 2, reject_when_full: true, ..message(4, &[0]) };
    let refused = run_one(&*store, Command::Accept(Box::new(new)));
    assert_eq!(refused, Outcome::Refused(Refusal::InboxFull));
    assert_eq!(store.app(APP).unwrap().counters.ended[Step::Evicted as usize], 1);
    assert_balanced(&*store);
}

fn what_expires_leaves_the_inbox_and_is_counted(make: Make<'_>) {
    let store = populated(make, 1);
    let new = NewMessage { expires_at: NOW + 5_000, ..message(1, &[0]) };
    run_one(&*store, Command::Accept(Box::new(new)));
    run_one(&*store, accept(2, &[0]));
    assert!(store.next_expiry().unwrap() <= NOW + 5_000);
    assert_eq!(store.pending(device(0), Position::default(), 9, NOW + 5_000).len(), 1);
    let outcome = run_one(&*store, expire(NOW + 6_000));
    assert_eq!(outcome, Outcome::Expired { messages: 1, sessions: vec![], handed_on: vec![], more: false });
    assert_eq!(store.app(APP).unwrap().counters.ended[Step::Expired as usize], 1);
    assert_eq!(store.last_time(), NOW + 6_000);
    assert_balanced(&*store);
}

fn a_cancelled_message_leaves_every_inbox(make: Make<'_>) {
    let store = populated(make, 3);
    let seq = acceptance(&run_one(&*store, accept(1, &[0, 1, 2]))).seq;
    run_one(&*store, delivered(0, seq));
    let cancel = Command::Cancel { app: APP, message: id(1), now: NOW };
    assert_eq!(run_one(&*store, cancel), Outcome::Cancelled { open: 2 });
    assert!((0..3).all(|no| inbox(&*store, no).is_empty()));
    let unknown = Command::Cancel { app: APP, message: id(9), now: NOW };
    assert_eq!(run_one(&*store, unknown), Outcome::Refused(Refusal::NoSuchMessage));
    assert_balanced(&*store);
}

fn the_same_idempotency_key_gives_the_same_answer(make: Make<'_>) {
    let store = populated(make, 1);
    let keyed = |n, request| {
        let idempotency = Some(Idempotency { key: 7, request, keep_until: NOW + 86_400_000, keys_max: 0 });
        Command::Accept(Box::new(NewMessage { idempotency, ..message(n, &[0]) }))
    };
    let first = acceptance(&run_one(&*store, keyed(1, 1))).clone();
    let again = acceptance(&run_one(&*store, keyed(2, 1))).clone();
    assert_eq!((again.id, again.seq, again.repeated), (first.id, first.seq, true));
    assert_eq!(run_one(&*store, keyed(3, 2)), Outcome::Refused(Refusal::IdempotencyMismatch));
    assert_eq!(inbox(&*store, 0).len(), 1);
    assert_balanced(&*store);
}

fn a_broadcast_reaches_the_devices_that_were_there(make: Make<'_>) {
    let store = populated(make, 4);
    let targets = Targets::Broadcast(DeviceSet::from_iter([0, 2, 3, 77]));
    let new = NewMessage { targets, ..message(1, &[]) };
    let accepted = acceptance(&run_one(&*store, Command::Accept(Box::new(new)))).clone();
    assert_eq!(accepted.targeted, 3);
    assert_eq!((inbox(&*store, 0).len(), inbox(&*store, 1).len(), inbox(&*store, 2).len()), (1, 0, 1));
    run_one(&*store, delivered(2, accepted.seq));
    assert_eq!((inbox(&*store, 0).len(), inbox(&*store, 2).len()), (1, 0));
    assert_eq!(store.live_broadcasts(APP), 1);
    assert_balanced(&*store);
}

fn a_session_outlives_its_connection_until_it_expires(make: Make<'_>) {
    let store = populated(make, 1);
    let at = device(0);
    let filter = |text: &str| StoredSubscription {
        filter: text.into(),
        share: None,
        qos: 1,
        no_local: false,
        retain_as_published: false,
        id: None,
    };
    let subscriptions = vec![filter("a/#"), filter("b")];
    run(
        &*store,
        vec![
            Command::OpenSession { at, expiry_secs: 60, fresh: false, now: NOW },
            Command::Subscribe { at, subscriptions },
            Command::Unsubscribe { at, filters: vec![(None, "b".into())] },
            Command::LeaveSession { at, expiry_secs: 60, now: NOW + 1_000 },
        ],
    )
    .unwrap();
    let sign_in = store.sign_in(at).unwrap();
    assert_eq!(sign_in.session, Some(StoredSession { expiry_secs: 60, left_at: Some(NOW + 1_000) }));
    assert_eq!(sign_in.subscriptions, vec![filter("a/#")]);
    assert_eq!(store.sessions().len(), 1);
    let ended = run_one(&*store, expire(NOW + 62_000));
    assert_eq!(ended, Outcome::Expired { messages: 0, sessions: vec![at], handed_on: vec![], more: false });
    assert_eq!(store.sessions(), vec![]);
}

fn a_retained_message_stays_on_its_topic_until_it_is_taken_away(make: Make<'_>) {
    let store = populated(make, 1);
    let put = |n: u64| Command::Retain {
        app: APP,
        topic: "house/door".into(),
        message: Some(RetainedMessage {
            qos: 1,
            expires_at: NOW + 9_000,
            room: None,
            content: Some(content(n)),
        }),
    };
    run(&*store, vec![put(1), put(2)]).unwrap();
    let found = store.retained(APP, "house/+", 10, NOW);
    assert_eq!((found.len(), found[0].topic.as_str()), (1, "house/door"));
    assert_eq!(*store.content(found[0].blob).unwrap(), *content(2));
    assert_eq!(store.retained_count(APP), 1);
    run_one(&*store, Command::Retain { app: APP, topic: "house/door".into(), message: None });
    assert_eq!(store.retained(APP, "#", 10, NOW), vec![]);
}

fn bytes_of_retained_messages_are_counted_until_they_go(make: Make<'_>) {
    let store = populated(make, 1);
    let put = |topic: &str, n: u64, expires_at| {
        let message = Some(RetainedMessage { qos: 1, expires_at, room: None, content: Some(content(n)) });
        run_one(&*store, Command::Retain { app: APP, topic: topic.into(), message });
        store.retained_bytes(APP)
    };
    let one = put("a", 1, NOW + 9_000);
    assert!(one > 0);
    assert_eq!((put("a", 1, NOW + 9_000), put("b", 1, NOW + 1_000)), (one, 2 * one));
    run_one(&*store, Command::Retain { app: APP, topic: "a".into(), message: None });
    assert_eq!(store.retained_bytes(APP), one);
    let expire = Command::Expire { now: NOW + 2_000, limit: 10, history_before: 0, history_max: 50 };
    run_one(&*store, expire);
    assert_eq!(store.retained_bytes(APP), 0);
}

fn a_report_tells_the_steps_of_every_device(make: Make<'_>) {
    let store = populated(make, 3);
    let seq = acceptance(&run_one(&*store, accept(1, &[0, 1, 2]))).seq;
    run_one(&*store, delivered(0, seq));
    run_one(&*store, step(0, Which::Id(id(1)), Step::Clicked));
    run_one(&*store, delivered(1, seq));
    let report = store.message(APP, id(1)).unwrap();
    assert_eq!((report.targeted, report.now[Step::Clicked as usize]), (3, 1));
    assert_eq!(report.reached[Step::Delivered as usize], 2);
    let delivery = store.delivery(APP, id(1), DeviceNo(0)).unwrap();
    assert_eq!(delivery.step, Step::Clicked);
    let queued = store.deliveries(APP, id(1), Some(Step::Queued), None, 10);
    assert_eq!(queued.iter().map(|d| d.device.0).collect::<Vec<_>>(), vec![2]);
    assert_eq!(store.messages(APP, None, 10).len(), 1);
}

fn receipts_are_read_in_order_and_from_any_position(make: Make<'_>) {
    let store = populated(make, 2);
    for n in 1..=200 {
        let seq = acceptance(&run_one(&*store, accept(n, &[0, 1]))).seq;
        run_one(&*store, delivered((n % 2) as u32, seq));
    }
    let all = store.events(APP, 0, 10_000).unwrap();
    assert!(!all.missed && all.events.len() >= 400);
    assert!(all.events.windows(2).all(|pair| pair[0].position + 1 == pair[1].position));
    assert_eq!(all.next, all.events.last().unwrap().position);
    let mut paged = Vec::new();
    let mut after = 0;
    loop {
        let page = store.events(APP, after, 7).unwrap();
        assert!(page.events.len() <= 7 && !page.missed);
        if page.next == after {
            break;
        }
        after = page.next;
        paged.extend(page.events);
    }
    assert_eq!(paged, all.events);
    let end = store.events(APP, all.next, 10).unwrap();
    assert_eq!((end.events.len(), end.next), (0, all.next));
}

fn receipts_of_another_app_are_not_shown(make: Make<'_>) {
    let store = populated(make, 1);
    run_one(&*store, Command::CreateApp { id: "other".into(), name: "Other".into(), at: NOW });
    run_one(&*store, accept(1, &[0]));
    let page = store.events(AppNo(1), 0, 10).unwrap();
    assert_eq!(page.events, vec![]);
    assert!(page.next > 0, "what was looked at need not be looked at again");
}

fn a_deleted_device_is_forgotten_and_its_deliveries_are_ended(make: Make<'_>) {
    let store = populated(make, 2);
    run_one(&*store, accept(1, &[0, 1]));
    run_one(&*store, Command::DeleteDevice { at: device(0), now: NOW });
    assert_eq!(store.device_by_id(APP, "device-0"), None);
    assert!(store.device(device(0)).is_none() && inbox(&*store, 0).is_empty());
    assert_eq!(store.app(APP).unwrap().counters.ended[Step::Erased as usize], 1);
    assert_eq!(store.all_devices(APP).len(), 1);
    assert_balanced(&*store);
}

fn keys_are_found_until_they_are_revoked(make: Make<'_>) {
    let store = populated(make, 0);
    let key = StoredKey {
        id: "k1".into(),
        name: "first".into(),
        scope: KeyScope::App,
        hash: [3; 32],
        created_at: NOW,
        revoked_at: None,
    };
    run_one(&*store, Command::AddKey { app: Some(APP), key: key.clone(), keys_max: 0 });
    assert_eq!(store.key(&[3; 32]), Some((Some(APP), key)));
    run_one(&*store, Command::RevokeKey { app: Some(APP), key_id: "k1".into(), at: NOW });
    assert_eq!(store.key(&[3; 32]), None);
    assert_eq!(store.keys(Some(APP)).len(), 1);
}

fn devices_are_found_by_tag_alias_and_platform(make: Make<'_>) {
    let store = populated(make, 2);
    let change = ProfileChange {
        platform: Some(Platform::Ios),
        alias: Some(Some("ann".into())),
        add_tags: vec!["news".into()],
        ..ProfileChange::default()
    };
    run_one(&*store, Command::ChangeDevice { at: device(1), change });
    let only = DeviceSet::from_iter([1]);
    assert_eq!(store.devices_with_tag(APP, "news"), only);
    assert_eq!(store.devices_with_alias(APP, "ann"), only);
    assert_eq!(store.devices_on(APP, Platform::Ios), only);
    let filter = DeviceFilter { tag: Some("news".into()), ..DeviceFilter::default() };
    assert_eq!(store.devices(APP, &filter, None, 10).len(), 1);
    let ids = store.device_ids(APP, &[DeviceNo(1), DeviceNo(9)]);
    assert_eq!(ids, vec![Some("device-1".into()), None]);
    store.seen(device(1), NOW + 5);
    assert_eq!(store.device(device(1)).unwrap().last_seen_at, Some(NOW + 5));
}

fn devices_that_registered_themselves_are_counted_until_they_were_there(make: Make<'_>) {
    let store = populated(make, 1);
    for name in ["own-1", "own-2"] {
        let Command::Register(mut registration) = register(name) else { unreachable!() };
        registration.origin = Some(Origin::RegisterKey);
        run_one(&*store, Command::Register(registration));
    }
    let own = |count, device: Option<DeviceRef>| OwnDevices { count, never_seen: device.map(|at| (at, NOW)) };
    assert_eq!(store.own_devices(APP), own(2, Some(device(1))));
    assert_eq!(store.device(device(1)).unwrap().origin, Some(Origin::RegisterKey));
    assert!(!store.is_seen_due(device(0), NOW + 9) && store.is_seen_due(device(1), NOW + 9));
    run_one(&*store, Command::Seen { at: device(1), now: NOW + 2 });
    assert!(!store.is_seen_due(device(1), NOW + 9));
    assert_eq!(store.own_devices(APP), own(2, Some(device(2))));
    run_one(&*store, Command::Seen { at: device(2), now: NOW + 3 });
    assert_eq!(store.own_devices(APP), own(2, None));
    assert_eq!(store.device(device(2)).unwrap().last_seen_at, Some(NOW + 3));
    run_one(&*store, Command::DeleteDevice { at: device(1), now: NOW + 4 });
    assert_eq!(store.own_devices(APP), own(1, None));
}

fn a_refused_command_changes_nothing(make: Make<'_>) {
    let store = populated(make, 1);
    let before = store.apps();
    let unknown = NewMessage { app: AppNo(9), ..message(1, &[0]) };
    let refused = run_one(&*store, Command::Accept(Box::new(unknown)));
    assert_eq!(refused, Outcome::Refused(Refusal::NoSuchApp));
    assert_eq!(run_one(&*store, create_app()), Outcome::Refused(Refusal::Exists));
    assert_eq!(store.apps(), before);
    assert_eq!(acceptance(&run_one(&*store, accept(2, &[0]))).targeted, 1);
}

fn a_batch_is_executed_in_order(make: Make<'_>) {
    let store = make();
    let outcomes = run(&*store, vec![create_app(), register("d"), accept(1, &[0]), accept(2, &[0])]).unwrap();
    assert_eq!(outcomes[0], Outcome::AppCreated(APP));
    assert_eq!(outcomes[1], Outcome::Registered { at: device(0), existed: false });
    let (first, second) = (acceptance(&outcomes[2]).seq, acceptance(&outcomes[3]).seq);
    assert_eq!(first + 1, second);
    assert_eq!(run(&*store, vec![]), Ok(vec![]));
}

fn new_receipts_are_told(make: Make<'_>) {
    let store = populated(make, 1);
    run_one(&*store, accept(1, &[0]));
    let page = store.events(APP, 0, 10).unwrap();
    assert_eq!(page.events[0].step, Step::Queued);
    assert_eq!(page.events[0].message, id(1));
}

fn a_content_that_was_never_there_is_missing(make: Make<'_>) {
    let store = populated(make, 1);
    assert_eq!(store.content(BlobRef::default()), Err(StoreError::Missing));
    assert_eq!(store.content(BlobRef { file: 99, offset: 3, len: 4 }), Err(StoreError::Missing));
}

#[test]
fn what_is_held_back_is_executed_but_does_not_count_as_stored() {
    let store = MemoryStore::new();
    populate(&store, 1);
    let watch = store.watch_events();
    let (tell, told) = std::sync::mpsc::channel();
    store.hold();
    for n in 1..=2 {
        let tell = tell.clone();
        store
            .submit(vec![accept(n, &[0])], Box::new(move |result| tell.send(result.unwrap().len()).unwrap()));
    }
    assert_eq!((store.held(), inbox(&store, 0).len(), told.try_iter().count()), (2, 0, 0));
    assert_eq!(store.events(APP, 0, 10).unwrap().events, vec![]);
    store.release(1);
    assert_eq!((store.held(), inbox(&store, 0).len(), told.try_iter().count()), (1, 1, 1));
    assert_eq!(watch.latest(), 1);
    store.release_all();
    assert_eq!((store.held(), inbox(&store, 0).len()), (0, 2));
    run_one(&store, accept(3, &[0]));
    assert_eq!(inbox(&store, 0).len(), 3);
}

#[test]
fn an_injected_fault_is_told_and_nothing_is_done() {
    let store = MemoryStore::new();
    populate(&store, 1);
    store.fail_next(StoreError::Overloaded);
    assert_eq!(run(&store, vec![accept(1, &[0])]), Err(StoreError::Overloaded));
    let low = StoreError::StorageLow { free_bytes: 5 };
    store.refuse(Some(low.clone()));
    assert_eq!(run(&store, vec![accept(1, &[0])]), Err(low.clone()));
    assert_eq!(store.refuses(), Some(low));
    assert!(run(&store, vec![expire(NOW)]).is_ok());
    store.refuse(None);
    run_one(&store, accept(2, &[0]));
    assert_eq!(inbox(&store, 0).len(), 1);
}

#[test]
fn receipts_beyond_their_retention_are_told_as_missed() {
    let files = FaultyFiles::new(1);
    let config = postrider_store::EmbeddedConfig { events_bytes_max: 8 * 1024, ..small(DIR) };
    let open = || EmbeddedStore::open(config.clone(), Arc::new(files.clone())).unwrap();
    let store = open();
    populate(&store, 1);
    let heard = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let ear = heard.clone();
    store.watch_events().on_new(move |position, _| ear.store(position, std::sync::atomic::Ordering::SeqCst));
    for n in 0..600 {
        run_one(&store, accept(n, &[0]));
    }
    assert_eq!((heard.load(std::sync::atomic::Ordering::SeqCst), store.watch_events().latest()), (600, 600));
    let assert_missed = |store: &dyn Store| {
        let page = store.events(APP, 0, 10_000).unwrap();
        assert!(page.missed && page.next == 600);
        assert!(
            page.events.len() < 300 && page.events.windows(2).all(|p| p[0].position + 1 == p[1].position)
        );
        let recent = store.events(APP, 590, 10_000).unwrap();
        assert_eq!((recent.missed, recent.events.len()), (false, 10));
    };
    assert_missed(&store);
    drop(store);
    assert_missed(&open());
}

#[test]
fn both_stores_give_the_same_answers_to_a_long_random_history() {
    let memory = MemoryStore::new();
    let files = FaultyFiles::new(5);
    let embedded = open(&files).unwrap();
    let mut random = Random(42);
    for store in [&memory as &dyn Store, &embedded] {
        populate(store, 8);
    }
    for n in 0..600 {
        let command = random_command(&mut random, n);
        let expected = run(&memory, vec![command.clone()]).unwrap();
        assert_eq!(run(&embedded, vec![command]).unwrap(), expected, "command {n}");
        if n % 150 == 149 {
            embedded.checkpoint_now().unwrap();
        }
    }
    assert_same(&memory, &embedded);
    drop(embedded);
    // What was recovered from a checkpoint and a journal goes on as if nothing had been.
    let recovered = open(&files.kill()).unwrap();
    assert_same(&memory, &recovered);
    for n in 600..1200 {
        let command = random_command(&mut random, n);
        let expected = run(&memory, vec![command.clone()]).unwrap();
        assert_eq!(run(&recovered, vec![command]).unwrap(), expected, "command {n}");
    }
    assert_same(&memory, &recovered);
}

pub fn random_command(random: &mut Random, n: u64) -> Command {
    let device = random.below(8) as u32;
    match random.below(13) {
        0..=4 => {
            let other = (device + 1) % 8;
            let keyed = random.below(3) == 0;
            Command::Accept(Box::new(NewMessage {
                collapse_key: keyed.then(|| "k".into()),
                backlog: if keyed { Backlog::Last(2) } else { Backlog::All },
                expires_at: NOW + 1_000 + random.below(50_000),
                inbox_max: 10,
                ..message(n, &[device, other])
            }))
        }
        5 => {
            let targets = Targets::Broadcast((0..=device).collect());
            Command::Accept(Box::new(NewMessage { targets, ..message(n, &[]) }))
        }
        6..=8 => delivered(device, 10 + random.below(n + 1)),
        9 => Command::Cancel { app: APP, message: id(random.below(n + 1)), now: NOW },
        10 => Command::Retain {
            app: APP,
            topic: format!("t/{device}"),
            message: (!n.is_multiple_of(3)).then(|| RetainedMessage {
                qos: 0,
                expires_at: NOW * 2,
                room: None,
                content: Some(content(n)),
            }),
        },
        11 => Command::ChangeSecret {
            at: self::device(device),
            secret_hash: [n as u8; 32],
            proof_keys: vec![n as u8; random.below(3) as usize].into(),
        },
        _ => {
            let now = NOW + random.below(40_000);
            Command::Expire { now, limit: 1 + n as u32 % 5, history_before: 0, history_max: 50 }
        }
    }
}

/// Whatever can be asked, both answer the same (but for where contents lie).
pub fn assert_same(one: &dyn Store, other: &dyn Store) {
    for no in 0..8 {
        assert_eq!(one.sign_in(device(no)), other.sign_in(device(no)), "device {no}");
        let strip = |store: &dyn Store| {
            let mut pending = inbox(store, no);
            let contents: Vec<_> = pending.iter().map(|p| store.content(p.blob).unwrap()).collect();
            pending.iter_mut().for_each(|p| p.blob = BlobRef::default());
            (pending, contents)
        };
        assert_eq!(strip(one), strip(other), "inbox {no}");
    }
    assert_eq!(one.apps(), other.apps());
    assert_eq!(one.audit(), other.audit());
    let reports = |store: &dyn Store| {
        let mut reports = store.messages(APP, None, 10_000);
        reports.iter_mut().for_each(|report| report.blob = report.blob.map(|_| BlobRef::default()));
        reports
    };
    assert_eq!(reports(one), reports(other));
    assert_eq!(one.last_time(), other.last_time());
    assert_eq!(one.events(APP, 0, 100_000).unwrap().events, other.events(APP, 0, 100_000).unwrap().events);
    let retained = |store: &dyn Store| {
        let mut found = store.retained(APP, "#", 1000, NOW);
        found.sort_by(|a, b| a.topic.cmp(&b.topic));
        found.iter().map(|r| (r.topic.clone(), store.content(r.blob).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(retained(one), retained(other));
}
