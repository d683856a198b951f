//! Apps and their keys. Of apps that are deleted: first nobody finds them any more, then their connections close, then what they had goes bit by bit.

use crate::Engine;
use crate::command::Command;
use crate::id::*;
use crate::model::StoredKey;
use crate::port::{Done, Farewell};
use std::sync::atomic::Ordering;

/// Deliveries and devices that one command takes away, at most about.
const EMPTY_BATCH: u32 = 2_000;
/// Sessions that end while the hub is held.
const SESSIONS_BATCH: usize = 500;

impl Engine {
    /// Makes an app: [`Outcome::AppCreated`](crate::command::Outcome), or refused where the id is taken.
    pub fn create_app(&self, id: String, name: String, done: Done) {
        self.store.submit(vec![Command::CreateApp { id, name, at: self.clock.now() }], done);
    }

    pub fn rename_app(&self, app: AppNo, name: String, done: Done) {
        self.store.submit(vec![Command::RenameApp { app, name }], done);
    }

    pub fn add_key(&self, app: AppNo, key: StoredKey, keys_max: u32, done: Done) {
        self.store.submit(vec![Command::AddKey { app: Some(app), key, keys_max }], done);
    }

    /// Revokes a key; refused where the app has none of that id.
    pub fn revoke_key(&self, app: AppNo, key_id: String, done: Done) {
        let at = self.clock.now();
        self.store.submit(vec![Command::RevokeKey { app: Some(app), key_id, at }], done);
    }

    /// Deletes an app; `done` is called when its keys are dead. The rest follows in [`Engine::tick`].
    pub fn close_app(&self, app: AppNo, done: Done) {
        self.store.submit(vec![Command::CloseApp { app, now: self.clock.now() }], done);
    }

    /// One round for a closed app: some sessions, or, when there are none, some of what is stored.
    pub(crate) fn empty_closed_app(&self) {
        let Some(app) = self.store.closing_app() else { return };
        if self.end_sessions_of(app) || self.emptying.swap(true, Ordering::AcqRel) {
            return;
        }
        let engine = self.clone();
        let done: Done = Box::new(move |_| engine.emptying.store(false, Ordering::Release));
        self.store.submit(vec![Command::EmptyApp { app, limit: EMPTY_BATCH, now: self.clock.now() }], done);
    }

    /// Ends some of an app's sessions and closes their connections; whether there were any.
    fn end_sessions_of(&self, app: AppNo) -> bool {
        let mut hub = self.hub_mut();
        let Some(of) = hub.apps.get(&app) else { return false };
        let sessions: Vec<_> = of.clients.values().take(SESSIONS_BATCH).copied().collect();
        let connection = |no: &u32| hub.get(*no).and_then(|session| session.connection);
        let connections: Vec<_> = sessions.iter().filter_map(connection).collect();
        sessions.iter().for_each(|no| hub.remove(*no));
        drop(hub);
        connections.iter().for_each(|c| self.connections().close(*c, Farewell::Revoked));
        !sessions.is_empty()
    }
}
