//! This node's sessions and which of them are connected, with the subscriptions of all.
//!
//! A session is known here while it is connected, and as long as it is to outlive its connection. What must survive a
//! restart lies in the store as well; the hub is made again from there.

use crate::id::*;
use crate::model::StoredSubscription;
use crate::port::ConnectionRef;
use crate::topics::{SessionNo, Sub, Topics};
use rustc_hash::FxHashMap;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// State that a protocol wants to find again when the session comes back.
pub type Saved = Box<dyn Any + Send + Sync>;

/// Everything about sessions, behind one lock.
#[derive(Default)]
pub struct Hub {
    pub(crate) sessions: Vec<Session>,
    free: Vec<SessionNo>,
    /// Numbers of sessions that ended while their connection was open: it still knows them by the number, so nobody else
    /// may have it before that connection has left.
    reserved: FxHashMap<SessionNo, ConnectionRef>,
    pub(crate) apps: FxHashMap<AppNo, AppHub>,
    /// Sessions kept in memory only, by the time at which they end.
    pub(crate) idle: BTreeSet<(UnixMillis, SessionNo)>,
    /// Sessions with a connection.
    connected: usize,
    /// What protocols saved for sessions that are away, and whose it is by age.
    saved: FxHashMap<SessionNo, Kept>,
    saved_by_age: BTreeMap<u64, SessionNo>,
    saved_bytes: usize,
    last_saved: u64,
}

/// What a protocol saved, and how old that is among all that was.
struct Kept {
    saved: Saved,
    bytes: usize,
    age: u64,
}

/// The part of one app.
#[derive(Default)]
pub(crate) struct AppHub {
    pub clients: HashMap<Arc<str>, SessionNo, rustc_hash::FxBuildHasher>,
    pub devices: FxHashMap<DeviceNo, SessionNo>,
    pub topics: Topics,
    /// Connections that wait for something to read, beside any session: polls.
    pub waiting: FxHashMap<DeviceNo, Vec<ConnectionRef>>,
}

/// One session.
pub(crate) struct Session {
    pub app: AppNo,
    pub alive: bool,
    /// Grows each time the place is given to another session.
    pub generation: u32,
    /// Device id, or the client's own name for itself.
    pub client: Arc<str>,
    pub device: Option<DeviceNo>,
    pub connection: Option<ConnectionRef>,
    pub registered: bool,
    /// The client has heard that the session is there.
    pub known: bool,
    /// The store knows it: what it misses while away is kept.
    pub stored: bool,
    /// Its client comes to be in the store, with its first subscriptions: until then those do not count.
    pub storing: bool,
    /// QoS at which it subscribed to its inbox, where it did.
    pub inbox_qos: Option<u8>,
    /// Its connection speaks a protocol that takes pushes without a subscription.
    pub takes_pushes: bool,
    /// Its connection speaks a protocol that understands what devices send to each other.
    pub hears_peers: bool,
    /// How long it outlives its connection.
    pub expiry_secs: u32,
    /// When it ends, while it is away and only in memory.
    pub ends_at: Option<UnixMillis>,
    pub subscriptions: Vec<SessionSub>,
    /// Grows with each change of them: what a commit says of older ones counts no more.
    pub sub_changes: u32,
    pub will: Option<Box<crate::session::Will>>,
    /// What its last connection left was lost: with an earlier life of the server, or to a connection that could not use it.
    pub state_lost: bool,
}

/// A session's own list of what it subscribes to: short, and the way to find its places in the index again.
pub(crate) struct SessionSub {
    pub filter: Arc<str>,
    pub share: Option<Box<str>>,
    /// The store is known to have it so.
    pub stored: Option<SubOptions>,
}

/// What a subscription asks for, beside its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubOptions {
    id: u32,
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
}

impl SubOptions {
    pub fn of(wanted: &StoredSubscription) -> SubOptions {
        let StoredSubscription { qos, no_local, retain_as_published, id, .. } = *wanted;
        SubOptions { id: id.unwrap_or(0), qos, no_local, retain_as_published }
    }
}

impl SessionSub {
    pub fn is(&self, wanted: &StoredSubscription) -> bool {
        *self.filter == wanted.filter && self.share.as_deref() == wanted.share.as_deref()
    }
}

impl Session {
    /// QoS at which it takes pushes, where it does.
    pub fn push_qos(&self) -> Option<u8> {
        if self.takes_pushes { Some(1) } else { self.inbox_qos }
    }
}

impl Hub {
    pub(crate) fn app(&mut self, app: AppNo) -> &mut AppHub {
        self.apps.entry(app).or_default()
    }

    pub(crate) fn find(&self, app: AppNo, client: &str) -> Option<SessionNo> {
        self.apps.get(&app)?.clients.get(client).copied()
    }

    pub(crate) fn by_device(&self, at: DeviceRef) -> Option<&Session> {
        let no = self.apps.get(&at.app)?.devices.get(&at.device)?;
        self.sessions.get(*no as usize)
    }

    pub(crate) fn get(&self, no: SessionNo) -> Option<&Session> {
        self.sessions.get(no as usize).filter(|s| s.alive)
    }

    pub(crate) fn get_mut(&mut self, no: SessionNo) -> Option<&mut Session> {
        self.sessions.get_mut(no as usize).filter(|s| s.alive)
    }

    /// A new session for a client that has none.
    pub(crate) fn add(
        &mut self,
        app: AppNo,
        client: &str,
        device: Option<DeviceNo>,
        registered: bool,
    ) -> SessionNo {
        let client: Arc<str> = client.into();
        let mut session = Session {
            app,
            alive: true,
            generation: 0,
            client: client.clone(),
            device,
            connection: None,
            registered,
            known: false,
            stored: false,
            storing: false,
            inbox_qos: None,
            takes_pushes: false,
            hears_peers: false,
            expiry_secs: 0,
            ends_at: None,
            subscriptions: Vec::new(),
            sub_changes: 0,
            will: None,
            state_lost: false,
        };
        let no = match self.free.pop() {
            Some(no) => {
                let place = &mut self.sessions[no as usize];
                session.generation = place.generation.wrapping_add(1);
                *place = session;
                no
            }
            None => {
                self.sessions.push(session);
                (self.sessions.len() - 1) as SessionNo
            }
        };
        let hub = self.app(app);
        hub.clients.insert(client, no);
        if let Some(device) = device {
            hub.devices.insert(device, no);
        }
        no
    }

    pub(crate) fn set_device(&mut self, no: SessionNo, device: DeviceNo) {
        let session = &mut self.sessions[no as usize];
        session.device = Some(device);
        let app = session.app;
        self.app(app).devices.insert(device, no);
    }

    /// The session's client is in the store, or could not be brought there.
    pub(crate) fn end_storing(&mut self, (no, generation): (SessionNo, u32)) {
        if let Some(session) = self.sessions.get_mut(no as usize).filter(|s| s.generation == generation) {
            session.storing = false;
        }
    }

    /// How many sessions have a connection.
    pub(crate) fn connected(&self) -> usize {
        self.connected
    }

    /// The session has this connection from now on.
    pub(crate) fn connect(&mut self, no: SessionNo, connection: ConnectionRef) {
        let old = self.sessions[no as usize].connection.replace(connection);
        self.connected += usize::from(old.is_none());
    }

    /// The session has no connection any more.
    pub(crate) fn disconnect(&mut self, no: SessionNo) -> Option<ConnectionRef> {
        let old = self.sessions[no as usize].connection.take();
        self.connected -= usize::from(old.is_some());
        old
    }

    /// Keeps what a protocol saved for the session's next connection. All of it together has `bytes_max`; beyond it the
    /// oldest is forgotten, and those sessions begin anew.
    pub(crate) fn save(&mut self, no: SessionNo, saved: Saved, bytes: usize, bytes_max: usize) {
        _ = self.take_saved(no);
        self.last_saved += 1;
        self.saved_by_age.insert(self.last_saved, no);
        self.saved_bytes += bytes;
        self.saved.insert(no, Kept { saved, bytes, age: self.last_saved });
        while self.saved_bytes > bytes_max
            && let Some((_, oldest)) = self.saved_by_age.first_key_value()
        {
            let oldest = *oldest;
            _ = self.take_saved(oldest);
            self.sessions[oldest as usize].state_lost = true;
        }
    }

    /// What was saved for the session, which has it no more.
    pub(crate) fn take_saved(&mut self, no: SessionNo) -> Option<Saved> {
        let Kept { saved, bytes, age } = self.saved.remove(&no)?;
        self.saved_by_age.remove(&age);
        self.saved_bytes -= bytes;
        Some(saved)
    }

    /// Bytes of all that is saved.
    pub(crate) fn saved_bytes(&self) -> usize {
        self.saved_bytes
    }

    /// The session is over: it leaves every index.
    pub(crate) fn remove(&mut self, no: SessionNo) {
        _ = self.take_saved(no);
        self.clear_subscriptions(no);
        self.keep_awake(no);
        let connection = self.disconnect(no);
        let session = &mut self.sessions[no as usize];
        let (app, device) = (session.app, session.device.take());
        let client = std::mem::replace(&mut session.client, "".into());
        session.alive = false;
        session.stored = false;
        session.storing = false;
        session.will = None;
        session.generation = session.generation.wrapping_add(1);
        let hub = self.app(app);
        hub.clients.remove(&client);
        if let Some(device) = device {
            hub.devices.remove(&device);
        }
        match connection {
            Some(connection) => _ = self.reserved.insert(no, connection),
            None => self.free.push(no),
        }
    }

    /// A connection leaves whose session has ended before: its number is free now.
    pub(crate) fn release(&mut self, no: SessionNo, connection: ConnectionRef) {
        if self.reserved.get(&no) == Some(&connection) {
            self.reserved.remove(&no);
            self.free.push(no);
        }
    }

    /// A connection waits for the device's inbox; false when `max` do already (L29).
    pub(crate) fn wait(&mut self, at: DeviceRef, connection: ConnectionRef, max: usize) -> bool {
        let waiting = self.app(at.app).waiting.entry(at.device).or_default();
        let has_room = waiting.len() < max;
        if has_room {
            waiting.push(connection);
        }
        has_room
    }

    pub(crate) fn stop_waiting(&mut self, at: DeviceRef, connection: ConnectionRef) {
        let all = &mut self.app(at.app).waiting;
        if let Some(waiting) = all.get_mut(&at.device) {
            waiting.retain(|c| *c != connection);
            if waiting.is_empty() {
                all.remove(&at.device);
            }
        }
    }

    /// A session in memory that nobody is connected to ends at `ends_at`.
    pub(crate) fn let_idle(&mut self, no: SessionNo, ends_at: UnixMillis) {
        self.sessions[no as usize].ends_at = Some(ends_at);
        self.idle.insert((ends_at, no));
    }

    pub(crate) fn keep_awake(&mut self, no: SessionNo) {
        if let Some(ends_at) = self.sessions[no as usize].ends_at.take() {
            self.idle.remove(&(ends_at, no));
        }
    }

    /// True if the session had it already.
    pub(crate) fn subscribe(&mut self, no: SessionNo, new: &StoredSubscription) -> bool {
        let session = &mut self.sessions[no as usize];
        let app = session.app;
        if new.filter == crate::access::INBOX_TOPIC && new.share.is_none() {
            session.inbox_qos = Some(new.qos);
        }
        let kept = session.subscriptions.iter_mut().find(|s| s.is(new));
        let known = kept.map(|kept| {
            kept.stored.take_if(|stored| *stored != SubOptions::of(new));
            kept.filter.clone()
        });
        let again = known.is_some();
        let filter = known.unwrap_or_else(|| {
            let filter: Arc<str> = new.filter.as_str().into();
            session.subscriptions.reserve_exact(1);
            session.subscriptions.push(SessionSub {
                filter: filter.clone(),
                share: new.share.as_deref().map(Into::into),
                stored: None,
            });
            filter
        });
        let sub = Sub {
            session: no,
            id: new.id.unwrap_or(0),
            qos: new.qos,
            no_local: new.no_local,
            retain_as_published: new.retain_as_published,
        };
        self.app(app).topics.subscribe(&filter, new.share.as_deref(), sub, again);
        again
    }

    /// Whether the store has the subscription just as it is wanted.
    pub(crate) fn has_stored(&self, no: SessionNo, wanted: &StoredSubscription) -> bool {
        let has = |s: &&SessionSub| s.is(wanted) && s.stored == Some(SubOptions::of(wanted));
        self.get(no).is_some_and(|s| s.subscriptions.iter().find(has).is_some())
    }

    /// The session's subscriptions change; the number of this change.
    pub(crate) fn change_subscriptions(&mut self, no: SessionNo) -> u32 {
        let session = &mut self.sessions[no as usize];
        session.sub_changes = session.sub_changes.wrapping_add(1);
        session.sub_changes
    }

    /// The store has taken the subscriptions of a change, unless there was another one meanwhile.
    pub(crate) fn note_stored(
        &mut self,
        (no, generation, change): (SessionNo, u32, u32),
        taken: &[StoredSubscription],
    ) {
        let is_last = |s: &&mut Session| s.generation == generation && s.sub_changes == change;
        let Some(session) = self.get_mut(no).filter(is_last) else { return };
        for one in taken {
            if let Some(kept) = session.subscriptions.iter_mut().find(|s| s.is(one)) {
                kept.stored = Some(SubOptions::of(one));
            }
        }
    }

    /// The store did not take a change: what was new with it is taken back, unless there was another change meanwhile.
    pub(crate) fn take_back(
        &mut self,
        (no, generation, change): (SessionNo, u32, u32),
        new: &[StoredSubscription],
        opened: bool,
    ) {
        let is_last = |s: &&mut Session| s.generation == generation && s.sub_changes == change;
        let Some(session) = self.get_mut(no).filter(is_last) else { return };
        // The store did not come to know the session either.
        session.stored &= !opened;
        new.iter().for_each(|one| _ = self.unsubscribe(no, one.share.as_deref(), &one.filter));
    }

    /// True if there was such a subscription.
    pub(crate) fn unsubscribe(&mut self, no: SessionNo, share: Option<&str>, filter: &str) -> bool {
        let session = &mut self.sessions[no as usize];
        if filter == crate::access::INBOX_TOPIC && share.is_none() {
            session.inbox_qos = None;
        }
        let place =
            session.subscriptions.iter().position(|s| &*s.filter == filter && s.share.as_deref() == share);
        let Some(place) = place else { return false };
        session.subscriptions.swap_remove(place);
        let app = session.app;
        self.app(app).topics.unsubscribe(filter, share, no)
    }

    pub(crate) fn clear_subscriptions(&mut self, no: SessionNo) {
        let session = &mut self.sessions[no as usize];
        session.inbox_qos = None;
        let app = session.app;
        for sub in std::mem::take(&mut session.subscriptions) {
            self.app(app).topics.unsubscribe(&sub.filter, sub.share.as_deref(), no);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ten million sessions cost: nothing may grow unseen.
    #[test]
    fn a_session_is_as_small_as_the_figures_say() {
        assert!(size_of::<Session>() <= 120, "{}", size_of::<Session>());
    }

    #[test]
    fn what_protocols_save_is_bounded_in_bytes_and_the_oldest_goes_first() {
        let mut hub = Hub::default();
        let all: Vec<SessionNo> = ["a", "b", "c"].map(|id| hub.add(AppNo(0), id, None, false)).into();
        for no in &all {
            hub.save(*no, Box::new(*no), 400, 1_000);
        }
        let lost: Vec<bool> = all.iter().map(|no| hub.sessions[*no as usize].state_lost).collect();
        assert_eq!((lost, hub.saved_bytes()), (vec![true, false, false], 800));
        assert!(hub.take_saved(all[0]).is_none() && hub.take_saved(all[1]).is_some());
        hub.remove(all[2]);
        assert!(hub.saved_bytes() == 0 && hub.saved.is_empty());
        // More than all may have is kept for nobody.
        hub.save(all[1], Box::new(()), 1_001, 1_000);
        assert!(hub.take_saved(all[1]).is_none() && hub.saved_bytes() == 0);
    }

    #[test]
    fn a_subscription_counts_as_stored_until_it_is_wanted_otherwise() {
        let mut hub = Hub::default();
        let no = hub.add(AppNo(0), "a", None, false);
        let wanted = |qos| StoredSubscription {
            filter: "t".into(),
            share: None,
            qos,
            no_local: false,
            retain_as_published: false,
            id: None,
        };
        let change = |hub: &mut Hub, qos| {
            hub.subscribe(no, &wanted(qos));
            (no, hub.sessions[no as usize].generation, hub.change_subscriptions(no))
        };
        let first = change(&mut hub, 1);
        assert!(!hub.has_stored(no, &wanted(1)));
        hub.note_stored(first, &[wanted(1)]);
        assert!(hub.has_stored(no, &wanted(1)) && !hub.has_stored(no, &wanted(0)));
        // Wanted otherwise, and back before the store has answered: it has to be written.
        let second = change(&mut hub, 0);
        assert!(!hub.has_stored(no, &wanted(1)));
        let third = change(&mut hub, 1);
        hub.note_stored(second, &[wanted(0)]);
        assert!(!hub.has_stored(no, &wanted(0)) && !hub.has_stored(no, &wanted(1)));
        hub.note_stored(third, &[wanted(1)]);
        assert!(hub.has_stored(no, &wanted(1)));
        // What the store refuses is taken back, where nothing else changed.
        let fourth = change(&mut hub, 0);
        hub.take_back(third, &[wanted(0)], false);
        assert_eq!(hub.get(no).unwrap().subscriptions.len(), 1);
        hub.take_back(fourth, &[wanted(0)], false);
        assert!(hub.get(no).unwrap().subscriptions.is_empty());
    }

    #[test]
    fn a_number_is_given_to_nobody_else_while_an_old_connection_still_goes_by_it() {
        let mut hub = Hub::default();
        let connection = ConnectionRef { shard: 0, slot: 1, generation: 2 };
        let old = hub.add(AppNo(0), "a", None, false);
        hub.connect(old, connection);
        assert_eq!(hub.connected(), 1);
        hub.remove(old);
        assert_eq!(hub.connected(), 0);
        assert!(hub.get(old).is_none() && hub.find(AppNo(0), "a").is_none());
        assert_ne!(hub.add(AppNo(0), "b", None, false), old);
        hub.release(old, ConnectionRef { generation: 3, ..connection });
        assert_ne!(hub.add(AppNo(0), "c", None, false), old);
        hub.release(old, connection);
        assert_eq!(hub.add(AppNo(0), "d", None, false), old);
    }
}
