//! TCP and TLS as one thing that gives and takes bytes without waiting.

use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::sync::Arc;

pub struct Transport {
    tcp: TcpStream,
    tls: Option<Box<rustls::ServerConnection>>,
}

/// What a read brought.
pub enum Received {
    /// Bytes in the buffer; `more`: the socket may hold more.
    Bytes {
        n: usize,
        more: bool,
    },
    Nothing,
    Closed,
}

impl Transport {
    pub fn plain(tcp: TcpStream) -> Transport {
        Transport { tcp, tls: None }
    }

    pub fn tls(tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> Result<Transport, rustls::Error> {
        let mut transport = Transport::plain(tcp);
        transport.start_tls(config)?;
        Ok(transport)
    }

    /// From here on all bytes are TLS, the peer's handshake first. What was said in clear must have been written.
    pub fn start_tls(&mut self, config: Arc<rustls::ServerConfig>) -> Result<(), rustls::Error> {
        let mut session = rustls::ServerConnection::new(config)?;
        // Ours is the bound on what waits to be written; this one would cut writes short.
        session.set_buffer_limit(None);
        self.tls = Some(Box::new(session));
        Ok(())
    }

    /// `None` until the handshake is done; then what ties a sign-in to this connection (RFC 9266), which there is from TLS 1.3 on.
    pub fn exporter(&self) -> Option<Option<[u8; 32]>> {
        let session = self.tls.as_ref().filter(|session| !session.is_handshaking())?;
        let unique = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let export = || session.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(&[])).ok();
        Some(unique.then(export).flatten())
    }

    pub fn tcp(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    /// The socket, where nothing but TCP is on it.
    pub fn into_plain(self) -> Option<TcpStream> {
        self.tls.is_none().then_some(self.tcp)
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        if self.tls.is_some() {
            return self.read_tls(buffer);
        }
        match self.tcp.read(buffer) {
            Ok(0) => Ok(Received::Closed),
            // A read that does not fill the buffer has emptied the socket: the next byte raises a new edge.
            Ok(n) => Ok(Received::Bytes { n, more: n == buffer.len() }),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Received::Bytes { n: 0, more: true }),
            Err(e) => Err(e),
        }
    }

    fn read_tls(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let Some(session) = &mut self.tls else { return Ok(Received::Nothing) };
            match session.reader().read(buffer) {
                Ok(0) => return Ok(Received::Closed),
                Ok(n) => return Ok(Received::Bytes { n, more: true }),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            match session.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(Received::Closed),
                Ok(_) => {
                    let processed = session.process_new_packets();
                    // Handshake answers, and the alert where it failed.
                    self.flush()?;
                    processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes as much as the socket takes; 0 when it takes nothing now.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What TLS has taken but the socket has not comes first, or it would grow without bound.
        if !self.flush()? {
            return Ok(0);
        }
        let Some(session) = &mut self.tls else { return none_when_blocked(self.tcp.write(bytes)) };
        let n = session.writer().write(bytes)?;
        self.flush()?;
        Ok(n)
    }

    /// Bytes that TLS made and the socket has not taken (handshakes included).
    pub fn has_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Pushes out what [`Self::has_pending`] tells of; true when nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        let Some(session) = &mut self.tls else { return Ok(true) };
        while session.wants_write() {
            match session.write_tls(&mut self.tcp) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// No more will be sent; the peer may still send.
    pub fn close_sending(&mut self) {
        if let Some(session) = &mut self.tls {
            session.send_close_notify();
            _ = self.flush();
        }
        _ = self.tcp.shutdown(std::net::Shutdown::Write);
    }
}

fn none_when_blocked(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
