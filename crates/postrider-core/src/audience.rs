//! Whom a message is for: an expression over devices, resolved to a set when the message is accepted.

use crate::id::*;
use crate::model::*;
use serde::{Deserialize, Serialize};

/// As app servers write it: `{"tag": "news"}`, `{"and": [{"platform": "ios"}, {"not": {"tag": "beta"}}]}`, `"all"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Every registered device of the app.
    All,
    Device(String),
    Devices(Vec<String>),
    Alias(String),
    Aliases(Vec<String>),
    Tag(String),
    /// Devices with a session that subscribes to the topic.
    Topic(String),
    Platform(Platform),
    And(Vec<Audience>),
    Or(Vec<Audience>),
    Not(Box<Audience>),
}

/// What an audience is resolved against.
pub trait Population {
    fn all(&self) -> DeviceSet;
    fn device(&self, id: &str) -> Option<DeviceNo>;
    fn alias(&self, alias: &str) -> DeviceSet;
    fn tag(&self, tag: &str) -> DeviceSet;
    fn topic(&self, topic: &str) -> DeviceSet;
    fn platform(&self, platform: Platform) -> DeviceSet;
}

/// How a named device fares, and which clause decided it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub included: bool,
    /// As a path into the expression: `and[1].not.tag "beta"`.
    pub clause: String,
}

/// A name in an audience that no device answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub selector: Selector,
    pub name: String,
}

/// What a name in an audience is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    Device,
    Alias,
    Tag,
    Topic,
    Platform,
}

impl Audience {
    pub fn resolve(&self, people: &impl Population) -> DeviceSet {
        self.resolve_noting(people, &mut Vec::new())
    }

    /// Resolves, and notes every name that no device answers to: at most as many as the audience names.
    pub fn resolve_noting(&self, people: &impl Population, unmatched: &mut Vec<Unmatched>) -> DeviceSet {
        let numbers = |ids: &[String], unmatched: &mut Vec<Unmatched>| {
            let mut set = DeviceSet::new();
            for id in ids {
                match people.device(id) {
                    Some(device) => _ = set.insert(device.0),
                    None => unmatched.push(Unmatched { selector: Selector::Device, name: id.clone() }),
                }
            }
            set
        };
        let noted = |set: DeviceSet, selector, name: &str, unmatched: &mut Vec<Unmatched>| {
            if set.is_empty() {
                unmatched.push(Unmatched { selector, name: name.to_owned() });
            }
            set
        };
        match self {
            Audience::All => people.all(),
            Audience::Device(id) => numbers(std::slice::from_ref(id), unmatched),
            Audience::Devices(ids) => numbers(ids, unmatched),
            Audience::Alias(alias) => noted(people.alias(alias), Selector::Alias, alias, unmatched),
            Audience::Aliases(list) => {
                let sets = list.iter().map(|a| noted(people.alias(a), Selector::Alias, a, unmatched));
                sets.fold(DeviceSet::new(), |a, b| a | b)
            }
            Audience::Tag(tag) => noted(people.tag(tag), Selector::Tag, tag, unmatched),
            Audience::Topic(topic) => noted(people.topic(topic), Selector::Topic, topic, unmatched),
            Audience::Platform(platform) => {
                noted(people.platform(*platform), Selector::Platform, platform.name(), unmatched)
            }
            Audience::And(list) => {
                let mut sets = list.iter().map(|a| a.resolve_noting(people, unmatched));
                let first = sets.next().unwrap_or_default();
                sets.fold(first, |a, b| a & b)
            }
            Audience::Or(list) => {
                let sets = list.iter().map(|a| a.resolve_noting(people, unmatched));
                sets.fold(DeviceSet::new(), |a, b| a | b)
            }
            Audience::Not(inner) => people.all() - inner.resolve_noting(people, unmatched),
        }
    }

    /// Clauses in all, and names in all.
    pub fn size(&self) -> (usize, usize) {
        let sum =
            |list: &[Audience]| list.iter().map(Audience::size).fold((1, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        match self {
            Audience::And(list) | Audience::Or(list) => sum(list),
            Audience::Not(inner) => sum(std::slice::from_ref(inner)),
            Audience::Devices(names) | Audience::Aliases(names) => (1, names.len()),
            _ => (1, 1),
        }
    }

    /// What is wrong with the form, where something is.
    pub fn invalid(&self) -> Option<&'static str> {
        match self {
            Audience::And(list) | Audience::Or(list) if list.is_empty() => {
                Some("`and` and `or` need at least one clause")
            }
            Audience::And(list) | Audience::Or(list) => list.iter().find_map(Audience::invalid),
            Audience::Not(inner) => inner.invalid(),
            Audience::Devices(names) | Audience::Aliases(names) if names.is_empty() => {
                Some("the list of names is empty")
            }
            Audience::Topic(topic) if topic.contains(['+', '#']) => {
                Some("a topic audience takes a name, not a filter")
            }
            _ => None,
        }
    }

    /// Whether the expression names devices one by one, so that an unknown name is worth an error.
    pub fn names_devices(&self) -> bool {
        matches!(self, Audience::Device(_) | Audience::Devices(_) | Audience::Alias(_) | Audience::Aliases(_))
    }

    /// Why a device is in or out.
    pub fn explain(&self, device: DeviceNo, people: &impl Population) -> Verdict {
        let named = |clause: String, included| Verdict { included, clause };
        match self {
            Audience::And(list) => self.explain_list(("and", list, false), device, people),
            Audience::Or(list) => self.explain_list(("or", list, true), device, people),
            Audience::Not(inner) => {
                let inner = inner.explain(device, people);
                named(format!("not.{}", inner.clause), !inner.included)
            }
            leaf => named(leaf.leaf_text(), leaf.resolve(people).contains(device.0)),
        }
    }

    /// The first clause that decides, else the last one.
    fn explain_list(
        &self,
        (word, list, decides): (&str, &[Audience], bool),
        device: DeviceNo,
        people: &impl Population,
    ) -> Verdict {
        let mut last = Verdict { included: !decides, clause: word.to_owned() };
        for (i, clause) in list.iter().enumerate() {
            let verdict = clause.explain(device, people);
            last = Verdict { included: verdict.included, clause: format!("{word}[{i}].{}", verdict.clause) };
            if last.included == decides {
                break;
            }
        }
        last
    }

    fn leaf_text(&self) -> String {
        match self {
            Audience::All => "all".to_owned(),
            Audience::Device(id) => format!("device {id:?}"),
            Audience::Devices(_) => "devices".to_owned(),
            Audience::Alias(alias) => format!("alias {alias:?}"),
            Audience::Aliases(_) => "aliases".to_owned(),
            Audience::Tag(tag) => format!("tag {tag:?}"),
            Audience::Topic(topic) => format!("topic {topic:?}"),
            Audience::Platform(platform) => format!("platform {:?}", platform.name()),
            Audience::And(_) | Audience::Or(_) | Audience::Not(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four devices: 0 and 1 on iOS, 2 and 3 on Android; `beta` is 1 and 2; the alias of 3 is `ann`.
    struct Four;

    impl Population for Four {
        fn all(&self) -> DeviceSet {
            (0..4).collect()
        }
        fn device(&self, id: &str) -> Option<DeviceNo> {
            id.strip_prefix('d')?.parse().ok().map(DeviceNo)
        }
        fn alias(&self, alias: &str) -> DeviceSet {
            (alias == "ann").then_some(3).into_iter().collect()
        }
        fn tag(&self, tag: &str) -> DeviceSet {
            if tag == "beta" { [1, 2].into() } else { DeviceSet::new() }
        }
        fn topic(&self, _: &str) -> DeviceSet {
            DeviceSet::new()
        }
        fn platform(&self, platform: Platform) -> DeviceSet {
            if platform == Platform::Ios { [0, 1].into() } else { [2, 3].into() }
        }
    }

    fn audience(json: &str) -> Audience {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn expressions_resolve_to_the_devices_that_they_describe() {
        for (json, expected) in [
            (r#""all""#, vec![0, 1, 2, 3]),
            (r#"{"and":[{"platform":"ios"},{"not":{"tag":"beta"}}]}"#, vec![0]),
            (r#"{"or":[{"device":"d0"},{"alias":"ann"}]}"#, vec![0, 3]),
            (r#"{"devices":["d1","d2","nobody"]}"#, vec![1, 2]),
            (r#"{"not":{"or":[{"tag":"beta"},{"platform":"ios"}]}}"#, vec![3]),
        ] {
            assert_eq!(audience(json).resolve(&Four).iter().collect::<Vec<_>>(), expected, "{json}");
        }
    }

    #[test]
    fn names_that_no_device_answers_to_are_noted_wherever_they_stand() {
        let json = r#"{"and":[{"devices":["d1","gone","d2","gone too"]},{"aliases":["ann","bob"]},
            {"or":[{"tag":"beta"},{"tag":"betta"},{"not":{"topic":"t"}},{"alias":"cy"}]},{"platform":"web"}]}"#;
        let mut unmatched = Vec::new();
        audience(json).resolve_noting(&Four, &mut unmatched);
        let noted: Vec<_> = unmatched.iter().map(|u| (u.selector, u.name.as_str())).collect();
        let expected = [
            (Selector::Device, "gone"),
            (Selector::Device, "gone too"),
            (Selector::Alias, "bob"),
            (Selector::Tag, "betta"),
            (Selector::Topic, "t"),
            (Selector::Alias, "cy"),
        ];
        assert_eq!(noted, expected);
    }

    #[test]
    fn the_verdict_names_the_clause_that_decided() {
        let a = audience(r#"{"and":[{"platform":"ios"},{"not":{"tag":"beta"}}]}"#);
        assert_eq!(a.explain(DeviceNo(1), &Four).clause, r#"and[1].not.tag "beta""#);
        assert!(!a.explain(DeviceNo(1), &Four).included && a.explain(DeviceNo(0), &Four).included);
        assert_eq!(a.explain(DeviceNo(3), &Four).clause, r#"and[0].platform "ios""#);
    }
}
