//! A client comes, subscribes, goes: sessions from sign-in to their end, and the wills they leave.

use crate::Engine;
use crate::command::*;
use crate::hub::{Hub, Saved};
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::seeded::{self, Bug};
use crate::shares::Parting;
use crate::topics::SessionNo;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Who signs in, after the credentials were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub app: AppNo,
    /// Device id, or an anonymous client's own name.
    pub id: String,
    /// The registered device.
    pub device: Option<DeviceNo>,
}

/// A will: published in the client's name when its connection ends badly.
#[derive(Clone, Debug)]
pub struct Will {
    pub content: Arc<Content>,
    pub qos: u8,
    pub retain: bool,
    pub expiry_secs: Option<u32>,
    pub delay_secs: u32,
}

/// What a client asks for when it connects.
pub struct Attach {
    pub client: Client,
    pub connection: ConnectionRef,
    /// Begin anew, whatever session there was.
    pub clean: bool,
    pub expiry_secs: u32,
    pub will: Option<Will>,
    /// The protocol hands pushes over without a subscription to the inbox.
    pub takes_pushes: bool,
    /// The protocol understands what devices send to each other.
    pub hears_peers: bool,
}

/// A session attached to a connection.
pub struct Attached {
    pub session: SessionNo,
    /// It was there before, and the client can know of it.
    pub present: bool,
    pub expiry_secs: u32,
    /// What the protocol left with it.
    pub saved: Option<Saved>,
    /// There was more, and it was lost: the client may remember what the server does not.
    pub state_lost: bool,
}

/// How a connection ended.
#[derive(Default)]
pub struct Detach {
    /// The client said goodbye: no will.
    pub orderly: bool,
    /// The client said something after it was let in: so it has heard of its session.
    pub heard: bool,
    /// A new session expiry, given with the goodbye.
    pub expiry_secs: Option<u32>,
    pub saved: Option<Saved>,
    /// What that takes in memory.
    pub saved_bytes: usize,
    /// What is saved is of no use after that; a session that has nothing else ends then.
    pub saved_secs: Option<u32>,
    /// Do not keep the session unless it subscribes to something: clients of old publish with a new name each time.
    pub only_with_subscriptions: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    #[error("unknown device or wrong secret")]
    BadCredentials,
    #[error("anonymous clients are not allowed here")]
    NotAllowed,
    #[error("the device connects too often")]
    TooOften,
    #[error("the store takes nothing now")]
    Unavailable,
}

/// Called with what came of each filter, when it is on stable storage where it has to be.
pub type Subscribed = Box<dyn FnOnce(Vec<Result<u8, u8>>) + Send>;

/// The hash under which secrets and keys are kept.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

impl Engine {
    /// Checks a device's credentials. Unknown devices and wrong secrets look alike, and cost the same.
    pub fn sign_in(&self, app: AppNo, device: &str, secret: &[u8]) -> Result<Client, SignInError> {
        let hash = secret_hash(secret);
        let at = self.store.device_by_id(app, device);
        let known = at.and_then(|at| self.store.sign_in(at)).and_then(|s| s.secret_hash);
        let right = same(&known.unwrap_or([0; 32]), &hash) && known.is_some();
        let at = at.filter(|_| right).ok_or(SignInError::BadCredentials)?;
        Ok(Client { app, id: device.to_owned(), device: Some(at.device) })
    }

    /// A device whose credentials were checked elsewhere: by a proof, or a token that the app's server or this one signed.
    pub fn sign_in_proven(&self, app: AppNo, device: &str) -> Result<Client, SignInError> {
        let at = self.store.device_by_id(app, device);
        let registered = |at: &DeviceRef| self.store.is_registered(*at);
        let at = at.filter(registered).ok_or(SignInError::BadCredentials)?;
        Ok(Client { app, id: device.to_owned(), device: Some(at.device) })
    }

    /// An anonymous client. A name that belongs to a registered device is not to be had without its secret.
    pub fn sign_in_anonymous(&self, app: AppNo, name: &str) -> Result<Client, SignInError> {
        if !self.access.anonymous {
            return Err(SignInError::NotAllowed);
        }
        let device = match self.store.device_by_id(app, name) {
            Some(at) if self.store.is_registered(at) => {
                return Err(SignInError::BadCredentials);
            }
            at => at.map(|at| at.device),
        };
        Ok(Client { app, id: name.to_owned(), device })
    }

    /// Whether the client may connect now (L33), and the live connection that it would take over. A gateway lets that one
    /// leave first, so that what it has in flight is found by the new one.
    pub fn admit(&self, client: &Client) -> Result<Option<ConnectionRef>, SignInError> {
        if !self.connects.allow(client, self.clock.now(), self.limits.connects_per_minute_max) {
            return Err(SignInError::TooOften);
        }
        let hub = self.hub();
        Ok(hub.find(client.app, &client.id).and_then(|no| hub.get(no)?.connection))
    }

    /// Attaches a connection to the client's session; an older connection of the same client is closed.
    pub fn connect(&self, attach: Attach) -> Result<Attached, SignInError> {
        let now = self.clock.now();
        let expiry_secs = attach.expiry_secs.min(self.limits.session_expiry_max_secs);
        // Before the hub is held: nobody who waits for the hub is to wait for the store as well.
        let registered = self.is_registered(&attach.client)?;
        let mut hub = self.hub_mut();
        let Attach { client, connection, clean, will, takes_pushes, hears_peers, .. } = attach;
        let existing = hub.find(client.app, &client.id);
        let old_connection = existing.and_then(|no| hub.get(no)?.connection);
        let old_will =
            existing.filter(|_| old_connection.is_some()).and_then(|no| hub.get_mut(no)?.will.take());
        let mut commands = Vec::new();
        let mut leaves_shares = None;
        let ended = existing.filter(|no| clean || !outlives(&hub, *no));
        if let Some(no) = ended {
            if let Some(session) = hub.get(no).filter(|s| s.stored)
                && let Some(device) = client.device
            {
                leaves_shares = Some(session.shares()).filter(|shares| !shares.is_empty());
                commands.push(Command::EndSession { at: DeviceRef { app: client.app, device }, now });
            }
            hub.remove(no);
        }
        let present = existing.is_some() && ended.is_none();
        let no = match existing.filter(|_| present) {
            Some(no) => no,
            // An anonymous device goes with its session, so a new session begins without one.
            None => hub.add(client.app, &client.id, client.device.filter(|_| registered), registered),
        };
        hub.connect(no, connection);
        hub.keep_awake(no);
        let saved = hub.take_saved(no);
        let session = &mut hub.sessions[no as usize];
        session.takes_pushes = takes_pushes;
        session.hears_peers = hears_peers;
        session.expiry_secs = expiry_secs;
        session.will = will.map(Box::new);
        // A connection of another protocol can make nothing of it, and leaves nothing, or something of its own; one that is still
        // there has left nothing yet.
        let state_lost = session.state_lost || (present && old_connection.is_some() && saved.is_none());
        session.state_lost = takes_pushes && (state_lost || saved.is_some());
        // A session with nothing in it, of a connection that ended without a goodbye, is told as a new one: perhaps its client
        // never heard of it, and would take it for an older one that it remembers, with the subscriptions of that one.
        let is_known = session.known || saved.is_some() || !session.subscriptions.is_empty();
        let resumes = present && is_known;
        if session.stored
            && let Some(device) = session.device
        {
            let at = DeviceRef { app: client.app, device };
            commands.push(Command::OpenSession { at, expiry_secs, fresh: false, now });
        }
        let seen = session.device.filter(|_| registered).map(|device| DeviceRef { app: client.app, device });
        let shares = if session.stored { session.shares() } else { Vec::new() };
        let at = session.device.or(client.device).map(|device| DeviceRef { app: client.app, device });
        drop(hub);
        if let Some(at) = seen.filter(|at| self.store.hears_peers(*at) != hears_peers) {
            commands.push(Command::HearPeers { at, hears: hears_peers });
        }
        // Who deletes a device takes its session away when the store has done it. Either this one was there by then, or the store
        // says now that the device is gone.
        if self.is_registered(&client) != Ok(registered) {
            self.take_back(no, connection);
            old_connection.into_iter().for_each(|old| self.connections().close(old, Farewell::Revoked));
            return Err(SignInError::Unavailable);
        }
        seen.into_iter().for_each(|at| self.seen(at));
        self.submit_connect(at, (leaves_shares, shares), commands);
        old_connection.into_iter().for_each(|old| self.connections().close(old, Farewell::TakenOver));
        self.settle_wills(&client, (ended.is_some(), present), old_will);
        Ok(Attached { session: no, present: resumes, expiry_secs, saved, state_lost })
    }

    /// What becomes of wills when a client connects: of one that waits for its delay, and of that of a connection taken over.
    fn settle_wills(&self, client: &Client, (ended, present): (bool, bool), old: Option<Box<Will>>) {
        // Back in time, the will is void; beginning anew ends the old session, and with it the will's delay.
        if let Some(will) = self.wills.take(client.app, &client.id).filter(|_| ended) {
            self.publish_will(client.app, &client.id, &will);
        }
        // Taken over: the old network connection closed without a goodbye. A delayed will of a session that goes on is void.
        if let Some(will) = old.filter(|will| will.delay_secs == 0 || !present) {
            self.publish_will(client.app, &client.id, &will);
        }
    }

    /// A poll waits on this connection until something is put into the device's inbox; false when too many do (L29).
    /// Look into the inbox after this, not before: then nothing slips in between.
    pub fn wait(&self, at: DeviceRef, connection: ConnectionRef) -> bool {
        self.hub_mut().wait(at, connection, self.limits.polls_per_device_max)
    }

    /// Whether something lies in the device's inbox behind that place.
    pub fn has_pending(&self, at: DeviceRef, position: Position) -> bool {
        !self.store.pending(at, position, 1, self.clock.now()).is_empty()
    }

    pub fn stop_waiting(&self, at: DeviceRef, connection: ConnectionRef) {
        self.hub_mut().stop_waiting(at, connection);
    }

    fn is_registered(&self, client: &Client) -> Result<bool, SignInError> {
        let Some(device) = client.device else { return Ok(false) };
        // Deleted since the credentials were checked: the next attempt is told so.
        self.store.has_secret(DeviceRef { app: client.app, device }).ok_or(SignInError::Unavailable)
    }

    /// A connection gets no session after all; it will not say goodbye to one that it never had.
    fn take_back(&self, no: SessionNo, connection: ConnectionRef) {
        let mut hub = self.hub_mut();
        if hub.get(no).is_some_and(|s| s.connection == Some(connection)) {
            hub.remove(no);
        }
        hub.release(no, connection);
    }

    /// The connection ended. Nothing happens if another one has taken the session over meanwhile.
    pub fn disconnect(&self, session: SessionNo, connection: ConnectionRef, detach: Detach) {
        let now = self.clock.now();
        let mut hub = self.hub_mut();
        let mine = |s: &&mut crate::hub::Session| {
            s.connection == Some(connection)
                || (seeded::is(Bug::TakeoverUnregisters) && s.connection.is_some())
        };
        hub.release(session, connection);
        if hub.get_mut(session).filter(mine).is_none() {
            return;
        }
        hub.disconnect(session);
        let Some(s) = hub.get_mut(session) else { return };
        s.known |= detach.orderly || detach.heard;
        let will = s.will.take().filter(|_| !detach.orderly);
        let expiry_secs =
            detach.expiry_secs.unwrap_or(s.expiry_secs).min(self.limits.session_expiry_max_secs);
        s.expiry_secs = expiry_secs;
        let (app, client, stored) = (s.app, s.client.clone(), s.stored);
        let shares = s.subscriptions.iter().any(|s| s.share.is_some());
        let at = s.device.map(|device| DeviceRef { app, device });
        let keep =
            expiry_secs > 0 && (stored || !s.subscriptions.is_empty() || !detach.only_with_subscriptions);
        if let Some(saved) = detach.saved.filter(|_| keep) {
            hub.save(session, saved, detach.saved_bytes, self.limits.saved_bytes_max);
        }
        let mut commands = Vec::new();
        match at.filter(|_| stored) {
            Some(at) if keep => commands.push(Command::LeaveSession { at, expiry_secs, now }),
            Some(at) => {
                commands.push(Command::EndSession { at, now });
                hub.remove(session);
            }
            None if keep => {
                let secs = detach.saved_secs.unwrap_or(u32::MAX).min(expiry_secs);
                hub.let_idle(session, now + u64::from(secs) * 1000);
                if hub.idle.len() > self.limits.idle_sessions_max
                    && let Some((_, oldest)) = hub.idle.first().copied()
                {
                    hub.remove(oldest);
                }
            }
            None => hub.remove(session),
        }
        let hands_on = at.filter(|_| stored && shares);
        // Before anybody can come in its place.
        hands_on.iter().for_each(|at| self.handing.begin(*at));
        drop(hub);
        if !stored && let Some(at) = at {
            self.seen(at);
        }
        self.submit_parting_of(hands_on, keep, commands);
        if let Some(will) = will {
            // At the earlier of the will's delay and the session's end (MQTT-3.1.3-9).
            let delay_secs = if keep { will.delay_secs.min(expiry_secs) } else { 0 };
            if delay_secs == 0 {
                self.publish_will(app, &client, &will);
            } else {
                self.wills.add(
                    now + u64::from(delay_secs) * 1000,
                    app,
                    client,
                    will,
                    (self.limits.wills_max, self.limits.wills_bytes_max),
                );
            }
        }
    }

    /// Enters those of the subscriptions into the hub that the client may have.
    fn grant(
        &self,
        hub: &mut Hub,
        session: SessionNo,
        client: &str,
        wanted: Vec<StoredSubscription>,
    ) -> Grants {
        let mut grants = Grants::default();
        for subscription in wanted {
            let count = hub.get(session).map_or(0, |s| s.subscriptions.len());
            let refusal = if !self.access.may_subscribe(client, &subscription.filter) {
                Some(self.access.refusal_code)
            } else if count >= self.limits.subscriptions_max && !has(hub, session, &subscription) {
                Some(QUOTA_EXCEEDED)
            } else {
                None
            };
            if let Some(code) = refusal {
                grants.results.push(Err(code));
                grants.new.push(false);
                continue;
            }
            let is_new = !hub.subscribe(session, &subscription);
            if is_new {
                grants.fresh.push(subscription.clone());
            }
            grants.new.push(is_new);
            grants.results.push(Ok(subscription.qos));
            grants.granted.push(subscription);
        }
        // What the store has already is not written once more: a device could fill the journal with it.
        if hub.sessions[session as usize].stored {
            grants.granted.retain(|subscription| !hub.has_stored(session, subscription));
        }
        grants
    }

    /// Adds subscriptions; `done` gets, for each filter, the QoS granted or the code of refusal.
    /// Returns the filters that are new to the session, by place (for retained messages).
    pub fn subscribe(
        &self,
        session: SessionNo,
        wanted: Vec<StoredSubscription>,
        done: Subscribed,
    ) -> Vec<bool> {
        let mut hub = self.hub_mut();
        let Some((app, client)) = hub.get(session).map(|s| (s.app, s.client.clone())) else {
            drop(hub);
            done(vec![Err(0x80); wanted.len()]);
            return vec![false; wanted.len()];
        };
        let Grants { new, results, granted, fresh } = self.grant(&mut hub, session, &client, wanted);
        let change = hub.change_subscriptions(session);
        let s = &hub.sessions[session as usize];
        // Of what is shared the store has to know also where the session ends with its connection.
        let shares = granted.iter().filter_map(|g| Some(share_name(g.share.as_deref()?, &g.filter)));
        let shares: Vec<String> = shares.collect();
        let lasting = (s.expiry_secs > 0 || !shares.is_empty()) && !granted.is_empty();
        let at = s.device.map(|device| DeviceRef { app, device });
        let (expiry_secs, generation, stored) = (s.expiry_secs, s.generation, s.stored);
        hub.sessions[session as usize].storing = lasting && at.is_none();
        drop(hub);
        if !lasting {
            done(results);
            return new;
        }
        let (engine, taken) = (self.clone(), granted.clone());
        let done: Done = Box::new(move |outcome| {
            let failed = outcome.is_err();
            let at = (session, generation, change);
            match failed {
                false => engine.hub_mut().note_stored(at, &taken),
                // What was refused must not come live, as if it had been granted.
                true => engine.hub_mut().take_back(at, &fresh, !stored),
            }
            done(
                results
                    .into_iter()
                    .map(|r| r.and_then(|qos| if failed { Err(UNSPECIFIED) } else { Ok(qos) }))
                    .collect(),
            );
        });
        match at {
            Some(at) => {
                let mut commands = Vec::new();
                if !stored {
                    commands.push(Command::OpenSession {
                        at,
                        expiry_secs,
                        fresh: false,
                        now: self.clock.now(),
                    });
                    self.hub_mut().sessions[session as usize].stored = true;
                }
                commands.push(Command::Subscribe { at, subscriptions: granted });
                self.submit_arrival(at, shares, commands, done);
            }
            None => self.store_anonymous((session, generation), app, &client, (expiry_secs, granted), done),
        }
        new
    }

    /// The session's client comes to be in the store, with the subscriptions that were made last. A publish that it sends
    /// behind them has to wait for their answer, or would not reach it.
    pub fn is_being_stored(&self, session: SessionNo) -> bool {
        self.hub().get(session).is_some_and(|s| s.storing)
    }

    /// An anonymous client subscribes in a session that is to last: only now the store has to know it. What is published
    /// meanwhile is not for it: it would go out live, and be lost with the connection.
    fn store_anonymous(
        &self,
        (session, generation): (SessionNo, u32),
        app: AppNo,
        client: &str,
        (expiry_secs, subscriptions): (u32, Vec<StoredSubscription>),
        done: Done,
    ) {
        let (engine, id) = (self.clone(), client.to_owned());
        let named = |s: &StoredSubscription| Some(share_name(s.share.as_deref()?, &s.filter));
        let shares: Vec<String> = subscriptions.iter().filter_map(named).collect();
        let now = self.clock.now();
        let registration = Registration {
            origin: None,
            app,
            id: id.clone(),
            secret_hash: None,
            profile: Profile::default(),
            now,
            idempotency: None,
            quota: Some(self.device_quota()),
        };
        let registered = Box::new(move |outcomes: Result<Vec<Outcome>, StoreError>| {
            if let Err(error) = outcomes {
                engine.hub_mut().end_storing((session, generation));
                return done(Err(error));
            }
            // Known already where two SUBSCRIBE packets came at once.
            let Some(at) = engine.store.device_by_id(app, &id) else {
                engine.hub_mut().end_storing((session, generation));
                return done(Err(StoreError::Missing));
            };
            let mut hub = engine.hub_mut();
            hub.end_storing((session, generation));
            let here = hub.get(session).is_some_and(|s| s.generation == generation);
            if here {
                hub.set_device(session, at.device);
                hub.sessions[session as usize].stored = true;
            }
            let connected = hub.get(session).is_some_and(|s| s.connection.is_some());
            drop(hub);
            let mut commands = vec![
                Command::OpenSession { at, expiry_secs, fresh: false, now },
                Command::Subscribe { at, subscriptions },
            ];
            // It went away while the store was writing.
            if !here {
                commands.push(Command::EndSession { at, now });
            } else if !connected {
                commands.push(Command::LeaveSession { at, expiry_secs, now });
            }
            engine.submit_arrival(at, shares, commands, done);
        });
        self.store.submit(vec![Command::Register(Box::new(registration))], registered);
    }

    /// Takes subscriptions away; tells which there were.
    pub fn unsubscribe(
        &self,
        session: SessionNo,
        filters: Vec<(Option<String>, String)>,
        done: Box<dyn FnOnce(Vec<bool>) + Send>,
    ) {
        let mut hub = self.hub_mut();
        if hub.get(session).is_none() {
            drop(hub);
            return done(vec![false; filters.len()]);
        }
        let existed: Vec<bool> = filters
            .iter()
            .map(|(share, filter)| hub.unsubscribe(session, share.as_deref(), filter))
            .collect();
        let is_change = existed.contains(&true);
        if is_change {
            hub.change_subscriptions(session);
        }
        let s = &hub.sessions[session as usize];
        let at = s.device.filter(|_| s.stored && is_change).map(|device| DeviceRef { app: s.app, device });
        drop(hub);
        match at {
            Some(at) => {
                let done: Done = Box::new(move |_| done(existed));
                let named = |(share, filter): &(Option<String>, String)| {
                    share.as_deref().map(|share| share_name(share, filter))
                };
                let shares: Vec<String> = filters.iter().filter_map(named).collect();
                let mut commands = vec![Command::Unsubscribe { at, filters }];
                if !shares.is_empty() {
                    commands.extend(self.hand_on(at, Parting::Unsubscribed, Some(shares)));
                }
                self.submit_parting(commands, done);
            }
            None => done(existed),
        }
    }

    pub(crate) fn publish_will(&self, app: AppNo, client: &str, will: &Will) {
        let publish = crate::delivery::publish::Publish {
            content: will.content.clone(),
            qos: will.qos,
            retain: will.retain,
            expiry_secs: will.expiry_secs,
        };
        self.publish_as(app, client, None, publish);
    }

    /// Makes the hub again from the store: at start, before anybody connects.
    pub(crate) fn restore_sessions(&self) {
        let now = self.clock.now();
        let mut left = Vec::new();
        let mut hub = self.hub_mut();
        for (at, id, session, subscriptions) in self.store.sessions() {
            let registered = self.store.is_registered(at);
            let no = hub.add(at.app, &id, Some(at.device), registered);
            subscriptions.iter().for_each(|s| _ = hub.subscribe(no, s));
            let change = hub.change_subscriptions(no);
            let generation = hub.sessions[no as usize].generation;
            hub.note_stored((no, generation, change), &subscriptions);
            let s = &mut hub.sessions[no as usize];
            s.stored = true;
            s.state_lost = true;
            s.expiry_secs = session.expiry_secs;
            // Nobody is connected: those who were when the server ended have left now.
            if session.left_at.is_none() {
                left.push(Command::LeaveSession { at, expiry_secs: session.expiry_secs, now });
            }
        }
        drop(hub);
        self.submit_in_turns(left);
    }

    /// Batch after batch, each when the one before is stored: all at once they would hold up those who connect meanwhile.
    fn submit_in_turns(&self, mut commands: Vec<Command>) {
        let batch = commands.split_off(commands.len().saturating_sub(LEFT_BATCH));
        if batch.is_empty() {
            return;
        }
        let engine = self.clone();
        let done: Done = Box::new(move |outcome| match outcome {
            Ok(_) => engine.submit_in_turns(commands),
            Err(error) => tracing::warn!(%error, "that sessions were left was not stored"),
        });
        self.store.submit(batch, done);
    }
}

/// What became of a wish for subscriptions.
#[derive(Default)]
struct Grants {
    /// By place: whether the session did not have it before.
    new: Vec<bool>,
    results: Vec<Result<u8, u8>>,
    /// Those that the store has to be told of.
    granted: Vec<StoredSubscription>,
    /// Those that are new, to be taken back where the store refuses.
    fresh: Vec<StoredSubscription>,
}

/// MQTT 5 reason codes, which other protocols translate.
const QUOTA_EXCEEDED: u8 = 0x97;
const UNSPECIFIED: u8 = 0x80;
/// Sessions told to the store in one batch as left by the server's end.
const LEFT_BATCH: usize = 1_000;

fn has(hub: &Hub, session: SessionNo, wanted: &StoredSubscription) -> bool {
    hub.get(session).is_some_and(|s| s.subscriptions.iter().any(|s| s.is(wanted)))
}

/// Whether the session is one that a returning client finds again.
fn outlives(hub: &Hub, no: SessionNo) -> bool {
    hub.get(no).is_some_and(|s| s.expiry_secs > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing compares a secret itself: keys are looked up by their SHA-256, devices' secrets compared by it, here.
    #[test]
    fn hashes_are_the_same_only_where_every_bit_is() {
        let hash = secret_hash(b"secret");
        assert!(same(&hash, &secret_hash(b"secret")));
        for bit in 0..256 {
            let mut other = hash;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!same(&hash, &other), "bit {bit}");
        }
    }
}
