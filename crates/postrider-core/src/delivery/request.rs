//! What tells a repetition from another request under the same key: a digest of the request as far as its meaning goes.
//!
//! It is made of JSON with sorted names and with numbers as they were written, so that it says the same whatever the types
//! of this program are called. It is stored: a change here turns the repetitions of a day into refusals.

use super::accept::{Push, PushData};
use super::publish::Publish;
use crate::model::*;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// The first half of a SHA-256.
pub fn digest(bytes: &[u8]) -> u128 {
    let hash = crate::session::secret_hash(bytes);
    hash.iter().take(16).fold(0, |n, b| n << 8 | u128::from(*b))
}

/// Of a message.
pub(super) fn of_push(push: &Push) -> u128 {
    let mut said = Map::new();
    let mut say = |name: &str, value: Option<Value>| _ = value.map(|value| said.insert(name.into(), value));
    // Derived from the form in which app servers write it.
    let audience = |audience| serde_json::to_value(audience).unwrap_or_default();
    say("audience", Some(audience(&push.audience)));
    say("exclude", push.exclude.as_ref().map(audience));
    say("notification", push.notification.clone().map(Value::Object));
    match &push.data {
        Some(PushData::Json(data)) => {
            // What cannot be read was not let in.
            let text = || Value::String(data.get().to_owned());
            say("data", Some(serde_json::from_str(data.get()).unwrap_or_else(|_| text())));
        }
        Some(PushData::Raw(bytes)) => say("data_digest", Some(hex(bytes))),
        None => {}
    }
    say("ttl_secs", push.ttl_secs.map(Value::from));
    say("collapse_key", push.collapse_key.clone().map(Value::from));
    say("priority", (push.priority == Priority::High).then(|| json!("high")));
    let backlog = |backlog| match backlog {
        Backlog::All => json!("all"),
        Backlog::Latest => json!("latest"),
        Backlog::Last(n) => json!({ "last": n }),
    };
    say("backlog", push.backlog.map(backlog));
    say("durability", push.transient.then(|| json!("transient")));
    say("on_full", push.reject_when_full.then(|| json!("reject")));
    of_json(&Value::Object(said))
}

/// Of a publish on a topic.
pub(super) fn of_publish(publish: &Publish) -> u128 {
    let Content { topic, payload, properties } = &*publish.content;
    let content_type = properties.as_ref().and_then(|p| p.content_type.as_deref());
    of_json(&json!({
        "topic": topic,
        "payload_digest": hex(payload),
        "content_type": content_type,
        "qos": publish.qos,
        "retain": publish.retain,
        "expiry_secs": publish.expiry_secs,
    }))
}

/// Of a registration.
pub(crate) fn of_device(id: Option<&str>, profile: &Profile, secret_hash: Option<&[u8; 32]>) -> u128 {
    let Profile { platform, alias, tags, attributes, provider_tokens } = profile;
    of_json(&json!({
        "device_id": id,
        "platform": platform.name(),
        "alias": alias,
        "tags": tags,
        "attributes": attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect::<Map<_, _>>(),
        "provider_tokens": provider_tokens,
        "secret_digest": secret_hash.map(|hash| hex(hash)),
    }))
}

fn attribute(value: &Attribute) -> Value {
    match value {
        Attribute::Text(text) => json!(text),
        Attribute::Number(number) => json!(number),
        Attribute::Integer(number) => json!(number),
        Attribute::Bool(flag) => json!(flag),
    }
}

fn hex(bytes: &[u8]) -> Value {
    Value::String(format!("{:032x}", digest(bytes)))
}

fn of_json(value: &Value) -> u128 {
    let mut text = String::new();
    write_canonical(value, &mut text);
    digest(text.as_bytes())
}

/// Names in order, whatever order the map at hand keeps.
fn write_canonical(value: &Value, text: &mut String) {
    let separate = |text: &mut String, first: &mut bool| {
        if !std::mem::take(first) {
            text.push(',');
        }
    };
    let mut first = true;
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in fields {
                separate(text, &mut first);
                _ = write!(text, "{}:", Value::String(name.clone()));
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for value in list {
                separate(text, &mut first);
                write_canonical(value, text);
            }
            text.push(']');
        }
        one => _ = write!(text, "{one}"),
    }
}

/// How releases up to November 2026 told messages apart. Folders of theirs remember requests by it for up to three days, and
/// their repetitions get the first answer as long as the types below are written as they were.
pub(super) fn of_push_before(push: &Push) -> u128 {
    let Push {
        audience,
        exclude,
        notification,
        data,
        ttl_secs,
        collapse_key,
        priority,
        backlog,
        transient,
        ..
    } = push;
    let data = data.as_ref().map(data_before);
    let data = data.as_deref().unwrap_or("None");
    let text = format!(
        "{audience:?}{exclude:?}{notification:?}{data}{ttl_secs:?}{collapse_key:?}{priority:?}{backlog:?}{transient}"
    );
    digest(text.as_bytes())
}

/// As those releases held it.
fn data_before(data: &PushData) -> String {
    match data {
        PushData::Raw(bytes) => format!("Some(Raw({bytes:?}))"),
        PushData::Json(raw) => match serde_json::from_str::<Value>(raw.get()) {
            Ok(value) => format!("Some(Json({value:?}))"),
            Err(_) => format!("Some(Json({}))", raw.get()),
        },
    }
}

/// The same for registrations.
pub(crate) fn of_device_before(id: &Option<String>, profile: &Profile) -> u128 {
    digest(format!("{id:?}{profile:?}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::Audience;
    use bytes::Bytes;
    use std::sync::Arc;

    fn full() -> Push {
        let data = serde_json::from_str(
            r#"{"b":[1,2.5,-0.125],"a":{"z":null,"y":"\u00e9\n"},"n":18446744073709551615}"#,
        );
        let notification = serde_json::from_str(r#"{"title":"t","badge":3}"#).unwrap();
        Push {
            exclude: Some(Audience::Devices(vec!["d2".into(), "d1".into()])),
            notification: Some(notification),
            data: Some(PushData::Json(data.unwrap())),
            ttl_secs: Some(60),
            collapse_key: Some("k".into()),
            priority: Priority::High,
            backlog: Some(Backlog::Last(3)),
            reject_when_full: true,
            ..Push::to(Audience::And(vec![
                Audience::Tag("news".into()),
                Audience::Not(Box::new(Audience::Platform(Platform::Ios))),
            ]))
        }
    }

    /// These values lie in data folders. A change of them is a change of what is stored.
    #[test]
    fn digests_stay_what_they_are_over_releases() {
        let raw = Push { data: Some(PushData::Raw(Bytes::from_static(b"x"))), ..Push::to(Audience::All) };
        let transient = Push { transient: true, ttl_secs: Some(0), ..Push::to(Audience::Device("d".into())) };
        let profile = Profile {
            alias: Some("ann".into()),
            tags: vec!["b".into(), "a".into()],
            attributes: [
                ("n".to_owned(), Attribute::Number(1.5)),
                ("t".to_owned(), Attribute::Text("x".into())),
            ]
            .into(),
            ..Profile::default()
        };
        let content = Content { topic: Some("a/b".into()), payload: "x".into(), properties: None };
        let publish = Publish { content: Arc::new(content), qos: 1, retain: true, expiry_secs: Some(9) };
        let digests = [
            of_push(&full()),
            of_push(&raw),
            of_push(&transient),
            of_publish(&publish),
            of_device(None, &Profile::default(), None),
            of_device(Some("d"), &profile, Some(&[7; 32])),
        ];
        let texts = digests.map(|digest| format!("{digest:032x}"));
        let expected = [
            "ea3604fe8f5fbe05ddbf1617cb17250a",
            "ea4ef675df188de2501e840ace0517d5",
            "9818ed7d065ec56fe7531b1174bc0a09",
            "019743783743a1c56f86c3e031216a99",
            "e4c8e4f66df1f281abcd58d5dc3f239a",
            "54544a732df0bbc28cb94502f870f035",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn names_are_sorted_and_numbers_stay_as_they_are_written() {
        let value = serde_json::from_str(r#"{"b":1,"a":[true,null,"\"",1.5,10],"":{}}"#).unwrap();
        let mut text = String::new();
        write_canonical(&value, &mut text);
        assert_eq!(text, r#"{"":{},"a":[true,null,"\"",1.5,10],"b":1}"#);
    }

    #[test]
    fn whatever_means_something_makes_another_request() {
        let all = full();
        let mut others = vec![of_push(&all)];
        let mut add = |change: fn(&mut Push)| {
            let mut push = all.clone();
            change(&mut push);
            others.push(of_push(&push));
        };
        add(|p| p.audience = Audience::All);
        add(|p| p.exclude = None);
        add(|p| p.notification = None);
        add(|p| p.data = None);
        add(|p| p.data = Some(PushData::Json(serde_json::value::to_raw_value("x").unwrap())));
        add(|p| p.data = Some(PushData::Raw(Bytes::from_static(b"\"x\""))));
        add(|p| p.ttl_secs = None);
        add(|p| p.collapse_key = None);
        add(|p| p.priority = Priority::Normal);
        add(|p| p.backlog = Some(Backlog::All));
        add(|p| p.transient = true);
        add(|p| p.reject_when_full = false);
        let count = others.len();
        others.sort_unstable();
        others.dedup();
        assert_eq!(others.len(), count);
    }
}
