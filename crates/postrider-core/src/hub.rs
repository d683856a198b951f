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
use std::collections::{BTreeSet, HashMap};
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
    /// The client said goodbye in it, so it has heard that the session is there.
    pub known: bool,
    /// The store knows it: what it misses while away is kept.
    pub stored: bool,
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
    pub will: Option<Box<crate::session::Will>>,
    pub saved: Option<Saved>,
    /// What its last connection left was lost: with an earlier life of the server, or to a connection that could not use it.
    pub state_lost: bool,
}

/// A session's own list of what it subscribes to: short, and the way to find its places in the index again.
pub(crate) struct SessionSub {
    pub filter: Arc<str>,
    pub share: Option<Box<str>>,
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
            inbox_qos: None,
            takes_pushes: false,
            hears_peers: false,
            expiry_secs: 0,
            ends_at: None,
            subscriptions: Vec::new(),
            will: None,
            saved: None,
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

    /// The session is over: it leaves every index.
    pub(crate) fn remove(&mut self, no: SessionNo) {
        self.clear_subscriptions(no);
        self.keep_awake(no);
        let connection = self.disconnect(no);
        let session = &mut self.sessions[no as usize];
        let (app, device) = (session.app, session.device.take());
        let client = std::mem::replace(&mut session.client, "".into());
        session.alive = false;
        session.stored = false;
        session.will = None;
        session.saved = None;
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
        let same = |s: &&SessionSub| *s.filter == new.filter && s.share.as_deref() == new.share.as_deref();
        let known = session.subscriptions.iter().find(same).map(|s| s.filter.clone());
        let again = known.is_some();
        let filter = known.unwrap_or_else(|| {
            let filter: Arc<str> = new.filter.as_str().into();
            session.subscriptions.reserve_exact(1);
            session
                .subscriptions
                .push(SessionSub { filter: filter.clone(), share: new.share.as_deref().map(Into::into) });
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
