//! Apps and their keys, and the audit: what holders of an admin key do.

use super::auth::ByAdmin;
use super::error::{ApiError, Code};
use super::json::{Body, Input, Path, Query};
use super::{Api, Time, aside, ask, cursors, page_size};
use crate::bootstrap::FIRST_APP;
use crate::platform::new_secret;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use postrider_core::command::{Outcome, Refusal};
use postrider_core::id::AppNo;
use postrider_core::model::{KeyScope, Step, StoredKey};
use postrider_core::port::{AppView, Done, StoreError};
use postrider_core::session::secret_hash;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Keys begin with it, so that scanners find them where they should not be.
const KEY_PREFIX: &str = "prk_";
const NAME_BYTES_MAX: usize = 128;
/// Keys of an app, revoked ones included.
const KEYS_MAX: u32 = 1_000;

/// An app to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApp {
    /// 1 to 64 lower-case letters, digits, `-` or `_`; for good.
    id: String,
    name: Option<String>,
}

impl Input for NewApp {}

/// An app.
#[derive(Debug, Serialize, ToSchema)]
pub struct App {
    id: String,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    devices: u64,
    /// Messages ever accepted.
    messages: u64,
    deliveries: Deliveries,
}

/// The books of an app: `created` is always `open` plus all that ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deliveries {
    created: u64,
    open: u64,
    /// How the others ended.
    ended: BTreeMap<&'static str, u64>,
}

impl From<AppView> for App {
    fn from(view: AppView) -> App {
        let counters = view.counters;
        let ended = Step::ALL.into_iter().map(|step| (step.name(), counters.ended[step as usize]));
        App {
            id: view.id,
            name: view.name,
            created_at: Time(view.created_at),
            devices: view.devices,
            messages: counters.messages,
            deliveries: Deliveries {
                created: counters.created,
                open: counters.open(),
                ended: ended.filter(|(_, n)| *n > 0).collect(),
            },
        }
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let why = format!("At most {NAME_BYTES_MAX} bytes, without control characters.");
        return Err(Code::InvalidField.at("/name", why));
    }
    Ok(())
}

async fn outcome(order: impl FnOnce(Done)) -> Result<Outcome, ApiError> {
    let outcomes = ask(order).await??;
    outcomes.into_iter().next().ok_or_else(|| StoreError::Missing.into())
}

fn unexpected(outcome: &Outcome) -> ApiError {
    StoreError::Failed(format!("unexpected outcome {outcome:?}")).into()
}

fn app_no(api: &Api, id: &str) -> Result<AppNo, ApiError> {
    api.engine.store.app_by_id(id).ok_or_else(|| Code::NoSuchApp.into())
}

fn app_view(api: &Api, no: AppNo) -> Result<App, ApiError> {
    api.engine.store.app(no).map(App::from).ok_or_else(|| Code::NoSuchApp.into())
}

pub async fn create(
    _: ByAdmin,
    State(api): State<Api>,
    Body(new): Body<NewApp>,
) -> Result<(StatusCode, Json<App>), ApiError> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c);
    if new.id.is_empty() || new.id.len() > 64 || !new.id.bytes().all(fits) {
        return Err(Code::InvalidField.at("/id", "1 to 64 lower-case letters, digits, - or _."));
    }
    let name = new.name.unwrap_or_else(|| new.id.clone());
    check_name(&name)?;
    match outcome(|done| api.engine.create_app(new.id, name, done)).await? {
        Outcome::AppCreated(no) => Ok((StatusCode::CREATED, Json(app_view(&api, no)?))),
        Outcome::Refused(Refusal::Exists) => Err(Code::AppExists.into()),
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// A page of apps.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppPage {
    apps: Vec<App>,
    /// Give it back as `cursor` for the next page; null on the last one.
    next_cursor: Option<String>,
}

pub async fn list(
    _: ByAdmin,
    State(api): State<Api>,
    Query(query): Query<PageQuery>,
) -> Result<Json<AppPage>, ApiError> {
    let limit = page_size(&api, query.limit)?;
    let from = cursors::read_list(&api, "app-", query.cursor.as_deref())?.unwrap_or(0);
    let mut apps = api.engine.store.apps();
    apps.retain(|app| u128::from(app.no.0) >= from);
    let next_cursor = apps.get(limit).map(|next| cursors::of_list(&api, "app-", next.no.0.into()));
    apps.truncate(limit);
    Ok(Json(AppPage { apps: apps.into_iter().map(App::from).collect(), next_cursor }))
}

pub async fn show(_: ByAdmin, State(api): State<Api>, Path(id): Path<String>) -> Result<Json<App>, ApiError> {
    app_view(&api, app_no(&api, &id)?).map(Json)
}

/// What to change of an app.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AppChange {
    /// For people.
    name: String,
}

impl Input for AppChange {}

pub async fn change(
    _: ByAdmin,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(change): Body<AppChange>,
) -> Result<Json<App>, ApiError> {
    let app = app_no(&api, &id)?;
    check_name(&change.name)?;
    match outcome(|done| api.engine.rename_app(app, change.name, done)).await? {
        Outcome::Done => app_view(&api, app).map(Json),
        Outcome::Refused(Refusal::NoSuchApp) => Err(Code::NoSuchApp.into()),
        other => Err(unexpected(&other)),
    }
}

/// Its keys are dead when this is answered; connections and what it has stored follow, a part at a time.
pub async fn remove(
    _: ByAdmin,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let app = app_no(&api, &id)?;
    if app == api.default_app || id == FIRST_APP || api.tokens.app() == Some(app) {
        return Err(Code::AppInUse.into());
    }
    match ask(|done| api.engine.close_app(app, done)).await??.first() {
        Some(Outcome::Done) => {
            api.webhooks.app_closed(app);
            Ok(StatusCode::NO_CONTENT)
        }
        Some(Outcome::Refused(Refusal::NoSuchApp)) => Err(Code::NoSuchApp.into()),
        other => Err(StoreError::Failed(format!("unexpected outcome {other:?}")).into()),
    }
}

/// What a key may do within its app: everything; send and read; read; register new devices, and nothing else.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AppKeyScope {
    App,
    Send,
    Read,
    Register,
}

/// A key to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    scope: AppKeyScope,
    /// What the key is for, for people.
    #[serde(default)]
    name: String,
}

impl Input for NewKey {}

/// A key of an app.
#[derive(Debug, Serialize, ToSchema)]
pub struct Key {
    id: String,
    name: String,
    #[schema(schema_with = super::openapi::key_scope)]
    scope: KeyScope,
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Time>,
    /// The key itself: shown once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Key {
    fn of(stored: StoredKey, key: Option<String>) -> Key {
        Key {
            id: stored.id,
            name: stored.name,
            scope: stored.scope,
            created_at: Time(stored.created_at),
            revoked_at: stored.revoked_at.map(Time),
            key,
        }
    }
}

pub async fn add_key(
    _: ByAdmin,
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(new): Body<NewKey>,
) -> Result<(StatusCode, Json<Key>), ApiError> {
    let app = app_no(&api, &id)?;
    check_name(&new.name)?;
    let text = new_secret(KEY_PREFIX, &*api.engine.chance);
    let key = StoredKey {
        id: format!("key-{:016x}", api.engine.chance.bits128() as u64),
        name: new.name,
        scope: match new.scope {
            AppKeyScope::App => KeyScope::App,
            AppKeyScope::Send => KeyScope::Send,
            AppKeyScope::Read => KeyScope::Read,
            AppKeyScope::Register => KeyScope::Register,
        },
        hash: secret_hash(text.as_bytes()),
        created_at: api.engine.clock.now(),
        revoked_at: None,
    };
    match outcome(|done| api.engine.add_key(app, key.clone(), KEYS_MAX, done)).await? {
        Outcome::Done => Ok((StatusCode::CREATED, Json(Key::of(key, Some(text))))),
        Outcome::Refused(Refusal::TooManyKeys) => {
            Err(Code::InvalidField.at("/scope", format!("An app has at most {KEYS_MAX} keys.")))
        }
        other => Err(unexpected(&other)),
    }
}

/// The keys of an app.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    keys: Vec<Key>,
}

pub async fn keys(
    _: ByAdmin,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<KeyList>, ApiError> {
    let app = app_no(&api, &id)?;
    let keys = api.engine.store.keys(Some(app)).into_iter().map(|k| Key::of(k, None)).collect();
    Ok(Json(KeyList { keys }))
}

pub async fn revoke_key(
    _: ByAdmin,
    State(api): State<Api>,
    Path((id, key_id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let app = app_no(&api, &id)?;
    match outcome(|done| api.engine.revoke_key(app, key_id, done)).await? {
        Outcome::Done => Ok(StatusCode::NO_CONTENT),
        Outcome::Refused(Refusal::NoSuchKey) => Err(Code::NoSuchKey.into()),
        other => Err(unexpected(&other)),
    }
}

/// Every delivery counted anew, and compared with the books.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditReport {
    /// All gaps are 0.
    balanced: bool,
    apps: Vec<AppAudit>,
}

/// The books of one app, audited.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppAudit {
    id: String,
    created: u64,
    ended: u64,
    open: u64,
    /// 0, or something was lost or invented.
    gap: i64,
}

pub async fn audit(_: ByAdmin, State(api): State<Api>) -> Result<Json<AuditReport>, ApiError> {
    let engine = api.engine.clone();
    let audit = aside(move || engine.audit()).await?;
    let name = |no| api.engine.store.app(no).map_or(String::new(), |a| a.id);
    let apps: Vec<_> = audit
        .apps
        .into_iter()
        .map(|(no, a)| AppAudit {
            id: name(no),
            created: a.created,
            ended: a.ended,
            open: a.open,
            gap: a.gap(),
        })
        .collect();
    Ok(Json(AuditReport { balanced: apps.iter().all(|a| a.gap == 0), apps }))
}
