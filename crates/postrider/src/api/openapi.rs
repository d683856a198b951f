//! The description of the API for machines: `/openapi.json`, checked in as `docs/openapi.json`.
//!
//! Shapes come from the types that handlers really read and write, and from [`shapes`]; what a call is for stands in
//! [`OPERATIONS`]. Tests hold this table to the routes, and the checked-in file to both. What is there for people,
//! old clients or tests is in [`INTERNAL`], and not in the document.

mod shapes;

use super::apps::*;
use super::attributes::AttributeValue;
use super::auth::Needs;
use super::device_list::{DevicePage, PruneRequest, Pruned};
use super::devices::*;
use super::error::Problem;
use super::events::{Event, Events};
use super::inbox::{AckRequest, Acknowledged, Ticket};
use super::jobs::{Job, JobPage};
use super::message_list::MessagePage;
use super::messages::*;
use super::reports::*;
use super::topics::*;
use super::warnings::Warning;
use super::webhooks::*;
use super::{Api, ApiLimits, apps, reports};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use postrider_core::limits::Limits;
use postrider_core::model::KeyScope;
use serde_json::{Map, Value, json};
pub use shapes::{
    audience, backlog, job_kind, job_state, key_scope, platform, priority, reason, step, steps,
};
use utoipa::OpenApi;

/// One call.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    /// `None`: anybody.
    needs: Option<Needs>,
    query: &'static [Parameter],
    idempotent: bool,
    body: Option<&'static str>,
    /// Status and shape of the answer.
    answer: (u16, Option<&'static str>),
}

/// Name, type (or the name of a shape), meaning.
type Parameter = (&'static str, &'static str, &'static str);

const LIMIT: Parameter = ("limit", "integer", "Entries of a page: 100, at most 1,000.");
const CURSOR: Parameter = ("cursor", "string", "`next_cursor` of the page before.");

const READ: Option<Needs> = Some(Needs::App(KeyScope::Read));
const SEND: Option<Needs> = Some(Needs::App(KeyScope::Send));
const REGISTER: Option<Needs> = Some(Needs::App(KeyScope::Register));
const READ_OR_SELF: Option<Needs> = Some(Needs::AppOrDevice(KeyScope::Read));
const MANAGE: Option<Needs> = Some(Needs::App(KeyScope::App));
const MANAGE_OR_SELF: Option<Needs> = Some(Needs::AppOrDevice(KeyScope::App));
const DEVICE: Option<Needs> = Some(Needs::Device);
const READER: Option<Needs> = Some(Needs::Reader);
const ADMIN: Option<Needs> = Some(Needs::Admin);

const fn call(
    (method, path): (&'static str, &'static str),
    id: &'static str,
    summary: &'static str,
    needs: Option<Needs>,
    answer: (u16, Option<&'static str>),
) -> Operation {
    Operation { method, path, id, summary, needs, query: &[], idempotent: false, body: None, answer }
}

impl Operation {
    const fn query(mut self, query: &'static [Parameter]) -> Operation {
        self.query = query;
        self
    }

    const fn body(mut self, shape: &'static str) -> Operation {
        self.body = Some(shape);
        self
    }

    const fn idempotent(mut self) -> Operation {
        self.idempotent = true;
        self
    }

    /// Whether the call can be refused with this status.
    fn may_answer(&self, status: u16) -> bool {
        let has_body = self.body.is_some();
        let changes = self.method != "get";
        let reads_place = self.query.iter().any(|(name, _, _)| *name == "after");
        match status {
            400 => has_body || self.needs.is_some() || self.path.contains('{'),
            401 | 403 | 429 => self.needs.is_some(),
            404 => self.path.contains('{'),
            408 | 413 | 415 => has_body,
            409 => {
                self.idempotent
                    || reads_place
                    || matches!(self.id, "createApp" | "deleteApp" | "publish" | "changeSecret")
                    || matches!(self.id, "putWebhook" | "rotateWebhookSecret" | "replayWebhook")
            }
            422 => self.id == "sendMessage",
            503 => changes && self.needs.is_some(),
            _ => false,
        }
    }
}

const DEVICE_QUERY: &[Parameter] = &[
    ("platform", "Platform", "Devices of this platform."),
    ("tag", "string", "Devices with this tag."),
    ("alias", "string", "Devices with this alias."),
    ("connected", "boolean", "Devices that have a connection now, or have none."),
    (
        "seen_before",
        "date-time",
        "Devices that were last seen before, and are not connected; never seen, registered before.",
    ),
    ("seen_after", "date-time", "Devices that were last seen after; never seen, registered after."),
    ("sort", "DeviceSort", "The order; where nothing is said, `registered`."),
    LIMIT,
    CURSOR,
];
const DELIVERY_QUERY: &[Parameter] = &[("state", "Step", "Deliveries in this state now."), LIMIT, CURSOR];
const EVENT_QUERY: &[Parameter] = &[
    ("after", "string", "`next` of the page before; left out, from the oldest event that is kept."),
    ("wait", "integer", "Seconds to wait for the first event, up to 60."),
    LIMIT,
];
const TOPIC_QUERY: &[Parameter] = &[("topic", "string", "The topic. Has to be there.")];
const PAGE_QUERY: &[Parameter] = &[LIMIT, CURSOR];
const JOB_QUERY: &[Parameter] = &[
    ("app", "string", "Jobs of this app."),
    ("kind", "JobKind", "Jobs of this kind."),
    ("state", "JobState", "Jobs in this state."),
    LIMIT,
    CURSOR,
];
const MESSAGE_QUERY: &[Parameter] = &[
    LIMIT,
    CURSOR,
    (
        "since",
        "string",
        "Only messages accepted at this time or later: RFC 3339, or milliseconds since 1970.",
    ),
    ("until", "string", "Only messages accepted before this time."),
    ("state", "string", "Only messages with a delivery in this state."),
    ("sent_by", "string", "Only messages sent by the key of this id."),
    ("text", "string", "Only messages with this in title, body, audience or collapse key, in any case."),
];
const TICKET: Parameter = ("ticket", "string", "For clients that cannot send headers: signs in like one.");
const INBOX_QUERY: &[Parameter] = &[
    (
        "after",
        "string",
        "Skip what lies before this cursor; left out, from the oldest that is not acknowledged.",
    ),
    ("wait", "integer", "Seconds that the answer may be held back until something is there, up to 60."),
    LIMIT,
    TICKET,
];
const STREAM_QUERY: &[Parameter] =
    &[("after", "string", "Like the header Last-Event-ID, which goes before."), TICKET];

#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    call(("post", "/v1/devices"), "registerDevice", "Register a device", REGISTER, (201, Some("RegisteredDevice"))).body("NewDeviceRequest").idempotent(),
    call(("get", "/v1/devices"), "listDevices", "List devices", READ, (200, Some("DevicePage"))).query(DEVICE_QUERY),
    call(("get", "/v1/devices/{id}"), "getDevice", "Show a device: profile, presence, subscriptions, inbox", READ_OR_SELF, (200, Some("Device"))),
    call(("patch", "/v1/devices/{id}"), "changeDevice", "Change a device", MANAGE_OR_SELF, (200, Some("Device"))).body("DeviceChange"),
    call(("delete", "/v1/devices/{id}"), "deleteDevice", "Delete a device and erase what is kept of it", MANAGE_OR_SELF, (204, None)),
    call(("post", "/v1/devices/{id}/secret"), "changeSecret", "Give a device a new secret, shown this once; connections and tickets of the old one end", MANAGE_OR_SELF, (200, Some("ChangedSecret"))).body("SecretChange"),
    call(("put", "/v1/devices/{id}/tags/{tag}"), "addTag", "Give a device a tag", MANAGE_OR_SELF, (204, None)),
    call(("delete", "/v1/devices/{id}/tags/{tag}"), "removeTag", "Take a tag from a device", MANAGE_OR_SELF, (204, None)),
    call(("put", "/v1/devices/{id}/alias"), "setAlias", "Give a device its alias", MANAGE_OR_SELF, (204, None)).body("AliasRequest"),
    call(("delete", "/v1/devices/{id}/alias"), "removeAlias", "Take its alias from a device", MANAGE_OR_SELF, (204, None)),
    call(("delete", "/v1/devices/{id}/inbox"), "clearInbox", "Recall what waits for a device, as when its user signs out", MANAGE_OR_SELF, (200, Some("ClearedInbox"))),
    call(("post", "/v1/devices/prune"), "pruneDevices", "Delete devices that were not seen for long, some at a time", MANAGE, (200, Some("Pruned"))).body("PruneRequest"),
    call(("post", "/v1/messages"), "sendMessage", "Send a message; the answer comes when it is on stable storage", SEND, (202, Some("AcceptedMessage"))).body("MessageRequest").idempotent(),
    call(("get", "/v1/messages"), "listMessages", "List messages, newest first", READ, (200, Some("MessagePage"))).query(MESSAGE_QUERY),
    call(("post", "/v1/messages/batch"), "sendBatch", "Send many different messages; each has its own result", SEND, (200, Some("BatchResults"))).body("BatchRequest").idempotent(),
    call(("post", "/v1/messages/estimate"), "estimateAudience", "Count an audience without sending", READ, (200, Some("Estimate"))).body("EstimateRequest"),
    call(("get", "/v1/messages/{id}"), "getMessage", "Show what became of a message", READ, (200, Some("Message"))),
    call(("delete", "/v1/messages/{id}"), "cancelMessage", "Cancel what of a message is not delivered yet", SEND, (200, Some("Cancelled"))),
    call(("get", "/v1/messages/{id}/deliveries"), "listDeliveries", "List the deliveries of a message", READ, (200, Some("DeliveryPage"))).query(DELIVERY_QUERY),
    call(("get", "/v1/messages/{id}/deliveries/{device}"), "getDelivery", "Trace one delivery", READ, (200, Some("Delivery"))),
    call(("post", "/v1/messages/{id}/receipts"), "reportReceipt", "Tell what the device did with a message", READER, (200, Some("ReceiptTaken"))).body("ReceiptRequest"),
    call(("get", "/v1/events"), "readEvents", "Read the receipt stream, waiting for events if asked to", READ, (200, Some("Events"))).query(EVENT_QUERY),
    call(("get", "/v1/webhooks"), "listWebhooks", "List webhooks", READ, (200, Some("WebhookList"))),
    call(("put", "/v1/webhooks/{id}"), "putWebhook", "Make or change a webhook, which gets the events of the receipt stream", MANAGE, (200, Some("Webhook"))).body("WebhookRequest"),
    call(("get", "/v1/webhooks/{id}"), "getWebhook", "Show a webhook and how it is going", READ, (200, Some("Webhook"))),
    call(("delete", "/v1/webhooks/{id}"), "deleteWebhook", "Delete a webhook", MANAGE, (204, None)),
    call(("post", "/v1/webhooks/{id}/test"), "testWebhook", "Send a test event now", MANAGE, (200, Some("WebhookTested"))),
    call(("post", "/v1/webhooks/{id}/secret"), "rotateWebhookSecret", "Give a webhook a new secret; the one before signs beside it for a while", MANAGE, (200, Some("WebhookSecret"))).body("WebhookSecretRequest"),
    call(("post", "/v1/webhooks/{id}/replay"), "replayWebhook", "Send the events behind a cursor or since a time again", MANAGE, (200, Some("Webhook"))).body("ReplayRequest"),
    call(("get", "/v1/webhooks/{id}/failures"), "listWebhookFailures", "List the last attempts that failed", READ, (200, Some("WebhookFailures"))),
    call(("get", "/v1/topics"), "getTopicByName", "Show a topic that the query names, also behind proxies that decode paths", READ, (200, Some("Topic"))).query(TOPIC_QUERY),
    call(("post", "/v1/topics/publish"), "publishByName", "Publish to the MQTT topic that the body names, also behind proxies that decode paths", SEND, (202, Some("Published"))).body("PublishRequest"),
    call(("get", "/v1/topics/publish"), "getTopicPublish", "Show the topic that is called `publish`", READ, (200, Some("Topic"))),
    call(("get", "/v1/topics/{topic}"), "getTopic", "Show a topic (its slashes written %2F)", READ, (200, Some("Topic"))),
    call(("post", "/v1/topics/{topic}/publish"), "publish", "Publish to an MQTT topic (its slashes written %2F)", SEND, (202, Some("Published"))).body("PublishRequest").idempotent(),
    call(("post", "/v1/apps"), "createApp", "Make an app", ADMIN, (201, Some("App"))).body("NewApp"),
    call(("get", "/v1/apps"), "listApps", "List apps", ADMIN, (200, Some("AppPage"))).query(PAGE_QUERY),
    call(("get", "/v1/apps/{id}"), "getApp", "Show an app and its books", ADMIN, (200, Some("App"))),
    call(("patch", "/v1/apps/{id}"), "changeApp", "Rename an app", ADMIN, (200, Some("App"))).body("AppChange"),
    call(("delete", "/v1/apps/{id}"), "deleteApp", "Delete an app: its keys at once, what it has step by step", ADMIN, (204, None)),
    call(("post", "/v1/apps/{id}/keys"), "createKey", "Make a key of an app; it is shown this once", ADMIN, (201, Some("Key"))).body("NewKey"),
    call(("get", "/v1/apps/{id}/keys"), "listKeys", "List the keys of an app", ADMIN, (200, Some("KeyList"))),
    call(("delete", "/v1/apps/{id}/keys/{key}"), "revokeKey", "Revoke a key", ADMIN, (204, None)),
    call(("post", "/v1/admin/audit"), "audit", "Count every delivery anew and compare with the books", ADMIN, (200, Some("AuditReport"))),
    call(("get", "/v1/admin/jobs"), "listJobs", "List jobs: slow work that goes on by itself", ADMIN, (200, Some("JobPage"))).query(JOB_QUERY),
    call(("post", "/v1/admin/jobs/{id}/retry"), "retryJob", "Try a job that failed or is parked at once", ADMIN, (204, None)),
    call(("get", "/openapi.json"), "getOpenapi", "This document", None, (200, None)),
    call(("post", "/v1/devices/{id}/tickets"), "makeTicket", "Make a ticket, which signs in for an hour in place of the secret", READER, (201, Some("Ticket"))),
    call(("get", "/v1/inbox"), "readInbox", "Read the inbox: a pull, or a poll that waits (docs/protocol/http.md)", READER, (200, Some("InboxPage"))).query(INBOX_QUERY),
    call(("post", "/v1/inbox/acks"), "acknowledge", "Acknowledge deliveries; answered when that is on stable storage", READER, (200, Some("Acknowledged"))).body("AckRequest"),
    call(("get", "/v1/stream"), "openStream", "Receive as server-sent events (docs/protocol/http.md)", READER, (200, None)).query(STREAM_QUERY),
    call(("post", "/v1/stream/acks"), "acknowledgeStream", "Acknowledge deliveries of the stream", READER, (200, Some("Acknowledged"))).body("AckRequest"),
    call(("get", "/ws"), "openWebSocket", "Receive over a WebSocket (docs/protocol/websocket.md)", None, (101, None)),
    call(("get", "/xmpp-websocket"), "openXmpp", "XMPP over WebSocket (RFC 7395); devices sign in by XMPP", None, (101, None)),
    call(("get", "/mqtt"), "openMqtt", "MQTT over WebSocket; devices sign in by MQTT", None, (101, None)),
];

/// What is served beside the API: pages, their calls, the forms of androidpn's console (docs/protocol/androidpn.md), an echo.
#[rustfmt::skip]
#[cfg_attr(not(test), allow(dead_code))]
const INTERNAL: &[Operation] = &[
    call(("get", "/docs/errors"), "getErrors", "What the codes of refusals mean, for people", None, (200, None)),
    call(("get", "/_test/echo"), "openEcho", "Every WebSocket message comes back; off unless the settings say otherwise", None, (101, None)),
    call(("post", "/notification.do"), "sendByForm", "Send as androidpn's console did (docs/protocol/androidpn.md); off unless the settings say otherwise", SEND, (302, None)),
    call(("get", "/notification.do"), "sendByQuery", "The same, with all in the query", SEND, (302, None)),
    call(("post", "/notification_api.do"), "sendByFormApi", "The same, answered as JSON", SEND, (200, None)),
    call(("get", "/notification_api.do"), "sendByQueryApi", "The same, with all in the query", SEND, (200, None)),
    call(("get", "/user.do"), "listUsers", "The devices, as androidpn's users; off unless the settings say otherwise", READ, (200, None)),
    call(("get", "/user_api.do"), "listUsersApi", "The same", READ, (200, None)),
    call(("get", "/session.do"), "listSessions", "Those that are connected", READ, (200, None)),
    call(("get", "/"), "openStart", "A page that says that the server runs, with links", None, (200, None)),
    call(("get", "/sdk/{file}"), "getSdk", "A file of the browser SDK", None, (200, None)),
    call(("get", "/demo"), "openDemo", "The page for trying it out; off unless the settings say otherwise", None, (200, None)),
    call(("get", "/demo/{file}"), "getDemoFile", "A file of that page", None, (200, None)),
    call(("post", "/demo/devices"), "registerVisitor", "Register a visitor of that page", None, (201, None)),
    call(("post", "/demo/push"), "pushToSelf", "Send to the calling device, from that page", DEVICE, (202, None)),
    call(("get", "/demo/messages/{id}"), "traceOwnMessage", "Trace the delivery to the calling device, from that page", DEVICE, (200, None)),
];

/// Whom the document says that a route (`GET /v1/devices`) serves.
#[cfg(test)]
pub fn said_needs(route: &str) -> Option<Needs> {
    let is = |o: &&Operation| format!("{} {}", o.method.to_uppercase(), o.path) == route;
    OPERATIONS.iter().chain(INTERNAL).find(is).and_then(|o| o.needs)
}

/// The shapes, out of the types themselves.
#[derive(OpenApi)]
#[openapi(components(schemas(
    NewDeviceRequest,
    RegisteredDevice,
    Device,
    Subscription,
    Session,
    AttributeValue,
    DeviceChange,
    AliasRequest,
    SecretChange,
    ChangedSecret,
    DevicePage,
    ClearedInbox,
    PruneRequest,
    Pruned,
    AppChange,
    MessageRequest,
    Notification,
    Action,
    Durability,
    OnFull,
    AcceptedMessage,
    Warning,
    BatchRequest,
    BatchResults,
    BatchResult,
    EstimateRequest,
    Estimate,
    DeviceVerdict,
    Message,
    ReasonCount,
    MessagePage,
    Delivery,
    reports::Moment,
    DeliveryPage,
    Cancelled,
    ReceiptRequest,
    ReceiptStep,
    ReceiptTaken,
    Ticket,
    AckRequest,
    Acknowledged,
    Events,
    Event,
    WebhookRequest,
    Webhook,
    WebhookState,
    WebhookList,
    WebhookTested,
    WebhookSecretRequest,
    WebhookSecret,
    ReplayRequest,
    WebhookFailures,
    WebhookFailure,
    PublishRequest,
    Published,
    Topic,
    RetainedMessage,
    NewApp,
    App,
    Deliveries,
    AppPage,
    NewKey,
    AppKeyScope,
    Key,
    KeyList,
    AuditReport,
    apps::AppAudit,
    Job,
    JobPage,
    Problem
)))]
struct Shapes;

/// The whole document, with the bounds that these limits set.
pub fn document(api: &ApiLimits, core: &Limits) -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation, api);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "postrider",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Push messages to devices, and know what became of each. Errors: docs/errors.md, or /docs/errors of a server.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The server that serves this document." }],
        "paths": paths,
        "components": {
            "schemas": schemas(api, core),
            "responses": shapes::refusals(),
            "securitySchemes": {
                "key": {
                    "type": "http", "scheme": "bearer",
                    "description": "A key of an app, or an admin key. Devices send `<device id>:<secret>`, of another than the default app `<app>/<device id>:<secret>`.",
                },
                "device": { "type": "http", "scheme": "basic", "description": "A device's id and secret." },
            },
        },
    })
}

fn schemas(api: &ApiLimits, core: &Limits) -> Map<String, Value> {
    let components = serde_json::to_value(Shapes::openapi().components).unwrap_or_default();
    let mut schemas = components["schemas"].as_object().cloned().unwrap_or_default();
    schemas.append(&mut shapes::all());
    for (shape, field, bounds) in shapes::bounds(api, core) {
        let field = schemas.get_mut(shape).and_then(|s| s["properties"].get_mut(field));
        if let (Some(Value::Object(field)), Value::Object(bounds)) = (field, bounds) {
            field.extend(bounds);
        }
    }
    schemas
}

fn described(operation: &Operation, limits: &ApiLimits) -> Value {
    let (status, shape) = operation.answer;
    let content = |shape: &str| json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{shape}") } } });
    let mut answer = json!({ "description": "Done." });
    if let Some(shape) = shape {
        answer["content"] = content(shape);
    }
    let mut responses = Map::from_iter([(status.to_string(), answer)]);
    if operation.path == "/v1/inbox" {
        responses.insert("304".into(), json!({ "description": "The inbox is as it was (`If-None-Match`)." }));
    }
    for (status, name) in shapes::REFUSALS.iter().filter(|(status, _)| operation.may_answer(*status)) {
        let refusal = json!({ "$ref": format!("#/components/responses/{name}") });
        responses.insert(status.to_string(), refusal);
    }
    responses.insert(
        "default".into(),
        json!({ "description": "Another refusal.", "content": content("Problem") }),
    );
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.path.split('/').filter(|p| *p != "v1").nth(1).unwrap_or_default()],
        "responses": responses,
    });
    if let Some(needs) = operation.needs {
        let (security, who) = who(needs);
        described["security"] = security;
        described["description"] = json!(format!("For {who}."));
    }
    let parameters = parameters(operation, limits);
    if !parameters.is_empty() {
        described["parameters"] = Value::Array(parameters);
    }
    if let Some(shape) = operation.body {
        described["requestBody"] = json!({ "required": true, "content": content(shape) });
    }
    described
}

fn who(needs: Needs) -> (Value, String) {
    let key = json!([{ "key": [] }]);
    let either = json!([{ "key": [] }, { "device": [] }]);
    let scopes = |scope| match scope {
        KeyScope::Read => "any key of an app",
        KeyScope::Send => "keys of an app with the scope `send` or `app`",
        KeyScope::Register => "keys of an app with the scope `register` or `app`",
        _ => "keys of an app with the scope `app`",
    };
    match needs {
        Needs::Admin => (key, "admin keys".to_owned()),
        Needs::App(scope) => (key, scopes(scope).to_owned()),
        Needs::AppOrDevice(scope) => (either, format!("{}, or the device for itself", scopes(scope))),
        Needs::Device => (either, "the device for itself".to_owned()),
        Needs::Reader => (either, "the device for itself, also by a ticket".to_owned()),
    }
}

fn parameters(operation: &Operation, limits: &ApiLimits) -> Vec<Value> {
    let names = operation.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'));
    let in_path = names
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = operation.query.iter().map(|(name, kind, meaning)| {
        json!({ "name": name, "in": "query", "description": meaning, "schema": parameter_shape(name, kind, limits) })
    });
    let key = operation.idempotent.then(|| {
        json!({
            "name": "Idempotency-Key", "in": "header", "schema": { "type": "string", "maxLength": 64 },
            "description": "Names this request: repeated with the same key, it is answered as the first time and done once.",
        })
    });
    in_path.chain(in_query).chain(key).collect()
}

fn parameter_shape(name: &str, kind: &str, limits: &ApiLimits) -> Value {
    match (name, kind) {
        ("limit", _) => json!({
            "type": "integer", "minimum": 1, "maximum": limits.page_max, "default": limits.page_default,
        }),
        ("wait", _) => json!({ "type": "integer", "minimum": 0, "maximum": limits.poll_max.as_secs() }),
        (_, shape) if shape.starts_with(char::is_uppercase) => {
            json!({ "$ref": format!("#/components/schemas/{shape}") })
        }
        (_, "date-time") => json!({ "type": "string", "format": "date-time" }),
        (_, kind) => json!({ "type": kind }),
    }
}

/// As it is checked in: with the bounds of the default settings.
pub fn text() -> String {
    text_with(&ApiLimits::default(), &Limits::default())
}

fn text_with(api: &ApiLimits, core: &Limits) -> String {
    serde_json::to_string_pretty(&document(api, core)).unwrap_or_default() + "\n"
}

/// `GET /openapi.json`: with the bounds of this server.
pub async fn serve(State(api): State<Api>) -> Response {
    let make = || text_with(&api.limits, &api.engine.limits);
    let text = api.document.get_or_init(make).clone();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn made() -> Value {
        document(&ApiLimits::default(), &Limits::default())
    }

    #[test]
    fn openapi_json_is_what_the_code_says() {
        crate::api::tests::same_as_checked_in("docs/openapi.json", &text());
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let routes: BTreeSet<_> = crate::api::routes()
            .into_iter()
            .map(|r| (r.path.to_owned(), r.method.as_str().to_lowercase()))
            .collect();
        let document = made();
        let mut described: BTreeSet<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, calls)| calls.as_object().unwrap().keys().map(|m| (path.clone(), m.clone())))
            .collect();
        for internal in INTERNAL {
            let is_new = described.insert((internal.path.to_owned(), internal.method.to_owned()));
            assert!(is_new, "{} stands in the document", internal.path);
        }
        assert_eq!(routes, described);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = made();
        let text = document.to_string();
        for pointer in text.split("\"#/").skip(1) {
            let pointer = format!("/{}", pointer.split('"').next().unwrap());
            assert!(document.pointer(&pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn every_bound_is_of_a_field() {
        let document = made();
        for (shape, field, _) in shapes::bounds(&ApiLimits::default(), &Limits::default()) {
            let pointer = format!("/components/schemas/{shape}/properties/{field}");
            assert!(document.pointer(&pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn a_word_of_a_fixed_list_is_never_a_mere_string() {
        let schemas = made()["components"]["schemas"].clone();
        for (name, schema) in schemas.as_object().unwrap() {
            let fields = schema["properties"].as_object().into_iter().flatten();
            for (field, shape) in fields.filter(|(_, shape)| shape["type"] == "string") {
                let of_list = ["platform", "priority", "state", "step", "reason", "scope", "backlog"];
                assert!(!of_list.contains(&field.as_str()), "{name}.{field} is {shape}");
            }
        }
    }
}
