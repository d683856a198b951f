//! Connections of proxies that say for whom they are, before the first request (the PROXY protocol).

use postrider_proto::proxy::{self, HEADER_MAX, NotAHeader, Read};
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Takes the header off the socket, and not a byte more. `None`: the proxy speaks for itself.
pub async fn source(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = [0; HEADER_MAX];
    let mut there = 0;
    loop {
        match proxy::read(&bytes[..there]) {
            Ok(Read::Header { source, .. }) => return Ok(source),
            Ok(Read::Incomplete { at_least }) => {
                let missing = bytes.get_mut(there..there + at_least);
                let missing = missing.ok_or_else(|| io::Error::other("a PROXY header is too long"))?;
                stream.read_exact(missing).await?;
                there += at_least;
            }
            Err(NotAHeader(why)) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        }
    }
}

/// Said to a proxy that does not say for whom it is.
pub fn refuse(stream: &TcpStream) {
    let sentence =
        "Connections from this address begin with a PROXY header (see the setting proxy_protocol.http).";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sentence}",
        sentence.len()
    );
    _ = stream.try_write(answer.as_bytes());
}
