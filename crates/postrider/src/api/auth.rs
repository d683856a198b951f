//! Who calls, and what they may do.
//!
//! A handler says by the type of its first argument whom it serves ([`ByApp`], [`ByAppOrDevice`], [`ByDevice`], [`ByAdmin`]),
//! so no handler can be reached around the check, whatever its path. [`decide`] is the only place that decides.
//! The app always comes from the credentials (A30): no handler takes it from the request.

use super::Api;
use super::error::{ApiError, Code};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use postrider_core::id::*;
use postrider_core::model::KeyScope;
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
    App { app: AppNo, scope: KeyScope },
    Device(DeviceRef),
}

/// Whom a handler serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Admin,
    /// A key of an app with this scope, or a wider one.
    App(KeyScope),
    /// The same, or a device for itself.
    AppOrDevice(KeyScope),
    Device,
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
    match (needs, caller) {
        (Needs::Admin, Caller::Admin) => Ok(()),
        (Needs::Admin, _) => refuse("an admin key"),
        (Needs::App(wanted) | Needs::AppOrDevice(wanted), Caller::App { scope, .. }) => {
            if covers(*scope, wanted) { Ok(()) } else { refuse(words(wanted)) }
        }
        (Needs::AppOrDevice(_) | Needs::Device, Caller::Device(_)) => Ok(()),
        (Needs::App(wanted) | Needs::AppOrDevice(wanted), _) => refuse(words(wanted)),
        (Needs::Device, _) => refuse("the credentials of a device"),
    }
}

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
pub struct ByApp<S>(pub AppNo, pub PhantomData<S>);

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
            Caller::Device(own) if api.engine.store.device_by_id(own.app, id) == Some(*own) => Ok(*own),
            _ => Err(Code::NotAllowed.because("A device may speak for itself only.")),
        }
    }
}

/// A device, for itself.
pub struct ByDevice(pub DeviceRef);

/// A device that reads: also by a ticket in the query, for clients that cannot send headers.
pub struct ByReader(pub DeviceRef);

/// A key that may register devices.
pub struct ByRegistrar(pub Caller);

/// A key of the platform.
pub struct ByAdmin;

impl<S: Scope> FromRequestParts<Api> for ByApp<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::App(S::SCOPE))? {
            Caller::App { app, .. } => Ok(ByApp(app, PhantomData)),
            _ => Err(Code::NotAllowed.into()),
        }
    }
}

impl<S: Scope> FromRequestParts<Api> for ByAppOrDevice<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let caller = authorize(parts, api, Needs::AppOrDevice(S::SCOPE))?;
        Ok(ByAppOrDevice { caller, scope: PhantomData })
    }
}

impl FromRequestParts<Api> for ByDevice {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match authorize(parts, api, Needs::Device)? {
            Caller::Device(at) => Ok(ByDevice(at)),
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
                authenticate(&Credentials::Bearer(ticket.to_owned()), parts, api).and_then(|caller| {
                    match caller {
                        Caller::Device(at) => Ok(ByReader(at)),
                        // A key in a query would be in every log.
                        _ => Err(Code::CredentialsInQuery.into()),
                    }
                })
            }
            _ => ByDevice::from_request_parts(parts, api).await.map(|ByDevice(at)| ByReader(at)),
        }
    }
}

impl FromRequestParts<Api> for ByRegistrar {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        authorize(parts, api, Needs::App(KeyScope::Register)).map(ByRegistrar)
    }
}

impl FromRequestParts<Api> for ByAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        authorize(parts, api, Needs::Admin).map(|_| ByAdmin)
    }
}

fn authorize(parts: &Parts, api: &Api, needs: Needs) -> Result<Caller, ApiError> {
    refuse_in_query(parts.uri.query().unwrap_or_default())?;
    let caller = authenticate(&Credentials::of(&parts.headers)?, parts, api)?;
    decide(&caller, needs)?;
    Ok(caller)
}

/// A key of the header, with that scope or a wider one: its app.
pub fn allow_header(parts: &Parts, api: &Api, wanted: KeyScope) -> Result<AppNo, ApiError> {
    app_of(&authorize(parts, api, Needs::App(wanted))?)
}

/// The same for a key that stood in a form.
pub fn allow_bearer(key: &str, parts: &Parts, api: &Api, wanted: KeyScope) -> Result<AppNo, ApiError> {
    refuse_in_query(parts.uri.query().unwrap_or_default())?;
    let caller = authenticate(&Credentials::Bearer(key.to_owned()), parts, api)?;
    decide(&caller, Needs::App(wanted))?;
    app_of(&caller)
}

fn app_of(caller: &Caller) -> Result<AppNo, ApiError> {
    match caller {
        Caller::App { app, .. } => Ok(*app),
        _ => Err(Code::NotAllowed.into()),
    }
}

fn authenticate(credentials: &Credentials, parts: &Parts, api: &Api) -> Result<Caller, ApiError> {
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |p| p.0.ip());
    let Some(caller) = credentials.check(api) else {
        // Right credentials always pass: behind a proxy all callers share one address, and nobody's mistake may lock
        // out the others. Keys have 256 bits, so what this bounds is noise, not guessing.
        let allowed = api.failures.take(network(peer), 1, api.engine.clock.now());
        return Err(match allowed {
            Ok(()) => Code::BadCredentials.into(),
            Err(secs) => Code::TooManyFailures.retry_after(secs),
        });
    };
    Ok(caller)
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
            return Err(ambiguous());
        }
        let text = value.to_str().map_err(|_| ambiguous())?;
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() || rest.contains([' ', ',']) {
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

    /// Unknown, revoked and wrong are all `None`.
    fn check(&self, api: &Api) -> Option<Caller> {
        match self {
            Credentials::Basic { name, secret } => device(api, name, secret),
            Credentials::Bearer(key) => match api.engine.store.key(&secret_hash(key.as_bytes())) {
                Some((None, stored)) if stored.scope == KeyScope::Admin => Some(Caller::Admin),
                Some((Some(app), stored)) => Some(Caller::App { app, scope: stored.scope }),
                Some((None, _)) => None,
                None => match key.rsplit_once(':') {
                    Some((name, secret)) => device(api, name, secret),
                    None => {
                        let client = api.tokens.check(&api.engine, key).ok()?;
                        Some(Caller::Device(DeviceRef { app: client.app, device: client.device? }))
                    }
                },
            },
        }
    }
}

/// A device by its name, which may say the app: `app/device`. Without one it is of the default app, as in MQTT.
fn device(api: &Api, name: &str, secret: &str) -> Option<Caller> {
    let store = &api.engine.store;
    let named = name.split_once('/').and_then(|(app, id)| Some((store.app_by_id(app)?, id)));
    let (app, id) = named.unwrap_or((api.default_app, name));
    let client = api.engine.sign_in(app, id, secret.as_bytes()).ok()?;
    Some(Caller::Device(DeviceRef { app, device: client.device? }))
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
