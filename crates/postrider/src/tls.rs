//! The certificate and key of the TLS listeners.

use crate::platform::write_private;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a listener does TLS with.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub config: Arc<rustls::ServerConfig>,
    /// The hash of the certificate that ties a sign-in to the connection (RFC 5929 §4.1); `None` where its signature has no
    /// hash of its own.
    pub end_point: Option<Box<[u8]>>,
}

/// Reads PEM files into a server's TLS settings: TLS 1.2 and 1.3, no client certificates.
pub fn server_tls(certificate: &Path, key: &Path) -> Result<ServerTls, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| format!("the certificate {} could not be read: {e}", certificate.display()))?;
    let Some(own) = chain.first() else {
        return Err(format!("{} holds no certificate", certificate.display()));
    };
    let end_point = end_point(own);
    let key_der = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| format!("the private key {} could not be read: {e}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|e| format!("certificate and key do not fit: {e}"))?;
    // Devices stay connected for days: a ticket each costs more than the rare resumption saves.
    config.send_tls13_tickets = 1;
    Ok(ServerTls { config: Arc::new(config), end_point })
}

/// Makes a certificate that nobody vouches for, with its key, unless the file is there.
pub fn make_self_signed(file: &Path) -> Result<(), String> {
    let could_not = |why: String| format!("the certificate {} could not be made: {why}", file.display());
    if file.exists() {
        return Ok(());
    }
    let made = self_signed().map_err(|why| could_not(why.to_string()))?;
    let pem = made.cert.pem() + &made.signing_key.serialize_pem();
    let written = write_private(file, &pem);
    written.map_err(|why| could_not(why.to_string()))
}

/// For this machine's own names: whoever goes to others has a certificate for them. Ten years, since nobody renews it, and
/// from a day ago, since clocks differ.
fn self_signed() -> Result<rcgen::CertifiedKey<rcgen::KeyPair>, rcgen::Error> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut wanted = rcgen::CertificateParams::new(names)?;
    wanted.distinguished_name.push(rcgen::DnType::CommonName, "postrider");
    let day = Duration::from_secs(24 * 3_600);
    let now = SystemTime::now();
    wanted.not_before = (now - day).into();
    wanted.not_after = (now + day * 3_650).into();
    let signing_key = rcgen::KeyPair::generate()?;
    let cert = wanted.self_signed(&signing_key)?;
    Ok(rcgen::CertifiedKey { cert, signing_key })
}

/// RFC 5929 §4.1: by the hash of the certificate's signature, and SHA-256 in place of MD5 and SHA-1.
fn end_point(certificate: &[u8]) -> Option<Box<[u8]>> {
    Some(match signature_algorithm(certificate)? {
        // md5, sha1, sha256 with RSA.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 4 | 5 | 11] => sha256(certificate),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12] => Sha384::digest(certificate).as_slice().into(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13] => Sha512::digest(certificate).as_slice().into(),
        // ECDSA with SHA-1, SHA-256, SHA-384, SHA-512.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 1] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 2] => {
            sha256(certificate)
        }
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 3] => Sha384::digest(certificate).as_slice().into(),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 4] => Sha512::digest(certificate).as_slice().into(),
        _ => return None,
    })
}

fn sha256(bytes: &[u8]) -> Box<[u8]> {
    Sha256::digest(bytes).as_slice().into()
}

/// `Certificate ::= SEQUENCE { tbsCertificate, SEQUENCE { algorithm OBJECT IDENTIFIER, … }, … }` (RFC 5280 §4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (body, _) = der_value(certificate, 0x30)?;
    let (_, behind) = der_value(body, 0x30)?;
    let (algorithm, _) = der_value(behind, 0x30)?;
    der_value(algorithm, 0x06).map(|(oid, _)| oid)
}

/// The value of the first element, which has that tag, and what is behind it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let (digits, rest) =
                rest.split_at_checked(usize::from(long & 0x7f)).filter(|(d, _)| d.len() <= 4)?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
    };
    rest.split_at_checked(len).filter(|_| found == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_has_an_end_point() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.pem");
        make_self_signed(&file).unwrap();
        let first = std::fs::read(&file).unwrap();
        make_self_signed(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), first);
        let tls = server_tls(&file, &file).unwrap();
        // rcgen signs with ECDSA and SHA-256.
        let der = CertificateDer::from_pem_file(&file).unwrap();
        assert_eq!(tls.end_point.as_deref(), Some(Sha256::digest(&der).as_slice()));
        for cut in 0..der.len() {
            assert!(end_point(&der[..cut]).is_none());
        }
    }
}
