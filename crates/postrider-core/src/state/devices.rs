//! Devices come, change and go; their sessions open, are left and end.

use super::app::{Device, FirstAnswer, Session};
use super::shares::handed_on;
use super::timers::Timer;
use super::{Effects, State};
use crate::command::*;
use crate::id::*;
use crate::model::*;

impl State {
    pub(super) fn register(&mut self, new: &Registration) -> Result<Outcome, Refusal> {
        self.saw(new.now);
        let app_no = new.app;
        let app = self.open_app_mut(app_no)?;
        if let Some((earlier, answer)) = app.earlier(new.idempotency.as_ref()) {
            return match answer {
                FirstAnswer::Device(no) if new.idempotency.is_some_and(|i| i.request == earlier.request) => {
                    Ok(Outcome::Registered { at: DeviceRef { app: app_no, device: *no }, existed: true })
                }
                _ => Err(Refusal::IdempotencyMismatch),
            };
        }
        if app.by_id.contains_key(&new.id) {
            return Err(Refusal::Exists);
        }
        if let Some(quota) = new.quota {
            // A session of an anonymous client is no device, and is counted with its own kind.
            let is_device = new.secret_hash.is_some();
            if is_device && app.all.len() >= quota.all_max {
                return Err(Refusal::TooManyDevices);
            }
            let of_its_kind = match new.origin {
                Some(origin) if origin.is_own() => Some(app.own.len()),
                _ if is_device => None,
                _ => Some(app.anonymous.len()),
            };
            if of_its_kind.is_some_and(|count| count >= quota.own_max) {
                return Err(Refusal::TooManyOwnDevices);
            }
        }
        let device = DeviceNo(app.devices.len() as u32);
        let mut profile = new.profile.clone();
        tidy_tags(&mut profile.tags);
        app.devices.push(Some(Box::new(Device {
            id: new.id.clone(),
            secret_hash: new.secret_hash,
            profile,
            created_at: new.now,
            last_seen_at: None,
            session: None,
            origin: new.origin,
            hears_peers: false,
        })));
        app.index(device);
        self.remember(app_no, new.idempotency.as_ref(), FirstAnswer::Device(device));
        Ok(Outcome::Registered { at: DeviceRef { app: app_no, device }, existed: false })
    }

    /// Registers, unless the request is a repetition or refused: then the keys stay as they are.
    pub(super) fn enroll(&mut self, new: &Registration, keys: &ProofKeys) -> Result<Outcome, Refusal> {
        let outcome = self.register(new)?;
        if let Outcome::Registered { at, existed: false } = outcome {
            self.keep_proof_keys(at, keys);
        }
        Ok(outcome)
    }

    pub(super) fn change_secret(
        &mut self,
        at: DeviceRef,
        secret_hash: [u8; 32],
        keys: &ProofKeys,
    ) -> Result<Outcome, Refusal> {
        let device = self.device_in(at)?;
        // An anonymous client would become a device that is in no index.
        if device.secret_hash.is_none() {
            return Err(Refusal::NoSuchDevice);
        }
        device.secret_hash = Some(secret_hash);
        self.keep_proof_keys(at, keys);
        Ok(Outcome::Done)
    }

    pub(super) fn first_seen(&mut self, at: DeviceRef, now: UnixMillis) -> Result<Outcome, Refusal> {
        self.saw(now);
        let app = self.app_mut(at.app)?;
        let device = app.device_mut(at.device).ok_or(Refusal::NoSuchDevice)?;
        // It may have been there again since this was sent off.
        device.last_seen_at = device.last_seen_at.max(Some(now));
        app.never_seen.remove(at.device.0);
        Ok(Outcome::Done)
    }

    fn keep_proof_keys(&mut self, at: DeviceRef, keys: &ProofKeys) {
        if keys.is_empty() {
            self.proof_keys.remove(&at);
        } else {
            self.proof_keys.insert(at, keys.clone());
        }
    }

    pub(super) fn change_device(
        &mut self,
        at: DeviceRef,
        change: &ProfileChange,
    ) -> Result<Outcome, Refusal> {
        let app = self.app_mut(at.app)?;
        if app.device(at.device).is_none() {
            return Err(Refusal::NoSuchDevice);
        }
        app.unindex(at.device);
        if let Some(device) = app.device_mut(at.device) {
            apply_change(&mut device.profile, change);
        }
        app.index(at.device);
        Ok(Outcome::Done)
    }

    pub(super) fn delete_device(
        &mut self,
        at: DeviceRef,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.device_in(at)?;
        self.drop_session(at);
        let takers = self.leave_to_others(at, effects);
        self.end_inbox(at, |_| true, (Step::Erased, Reason::Unregistered), now, effects);
        self.leave_broadcasts(at, (Step::Erased, Reason::Unregistered), now, effects);
        let app = self.app_mut(at.app)?;
        app.unindex(at.device);
        app.devices[at.device.0 as usize] = None;
        self.proof_keys.remove(&at);
        Ok(handed_on(takers))
    }

    pub(super) fn hear_peers(&mut self, at: DeviceRef, hears: bool) -> Result<Outcome, Refusal> {
        self.device_in(at)?.hears_peers = hears;
        Ok(Outcome::Done)
    }

    /// Its user signed out: nothing that waits for it is for the next one.
    pub(super) fn clear_inbox(
        &mut self,
        at: DeviceRef,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.device_in(at)?;
        let open_before = self.apps[at.app.0 as usize].open;
        let recalled = (Step::Cancelled, Reason::Recalled);
        self.end_inbox(at, |_| true, recalled, now, effects);
        self.leave_broadcasts(at, recalled, now, effects);
        Ok(Outcome::Cancelled { open: open_before - self.apps[at.app.0 as usize].open })
    }

    pub(super) fn open_session(
        &mut self,
        at: DeviceRef,
        expiry_secs: u32,
        fresh: bool,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        let mut takers = Vec::new();
        if fresh {
            self.device_in(at)?;
            self.drop_session(at);
            takers = self.leave_to_others(at, effects);
            self.end_inbox(at, |e| !e.push(), (Step::Expired, Reason::SessionEnded), now, effects);
        }
        self.unschedule(at);
        let device = self.device_in(at)?;
        let stored = StoredSession { expiry_secs, left_at: None };
        match &mut device.session {
            Some(session) => session.stored = stored,
            none => *none = Some(Box::new(Session { stored, subscriptions: Vec::new() })),
        }
        self.sort_into_shares(at);
        Ok(handed_on(takers))
    }

    pub(super) fn leave_session(
        &mut self,
        at: DeviceRef,
        expiry_secs: u32,
        now: UnixMillis,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        self.unschedule(at);
        let device = self.device_in(at)?;
        device.last_seen_at = Some(now);
        self.app_mut(at.app)?.never_seen.remove(at.device.0);
        let device = self.device_in(at)?;
        let session = device.session.as_deref_mut().ok_or(Refusal::NoSuchDevice)?;
        session.stored = StoredSession { expiry_secs, left_at: Some(now) };
        if let Some(end) = session.ends_at() {
            self.timers.set(end, Timer::EndSession(at));
        }
        self.sort_into_shares(at);
        Ok(Outcome::Done)
    }

    /// An anonymous client is nothing but its session: it goes with it.
    pub(super) fn end_session(
        &mut self,
        at: DeviceRef,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        if self.device_in(at)?.secret_hash.is_none() {
            return self.delete_device(at, now, effects);
        }
        self.drop_session(at);
        let takers = self.leave_to_others(at, effects);
        self.end_inbox(at, |e| !e.push(), (Step::Expired, Reason::SessionEnded), now, effects);
        Ok(handed_on(takers))
    }

    pub(super) fn subscribe(
        &mut self,
        at: DeviceRef,
        new: &[StoredSubscription],
    ) -> Result<Outcome, Refusal> {
        let session = self.device_in(at)?.session.as_deref_mut().ok_or(Refusal::NoSuchDevice)?;
        for subscription in new {
            let same = |s: &&mut StoredSubscription| {
                s.filter == subscription.filter && s.share == subscription.share
            };
            match session.subscriptions.iter_mut().find(same) {
                Some(old) => old.clone_from(subscription),
                None => session.subscriptions.push(subscription.clone()),
            }
        }
        self.sort_into_shares(at);
        Ok(Outcome::Done)
    }

    pub(super) fn unsubscribe(
        &mut self,
        at: DeviceRef,
        filters: &[(Option<String>, String)],
    ) -> Result<Outcome, Refusal> {
        self.app_mut(at.app)?.leave_shares(at.device);
        let session = self.device_in(at)?.session.as_deref_mut().ok_or(Refusal::NoSuchDevice)?;
        session
            .subscriptions
            .retain(|s| !filters.iter().any(|(share, filter)| s.filter == *filter && s.share == *share));
        self.sort_into_shares(at);
        Ok(Outcome::Done)
    }

    fn device_in(&mut self, at: DeviceRef) -> Result<&mut Device, Refusal> {
        self.app_mut(at.app)?.device_mut(at.device).ok_or(Refusal::NoSuchDevice)
    }

    /// The session or its connection has changed.
    fn sort_into_shares(&mut self, at: DeviceRef) {
        if let Ok(app) = self.app_mut(at.app) {
            app.leave_shares(at.device);
            app.join_shares(at.device);
        }
    }

    fn drop_session(&mut self, at: DeviceRef) {
        self.unschedule(at);
        if let Ok(app) = self.app_mut(at.app) {
            app.leave_shares(at.device);
        }
        if let Ok(device) = self.device_in(at) {
            device.session = None;
        }
    }

    fn unschedule(&mut self, at: DeviceRef) {
        let end = self.device_in(at).ok().and_then(|d| d.session.as_deref()?.ends_at());
        if let Some(end) = end {
            self.timers.cancel(end, Timer::EndSession(at));
        }
    }
}

/// What a change makes of a profile.
pub fn apply_change(profile: &mut Profile, change: &ProfileChange) {
    if let Some(platform) = change.platform {
        profile.platform = platform;
    }
    if let Some(alias) = &change.alias {
        profile.alias.clone_from(alias);
    }
    if let Some(tags) = &change.tags {
        profile.tags.clone_from(tags);
    }
    profile.tags.extend(change.add_tags.iter().cloned());
    profile.tags.retain(|t| !change.remove_tags.contains(t));
    tidy_tags(&mut profile.tags);
    for (name, value) in &change.attributes {
        match value {
            Some(value) => _ = profile.attributes.insert(name.clone(), value.clone()),
            None => _ = profile.attributes.remove(name),
        }
    }
    for (provider, token) in &change.provider_tokens {
        match token {
            Some(token) => _ = profile.provider_tokens.insert(provider.clone(), token.clone()),
            None => _ = profile.provider_tokens.remove(provider),
        }
    }
}

fn tidy_tags(tags: &mut Vec<String>) {
    tags.sort_unstable();
    tags.dedup();
    tags.shrink_to_fit();
}
