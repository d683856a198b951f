//! How commands ask a running server: blocking HTTP with JSON, and refusals with all that the server says of them.

use super::Failure;
use super::screen::{Screen, Style, clean};
use crate::dial;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Which server.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The server's HTTP address.
    #[arg(
        long,
        global = true,
        env = "POSTRIDER_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Server"
    )]
    pub server: String,
    /// Trust the certificates of this PEM file instead of the machine's, for https:// and mqtts://.
    #[arg(long, global = true, env = "POSTRIDER_CAFILE", value_name = "FILE", help_heading = "Server")]
    pub cafile: Option<PathBuf>,
}

/// And who asks: an app.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    #[command(flatten)]
    pub place: Place,
    /// The app's key, as printed at the server's first start.
    #[arg(long, global = true, env = "POSTRIDER_APP_KEY", hide_env_values = true, help_heading = "Server")]
    pub key: Option<String>,
}

/// And who asks, for what concerns the whole server.
#[derive(Clone, Debug, clap::Args)]
pub struct AdminRemote {
    #[command(flatten)]
    pub place: Place,
    /// The administrator's key, as printed at the server's first start.
    #[arg(long, global = true, env = "POSTRIDER_ADMIN_KEY", hide_env_values = true, help_heading = "Server")]
    pub admin_key: Option<String>,
}

impl Remote {
    pub fn api(&self) -> Result<Api, Failure> {
        let missing = "an app's key is needed: --key KEY or POSTRIDER_APP_KEY; the server printed one at its first start";
        let key = self.key.as_deref().ok_or_else(|| Failure::Usage(missing.into()))?;
        Api::at(&self.place, key)
    }
}

impl AdminRemote {
    pub fn api(&self) -> Result<Api, Failure> {
        let missing = "the administrator's key is needed: --admin-key KEY or POSTRIDER_ADMIN_KEY";
        let key = self.admin_key.as_deref().ok_or_else(|| Failure::Usage(missing.into()))?;
        Api::at(&self.place, key)
    }
}

/// A server's HTTP API with a key. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Api {
    agent: ureq::Agent,
    base: String,
    authorization: String,
}

fn tls(cafile: Option<&Path>) -> Result<TlsConfig, String> {
    let certificates = dial::trusted(cafile)?;
    let roots = certificates.iter().map(|it| Certificate::from_der(it).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

/// What the server said when it said no.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
    pub docs: Option<String>,
    pub field: Option<String>,
    pub retry_after_secs: Option<u64>,
}

impl Refusal {
    /// Reads `{"error": {…}}`; anything else is told by its status.
    pub fn read(status: u16, body: &str) -> Refusal {
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let text = |name: &str| body["error"][name].as_str().map(|text| clean(text).into_owned());
        Refusal {
            status,
            code: text("code").unwrap_or_else(|| format!("http_{status}")),
            message: text("message").unwrap_or_else(|| format!("the server answered with status {status}")),
            docs: text("docs"),
            field: text("field"),
            retry_after_secs: body["error"]["retry_after_secs"].as_u64(),
        }
    }

    fn hint(&self) -> Option<String> {
        match (self.status, self.retry_after_secs) {
            (401, _) => {
                Some("Check --key or POSTRIDER_APP_KEY; a new key: `postrider app key add APP`.".into())
            }
            (403, _) => {
                Some("This key may not do that; `postrider app key list APP` shows what keys may.".into())
            }
            (429 | 503, Some(secs)) => Some(format!("Try again in {secs} s.")),
            (404, _) if self.code.starts_with("http_") => {
                Some("Is this a postrider server? --server wants its HTTP address.".into())
            }
            _ => None,
        }
    }

    pub fn show(&self, screen: &Screen) {
        if screen.json {
            let error = json!({
                "status": self.status, "code": self.code, "message": self.message, "docs": self.docs,
                "field": self.field, "retry_after_secs": self.retry_after_secs, "hint": self.hint(),
            });
            return screen.note(json!({ "error": error }).to_string());
        }
        let code = screen.style(Style::Bad, format!("{} ({})", self.code, self.status));
        screen.note(format!("{code} {}", self.message));
        if let Some(field) = &self.field {
            screen.note(format!("{} {field}", screen.style(Style::Dim, "at:")));
        }
        if let Some(hint) = self.hint() {
            screen.note(format!("{} {hint}", screen.style(Style::Dim, "hint:")));
        }
        if self.docs.is_some() {
            let more = format!("postrider errors {}", self.code);
            screen.note(format!("{} {more}", screen.style(Style::Dim, "more:")));
        }
    }
}

impl Api {
    fn at(place: &Place, key: &str) -> Result<Api, Failure> {
        let is_tls = place.server.starts_with("https://");
        let tls = is_tls.then(|| tls(place.cafile.as_deref())).transpose().map_err(Failure::Usage)?;
        Api::with(&place.server, key, tls)
    }

    pub fn new(server: &str, key: &str) -> Result<Api, Failure> {
        Api::with(server, key, None)
    }

    fn with(server: &str, key: &str, tls: Option<TlsConfig>) -> Result<Api, Failure> {
        if server.split_once("://").is_some_and(|(scheme, _)| !["http", "https"].contains(&scheme)) {
            return Err(Failure::Usage(format!(
                "--server {server}: an address begins with http:// or https://"
            )));
        }
        let base = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let config = ureq::Agent::config_builder()
            .tls_config(tls.unwrap_or_default())
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(60)))
            .user_agent(concat!("postrider/", env!("CARGO_PKG_VERSION")))
            // The server is named outright; a proxy of the environment is for other things.
            .proxy(None)
            .build();
        let base = base.trim_end_matches('/').to_owned();
        Ok(Api { agent: config.into(), base, authorization: format!("Bearer {key}") })
    }

    #[cfg(test)]
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// Every entry of the list `name` at `path`, page after page.
    pub fn list(&self, path: &str, by: &[(&str, Option<String>)], name: &str) -> Result<Vec<Value>, Failure> {
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.get(&format!("{path}{}", query(&[by, &[("cursor", cursor)]].concat())))?;
            entries.extend(page[name].as_array().cloned().unwrap_or_default());
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return Ok(entries);
            }
        }
    }

    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.delete(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// A PUT without a body.
    pub fn put(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.put(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.send_empty())
    }

    pub fn put_json(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.put(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.content_type("application/json").send(body.to_string()))
    }

    pub fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.patch(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.content_type("application/json").send(body.to_string()))
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.post_json(path, &body.to_string())
    }

    /// A POST of a text that is JSON.
    pub fn post_json(&self, path: &str, body: &str) -> Result<Value, Failure> {
        let (status, text) = self.post_text(path, body, &[])?;
        read(status, &text)
    }

    /// A POST of JSON as text; the status and the answer as text.
    pub fn post_text(
        &self,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Result<(u16, String), Failure> {
        let mut request = self
            .agent
            .post(self.url(path))
            .header("authorization", &self.authorization)
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.text(request.send(body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn answer(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let (status, text) = self.text(response)?;
        read(status, &text)
    }

    fn text(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<(u16, String), Failure> {
        let unreachable = |error: ureq::Error| Failure::Unreachable {
            server: self.base.clone(),
            why: error.to_string(),
            option: "--server URL",
        };
        let mut response = response.map_err(unreachable)?;
        let text = response.body_mut().read_to_string().map_err(unreachable)?;
        Ok((response.status().as_u16(), text))
    }
}

fn read(status: u16, text: &str) -> Result<Value, Failure> {
    if !(200..300).contains(&status) {
        return Err(Failure::Refused(Box::new(Refusal::read(status, text))));
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text)
        .map_err(|_| Failure::Failed("the server answered with something that is not JSON".into()))
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `?a=1&b=2` of those that have a value.
pub fn query(pairs: &[(&str, Option<String>)]) -> String {
    let set = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_deref()?))));
    let joined = set.collect::<Vec<_>>().join("&");
    if joined.is_empty() { joined } else { format!("?{joined}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_whatever_the_server_sends() {
        let full =
            r#"{"error":{"code":"no_such_device","message":"gone","docs":"/docs/errors#no_such_device"}}"#;
        let refusal = Refusal::read(404, full);
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("no_such_device", "gone"));
        let strange = Refusal::read(502, "<html>");
        assert_eq!((strange.code.as_str(), strange.docs), ("http_502", None));
    }

    #[test]
    fn names_are_safe_in_a_path() {
        assert_eq!(segment("a/b c?ü"), "a%2Fb%20c%3F%C3%BC");
        assert_eq!(query(&[("a", Some("1 2".into())), ("b", None)]), "?a=1%202");
        assert_eq!(query(&[("a", None)]), "");
    }

    /// Answers one request over TLS with an empty object.
    fn serve_one(certificate: &Path) -> u16 {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = crate::tls::server_tls(certificate, certificate).unwrap().config;
        std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), socket);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_exact(&mut byte).is_err() {
                    return;
                }
                head.push(byte[0]);
            }
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
            stream.conn.send_close_notify();
            _ = stream.flush();
        });
        port
    }

    #[test]
    fn a_server_behind_tls_is_asked_where_its_certificate_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("own.pem"), dir.path().join("other.pem"));
        crate::tls::make_self_signed(&file).unwrap();
        crate::tls::make_self_signed(&other).unwrap();
        let ask = |cafile: &Path| {
            let server = format!("https://127.0.0.1:{}", serve_one(&file));
            Api::at(&Place { server, cafile: Some(cafile.to_owned()) }, "k").unwrap().get("/v1/apps")
        };
        assert_eq!(ask(&file).unwrap(), json!({}));
        match ask(&other) {
            Err(Failure::Unreachable { why, .. }) => assert!(why.contains("certificate"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_without_a_scheme_is_http() {
        let base = |server| Api::new(server, "k").map(|api| api.base().to_owned()).ok();
        assert_eq!(base("127.0.0.1:8080/").as_deref(), Some("http://127.0.0.1:8080"));
        assert!(base("ftp://example").is_none());
    }
}
