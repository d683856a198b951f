//! SCRAM (RFC 5802, RFC 7677), the server's side, and channel binding (RFC 5929, RFC 9266).
//!
//! The server keeps no password: it proves the client by keys that were derived when the password was set.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScramHash {
    Sha1,
    Sha256,
}

impl ScramHash {
    fn hmac(self, key: &[u8], message: &[&[u8]]) -> Vec<u8> {
        fn mac<M: Mac + KeyInit>(key: &[u8], message: &[&[u8]]) -> Vec<u8> {
            // HMAC takes keys of any length.
            let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
            message.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            ScramHash::Sha1 => mac::<Hmac<Sha1>>(key, message),
            ScramHash::Sha256 => mac::<Hmac<Sha256>>(key, message),
        }
    }

    fn hash(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            ScramHash::Sha1 => Sha1::digest(bytes).to_vec(),
            ScramHash::Sha256 => Sha256::digest(bytes).to_vec(),
        }
    }

    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            ScramHash::Sha1 => pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password, salt, iterations).to_vec(),
            ScramHash::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
        }
    }
}

/// What a server keeps of a password, for one hash (RFC 5802 §3).
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    pub salt: Vec<u8>,
    pub iterations: u32,
    pub stored_key: Vec<u8>,
    pub server_key: Vec<u8>,
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl ScramKeys {
    /// Costs `iterations` HMACs: for the time when a password is set. RFC 7677 §4 wants at least 4,096.
    pub fn derive(hash: ScramHash, password: &str, salt: &[u8], iterations: u32) -> ScramKeys {
        let salted = hash.salted(password.as_bytes(), salt, iterations);
        let client_key = hash.hmac(&salted, &[b"Client Key"]);
        ScramKeys {
            salt: salt.to_vec(),
            iterations,
            stored_key: hash.hash(&client_key),
            server_key: hash.hmac(&salted, &[b"Server Key"]),
        }
    }

    /// For a name that there is not: the same salt each time, so that asking does not tell; no password fits.
    pub fn fake(hash: ScramHash, user: &str, secret: &[u8], iterations: u32) -> ScramKeys {
        let of = |what: &[u8]| hash.hmac(secret, &[what, user.as_bytes()]);
        let mut salt = of(b"salt");
        salt.truncate(16);
        ScramKeys { salt, iterations, stored_key: of(b"stored key"), server_key: of(b"server key") }
    }
}

/// What ties a sign-in to its TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelBinding {
    /// RFC 9266: 32 bytes of the exporter `EXPORTER-Channel-Binding`, with an empty context. None below TLS 1.3 without extended
    /// master secret.
    pub exporter: Option<[u8; 32]>,
    /// RFC 5929 §4: the hash of the server's certificate, by the hash function of its signature.
    pub server_end_point: Option<Box<[u8]>>,
}

impl ChannelBinding {
    pub(crate) fn is_there(&self) -> bool {
        self.exporter.is_some() || self.server_end_point.is_some()
    }

    /// The names of what there is (XEP-0440).
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let exporter = self.exporter.is_some().then_some("tls-exporter");
        exporter.into_iter().chain(self.server_end_point.is_some().then_some("tls-server-end-point"))
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        match name {
            "tls-exporter" => self.exporter.as_ref().map(<[u8; 32]>::as_slice),
            "tls-server-end-point" => self.server_end_point.as_deref(),
            _ => None,
        }
    }
}

/// Why an exchange ends badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScramError {
    /// Not as the grammar wants it.
    Malformed,
    /// A kind of channel binding that there is not.
    BindingType,
    /// To act as somebody else than who signs in.
    Authzid,
    /// The proof is wrong, or the channel is not the one that the client sees.
    Proof,
}

/// The server's side of one exchange, after the client's first message.
#[derive(Debug)]
pub struct Scram {
    hash: ScramHash,
    pub user: String,
    /// `client-first-message-bare`, then with the server's first message.
    transcript: String,
    nonce: String,
    /// What the client's `c=` has to be.
    binding: String,
}

impl Scram {
    /// Reads the client's first message. `is_plus`: of a mechanism with `-PLUS`. `server_nonce` is never used twice.
    pub fn begin(
        hash: ScramHash,
        is_plus: bool,
        message: &str,
        channel: &ChannelBinding,
        server_nonce: &str,
    ) -> Result<Scram, ScramError> {
        let mut parts = message.splitn(3, ',');
        let flag = parts.next().ok_or(ScramError::Malformed)?;
        let authzid = parts.next().ok_or(ScramError::Malformed)?;
        let bare = parts.next().ok_or(ScramError::Malformed)?;
        let data: &[u8] = match (flag, is_plus) {
            ("n", false) => &[],
            // The client can and thinks that we cannot: somebody took it out of our offer (RFC 5802 §6).
            ("y", false) if channel.is_there() => return Err(ScramError::Proof),
            ("y", false) => &[],
            (flag, true) => {
                let name = flag.strip_prefix("p=").ok_or(ScramError::BindingType)?;
                channel.get(name).ok_or(ScramError::BindingType)?
            }
            _ => return Err(ScramError::Malformed),
        };
        let mut attributes = bare.split(',');
        // `m=` would be an extension that we would have to know.
        let user = attributes.next().and_then(|a| a.strip_prefix("n=")).ok_or(ScramError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if nonce.is_empty() || !is_printable(nonce) {
            return Err(ScramError::Malformed);
        }
        let user = saslname(user)?;
        if !authzid.is_empty() {
            let authzid = authzid.strip_prefix("a=").ok_or(ScramError::Malformed)?;
            if !is_same_user(&saslname(authzid)?, &user) {
                return Err(ScramError::Authzid);
            }
        }
        let mut binding = format!("{flag},{authzid},").into_bytes();
        binding.extend_from_slice(data);
        Ok(Scram {
            hash,
            user,
            transcript: bare.to_owned(),
            nonce: format!("{nonce}{server_nonce}"),
            binding: STANDARD.encode(binding),
        })
    }

    /// The server's first message.
    pub fn challenge(&mut self, keys: &ScramKeys) -> String {
        let first = format!("r={},s={},i={}", self.nonce, STANDARD.encode(&keys.salt), keys.iterations);
        self.transcript.push(',');
        self.transcript.push_str(&first);
        first
    }

    /// Judges the client's last message; the answer is the server's, which proves the server.
    pub fn finish(self, keys: &ScramKeys, message: &str) -> Result<String, ScramError> {
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof = STANDARD.decode(proof).map_err(|_| ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        let signed = [self.transcript.as_bytes(), b",", without_proof.as_bytes()];
        let signature = self.hash.hmac(&keys.stored_key, &signed);
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let is_right = proof.len() == signature.len()
            && is_same(&self.hash.hash(&client_key), &keys.stored_key)
            && is_same(nonce.as_bytes(), self.nonce.as_bytes())
            && is_same(binding.as_bytes(), self.binding.as_bytes());
        if !is_right {
            return Err(ScramError::Proof);
        }
        let signature = self.hash.hmac(&keys.server_key, &signed);
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

/// An authzid may be the name alone, or the name's bare address.
pub(crate) fn is_same_user(authzid: &str, user: &str) -> bool {
    authzid == user
        || authzid.strip_prefix(user).is_some_and(|rest| rest.starts_with('@') && !rest.contains('/'))
}

/// In a time that does not depend on where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// RFC 5802 §5.1: `=2C` for a comma, `=3D` for an equals sign, and no other use of `=`.
fn saslname(text: &str) -> Result<String, ScramError> {
    let name = text.replace("=2C", ",").replace("=3D", "\0");
    let is_valid = !text.is_empty() && !text.contains('\0') && !name.contains('=');
    if is_valid { Ok(name.replace('\0', "=")) } else { Err(ScramError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(
        hash: ScramHash,
        keys: &ScramKeys,
        first: &str,
        nonce: &str,
        last: &str,
    ) -> (String, Result<String, ScramError>) {
        let mut scram =
            Scram::begin(hash, false, first, &ChannelBinding::default(), nonce).expect("well-formed");
        assert_eq!(scram.user, "user");
        let challenge = scram.challenge(keys);
        (challenge, scram.finish(keys, last))
    }

    #[test]
    fn the_exchange_of_rfc_5802_section_5() {
        let salt = STANDARD.decode("QSXCR+Q6sek8bf92").expect("base64");
        let keys = ScramKeys::derive(ScramHash::Sha1, "pencil", &salt, 4_096);
        let (challenge, done) = exchange(
            ScramHash::Sha1,
            &keys,
            "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        );
        assert_eq!(challenge, "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096");
        assert_eq!(done.as_deref(), Ok("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="));
    }

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn rfc_7677_keys() -> ScramKeys {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        ScramKeys::derive(ScramHash::Sha256, "pencil", &salt, 4_096)
    }

    #[test]
    fn the_exchange_of_rfc_7677_section_3() {
        let (challenge, done) = exchange(ScramHash::Sha256, &rfc_7677_keys(), FIRST, NONCE, LAST);
        assert_eq!(challenge, format!("r=rOprNGfwEbeRWgbNEkqO{NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        assert_eq!(done.as_deref(), Ok("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    #[test]
    fn a_proof_is_good_for_its_own_nonce_binding_and_password_only() {
        let keys = rfc_7677_keys();
        let judge = |nonce: &str, last: &str, keys: &ScramKeys| {
            exchange(ScramHash::Sha256, keys, FIRST, nonce, last).1
        };
        assert_eq!(judge("another", LAST, &keys), Err(ScramError::Proof));
        assert_eq!(judge(NONCE, &LAST.replace("biws", "eSws"), &keys), Err(ScramError::Proof));
        assert_eq!(judge(NONCE, &LAST.replace("dHzb", "dHzc"), &keys), Err(ScramError::Proof));
        let fake = ScramKeys::fake(ScramHash::Sha256, "user", b"secret", 4_096);
        assert_eq!(judge(NONCE, LAST, &fake), Err(ScramError::Proof));
        assert_eq!(fake, ScramKeys::fake(ScramHash::Sha256, "user", b"secret", 4_096));
        for bad in ["", "c=biws", "c=biws,r=x", "c=biws,r=x,p=?", ",p="] {
            assert_eq!(judge(NONCE, bad, &keys), Err(ScramError::Malformed), "{bad}");
        }
    }

    #[test]
    fn first_messages_that_are_refused() {
        let bound = ChannelBinding { exporter: Some([7; 32]), server_end_point: None };
        let begin = |is_plus, message: &str, channel: &ChannelBinding| {
            Scram::begin(ScramHash::Sha256, is_plus, message, channel, "n").map(|s| s.user)
        };
        let none = ChannelBinding::default();
        assert_eq!(begin(false, "n,,n=a=2Cb=3Dc,r=x", &none).as_deref(), Ok("a,b=c"));
        assert_eq!(begin(false, "n,a=u,n=u,r=x", &none).as_deref(), Ok("u"));
        assert_eq!(begin(false, "n,a=u@d,n=u,r=x", &none).as_deref(), Ok("u"));
        assert_eq!(begin(false, "n,a=v,n=u,r=x", &none), Err(ScramError::Authzid));
        assert_eq!(begin(false, "y,,n=u,r=x", &none).as_deref(), Ok("u"));
        assert_eq!(begin(false, "y,,n=u,r=x", &bound), Err(ScramError::Proof), "a downgrade");
        assert_eq!(begin(true, "p=tls-exporter,,n=u,r=x", &bound).as_deref(), Ok("u"));
        assert_eq!(begin(true, "p=tls-unique,,n=u,r=x", &bound), Err(ScramError::BindingType));
        assert_eq!(begin(true, "n,,n=u,r=x", &bound), Err(ScramError::BindingType));
        assert_eq!(begin(true, "p=tls-exporter,,n=u,r=x", &none), Err(ScramError::BindingType));
        for bad in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=u",
            "n,,n=,r=x",
            "n,,n=u,r=",
            "n,,m=x,n=u,r=x",
            "n,,n=a=b,r=x",
            "x,,n=u,r=x",
        ] {
            assert_eq!(begin(false, bad, &none), Err(ScramError::Malformed), "{bad}");
        }
    }
}
