//! Step 3. What is committed wakes those whom it concerns; what needs no commit goes straight to them.

use crate::Engine;
use crate::command::*;
use crate::hub::Hub;
use crate::id::*;
use crate::model::*;
use crate::port::*;
use crate::seeded::{self, Bug};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Whom a command will concern once it is committed.
enum Concerned {
    Devices(Vec<DeviceNo>),
    Set(DeviceSet),
    /// The member of a shared subscription that got it.
    Holder,
}

impl Engine {
    /// Commits, wakes, tells: in this order.
    pub fn commit(&self, commands: Vec<Command>, done: Done) {
        if commands.is_empty() {
            return done(Ok(Vec::new()));
        }
        let concerned: Vec<Option<(AppNo, Concerned, Arc<Content>)>> =
            commands.iter().map(concerned).collect();
        let retains: Vec<(AppNo, String)> = commands.iter().filter_map(retained_topic).collect();
        let engine = self.clone();
        let done: Done = Box::new(move |outcomes: Result<Vec<Outcome>, StoreError>| {
            retains.iter().for_each(|(app, topic)| engine.retaining.end(*app, topic));
            if let Ok(outcomes) = &outcomes {
                engine.wake_concerned(concerned, outcomes);
            }
            done(outcomes);
        });
        self.store.submit(commands, done);
    }

    /// Commits what nobody waits for.
    pub(crate) fn submit_quietly(&self, commands: Vec<Command>) {
        if !commands.is_empty() {
            self.submit_parting(
                commands,
                Box::new(|outcome| {
                    if let Err(error) = outcome {
                        tracing::warn!(%error, "a change of a session was not stored");
                    }
                }),
            );
        }
    }

    fn wake_concerned(&self, concerned: Vec<Option<(AppNo, Concerned, Arc<Content>)>>, outcomes: &[Outcome]) {
        let mut wakes = Vec::new();
        let hub = self.hub();
        for (concern, outcome) in concerned.into_iter().zip(outcomes) {
            let (Some((app, whom, content)), Outcome::Accepted(accepted)) = (concern, outcome) else {
                continue;
            };
            if accepted.repeated || (seeded::is(Bug::WakeLost) && accepted.seq.is_multiple_of(8)) {
                continue;
            }
            let before = wakes.len();
            let whom = match (whom, accepted.holder) {
                (Concerned::Holder, holder) => Concerned::Devices(holder.into_iter().collect()),
                (whom, _) => whom,
            };
            collect_wakes(&hub, app, &whom, &mut wakes);
            if wakes.len() > before {
                self.contents.put(accepted.seq, content);
            }
        }
        drop(hub);
        if !wakes.is_empty() {
            self.connections().wake(&wakes);
        }
    }

    /// Those of the devices that are connected and take pushes, now.
    pub(crate) fn live_targets(&self, app: AppNo, set: &DeviceSet) -> Vec<LiveTarget> {
        let hub = self.hub();
        let Some(devices) = hub.apps.get(&app).map(|a| &a.devices) else { return Vec::new() };
        let target = |no: u32| {
            let session = hub.get(*devices.get(&DeviceNo(no))?)?;
            let (connection, qos) = (session.connection?, session.push_qos()?);
            Some(LiveTarget { connection, qos: qos.min(1), retain: false, subscription_ids: Vec::new() })
        };
        set.iter().filter_map(target).collect()
    }

    /// The transient lane of pushes.
    pub(crate) fn send_live(&self, content: Arc<Content>, targets: Vec<LiveTarget>) {
        if !targets.is_empty() {
            self.connections().deliver(&Live { content, expires_at: None }, targets);
        }
    }

    /// The devices that are connected.
    pub fn connected_devices(&self, app: AppNo) -> DeviceSet {
        let hub = self.hub();
        let Some(devices) = hub.apps.get(&app).map(|a| &a.devices) else { return DeviceSet::new() };
        let connected = |no: &u32| hub.get(*no).is_some_and(|s| s.connection.is_some());
        devices.iter().filter(|(_, no)| connected(no)).map(|(device, _)| device.0).collect()
    }

    /// Whether a device is connected.
    pub fn is_connected(&self, at: DeviceRef) -> bool {
        self.hub().by_device(at).is_some_and(|s| s.connection.is_some())
    }

    /// Registered devices with a session that subscribes to the topic.
    pub(crate) fn topic_devices(&self, app: AppNo, topic: &str) -> DeviceSet {
        let hub = self.hub();
        let subscribers = hub.apps.get(&app).map_or(Vec::new(), |a| a.topics.subscribers(topic));
        let device = |no: u32| hub.get(no).filter(|s| s.registered).and_then(|s| Some(s.device?.0));
        subscribers.into_iter().filter_map(device).collect()
    }

    /// Sessions subscribed to a topic.
    pub fn topic_subscribers(&self, app: AppNo, topic: &str) -> usize {
        self.hub().apps.get(&app).map_or(0, |a| a.topics.subscribers(topic).len())
    }
}

fn retained_topic(command: &Command) -> Option<(AppNo, String)> {
    match command {
        Command::Retain { app, topic, .. } => Some((*app, topic.clone())),
        _ => None,
    }
}

fn concerned(command: &Command) -> Option<(AppNo, Concerned, Arc<Content>)> {
    let Command::Accept(message) = command else { return None };
    let whom = match &message.targets {
        Targets::Direct(list) => Concerned::Devices(list.iter().map(|t| t.device).collect()),
        Targets::Broadcast(set) => Concerned::Set(set.clone()),
        Targets::Shared(_) => Concerned::Holder,
    };
    Some((message.app, whom, message.content.clone()?))
}

fn collect_wakes(hub: &Hub, app: AppNo, whom: &Concerned, wakes: &mut Vec<ConnectionRef>) {
    let Some(app) = hub.apps.get(&app) else { return };
    match whom {
        Concerned::Devices(list) => {
            wakes.extend(list.iter().filter_map(|d| hub.get(*app.devices.get(d)?)?.connection));
            wakes.extend(list.iter().filter_map(|d| app.waiting.get(d)).flatten());
        }
        Concerned::Holder => {}
        Concerned::Set(set) => {
            let connection = |no: &u32| hub.get(*no)?.connection;
            wakes.extend(common(set, &app.devices).filter_map(connection));
            wakes.extend(common(set, &app.waiting).flatten());
        }
    }
}

/// What a map has for devices of a set. The smaller of both is gone through.
fn common<'a, T>(set: &'a DeviceSet, map: &'a FxHashMap<DeviceNo, T>) -> impl Iterator<Item = &'a T> {
    let by_set = set.len() < map.len() as u64;
    let few = by_set.then(|| set.iter().filter_map(|device| map.get(&DeviceNo(device))));
    let many = (!by_set).then(|| map.iter().filter(|(device, _)| set.contains(device.0)).map(|(_, it)| it));
    few.into_iter().flatten().chain(many.into_iter().flatten())
}
