//! Who calls, and what they may do.
//!
//! A handler says by the type of its first argument whom it serves ([`ByApp`], [`ByAppOrDevice`], [`ByDevice`], [`ByAdmin`]),
//! so no handler can be reached around the check, whatever its path. [`decide`] is the only place that decides.
//! The app always comes from the credentials (A30): no handler takes it from the request.

use super::error::{ApiError, Code};
use super::trail::Noted;
use super::turns::{Payer, Turn};
use super::{Api, ask};
use crate::tokens::{Proof, keep_what_is_said};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use postrider_core::delivery::request::digest;
use postrider_core::devices::Author;
use postrider_core::id::*;
use postrider_core::model::{KeyScope, Origin, ProfileChange};
use postrider_core::session::secret_hash;
use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// The address at the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Who calls, proved by credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Admin,
    /// `id` is the one that lists of keys show.
    App {
        app: AppNo,
        scope: KeyScope,
        key: KeyHash,
        id: String,
    },
    Device {
        at: DeviceRef,
        proof: Proof,
    },
}

impl Caller {
    /// The app that it is of.
    fn app(&self) -> Option<AppNo> {
        match self {
            Caller::Admin => None,
            Caller::App { app, .. } => Some(*app),
            Caller::Device { at, .. } => Some(at.app),
        }
    }
}

/// The hash of a key, which tells it from every other.
pub type KeyHash = [u8; 32];

/// Whom a handler serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Admin,
    /// A key of an app with this scope, or a wider one.
    App(KeyScope),
    /// The same, or a device for itself.
    AppOrDevice(KeyScope),
    Device,
    /// A device, also by a ticket.
    Reader,
}

/// The decision.
fn decide(caller: &Caller, needs: Needs) -> Result<(), ApiError> {
    let covers = |has: KeyScope, wanted: KeyScope| match has {
        KeyScope::App => wanted != KeyScope::Admin,
        KeyScope::Send => matches!(wanted, KeyScope::Send | KeyScope::Read),
        KeyScope::Register => wanted == KeyScope::Register,
        KeyScope::Read => wanted == KeyScope::Read,
        KeyScope::Admin => false,
    };
    let refuse = |what: &str| Err(Code::NotAllowed.because(format!("The call needs {what}.")));
    if needs != Needs::Reader && matches!(caller, Caller::Device { proof, .. } if proof.only_reads()) {
        return Err(Code::NotAllowed.because(ONLY_READS));
    }
    match (needs, caller) {
        (Needs::Admin, Caller::Admin) => Ok(()),
        (Needs::Admin, _) => refuse("an admin key"),
        (Needs::App(wanted) | Needs::AppOrDevice(wanted), Caller::App { scope, .. }) => {
            if covers(*scope, wanted) { Ok(()) } else { refuse(words(wanted)) }
        }
        (Needs::AppOrDevice(_) | Needs::Device | Needs::Reader, Caller::Device { .. }) => Ok(()),
        (Needs::App(wanted) | Needs::AppOrDevice(wanted), _) => refuse(words(wanted)),
        (Needs::Device | Needs::Reader, _) => refuse("the credentials of a device"),
    }
}

const ONLY_READS: &str =
    "A ticket reads the inbox and acknowledges, nothing else: sign in with the device's secret.";

fn words(scope: KeyScope) -> &'static str {
    match scope {
        KeyScope::App => "a key of an app with the scope `app`",
        KeyScope::Send => "a key of an app with the scope `send` or `app`",
        KeyScope::Read => "a key of an app",
        KeyScope::Register => "a key of an app with the scope `register` or `app`",
        KeyScope::Admin => "an admin key",
    }
}

/// A scope as a type.
pub trait Scope: Send {
    const SCOPE: KeyScope;
}

pub struct Reads;
pub struct Sends;
pub struct Manages;

impl Scope for Reads {
    const SCOPE: KeyScope = KeyScope::Read;
}

impl Scope for Sends {
    const SCOPE: KeyScope = KeyScope::Send;
}

impl Scope for Manages {
    const SCOPE: KeyScope = KeyScope::App;
}

/// A key of this app.
pub struct ByApp<S>(pub AppNo, pub Key<S>);

/// Which key it is.
pub struct Key<S> {
    hash: KeyHash,
    id: String,
    scope: PhantomData<S>,
}

impl<S> Key<S> {
    /// Whose idempotency keys these are: each key of an app has a namespace of its own, so that the
    /// holder of one cannot take a name that the holder of another uses.
    pub fn idempotency_owner(&self) -> u128 {
        digest(&self.hash)
    }

    /// The id that lists of keys show.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A key of an app, or one of its devices for itself.
pub struct ByAppOrDevice<S> {
    caller: Caller,
    scope: PhantomData<S>,
}

impl<S> ByAppOrDevice<S> {
    /// The device that the path names, where the caller may speak for it.
    pub fn device(&self, api: &Api, id: &str) -> Result<DeviceRef, ApiError> {
        match &self.caller {
            Caller::App { app, .. } => {
                api.engine.store.device_by_id(*app, id).ok_or_else(|| Code::NoSuchDevice.into())
            }
            // Whether another device exists is none of a device's business.
            Caller::Device { at: own, .. } if api.engine.store.device_by_id(own.app, id) == Some(*own) => {
                Ok(*own)
            }
            _ => Err(Code::NotAllowed.because("A device may speak for itself only.")),
        }
    }

    /// Who changes something of the device.
    pub fn author(&self) -> Author {
        match &self.caller {
            Caller::Device { .. } => Author::Device,
            _ => Author::AppServer,
        }
    }

    /// What the device showed, where it is one.
    pub fn proof(&self) -> Option<Proof> {
        match &self.caller {
            Caller::Device { proof, .. } => Some(*proof),
            _ => None,
        }
    }
}

/// A device, for itself.
pub struct ByDevice(pub DeviceRef);

/// A device that tells what became of what it received; also by a ticket.
pub struct ByReceiver {
    pub at: DeviceRef,
    pub proof: Proof,
}

/// A device that reads: also by a ticket in the query, for clients that cannot send headers.
pub struct ByReader {
    pub at: DeviceRef,
    pub proof: Proof,
}

/// A key that may register devices.
pub struct ByRegistrar {
    pub app: AppNo,
    pub origin: Origin,
    pub key: KeyHash,
}

/// A key of the platform.
pub struct ByAdmin;

impl<S: Scope> FromRequestParts<Api> for ByApp<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::App(S::SCOPE)).await? {
            Caller::App { app, key, id, .. } => Ok(ByApp(app, Key { hash: key, id, scope: PhantomData })),
            _ => Err(Code::NotAllowed.into()),
        }
    }
}

impl<S: Scope> FromRequestParts<Api> for ByAppOrDevice<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let caller = authorize(parts, api, Needs::AppOrDevice(S::SCOPE)).await?;
        Ok(ByAppOrDevice { caller, scope: PhantomData })
    }
}

impl FromRequestParts<Api> for ByDevice {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::Device).await? {
            Caller::Device { at, .. } => Ok(ByDevice(at)),
            _ => Err(Code::NotAllowed.into()),
        }
    }
}

impl FromRequestParts<Api> for ByReceiver {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::Reader).await? {
            Caller::Device { at, proof } => Ok(ByReceiver { at, proof }),
            _ => Err(Code::NotAllowed.into()),
        }
    }
}

impl FromRequestParts<Api> for ByReader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let ticket = query.split('&').find_map(|pair| pair.strip_prefix("ticket="));
        match ticket {
            Some(ticket) if !parts.headers.contains_key(header::AUTHORIZATION) => {
                let ticket = Credentials::Bearer(ticket.to_owned());
                match authenticate(&ticket, parts, api).await? {
                    Caller::Device { at, proof } => Ok(ByReader { at, proof }),
                    // A key in a query would be in every log.
                    _ => Err(Code::CredentialsInQuery.into()),
                }
            }
            _ => {
                let ByReceiver { at, proof } = ByReceiver::from_request_parts(parts, api).await?;
                Ok(ByReader { at, proof })
            }
        }
    }
}

impl FromRequestParts<Api> for ByRegistrar {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::App(KeyScope::Register)).await? {
            Caller::App { app, scope: KeyScope::Register, key, .. } => {
                Ok(ByRegistrar { app, origin: Origin::RegisterKey, key })
            }
            Caller::App { app, key, .. } => Ok(ByRegistrar { app, origin: Origin::AppServer, key }),
            _ => Err(Code::NotAllowed.into()),
        }
    }
}

impl FromRequestParts<Api> for ByAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        authorize(parts, api, Needs::Admin).await.map(|_| ByAdmin)
    }
}

async fn authorize(parts: &Parts, api: &Api, needs: Needs) -> Result<Caller, ApiError> {
    refuse_in_query(parts.uri.query().unwrap_or_default())?;
    let caller = authenticate(&Credentials::of(&parts.headers)?, parts, api).await?;
    decide(&caller, needs)?;
    Ok(caller)
}

/// A key of the header, with that scope or a wider one: its app.
pub async fn allow_header(parts: &Parts, api: &Api, wanted: KeyScope) -> Result<AppNo, ApiError> {
    app_of(&authorize(parts, api, Needs::App(wanted)).await?)
}

/// The same for a key that stood in a form.
pub async fn allow_bearer(key: &str, parts: &Parts, api: &Api, wanted: KeyScope) -> Result<AppNo, ApiError> {
    refuse_in_query(parts.uri.query().unwrap_or_default())?;
    let caller = authenticate(&Credentials::Bearer(key.to_owned()), parts, api).await?;
    decide(&caller, Needs::App(wanted))?;
    app_of(&caller)
}

fn app_of(caller: &Caller) -> Result<AppNo, ApiError> {
    match caller {
        Caller::App { app, .. } => Ok(*app),
        _ => Err(Code::NotAllowed.into()),
    }
}

async fn authenticate(credentials: &Credentials, parts: &Parts, api: &Api) -> Result<Caller, ApiError> {
    let checked = credentials.check(api);
    if let (Some((caller, _)), Some(noted)) = (&checked, parts.extensions.get::<Noted>()) {
        noted.note(caller);
    }
    if let (Some((caller, _)), Some(turn)) = (&checked, parts.extensions.get::<Turn>())
        && let Some(app) = caller.app()
    {
        let payer = match caller {
            Caller::App { scope, .. } => Some(Payer { app, is_public: *scope == KeyScope::Register }),
            _ => None,
        };
        turn.take(&api.turns, (app, payer), api.engine.clock.now()).await;
    }
    match checked {
        Some((caller, None)) => Ok(caller),
        Some((caller, Some(said))) => {
            charge_change(api, said.0)?;
            let kept = ask(|done| keep_what_is_said(&api.engine, said, done)).await?;
            kept.map(|()| caller).map_err(|_| refuse_credentials(parts, api))
        }
        None => Err(refuse_credentials(parts, api)),
    }
}

fn refuse_credentials(parts: &Parts, api: &Api) -> ApiError {
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |p| p.0.ip());
    // Right credentials always pass: behind a proxy all callers share one address, and nobody's mistake may lock
    // out the others. Keys have 256 bits, so what this bounds is noise, not guessing.
    match api.failures.take(network(peer), 1, api.engine.clock.now()) {
        Ok(()) => Code::BadCredentials.into(),
        Err(secs) => Code::TooManyFailures.retry_after(secs),
    }
}

/// H91.
fn refuse_in_query(query: &str) -> Result<(), ApiError> {
    let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    let secret = |name: &str| {
        let name = name.to_ascii_lowercase();
        ["access_token", "api_key", "apikey", "auth", "authorization", "key", "secret", "token"]
            .contains(&&*name)
    };
    if names.into_iter().any(secret) { Err(Code::CredentialsInQuery.into()) } else { Ok(()) }
}

/// As they came, not yet believed.
enum Credentials {
    /// A key; or, with a colon, perhaps a device's id and secret.
    Bearer(String),
    Basic {
        name: String,
        secret: String,
    },
}

impl Credentials {
    fn of(headers: &HeaderMap) -> Result<Credentials, ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(Code::MissingCredentials)?;
        let ambiguous = || ApiError::from(Code::AmbiguousCredentials);
        if values.next().is_some() {
            return Err(
                Code::AmbiguousCredentials.because("There is more than one Authorization header: send one.")
            );
        }
        let text = value.to_str().map_err(|_| ambiguous())?;
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            let why = match scheme.to_ascii_lowercase().as_str() {
                "bearer" | "basic" => "The Authorization header has nothing behind its scheme",
                _ => "The Authorization header has a key and no scheme",
            };
            return Err(
                Code::AmbiguousCredentials.because(format!("{why}: send `Authorization: Bearer KEY`."))
            );
        }
        if rest.contains([' ', ',']) {
            return Err(ambiguous());
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Credentials::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(ambiguous());
        }
        let text = BASE64_STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(ambiguous)?;
        // Device ids may contain colons, secrets do not.
        let (name, secret) = text.rsplit_once(':').ok_or_else(ambiguous)?;
        Ok(Credentials::Basic { name: name.to_owned(), secret: secret.to_owned() })
    }

    /// Unknown, revoked and wrong are all `None`. Also what a JWT says of the device that is new.
    fn check(&self, api: &Api) -> Option<(Caller, Option<(DeviceRef, ProfileChange)>)> {
        match self {
            Credentials::Basic { name, secret } => Some((device(api, name, secret)?, None)),
            Credentials::Bearer(text) => {
                let key = secret_hash(text.as_bytes());
                match api.engine.store.key(&key) {
                    Some((None, stored)) if stored.scope == KeyScope::Admin => Some((Caller::Admin, None)),
                    Some((Some(app), stored)) => {
                        Some((Caller::App { app, scope: stored.scope, key, id: stored.id }, None))
                    }
                    Some((None, _)) => None,
                    None => match text.rsplit_once(':') {
                        Some((name, secret)) => Some((device(api, name, secret)?, None)),
                        None => token(api, text),
                    },
                }
            }
        }
    }
}

fn token(api: &Api, text: &str) -> Option<(Caller, Option<(DeviceRef, ProfileChange)>)> {
    let checked = api.tokens.check(&api.engine, text).ok()?;
    let caller = Caller::Device { at: checked.device()?, proof: checked.proof };
    Some((caller, checked.news(&api.engine)))
}

/// Counts a change that a device makes of what is stored of it.
pub fn charge_change(api: &Api, at: DeviceRef) -> Result<(), ApiError> {
    let taken = api.changes.take(at, 1, api.engine.clock.now());
    taken.map_err(|secs| Code::ChangesTooOften.retry_after(secs))
}

/// Counts a device that registers itself, by the address that it comes from and the key that it uses.
pub fn charge_registration(api: &Api, peer: Option<Peer>, key: Option<KeyHash>) -> Result<(), ApiError> {
    let now = api.engine.clock.now();
    let by_address = peer.map_or(Ok(()), |Peer(peer)| api.registrations.take(network(peer.ip()), 1, now));
    let refuse = |limit: &str, secs| {
        api.metrics.refused_registration(limit);
        Code::TooManyRegistrations.retry_after(secs)
    };
    by_address.map_err(|secs| refuse("address", secs))?;
    let by_key = key.map_or(Ok(()), |key| api.key_registrations.take(key, 1, now));
    by_key.map_err(|secs| refuse("key", secs))
}

/// A device by its name, which may say the app: `app/device`. Without one it is of the default app, as in MQTT.
fn device(api: &Api, name: &str, secret: &str) -> Option<Caller> {
    let store = &api.engine.store;
    let named = name.split_once('/').and_then(|(app, id)| Some((store.app_by_id(app)?, id)));
    let (app, id) = named.unwrap_or((api.default_app, name));
    let client = api.engine.sign_in(app, id, secret.as_bytes()).ok()?;
    let at = DeviceRef { app, device: client.device? };
    Some(Caller::Device { at, proof: Proof::Secret })
}

/// What limits are counted by: an IPv4 address, or the network that one subscriber of IPv6 has (a /64).
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !0 << 64)),
        v4 => v4,
    }
}

/// Token buckets, one for each key, bounded in number.
pub struct Buckets<K> {
    burst: u64,
    /// Microseconds until one token comes back; 0: no limit.
    every_micros: u64,
    keys_max: usize,
    /// When each bucket will be full again, in microseconds. A full bucket needs no entry.
    full_at: Mutex<HashMap<K, u64>>,
}

impl<K: Hash + Eq> Buckets<K> {
    pub fn new(burst: u64, every_micros: u64, keys_max: usize) -> Buckets<K> {
        Buckets { burst, every_micros, keys_max, full_at: Mutex::default() }
    }

    /// Takes tokens, or tells after how many seconds they are there. More than a whole bucket is taken as a whole one.
    pub fn take(&self, key: K, tokens: u64, now_ms: UnixMillis) -> Result<(), u64> {
        if self.every_micros == 0 {
            return Ok(());
        }
        let now = now_ms * 1000;
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= self.keys_max && !full_at.contains_key(&key) {
            full_at.retain(|_, at| *at > now);
            if full_at.len() >= self.keys_max {
                // All are in debt: forgive them rather than grow, or search for the least guilty with each request.
                full_at.clear();
            }
        }
        let debt = full_at.get(&key).map_or(0, |at| at.saturating_sub(now));
        let debt = debt + tokens.min(self.burst) * self.every_micros;
        let over = debt.saturating_sub(self.burst * self.every_micros);
        if over > 0 {
            return Err(over.div_ceil(1_000_000));
        }
        full_at.insert(key, now + debt);
        Ok(())
    }
}

impl<K: Hash + Eq> Buckets<K> {
    /// The same, where who asks for more than there is loses what is left as well.
    pub fn take_or_empty(&self, key: K, tokens: u64, now_ms: UnixMillis) -> Result<(), u64>
    where
        K: Clone,
    {
        self.take(key.clone(), tokens, now_ms).inspect_err(|_| {
            let full_at = now_ms * 1000 + self.burst * self.every_micros;
            self.full_at.lock().unwrap_or_else(PoisonError::into_inner).insert(key, full_at);
        })
    }

    /// Whether a token is there, or after how many seconds one will be.
    pub fn look(&self, key: &K, now_ms: UnixMillis) -> Result<(), u64> {
        self.look_for(key, 1, now_ms)
    }

    /// Whether [`Self::take`] would take so many.
    pub fn look_for(&self, key: &K, tokens: u64, now_ms: UnixMillis) -> Result<(), u64> {
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let debt = full_at.map_or(0, |at| at.saturating_sub(now_ms * 1000));
        let wanted = tokens.min(self.burst) * self.every_micros;
        match (debt + wanted).saturating_sub(self.burst * self.every_micros) {
            0 => Ok(()),
            over => Err(over.div_ceil(1_000_000)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let buckets = Buckets::new(30, 60_000_000, 10);
        let t = 1_700_000_000_000;
        assert!((0..30).all(|_| buckets.take("a", 1, t).is_ok()));
        assert_eq!(buckets.take("a", 1, t), Err(60));
        assert_eq!(buckets.take("a", 1, t + 59_001), Err(1));
        assert_eq!(buckets.take("b", 1, t), Ok(()));
        assert_eq!(buckets.take("a", 1, t + 60_000), Ok(()));
        assert_eq!(buckets.take("a", 1, t + 60_000), Err(60));
    }

    #[test]
    fn a_bucket_that_is_asked_for_too_much_is_empty() {
        let buckets = Buckets::new(10, 1_000_000, 10);
        let t = 1_700_000_000_000;
        assert!(buckets.look(&"a", t).is_ok() && buckets.take_or_empty("a", 4, t).is_ok());
        assert_eq!((buckets.take_or_empty("a", 7, t), buckets.look(&"a", t)), (Err(1), Err(1)));
        assert_eq!((buckets.look(&"a", t + 999), buckets.look(&"a", t + 1_000)), (Err(1), Ok(())));
        assert!(buckets.look(&"b", t).is_ok());
    }

    #[test]
    fn buckets_stay_bounded() {
        let buckets = Buckets::new(1, 1_000_000, 10);
        for key in 0..1000 {
            assert!(buckets.take(key, 1, 1_700_000_000_000).is_ok());
        }
        assert!(buckets.full_at.lock().unwrap().len() <= 10);
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let ip = |text: &str| network(text.parse().unwrap());
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    }
}
