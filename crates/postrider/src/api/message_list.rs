//! The list of messages: newest first, found by time, state, key or text.

use super::auth::{ByApp, Reads};
use super::error::ApiError;
use super::json::Query;
use super::reports::Message;
use super::times::read_time;
use super::{Api, cursors, page_size};
use axum::Json;
use axum::extract::State;
use postrider_core::Engine;
use postrider_core::id::*;
use postrider_core::model::{Step, Submission};
use postrider_core::port::MessageView;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Messages that one request looks at, at most. A page may so be short, or empty, and not the last.
const LOOKED_MAX: usize = 2_000;
/// Messages read from the store at once: it is not held for longer.
const READ_AT_ONCE: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MessageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    since: Option<String>,
    until: Option<String>,
    state: Option<Step>,
    sent_by: Option<String>,
    text: Option<String>,
}

/// A page of messages, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessagePage {
    messages: Vec<Message>,
    /// Give it back as `cursor` for the next page; null on the last one. With a filter, a page may
    /// have fewer messages than `limit`, or none, and not be the last.
    next_cursor: Option<String>,
}

/// Which messages are wanted; `None` wants all.
#[derive(Debug, Default)]
struct Filter {
    since: Option<UnixMillis>,
    state: Option<Step>,
    key: Option<String>,
    /// In lower case.
    text: Option<String>,
}

impl Filter {
    /// As far as can be told without reading what was sent, which lies on disk.
    fn fits_unread(&self, view: &MessageView) -> bool {
        self.state.is_none_or(|state| view.now[state as usize] > 0)
    }

    fn fits(&self, view: &MessageView, sent: Option<&Submission>) -> bool {
        let has = |text: &str| {
            let fields =
                sent.into_iter().flat_map(|s| [s.title.as_ref(), s.body.as_ref(), Some(&s.audience)]);
            let mut texts = fields.flatten().chain(view.collapse_key.as_ref());
            texts.any(|field| field.to_lowercase().contains(text))
        };
        self.key.as_ref().is_none_or(|key| sent.is_some_and(|s| s.key == *key))
            && self.text.as_ref().is_none_or(|text| has(text))
    }
}

pub async fn list(
    ByApp(app, _): ByApp<Reads>,
    State(api): State<Api>,
    Query(query): Query<MessageQuery>,
) -> Result<Json<MessagePage>, ApiError> {
    let limit = page_size(&api, query.limit)?;
    let until = read_time("until", query.until.as_deref())?;
    let filter = Filter {
        since: read_time("since", query.since.as_deref())?,
        state: query.state,
        key: query.sent_by,
        text: query.text.map(|text| text.to_lowercase()),
    };
    let before = cursors::read_list(&api, "message-", query.cursor.as_deref())?.map(MessageId);
    let before = before.or(until.map(|at| MessageId::new(at, 0)));
    let engine = api.engine.clone();
    let (messages, next) = super::aside(move || find(&engine, app, before, &filter, limit)).await?;
    Ok(Json(MessagePage { messages, next_cursor: next.map(|id| cursors::of_list(&api, "message-", id.0)) }))
}

/// Messages older than `before` that fit, and the one to go on behind where there may be more.
fn find(
    engine: &Engine,
    app: AppNo,
    mut before: Option<MessageId>,
    filter: &Filter,
    limit: usize,
) -> (Vec<Message>, Option<MessageId>) {
    let mut found = Vec::new();
    let mut looked = 0;
    loop {
        let views = engine.store.messages(app, before, READ_AT_ONCE);
        if views.is_empty() {
            return (found, None);
        }
        for view in views {
            if filter.since.is_some_and(|since| view.accepted_at < since) {
                return (found, None);
            }
            if found.len() == limit || looked == LOOKED_MAX {
                return (found, before);
            }
            (before, looked) = (Some(view.id), looked + 1);
            if !filter.fits_unread(&view) {
                continue;
            }
            let sent = engine.submission(app, &view);
            if filter.fits(&view, sent.as_deref()) {
                found.push(Message::of(view, sent.as_deref()));
            }
        }
    }
}
