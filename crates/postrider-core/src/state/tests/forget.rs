//! What is forgotten of apps, beside a model that looks at every app with each command.

use super::*;
use std::collections::VecDeque;

/// What one app keeps: reports by when their messages ended, request keys by until when they are kept.
#[derive(Debug, Default)]
struct Kept {
    reports: VecDeque<(u64, MessageId)>,
    keys: VecDeque<(u64, u128)>,
}

/// Goes through all apps, and gives each as much of the limit as those before have left.
fn forget(apps: &mut [Kept], now: u64, limit: u32, (before, max): (u64, u32)) -> bool {
    let is_old = |app: &Kept| {
        app.reports.len() > max as usize || app.reports.front().is_some_and(|(ended, _)| *ended < before)
    };
    let (mut reports, mut keys) = (limit, limit);
    for app in apps.iter_mut() {
        while reports > 0 && is_old(app) {
            reports -= 1;
            app.reports.pop_front();
        }
        while keys > 0 && app.keys.front().is_some_and(|(until, _)| *until <= now) {
            keys -= 1;
            app.keys.pop_front();
        }
    }
    (apps.iter().any(is_old) || keys == 0) && limit > 0
}

#[derive(Clone, Debug)]
enum Act {
    /// A message that is delivered at once, with or without a key.
    Deliver {
        app: u32,
        keep_ms: Option<u64>,
        keys_max: u32,
    },
    Forget {
        ms: u64,
        limit: u32,
        keep_ms: u64,
        max: u32,
    },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..4u32, prop::option::of(0..3_000u64), 0..4u32)
            .prop_map(|(app, keep_ms, keys_max)| Act::Deliver { app, keep_ms, keys_max }),
        2 => (0..2_000u64, 0..4u32, 0..3_000u64, 0..6u32)
            .prop_map(|(ms, limit, keep_ms, max)| Act::Forget { ms, limit, keep_ms, max }),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..150)
}

impl World {
    /// Four apps with a device each.
    fn of_four_apps() -> World {
        let mut w = World::new(1);
        for app in 1..4 {
            w.run(Command::CreateApp { id: format!("a{app}"), name: String::new(), at: 1 });
            w.register_in(AppNo(app), "d");
        }
        w
    }

    fn deliver(&mut self, app: AppNo, idempotency: Option<Idempotency>) -> MessageId {
        let sent = self.send(|m| (m.app, m.idempotency) = (app, idempotency));
        let (device, which) = (DeviceNo(0), Which::Id(sent.id));
        let step = Progress { device, which, step: Step::Delivered, reason: Reason::None, sent_at: None };
        self.run(Command::Progress { app, steps: vec![step], now: self.now });
        sent.id
    }
}

fn check(w: &World, apps: &[Kept], (ids, keys): (&[Vec<MessageId>], u128)) {
    for (no, app) in apps.iter().enumerate() {
        let no = AppNo(no as u32);
        let known = ids[no.0 as usize].iter().filter(|id| w.state.knows_message(no, **id));
        assert_eq!(known.collect::<Vec<_>>(), app.reports.iter().map(|(_, id)| id).collect::<Vec<_>>());
        let known = (0..keys).filter(|key| w.state.request_of(no, *key).is_some());
        assert_eq!(known.collect::<Vec<_>>(), app.keys.iter().map(|(_, key)| *key).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_forgotten_is_what_a_look_at_every_app_finds(acts in acts()) {
        let mut w = World::of_four_apps();
        let mut apps: Vec<Kept> = (0..4).map(|_| Kept::default()).collect();
        let (mut ids, mut keys) = (vec![Vec::new(); 4], 0);
        for act in acts {
            match act {
                Act::Deliver { app, keep_ms, keys_max } => {
                    w.now += 1;
                    let keep_until = keep_ms.map(|ms| w.now + ms);
                    let idempotency = keep_until
                        .map(|keep_until| Idempotency { key: keys, request: 1, keep_until, keys_max });
                    let id = w.deliver(AppNo(app), idempotency);
                    let kept = &mut apps[app as usize];
                    kept.reports.push_back((w.now, id));
                    ids[app as usize].push(id);
                    if let Some(until) = keep_until {
                        kept.keys.push_back((until, keys));
                        keys += 1;
                        while keys_max > 0 && kept.keys.len() > keys_max as usize {
                            kept.keys.pop_front();
                        }
                    }
                }
                Act::Forget { ms, limit, keep_ms, max } => {
                    w.now += ms;
                    let (now, history_before) = (w.now, w.now - keep_ms);
                    let expected = forget(&mut apps, now, limit, (history_before, max));
                    let expire = Command::Expire { now, limit, history_before, history_max: max };
                    let Outcome::Expired { more, .. } = w.run(expire) else { panic!() };
                    prop_assert_eq!(more, expected);
                }
                Act::Restart => w.state = restarted(&w.state),
            }
            check(&w, &apps, (&ids, keys));
        }
    }
}
