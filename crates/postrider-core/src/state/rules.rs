//! The rules by which commands are executed, and those of earlier releases.
//!
//! A journal says what was asked, not what came of it. So the commands that a release has written
//! are executed again by the rules of that release: it has told its users what came of them. The
//! store notes the number of the rules in each segment and each checkpoint, replays the end of an
//! old journal by its own rules, and writes a checkpoint before it executes the first command by
//! the present ones.
//!
//! **Raise [`RULES`]** whenever the same commands may leave another state or other receipts than
//! before: another order of ends, another limit, another choice of what is ended. A new command, or
//! a new field whose absence means what was done before, changes no rule. What the rules were goes
//! into this module, behind one more variant of [`Rules`]; the test `rules` says when the number was
//! forgotten. Rules that no folder in use can have any more are taken out by raising
//! [`OLDEST_RULES`] and naming the last release that has them in [`last_release_with`].

use super::message::KEEP_ALL;
use super::volatile::Over;
use super::{Effects, State, forget};
use crate::command::Outcome;
use crate::id::*;
use crate::model::*;
use std::collections::{BTreeSet, VecDeque};

/// The rules by which this release executes commands.
pub const RULES: u32 = 2;

/// The oldest rules by which this release can execute commands again.
pub const OLDEST_RULES: u32 = 1;

/// The last release that knows rules older than [`OLDEST_RULES`].
pub fn last_release_with(_rules: u32) -> Option<&'static str> {
    None
}

/// What is executed now.
#[derive(Debug, Default)]
pub(crate) enum Rules {
    First(First),
    #[default]
    Present,
}

/// The rules of release 0.1, which wrote folders of the formats 1 and 2. They differ in this:
///
/// - A message with a collapse key and the backlog `all` replaced the one before it.
/// - A broadcast counted all open messages of its key as if each device had all of them, and ended
///   the surplus for its own devices.
/// - A device that went left its broadcasts in the order in which they were accepted; now the
///   urgent ones first.
/// - `Expire` took messages up to its limit however many devices each had, and sessions and request
///   keys without a limit. It forgot reports in the order in which their messages ended, of all apps
///   together, while the first of them was accepted before the time given or there were more than
///   `history_max` in all.
///
/// All else cannot be told apart, since no command of that release says it: members of shared
/// subscriptions got their messages as devices of their own, nobody had closed apps or messages of
/// other devices, request keys had no number that is kept. A message is found by its id in its own
/// app, not among all apps: an id has 128 bits and comes from one source.
#[derive(Debug, Default)]
pub(crate) struct First {
    /// Tracked messages that ended wholly, in the order in which they did.
    history: VecDeque<Seq>,
}

impl Rules {
    /// The first rules, with the messages that have ended so far, in that order.
    pub fn first(history: VecDeque<Seq>) -> Rules {
        Rules::First(First { history })
    }

    /// How many messages with its collapse key a message leaves to each of its devices, itself counted.
    pub fn kept(&self, key: Option<&str>, backlog: Backlog) -> u16 {
        let unbounded = match self {
            Rules::First(_) if key.is_some() => 1,
            _ => KEEP_ALL,
        };
        backlog.keep().map_or(unbounded, |keep| keep.min(usize::from(KEEP_ALL)) as u16)
    }

    /// A tracked message ended wholly.
    pub fn note_ended(&mut self, seq: Seq) {
        if let Rules::First(first) = self {
            first.history.push_back(seq);
        }
    }

    pub fn are_the_first(&self) -> bool {
        matches!(self, Rules::First(_))
    }
}

impl State {
    /// The number of the rules by which commands are executed.
    pub fn rules(&self) -> u32 {
        match self.rules {
            Rules::First(_) => 1,
            Rules::Present => RULES,
        }
    }

    /// From now on commands are executed by these rules. False if that cannot be: they are not
    /// known, or the state was made by later ones.
    pub fn follow(&mut self, rules: u32) -> bool {
        match rules {
            _ if rules == self.rules() => true,
            RULES => {
                self.rules = Rules::Present;
                true
            }
            1 if self.seq == 0 => {
                self.rules = Rules::first(VecDeque::new());
                true
            }
            _ => false,
        }
    }

    /// A broadcast was accepted: the open messages of its key are counted as one list.
    pub(super) fn collapse_by_first_rules(
        &mut self,
        newest: Seq,
        devices: &DeviceSet,
        (group, keep): (u64, usize),
        effects: &mut Effects,
    ) {
        let Some(message) = self.messages.get(&newest) else { return };
        let (app, at) = (message.app, message.accepted_at);
        let Some(tenant) = self.app_ref(app) else { return };
        let keyed = tenant.keyed.range((group, u32::MIN, Seq::MIN)..=(group, u32::MAX, Seq::MAX));
        let casts = tenant.casts.group(group).into_iter().flat_map(|casts| casts.seqs());
        let mut open: BTreeSet<Seq> = keyed.map(|(_, _, seq)| *seq).chain(casts).collect();
        open.remove(&newest);
        let surplus = (open.len() + 1).saturating_sub(keep);
        for old in open.into_iter().take(surplus) {
            self.end_some(old, devices, (Step::Superseded, Reason::Collapsed), at, effects);
        }
    }

    /// Ends what is due at `now`, and forgets what is old.
    pub(super) fn expire_by_first_rules(
        &mut self,
        now: UnixMillis,
        limit: u32,
        history: (UnixMillis, u32),
        effects: &mut Effects,
    ) -> Outcome {
        self.saw(now);
        let messages = self.expire_messages(now, limit, |_| 1, effects);
        let (sessions, handed_on) = self.expire_sessions(now, u32::MAX, effects);
        self.forget_by_first_rules(history, effects);
        self.forget_requests(now, u32::MAX);
        self.forget_retained(now, effects);
        Outcome::Expired { messages, sessions, handed_on, more: messages == limit }
    }

    fn forget_by_first_rules(&mut self, (before, max): (UnixMillis, u32), effects: &mut Effects) {
        let Rules::First(first) = &mut self.rules else { return };
        let mut touched = BTreeSet::new();
        while let Some(seq) = first.history.front().copied() {
            let message = self.messages.get(&seq);
            let is_old = message.is_none_or(|message| message.accepted_at < before);
            if !is_old && first.history.len() <= max as usize {
                break;
            }
            first.history.pop_front();
            let Some(no) = message.map(|message| message.app) else {
                effects.over.push(Over::Message(seq));
                continue;
            };
            let app = &mut self.apps[no.0 as usize];
            // It is the first of its app too.
            if let Some(place) = app.history.iter().position(|ended| *ended == seq) {
                app.history.remove(place);
                app.history_ends.remove(place);
            }
            forget(seq, &mut self.messages, app, effects);
            touched.insert(no);
        }
        touched.into_iter().for_each(|no| self.set_app_timers(no));
    }
}
