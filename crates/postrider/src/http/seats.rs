//! How many connections there may be, in all and from each address.

use super::HttpConfig;
use crate::api::auth::network;
use crate::api::health::HttpMetrics;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;

/// Answered without a look at the request: it costs next to nothing, and a client that waits can come again.
pub fn turn_away(stream: &TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.try_write(answer);
}

/// How many connections there are, in all and from each address.
pub struct Seats {
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
    pub metrics: HttpMetrics,
}

pub struct Seat(Arc<Seats>, IpAddr);

impl Seats {
    pub fn new(metrics: HttpMetrics) -> Arc<Seats> {
        Arc::new(Seats { taken: Mutex::default(), metrics })
    }

    pub fn take(self: &Arc<Self>, peer: IpAddr, config: &HttpConfig) -> Option<Seat> {
        let address = network(peer);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *taken;
        let own = by_address.get(&address).copied().unwrap_or(0);
        // All clients of a trusted proxy share its address; it has limits of its own for each.
        let is_full = own >= config.connections_per_address_max && !config.trusted_proxies.contain(peer);
        if *all >= config.connections_max || is_full {
            return None;
        }
        *all += 1;
        by_address.insert(address, own + 1);
        self.metrics.connections.inc();
        Some(Seat(self.clone(), address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        self.0.metrics.connections.dec();
        if let Some(own) = taken.1.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                taken.1.remove(&self.1);
            }
        }
    }
}
