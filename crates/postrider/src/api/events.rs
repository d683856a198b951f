//! The receipt stream: every step of every delivery of an app, durable and in order, read with a cursor.
//!
//! A cursor names the history that gave it out: after a restore the positions mean other events, so a cursor of another
//! history is refused rather than silently skipping or repeating some (`cursors`).

use super::auth::{ByApp, Reads};
use super::error::{ApiError, Code};
use super::json::Query;
use super::{Api, Time, aside, cursors, page_size};
use crate::http::{Hangup, Stopping};
use axum::extract::State;
use axum::http::Method;
use axum::{Extension, Json};
use postrider_core::id::*;
use postrider_core::model::{Reason, ReceiptEvent, Step};
use postrider_core::port::{EventPage, Store};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

/// A lost notification costs this much time, no more.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventQuery {
    after: Option<String>,
    /// Seconds to wait for the first event.
    wait: Option<u64>,
    limit: Option<usize>,
}

/// A page of the receipt stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct Events {
    events: Vec<Event>,
    /// Give it back as `after`.
    next: String,
    /// Events before the first of these were no longer kept.
    missed: bool,
}

/// One step of one delivery, or of many that it happened to together.
#[derive(Debug, Serialize, ToSchema)]
pub struct Event {
    /// The same whenever the event is read or posted to a webhook.
    id: String,
    /// As `after`, it reads on behind this event.
    cursor: String,
    #[schema(value_type = String, format = DateTime)]
    occurred_at: Time,
    message_id: String,
    /// Null where the step is that of several deliveries, or the device was deleted.
    device_id: Option<String>,
    #[schema(schema_with = super::openapi::step)]
    step: Step,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = super::openapi::reason, required = false)]
    reason: Option<&'static str>,
    /// How many deliveries came to this step.
    count: u64,
    /// Of `forwarded`: the road that it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    road: Option<String>,
}

pub async fn read(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    method: Method,
    (stopping, hangup): (Option<Extension<Stopping>>, Option<Extension<Hangup>>),
    Query(query): Query<EventQuery>,
) -> Result<Json<Events>, ApiError> {
    let limit = page_size(&api, query.limit)?;
    let epoch = api.engine.store.epoch();
    let after = query.after.as_deref().map_or(Ok(0), |cursor| cursors::read_receipt(&api, cursor))?;
    let max = api.limits.poll_max;
    let wait = Duration::from_secs(query.wait.unwrap_or(0));
    if wait > max {
        return Err(
            Code::InvalidParameter.at("wait", format!("`wait` is at most {} seconds.", max.as_secs()))
        );
    }
    // HEAD asks what is there, and takes no place among those who wait.
    let page = if wait.is_zero() || method == Method::HEAD {
        look(&api, app, after, limit).await?
    } else {
        let _poll = api.polls.enter(app, api.limits.polls_max)?;
        let until = Instant::now() + wait;
        let waiting = wait_for_events(&api, app, (after, limit), until, stopping);
        match hangup {
            None => waiting.await?,
            // Who closes its side is answered at once: it may be waiting still, or gone.
            Some(Extension(hangup)) => tokio::select! {
                page = waiting => page?,
                () = hangup.heard() => look(&api, app, after, limit).await?,
            },
        }
    };
    Ok(Json(shown(&*api.engine.store, app, epoch, page)))
}

/// Reads files, which may take a while.
async fn look(api: &Api, app: AppNo, after: u64, limit: usize) -> Result<EventPage, ApiError> {
    let store = api.engine.store.clone();
    Ok(aside(move || store.events(app, after, limit)).await??)
}

async fn wait_for_events(
    api: &Api,
    app: AppNo,
    (after, limit): (u64, usize),
    until: Instant,
    stopping: Option<Extension<Stopping>>,
) -> Result<EventPage, ApiError> {
    let mut stopped = stopping.map(|Extension(Stopping(watch))| watch);
    // Events of other apps move the place to look from, so that they are looked at once only.
    let mut from = after;
    loop {
        let of_app = api.events_changed.of(app);
        let changed = of_app.notified();
        tokio::pin!(changed);
        // From here on no notification is missed, so nothing can slip in between looking and waiting.
        changed.as_mut().enable();
        let page = look(api, app, from, limit).await?;
        let stop = stopped.as_ref().is_some_and(|s| *s.borrow());
        if !page.events.is_empty() || page.missed || stop || Instant::now() >= until {
            return Ok(page);
        }
        from = page.next;
        let look_again = until.min(Instant::now() + LOOK_AGAIN);
        match &mut stopped {
            Some(stopped) => tokio::select! {
                _ = timeout_at(look_again, changed) => {}
                _ = stopped.changed() => {}
            },
            None => _ = timeout_at(look_again, changed).await,
        }
    }
}

fn shown(store: &dyn Store, app: AppNo, epoch: u64, page: EventPage) -> Events {
    Events {
        next: cursors::of_receipt(store, epoch, page.next),
        missed: page.missed,
        events: rows(store, app, epoch, page.events),
    }
}

/// Receipts as they are shown.
pub fn rows(store: &dyn Store, app: AppNo, epoch: u64, events: Vec<ReceiptEvent>) -> Vec<Event> {
    let devices: Vec<DeviceNo> = events.iter().map(|e| e.device.unwrap_or(DeviceNo(u32::MAX))).collect();
    let ids = store.device_ids(app, &devices);
    let event = |(event, device_id): (ReceiptEvent, Option<String>)| Event {
        id: cursors::receipt_id(store, event.position),
        cursor: cursors::of_receipt(store, epoch, event.position),
        occurred_at: Time(event.at),
        message_id: event.message.to_string(),
        device_id,
        step: event.step,
        reason: reason(event.reason),
        count: event.count,
        road: event.road.map(|road| road.to_string()),
    };
    events.into_iter().zip(ids).map(event).collect()
}

/// A reason's name, where there is a reason.
pub fn reason(reason: Reason) -> Option<&'static str> {
    Some(reason.name()).filter(|name| !name.is_empty())
}

/// Wakes those who wait for receipts of an app; receipts of others are none of their business.
#[derive(Default)]
pub struct EventsChanged(Mutex<HashMap<AppNo, Arc<Notify>>>);

impl EventsChanged {
    fn of(&self, app: AppNo) -> Arc<Notify> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(app).or_default().clone()
    }

    /// These apps have new receipts.
    pub fn tell(&self, apps: &BTreeSet<AppNo>) {
        let waited_for = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        apps.iter().filter_map(|app| waited_for.get(app)).for_each(|notify| notify.notify_waiters());
    }
}

/// How many requests of each app wait.
#[derive(Default)]
pub struct Polls(Mutex<HashMap<AppNo, usize>>);

/// One of them; leaves when it is dropped.
struct Poll(Arc<Polls>, AppNo);

impl Polls {
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.0.lock().unwrap().values().sum()
    }

    fn enter(self: &Arc<Self>, app: AppNo, max: usize) -> Result<Poll, ApiError> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(app).or_default();
        if *count >= max {
            return Err(Code::TooManyPolls.retry_after(1));
        }
        *count += 1;
        Ok(Poll(self.clone(), app))
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.1);
            }
        }
    }
}
