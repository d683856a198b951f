//! Tokens in place of secrets: tickets of this server, JWTs of an app's.

use super::*;
use crate::config::Config;
use crate::tokens::{Issuer, Tokens};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};
use postrider_core::session::SignInError;

pub const SECRET: &[u8] = b"a secret of the app's server, 32 bytes and more";

pub fn issuer(audience: Option<&str>) -> Issuer {
    Issuer {
        app: AppNo(0),
        algorithm: Algorithm::HS256,
        key: DecodingKey::from_secret(SECRET),
        audience: audience.map(Into::into),
    }
}

fn tokens(audience: Option<&str>) -> Tokens {
    Tokens::new(Some(issuer(audience)), &TestChance::default())
}

pub fn signed(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
}

#[tokio::test]
async fn a_jwt_signs_in_while_it_is_valid_and_its_device_is_there() {
    let world = World::new();
    world.device("d1").await;
    let now = world.api.engine.clock.now() / 1_000;
    let engine = &world.api.engine;
    let good = json!({ "sub": "d1", "iat": now, "exp": now + 600, "aud": "push" });
    let token = signed(Algorithm::HS256, SECRET, &good);
    for tokens in [tokens(None), tokens(Some("push"))] {
        assert_eq!(tokens.check(engine, &token).map(|checked| checked.client.id), Ok("d1".to_owned()));
    }
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        signed(Algorithm::HS256, SECRET, &claims)
    };
    let mut forged = token.clone().into_bytes();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
    let bad = [
        with("exp", json!(now - 61)),
        with("exp", json!(now + 2 * 86_400)),
        with("exp", json!("soon")),
        with("iat", json!(now + 61)),
        with("nbf", json!(now + 61)),
        with("nbf", json!(u64::MAX)),
        with("exp", json!(u64::MAX)),
        with("exp", json!(-1)),
        with("exp", json!(1e300)),
        with("iat", json!(u64::MAX)),
        with("sub", json!("nobody")),
        with("sub", json!(7)),
        with("aud", json!("other")),
        signed(Algorithm::HS384, SECRET, &good),
        signed(Algorithm::HS256, b"another secret of at least 32 bytes", &good),
        String::from_utf8_lossy(&forged).into_owned(),
        unsigned,
        "a.b.c".into(),
        "x".repeat(9_000),
    ];
    for token in bad {
        let outcome = tokens(Some("push")).check(engine, &token);
        assert_eq!(outcome.map(|c| c.client.id), Err(SignInError::BadCredentials), "{token}");
    }
    world.ok(204, "DELETE /v1/devices/d1", Value::Null).await;
    assert_eq!(tokens(None).check(engine, &token).map(|c| c.client.id), Err(SignInError::BadCredentials));
}

#[tokio::test]
async fn a_ticket_is_good_for_an_hour_and_for_one_life_of_the_secret() {
    let world = World::new();
    let device = world.device("d1").await;
    let (status, made) = world.call(&device, "POST /v1/devices/d1/tickets", Value::Null).await;
    assert_eq!(status, 201);
    let ticket = made["ticket"].as_str().unwrap().to_owned();
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 200);
    assert_eq!(world.call("", &format!("GET /v1/inbox?ticket={ticket}"), Value::Null).await.0, 200);
    // Somebody else's, of another server, and one that was changed.
    let other = Tokens::new(None, &OtherChance).check(&world.api.engine, &ticket);
    assert_eq!(other.map(|c| c.client.id), Err(SignInError::BadCredentials));
    let later = ticket.replacen("prt1.0.", "prt1.1.", 1);
    assert_eq!(world.call(&later, "GET /v1/inbox", Value::Null).await.0, 401);
    world.advance(3_599_999);
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 200);
    world.advance(1);
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 401);
    let (_, made) = world.call(&device, "POST /v1/devices/d1/tickets", Value::Null).await;
    let ticket = made["ticket"].as_str().unwrap().to_owned();
    world.ok(204, "DELETE /v1/devices/d1", Value::Null).await;
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 401);
    // The same name again is another device.
    world.device("d1").await;
    assert_eq!(world.call(&ticket, "GET /v1/inbox", Value::Null).await.0, 401);
}

struct OtherChance;

impl Chance for OtherChance {
    fn bits128(&self) -> u128 {
        7
    }
}

#[test]
fn the_settings_of_jwts_are_checked_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let try_it = |key_file: String, algorithm: &str, app: &str| {
        let mut config = Config::default();
        (config.jwt.key_file, config.jwt.algorithm, config.jwt.app) =
            (key_file, algorithm.into(), app.into());
        config.issuer(|id| (id == "default").then_some(AppNo(0))).map(|issuer| issuer.is_some())
    };
    let long = file("long", SECRET);
    assert_eq!(try_it(String::new(), "ES256", "default"), Ok(false));
    assert_eq!(try_it(long.clone(), "HS256", "default"), Ok(true));
    for (key, algorithm, app, word) in [
        (long.clone(), "HS256", "other", "jwt.app"),
        (long.clone(), "none", "default", "jwt.algorithm"),
        (long, "ES256", "default", "jwt.key_file"),
        (file("short", b"short\n"), "HS256", "default", "32 bytes"),
        ("/nowhere/at/all".into(), "HS256", "default", "jwt.key_file"),
    ] {
        let told = try_it(key, algorithm, app).unwrap_err();
        assert!(told.contains(word), "{told}");
    }
}
