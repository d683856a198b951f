//! Apps come, change their name and go; their keys.

use super::app::App;
use super::jobs::emptying;
use super::{Effects, State};
use crate::command::*;
use crate::id::*;
use crate::model::*;

impl State {
    pub(super) fn create_app(&mut self, id: &str, name: &str, at: UnixMillis) -> Result<Outcome, Refusal> {
        self.saw(at);
        if self.apps_by_id.contains_key(id) {
            return Err(Refusal::Exists);
        }
        let no = AppNo(self.apps.len() as u32);
        self.apps.push(App::new(id, name, at));
        self.apps_by_id.insert(id.to_owned(), no);
        Ok(Outcome::AppCreated(no))
    }

    fn keys_mut(&mut self, app: Option<AppNo>) -> Result<&mut Vec<StoredKey>, Refusal> {
        match app {
            Some(app) => Ok(&mut self.open_app_mut(app)?.keys),
            None => Ok(&mut self.platform_keys),
        }
    }

    pub(super) fn add_key(
        &mut self,
        app: Option<AppNo>,
        key: &StoredKey,
        keys_max: u32,
    ) -> Result<Outcome, Refusal> {
        self.saw(key.created_at);
        if self.keys_by_hash.contains_key(&key.hash) {
            return Err(Refusal::Exists);
        }
        let keys = self.keys_mut(app)?;
        if keys.iter().any(|k| k.id == key.id) {
            return Err(Refusal::Exists);
        }
        if keys_max > 0 && keys.len() >= keys_max as usize {
            return Err(Refusal::TooManyKeys);
        }
        keys.push(key.clone());
        let place = keys.len() - 1;
        self.keys_by_hash.insert(key.hash, (app, place));
        Ok(Outcome::Done)
    }

    pub(super) fn revoke_key(
        &mut self,
        app: Option<AppNo>,
        id: &str,
        at: UnixMillis,
    ) -> Result<Outcome, Refusal> {
        self.saw(at);
        let key = self.keys_mut(app)?.iter_mut().find(|k| k.id == id).ok_or(Refusal::NoSuchKey)?;
        key.revoked_at.get_or_insert(at);
        Ok(Outcome::Done)
    }

    pub(super) fn rename_app(&mut self, app: AppNo, name: &str) -> Result<Outcome, Refusal> {
        name.clone_into(&mut self.open_app_mut(app)?.name);
        Ok(Outcome::Done)
    }

    /// From now on nobody finds the app; its id may be used anew.
    pub(super) fn close_app(&mut self, no: AppNo, now: UnixMillis) -> Result<Outcome, Refusal> {
        self.saw(now);
        let app = self.open_app_mut(no)?;
        app.closed_at = Some(now);
        app.webhooks.clear();
        let (id, keys) = (app.id.clone(), std::mem::take(&mut app.keys));
        self.apps_by_id.remove(&id);
        keys.iter().for_each(|key| _ = self.keys_by_hash.remove(&key.hash));
        self.close_jobs_of(no);
        self.open_job(emptying(no), 0, now, now);
        Ok(Outcome::Done)
    }

    /// Broadcasts first, as wholes, so that no device has to leave them one by one; then devices, with what waits for them.
    pub(super) fn empty_app(
        &mut self,
        no: AppNo,
        limit: u32,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.saw(now);
        if self.app_mut(no)?.closed_at.is_none() {
            return Err(Refusal::NoSuchApp);
        }
        let mut left = limit as usize;
        while left > 0 {
            let app = &self.apps[no.0 as usize];
            if let Some(seq) = app.broadcasts.first().copied() {
                self.end_all_open(seq, Step::Erased, Reason::Unregistered, now, effects);
                left -= 1;
                continue;
            }
            let Some(device) = app.all.min().or_else(|| app.anonymous.min()) else { break };
            let waiting = app.inboxes.get(&device).map_or(0, |inbox| inbox.entries.len());
            let at = DeviceRef { app: no, device: DeviceNo(device) };
            self.delete_device(at, now, effects)?;
            left = left.saturating_sub(1 + waiting);
        }
        let app = &mut self.apps[no.0 as usize];
        if left == 0 {
            self.settle_emptying(no, true, now);
            return Ok(Outcome::Emptied { more: true });
        }
        while let Some(topic) = app.retained.keys().next().cloned() {
            effects.released.extend(app.retain(&topic, None).map(|r| r.blob));
        }
        app.requests.clear();
        app.requests_order.clear();
        self.set_app_timers(no);
        self.settle_emptying(no, false, now);
        Ok(Outcome::Emptied { more: false })
    }
}
