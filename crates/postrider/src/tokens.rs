//! Tokens that a device signs in with instead of its secret: tickets and resume tokens, which this
//! server signs, and JWTs, which the app's own server does (RFC 7519).
//!
//! A ticket names the device and its end, under a key that this process drew at its start. It is
//! bound to the device's secret: when that changes, or the device is deleted, the ticket is worth
//! nothing. A token that is made for the bearer of another token never ends after that one.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use postrider_core::Engine;
use postrider_core::devices::{Author, DeviceError};
use postrider_core::id::{AppNo, DeviceRef, UnixMillis};
use postrider_core::model::ProfileChange;
use postrider_core::port::Chance;
use postrider_core::session::{Client, SignInError};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sha2::Sha256;

/// How long a ticket is good for.
const TICKET_MS: u64 = 3_600_000;
/// L39.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
const JWT_LIFE_SECS_MAX: u64 = 24 * 3_600;
const LEEWAY_SECS: u64 = 60;
const PREFIX: &str = "prt1";
const TICKET: &str = "t";
const RESUME: &str = "r";

/// An app and the id of its device.
type Named = (AppNo, String);

/// Whom the server believes.
pub struct Tokens {
    key: [u8; 32],
    jwt: Option<Issuer>,
}

/// An app's server that signs JWTs for its devices.
pub struct Issuer {
    pub app: AppNo,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
    /// What `aud` has to be, where the operator wants one.
    pub audience: Option<String>,
}

/// What a device showed to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its secret: it may do all that a device may do for itself.
    Secret,
    /// A JWT of the app's server: the same, except for changing the secret.
    Jwt { ends_at: UnixMillis },
    /// A resume token: on a WebSocket as the connection that got it, elsewhere like a ticket.
    Resume { ends_at: UnixMillis },
    /// A ticket: reads the inbox and acknowledges, nothing else.
    Ticket { ends_at: UnixMillis },
}

impl Proof {
    /// Whether it only reads the inbox and acknowledges, shown in a request.
    pub fn only_reads(self) -> bool {
        matches!(self, Proof::Ticket { .. } | Proof::Resume { .. })
    }

    /// When it is worth nothing any more, and with it all that was made of it.
    fn ends_at(self) -> UnixMillis {
        match self {
            Proof::Secret => UnixMillis::MAX,
            Proof::Jwt { ends_at } | Proof::Resume { ends_at } | Proof::Ticket { ends_at } => ends_at,
        }
    }
}

/// A token that was checked.
#[derive(Debug)]
pub struct Checked {
    pub client: Client,
    pub proof: Proof,
    /// What the app's server says of the device in a JWT.
    pub said: Option<ProfileChange>,
}

impl Checked {
    pub fn device(&self) -> Option<DeviceRef> {
        Some(DeviceRef { app: self.client.app, device: self.client.device? })
    }

    /// The change of the device's profile that the token asks for, where there is anything to do.
    pub fn news(&self, engine: &Engine) -> Option<(DeviceRef, ProfileChange)> {
        let (at, said) = (self.device()?, self.said.as_ref()?);
        let profile = engine.store.device(at)?.profile;
        let is_new = said.alias.as_ref().is_some_and(|alias| *alias != profile.alias)
            || said.tags.as_ref().is_some_and(|tags| {
                !tags.iter().all(|t| profile.tags.contains(t))
                    || !profile.tags.iter().all(|t| tags.contains(t))
            });
        is_new.then(|| (at, said.clone()))
    }
}

/// Stores what the app's server says of the device in its JWT; `done` gets whether the device may
/// go on. A store that takes nothing now does not keep a device from its inbox: it says so again
/// when it signs in the next time.
pub fn keep_what_is_said(
    engine: &Engine,
    (at, change): (DeviceRef, ProfileChange),
    done: impl FnOnce(Result<(), SignInError>) + Send + 'static,
) {
    let told = |changed: Result<(), DeviceError>| match changed {
        Ok(()) | Err(DeviceError::Store(_)) => Ok(()),
        Err(error) => {
            tracing::info!(%error, "a JWT says what cannot be said of a device");
            Err(SignInError::BadCredentials)
        }
    };
    engine.change_device(at, change, Author::AppServer, Box::new(move |changed| done(told(changed))));
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: NumericDate,
    iat: Option<NumericDate>,
    nbf: Option<NumericDate>,
    /// Null takes the alias away.
    #[serde(default, deserialize_with = "present")]
    alias: Option<Option<String>>,
    /// All tags anew.
    tags: Option<Vec<String>>,
}

/// Tells a null from a claim that is not there.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Seconds since 1970, perhaps with a fraction (RFC 7519 §2), which does not count here.
#[derive(Clone, Copy)]
struct NumericDate(u64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NumericDate, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let whole = number.as_u64().or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64));
        whole.map(NumericDate).ok_or_else(|| D::Error::custom("not a date"))
    }
}

impl Tokens {
    pub fn new(jwt: Option<Issuer>, chance: &dyn Chance) -> Tokens {
        Tokens { key: chance.bytes(), jwt }
    }

    /// The app whose server signs JWTs.
    pub fn app(&self) -> Option<AppNo> {
        self.jwt.as_ref().map(|jwt| jwt.app)
    }

    /// A ticket for the device, and when it ends. `None` for a device that has no secret, or is gone.
    pub fn ticket(
        &self,
        engine: &Engine,
        at: DeviceRef,
        device: &str,
        proof: Proof,
    ) -> Option<(String, UnixMillis)> {
        self.sign(engine, (at, device), TICKET, proof)
    }

    /// What a WebSocket is told to sign in with when it comes back. Whoever came with a ticket gets
    /// no more than that.
    pub fn resume_token(
        &self,
        engine: &Engine,
        at: DeviceRef,
        device: &str,
        proof: Proof,
    ) -> Option<(String, UnixMillis)> {
        let kind = if matches!(proof, Proof::Ticket { .. }) { TICKET } else { RESUME };
        self.sign(engine, (at, device), kind, proof)
    }

    fn sign(
        &self,
        engine: &Engine,
        (at, device): (DeviceRef, &str),
        kind: &str,
        proof: Proof,
    ) -> Option<(String, UnixMillis)> {
        let until = (engine.clock.now() + TICKET_MS).min(proof.ends_at());
        let body = format!("{}.{}.{until}.{kind}", at.app.0, BASE64.encode(device));
        let mac = self.mac(engine, at, &body)?.finalize().into_bytes();
        Some((format!("{PREFIX}.{body}.{}", BASE64.encode(mac)), until))
    }

    fn mac(&self, engine: &Engine, at: DeviceRef, body: &str) -> Option<Hmac<Sha256>> {
        let secret_hash = engine.store.sign_in(at)?.secret_hash?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(body.as_bytes());
        mac.update(&secret_hash);
        Some(mac)
    }

    /// Whose token it is. Unknown, old, forged and withdrawn ones are all the same.
    pub fn check(&self, engine: &Engine, token: &str) -> Result<Checked, SignInError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(SignInError::BadCredentials);
        }
        let checked = match token.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')) {
            Some(ticket) => self.check_ticket(engine, ticket).map(|(named, proof)| (named, proof, None)),
            None => self.jwt.as_ref().and_then(|issuer| issuer.check(engine, token)),
        };
        let ((app, device), proof, said) = checked.ok_or(SignInError::BadCredentials)?;
        let client = engine.sign_in_proven(app, &device)?;
        Ok(Checked { client, proof, said })
    }

    fn check_ticket(&self, engine: &Engine, ticket: &str) -> Option<(Named, Proof)> {
        let (body, mac) = ticket.rsplit_once('.')?;
        let mut parts = body.split('.');
        let app = AppNo(parts.next()?.parse().ok()?);
        let device = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        let ends_at: UnixMillis = parts.next()?.parse().ok()?;
        let proof = match parts.next()? {
            TICKET => Proof::Ticket { ends_at },
            RESUME => Proof::Resume { ends_at },
            _ => return None,
        };
        let at = engine.store.device_by_id(app, &device)?;
        // Compares in constant time.
        self.mac(engine, at, body)?.verify_slice(&BASE64.decode(mac).ok()?).ok()?;
        (ends_at > engine.clock.now()).then_some(((app, device), proof))
    }
}

impl Issuer {
    fn check(&self, engine: &Engine, token: &str) -> Option<(Named, Proof, Option<ProfileChange>)> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = LEEWAY_SECS;
        // The times are judged below, by the server's own clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.set_required_spec_claims(&["sub", "exp"]);
        match &self.audience {
            Some(audience) => validation.set_audience(&[audience]),
            None => validation.validate_aud = false,
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &validation).ok()?.claims;
        let now = engine.clock.now() / 1_000;
        let NumericDate(exp) = claims.exp;
        let begins = claims.iat.map_or(now, |at| at.0);
        let not_before = claims.nbf.map_or(0, |at| at.0).max(begins);
        let is_now = exp.saturating_add(LEEWAY_SECS) > now && not_before <= now + LEEWAY_SECS;
        let is_short = exp.saturating_sub(begins) <= JWT_LIFE_SECS_MAX + LEEWAY_SECS;
        let proof = Proof::Jwt { ends_at: exp.saturating_mul(1_000) };
        let says_something = claims.alias.is_some() || claims.tags.is_some();
        let said = says_something.then(|| ProfileChange {
            alias: claims.alias,
            tags: claims.tags,
            ..ProfileChange::default()
        });
        (is_now && is_short).then_some(((self.app, claims.sub), proof, said))
    }
}
