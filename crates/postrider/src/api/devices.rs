//! Devices: register, show, change, delete, list.

use super::attributes::AttributeValue;
use super::auth::{ByAppOrDevice, ByRegistrar, Manages, Peer, Reads, charge_change, charge_registration};
use super::error::{ApiError, Code};
use super::json::{Body, Input, OptionalBody, Path, Query};
use super::{Api, Time, ask, idempotency_key, proof_keys};
use crate::platform::new_secret;
use crate::tokens::Proof;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::delivery::request::digest;
use postrider_core::devices::{Author, DeviceError, NewDevice, Registered};
use postrider_core::id::*;
use postrider_core::model::{Attribute, DeviceView, Origin, Platform, Profile, ProfileChange};
use postrider_core::port::StoreError;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Bytes of a secret before their encoding.
const SECRET_BYTES: usize = 32;

/// A device to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeviceRequest {
    /// The caller's own id: 1 to 64 letters, digits, or `. _ : @ -`. Left out, one is drawn.
    device_id: Option<String>,
    /// `other`, where nothing is said.
    #[schema(schema_with = super::openapi::platform, required = false)]
    platform: Option<Platform>,
    /// The app's name for the user; several devices may share it.
    alias: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    /// Kept and shown; audiences cannot ask for them yet.
    #[serde(default)]
    attributes: BTreeMap<String, AttributeValue>,
    /// Tokens of outside providers, by the provider's name. They are kept, but nothing uses them yet.
    #[serde(default)]
    provider_tokens: BTreeMap<String, String>,
    /// A secret that the device has drawn itself: 32 random bytes as base64url, 43 letters. The same
    /// request may then be repeated when its answer was lost.
    #[schema(min_length = 43, max_length = 43)]
    device_secret: Option<String>,
}

impl Input for NewDeviceRequest {}

/// A device was registered.
#[derive(Debug, Serialize, ToSchema)]
pub struct RegisteredDevice {
    device_id: String,
    /// Shown this once. Null where the request was a repetition and did not bring the secret: then
    /// only the first answer had it.
    device_secret: Option<String>,
    /// The request was a repetition: nothing was done.
    #[serde(skip_serializing_if = "super::is_false")]
    repeated: bool,
}

/// The secret that the caller brought, or one that is drawn here.
fn secret_of(api: &Api, brought: Option<String>) -> Result<String, ApiError> {
    let Some(secret) = brought else { return Ok(new_secret("", &*api.engine.chance)) };
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(&secret).unwrap_or_default();
    if bytes.len() != SECRET_BYTES {
        let why = "32 random bytes as base64url without padding: 43 letters.";
        return Err(Code::InvalidField.at("/device_secret", why));
    }
    Ok(secret)
}

pub async fn register(
    ByRegistrar { app, origin, key }: ByRegistrar,
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Body(request): Body<NewDeviceRequest>,
) -> Result<(StatusCode, Json<RegisteredDevice>), ApiError> {
    // Such a key may be read by everybody: with a name of its own choice, a stranger could get what is meant for another.
    if origin == Origin::RegisterKey {
        refuse_own_names(&request)?;
        charge_registration(&api, peer.map(|Extension(peer)| peer), Some(key))?;
    }
    let is_brought = request.device_secret.is_some();
    let secret = secret_of(&api, request.device_secret)?;
    let device = NewDevice {
        id: request.device_id,
        secret: secret.clone(),
        is_secret_brought: is_brought,
        proof_keys: proof_keys(&api, &secret).await?,
        profile: Profile {
            platform: request.platform.unwrap_or_default(),
            alias: request.alias,
            tags: request.tags,
            attributes: request.attributes.into_iter().map(|(k, v)| (k, v.into())).collect(),
            provider_tokens: request.provider_tokens,
        },
        origin,
        idempotency_key: idempotency_key(&headers)?,
        idempotency_owner: digest(&key),
    };
    let registered = registered(&api, app, device).await?;
    // A repeated registration may name a device that has been deleted since.
    let known = api.engine.store.device_ids(app, &[registered.at.device]).into_iter().next().flatten();
    let device_id = known.ok_or(Code::NoSuchDevice)?;
    let repeated = registered.repeated;
    let status = if repeated { StatusCode::OK } else { StatusCode::CREATED };
    let device_secret = (!repeated || is_brought).then_some(secret);
    Ok((status, Json(RegisteredDevice { device_id, device_secret, repeated })))
}

/// Registers the device, and counts those that registered themselves in vain.
pub async fn registered(api: &Api, app: AppNo, device: NewDevice) -> Result<Registered, ApiError> {
    let is_own = device.origin.is_own();
    let result = ask(|done| api.engine.register(app, device, done)).await?;
    match &result {
        Err(DeviceError::TooManyOwn { .. } | DeviceError::TooMany { .. }) if is_own => {
            api.metrics.refused_registration("quota");
        }
        Err(DeviceError::ProfileTooLarge { .. }) if is_own => api.metrics.refused_registration("profile"),
        _ => {}
    }
    result.map_err(ApiError::from)
}

fn refuse_own_names(request: &NewDeviceRequest) -> Result<(), ApiError> {
    let given = [
        ("device_id", request.device_id.is_some()),
        ("alias", request.alias.is_some()),
        ("tags", !request.tags.is_empty()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((field, _)) => {
            let sentence = "With a key of the scope `register` a device gets no `device_id`, `alias` or `tags` of its own choice.";
            Err(Code::NotAllowed.at(format!("/{field}"), sentence))
        }
        None => Ok(()),
    }
}

/// A device.
#[derive(Debug, Serialize, ToSchema)]
pub struct Device {
    device_id: String,
    #[schema(schema_with = super::openapi::platform)]
    platform: Platform,
    alias: Option<String>,
    tags: Vec<String>,
    attributes: BTreeMap<String, AttributeValue>,
    /// Providers that the device has given tokens of.
    providers: Vec<String>,
    /// Connected without a registration, as a listener may allow.
    anonymous: bool,
    /// Who registered it: `app_server`, or the device itself with a `register_key`, as a visitor of the
    /// `demo` page, or by `xmpp`. Null where that is not known.
    #[schema(example = "app_server")]
    registered_by: Option<&'static str>,
    /// It has a connection now.
    connected: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_seen_at: Option<Time>,
    subscriptions: Vec<Subscription>,
    /// Undelivered messages.
    inbox_len: usize,
    session: Option<Session>,
}

/// A subscription to a topic filter.
#[derive(Debug, Serialize, ToSchema)]
pub struct Subscription {
    filter: String,
    /// The group of a shared subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<String>,
    qos: u8,
}

/// What outlives the device's connection.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    expiry_secs: u32,
    /// When the last connection ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    left_at: Option<Time>,
}

impl Device {
    pub(super) fn of(api: &Api, view: DeviceView) -> Device {
        let profile = view.profile;
        let subscriptions = view.subscriptions.into_iter().map(|s| Subscription {
            filter: s.filter,
            share: s.share,
            qos: s.qos,
        });
        Device {
            connected: api.engine.is_connected(view.at),
            device_id: view.id,
            platform: profile.platform,
            alias: profile.alias,
            tags: profile.tags,
            attributes: profile.attributes.into_iter().map(|(k, v)| (k, v.into())).collect(),
            providers: profile.provider_tokens.into_keys().collect(),
            anonymous: view.anonymous,
            registered_by: view.origin.map(Origin::name),
            created_at: Time(view.created_at),
            last_seen_at: view.last_seen_at.map(Time),
            subscriptions: subscriptions.collect(),
            inbox_len: view.inbox_len,
            session: view
                .session
                .map(|s| Session { expiry_secs: s.expiry_secs, left_at: s.left_at.map(Time) }),
        }
    }
}

fn shown(api: &Api, at: DeviceRef) -> Result<Json<Device>, ApiError> {
    let view = api.engine.store.device(at).ok_or(Code::NoSuchDevice)?;
    Ok(Json(Device::of(api, view)))
}

pub async fn show(
    caller: ByAppOrDevice<Reads>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Device>, ApiError> {
    shown(&api, caller.device(&api, &id)?)
}

/// What to change; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceChange {
    #[schema(schema_with = super::openapi::platform, required = false)]
    platform: Option<Platform>,
    /// Null takes it away.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    alias: Option<Option<String>>,
    /// All tags anew.
    tags: Option<Vec<String>>,
    add_tags: Vec<String>,
    remove_tags: Vec<String>,
    /// Merged with the old ones; null takes one away.
    #[schema(value_type = Object)]
    attributes: BTreeMap<String, Option<AttributeValue>>,
    /// Merged with the old ones; null takes one away.
    #[schema(value_type = Object)]
    provider_tokens: BTreeMap<String, Option<String>>,
    /// Recalls what waits for the device in the same moment: for a change of user.
    drop_pending: bool,
}

impl Input for DeviceChange {}

/// Tells a null from a field that is not there.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Changes the device that the path names, as the caller.
async fn apply(
    api: &Api,
    caller: &ByAppOrDevice<Manages>,
    id: &str,
    change: ProfileChange,
    drop_pending: bool,
) -> Result<DeviceRef, ApiError> {
    let at = caller.device(api, id)?;
    if caller.author() == Author::Device {
        charge_change(api, at)?;
    }
    let author = caller.author();
    ask(|done| api.engine.change_and_clear(at, change, author, drop_pending, done)).await??;
    Ok(at)
}

pub async fn change(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(change): Body<DeviceChange>,
) -> Result<Json<Device>, ApiError> {
    let drop_pending = change.drop_pending;
    let change = ProfileChange {
        platform: change.platform,
        alias: change.alias,
        tags: change.tags,
        add_tags: change.add_tags,
        remove_tags: change.remove_tags,
        attributes: change.attributes.into_iter().map(|(k, v)| (k, v.map(Attribute::from))).collect(),
        provider_tokens: change.provider_tokens,
    };
    let at = apply(&api, &caller, &id, change, drop_pending).await?;
    shown(&api, at)
}

pub async fn remove(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let at = caller.device(&api, &id)?;
    match ask(|done| api.engine.delete_device(at, done)).await??.last() {
        // Behind the command that may hand its shared messages on.
        Some(Outcome::Done | Outcome::HandedOn(_)) => Ok(StatusCode::NO_CONTENT),
        Some(Outcome::Refused(Refusal::NoSuchDevice)) => Err(Code::NoSuchDevice.into()),
        other => Err(StoreError::Failed(format!("unexpected outcome {other:?}")).into()),
    }
}

/// A new secret for a device.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecretChange {
    /// Drawn by the device itself: 32 random bytes as base64url, 43 letters. Left out, the server
    /// draws one.
    #[schema(min_length = 43, max_length = 43)]
    device_secret: Option<String>,
}

impl Input for SecretChange {}

/// The secret was changed: the old one, and all tickets made with it, are worth nothing.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangedSecret {
    device_id: String,
    /// Shown this once.
    device_secret: String,
}

/// `POST /v1/devices/{id}/secret`.
pub async fn change_secret(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    OptionalBody(request): OptionalBody<SecretChange>,
) -> Result<Json<ChangedSecret>, ApiError> {
    let at = caller.device(&api, &id)?;
    if matches!(caller.proof(), Some(proof) if proof != Proof::Secret) {
        let sentence =
            "A new secret is given to the app's server, or to who shows the old one; a token is not enough.";
        return Err(Code::NotAllowed.because(sentence));
    }
    if caller.author() == Author::Device {
        charge_change(&api, at)?;
    }
    let secret = secret_of(&api, request.device_secret)?;
    let keys = proof_keys(&api, &secret).await?;
    ask(|done| api.engine.replace_secret(at, &secret, keys, done)).await??;
    Ok(Json(ChangedSecret { device_id: id, device_secret: secret }))
}

pub async fn add_tag(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    apply(&api, &caller, &id, ProfileChange { add_tags: vec![tag], ..ProfileChange::default() }, false)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove_tag(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path((id, tag)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    apply(&api, &caller, &id, ProfileChange { remove_tags: vec![tag], ..ProfileChange::default() }, false)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The app's name for the user of a device.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasRequest {
    alias: String,
    /// Recalls what waits for the device in the same moment: it was for the user before.
    #[serde(default)]
    drop_pending: bool,
}

impl Input for AliasRequest {}

pub async fn set_alias(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(request): Body<AliasRequest>,
) -> Result<StatusCode, ApiError> {
    let change = ProfileChange { alias: Some(Some(request.alias)), ..ProfileChange::default() };
    apply(&api, &caller, &id, change, request.drop_pending).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AliasQuery {
    drop_pending: bool,
}

pub async fn remove_alias(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<AliasQuery>,
) -> Result<StatusCode, ApiError> {
    let change = ProfileChange { alias: Some(None), ..ProfileChange::default() };
    apply(&api, &caller, &id, change, query.drop_pending).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What waited for a device was recalled.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClearedInbox {
    /// Deliveries that were still open and are not made any more.
    cancelled: u64,
}

/// `DELETE /v1/devices/{id}/inbox`: its user signed out.
pub async fn clear_inbox(
    caller: ByAppOrDevice<Manages>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<ClearedInbox>, ApiError> {
    let at = caller.device(&api, &id)?;
    match ask(|done| api.engine.clear_inbox(at, done)).await??.first() {
        Some(Outcome::Cancelled { open }) => Ok(Json(ClearedInbox { cancelled: *open })),
        Some(Outcome::Refused(Refusal::NoSuchDevice)) => Err(Code::NoSuchDevice.into()),
        other => Err(StoreError::Failed(format!("unexpected outcome {other:?}")).into()),
    }
}
