//! TCP and TLS as one thing that gives and takes bytes without waiting.

use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::sync::Arc;

pub enum Transport {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

pub struct Tls {
    tcp: TcpStream,
    session: rustls::ServerConnection,
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
    pub fn tls(tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> Result<Transport, rustls::Error> {
        let mut session = rustls::ServerConnection::new(config)?;
        // Ours is the bound on what waits to be written; this one would cut writes short.
        session.set_buffer_limit(None);
        Ok(Transport::Tls(Box::new(Tls { tcp, session })))
    }

    pub fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => &mut tls.tcp,
        }
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let read = match self {
            Transport::Plain(tcp) => tcp.read(buffer),
            Transport::Tls(tls) => return tls.read(buffer),
        };
        match read {
            Ok(0) => Ok(Received::Closed),
            // A read that does not fill the buffer has emptied the socket: the next byte raises a new edge.
            Ok(n) => Ok(Received::Bytes { n, more: n == buffer.len() }),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Received::Bytes { n: 0, more: true }),
            Err(e) => Err(e),
        }
    }

    /// Writes as much as the socket takes; 0 when it takes nothing now.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(tcp) => none_when_blocked(tcp.write(bytes)),
            Transport::Tls(tls) => tls.write(bytes),
        }
    }

    /// Bytes that TLS made and the socket has not taken (handshakes included).
    pub fn has_pending(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Pushes out what [`Self::has_pending`] tells of; true when nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Transport::Plain(_) => Ok(true),
            Transport::Tls(tls) => tls.flush(),
        }
    }

    /// No more will be sent; the peer may still send.
    pub fn close_sending(&mut self) {
        if let Transport::Tls(tls) = self {
            tls.session.send_close_notify();
            _ = tls.flush();
        }
        _ = self.tcp().shutdown(std::net::Shutdown::Write);
    }
}

fn none_when_blocked(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match self.session.reader().read(buffer) {
                Ok(0) => return Ok(Received::Closed),
                Ok(n) => return Ok(Received::Bytes { n, more: true }),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            match self.session.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(Received::Closed),
                Ok(_) => {
                    let processed = self.session.process_new_packets();
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What TLS has taken but the socket has not comes first, or it would grow without bound.
        if !self.flush()? {
            return Ok(0);
        }
        let n = self.session.writer().write(bytes)?;
        self.flush()?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.tcp) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}
