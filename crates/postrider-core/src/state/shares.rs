//! Shared subscriptions (MQTT 5 §4.8.2): each message lies in the inbox of one member, and goes on to another when that one
//! cannot bring it to its end.
//!
//! A member is a device whose session has the subscription. Members with a connection come first. What is under way is
//! the connection's matter: who asks for a message to be handed on says which ones stay.

use super::app::{App, Entry};
use super::volatile::Over;
use super::{Effects, State};
use crate::command::*;
use crate::id::*;
use crate::model::*;
use crate::port::SharedEntry;

/// Members looked at for one message: a group has as many as it likes.
const TRIED_MAX: u64 = 8;

/// The members of one shared subscription.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Connected.
    here: DeviceSet,
    away: DeviceSet,
}

/// Among whom a message finds its member.
#[derive(Clone, Copy)]
struct Choice {
    wish: Option<DeviceNo>,
    not: Option<DeviceNo>,
    turn: u64,
    only_here: bool,
}

/// What an inbox holds at most: deliveries, bytes.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub deliveries: u32,
    pub bytes: u32,
}

impl Room {
    /// Where a session ends by itself there is nobody to ask. What goes on was accepted before, so the sum does not grow.
    pub const ANY: Room = Room { deliveries: u32::MAX, bytes: u32::MAX };
}

impl App {
    /// The shared subscriptions of a device's session, by name.
    fn shares_of(&self, no: DeviceNo) -> Vec<String> {
        let session = self.device(no).and_then(|device| device.session.as_deref());
        let subscriptions = session.map_or(&[][..], |session| &session.subscriptions);
        subscriptions.iter().filter_map(|s| Some(share_name(s.share.as_deref()?, &s.filter))).collect()
    }

    /// Puts a device among the members of what its session shares.
    pub fn join_shares(&mut self, no: DeviceNo) {
        let session = self.device(no).and_then(|device| device.session.as_deref());
        let is_here = session.is_some_and(|session| session.stored.left_at.is_none());
        for share in self.shares_of(no) {
            let members = self.shares.entry(share).or_default();
            if is_here { &mut members.here } else { &mut members.away }.insert(no.0);
        }
    }

    /// Takes a device out of all groups, as long as its session still tells which those are.
    pub fn leave_shares(&mut self, no: DeviceNo) {
        for share in self.shares_of(no) {
            let Some(members) = self.shares.get_mut(&share) else { continue };
            members.here.remove(no.0);
            members.away.remove(no.0);
            if members.here.is_empty() && members.away.is_empty() {
                self.shares.remove(&share);
            }
        }
    }

    fn has_room(&self, no: u32, bytes: u32, room: Room) -> bool {
        self.inboxes.get(&no).is_none_or(|inbox| {
            inbox.entries.len() < room.deliveries as usize
                && inbox.bytes + u64::from(bytes) <= u64::from(room.bytes)
        })
    }

    /// Who is to get a message: the one that is wished for where nothing speaks against it, else the next one with room.
    fn holder(&self, share: &str, choice: Choice, fits: impl Fn(u32) -> bool) -> Option<DeviceNo> {
        let Choice { wish, not, turn, only_here } = choice;
        let members = self.shares.get(share)?;
        let is_fit = |no: &u32| not != Some(DeviceNo(*no)) && fits(*no);
        for set in [&members.here, &members.away].into_iter().take(if only_here { 1 } else { 2 }) {
            let wished = wish.map(|wish| wish.0).filter(|wish| set.contains(*wish));
            let nth = |i: u64| set.select(((turn + i) % set.len()) as u32);
            let mut tried = wished.into_iter().chain((0..set.len().min(TRIED_MAX)).filter_map(nth));
            if let Some(found) = tried.find(is_fit) {
                return Some(DeviceNo(found));
            }
        }
        None
    }

    /// How a member gets a message: as its own subscription has it.
    fn target_for(&self, no: DeviceNo, share: &str, qos: u8, retain: bool) -> Option<Target> {
        let session = self.device(no)?.session.as_deref()?;
        let is_it = |s: &&StoredSubscription| {
            s.share.as_deref().is_some_and(|name| share_name(name, &s.filter) == share)
        };
        let subscription = session.subscriptions.iter().find(is_it)?;
        Some(Target {
            device: no,
            qos: qos.min(subscription.qos),
            retain: retain && subscription.retain_as_published,
            subscription_ids: subscription.id.into_iter().collect(),
        })
    }
}

impl State {
    /// The member that gets a new message. One whose inbox is full gets it where all others' are, and loses its oldest.
    pub(super) fn shared_target(&self, new: &NewMessage, blob: BlobRef) -> Option<Target> {
        let Targets::Shared(shared) = &new.targets else { return None };
        let app = self.app_ref(new.app)?;
        let SharedTarget { share, member, qos, retain } = &**shared;
        let room = Room { deliveries: new.inbox_max, bytes: new.inbox_bytes_max };
        let choice = Choice { wish: Some(*member), not: None, turn: self.seq, only_here: false };
        let holder = |fits: &dyn Fn(u32) -> bool| app.holder(share, choice, fits);
        let found = holder(&|no| app.has_room(no, blob.len, room)).or_else(|| holder(&|_| true))?;
        app.target_for(found, share, *qos, *retain)
    }

    /// Hands on what a member holds, as far as somebody takes it. Tells who got something.
    pub(super) fn hand_on(
        &mut self,
        at: DeviceRef,
        stays: impl Fn(Entry, &str) -> bool,
        only_here: bool,
        room: Room,
        effects: &mut Effects,
    ) -> Vec<DeviceRef> {
        let mut takers: Vec<DeviceRef> = Vec::new();
        let Some(app) = self.app_ref(at.app).filter(|app| !app.shares.is_empty()) else { return takers };
        let Some(inbox) = app.inboxes.get(&at.device.0) else { return takers };
        let shared = inbox.entries.iter().filter(|e| !e.push()).filter_map(|e| {
            let share = self.messages.get(&e.seq())?.share()?;
            (!stays(*e, share)).then(|| (*e, share.to_owned()))
        });
        for (entry, share) in shared.collect::<Vec<_>>() {
            let Some(app) = self.app_ref(at.app) else { break };
            let bytes = self.messages.get(&entry.seq()).map_or(0, |m| m.blob.len);
            let fits = |no| app.has_room(no, bytes, room);
            let choice = Choice { wish: None, not: Some(at.device), turn: entry.seq(), only_here };
            let Some(to) = app.holder(&share, choice, fits) else {
                continue;
            };
            let Some(target) = app.target_for(to, &share, entry.qos(), entry.retain()) else { continue };
            self.move_entry(at, entry.seq(), &target, effects);
            let to = DeviceRef { app: at.app, device: to };
            if !takers.contains(&to) {
                takers.push(to);
            }
        }
        takers
    }

    /// The delivery stays what it is, open and in its place of the order; only its device is another.
    fn move_entry(&mut self, from: DeviceRef, seq: Seq, target: &Target, effects: &mut Effects) {
        let Some(message) = self.messages.get_mut(&seq) else { return };
        let app = &mut self.apps[from.app.0 as usize];
        if !super::deliver::take_entry(&mut app.inboxes, from.device, seq, message.blob.len) {
            return;
        }
        app.entry_ids.remove(&(from.device.0, seq));
        let entry = Entry::new(seq, target, false, message.priority());
        app.inboxes.entry(target.device.0).or_default().insert(entry, message.blob.len);
        if !target.subscription_ids.is_empty() {
            app.entry_ids.insert((target.device.0, seq), target.subscription_ids.clone());
        }
        message.set_holder(target.device);
        effects.over.push(Over::Delivery(from, seq));
        // Shown too early it could be handled there, and be with the first one again after a crash.
        self.leaving.arrives(DeviceRef { app: from.app, device: target.device }, seq, self.seq);
    }

    pub(super) fn hand_on_command(
        &mut self,
        hand_on: &HandOn,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let HandOn { at, stay, shares, only_here, inbox_max, inbox_bytes_max } = hand_on;
        self.app_mut(at.app)?;
        // It has come back meanwhile, and may have been sent anything.
        let is_back = |app: &App| {
            let session = app.device(at.device).and_then(|device| device.session.as_deref());
            session.is_some_and(|session| session.stored.left_at.is_none())
        };
        if *only_here && self.app_ref(at.app).is_some_and(is_back) {
            return Ok(Outcome::Done);
        }
        let room = Room { deliveries: *inbox_max, bytes: *inbox_bytes_max };
        let stays = |entry: Entry, share: &str| {
            stay.contains(&entry.seq()) || shares.as_ref().is_some_and(|all| all.iter().all(|s| s != share))
        };
        Ok(handed_on(self.hand_on(*at, stays, *only_here, room, effects)))
    }

    /// A session is over. QoS 2 that is under way may go to nobody else, and here nobody knows whether it is.
    pub(super) fn leave_to_others(&mut self, at: DeviceRef, effects: &mut Effects) -> Vec<DeviceRef> {
        self.hand_on(at, |entry, _| entry.qos() == 2, false, Room::ANY, effects)
    }

    /// See [`crate::port::Store::shared_entries`].
    pub(super) fn shared_entries(&self, at: DeviceRef) -> Vec<SharedEntry> {
        let Some(inbox) = self.app_ref(at.app).and_then(|app| app.inboxes.get(&at.device.0)) else {
            return Vec::new();
        };
        let shared = inbox.entries.iter().filter(|e| !e.push()).filter_map(|e| {
            let message = self.messages.get(&e.seq()).filter(|m| m.share().is_some())?;
            let accepted_at = message.accepted_at;
            Some(SharedEntry { seq: e.seq(), qos: e.qos(), is_sent: false, accepted_at })
        });
        shared.collect()
    }

    /// See [`crate::port::Store::members_away`].
    pub fn members_away(&self, at: DeviceRef, share: &str, max: usize) -> Vec<DeviceRef> {
        let Some(app) = self.app_ref(at.app) else { return Vec::new() };
        let Some(members) = app.shares.get(share).filter(|m| m.here.len() == 1) else { return Vec::new() };
        let waiting = members.away.iter().take(max).filter(|no| app.inboxes.contains_key(no));
        waiting.map(|no| DeviceRef { app: at.app, device: DeviceNo(no) }).collect()
    }
}

/// What is told of it, where there is something to tell.
pub(super) fn handed_on(takers: Vec<DeviceRef>) -> Outcome {
    if takers.is_empty() { Outcome::Done } else { Outcome::HandedOn(takers) }
}
