//! Every refusal of the HTTP API, in one table: a stable code, a status, a sentence, and what to do about it.
//!
//! `docs/errors.md` is made from the table; a test keeps the two equal (`UPDATE=1 cargo test` rewrites it).

use super::warnings::WarningCode;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postrider_core::delivery::accept::AcceptError;
use postrider_core::delivery::publish::PublishError;
use postrider_core::devices::DeviceError;
use postrider_core::port::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

macro_rules! refusals {
    ($($name:ident $status:literal $code:literal $sentence:literal $remedy:literal)*) => {
        /// Which refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($name),* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// Code, status, sentence, remedy.
            pub const fn row(self) -> (&'static str, u16, &'static str, &'static str) {
                match self { $(Code::$name => ($code, $status, $sentence, $remedy)),* }
            }
        }
    };
}

refusals! {
    InvalidJson 400 "invalid_json" "The body is not valid JSON."
        "The message says what is wrong and where. One JSON value in UTF-8, at most 32 levels deep, no key twice, no integer beyond 64 bits."
    InvalidField 400 "invalid_field" "A field is missing, unknown, or has a value that is not allowed."
        "`field` points to it. Compare with `/openapi.json`."
    InvalidAudience 400 "invalid_audience" "The audience is not a valid expression."
        "One of `\"all\"`, `device`, `devices`, `alias`, `aliases`, `tag`, `topic`, `platform`, combined by `and`, `or`, `not`."
    InvalidParameter 400 "invalid_parameter" "A parameter in the path or the query is unknown or has a value that is not allowed."
        "Parameters that a call does not know are refused, so that a misspelt one is not silently ignored."
    InvalidCursor 400 "invalid_cursor" "The cursor is not one that this call gave out."
        "Give back cursors as they came; leave the parameter out to begin at the start."
    InvalidTopic 400 "invalid_topic" "The topic cannot be published to."
        "At most 512 bytes and 16 levels, no wildcards, no control characters, not beginning with `$`."
    InvalidHeader 400 "invalid_header" "A header has a value that is not allowed."
        "The message names the header."
    WebhookUrlRefused 400 "webhook_url_refused" "The URL is none that a webhook may post to."
        "`https://`, a port that is allowed, and a host with public addresses only; the operator may allow more in `[webhooks]`."
    InvalidHost 400 "invalid_host" "The request needs exactly one Host, and a target on that host."
        "Check the proxy or the client library."
    InvalidUpgrade 400 "invalid_upgrade" "The request does not open a WebSocket."
        "`GET` with `Upgrade: websocket` and a key; for MQTT also `Sec-WebSocket-Protocol: mqtt`."
    BodyNotAllowed 400 "body_not_allowed" "A request that waits, streams or opens a WebSocket has no body."
        "Leave out `Content-Length`, `Transfer-Encoding` and the body."
    CredentialsInQuery 400 "credentials_in_query" "Credentials do not belong into the query string, where logs keep them."
        "Send `Authorization: Bearer …`. Take the key out of use: it may have been logged."
    AmbiguousCredentials 400 "ambiguous_credentials" "The Authorization header is not understood: send `Authorization: Bearer KEY`."
        "Exactly one: `Bearer <key>`, `Bearer <device id>:<secret>`, or `Basic` with the device's id and secret."
    MissingCredentials 401 "missing_credentials" "The call needs credentials: send `Authorization: Bearer KEY`."
        "Send `Authorization: Bearer <key>`."
    BadCredentials 401 "bad_credentials" "The credentials are not valid."
        "The key or device is unknown, revoked or deleted, or the secret is wrong: the answer is the same for all."
    NotAllowed 403 "not_allowed" "These credentials do not allow the call."
        "The message says which kind of key or which scope is needed."
    ForeignOrigin 403 "foreign_origin" "Pages of this origin may not connect."
        "Add the origin to the allowed ones in the configuration."
    DeviceQuota 403 "device_quota" "The app has as many devices as it may have."
        "Delete devices that are no longer used, or raise the limit."
    WebhookQuota 403 "webhook_quota" "The app has as many webhooks as it may have."
        "Delete one, or raise `webhooks.per_app_max`."
    NoSuchRoute 404 "no_such_route" "There is nothing at this path."
        "Compare with `/openapi.json`; a topic's slashes are written `%2F`."
    NoSuchDevice 404 "no_such_device" "This app has no such device."
        "It may have been deleted."
    NoSuchMessage 404 "no_such_message" "This app has no such message, or its report is no longer kept."
        "Reports are kept for a while after a message ended: `limits.history_keep_secs`, 30 days by default."
    NoSuchDelivery 404 "no_such_delivery" "The message was not meant for this device."
        "The audience was resolved when the message was accepted."
    NoSuchApp 404 "no_such_app" "There is no such app." "`GET /v1/apps` lists them."
    NoSuchWebhook 404 "no_such_webhook" "The app has no such webhook." "`GET /v1/webhooks` lists them."
    NoSuchKey 404 "no_such_key" "The app has no such key." "`GET /v1/apps/{id}/keys` lists them."
    NoSuchJob 404 "no_such_job" "There is no such job." "Jobs that are done are gone; `GET /v1/admin/jobs` lists the others."
    MethodNotAllowed 405 "method_not_allowed" "The path does not know this method." "The header `Allow` lists those it knows."
    BodyTimeout 408 "body_timeout" "The body came too slowly."
        "30 seconds in all, and after 5 seconds at least 1 KiB a second."
    IdempotencyMismatch 409 "idempotency_mismatch" "The Idempotency-Key was used with another request."
        "A new request needs a new key; a repetition must be the same in every field."
    DeviceExists 409 "device_exists" "A device with this id is registered."
        "Choose another id, or delete the device first. To repeat a registration safely, send an Idempotency-Key."
    AppExists 409 "app_exists" "An app with this id exists." "Choose another id."
    AppInUse 409 "app_in_use" "The app is one that the server itself uses."
        "The app `default`, the app of the listeners (`mqtt.app`) and that of `[jwt]` stay. Change the settings first."
    CursorFromOtherHistory 409 "cursor_from_other_history" "The cursor belongs to another history: the store was restored or replaced."
        "Begin again without `after`, and reconcile what you kept by message id."
    WebhookChanged 409 "webhook_changed" "The webhook is being changed by somebody else."
        "Look at it, and repeat the request."
    InboxFull 409 "inbox_full" "The inbox of every device of the audience is full, and the message asked not to evict."
        "Send without `\"on_full\": \"reject\"`, or later."
    TooManyFilters 409 "too_many_filters" "Too many wildcard filters lie on the way of this topic, so nobody got it."
        "Publish on a topic with fewer levels, or let devices subscribe with fewer filters that mix `+` and names."
    RetainedFull 409 "retained_full" "The app has as many retained messages, or bytes of them, as it may have."
        "Take some away: publish an empty payload with `retain`."
    BodyTooLarge 413 "body_too_large" "The body is larger than this call allows."
        "256 KiB, for a batch 4 MiB. Split the batch."
    PayloadTooLarge 413 "payload_too_large" "What the device would get is too large."
        "Send a reference and let the app fetch the rest."
    ProfileTooLarge 413 "profile_too_large" "Alias, tags, attributes and provider tokens of the device are too large together."
        "See `limits.profile_bytes_max`, and `limits.own_profile_bytes_max` for what devices say of themselves."
    UriTooLong 414 "uri_too_long" "The request target is too long." "At most 8 KiB."
    UnsupportedMediaType 415 "unsupported_media_type" "The body must be JSON." "Send `Content-Type: application/json`."
    UnsupportedEncoding 415 "unsupported_encoding" "Compressed bodies are not accepted." "Send the body without `Content-Encoding`."
    UnknownRecipient 422 "unknown_recipient" "The audience names devices one by one, and none of them exists."
        "Check the ids and aliases; nothing was accepted."
    WebSocketVersion 426 "websocket_version" "Only version 13 of the WebSocket protocol is spoken." "Send `Sec-WebSocket-Version: 13`."
    HeadTooLarge 431 "head_too_large" "The request's headers are too large." "At most 64 fields and 16 KiB."
    RateLimited 429 "rate_limited" "The app sends more messages, or more bytes, than it may."
        "Wait as long as `Retry-After` says; send batches in steady steps."
    TooManyFromAddress 429 "too_many_from_address" "This address has as many connections as it may have."
        "Wait as long as `Retry-After` says; close connections that are not needed. Behind a proxy, let it say for whom it connects."
    TooManyFailures 429 "too_many_failures" "Too many requests with wrong credentials came from this address."
        "Wait as long as `Retry-After` says. Right credentials are taken meanwhile."
    TooManyPolls 429 "too_many_polls" "Too many requests of this app wait for events."
        "One reader is enough: it gets all events in order."
    PollsTooOften 429 "polls_too_often" "The device asks too often for what is not there."
        "Wait as long as `Retry-After` says, or let the server hold the answer back with `wait`."
    AcksTooOften 429 "acks_too_often" "The device acknowledges too much that was not open for it."
        "Wait as long as `Retry-After` says; acknowledge each delivery once, as it came."
    TooOften 429 "too_often" "The device connects too often, or too many sign-ins failed."
        "Wait as long as `Retry-After` says; keep one connection."
    TooManyRegistrations 429 "too_many_registrations" "Too many devices register themselves, from this address or with this key."
        "Wait as long as `Retry-After` says. Keys of the scope `app` are not limited; see `http.registrations_burst`."
    ChangesTooOften 429 "changes_too_often" "The device changes what is stored of it too often."
        "Wait as long as `Retry-After` says. Send all changes in one request, and only where something changed."
    WebhookTestUnderWay 429 "webhook_test_under_way" "A test of this webhook is under way."
        "Wait for its answer."
    AppFull 429 "app_full" "The app's open messages take all the room that they may."
        "Send with a shorter `ttl_secs`, cancel what is no longer wanted, or raise `limits.app_bytes_max` and `limits.app_messages_max`."
    TooManyBroadcasts 429 "too_many_broadcasts" "Too many messages to large audiences are still open."
        "Give messages a shorter `ttl_secs`, or cancel old ones."
    Internal 500 "internal" "Something went wrong inside the server."
        "It was logged and counted. The request may or may not have been carried out: repeat it with the same Idempotency-Key."
    Corrupt 500 "corrupt" "A stored record is damaged." "Run `postrider store check`."
    NeedsHttp11 505 "needs_http_1_1" "A request that waits needs HTTP/1.1."
        "Let the client, or the proxy before this server, speak HTTP/1.1."
    TooManyConnections 503 "too_many_connections" "The server has as many connections as it may have."
        "Connect again after `Retry-After`, with some chance in it, so that not all come at once."
    SecretsUnavailable 503 "secrets_unavailable" "The server cannot seal or open secrets now: its key is not to be had."
        "The log says why. Bring back the key (`secrets.key_file`), or give the webhook another secret."
    StorageLow 503 "storage_low" "The server is short of disk space and accepts nothing new."
        "Stored messages are still delivered. Repeat the request later with the same Idempotency-Key."
    Overloaded 503 "overloaded" "The store has more to do than it can do in time."
        "Repeat the request after `Retry-After` with the same Idempotency-Key."
    Unavailable 503 "unavailable" "The store does not take anything now."
        "Repeat the request later with the same Idempotency-Key."
}

/// Seconds to wait where nothing better is known.
const RETRY_SECS: u64 = 1;
const RETRY_STORAGE_SECS: u64 = 10;

impl Code {
    pub fn name(self) -> &'static str {
        self.row().0
    }

    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().1).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// With a sentence that says more than the table's.
    pub fn because(self, message: impl Into<String>) -> ApiError {
        ApiError { message: Some(message.into()), ..self.into() }
    }

    /// About a field of the body (as a JSON pointer), a parameter or a header.
    pub fn at(self, field: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { message: Some(message.into()), field: Some(field.into()), ..self.into() }
    }

    pub fn retry_after(self, secs: u64) -> ApiError {
        ApiError { retry_after_secs: Some(secs), ..self.into() }
    }
}

/// A refusal on its way to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub code: Code,
    pub message: Option<String>,
    pub field: Option<String>,
    pub retry_after_secs: Option<u64>,
}

impl From<Code> for ApiError {
    fn from(code: Code) -> ApiError {
        ApiError { code, message: None, field: None, retry_after_secs: None }
    }
}

/// The JSON shape of every refusal.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    error: ProblemDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ProblemDetail)]
struct ProblemDetail {
    /// Stable: programs may depend on it.
    code: &'static str,
    /// For people; may change.
    message: String,
    /// Where the code is explained: a page of the server.
    docs: String,
    /// A JSON pointer into the body, or the name of a parameter or header.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// As in the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_secs: Option<u64>,
}

impl ApiError {
    pub fn problem(&self) -> Problem {
        let (code, _, sentence, _) = self.code.row();
        Problem {
            error: ProblemDetail {
                code,
                message: self.message.clone().unwrap_or_else(|| sentence.to_owned()),
                docs: format!("{}#{code}", super::errors_page::PATH),
                field: self.field.clone(),
                retry_after_secs: self.retry_after_secs,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), Json(self.problem())).into_response();
        let headers = response.headers_mut();
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"postrider\""));
        }
        if self.code == Code::WebSocketVersion {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        // For the line in the log.
        response.extensions_mut().insert(self.code);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match error {
            StoreError::StorageLow { .. } => Code::StorageLow.retry_after(RETRY_STORAGE_SECS),
            StoreError::Overloaded => Code::Overloaded.retry_after(RETRY_SECS),
            StoreError::Closed => Code::Unavailable.retry_after(RETRY_SECS),
            StoreError::Failed(why) => {
                tracing::error!(why, "the store failed a request");
                Code::Unavailable.retry_after(RETRY_SECS)
            }
            StoreError::Corrupt(why) => {
                tracing::error!(why, "a request met a damaged record");
                Code::Corrupt.into()
            }
            StoreError::Missing => {
                tracing::error!("the store has lost a record that a request needed");
                Code::Internal.into()
            }
        }
    }
}

impl From<AcceptError> for ApiError {
    fn from(error: AcceptError) -> ApiError {
        let message = error.to_string();
        match error {
            AcceptError::Invalid { field: "audience", why } => Code::InvalidAudience.at("/audience", why),
            AcceptError::Invalid { field: "Idempotency-Key", why } => {
                Code::InvalidHeader.at("Idempotency-Key", why)
            }
            AcceptError::Invalid { field, why } => Code::InvalidField.at(format!("/{field}"), why),
            AcceptError::TooLarge { .. } => Code::PayloadTooLarge.because(message),
            AcceptError::UnknownDevice(name) => {
                let sentence = format!("No device of this app has the id or alias `{name}`.");
                Code::UnknownRecipient.because(sentence)
            }
            AcceptError::IdempotencyMismatch => Code::IdempotencyMismatch.into(),
            AcceptError::InboxFull => Code::InboxFull.into(),
            AcceptError::TooManyBroadcasts => Code::TooManyBroadcasts.retry_after(60),
            AcceptError::AppFull => Code::AppFull.retry_after(60),
            AcceptError::Store(error) => error.into(),
        }
    }
}

impl From<DeviceError> for ApiError {
    fn from(error: DeviceError) -> ApiError {
        let message = error.to_string();
        match error {
            DeviceError::Invalid { field: "Idempotency-Key", why } => {
                Code::InvalidHeader.at("Idempotency-Key", why)
            }
            DeviceError::Invalid { field, why } => Code::InvalidField.at(format!("/{field}"), why),
            DeviceError::Exists => Code::DeviceExists.into(),
            DeviceError::Missing => Code::NoSuchDevice.into(),
            DeviceError::ProfileTooLarge { .. } => Code::ProfileTooLarge.because(message),
            DeviceError::NotOwnToSay { field } => Code::NotAllowed.at(format!("/{field}"), NOT_OWN_TO_SAY),
            DeviceError::IdempotencyMismatch => Code::IdempotencyMismatch.into(),
            DeviceError::TooManyOwn { .. } | DeviceError::TooMany { .. } => {
                Code::DeviceQuota.because(message)
            }
            DeviceError::Store(error) => error.into(),
        }
    }
}

const NOT_OWN_TO_SAY: &str = "Alias and tags are what the app's server says of a device: by a key with the scope `app`, or \
    by a JWT with the claims `alias` and `tags`. The setting `access.own_alias_and_tags` lets devices say them.";

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> ApiError {
        match error {
            PublishError::NotAllowed | PublishError::RetainNotAllowed => {
                Code::NotAllowed.because(error.to_string())
            }
            PublishError::RetainedFull => Code::RetainedFull.into(),
            PublishError::AppFull => Code::AppFull.retry_after(60),
            PublishError::TooManyFilters => Code::TooManyFilters.into(),
            PublishError::TooLarge => Code::PayloadTooLarge.into(),
            PublishError::IdempotencyMismatch => Code::IdempotencyMismatch.into(),
            PublishError::Store(error) => error.into(),
        }
    }
}

/// `docs/errors.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Errors of the HTTP API\n\n\
         <!-- Made from crates/postrider/src/api/error.rs. To change it: UPDATE=1 cargo test -p postrider errors_md -->\n\n\
         Every refusal has one shape: `{\"error\": {\"code\", \"message\", \"docs\", \"field\"?, \"retry_after_secs\"?}}`. The code is stable; \
         the message is for people and may change. `field` is a JSON pointer into the body, or the name of a parameter or header. \
         Where `retry_after_secs` is given, the header `Retry-After` says the same. \
         `docs` leads to this page on the server that refused (`/docs/errors`); `postrider errors CODE` explains one.\n\n\
         A request whose outcome is unknown (a time-out, a 5xx) is repeated safely with the same `Idempotency-Key`.\n\n\
         | status | code | meaning |\n| --- | --- | --- |\n",
    );
    let mut rows: Vec<_> = Code::ALL.iter().map(|code| code.row()).collect();
    rows.sort_by_key(|(_, status, _, _)| *status);
    for (code, status, sentence, _) in &rows {
        text += &format!("| {status} | [`{code}`](#{code}) | {sentence} |\n");
    }
    for (code, status, sentence, remedy) in &rows {
        text += &format!("\n## {code}\n\n**{status}.** {sentence}\n\n{remedy}\n");
    }
    text += "\n# Warnings\n\n\
         The answer to a message that was accepted, and an estimate, have `warnings` where something is odd: each with a stable `code`, a `message` \
         for people, `field` (`/audience` or `/exclude`) and, where it is about names, the `names`.\n";
    for warning in WarningCode::ALL {
        let (code, sentence, remedy) = warning.row();
        text += &format!("\n## {code}\n\n{sentence}\n\n{remedy}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_md_is_what_the_table_says() {
        crate::api::tests::same_as_checked_in("docs/errors.md", &markdown());
    }

    #[test]
    fn every_code_occurs_once_and_has_a_status_of_its_kind() {
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| c.status().is_client_error() || c.status().is_server_error()));
    }
}
