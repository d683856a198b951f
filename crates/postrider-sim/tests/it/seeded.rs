//! Deliberate bugs: each is planted in turn, and the simulation has to find it. A suite that misses one is not done.

use postrider_core::seeded::{Bug, plant};
use postrider_proto::seeded as proto;
use postrider_sim::run;

/// Within so many seeds each bug must be found.
const SEEDS_MAX: u64 = 1_000;

/// What a bug is, in a sentence, and its number in the catalogue of `reliability.md` §4.7, where it has one.
fn what(bug: Bug) -> (&'static str, &'static str) {
    match bug {
        Bug::ToldBeforeSync => ("B1", "callers are told when a group is written, before the sync"),
        Bug::SyncSkipped => ("B2", "the journal is not synced"),
        Bug::SyncErrorIgnored => ("B3", "a failed sync counts as a good one"),
        Bug::DurableIgnored => ("", "a drain sees what is not durable"),
        Bug::AckKeptInMemory => ("B4", "acknowledgements never reach the store"),
        Bug::AckUnderWayIgnored => ("", "a connection that comes back gets what is being acknowledged"),
        Bug::ExpiryOnlySwept => ("B7", "expiry is not checked when a message is sent"),
        Bug::ExpiryRoundsDown => ("B6", "messages end at the second before their end"),
        Bug::InflightLost => ("B8", "what was in flight is not sent again"),
        Bug::EvictionWithoutReceipt => ("B11", "an eviction leaves no receipt"),
        Bug::RequestForgotten => ("", "idempotency keys are not remembered"),
        Bug::RequestKeyOfAnyApp => ("B10", "idempotency keys are shared by all apps"),
        Bug::ReplaySkipsGate => ("B14", "a replay does not ask `may_receive`"),
        Bug::TakeoverUnregisters => ("B5", "the old connection's farewell ends the new one's session"),
        Bug::CollapseTakesNewest => ("", "a collapse key supersedes the newest message"),
        Bug::TornTailAccepted => ("B15", "a torn tail of the journal is taken for damage"),
        Bug::SeqReused => ("B16", "recovery gives the last number once more"),
        Bug::BroadcastStaysOpen => ("", "an acknowledgement leaves a broadcast open for its device"),
        Bug::WakeLost => ("B12", "some wakes are lost, and nothing drains again"),
        Bug::UndoForgotten => ("", "a group refused by a full disk stays in memory"),
        Bug::CheckpointDropsContent => ("B18", "a checkpoint names contents where they are swept away"),
        Bug::ForwardedEnds => ("", "what a provider took leaves the inbox"),
        Bug::ForwardedExpires => ("", "what a provider took ends as if nobody had"),
        Bug::SeenWithoutCommand => ("", "a device that is seen changes the state, and no command says so"),
        Bug::LeaseGivenTwice => ("", "a job that a worker has is given to another one"),
        Bug::JobTimersLost => {
            ("", "jobs that wait, and leases, have no timers after a start from a checkpoint")
        }
    }
}

fn what_of_proto(bug: proto::Bug) -> &'static str {
    match bug {
        proto::Bug::CountOneTooHigh => "XMPP: `<a h=…/>` acknowledges one stanza too many",
        proto::Bug::PingCoversLater => "XMPP: the answer to a ping acknowledges what was sent after it",
        proto::Bug::ResumptionSettlesAll => "XMPP: a resumption takes all that was sent for delivered",
    }
}

/// One that can be planted: its name, its number in the catalogue, what it is, and how it is planted and taken away.
struct Seeded {
    name: String,
    number: &'static str,
    sentence: &'static str,
    plant: Box<dyn Fn(bool)>,
}

fn all() -> Vec<Seeded> {
    let core = Bug::ALL.into_iter().map(|bug| {
        let (number, sentence) = what(bug);
        let plant = Box::new(move |planted: bool| plant(planted.then_some(bug)));
        Seeded { name: format!("{bug:?}"), number, sentence, plant }
    });
    let proto = proto::Bug::ALL.into_iter().map(|bug| {
        let plant = Box::new(move |planted: bool| proto::plant(planted.then_some(bug)));
        Seeded { name: format!("{bug:?}"), number: "", sentence: what_of_proto(bug), plant }
    });
    core.chain(proto).collect()
}

#[test]
fn seeded_bugs_are_all_caught() {
    let only = std::env::var("SIM_BUG").ok();
    let mut table = String::from(
        "# Seeded bugs\n\nWritten by `UPDATE=1 cargo test -p postrider-sim seeded`. Each bug is planted (feature `seeded-bugs` of \
         `postrider-core` and `postrider-proto`), and\nworlds are run from seed 1 on until the checker finds it.\n\n\
         | bug | | what is wrong | seeds needed | rule that caught it |\n| --- | --- | --- | --- | --- |\n",
    );
    let mut missed = Vec::new();
    for bug in all().into_iter().filter(|bug| only.as_ref().is_none_or(|only| *only == bug.name)) {
        (bug.plant)(true);
        let caught = (1..=SEEDS_MAX).find_map(|seed| Some((seed, run(seed).violation?.rule)));
        (bug.plant)(false);
        let Seeded { name, number, sentence, .. } = bug;
        match caught {
            Some((seeds, rule)) => {
                let clean = run(seeds);
                assert!(clean.violation.is_none(), "without any bug: {clean}");
                table += &format!("| `{name}` | {number} | {sentence} | {seeds} | {rule} |\n");
            }
            None => missed.push(name),
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/seeded-bugs.md");
        std::fs::write(path, &table).expect("the table is written");
    }
    println!("{table}");
    assert!(missed.is_empty(), "not caught in {SEEDS_MAX} seeds: {missed:?}");
}
