//! What is promised of messages on topics: the gate, one member of a group, no will after a goodbye, and a retained message
//! that stays.

use crate::ledger::{About, Ledger};
use crate::outgoing::Goes;
use crate::world::World;
use postrider_core::id::AppNo;
use postrider_core::port::Store;
use std::collections::{BTreeMap, BTreeSet};

/// Where a group shares its messages, where wills go, and where an app leaves its latest word.
pub const JOBS: &str = "public/work/jobs";
pub const SHARED_JOBS: &str = "$share/group/public/work/jobs";
pub const WILLS: &str = "public/wills";
pub const BOARD: &str = "public/board";

/// What was seen of them.
#[derive(Default)]
pub struct Topics {
    /// Who got a shared message, and on which connection, by app and payload.
    jobs: BTreeMap<(AppNo, String), (usize, u64)>,
    /// A shared message went to another one: the connection that had it before, and what to say if that is there still.
    pub handed_on: Option<(u64, String)>,
    /// Connections whose client said goodbye.
    pub goodbyes: BTreeSet<u64>,
    /// The latest word on an app's board that is known to be stored.
    pub board: BTreeMap<AppNo, u64>,
    /// What devices wrote to each other, and to whom.
    pub peers: BTreeMap<String, (AppNo, Option<usize>)>,
}

impl Ledger {
    /// A device got what another wrote.
    pub fn peer_heard(&mut self, text: &str, device: usize) {
        let meant = self.topics.peers.get(text).and_then(|(_, to)| *to);
        if meant != Some(device) {
            let about = About { push: None, device: Some(device) };
            let what = format!("device {device} has \"{text}\", which was for {meant:?}");
            self.break_rule("no phantom", about, what);
        }
    }

    /// A message on a topic is written to a device's connection.
    pub fn topic_sent(&mut self, goes: &Goes<'_>, payload: &[u8]) {
        let (topic, about, app) = (goes.topic, goes.about(), goes.at.app);
        if !goes.may_receive {
            let what = format!("{topic} goes to device {}, who may not have it", goes.index);
            self.break_rule("one gate", about, what);
        }
        let payload = String::from_utf8_lossy(payload).into_owned();
        let number = payload.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        if topic == WILLS && number.is_some_and(|link| self.topics.goodbyes.contains(&link)) {
            let what = format!("{payload} goes out, and its client said goodbye");
            self.break_rule("no will after a goodbye", about, what);
        }
        if topic == JOBS {
            let now = (goes.index, goes.link);
            let before = self.topics.jobs.insert((app, payload.clone()), now);
            if let Some((first, link)) = before.filter(|(first, _)| *first != goes.index) {
                let what = format!("{payload} goes to device {} and is with {first}", goes.index);
                self.topics.handed_on = Some((link, what));
            }
        }
    }
}

impl World {
    /// An app's latest word that was stored is there, or a later one.
    pub fn check_boards(&mut self) {
        let Some(server) = &self.server else { return };
        let found = |app: AppNo| {
            let kept = server.store.retained(app, BOARD, 1, self.now).into_iter().next()?;
            let content = server.store.content(kept.blob).ok()?;
            std::str::from_utf8(&content.payload).ok()?.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let older = |(app, stored): (&AppNo, &u64)| {
            let found = found(*app);
            let what = format!("{app:?} left its word {stored}, and {found:?} is there");
            found.is_none_or(|found| found < *stored).then_some(what)
        };
        let lost = self.ledger.topics.board.iter().find_map(older);
        if let Some(what) = lost {
            self.ledger.break_rule("accepted is kept", About::default(), what);
        }
    }
}
