//! How the commands reach a server's listeners: an address, a socket, and TLS where the address asks for it.

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PORT: u16 = 1883;
const TLS_PORT: u16 = 8883;

/// Whom to trust: the certificates of a file, or those of this machine.
pub fn trusted(cafile: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = match cafile {
        Some(file) => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|why| format!("--cafile {} could not be read: {why}", file.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    match (found.is_empty(), cafile) {
        (false, _) => Ok(found),
        (true, Some(file)) => Err(format!("--cafile {} holds no certificate", file.display())),
        (true, None) => Err("this machine trusts no certificates; name some with --cafile FILE".into()),
    }
}

fn client_tls(cafile: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted(cafile)?);
    client_config(roots)
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// For connections to third parties: the certificates of this machine, and those of a file.
pub fn outbound_tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let named = |why| format!("webhooks.ca_file {}: {why}", file.display());
        let certificates =
            CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        roots.add_parsable_certificates(certificates.map_err(named)?);
    }
    if roots.is_empty() {
        tracing::warn!(
            "this machine trusts no certificates: no webhook can be sent over TLS (webhooks.ca_file)"
        );
    }
    client_config(roots)
}

/// Where MQTT is spoken: `HOST[:PORT]`, `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
#[derive(Clone, Debug)]
pub struct Address {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "mqtts://" } else { "" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}{open}{}{close}:{}", self.host, self.port)
    }
}

impl Address {
    pub fn parse(text: &str, cafile: Option<&Path>) -> Result<Address, String> {
        let (scheme, place) = text.split_once("://").unwrap_or(("mqtt", text));
        let is_tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(format!("{text} is no MQTT address: HOST:PORT, or mqtts://HOST:PORT")),
        };
        let place = place.trim_end_matches('/');
        let no_address = || format!("{text} is no address: HOST:PORT is wanted");
        // The last colon parts the port, except within the brackets of IPv6.
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| no_address())?),
            _ => (place, if is_tls { TLS_PORT } else { PORT }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(no_address());
        }
        let tls = is_tls.then(|| client_tls(cafile)).transpose()?;
        Ok(Address { host, port, tls })
    }

    /// Opens the connection; the handshake of TLS comes with the first bytes.
    pub fn connect(&self, wait: Duration) -> io::Result<Stream> {
        let unknown = || io::Error::new(ErrorKind::NotFound, "the host has no address");
        let resolved = (self.host.as_str(), self.port).to_socket_addrs()?.next().ok_or_else(unknown)?;
        let socket = TcpStream::connect_timeout(&resolved, wait)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(wait))?;
        socket.set_read_timeout(Some(wait))?;
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(socket)) };
        let invalid = |why: String| io::Error::new(ErrorKind::InvalidInput, why);
        let name = ServerName::try_from(self.host.clone()).map_err(|e| invalid(e.to_string()))?;
        let connection = ClientConnection::new(tls.clone(), name).map_err(|e| invalid(e.to_string()))?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(connection, socket))))
    }
}

/// A connection, with TLS or without.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub fn set_read_timeout(&self, wait: Duration) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.set_read_timeout(Some(wait)),
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(wait)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{make_self_signed, server_tls};
    use std::net::TcpListener;

    #[test]
    fn addresses_are_read_in_each_form() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.pem");
        make_self_signed(&file).unwrap();
        let read = |text: &str| Address::parse(text, Some(&file)).map(|address| address.to_string());
        for (text, wanted) in [
            ("127.0.0.1:1999", "127.0.0.1:1999"),
            ("push.example.org", "push.example.org:1883"),
            ("mqtt://h:1/", "h:1"),
            ("mqtts://h", "mqtts://h:8883"),
            ("mqtts://[::1]:1", "mqtts://[::1]:1"),
            ("[::1]", "[::1]:1883"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(wanted));
        }
        for text in ["", ":1883", "h:port", "http://h:1", "h:99999"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    /// One TLS connection that says its first bytes back.
    fn echo(certificate: &Path) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = server_tls(certificate, certificate).unwrap().config;
        std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let connection = rustls::ServerConnection::new(config).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            let mut bytes = [0; 5];
            if stream.read_exact(&mut bytes).is_ok() {
                stream.write_all(&bytes).unwrap();
                stream.conn.send_close_notify();
                _ = stream.flush();
            }
        });
        port
    }

    #[test]
    fn a_certificate_of_its_own_is_trusted_by_name_and_address_where_the_file_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("own.pem"), dir.path().join("other.pem"));
        make_self_signed(&file).unwrap();
        make_self_signed(&other).unwrap();
        let say_hello = |host: &str, cafile: &Path| {
            let text = format!("mqtts://{host}:{}", echo(&file));
            let mut stream =
                Address::parse(&text, Some(cafile)).unwrap().connect(Duration::from_secs(10)).unwrap();
            stream.write_all(b"hello")?;
            stream.flush()?;
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).map(|()| bytes)
        };
        for host in ["localhost", "127.0.0.1"] {
            assert_eq!(say_hello(host, &file).unwrap(), *b"hello", "{host}");
        }
        assert_eq!(say_hello("127.0.0.1", &other).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
