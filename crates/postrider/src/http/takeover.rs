//! Sockets that leave the HTTP server, and those that come back.

use super::Server;
use super::socket::Watched;
use crate::gateway::GiveBack;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// In the extensions of an answer: there is none, the socket goes elsewhere. Of HTTP/1.1 only.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Take>>>);

pub type Take = Box<dyn FnOnce(Freed) + Send>;

impl Takeover {
    pub fn new(take: impl FnOnce(Freed) + Send + 'static) -> Takeover {
        Takeover(Arc::new(Mutex::new(Some(Box::new(take)))))
    }

    pub fn take(&self) -> Option<Take> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Who takes a socket, and what of its request is still needed then.
pub struct Taken {
    pub take: Take,
    /// The client, which is not the peer of the socket where a proxy is between.
    pub peer: SocketAddr,
    pub headers: HeaderMap,
    pub closes: bool,
}

/// A socket whose request was read, and whose answer was not begun.
pub struct Freed {
    pub stream: std::net::TcpStream,
    /// The client.
    pub peer: SocketAddr,
    pub(super) socket_peer: SocketAddr,
    /// Those that the answer would have had.
    pub headers: HeaderMap,
    /// The request asked for the connection to end with its answer.
    pub(super) closes: bool,
    pub(super) server: Arc<Server>,
}

impl Freed {
    /// How the socket comes back: the request is answered with what `answer` brings, and the connection goes on.
    pub fn split<F>(
        self,
        answer: impl FnOnce(bool) -> F + Send + 'static,
    ) -> (std::net::TcpStream, SocketAddr, GiveBack)
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let Freed { stream, peer, socket_peer, headers, closes, server } = self;
        let runtime = tokio::runtime::Handle::current();
        let give_back = move |stream, has_waited| {
            let back = Back { stream, peer: socket_peer, headers, closes };
            runtime.spawn(server.go_on(back, move || answer(has_waited)));
        };
        (stream, peer, Box::new(give_back))
    }
}

/// A socket that comes back, and what its answer needs.
pub struct Back {
    pub stream: std::net::TcpStream,
    pub peer: SocketAddr,
    pub headers: HeaderMap,
    pub closes: bool,
}

/// An answer as HTTP/1.1 has it, with the headers that it does not have itself.
pub async fn on_the_wire(answer: Response, more: &HeaderMap) -> Result<Vec<u8>, axum::Error> {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut whole = format!("HTTP/1.1 {}\r\n", parts.status).into_bytes();
    let others = more.iter().filter(|(name, _)| !parts.headers.contains_key(*name));
    for (name, value) in parts.headers.iter().chain(others).filter(|(n, _)| *n != header::CONTENT_LENGTH) {
        whole.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    whole.extend(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    whole.extend(body);
    Ok(whole)
}

/// The socket of a connection that was upgraded, with the bytes already read from it.
pub async fn upgraded(upgrade: hyper::upgrade::OnUpgrade) -> io::Result<(std::net::TcpStream, Bytes)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgrade::downcast::<TokioIo<Watched>>(upgraded)
        .map_err(|_| io::Error::other("the connection is not a plain socket"))?;
    let stream = Arc::into_inner(parts.io.into_inner().stream);
    let stream = stream.ok_or_else(|| io::Error::other("the socket is still in use"))?;
    Ok((stream.into_std()?, parts.read_buf))
}
