//! The one facade that adapters call. Its verbs are defined where their step of the story is told: `session`, `delivery/*`.

use crate::access::Access;
use crate::command::Command;
use crate::delivery::drain::Contents;
use crate::delivery::expire::{Connects, Wills};
use crate::delivery::publish::Retaining;
use crate::delivery::receipt::Acking;
use crate::delivery::repeats::Repeats;
use crate::hub::Hub;
use crate::id::*;
use crate::limits::Limits;
use crate::port::*;
use crate::pruning::Pruning;
use crate::shares::{Handing, Parting};
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub struct Inner {
    pub store: Arc<dyn Store>,
    pub limits: Limits,
    pub access: Access,
    pub clock: Arc<dyn Clock>,
    pub chance: Arc<dyn Chance>,
    hub: RwLock<Hub>,
    connections: OnceLock<Arc<dyn Connections>>,
    pub(crate) contents: Contents,
    pub(crate) wills: Wills,
    pub(crate) connects: Connects,
    pub(crate) retaining: Retaining,
    pub(crate) acking: Acking,
    pub(crate) handing: Handing,
    pub(crate) repeats: Repeats,
    pub(crate) last_sweep: Mutex<UnixMillis>,
    /// What [`Engine::audit`] found last.
    last_audit: Mutex<Audit>,
    pub(crate) pruning: Pruning,
    /// A round of expiry is going on.
    pub(crate) expiring: AtomicBool,
    /// A command that empties a closed app is under way.
    pub(crate) emptying: AtomicBool,
    pub(crate) job_workers: OnceLock<Arc<dyn JobWorkers>>,
    /// What is older was perhaps sent by an earlier life of the server.
    pub(crate) started: UnixMillis,
}

impl Deref for Engine {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Where nobody is connected yet.
struct Nobody;

impl Connections for Nobody {
    fn wake(&self, _: &[ConnectionRef]) {}
    fn wake_anew(&self, _: &[ConnectionRef]) {}
    fn deliver(&self, _: &Live, _: Vec<LiveTarget>) {}
    fn close(&self, _: ConnectionRef, _: Farewell) {}
}

static NOBODY: Nobody = Nobody;

/// Goes on as the panic that left the sessions half changed: what they say now may be wrong.
fn half_changed() -> ! {
    std::panic::resume_unwind(Box::new("the sessions were left half changed by a panic"))
}

impl Engine {
    /// An engine over a store, with the sessions that the store knows.
    pub fn new(
        store: Arc<dyn Store>,
        limits: Limits,
        access: Access,
        clock: Arc<dyn Clock>,
        chance: Arc<dyn Chance>,
    ) -> Engine {
        let contents = Contents::new(limits.content_cache_bytes_max);
        let started = clock.now();
        let engine = Engine(Arc::new(Inner {
            store,
            limits,
            access,
            clock,
            chance,
            hub: RwLock::default(),
            connections: OnceLock::new(),
            contents,
            wills: Wills::default(),
            connects: Connects::default(),
            retaining: Retaining::default(),
            acking: Acking::default(),
            handing: Handing::default(),
            repeats: Repeats::default(),
            last_sweep: Mutex::default(),
            last_audit: Mutex::default(),
            pruning: Pruning::default(),
            expiring: AtomicBool::new(false),
            emptying: AtomicBool::new(false),
            job_workers: OnceLock::new(),
            started,
        }));
        engine.restore_sessions();
        engine
    }

    /// Gives the engine its way to the connections; once, before the first of them.
    pub fn attach_connections(&self, connections: Arc<dyn Connections>) {
        _ = self.connections.set(connections);
    }

    pub(crate) fn connections(&self) -> &dyn Connections {
        self.connections.get().map_or(&NOBODY, |c| &**c)
    }

    pub(crate) fn hub(&self) -> RwLockReadGuard<'_, Hub> {
        self.hub.read().unwrap_or_else(|_| half_changed())
    }

    pub(crate) fn hub_mut(&self) -> RwLockWriteGuard<'_, Hub> {
        self.hub.write().unwrap_or_else(|_| half_changed())
    }

    /// A panic interrupted a change of the sessions: nobody may use them any more, and the process has to end.
    pub fn is_half_changed(&self) -> bool {
        self.hub.is_poisoned()
    }

    pub(crate) fn app_name(&self, app: AppNo) -> String {
        self.store.app(app).map_or(String::new(), |a| a.id)
    }

    /// Counts every delivery anew, and keeps the result for those who only watch.
    pub fn audit(&self) -> Audit {
        let audit = self.store.audit();
        self.last_audit.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&audit);
        audit
    }

    /// What does not balance in an app's books: as the last audit found it, or as they are kept from one delivery to the next.
    pub fn gap(&self, app: &AppView) -> i64 {
        let audit = self.last_audit.lock().unwrap_or_else(PoisonError::into_inner);
        let found = audit.apps.iter().find(|(no, _)| *no == app.no).map_or(0, |(_, books)| books.gap());
        if found == 0 { app.books().gap() } else { found }
    }

    /// Bytes that are kept so that lost connections may be resumed.
    pub fn saved_bytes(&self) -> usize {
        self.hub().saved_bytes()
    }

    /// Delayed wills that were dropped because too many waited.
    pub fn wills_dropped(&self) -> u64 {
        self.wills.dropped()
    }

    /// Idempotency keys that are remembered in memory, of all apps.
    pub fn transient_keys(&self) -> usize {
        self.repeats.len()
    }

    /// Live connections of this node.
    pub fn connected_count(&self) -> usize {
        self.hub().connected()
    }

    /// The live connection of a device.
    pub fn connection_of(&self, at: DeviceRef) -> Option<ConnectionRef> {
        self.hub().by_device(at).and_then(|s| s.connection)
    }

    /// The device is there.
    pub fn seen(&self, at: DeviceRef) {
        let now = self.clock.now();
        self.store.seen(at, now);
        // The first time is worth a command, and one a day: otherwise a crash could make it a device that never was, or
        // one that is gone.
        if self.store.is_seen_due(at, now) {
            self.submit_quietly(vec![crate::command::Command::Seen { at, now }]);
        }
    }

    /// The live connection of a device is closed: it was deleted, or its secret was changed.
    pub fn revoke(&self, at: DeviceRef) {
        let connection = self.hub().by_device(at).and_then(|s| s.connection);
        if let Some(connection) = connection {
            self.connections().close(connection, Farewell::Revoked);
        }
    }

    /// Takes a message back: what is open of it ends `cancelled`.
    pub fn cancel(&self, app: AppNo, message: MessageId, done: Done) {
        self.store.submit(vec![Command::Cancel { app, message, now: self.clock.now() }], done);
    }

    /// Ends all that waits for a device `cancelled`; the device stays.
    pub fn clear_inbox(&self, at: DeviceRef, done: Done) {
        self.store.submit(vec![Command::ClearInbox { at, now: self.clock.now() }], done);
    }

    /// Deletes a device: its deliveries end `erased`, its connection is closed, its session goes, and a will of it that waits
    /// is not published (A9).
    pub fn delete_device(&self, at: DeviceRef, done: Done) {
        let client = self.store.device(at).map(|device| device.id).unwrap_or_default();
        self.leave_hub(at, &client);
        let engine = self.clone();
        let done: Done = Box::new(move |outcomes| {
            // Who was signing in at that moment has a session of a device that is no more.
            if outcomes.is_ok() {
                engine.leave_hub(at, &client);
            }
            done(outcomes);
        });
        self.submit_parting(self.deletion(at), done);
    }

    /// The same at the device's own wish: it is told before its connection is closed.
    pub fn delete_own_device(&self, at: DeviceRef, done: Done) {
        let client = self.store.device(at).map(|device| device.id).unwrap_or_default();
        let engine = self.clone();
        let done: Done = Box::new(move |outcomes| {
            let is_gone = outcomes.is_ok();
            done(outcomes);
            if is_gone {
                engine.leave_hub(at, &client);
            }
        });
        self.submit_parting(self.deletion(at), done);
    }

    fn deletion(&self, at: DeviceRef) -> Vec<Command> {
        let now = self.clock.now();
        let handed_on = self.hand_on(at, Parting::Over, None);
        handed_on.into_iter().chain([Command::DeleteDevice { at, now }]).collect()
    }

    /// A name is the app's to give: an anonymous client that goes by it leaves, with what it had
    /// subscribed to. Gives the command that takes it out of the store, where it is there.
    pub(crate) fn displace_anonymous(&self, app: AppNo, name: &str) -> Option<crate::command::Command> {
        let stored = self.store.device_by_id(app, name);
        if stored.is_some_and(|at| self.store.is_registered(at)) {
            return None;
        }
        let mut hub = self.hub_mut();
        let session = hub.find(app, name);
        let connection = session.and_then(|no| hub.get(no)?.connection);
        if let Some(no) = session {
            hub.remove(no);
        }
        drop(hub);
        if let Some(connection) = connection {
            self.connections().close(connection, Farewell::Revoked);
        }
        _ = self.wills.take(app, name);
        stored.map(|at| crate::command::Command::DeleteDevice { at, now: self.clock.now() })
    }

    fn leave_hub(&self, at: DeviceRef, client: &str) {
        self.revoke(at);
        let mut hub = self.hub_mut();
        if let Some(no) = hub.apps.get(&at.app).and_then(|a| a.devices.get(&at.device)).copied() {
            hub.remove(no);
        }
        drop(hub);
        _ = self.wills.take(at.app, client);
    }
}
