//! Folders that earlier releases wrote, byte for byte as they wrote them: every later release opens
//! them and shows what they showed. The texts were written by the code that made the folders;
//! `conformance/golden.py` makes a folder of a release, and `SHOW=NAME cargo test -p postrider-store golden`
//! in that release writes the text of a new one.

use crate::kit::{self, DIR};
use postrider_core::id::*;
use postrider_core::model::*;
use postrider_core::port::*;
use postrider_store::EmbeddedStore;
use postrider_store::faulty::FaultyFiles;
use postrider_store::files::Files;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A time at which nothing in the folders has expired that had not when they were made.
const THEN: UnixMillis = 1_795_875_000_000;

pub fn folder(name: &str) -> FaultyFiles {
    let files = FaultyFiles::new(1);
    files.create_dir(Path::new(DIR)).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    for entry in std::fs::read_dir(&golden).unwrap() {
        let entry = entry.unwrap();
        let file = files.create(&Path::new(DIR).join(entry.file_name())).unwrap();
        file.write_all_at(&std::fs::read(entry.path()).unwrap(), 0).unwrap();
        file.sync().unwrap();
    }
    files.sync_dir(Path::new(DIR)).unwrap();
    files
}

/// Everything that can be asked of a store, in words that do not change with its types.
pub fn shown(store: &EmbeddedStore) -> String {
    let mut out = String::new();
    for key in store.keys(None) {
        show_key(&mut out, &key);
    }
    for app in store.apps() {
        let AppView { no, id, name, created_at, devices, counters, open: _ } = app;
        let ended: Vec<String> = Step::ALL
            .iter()
            .map(|step| (step, counters.ended[*step as usize]))
            .filter(|(_, n)| *n > 0)
            .map(|(step, n)| format!("{}={n}", step.name()))
            .collect();
        let (messages, created) = (counters.messages, counters.created);
        writeln!(out, "app {id} {name:?} at {created_at}: {devices} devices").unwrap();
        writeln!(out, "  counted {messages} messages, {created} deliveries, {}", ended.join(" ")).unwrap();
        writeln!(out, "  broadcasts {}", store.live_broadcasts(no)).unwrap();
        for key in store.keys(Some(no)) {
            show_key(&mut out, &key);
        }
        for retained in store.retained(no, "#", 1000, THEN) {
            let content = store.content(retained.blob).unwrap();
            let (topic, qos, until) = (&retained.topic, retained.qos, retained.expires_at);
            writeln!(out, "  retained {topic} qos {qos} until {until}: {:?}", content.payload).unwrap();
        }
        show_devices(&mut out, store, no);
        show_messages(&mut out, store, no);
        show_events(&mut out, store, no);
    }
    for (_, app) in store.audit().apps {
        assert_eq!(app.gap(), 0);
    }
    out
}

fn show_key(out: &mut String, key: &StoredKey) {
    let StoredKey { id, name, scope, hash, created_at, revoked_at, .. } = key;
    writeln!(out, "  key {id} {name:?} {scope:?} {created_at} {revoked_at:?} {}", hash[0]).unwrap();
}

fn show_devices(out: &mut String, store: &EmbeddedStore, app: AppNo) {
    for device in store.devices(app, &DeviceFilter::default(), None, 1000) {
        let Profile { platform, alias, tags, attributes, provider_tokens, .. } = &device.profile;
        writeln!(out, "  device {} {} {platform:?} {alias:?} {tags:?}", device.at.device.0, device.id)
            .unwrap();
        writeln!(out, "    {attributes:?} {provider_tokens:?}").unwrap();
        let (created, seen, inbox) = (device.created_at, device.last_seen_at, device.inbox_len);
        writeln!(out, "    created {created}, seen {seen:?}, {inbox} in the inbox").unwrap();
        let session = device.session.map(|s| (s.expiry_secs, s.left_at));
        writeln!(out, "    session {session:?}").unwrap();
        for subscription in &device.subscriptions {
            let StoredSubscription { filter, share, qos, no_local, retain_as_published, id, .. } =
                subscription;
            writeln!(out, "    filter {filter} {share:?} {qos} {no_local} {retain_as_published} {id:?}")
                .unwrap();
        }
        let keys = store.sign_in(device.at).unwrap();
        let hash = keys.secret_hash.map(|hash| hash[0]);
        writeln!(out, "    secret {hash:?} {:?}", keys.proof_keys.map(|k| k.len())).unwrap();
        for pending in store.pending(device.at, Position::default(), 1000, THEN) {
            let Pending { seq, id, accepted_at, expires_at, urgent, qos, retain, .. } = &pending;
            let content = store.content(pending.blob).unwrap();
            write!(out, "    waits {seq} {id:?} {accepted_at}-{expires_at} {urgent} {qos} {retain} ")
                .unwrap();
            let properties = content.properties.as_ref().map(|p| (p.payload_is_utf8, p.user.len()));
            let digest = content.payload.iter().fold(0u32, |d, b| d.rotate_left(5) ^ u32::from(*b));
            writeln!(out, "{:?} {properties:?} {} {digest:08x}", content.topic, content.payload.len())
                .unwrap();
        }
    }
}

fn show_messages(out: &mut String, store: &EmbeddedStore, app: AppNo) {
    for view in store.messages(app, None, 1000) {
        let MessageView { id, accepted_at, expires_at, priority, collapse_key, targeted, .. } = &view;
        writeln!(out, "  message {id} {accepted_at}-{expires_at} {priority:?} {collapse_key:?}").unwrap();
        writeln!(out, "    for {targeted}, cancelled {:?}", view.cancelled_at).unwrap();
        let mut reasons = view.reasons.clone();
        reasons.sort_by_key(|(step, reason, _)| (*step, reason.name()));
        writeln!(out, "    {reasons:?}").unwrap();
        for delivery in store.deliveries(app, *id, None, None, 1000) {
            let DeliveryView { device, step, reason, timeline, .. } = delivery;
            let timeline: Vec<_> = timeline.iter().map(|m| (m.step, m.reason, m.at)).collect();
            writeln!(out, "    {} {step:?} {reason:?} {timeline:?}", device.0).unwrap();
        }
    }
}

fn show_events(out: &mut String, store: &EmbeddedStore, app: AppNo) {
    for event in store.events(app, 0, 10_000).unwrap().events {
        let ReceiptEvent { position, at, message, device, step, reason, count, .. } = event;
        let device = device.map(|d| d.0);
        writeln!(out, "  event {position} {at} {message} {device:?} {step:?} {reason:?} {count}").unwrap();
    }
}

/// What the release that made a folder said of it.
pub fn said(name: &str) -> String {
    std::fs::read_to_string(text_of(name)).unwrap()
}

fn text_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"))
}

pub fn assert_shows(files: &FaultyFiles, name: &str) -> FaultyFiles {
    let store = kit::open(files).unwrap();
    assert!(store.problems().is_empty(), "{:?}", store.problems());
    let now = shown(&store);
    if std::env::var("SHOW").is_ok_and(|wanted| wanted == name) {
        std::fs::write(text_of(name), &now).unwrap();
    }
    let then = said(name);
    for (i, (now, then)) in now.lines().zip(then.lines()).enumerate() {
        assert_eq!(now, then, "line {}", i + 1);
    }
    assert_eq!(now.len(), then.len());
    drop(store);
    files.kill()
}

/// As it is, and after a checkpoint by the code of today.
fn assert_shows_for_ever(name: &str) {
    let once = assert_shows(&folder(name), name);
    let store = kit::open(&once).unwrap();
    store.checkpoint_now().unwrap();
    drop(store);
    assert_shows(&once.kill(), name);
}

#[test]
fn a_folder_of_the_second_format_shows_what_it_showed_then() {
    assert_shows_for_ever("second");
}

/// Its journal has what other rules would do otherwise: `conformance/upgrade.py` says what.
#[test]
fn a_journal_of_the_first_rules_is_replayed_by_them() {
    assert_shows_for_ever("first-rules");
}

#[test]
fn a_folder_of_the_third_format_shows_what_it_showed_then() {
    assert_shows_for_ever("third");
}

#[test]
fn a_folder_that_names_its_rules_shows_what_it_showed_then() {
    assert_shows_for_ever("third-with-rules");
}

#[test]
fn a_folder_without_proof_keys_shows_what_it_showed_then() {
    assert_shows(&folder("second-without-keys"), "second-without-keys");
}

/// The folder as the first format has it: nothing behind the state of a checkpoint, and 1 in each header.
fn in_the_first_format(files: &FaultyFiles) -> FaultyFiles {
    let files = files.kill();
    for (path, _) in files.paths() {
        let Some(mut bytes) = files.bytes(&path).filter(|bytes| bytes.starts_with(b"PR")) else { continue };
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        if path.extension().is_some_and(|e| e == "state") {
            take_off_the_keys(&mut bytes);
        }
        let file = files.open(&path, true).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
    files
}

/// No keys are one byte, the last of the last frame but the empty one.
fn take_off_the_keys(bytes: &mut Vec<u8>) {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut last, mut at) = (48, 48);
    while word(bytes, at) > 0 {
        last = at;
        at += 8 + word(bytes, at);
    }
    assert_eq!(bytes.remove(at - 1), 0, "an empty map");
    let len = word(bytes, last) - 1;
    let len_bytes = (len as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len_bytes), &bytes[last + 8..last + 8 + len]);
    bytes[last..last + 4].copy_from_slice(&len_bytes);
    bytes[last + 4..last + 8].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_folder_of_the_first_format_shows_what_it_showed_then() {
    let first = in_the_first_format(&folder("second-without-keys"));
    assert_shows(&first, "second-without-keys");
}
