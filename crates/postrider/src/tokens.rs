//! Tokens that a device signs in with instead of its secret: tickets, which this server signs, and JWTs, which the app's own
//! server does (RFC 7519).
//!
//! A ticket names the device and its end, under a key that this process drew at its start. It is bound to the device's secret:
//! when that changes, or the device is deleted, the ticket is worth nothing.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use postrider_core::Engine;
use postrider_core::id::{AppNo, DeviceRef, UnixMillis};
use postrider_core::port::Chance;
use postrider_core::session::{Client, SignInError};
use serde::Deserialize;
use sha2::Sha256;

/// How long a ticket is good for.
const TICKET_MS: u64 = 3_600_000;
/// L39.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
const JWT_LIFE_SECS_MAX: u64 = 24 * 3_600;
const LEEWAY_SECS: u64 = 60;
const PREFIX: &str = "prt1";

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

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    iat: Option<u64>,
}

impl Tokens {
    pub fn new(jwt: Option<Issuer>, chance: &dyn Chance) -> Tokens {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&chance.bits128().to_le_bytes());
        key[16..].copy_from_slice(&chance.bits128().to_le_bytes());
        Tokens { key, jwt }
    }

    /// A ticket for the device, and when it ends. `None` for a device that has no secret, or is gone.
    pub fn ticket(&self, engine: &Engine, at: DeviceRef, device: &str) -> Option<(String, UnixMillis)> {
        let until = engine.clock.now() + TICKET_MS;
        let body = format!("{}.{}.{until}", at.app.0, BASE64.encode(device));
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
    pub fn check(&self, engine: &Engine, token: &str) -> Result<Client, SignInError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(SignInError::BadCredentials);
        }
        let named = match token.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')) {
            Some(ticket) => self.check_ticket(engine, ticket),
            None => self.jwt.as_ref().and_then(|issuer| issuer.check(engine, token)),
        };
        let (app, device) = named.ok_or(SignInError::BadCredentials)?;
        engine.sign_in_proven(app, &device)
    }

    fn check_ticket(&self, engine: &Engine, ticket: &str) -> Option<(AppNo, String)> {
        let (body, mac) = ticket.rsplit_once('.')?;
        let mut parts = body.split('.');
        let app = AppNo(parts.next()?.parse().ok()?);
        let device = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
        let until: UnixMillis = parts.next()?.parse().ok()?;
        let at = engine.store.device_by_id(app, &device)?;
        // Compares in constant time.
        self.mac(engine, at, body)?.verify_slice(&BASE64.decode(mac).ok()?).ok()?;
        (until > engine.clock.now()).then_some((app, device))
    }
}

impl Issuer {
    fn check(&self, engine: &Engine, token: &str) -> Option<(AppNo, String)> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = LEEWAY_SECS;
        // Judged below, by the server's own clock.
        validation.validate_exp = false;
        validation.set_required_spec_claims(&["sub", "exp"]);
        match &self.audience {
            Some(audience) => validation.set_audience(&[audience]),
            None => validation.validate_aud = false,
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &validation).ok()?.claims;
        let now = engine.clock.now() / 1_000;
        let begins = claims.iat.unwrap_or(now);
        let is_now = claims.exp + LEEWAY_SECS > now && begins <= now + LEEWAY_SECS;
        let is_short = claims.exp.saturating_sub(begins) <= JWT_LIFE_SECS_MAX + LEEWAY_SECS;
        (is_now && is_short).then_some((self.app, claims.sub))
    }
}
