//! Devices by what they are and when they were last seen: lists in pages, and pruning of those that nobody sees any more.

use super::auth::{ByApp, Manages, Reads};
use super::devices::Device;
use super::error::{ApiError, Code};
use super::json::{Body, Input, Query};
use super::times::read_time;
use super::{Api, aside, ask, cursors, page_size};
use axum::Json;
use axum::extract::State;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::id::*;
use postrider_core::model::{DeviceSet, Platform};
use postrider_core::port::{DeviceFilter, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Devices looked at while the store's lock is held, and for one page at most.
const LOOK: usize = 10_000;
const LOOK_MAX: usize = 200_000;
/// Devices that one request prunes: at most, and where nothing is said.
const PRUNE_MAX: usize = 500;
const DAY_SECS: u64 = 86_400;

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    /// As they were registered.
    #[default]
    Registered,
    /// Those that were seen longest ago first.
    LastSeen,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceQuery {
    platform: Option<Platform>,
    tag: Option<String>,
    alias: Option<String>,
    connected: Option<bool>,
    seen_before: Option<String>,
    seen_after: Option<String>,
    sort: Sort,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A page of devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct DevicePage {
    devices: Vec<Device>,
    /// Give it back as `cursor` for the next page; null on the last one. Where it is not null, a page may have fewer
    /// devices than `limit`.
    next_cursor: Option<String>,
}

/// Whom a list shows.
struct Wanted {
    app: AppNo,
    filter: DeviceFilter,
    /// Connected devices, and whether they or the others are wanted.
    connected: Option<(DeviceSet, bool)>,
    before: UnixMillis,
    after: UnixMillis,
}

impl Wanted {
    fn fits(&self, (device, seen): &(DeviceNo, UnixMillis)) -> bool {
        let is_wanted = |(set, wanted): &(DeviceSet, bool)| set.contains(device.0) == *wanted;
        *seen < self.before && *seen > self.after && self.connected.as_ref().is_none_or(is_wanted)
    }

    /// The devices behind `after` in the order of registration, at most `max`; and where to look on.
    fn by_number(&self, api: &Api, after: Option<DeviceNo>, max: usize) -> (Vec<DeviceNo>, Option<DeviceNo>) {
        let (mut found, mut after, mut looked) = (Vec::new(), after, 0);
        let is_plain = self.connected.is_none() && self.before == UnixMillis::MAX && self.after == 0;
        let look = if is_plain { max + 1 } else { LOOK };
        loop {
            let (seen, next) = api.engine.store.devices_seen(self.app, &self.filter, after, look);
            looked += seen.len();
            for row in seen.iter().filter(|row| self.fits(row)) {
                if found.len() == max {
                    let last = found.last().copied();
                    return (found, last);
                }
                found.push(row.0);
            }
            match next {
                Some(next) if looked < LOOK_MAX => after = Some(next),
                next => return (found, next),
            }
        }
    }

    /// The devices that were seen longest ago, behind `after`. Each page looks at all devices, a part at a time.
    fn by_time(
        &self,
        api: &Api,
        after: Option<(UnixMillis, DeviceNo)>,
        max: usize,
    ) -> (Vec<DeviceNo>, Option<(UnixMillis, DeviceNo)>) {
        let (mut first, mut from) = (BTreeSet::new(), None);
        loop {
            let (seen, next) = api.engine.store.devices_seen(self.app, &self.filter, from, LOOK);
            for row in seen.into_iter().filter(|row| self.fits(row)) {
                let place = (row.1, row.0);
                if after.is_none_or(|after| place > after) {
                    first.insert(place);
                }
                if first.len() > max + 1 {
                    first.pop_last();
                }
            }
            match next {
                Some(_) => from = next,
                None => break,
            }
        }
        let more = first.len() > max;
        let page: Vec<_> = first.into_iter().take(max).collect();
        let last = page.last().copied().filter(|_| more);
        (page.into_iter().map(|(_, device)| device).collect(), last)
    }
}

pub async fn list(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Query(query): Query<DeviceQuery>,
) -> Result<Json<DevicePage>, ApiError> {
    let limit = page_size(&api, query.limit)?;
    let filter =
        DeviceFilter { platform: query.platform, tag: query.tag, alias: query.alias, anonymous: None };
    let connected = match query.connected {
        Some(wanted) => Some((api.engine.connected_devices(app), wanted)),
        // Who is connected is seen now.
        None if query.seen_before.is_some() => Some((api.engine.connected_devices(app), false)),
        None => None,
    };
    let wanted = Wanted {
        app,
        filter,
        before: read_time("seen_before", query.seen_before.as_deref())?.unwrap_or(UnixMillis::MAX),
        after: read_time("seen_after", query.seen_after.as_deref())?.unwrap_or(0),
        connected,
    };
    if query.sort == Sort::LastSeen {
        let after = cursors::read_list(&api, "seen-", query.cursor.as_deref())?;
        let after = after.map(|at| ((at >> 32) as u64, DeviceNo(at as u32)));
        let asked = api.clone();
        let (page, last) = aside(move || wanted.by_time(&asked, after, limit)).await?;
        let next =
            last.map(|(seen, no)| cursors::of_list(&api, "seen-", u128::from(seen) << 32 | u128::from(no.0)));
        return Ok(Json(page_of(&api, app, page, next)));
    }
    let after = cursors::read_list(&api, "device-", query.cursor.as_deref())?.map(|no| DeviceNo(no as u32));
    let asked = api.clone();
    let (page, last) = aside(move || wanted.by_number(&asked, after, limit)).await?;
    let next = last.map(|no| cursors::of_list(&api, "device-", no.0.into()));
    Ok(Json(page_of(&api, app, page, next)))
}

fn page_of(api: &Api, app: AppNo, page: Vec<DeviceNo>, next_cursor: Option<String>) -> DevicePage {
    let view = |device| api.engine.store.device(DeviceRef { app, device });
    let devices = page.into_iter().filter_map(view).map(|view| Device::of(api, view)).collect();
    DevicePage { devices, next_cursor }
}

/// Which devices to prune.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Devices that were not seen for so many seconds, a day at least, and are not connected. One that was never seen
    /// counts from its registration.
    unseen_secs: u64,
    /// Count them only.
    #[serde(default)]
    dry_run: bool,
    /// Devices of this request, 500 at most and where nothing is said.
    limit: Option<usize>,
    /// `next_cursor` of the request before.
    cursor: Option<String>,
}

impl Input for PruneRequest {}

/// What was pruned.
#[derive(Debug, Serialize, ToSchema)]
pub struct Pruned {
    /// Their ids.
    devices: Vec<String>,
    /// False in a dry run.
    deleted: bool,
    /// Give it back as `cursor` to go on; null where there are no more.
    next_cursor: Option<String>,
}

/// `POST /v1/devices/prune`: what waits for them ends `erased`.
pub async fn prune(
    ByApp(app, _): ByApp<Manages>,
    State(api): State<Api>,
    Body(request): Body<PruneRequest>,
) -> Result<Json<Pruned>, ApiError> {
    if request.unseen_secs < DAY_SECS {
        return Err(Code::InvalidField.at("/unseen_secs", format!("At least {DAY_SECS} seconds: a day.")));
    }
    let limit = request.limit.unwrap_or(PRUNE_MAX);
    if limit == 0 || limit > PRUNE_MAX {
        return Err(Code::InvalidField.at("/limit", format!("From 1 to {PRUNE_MAX}.")));
    }
    let after = cursors::read_list(&api, "prune-", request.cursor.as_deref())?.map(|no| DeviceNo(no as u32));
    let unseen_ms = request.unseen_secs.saturating_mul(1000);
    let wanted = Wanted {
        app,
        filter: DeviceFilter::default(),
        connected: Some((api.engine.connected_devices(app), false)),
        before: api.engine.clock.now().saturating_sub(unseen_ms),
        after: 0,
    };
    let asked = api.clone();
    let (found, last) = aside(move || wanted.by_number(&asked, after, limit)).await?;
    let ids = api.engine.store.device_ids(app, &found);
    let refs = found.into_iter().map(|device| DeviceRef { app, device });
    let named = refs.zip(ids).filter_map(|(at, id)| Some((at, id?)));
    let away: Vec<_> = named.filter(|(at, _)| !api.engine.is_connected(*at)).collect();
    let devices = match request.dry_run {
        true => away.into_iter().map(|(_, id)| id).collect(),
        false => delete(&api, away).await?,
    };
    let next_cursor = last.map(|no| cursors::of_list(&api, "prune-", no.0.into()));
    Ok(Json(Pruned { devices, deleted: !request.dry_run, next_cursor }))
}

/// Deletes devices, all in one commit where that can be; the ids of those that were there.
async fn delete(api: &Api, devices: Vec<(DeviceRef, String)>) -> Result<Vec<String>, ApiError> {
    let mut under_way = Vec::with_capacity(devices.len());
    for (at, id) in devices {
        let api = api.clone();
        let deleting = async move { ask(|done| api.engine.delete_device(at, done)).await };
        under_way.push((id, tokio::spawn(deleting)));
    }
    let mut deleted = Vec::with_capacity(under_way.len());
    for (id, deleting) in under_way {
        match deleting.await.map_err(|_| Code::Internal)???.last() {
            // Behind the command that may hand its shared messages on.
            Some(Outcome::Done | Outcome::HandedOn(_)) => deleted.push(id),
            Some(Outcome::Refused(Refusal::NoSuchDevice)) => {}
            other => return Err(StoreError::Failed(format!("unexpected outcome {other:?}")).into()),
        }
    }
    Ok(deleted)
}
