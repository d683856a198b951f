//! What comes in a request, read strictly: body, path, query. What is not understood is refused, never ignored.
//!
//! A body is read twice: once to see that it is JSON within the limits (depth, keys, numbers: L27), without building
//! anything; once into the type that the handler asks for. So nothing is allocated by what a document merely claims.

use super::error::{ApiError, Code};
use super::objects::Objects;
use super::turns::Turn;
use super::wording::spoken;
use super::{Api, ApiLimits};
use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_path_to_error::{Path as FieldPath, Segment};
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

const JSON: &str = "application/json";
pub const FORM: &str = "application/x-www-form-urlencoded";

/// L27.
const DEPTH_MAX: usize = 32;
const KEYS_MAX: usize = 256;

/// A type that a body is read into.
pub trait Input: DeserializeOwned + Send {
    fn bytes_max(limits: &ApiLimits) -> usize {
        limits.body_bytes_max
    }
}

/// The body of a request, as JSON.
pub struct Body<T>(pub T);

impl<T: Input> FromRequest<Api> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts, body, T::bytes_max(&api.limits), api).await?;
        parse(&bytes).map(Body)
    }
}

/// The same for a call that can do without a body.
pub struct OptionalBody<T>(pub T);

impl<T: Input + Default> FromRequest<Api> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        if hyper::body::Body::is_end_stream(request.body()) {
            return Ok(OptionalBody(T::default()));
        }
        Body::from_request(request, api).await.map(|Body(read)| OptionalBody(read))
    }
}

/// The bytes of a JSON body, checked for form only; for handlers that read it in their own way.
pub struct RawBody<T: Input>(pub Bytes, pub std::marker::PhantomData<T>);

impl<T: Input> FromRequest<Api> for RawBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts, body, T::bytes_max(&api.limits), api).await?;
        check(&bytes)?;
        Ok(RawBody(bytes, std::marker::PhantomData))
    }
}

/// Parameters in the path, decoded.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, api).await;
        path.map(|p| Path(p.0)).map_err(|error| {
            let text = error.body_text();
            Code::InvalidParameter.because(text.strip_prefix("Invalid URL: ").unwrap_or(&text))
        })
    }
}

/// Parameters in the query. Their types refuse unknown ones.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, api).await;
        query.map(|q| Query(q.0)).map_err(|error| wrong_parameter(&error.body_text()))
    }
}

/// `text`: "Failed to deserialize query string: limit: invalid digit found in string".
fn wrong_parameter(text: &str) -> ApiError {
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(text);
    let is_name = |name: &str| !name.is_empty() && !name.contains([' ', '`']);
    match text.split_once(": ").filter(|(name, _)| is_name(name)) {
        Some((name, why)) => {
            let message = spoken(why, name).message.replace("There is no field", "There is no parameter");
            Code::InvalidParameter.at(name, message)
        }
        None => Code::InvalidParameter.because(spoken(text, "").message),
    }
}

/// Reads a JSON body.
async fn read(parts: &Parts, body: HttpBody, bytes_max: usize, api: &Api) -> Result<Bytes, ApiError> {
    check_headers(&parts.headers, JSON)?;
    read_charged(parts, body, bytes_max, api).await
}

/// Reads a form, as web pages and old clients send it.
pub async fn read_form(
    parts: &Parts,
    body: HttpBody,
    bytes_max: usize,
    api: &Api,
) -> Result<Bytes, ApiError> {
    check_headers(&parts.headers, FORM)?;
    read_charged(parts, body, bytes_max, api).await
}

/// Reads a body whose bytes are taken out of the caller's allowance, once they are there: one that never comes takes none.
/// Where the request says how many there will be, and there is no room for them, it is refused before it is read.
async fn read_charged(parts: &Parts, body: HttpBody, bytes_max: usize, api: &Api) -> Result<Bytes, ApiError> {
    let declared = declared_bytes(&parts.headers);
    if declared.is_some_and(|n| n > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let payer = parts.extensions.get::<Turn>().and_then(Turn::payer);
    let kib = |bytes: u64| bytes.div_ceil(1024);
    let now = || api.engine.clock.now();
    let refused =
        |secs| ApiError { message: Some(TOO_MANY_BYTES.into()), ..Code::RateLimited.retry_after(secs) };
    if let (Some(payer), Some(declared)) = (payer, declared) {
        api.bodies.look_for(&payer, kib(declared), now()).map_err(refused)?;
    }
    let bytes = read_bytes(body, bytes_max, &api.limits).await?;
    if let Some(payer) = payer {
        api.bodies.take(payer, kib(bytes.len() as u64), now()).map_err(refused)?;
    }
    Ok(bytes)
}

const TOO_MANY_BYTES: &str = "The app's requests bring more bytes than they may.";

fn declared_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
}

fn too_large(bytes_max: usize) -> ApiError {
    Code::BodyTooLarge.because(format!("The body has more than {bytes_max} bytes."))
}

/// Whether the request says that its body is JSON. A page of another site cannot say so without asking first.
pub fn check_is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    check_headers(headers, JSON)
}

/// Reads a body within its limits of size and time (L25, L26).
async fn read_bytes(mut body: HttpBody, bytes_max: usize, limits: &ApiLimits) -> Result<Bytes, ApiError> {
    let start = Instant::now();
    let mut first: Option<Bytes> = None;
    let mut rest = Vec::new();
    loop {
        let received = first.as_ref().map_or(0, Bytes::len) + rest.len();
        let earned = Duration::from_secs((received / limits.body_bytes_per_sec_min) as u64);
        let deadline = start + (limits.body_grace + earned).min(limits.body_time_max);
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(Code::BodyTimeout.into()),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(Code::InvalidJson.because(format!("The body could not be read: {error}.")));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if received + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        // Nearly always the whole body comes in one piece: then it is not copied.
        match &first {
            None => first = Some(data),
            Some(_) => rest.extend_from_slice(&data),
        }
    }
    let first = first.unwrap_or_default();
    Ok(if rest.is_empty() { first } else { [&first[..], &rest].concat().into() })
}

fn check_headers(headers: &HeaderMap, wanted: &str) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?").trim().to_ascii_lowercase());
    if text(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Code::UnsupportedEncoding.into());
    }
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let (essence, parameters) = kind.split_once(';').unwrap_or((&kind, ""));
    let charset = parameters.split(';').filter_map(|p| p.trim().strip_prefix("charset="));
    if essence.trim() != wanted || charset.into_iter().any(|c| c.trim_matches('"') != "utf-8") {
        let is = match essence.trim() {
            "" => "The request does not say of what type its body is".to_owned(),
            _ => format!("The body is of the type {kind:.80}"),
        };
        return Err(Code::UnsupportedMediaType.because(format!("{is}: send `Content-Type: {wanted}`.")));
    }
    Ok(())
}

/// Checks the form and reads the value.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    check(bytes)?;
    read_into(bytes)
}

/// Reads a value of a document whose form was checked.
pub fn read_into<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(Objects(&mut reader))
        .map_err(|error| wrong_field(error.path(), error.inner()))
}

/// The same without a word about what is wrong, which is faster.
pub fn try_read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    T::deserialize(Objects(&mut serde_json::Deserializer::from_slice(bytes))).ok()
}

/// JSON without the blanks between its parts, and otherwise as it was written: no digit of a number is lost.
pub fn on_one_line(json: Box<RawValue>) -> Box<RawValue> {
    let text = json.get();
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let mut line = String::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let (kept, next) = match rest[0] {
            b'"' => (true, after_string(text.as_bytes(), at).min(text.len())),
            byte if is_blank(&byte) => (false, at + rest.iter().take_while(|b| is_blank(b)).count()),
            _ => (true, at + rest.iter().take_while(|b| **b != b'"' && !is_blank(b)).count()),
        };
        if kept {
            line.push_str(&text[at..next]);
        }
        at = next;
    }
    if line.len() == text.len() {
        return json;
    }
    RawValue::from_string(line).unwrap_or(json)
}

fn wrong_field(path: &FieldPath, error: &serde_json::Error) -> ApiError {
    let mut pointer = pointer(path);
    let code = match pointer.split('/').nth(1) {
        Some("audience" | "exclude") => Code::InvalidAudience,
        _ => Code::InvalidField,
    };
    let named = path.iter().rev().find_map(|segment| match segment {
        Segment::Map { key } => Some(key.as_str()),
        _ => None,
    });
    let said = error.to_string();
    // A word of a list that also has objects: `"all"` beside `{"tag": …}`.
    if let Some(Segment::Enum { variant }) = path.iter().next_back()
        && said.contains("expected unit")
    {
        return code
            .at(pointer, format!("`{variant}` stands by itself: write `\"{variant}\"`, without an object."));
    }
    let spoken = spoken(&said, named.unwrap_or_default());
    if let Some(missing) = spoken.missing {
        pointer += &format!("/{}", escape(&missing));
    }
    code.at(pointer, spoken.message)
}

/// As a JSON pointer (RFC 6901).
fn pointer(path: &FieldPath) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.clone(),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => continue,
        };
        text += "/";
        text += &escape(&part);
    }
    text
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Whether the bytes are one JSON value within the limits.
pub fn check(bytes: &[u8]) -> Result<(), ApiError> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(Code::InvalidJson.because("The body begins with a byte order mark."));
    }
    if bytes.is_empty() {
        return Err(Code::InvalidJson.because("The body is empty: send a JSON object."));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut place = Vec::new();
    let checked = Check { depth: 0, place: &mut place }.deserialize(&mut reader);
    checked.and_then(|()| reader.end()).map_err(|error| {
        let pointer: String = place.iter().map(|part| format!("/{}", escape(part))).collect();
        let at = if pointer.is_empty() { "" } else { " in " };
        Code::InvalidJson.at(pointer.clone(), format!("{error}{at}{pointer}"))
    })?;
    match long_integer(bytes) {
        Some(at) => Err(Code::InvalidJson.because(format!(
            "The integer at byte {at} does not fit into 64 bits and would lose digits; send it as a string."
        ))),
        None => Ok(()),
    }
}

/// Walks a document without building it. `place` is where it is, and stays there when it fails.
struct Check<'a> {
    depth: usize,
    place: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let mut index = 0usize;
        self.place.push(String::new());
        loop {
            if let Some(last) = self.place.last_mut() {
                *last = index.to_string();
            }
            if seq.next_element_seed(Check { depth, place: self.place })?.is_none() {
                break;
            }
            index += 1;
        }
        self.place.pop();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(de::Error::custom(format_args!("the key {key:?} comes twice")));
            }
            if keys.len() == KEYS_MAX {
                return Err(de::Error::custom(format_args!("an object has more than {KEYS_MAX} keys")));
            }
            self.place.push(key.clone());
            map.next_value_seed(Check { depth, place: self.place })?;
            self.place.pop();
            keys.insert(key);
        }
        Ok(())
    }
}

fn deeper<E: de::Error>(depth: usize) -> Result<usize, E> {
    if depth == DEPTH_MAX {
        return Err(E::custom(format_args!("more than {DEPTH_MAX} levels")));
    }
    Ok(depth + 1)
}

/// Where an integer stands that 64 bits do not hold. Parsers make a float of it, which is another number.
fn long_integer(json: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'"' => at = after_string(json, at),
            b'-' | b'0'..=b'9' => {
                let number = |b: &u8| b.is_ascii_digit() || b"+-.eE".contains(b);
                let len = json[at..].iter().position(|b| !number(b)).unwrap_or(json.len() - at);
                let text = std::str::from_utf8(&json[at..at + len]).unwrap_or_default();
                let integer = !text.contains(['.', 'e', 'E']);
                if integer && text.parse::<i64>().is_err() && text.parse::<u64>().is_err() {
                    return Some(at);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    None
}

/// The place behind a string that begins at `start`.
fn after_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < json.len() && json[at] != b'"' {
        at += if json[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    fn refused(json: &[u8]) -> ApiError {
        check(json).expect_err(&String::from_utf8_lossy(json))
    }

    #[test]
    fn what_is_not_plain_json_is_refused() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(check(deep(32).as_bytes()).is_ok());
        let digits = "1".repeat(100_000);
        let keys = (0..257).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",");
        for bad in [
            deep(33).as_str(),
            deep(10_000).as_str(),
            &digits,
            "1e999",
            "-1e999",
            "18446744073709551616",
            "-9223372036854775809",
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#""\ud800""#,
            r#""\ud800x""#,
            "\"\0\"",
            "\u{feff}{}",
            "{} {}",
            "{},",
            "",
            "nul",
            "NaN",
            "[1,]",
            "{'a':1}",
            "// x\n1",
            &format!("{{{keys}}}"),
        ] {
            assert_eq!(refused(bad.as_bytes()).code, Code::InvalidJson, "{bad:.60}");
        }
        assert_eq!(refused(b"\"\xff\"").code, Code::InvalidJson);
    }

    #[test]
    fn json_on_one_line_keeps_everything_but_blanks() {
        for (text, line) in [
            (r#"{"a":1}"#, r#"{"a":1}"#),
            (
                "{ \"a b\" : [ 1.0 ,\n\t-0,1e-400 ] ,\r\n\"c\":\" \\\" , x\" }",
                "{\"a b\":[1.0,-0,1e-400],\"c\":\" \\\" , x\"}",
            ),
            (" \"ä ö\" ", "\"ä ö\""),
            ("3.14159265358979323846", "3.14159265358979323846"),
        ] {
            let raw = RawValue::from_string(text.into()).unwrap();
            assert_eq!(on_one_line(raw).get(), line);
        }
    }

    #[test]
    fn numbers_that_keep_their_value_pass() {
        for good in [
            "18446744073709551615",
            "-9223372036854775808",
            "0.5",
            "6.02e23",
            r#"{"a":"99999999999999999999999\""}"#,
        ] {
            assert!(check(good.as_bytes()).is_ok(), "{good}");
        }
    }

    #[test]
    fn the_pointer_says_where() {
        assert_eq!(refused(br#"{"a":[1,{"b/c":{"x":1,"x":2}}]}"#).field.as_deref(), Some("/a/1/b~1c"));

        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)]
        struct Inner {
            n: u8,
        }
        #[derive(Debug, Deserialize)]
        #[allow(dead_code)]
        struct Outer {
            list: Vec<Inner>,
        }
        let error = parse::<Outer>(br#"{"list":[{"n":1},{"n":2,"m":3}]}"#).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (Code::InvalidField, Some("/list/1/m")));
        let error = parse::<Outer>(br#"{"list":[{"n":256}]}"#).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("/list/0/n"));
    }

    /// What the strict reader lets pass any reader can read, and what that writes passes again.
    fn strictly(data: &[u8]) {
        let loose = serde_json::from_slice::<serde_json::Value>(data);
        if check(data).is_ok() {
            let text = serde_json::to_vec(&loose.expect("strict is stricter")).unwrap();
            assert_eq!(check(&text), Ok(()), "{}", String::from_utf8_lossy(&text));
        }
        let _ = parse::<crate::api::messages::MessageRequest>(data);
        let _ = parse::<crate::api::devices::NewDeviceRequest>(data);
        let _ = parse::<crate::api::devices::DeviceChange>(data);
        let _ = parse::<crate::api::topics::PublishRequest>(data);
    }

    #[test]
    fn fuzz_json() {
        postrider_fuzz::run("json", strictly);
    }
}
