//! What can fail for reasons outside of us, opened before anything lasting is made: certificates, keys and listeners. A start
//! that fails here leaves nothing behind that a later one would have to know.

use crate::app::ServeError;
use crate::config::Config;
use crate::gateway::listener::{self, Listens};
use crate::tls::{self, ServerTls};
use postrider_core::id::AppNo;
use std::net::{SocketAddr, TcpListener};

/// Descriptors that no connection gets: the store needs some for its next files, and the server for what it reads.
const DESCRIPTORS_KEPT: u64 = 64;
/// And some that threads and the event stream's files will take once the server runs.
const DESCRIPTORS_TO_COME: u64 = 64;
/// Connections of the operations listener.
pub const OPS_CONNECTIONS_MAX: usize = 32;

/// One listener a worker, each with what it speaks.
type ByWorker = Vec<Vec<(mio::net::TcpListener, Listens)>>;

/// See the module.
pub struct Opened {
    pub tls: Option<ServerTls>,
    pub http: TcpListener,
    pub ops: TcpListener,
    pub gateway: ByWorker,
    /// The names of settings, and where their listeners are.
    pub places: Vec<(&'static str, SocketAddr)>,
}

impl Opened {
    pub fn open(config: &Config) -> Result<Opened, ServeError> {
        let tls = certificate(config).map_err(ServeError::Tls)?;
        // The key alone: which app it is for is known later.
        config.issuer(|_| Some(AppNo(0))).map_err(ServeError::Config)?;
        let mut places = Vec::new();
        let http = plain("listen.http", config.listen.http, &mut places)?;
        let ops = plain("listen.ops", config.listen.ops, &mut places)?;
        let gateway = for_gateway(config, tls.as_ref(), &mut places)?;
        Ok(Opened { tls, http, ops, gateway, places })
    }

    pub fn place(&self, name: &str) -> Option<SocketAddr> {
        self.places.iter().find(|(known, _)| *known == name).map(|(_, at)| *at)
    }
}

/// What would keep a server from starting with these settings, without opening or making anything.
pub fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    if !config.tls.certificate.is_empty() {
        let read = config.tls.files().and_then(|(certificate, key)| tls::server_tls(certificate, key));
        problems.extend(read.err().map(|why| format!("tls: {why}")));
    }
    problems.extend(config.issuer(|_| Some(AppNo(0))).err());
    problems.extend(folder_problem(config));
    problems
}

fn folder_problem(config: &Config) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let dir = config.data_dir();
    let say = |what: &str| Some(format!("store.dir: {} {what}", dir.display()));
    // Where it is to be made, the nearest folder above it counts.
    let there = dir.ancestors().find(|path| path.as_os_str().is_empty() || path.exists())?;
    let there = if there.as_os_str().is_empty() { std::path::Path::new(".") } else { there };
    match std::fs::metadata(there) {
        Err(error) => say(&format!("cannot be looked at: {error}")),
        Ok(found) if !found.is_dir() => say("is no folder, or lies in a file"),
        Ok(found) if found.permissions().readonly() => say("may not be written to"),
        Ok(found)
            if there == dir
                && !config.store.allow_open_to_others
                && found.permissions().mode() & 0o077 != 0
                && dir.join("STORE").exists() =>
        {
            say("can be read by others than its owner: chmod 700, or store.allow_open_to_others")
        }
        Ok(_) => None,
    }
}

fn plain(
    what: &'static str,
    address: SocketAddr,
    places: &mut Vec<(&'static str, SocketAddr)>,
) -> Result<TcpListener, ServeError> {
    let listener = listener::open(address, false);
    let listener = listener.map_err(|why| ServeError::Listen { what, address, why })?;
    places.push((what, listener.local_addr()?));
    Ok(listener)
}

fn for_gateway(
    config: &Config,
    tls: Option<&ServerTls>,
    places: &mut Vec<(&'static str, SocketAddr)>,
) -> Result<ByWorker, ServeError> {
    let workers = config.gateway_workers();
    let mut by_worker = Vec::new();
    by_worker.resize_with(workers, Vec::new);
    let listen = &config.listen;
    let over_tls = |address: Option<SocketAddr>, speaks: fn(_) -> Listens| {
        address.zip(tls).map(|(address, tls)| (address, speaks(tls.config.clone())))
    };
    let wanted = [
        ("listen.mqtt", Some((listen.mqtt, Listens::Mqtt))),
        ("listen.mqtt_tls", over_tls(listen.mqtt_tls, Listens::MqttTls)),
        ("listen.xmpp", listen.xmpp.map(|address| (address, Listens::Xmpp))),
        ("listen.xmpp_tls", over_tls(listen.xmpp_tls, Listens::XmppTls)),
    ];
    for (what, wanted) in wanted {
        let Some((address, speaks)) = wanted else { continue };
        let (bound, listeners) =
            listener::bind(address, workers).map_err(|why| ServeError::Listen { what, address, why })?;
        places.push((what, bound));
        for (mine, listener) in by_worker.iter_mut().zip(listeners) {
            mine.push((listener, speaks.clone()));
        }
    }
    Ok(by_worker)
}

/// The certificate of the settings, or one of our own.
fn certificate(config: &Config) -> Result<Option<ServerTls>, String> {
    if config.tls.certificate.is_empty() && config.tls.self_signed {
        let file = config.data_dir().join("self-signed.pem");
        tls::make_self_signed(&file)?;
        return tls::server_tls(&file, &file).map(Some);
    }
    if config.tls.certificate.is_empty() {
        return Ok(None);
    }
    let (certificate, key) = config.tls.files()?;
    tls::server_tls(certificate, key).map(Some)
}

/// How many connections may be open at once, so that the process never runs out of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats {
    pub http: usize,
    pub gateway: usize,
}

impl Seats {
    /// `limit`: of open files, `None` where there is none. `open`: those that are open now. The wishes are the settings';
    /// for the gateway 0 means as many as may be.
    pub fn new(limit: Option<u64>, open: u64, http: usize, gateway: usize) -> Seats {
        let wanted = |wish: usize| if wish == 0 { usize::MAX } else { wish };
        let Some(limit) = limit else { return Seats { http, gateway } };
        let kept = DESCRIPTORS_KEPT + DESCRIPTORS_TO_COME + OPS_CONNECTIONS_MAX as u64 + open;
        // With a limit so low that nothing is left the server still answers somebody.
        let left = usize::try_from(limit.saturating_sub(kept)).unwrap_or(usize::MAX).max(16);
        // Requests are brief, and those that wait move to the gateway: where both do not fit, devices come first.
        let http = http.min((left / 16).max(left.min(512) / 2));
        Seats { http, gateway: wanted(gateway).min(left - http) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_together_leave_descriptors_for_the_store() {
        for limit in [256_u64, 1_024, 20_000, 1_048_576] {
            let seats = Seats::new(Some(limit), 40, 10_000, 0);
            let taken = seats.http + seats.gateway + OPS_CONNECTIONS_MAX + 40;
            assert!(taken as u64 + DESCRIPTORS_KEPT <= limit, "{limit}: {seats:?}");
            assert!(seats.http > 0 && seats.gateway > 0, "{limit}: {seats:?}");
        }
        assert!(Seats::new(Some(20_000), 40, 10_000, 0).gateway > 18_000, "devices come first");
        assert_eq!(Seats::new(Some(1 << 20), 40, 10_000, 0).http, 10_000, "a wish that can be granted is");
        assert_eq!(Seats::new(Some(1 << 20), 40, 10, 7), Seats { http: 10, gateway: 7 });
        assert_eq!(Seats::new(None, 40, 10, 0), Seats { http: 10, gateway: 0 });
    }
}
