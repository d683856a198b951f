//! One request over one connection. Everything that a receiver controls has a bound: how long it may
//! take to connect, to answer and to send its body, and how much of it is read. Redirects are not
//! followed, nothing is decompressed, bodies are dropped.

use crate::guard::{Endpoint, Host, Rules};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use postrider_core::id::UnixMillis;
use rustls_pki_types::ServerName;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Bytes of an answer's head, and of its body that are read before the connection is dropped.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ANSWER_FIELDS_MAX: usize = 100;
/// How long the body of an answer may take.
const BODY_TIME: Duration = Duration::from_secs(5);
/// A connection that rested for longer is not used again: the name is looked up anew.
const REST_MAX: Duration = Duration::from_secs(30);
/// Names that are looked up at once: each lookup takes a thread.
const LOOKUPS_MAX: usize = 64;

/// What a receiver said. Its body is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub retry_after_ms: Option<u64>,
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The URL is none that may be connected to by today's settings.
    Url,
    /// The name has no address.
    Lookup,
    /// An address of the name is not public.
    Address,
    Connect,
    Tls,
    Timeout,
    /// The connection ended before the answer, or what came is no HTTP.
    Broken,
}

impl SendError {
    pub fn words(self) -> &'static str {
        match self {
            SendError::Url => "url_refused",
            SendError::Lookup => "lookup",
            SendError::Address => "address_refused",
            SendError::Connect => "connect",
            SendError::Tls => "tls",
            SendError::Timeout => "timeout",
            SendError::Broken => "broken",
        }
    }
}

/// A signed request.
#[derive(Clone, Debug)]
pub struct Post {
    pub id: String,
    /// Seconds since 1970.
    pub timestamp: u64,
    pub signatures: String,
    pub body: Bytes,
}

/// The addresses of a name.
pub type Addresses = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
/// Looks up a name. Tests have their own.
pub type Lookup = Arc<dyn Fn(&str) -> Addresses + Send + Sync>;

/// Asks the operating system.
pub fn system_lookup() -> Lookup {
    Arc::new(|name: &str| {
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// How long a receiver may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub connect: Duration,
    /// Until the head of the answer, from when the connection is there.
    pub answer: Duration,
}

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    rules: Arc<Rules>,
    tls: TlsConnector,
    times: Times,
    lookup: Lookup,
    lookups: Arc<Semaphore>,
}

/// A connection that is kept for the next request.
pub struct Link {
    to: Endpoint,
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
    rested: Instant,
}

/// What moves a connection's bytes; ends with it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub fn new(rules: Arc<Rules>, tls: Arc<rustls::ClientConfig>, times: Times, lookup: Lookup) -> Client {
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        Client { rules, tls: TlsConnector::from(tls), times, lookup, lookups }
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The addresses of an endpoint, not checked yet.
    pub async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<IpAddr>, SendError> {
        let found = match &endpoint.host {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => {
                let _place = self.lookups.acquire().await;
                (self.lookup)(name).await.map_err(|_| SendError::Lookup)?
            }
        };
        if found.is_empty() { Err(SendError::Lookup) } else { Ok(found) }
    }

    /// Sends a request and waits for its answer. A connection that is kept in `link` is used where
    /// it still lives; afterwards there is one where the receiver lets it.
    pub async fn post(
        &self,
        link: &mut Option<Link>,
        url: &str,
        post: &Post,
        now: UnixMillis,
    ) -> Result<Answer, SendError> {
        let endpoint = Endpoint::parse(url, &self.rules).map_err(|_| SendError::Url)?;
        let kept = link.take().filter(|kept| kept.is_fit_for(&endpoint));
        if let Some(mut kept) = kept {
            match self.exchange(&mut kept, post, now).await {
                // A receiver may close a connection at any time: that is no failure.
                Err(SendError::Broken) => {}
                Ok((answer, is_reusable)) => {
                    *link = Some(kept).filter(|_| is_reusable);
                    return Ok(answer);
                }
                Err(error) => return Err(error),
            }
        }
        let connecting = timeout(self.times.connect, self.connect(endpoint));
        let mut fresh = connecting.await.map_err(|_| SendError::Timeout)??;
        let (answer, is_reusable) = self.exchange(&mut fresh, post, now).await?;
        *link = Some(fresh).filter(|_| is_reusable);
        Ok(answer)
    }

    async fn connect(&self, to: Endpoint) -> Result<Link, SendError> {
        let addresses = self.resolve(&to).await?;
        self.rules.check_all(&addresses).map_err(|_| SendError::Address)?;
        let mut socket = None;
        for address in addresses {
            if let Ok(open) = TcpStream::connect(SocketAddr::new(address, to.port)).await {
                socket = Some(open);
                break;
            }
        }
        let socket = socket.ok_or(SendError::Connect)?;
        _ = socket.set_nodelay(true);
        let (sender, driver) = if to.is_tls {
            let name = match &to.host {
                Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| SendError::Tls)?,
                Host::Ip(address) => ServerName::from(*address),
            };
            let stream = self.tls.connect(name, socket).await.map_err(|_| SendError::Tls)?;
            handshake(stream).await?
        } else {
            handshake(socket).await?
        };
        Ok(Link { to, sender, driver, rested: Instant::now() })
    }

    /// The answer, and whether the connection is good for another request.
    async fn exchange(
        &self,
        link: &mut Link,
        post: &Post,
        now: UnixMillis,
    ) -> Result<(Answer, bool), SendError> {
        let request = request(&link.to, post).map_err(|_| SendError::Url)?;
        let sending = async {
            link.sender.ready().await?;
            link.sender.send_request(request).await
        };
        let response = match timeout(self.times.answer, sending).await {
            Err(_) => return Err(SendError::Timeout),
            Ok(Err(_)) => return Err(SendError::Broken),
            Ok(Ok(response)) => response,
        };
        let answer = Answer {
            status: response.status().as_u16(),
            retry_after_ms: retry_after(response.headers().get(header::RETRY_AFTER), now),
        };
        // The status has been said: whatever becomes of the body does not change it.
        let is_drained = timeout(BODY_TIME, drain(response)).await.unwrap_or(false);
        link.rested = Instant::now();
        Ok((answer, is_drained))
    }
}

impl Link {
    fn is_fit_for(&self, endpoint: &Endpoint) -> bool {
        let is_alive = !self.sender.is_closed() && !self.driver.0.is_finished();
        is_alive
            && self.to.authority() == endpoint.authority()
            && self.to.is_tls == endpoint.is_tls
            && self.rested.elapsed() < REST_MAX
    }
}

async fn handshake<S>(stream: S) -> Result<(SendRequest<Full<Bytes>>, Driver), SendError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(ANSWER_BYTES_MAX)
        .max_headers(ANSWER_FIELDS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| SendError::Broken)?;
    let driver = tokio::spawn(async move { _ = connection.await });
    Ok((sender, Driver(driver)))
}

fn request(to: &Endpoint, post: &Post) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    Request::builder()
        .method(Method::POST)
        .uri(&to.target)
        .header(header::HOST, to.authority())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("postrider/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", &post.id)
        .header("webhook-timestamp", post.timestamp)
        .header("webhook-signature", &post.signatures)
        .body(Full::new(post.body.clone()))
}

/// Reads the rest of an answer; false where it is longer than what is read.
async fn drain(response: Response<Incoming>) -> bool {
    let mut body = response.into_body();
    let mut left = ANSWER_BYTES_MAX;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let len = frame.data_ref().map_or(0, Bytes::len);
        if len > left {
            return false;
        }
        left -= len;
    }
    true
}

/// Seconds, or a date.
fn retry_after(value: Option<&header::HeaderValue>, now: UnixMillis) -> Option<u64> {
    let text = value?.to_str().ok()?.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(|secs: u64| secs.saturating_mul(1_000));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((at.as_millis() as u64).saturating_sub(now))
}

#[cfg(test)]
mod tests;
