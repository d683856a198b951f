//! Bits flip and files are cut behind the store's back: it is noticed, nothing damaged is given out, the rest is readable.

use crate::kit::*;
use postrider_core::port::*;
use postrider_store::faulty::FaultyFiles;
use postrider_store::{OpenError, check};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A closed store with two checkpoints, content files, several segments and receipts.
fn aged() -> (FaultyFiles, Promises) {
    let files = FaultyFiles::new(7);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 4);
    for n in 0..120 {
        promises.accept(&store, n, &[(n % 4) as u32]).unwrap();
        if n % 3 == 0 {
            promises.acknowledge(&store, (n % 4) as u32).unwrap();
        }
        if n == 50 || n == 80 {
            store.checkpoint_now().unwrap();
        }
    }
    drop(store);
    (files, promises)
}

/// What can rot: everything but the lock.
fn victims(files: &FaultyFiles) -> Vec<(PathBuf, u64)> {
    files.paths().into_iter().filter(|(path, len)| *len > 0 && !path.ends_with("LOCK")).collect()
}

/// The store after damage: what it gives out is right, and messages that it does not have are explained by what it told.
fn survives(files: &FaultyFiles, promises: &Promises, what: &str) {
    let store = match open(files) {
        Ok(store) => store,
        Err(OpenError::Damaged(_)) => return,
        Err(error) => panic!("{what}: {error}"),
    };
    assert_balanced(&store);
    let (mut whole, mut corrupt) = (0, 0);
    for no in 0..4 {
        for pending in inbox(&store, no) {
            let n =
                (0..120).find(|n| Some(id(*n)) == pending.id).unwrap_or_else(|| panic!("{what}: phantom"));
            match store.content(pending.blob) {
                Ok(found) => {
                    assert_eq!(found.payload, content(n).payload, "{what}");
                    whole += 1;
                }
                Err(StoreError::Corrupt(_) | StoreError::Missing) => corrupt += 1,
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    // What was acknowledged may come back if the acknowledgement rotted; so only what should be open is counted.
    let open =
        promises.accepted.keys().filter(|n| !promises.ended.contains(&(**n, (**n % 4) as u32))).count();
    if store.problems().is_empty() {
        assert_eq!(whole + corrupt, open, "{what}");
    }
}

#[test]
fn every_flipped_bit_is_detected_and_nothing_damaged_is_delivered() {
    let (files, promises) = aged();
    let victims = victims(&files);
    let total: u64 = victims.iter().map(|(_, len)| len).sum();
    let mut random = Random(2026);
    for round in 0..1400 {
        let fork = files.fork();
        let mut at = random.below(total);
        let (path, _) = victims
            .iter()
            .find(|(_, len)| {
                let here = at < *len;
                at -= if here { 0 } else { *len };
                here
            })
            .unwrap();
        let bit = random.below(8) as u8;
        fork.flip_bit(path, at, bit);
        let what = format!("round {round}: bit {bit} of byte {at} of {}", path.display());
        let name = path.file_name().unwrap().to_string_lossy();
        match check(Path::new(DIR), Arc::new(fork.clone())) {
            // The identity is kept twice: the other copy serves.
            Ok(report) if name.starts_with("STORE") => assert!(report.is_good(), "{what}"),
            // The seal itself: it holds nothing, and without it the journal is told to be one that was not closed in order.
            Ok(report) => assert!(!report.is_good() || !report.clean, "{what} is not noticed"),
            Err(OpenError::Damaged(_)) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        survives(&fork, &promises, &what);
    }
}

#[test]
fn a_truncated_file_is_detected_and_nothing_damaged_is_delivered() {
    let (files, promises) = aged();
    let last =
        victims(&files).into_iter().map(|(path, _)| path).rfind(|p| p.to_string_lossy().contains("journal-"));
    let mut random = Random(7);
    for round in 0..600 {
        let fork = files.fork();
        let victims = victims(&files);
        let (path, len) = &victims[random.below(victims.len() as u64) as usize];
        let to = random.below(*len);
        fork.truncate(path, to);
        let what = format!("round {round}: {} cut from {len} to {to}", path.display());
        let name = path.file_name().unwrap().to_string_lossy();
        // The end of the last segment, and the end of the receipts, look as after a crash; receipts come again.
        let like_a_crash =
            Some(path) == last.as_ref() || name.starts_with("events-") || name.starts_with("STORE");
        match check(Path::new(DIR), Arc::new(fork.clone())) {
            Ok(report) => assert!(like_a_crash || !report.is_good(), "{what} is not noticed"),
            Err(OpenError::Damaged(_)) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        if Some(path) != last.as_ref() {
            survives(&fork, &promises, &what);
        }
    }
}

#[test]
fn damage_in_the_middle_costs_one_message_and_is_put_aside() {
    let files = FaultyFiles::new(7);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 1);
    for n in 0..5 {
        promises.accept(&store, n, &[0]).unwrap();
    }
    let epoch = store.epoch();
    drop(store);
    let (path, _) =
        files.paths().into_iter().find(|(p, _)| p.to_string_lossy().contains("journal-")).unwrap();
    let bytes = files.bytes(&path).unwrap();
    let place = bytes.windows(9).position(|window| window == b"message 2").unwrap();
    files.flip_bit(&path, place as u64, 2);
    let store = open(&files).unwrap();
    assert_eq!((store.problems().len(), store.stats().quarantined), (1, 1));
    // The command is whole, so the delivery is known; its content is not given out.
    let pending = inbox(&store, 0);
    assert_eq!(pending.len(), 5);
    let read: Vec<bool> = pending.iter().map(|p| store.content(p.blob).is_ok()).collect();
    assert_eq!(read, vec![true, true, false, true, true]);
    assert!(matches!(store.content(pending[2].blob), Err(StoreError::Corrupt(_))));
    assert!(!store.knows(epoch, Place::Receipt(1)), "positions may have changed");
    assert!(files.paths().iter().any(|(path, _)| path.starts_with("/data/quarantine")));
}

#[test]
fn a_lost_record_is_stepped_over_and_the_order_of_the_rest_stays() {
    let files = FaultyFiles::new(7);
    let store = open(&files).unwrap();
    let mut promises = Promises::default();
    populate(&store, 1);
    for n in 0..5 {
        promises.accept(&store, n, &[0]).unwrap();
    }
    let before = inbox(&store, 0);
    drop(store);
    let (path, _) =
        files.paths().into_iter().find(|(p, _)| p.to_string_lossy().contains("journal-")).unwrap();
    // The head of the record of message 2 lies before its content, behind that of message 1.
    let bytes = files.bytes(&path).unwrap();
    let of = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    let heads: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, w)| w == b"pCmd").map(|(at, _)| at).collect();
    let head = heads.into_iter().rfind(|at| *at < of(b"message 2")).unwrap();
    files.flip_bit(&path, head as u64, 2);
    let store = open(&files).unwrap();
    assert_eq!(store.problems().len(), 2, "damage and a hole: {:?}", store.problems());
    let after = inbox(&store, 0);
    assert_eq!(after.len(), 4);
    let seqs = |list: &[Pending]| list.iter().map(|p| p.seq).collect::<Vec<_>>();
    let mut expected = seqs(&before);
    expected.remove(2);
    assert_eq!(seqs(&after), expected);
    assert_eq!(acceptance(&run_one(&store, accept(9, &[0]))).seq, before[4].seq + 1);
}
