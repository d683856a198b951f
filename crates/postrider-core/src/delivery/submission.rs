//! What a report shows of what was sent: to whom, by which key, and the text.
//!
//! It is stored with the first row of the receipt stream, not with the content: contents go when
//! every device has them, and reports are read long after.

use super::accept::Push;
use crate::Engine;
use crate::audience::Audience;
use crate::id::*;
use crate::model::*;
use crate::port::MessageView;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Names of one list that are shown; a list may have a thousand.
const NAMES_MAX: usize = 10;
/// Bytes of an audience as it is shown; a longer one is told by its size only.
const AUDIENCE_BYTES_MAX: usize = 2_048;
const TITLE_CHARS_MAX: usize = 100;
const BODY_CHARS_MAX: usize = 300;

impl Engine {
    /// What was sent, of a message with a report. May read a file. `None` where it is not kept any
    /// more, or nobody sent the message by a key.
    pub fn submission(&self, app: AppNo, message: &MessageView) -> Option<Arc<Submission>> {
        let before = message.submission_at.checked_sub(1)?;
        let page = self.store.events(app, before, 1).ok()?;
        let row = page.events.into_iter().next()?;
        row.submission.filter(|_| row.message == message.id)
    }

    pub(super) fn submission_of(&self, push: &Push) -> Arc<Submission> {
        let shown = push.notification.as_ref().filter(|_| self.limits.report_texts);
        Arc::new(Submission {
            key: push.sent_by.clone(),
            audience: audience_text(&push.audience),
            exclude: push.exclude.as_ref().map(audience_text),
            title: shown.and_then(|n| text(n, "title", TITLE_CHARS_MAX)),
            body: shown.and_then(|n| text(n, "body", BODY_CHARS_MAX)),
        })
    }
}

fn text(notification: &Map<String, Value>, name: &str, chars_max: usize) -> Option<String> {
    let text = notification.get(name)?.as_str()?;
    match text.char_indices().nth(chars_max) {
        None => Some(text.to_owned()),
        Some((end, _)) => Some(format!("{}…", &text[..end])),
    }
}

/// The audience as JSON. Lists are cut, and say so by a last name `…`.
fn audience_text(audience: &Audience) -> String {
    let (clauses, names) = audience.size();
    // Nearly all name few devices, of which nothing has to be cut.
    let text = match names <= NAMES_MAX {
        true => serde_json::to_string(audience).unwrap_or_default(),
        false => serde_json::to_value(audience).map(cut).unwrap_or_default().to_string(),
    };
    if text.len() <= AUDIENCE_BYTES_MAX {
        return text;
    }
    serde_json::json!({ "too_long": { "clauses": clauses, "names": names } }).to_string()
}

fn cut(value: Value) -> Value {
    match value {
        Value::Array(mut list) => {
            let is_names = list.iter().all(Value::is_string);
            if is_names && list.len() > NAMES_MAX {
                list.truncate(NAMES_MAX);
                list.push(Value::from("…"));
            }
            Value::Array(list.into_iter().map(cut).collect())
        }
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, cut(v))).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_audiences_and_texts_are_cut_and_say_so() {
        let names = |n: usize| (0..n).map(|i| format!("device-{i}")).collect::<Vec<_>>();
        assert_eq!(audience_text(&Audience::Tag("a\"b".into())), r#"{"tag":"a\"b"}"#);
        assert_eq!(audience_text(&Audience::All), r#""all""#);
        let many = audience_text(&Audience::Devices(names(1000)));
        assert!(
            many.starts_with(r#"{"devices":["device-0","#) && many.ends_with(r#""device-9","…"]}"#),
            "{many}"
        );
        let clauses = (0..40).map(|_| Audience::Devices(names(10))).collect();
        assert_eq!(audience_text(&Audience::Or(clauses)), r#"{"too_long":{"clauses":41,"names":400}}"#);
        let Value::Object(notification) = serde_json::json!({ "title": "长".repeat(101), "body": 3 }) else {
            unreachable!("it is an object")
        };
        assert_eq!(text(&notification, "title", 100), Some(format!("{}…", "长".repeat(100))));
        assert_eq!((text(&notification, "body", 9), text(&notification, "image", 9)), (None, None));
    }
}
