//! Shapes that do not come from a type of the API: names of the core's enums, audiences, the inbox; and the bounds of fields.

use crate::api::ApiLimits;
use crate::api::error::Code;
use postrider_core::jobs::{JobKind, JobState};
use postrider_core::limits::Limits;
use postrider_core::model::{Platform, Priority, Reason, Step};
use serde_json::{Map, Value, json};
use utoipa::openapi::{Ref, RefOr, Schema};

fn to(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

pub fn audience() -> RefOr<Schema> {
    to("Audience")
}

pub fn backlog() -> RefOr<Schema> {
    to("Backlog")
}

pub fn platform() -> RefOr<Schema> {
    to("Platform")
}

pub fn priority() -> RefOr<Schema> {
    to("Priority")
}

pub fn step() -> RefOr<Schema> {
    to("Step")
}

pub fn steps() -> RefOr<Schema> {
    utoipa::openapi::ArrayBuilder::new().items(to("Step")).into()
}

pub fn reason() -> RefOr<Schema> {
    to("Reason")
}

pub fn job_kind() -> RefOr<Schema> {
    to("JobKind")
}

pub fn job_state() -> RefOr<Schema> {
    to("JobState")
}

pub fn key_scope() -> RefOr<Schema> {
    to("KeyScope")
}

/// No control characters.
const PLAIN: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$";

/// All of them, by name.
pub fn all() -> Map<String, Value> {
    let names =
        |all: Vec<&str>, meaning: &str| json!({ "type": "string", "enum": all, "description": meaning });
    let mut shapes = Map::new();
    let mut add = |name: &str, shape: Value| _ = shapes.insert(name.to_owned(), shape);
    let platforms = Platform::ALL.map(Platform::name).to_vec();
    add("Platform", names(platforms, "What kind of installation a device is."));
    let priorities = [Priority::Low, Priority::Normal, Priority::High].map(word).to_vec();
    add(
        "Priority",
        json!({ "type": "string", "enum": priorities, "description": "High overtakes, low is evicted first." }),
    );
    add(
        "Step",
        names(
            Step::ALL.map(Step::name).to_vec(),
            "A step of a delivery, and the state that it is in after it.",
        ),
    );
    let reasons = Reason::ALL.into_iter().filter(|r| *r != Reason::None).map(Reason::name).collect();
    add("Reason", names(reasons, "Why a delivery ended as it did."));
    add("KeyScope", names(vec!["app", "send", "read", "register", "admin"], "What a key may do."));
    add("JobKind", names(JobKind::ALL.map(JobKind::name).to_vec(), "What a job does."));
    let states = "`due`: a worker may take it; `leased`: one has it; `waiting`: for its time, or for \
                  something to do; `parked`: for an operator.";
    add("JobState", names(JobState::NAMES.to_vec(), states));
    let orders = vec!["registered", "last_seen"];
    add("DeviceSort", names(orders, "The order of devices; `last_seen`: those seen longest ago first."));
    add(
        "Backlog",
        json!({
            "description": "How many pending messages of its collapse key a device keeps.",
            "oneOf": [{ "$ref": "#/components/schemas/BacklogWord" }, { "$ref": "#/components/schemas/BacklogLast" }],
        }),
    );
    add("BacklogWord", names(vec!["all", "latest"], "All of them, or the newest."));
    add(
        "BacklogLast",
        json!({
            "type": "object",
            "description": "The newest ones.",
            "required": ["last"],
            "properties": { "last": { "type": "integer", "minimum": 1, "maximum": u16::MAX } },
            "additionalProperties": false,
        }),
    );
    shapes.append(&mut inbox());
    shapes.append(&mut audiences());
    shapes
}

/// What `GET /v1/inbox` answers; it is written without a type.
fn inbox() -> Map<String, Value> {
    let mut shapes = Map::new();
    let mut add = |name: &str, shape: Value| _ = shapes.insert(name.to_owned(), shape);
    add(
        "InboxPage",
        json!({
            "type": "object",
            "description": "What waits for the device (docs/protocol/http.md).",
            "required": ["messages", "next", "more", "poll_after_secs"],
            "properties": {
                "messages": {
                    "type": "array",
                    "items": { "$ref": "#/components/schemas/InboxMessage" },
                },
                "next": { "type": "string", "description": "Give it back as `after` to skip what came." },
                "more": { "type": "boolean", "description": "There is more than `limit`." },
                "poll_after_secs": { "type": "integer", "description": "When to come back, in seconds." },
            },
        }),
    );
    add(
        "InboxMessage",
        json!({
            "type": "object",
            "description": "The frame `push` or `message` of docs/protocol/websocket.md.",
            "required": ["type", "delivery"],
            "properties": {
                "type": { "type": "string" },
                "delivery": { "type": "string", "description": "Acknowledge it by this." },
                "cursor": { "type": "string" },
            },
            "additionalProperties": true,
        }),
    );
    shapes
}

fn word(priority: Priority) -> Value {
    serde_json::to_value(priority).unwrap_or_default()
}

/// The forms of an audience, each with a name: generators of clients make a type of each.
fn audiences() -> Map<String, Value> {
    let text = || json!({ "type": "string" });
    let names = || json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    let inner = || json!({ "$ref": "#/components/schemas/Audience" });
    let clauses =
        || json!({ "type": "array", "items": { "$ref": "#/components/schemas/Audience" }, "minItems": 1 });
    let platform = json!({ "$ref": "#/components/schemas/Platform" });
    let forms = [
        ("device", text(), "The device with this id."),
        ("devices", names(), "Devices by their ids."),
        ("alias", text(), "Every device with this alias."),
        ("aliases", names(), "Every device with one of these aliases."),
        ("tag", text(), "Every device with this tag."),
        (
            "topic",
            json!({ "type": "string", "pattern": "^[^+#]*$" }),
            "Every device with a session that subscribes to this MQTT topic.",
        ),
        ("platform", platform, "Every device of this platform."),
        ("and", clauses(), "Devices that are in all of these."),
        ("or", clauses(), "Devices that are in one of these."),
        ("not", inner(), "All devices but these."),
    ];
    let all = json!({ "type": "string", "enum": ["all"], "description": "Every device of the app." });
    let mut shapes = Map::from_iter([("AudienceAll".to_owned(), all)]);
    let mut refs = vec![json!({ "$ref": "#/components/schemas/AudienceAll" })];
    for (field, shape, meaning) in forms {
        let name = format!("Audience{}{}", field[..1].to_uppercase(), &field[1..]);
        refs.push(json!({ "$ref": format!("#/components/schemas/{name}") }));
        shapes.insert(
            name,
            json!({
                "type": "object",
                "description": meaning,
                "required": [field],
                "properties": { field: shape },
                "additionalProperties": false,
            }),
        );
    }
    shapes.insert(
        "Audience".to_owned(),
        json!({
            "description": "Whom a message is for. Resolved once, when the message is accepted.",
            "oneOf": refs,
            "example": { "and": [{ "platform": "ios" }, { "not": { "tag": "beta" } }] },
        }),
    );
    shapes
}

/// Bounds of fields, by shape and field, as this server's settings have them.
pub fn bounds(api: &ApiLimits, core: &Limits) -> Vec<(&'static str, &'static str, Value)> {
    let name = || json!({ "minLength": 1, "maxLength": core.name_bytes_max, "pattern": PLAIN });
    let tags = || {
        let mut item = name();
        item["type"] = json!("string");
        json!({ "maxItems": core.tags_max, "items": item })
    };
    let id = json!({ "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9._:@-]+$" });
    let key = json!({ "minLength": 1, "maxLength": core.idempotency_key_bytes_max, "pattern": PLAIN });
    let attributes = json!({ "maxProperties": core.attributes_max });
    vec![
        ("NewDeviceRequest", "device_id", id),
        ("NewDeviceRequest", "alias", name()),
        ("NewDeviceRequest", "tags", tags()),
        ("NewDeviceRequest", "attributes", attributes.clone()),
        ("NewDeviceRequest", "provider_tokens", json!({ "maxProperties": 16 })),
        ("DeviceChange", "alias", name()),
        ("DeviceChange", "tags", tags()),
        ("DeviceChange", "add_tags", tags()),
        ("DeviceChange", "attributes", attributes),
        ("AliasRequest", "alias", name()),
        ("MessageRequest", "ttl_secs", json!({ "minimum": 0, "maximum": core.ttl_max.as_secs() })),
        ("MessageRequest", "collapse_key", name()),
        ("MessageRequest", "idempotency_key", key),
        ("BatchRequest", "messages", json!({ "minItems": 1, "maxItems": api.batch_max })),
        ("AudienceDevices", "devices", json!({ "maxItems": core.recipients_max })),
        ("AudienceAliases", "aliases", json!({ "maxItems": core.recipients_max })),
        ("PublishRequest", "qos", json!({ "minimum": 0, "maximum": 2 })),
        ("PublishRequest", "content_type", json!({ "maxLength": 128 })),
        ("NewApp", "id", json!({ "minLength": 1, "maxLength": 64, "pattern": "^[a-z0-9_-]+$" })),
        ("NewApp", "name", json!({ "maxLength": 128 })),
        ("AppChange", "name", json!({ "maxLength": 128 })),
        ("PruneRequest", "unseen_secs", json!({ "minimum": 86_400 })),
        ("PruneRequest", "limit", json!({ "minimum": 1, "maximum": 500 })),
        ("NewKey", "name", json!({ "maxLength": 128 })),
        ("AckRequest", "deliveries", json!({ "maxItems": crate::api::inbox::ACKS_MAX })),
    ]
}

/// Refusals by status, each with a name and the codes that it may have.
pub const REFUSALS: [(u16, &str); 13] = [
    (400, "BadRequest"),
    (401, "Unauthorized"),
    (403, "Forbidden"),
    (404, "NotFound"),
    (405, "MethodNotAllowed"),
    (408, "RequestTimeout"),
    (409, "Conflict"),
    (413, "PayloadTooLarge"),
    (415, "UnsupportedMediaType"),
    (422, "UnknownRecipient"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (503, "Unavailable"),
];

/// The components `responses`.
pub fn refusals() -> Value {
    let mut named = Map::new();
    for (status, name) in REFUSALS {
        let codes = Code::ALL.iter().filter(|c| c.status().as_u16() == status);
        let codes: Vec<_> = codes.map(|c| format!("`{}`", c.name())).collect();
        let mut refusal = json!({
            "description": format!("Refused: {} (docs/errors.md).", codes.join(", ")),
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        if matches!(status, 429 | 503) {
            let seconds = json!({ "description": "Seconds to wait.", "schema": { "type": "integer" } });
            refusal["headers"] = json!({ "Retry-After": seconds });
        }
        named.insert(name.to_owned(), refusal);
    }
    Value::Object(named)
}
