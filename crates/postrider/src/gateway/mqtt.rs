//! Between MQTT's words and the core's: nothing is decided here.

use postrider_core::delivery::receipt::DeviceReceipt;
use postrider_core::id::UnixMillis;
use postrider_core::model::{Content, ContentProperties, Step, StoredSubscription};
use postrider_core::session::{SignInError, Will};
use postrider_proto as proto;
use postrider_proto::{ConnectRefusal, PublishOutcome, Qos, RetainHandling, Text};
use serde_json::Value;
use std::sync::Arc;

/// One granted filter whose retained messages are wanted.
pub(crate) struct Wanted {
    pub place: usize,
    pub filter: String,
    pub qos: u8,
    pub id: Option<u32>,
}

/// A published packet as content of the core's.
pub(crate) fn content_of(publish: &proto::Publish) -> Content {
    let properties = publish.properties.as_deref().map(|p| {
        let text = |t: &Option<Text>| t.as_ref().map(|t| t.to_string());
        let user = p.user.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Box::new(ContentProperties {
            payload_is_utf8: p.payload_is_utf8,
            expires: p.expiry_secs.is_some(),
            content_type: text(&p.content_type),
            response_topic: text(&p.response_topic),
            correlation: p.correlation.clone(),
            user,
        })
    });
    let topic = Some(publish.topic.to_string());
    Content { topic, payload: publish.payload.clone(), properties }
}

/// The core's content as a packet; a push goes to the device's inbox topic.
pub(crate) fn publish_of(content: &Content) -> proto::Publish {
    let topic = match &content.topic {
        Some(topic) => Text::from(topic.as_str()),
        None => Text::from_static(postrider_core::access::INBOX_TOPIC),
    };
    let text = |t: &Option<String>| t.as_deref().map(Text::from);
    let properties = content.properties.as_deref().map(|p| {
        Box::new(proto::PublishProperties {
            payload_is_utf8: p.payload_is_utf8,
            expiry_secs: None,
            content_type: text(&p.content_type),
            response_topic: text(&p.response_topic),
            correlation: p.correlation.clone(),
            user: p.user.iter().map(|(k, v)| (Text::from(k.as_str()), Text::from(v.as_str()))).collect(),
        })
    });
    proto::Publish { topic, payload: content.payload.clone(), properties, ..proto::Publish::default() }
}

pub(crate) fn publish_request(publish: &proto::Publish) -> postrider_core::delivery::publish::Publish {
    postrider_core::delivery::publish::Publish {
        content: Arc::new(content_of(publish)),
        qos: publish.qos as u8,
        retain: publish.retain,
        expiry_secs: publish.properties.as_ref().and_then(|p| p.expiry_secs),
    }
}

pub(crate) fn will_of(will: &proto::Will) -> Will {
    let publish = publish_request(&will.publish);
    let (content, qos, retain, expiry_secs) =
        (publish.content, publish.qos, publish.retain, publish.expiry_secs);
    Will { content, qos, retain, expiry_secs, delay_secs: will.delay_secs }
}

pub(crate) fn subscription_of(wanted: &proto::Subscription, id: Option<u32>) -> StoredSubscription {
    StoredSubscription {
        filter: wanted.filter.to_string(),
        share: wanted.share.as_ref().map(|s| s.to_string()),
        qos: wanted.qos as u8,
        no_local: wanted.no_local,
        retain_as_published: wanted.retain_as_published,
        id,
    }
}

/// Whether the retained messages of a filter go out with this subscription (MQTT 5 §3.8.3.1); never to shared ones.
pub(crate) fn wants_retained(wanted: &proto::Subscription, is_new: bool) -> bool {
    wanted.share.is_none()
        && match wanted.retain_handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        }
}

pub(crate) fn refusal_of(error: SignInError) -> ConnectRefusal {
    match error {
        SignInError::BadCredentials => ConnectRefusal::BadCredentials,
        SignInError::NotAllowed => ConnectRefusal::NotAuthorized,
        SignInError::TooOften => ConnectRefusal::RateExceeded,
        SignInError::Unavailable => ConnectRefusal::Unavailable,
    }
}

pub(crate) fn outcome_of(error: postrider_core::delivery::publish::PublishError) -> PublishOutcome {
    use postrider_core::delivery::publish::PublishError as E;
    match error {
        E::NotAllowed | E::RetainNotAllowed => PublishOutcome::NotAuthorized,
        E::RetainedFull | E::AppFull | E::IdempotencyMismatch | E::TooManyFilters => {
            PublishOutcome::QuotaExceeded
        }
        E::TooLarge => PublishOutcome::PayloadInvalid,
        E::Store(_) => PublishOutcome::Unavailable,
    }
}

pub(crate) fn qos_of(value: u8) -> Qos {
    Qos::from_u8(value).unwrap_or_default()
}

/// Seconds left of a message's life, for a topic's subscribers; a second begun counts whole.
pub(crate) fn expiry_left(expires_at: UnixMillis, now: UnixMillis) -> u32 {
    u32::try_from(expires_at.saturating_sub(now).div_ceil(1000)).unwrap_or(u32::MAX)
}

/// A receipt in the words of a frame.
pub(crate) fn receipt_of(id: &str, step: &str) -> Option<DeviceReceipt> {
    let step = Step::ALL.iter().copied().find(|s| s.name() == step)?;
    let allowed = step == Step::Delivered || step.by_app();
    Some(DeviceReceipt { message: id.parse().ok()?, step }).filter(|_| allowed)
}

/// `{"id": "…", "step": "displayed"}`, or a list of up to 1,000 such. Rows of a list that are none are passed over: MQTT has
/// no place to say which, and the good ones would be lost with them.
pub(crate) fn receipts_of(payload: &[u8]) -> Option<Vec<DeviceReceipt>> {
    #[derive(serde::Deserialize)]
    struct One {
        id: String,
        step: Step,
    }
    let all = match serde_json::from_slice(payload).ok()? {
        Value::Array(many) => many,
        one => vec![one],
    };
    if all.len() > 1_000 {
        return None;
    }
    let is_told = |step: Step| step == Step::Delivered || step.by_app();
    let receipt = |row: Value| {
        let is_object = row.is_object();
        // A list would be read as the fields by position.
        let One { id, step } = serde_json::from_value(row).ok().filter(|_| is_object)?;
        let message = id.parse().ok().filter(|_| is_told(step))?;
        Some(DeviceReceipt { message, step })
    };
    let rows = all.len();
    let good: Vec<DeviceReceipt> = all.into_iter().filter_map(receipt).collect();
    if good.len() < rows {
        tracing::debug!(rows, good = good.len(), "a list of receipts has rows that are none");
    }
    (!good.is_empty()).then_some(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_read_one_or_many_and_nothing_else_is() {
        let id = postrider_core::id::MessageId::new(5, 7);
        let one = format!(r#"{{"id":"{id}","step":"displayed"}}"#);
        assert_eq!(
            receipts_of(one.as_bytes()),
            Some(vec![DeviceReceipt { message: id, step: Step::Displayed }])
        );
        assert_eq!(receipts_of(format!("[{one},{one}]").as_bytes()).map(|r| r.len()), Some(2));
        let mixed = format!(r#"[{{"id":"x","step":"displayed"}},{one},7]"#);
        assert_eq!(receipts_of(mixed.as_bytes()).map(|r| r.len()), Some(1), "good rows are taken");
        for bad in ["", "[]", "{}", r#"{"id":"x","step":"displayed"}"#, &one.replace("displayed", "expired")]
        {
            assert_eq!(receipts_of(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn content_survives_the_way_through_the_core() {
        let publish = proto::Publish {
            topic: "a/b".into(),
            payload: bytes::Bytes::from_static(b"x"),
            properties: Some(Box::new(proto::PublishProperties {
                content_type: Some("text/plain".into()),
                user: vec![("k".into(), "v".into())],
                ..Default::default()
            })),
            ..Default::default()
        };
        assert_eq!(publish_of(&content_of(&publish)), publish);
    }
}
