//! Which URLs and addresses may be connected to: what an app names must not lead into the network
//! of the server (SSRF).
//!
//! A URL is read strictly: whatever two programs could read in two ways is refused. Names are looked
//! up once, all addresses are checked, and the connection is made to a checked one, so that a name
//! cannot point elsewhere between check and connection (DNS rebinding).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Bytes of a URL, at most.
pub const URL_BYTES_MAX: usize = 2_048;
const NAME_BYTES_MAX: usize = 253;

/// What the operator allows.
#[derive(Clone)]
pub struct Rules {
    pub allow_http: bool,
    /// Ports that may be connected to; empty: all.
    pub ports: Vec<u16>,
    /// Whether an address may be connected to although it is not public.
    pub is_allowed: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { allow_http: false, ports: vec![443], is_allowed: Arc::new(|_| false) }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { allow_http, ports, .. } = self;
        f.debug_struct("Rules").field("allow_http", allow_http).field("ports", ports).finish_non_exhaustive()
    }
}

/// Why a URL is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("A URL is at most {URL_BYTES_MAX} visible ASCII characters.")]
    Text,
    #[error("The URL begins with https://.")]
    Scheme,
    #[error("The URL has no user and no password: they would be sent in clear or be ignored.")]
    UserInfo,
    #[error("The URL has no part behind #: it is never sent.")]
    Fragment,
    #[error(
        "The host is a name of letters, digits, - and dots, an IPv4 address of four decimal numbers, or an IPv6 address in brackets."
    )]
    Host,
    #[error("Port {0} is not one that may be connected to (webhooks.ports).")]
    Port(u16),
    #[error("The host leads to {0}, which is no public address (webhooks.allow_networks).")]
    Address(IpAddr),
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub is_tls: bool,
    pub host: Host,
    pub port: u16,
    /// Path and query.
    pub target: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(String),
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
            Host::Ip(v4) => write!(f, "{v4}"),
        }
    }
}

impl Endpoint {
    /// Reads a URL and checks all of it that can be checked without looking up its name.
    pub fn parse(url: &str, rules: &Rules) -> Result<Endpoint, BadUrl> {
        let is_visible = url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\^`{}|<>\"".contains(&byte));
        if url.len() > URL_BYTES_MAX || !is_visible {
            return Err(BadUrl::Text);
        }
        let (scheme, rest) = url.split_once("://").ok_or(BadUrl::Scheme)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" if rules.allow_http => false,
            _ => return Err(BadUrl::Scheme),
        };
        if rest.contains('#') {
            return Err(BadUrl::Fragment);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let port = match port {
            Some(digits) => read_port(digits)?,
            None if is_tls => 443,
            None => 80,
        };
        let host = read_host(host)?;
        if !rules.ports.is_empty() && !rules.ports.contains(&port) {
            return Err(BadUrl::Port(port));
        }
        match &host {
            Host::Ip(address) => rules.check(*address)?,
            // Whatever the resolver makes of it.
            Host::Name(name) if name == "localhost" || name.ends_with(".localhost") => {
                rules.check(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
            }
            Host::Name(_) => {}
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Endpoint { is_tls, host, port, target })
    }

    /// What the header `Host` says.
    pub fn authority(&self) -> String {
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => self.host.to_string(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

/// The host as it is written, and the digits behind it.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), BadUrl> {
    if authority.starts_with('[') {
        let (host, rest) = authority.split_at(authority.find(']').ok_or(BadUrl::Host)? + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(BadUrl::Host),
        };
    }
    Ok(authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))))
}

fn read_port(digits: &str) -> Result<u16, BadUrl> {
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| is_plain && *port > 0).ok_or(BadUrl::Host)
}

fn read_host(host: &str) -> Result<Host, BadUrl> {
    if let Some(v6) = host.strip_prefix('[') {
        let v6 = v6.strip_suffix(']').and_then(|v6| v6.parse().ok());
        return v6.map(|v6| Host::Ip(IpAddr::V6(v6))).ok_or(BadUrl::Host);
    }
    let name = host.to_ascii_lowercase();
    let is_label = |label: &str| {
        let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        !label.is_empty() && label.len() <= 63 && letters && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() > NAME_BYTES_MAX || !name.split('.').all(is_label) {
        return Err(BadUrl::Host);
    }
    // Resolvers read many texts as numbers (0x7f.1, 127.1, 2130706433): only the plain form is one.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return name.parse().map(|v4| Host::Ip(IpAddr::V4(v4))).map_err(|_| BadUrl::Host);
    }
    Ok(Host::Name(name))
}

impl Rules {
    /// Whether an address may be connected to.
    pub fn check(&self, address: IpAddr) -> Result<(), BadUrl> {
        if is_public(address) || (self.is_allowed)(address) { Ok(()) } else { Err(BadUrl::Address(address)) }
    }

    /// Whether all addresses of a name may be connected to: one that leads inside is reason enough
    /// not to trust the others.
    pub fn check_all(&self, addresses: &[IpAddr]) -> Result<(), BadUrl> {
        addresses.iter().try_for_each(|address| self.check(*address))
    }
}

/// Networks that are no place in the public internet (IANA's registries of special addresses).
const V4: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Within 2000::/3, outside of which nothing is public: not IPv4 in disguise (mapped, compatible,
/// NAT64), not unique local, not link-local, not multicast.
const V6: [(Ipv6Addr, u32); 4] = [
    // Teredo, benchmarks, ORCHID and other special ones.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // 6to4: an IPv4 address follows.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
const PUBLIC_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Whether an address is one of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let within =
                |(prefix, bits): &(Ipv4Addr, u32)| (v4.to_bits() ^ prefix.to_bits()) >> (32 - bits) == 0;
            !V4.iter().any(within)
        }
        IpAddr::V6(v6) => {
            let within =
                |(prefix, bits): &(Ipv6Addr, u32)| (v6.to_bits() ^ prefix.to_bits()) >> (128 - bits) == 0;
            within(&PUBLIC_V6) && !V6.iter().any(within)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, BadUrl> {
        Endpoint::parse(url, &Rules::default())
    }

    #[test]
    fn plain_urls_are_read() {
        for (url, host, port, target) in [
            ("https://hooks.example.org/in?a=1", "hooks.example.org", 443, "/in?a=1"),
            ("HTTPS://Hooks.Example.org", "hooks.example.org", 443, "/"),
            ("https://hooks.example.org?x", "hooks.example.org", 443, "/?x"),
            ("https://hooks.example.org:443/", "hooks.example.org", 443, "/"),
            ("https://93.184.216.34/a", "93.184.216.34", 443, "/a"),
            (
                "https://[2606:2800:220:1:248:1893:25c8:1946]/",
                "[2606:2800:220:1:248:1893:25c8:1946]",
                443,
                "/",
            ),
            ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
            ("https://a_b.example/", "a_b.example", 443, "/"),
        ] {
            let endpoint = parse(url).unwrap();
            assert_eq!((endpoint.host.to_string().as_str(), endpoint.port), (host, port), "{url}");
            assert_eq!((endpoint.target.as_str(), endpoint.is_tls), (target, true), "{url}");
            assert_eq!(endpoint.authority(), host);
        }
    }

    #[test]
    fn urls_that_could_be_read_in_two_ways_are_refused() {
        use BadUrl::*;
        for (url, wanted) in [
            ("", Scheme),
            ("hooks.example.org", Scheme),
            ("http://hooks.example.org/", Scheme),
            ("ftp://hooks.example.org/", Scheme),
            ("file:///etc/passwd", Scheme),
            ("gopher://hooks.example.org", Scheme),
            ("javascript://hooks.example.org", Scheme),
            (" https://hooks.example.org", Text),
            ("https://hooks.example.org/a b", Text),
            ("https://hooks.example.org/\r\nX: y", Text),
            ("https://hooks.example.org\\@inside/", Text),
            ("https://höks.example/", Text),
            ("https://hooks.example.org/#a", Fragment),
            ("https://user@hooks.example.org/", UserInfo),
            ("https://user:pw@hooks.example.org/", UserInfo),
            ("https://hooks.example.org@10.0.0.1/", UserInfo),
            ("https://", Host),
            ("https:///path", Host),
            ("https://:443/", Host),
            ("https://hooks.example.org./", Host),
            ("https://localhost./", Host),
            ("https://hooks..example/", Host),
            ("https://-a.example/", Host),
            ("https://%31%32%37.0.0.1/", Host),
            ("https://hooks.example.org:/", Host),
            ("https://hooks.example.org:0/", Host),
            ("https://hooks.example.org:65536/", Host),
            ("https://hooks.example.org:+443/", Host),
            ("https://hooks.example.org:443:443/", Host),
            ("https://[::1", Host),
            ("https://[::1]x/", Host),
            ("https://[fe80::1%25eth0]/", Host),
            ("https://::1/", Host),
            ("https://0x7f.1/", Host),
            ("https://0x7f000001/", Host),
            ("https://127.1/", Host),
            ("https://2130706433/", Host),
            ("https://0177.0.0.1/", Host),
            ("https://127.0.0.0x1/", Host),
            ("https://1.2.3.4.5/", Host),
            ("https://256.0.0.1/", Host),
            ("https://hooks.example.org:22/", Port(22)),
            ("https://hooks.example.org:8443/", Port(8443)),
        ] {
            assert_eq!(parse(url), Err(wanted), "{url}");
        }
        assert_eq!(parse(&format!("https://a.example/{}", "x".repeat(2_100))), Err(Text));
        assert_eq!(parse(&format!("https://{}.example/", "x".repeat(64))), Err(Host));
    }

    #[test]
    fn addresses_that_are_not_public_are_refused_in_every_disguise() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert!(!is_public(ip), "{address}");
            let url =
                if ip.is_ipv6() { format!("https://[{address}]/") } else { format!("https://{address}/") };
            assert_eq!(parse(&url), Err(BadUrl::Address(ip)), "{url}");
        }
        for name in ["localhost", "LOCALHOST", "a.localhost"] {
            assert!(matches!(parse(&format!("https://{name}/")), Err(BadUrl::Address(_))), "{name}");
        }
    }

    #[test]
    fn public_addresses_beside_the_special_ones_pass() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn one_address_inside_makes_a_name_unfit() {
        let rules = Rules::default();
        let public: IpAddr = "1.1.1.1".parse().unwrap();
        let inside: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(rules.check_all(&[public]), Ok(()));
        assert_eq!(rules.check_all(&[public, inside]), Err(BadUrl::Address(inside)));
    }

    #[test]
    fn an_operator_can_allow_http_ports_and_networks() {
        let is_allowed = |ip: IpAddr| ip.to_string().starts_with("127.");
        let rules = Rules { allow_http: true, ports: Vec::new(), is_allowed: Arc::new(is_allowed) };
        let endpoint = Endpoint::parse("http://127.0.0.1:9999/x", &rules).unwrap();
        assert_eq!((endpoint.is_tls, endpoint.authority().as_str()), (false, "127.0.0.1:9999"));
        assert!(Endpoint::parse("http://localhost:9999/x", &rules).is_ok());
        assert!(Endpoint::parse("https://[::1]/", &rules).is_err());
        assert_eq!(Endpoint::parse("http://a.example/", &rules).unwrap().port, 80);
    }
}
