//! Which sessions subscribe to a topic (MQTT 5 §4.7, §4.8.2).
//!
//! Filters without wildcards, nearly all of them, lie in a hash map; only the others in a tree. A publish therefore costs
//! one look-up plus its subscribers, whatever else is subscribed to. The tree is walked without recursion and with a
//! cap on visits, since its shape is in the hands of subscribers.

use crate::model::share_name;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Nodes looked at for one publish, at most: beyond it the publish is refused, since some subscriber would miss it.
pub const VISITS_MAX: usize = 10_000;

/// So many wildcard filters lie on a topic's way that not all could be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyFilters;

/// Number of a session in the hub.
pub type SessionNo = u32;

/// One subscription of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sub {
    pub session: SessionNo,
    /// The subscriber's own number for it; 0 for none.
    pub id: u32,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
}

/// A session that is to get a publish: one copy, at the highest QoS of its matching subscriptions, with all their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub session: SessionNo,
    pub qos: u8,
    pub retain_as_published: bool,
    pub ids: Vec<u32>,
    /// The shared subscription by which it gets it, by [`share_name`].
    pub share: Option<Arc<str>>,
}

impl From<Sub> for Match {
    fn from(sub: Sub) -> Match {
        let ids = if sub.id > 0 { vec![sub.id] } else { Vec::new() };
        Match {
            session: sub.session,
            qos: sub.qos,
            retain_as_published: sub.retain_as_published,
            ids,
            share: None,
        }
    }
}

/// Whether `topic` (a name) falls under `filter`. Wildcards in the first level do not match names that begin with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut names = topic.split('/');
    for level in filter.split('/') {
        match (level, names.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(name)) if level == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}

/// Whether everything that `inner` can match is matched by `outer` too: what a right to subscribe is checked with.
pub fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') && (outer.starts_with('+') || outer.starts_with('#')) {
        return false;
    }
    let mut inner = inner.split('/');
    for level in outer.split('/') {
        match (level, inner.next()) {
            ("#", _) => return true,
            ("+", Some(name)) if name != "#" => {}
            (level, Some(name)) if level == name => {}
            _ => return false,
        }
    }
    inner.next().is_none()
}

fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|b| b == b'+' || b == b'#')
}

/// The subscriptions of one app.
#[derive(Debug, Default)]
pub struct Topics {
    plain: FilterMap<Vec<Sub>>,
    shared: FilterMap<Vec<Group>>,
}

/// The members of one shared subscription; each message goes to one of them.
#[derive(Debug)]
struct Group {
    name: Arc<str>,
    /// Group and filter.
    share: Arc<str>,
    members: Vec<Sub>,
    turn: AtomicUsize,
}

impl Topics {
    /// `again`: the session has this subscription already, and it is replaced. The session knows that by its own short
    /// list; looking through all subscribers of a topic would make a crowd's arrival cost its square.
    pub fn subscribe(&mut self, filter: &Arc<str>, share: Option<&str>, sub: Sub, again: bool) {
        let subs = match share {
            None => self.plain.entry(filter),
            Some(name) => {
                let groups = self.shared.entry(filter);
                let place = groups.iter().position(|g| &*g.name == name).unwrap_or_else(|| {
                    let share = share_name(name, filter).into();
                    let (name, turn) = (name.into(), AtomicUsize::new(0));
                    groups.push(Group { name, share, members: Vec::new(), turn });
                    groups.len() - 1
                });
                &mut groups[place].members
            }
        };
        // One device a topic is the rule: then the list takes room for one, not for four.
        if subs.is_empty() {
            subs.reserve_exact(1);
        }
        match subs.iter_mut().find(|s| again && s.session == sub.session) {
            Some(old) => *old = sub,
            None => subs.push(sub),
        }
    }

    /// True if there was such a subscription.
    pub fn unsubscribe(&mut self, filter: &str, share: Option<&str>, session: SessionNo) -> bool {
        match share {
            None => self.plain.change(filter, |subs| remove_sub(subs, session), Vec::is_empty),
            Some(name) => self.shared.change(
                filter,
                |groups| {
                    let Some(group) = groups.iter_mut().find(|g| &*g.name == name) else { return false };
                    let removed = remove_sub(&mut group.members, session);
                    groups.retain(|g| !g.members.is_empty());
                    removed
                },
                Vec::is_empty,
            ),
        }
        .unwrap_or(false)
    }

    /// Calls `f` for each session that is to get a publish on `topic`: once a session, whatever overlaps.
    /// `from`: the publishing session, for no-local. `member`: whether a session is connected, or `None` where it may not
    /// have the message; of a shared subscription's members connected ones come first, and such ones never.
    pub fn for_each_match(
        &self,
        topic: &str,
        from: Option<SessionNo>,
        member: impl Fn(SessionNo) -> Option<bool>,
        mut f: impl FnMut(Match),
    ) -> Result<(), TooManyFilters> {
        let wanted = |sub: &Sub| !(sub.no_local && Some(sub.session) == from);
        let mut lists: Vec<&Vec<Sub>> = Vec::new();
        self.plain.for_each(topic, |list| lists.push(list))?;
        let mut picked: Vec<(Sub, &Arc<str>)> = Vec::new();
        if !self.shared.is_empty() {
            self.shared
                .for_each(topic, |groups| picked.extend(groups.iter().filter_map(|g| g.pick(&member))))?;
        }
        if let ([list], true) = (lists.as_slice(), picked.is_empty()) {
            list.iter().filter(|s| wanted(s)).for_each(|sub| f(Match::from(*sub)));
            return Ok(());
        }
        // A shared subscription is a delivery of its own beside the session's plain ones (MQTT 5 §4.8.2).
        picked
            .into_iter()
            .for_each(|(sub, share)| f(Match { share: Some(share.clone()), ..Match::from(sub) }));
        let mut all: Vec<Sub> = lists.into_iter().flatten().filter(|s| wanted(s)).copied().collect();
        all.sort_by_key(|s| s.session);
        all.chunk_by(|a, b| a.session == b.session).for_each(|same| f(merge(same)));
        Ok(())
    }

    /// Sessions subscribed to the topic, shared ones included.
    pub fn subscribers(&self, topic: &str) -> Vec<SessionNo> {
        let mut sessions = Vec::new();
        // For people to look at: what is found within the limit.
        let _ = self.plain.for_each(topic, |list| sessions.extend(list.iter().map(|s| s.session)));
        let _ = self.shared.for_each(topic, |groups| {
            sessions.extend(groups.iter().flat_map(|g| &g.members).map(|s| s.session));
        });
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }
}

fn merge(same: &[Sub]) -> Match {
    Match {
        session: same[0].session,
        qos: same.iter().map(|s| s.qos).max().unwrap_or(0),
        retain_as_published: same.iter().any(|s| s.retain_as_published),
        ids: same.iter().map(|s| s.id).filter(|id| *id > 0).collect(),
        share: None,
    }
}

fn remove_sub(subs: &mut Vec<Sub>, session: SessionNo) -> bool {
    // Order among subscribers means nothing, so the last one may fill the gap.
    let place = subs.iter().position(|s| s.session == session);
    place.map(|place| subs.swap_remove(place)).is_some()
}

impl Group {
    fn pick(&self, member: impl Fn(SessionNo) -> Option<bool>) -> Option<(Sub, &Arc<str>)> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let n = self.members.len();
        let in_turn = || (0..n).map(|i| &self.members[(start.wrapping_add(i)) % n]);
        let online = in_turn().find(|m| member(m.session) == Some(true));
        let picked = online.or_else(|| in_turn().find(|m| member(m.session).is_some()))?;
        Some((*picked, &self.share))
    }
}

/// Filters → values: exact ones by hash, the others in a tree of levels.
#[derive(Debug)]
struct FilterMap<V> {
    exact: HashMap<Arc<str>, V, rustc_hash::FxBuildHasher>,
    nodes: Vec<Node<V>>,
    free: Vec<u32>,
}

impl<V> Default for FilterMap<V> {
    fn default() -> FilterMap<V> {
        FilterMap { exact: HashMap::default(), nodes: Vec::new(), free: Vec::new() }
    }
}

#[derive(Debug)]
struct Node<V> {
    children: FxHashMap<Box<str>, u32>,
    /// Values of the filter that ends here.
    here: V,
}

const ROOT: u32 = 0;

impl<V: Default> FilterMap<V> {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.nodes.get(ROOT as usize).is_none_or(|root| root.children.is_empty())
    }

    fn entry(&mut self, filter: &Arc<str>) -> &mut V {
        if !has_wildcard(filter) {
            return self.exact.entry(filter.clone()).or_default();
        }
        if self.nodes.is_empty() {
            self.new_node();
        }
        let mut at = ROOT;
        for level in filter.split('/') {
            at = match self.nodes[at as usize].children.get(level) {
                Some(child) => *child,
                None => {
                    let child = self.new_node();
                    self.nodes[at as usize].children.insert(level.into(), child);
                    child
                }
            };
        }
        &mut self.nodes[at as usize].here
    }

    fn new_node(&mut self) -> u32 {
        let node = Node { children: FxHashMap::default(), here: V::default() };
        match self.free.pop() {
            Some(no) => {
                self.nodes[no as usize] = node;
                no
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// Changes a filter's value and drops it when `empty` says so.
    fn change(
        &mut self,
        filter: &str,
        change: impl FnOnce(&mut V) -> bool,
        empty: impl Fn(&V) -> bool,
    ) -> Option<bool> {
        if !has_wildcard(filter) {
            let value = self.exact.get_mut(filter)?;
            let changed = change(value);
            if empty(value) {
                self.exact.remove(filter);
            }
            return Some(changed);
        }
        let mut path = vec![ROOT];
        for level in filter.split('/') {
            let at = *path.last()?;
            path.push(*self.nodes.get(at as usize)?.children.get(level)?);
        }
        let end = *path.last()?;
        let changed = change(&mut self.nodes[end as usize].here);
        self.prune(filter, &path, empty);
        Some(changed)
    }

    /// Gives back the nodes of a path that hold nothing any more.
    fn prune(&mut self, filter: &str, path: &[u32], empty: impl Fn(&V) -> bool) {
        let levels: Vec<&str> = filter.split('/').collect();
        for (depth, level) in levels.iter().enumerate().rev() {
            let node = &self.nodes[path[depth + 1] as usize];
            if !node.children.is_empty() || !empty(&node.here) {
                return;
            }
            self.nodes[path[depth] as usize].children.remove(*level);
            self.nodes[path[depth + 1] as usize].children = FxHashMap::default();
            self.free.push(path[depth + 1]);
        }
    }

    fn for_each<'a>(&'a self, topic: &str, mut f: impl FnMut(&'a V)) -> Result<(), TooManyFilters> {
        if let Some(value) = self.exact.get(topic) {
            f(value);
        }
        let Some(root) = self.nodes.first().filter(|root| !root.children.is_empty()) else {
            return Ok(());
        };
        let levels: Vec<&str> = topic.split('/').collect();
        let hidden = topic.starts_with('$');
        let mut todo: Vec<(&Node<V>, usize)> = vec![(root, 0)];
        let mut visits = 0;
        while let Some((node, depth)) = todo.pop() {
            visits += 1;
            if visits > VISITS_MAX {
                return Err(TooManyFilters);
            }
            let wildcards = !(hidden && depth == 0);
            if wildcards && let Some(rest) = node.children.get("#") {
                f(&self.nodes[*rest as usize].here);
            }
            let Some(level) = levels.get(depth) else {
                f(&node.here);
                continue;
            };
            if wildcards && let Some(any) = node.children.get("+") {
                todo.push((&self.nodes[*any as usize], depth + 1));
            }
            if let Some(child) = node.children.get(*level) {
                todo.push((&self.nodes[*child as usize], depth + 1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sub(session: SessionNo, qos: u8, id: u32) -> Sub {
        Sub { session, id, qos, no_local: false, retain_as_published: false }
    }

    fn found(topics: &Topics, topic: &str) -> Vec<Match> {
        let mut found = Vec::new();
        topics.for_each_match(topic, None, |_| Some(true), |m| found.push(m)).unwrap();
        found.sort_by_key(|m| m.session);
        found
    }

    #[test]
    fn a_topic_with_more_filters_on_its_way_than_can_be_looked_at_matches_nobody() {
        let mut topics = Topics::default();
        let depth = 13;
        for n in 0..1_u32 << depth {
            let level = |bit: u32| if n >> bit & 1 == 1 { "+" } else { "a" };
            let filter: Vec<&str> = (0..depth).map(level).collect();
            topics.subscribe(&filter.join("/").into(), None, sub(n, 1, 0), false);
        }
        let mut found = 0;
        let topic = vec!["a"; depth as usize].join("/");
        let result = topics.for_each_match(&topic, None, |_| Some(true), |_| found += 1);
        assert_eq!((result, found), (Err(TooManyFilters), 0), "some and not others would be worse");
        assert_eq!(topics.for_each_match("b/b", None, |_| Some(true), |_| ()), Ok(()));
    }

    #[test]
    fn wildcards_match_as_the_specification_shows() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
            let mut topics = Topics::default();
            topics.subscribe(&filter.into(), None, sub(1, 0, 0), false);
            assert_eq!(found(&topics, topic).len(), usize::from(expected), "{filter} {topic}");
            assert!(topics.unsubscribe(filter, None, 1));
            assert!(topics.plain.is_empty());
        }
    }

    #[test]
    fn a_right_covers_only_what_lies_inside_it() {
        for (outer, inner, expected) in [
            ("#", "a/+/b", true),
            ("#", "$push/inbox", false),
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/+", "a/#", false),
            ("a/#", "a/+/c", true),
            ("a/b", "a/+", false),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn overlapping_subscriptions_give_one_copy_at_the_highest_qos_with_all_ids() {
        let mut topics = Topics::default();
        topics.subscribe(&"a/b".into(), None, sub(1, 1, 7), false);
        topics.subscribe(&"a/#".into(), None, sub(1, 2, 9), false);
        topics.subscribe(&"a/+".into(), None, sub(2, 0, 0), false);
        let all = found(&topics, "a/b");
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].qos, all[0].ids.len()), (2, 2));
    }

    #[test]
    fn a_shared_subscription_goes_to_one_member_in_turn_and_to_connected_ones_first() {
        let mut topics = Topics::default();
        for session in 1..=3 {
            topics.subscribe(&"t".into(), Some("g"), sub(session, 0, 0), false);
        }
        let turns: Vec<_> = (0..6).map(|_| found(&topics, "t")[0].session).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        let mut only = Vec::new();
        topics.for_each_match("t", None, |s| Some(s == 2), |m| only.push(m.session)).unwrap();
        assert_eq!(only, [2]);
        assert!((1..=3).all(|s| topics.unsubscribe("t", Some("g"), s)));
        assert!(topics.shared.is_empty());
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just(String::new()), Just("$c".to_owned())]
    }

    fn filter() -> impl Strategy<Value = String> {
        let levels = proptest::collection::vec(prop_oneof![3 => level(), 1 => Just("+".to_owned())], 1..4);
        (levels, any::<bool>()).prop_map(|(levels, rest)| levels.join("/") + if rest { "/#" } else { "" })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_the_plain_rule_finds(
            filters in proptest::collection::vec(filter(), 1..12),
            topic in proptest::collection::vec(level(), 1..4),
        ) {
            let topic = topic.join("/");
            let mut topics = Topics::default();
            for (session, filter) in filters.iter().enumerate() {
                topics.subscribe(&filter.as_str().into(), None, sub(session as u32, 0, 0), false);
            }
            let expected: Vec<u32> =
                (0..filters.len()).filter(|i| matches(&filters[*i], &topic)).map(|i| i as u32).collect();
            let sessions: Vec<u32> = found(&topics, &topic).iter().map(|m| m.session).collect();
            prop_assert_eq!(sessions, expected);
            for (session, filter) in filters.iter().enumerate() {
                prop_assert!(topics.unsubscribe(filter, None, session as u32));
            }
            prop_assert!(topics.plain.is_empty());
        }
    }
}
