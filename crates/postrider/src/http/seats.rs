//! How many connections there may be, in all and from each address.
//!
//! Where all seats are taken, the one goes that has been silent for the longest: of those that never sent a request the
//! oldest, else one whose last request was answered. So sockets that are only held open keep nobody away.

use super::HttpConfig;
use crate::api::auth::network;
use crate::api::health::HttpMetrics;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Answered without a look at the request: it costs next to nothing, and a client that waits can come again.
pub fn turn_away(stream: &TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    _ = stream.try_write(answer);
}

/// Seats that are looked at for one whose request is answered, the oldest first.
const LOOKED_AT_MAX: usize = 256;

/// How many connections there are, in all and from each address.
pub struct Seats {
    taken: Mutex<Taken>,
    pub metrics: HttpMetrics,
}

#[derive(Default)]
struct Taken {
    seats: BTreeMap<u64, (IpAddr, Arc<Chair>)>,
    silent: BTreeSet<u64>,
    addresses: HashMap<IpAddr, Own>,
    last: u64,
}

/// Those of one address, and of them the ones that never sent a request.
#[derive(Default)]
struct Own {
    seats: BTreeSet<u64>,
    silent: BTreeSet<u64>,
}

/// What a connection and the books know of each other.
#[derive(Default)]
struct Chair {
    has_spoken: AtomicBool,
    requests: AtomicUsize,
    leaves: Notify,
}

/// A place of a connection, until it is dropped or another one gets it.
pub struct Seat {
    seats: Arc<Seats>,
    number: u64,
    chair: Arc<Chair>,
}

/// While it lives, a request of the connection is under way.
pub struct Busy(Arc<Chair>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Taken {
    /// The oldest of these whose requests are all answered.
    fn idle<'a>(&self, mut numbers: impl Iterator<Item = &'a u64>) -> Option<u64> {
        let is_idle = |number: &&u64| {
            self.seats.get(number).is_some_and(|(_, chair)| chair.requests.load(Relaxed) == 0)
        };
        numbers.by_ref().take(LOOKED_AT_MAX).find(is_idle).copied()
    }

    fn idlest(&self) -> Option<u64> {
        self.silent.first().copied().or_else(|| self.idle(self.seats.keys()))
    }

    fn idlest_of(&self, address: IpAddr) -> Option<u64> {
        let own = self.addresses.get(&address)?;
        own.silent.first().copied().or_else(|| self.idle(own.seats.iter()))
    }

    fn add(&mut self, address: IpAddr, chair: Arc<Chair>) -> u64 {
        self.last += 1;
        self.seats.insert(self.last, (address, chair));
        self.silent.insert(self.last);
        let own = self.addresses.entry(address).or_default();
        own.seats.insert(self.last);
        own.silent.insert(self.last);
        self.last
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Chair>> {
        let (address, chair) = self.seats.remove(&number)?;
        self.silent.remove(&number);
        if let Some(own) = self.addresses.get_mut(&address) {
            own.seats.remove(&number);
            own.silent.remove(&number);
            if own.seats.is_empty() {
                self.addresses.remove(&address);
            }
        }
        Some(chair)
    }

    fn has_spoken(&mut self, number: u64) {
        self.silent.remove(&number);
        let address = self.seats.get(&number).map(|(address, _)| *address);
        if let Some(own) = address.and_then(|address| self.addresses.get_mut(&address)) {
            own.silent.remove(&number);
        }
    }
}

impl Seats {
    pub fn new(metrics: HttpMetrics) -> Arc<Seats> {
        Arc::new(Seats { taken: Mutex::default(), metrics })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(self: &Arc<Self>, peer: IpAddr, config: &HttpConfig) -> Option<Seat> {
        let address = network(peer);
        let mut taken = self.taken();
        let own = taken.addresses.get(&address).map_or(0, |own| own.seats.len());
        // All clients of a trusted proxy share its address; it has limits of its own for each.
        let is_full = own >= config.connections_per_address_max && !config.trusted_proxies.contain(peer);
        let leaves = if is_full {
            Some(taken.idlest_of(address)?)
        } else if taken.seats.len() >= config.connections_max {
            Some(taken.idlest()?)
        } else {
            None
        };
        if let Some(chair) = leaves.and_then(|number| taken.remove(number)) {
            chair.leaves.notify_one();
            self.metrics.connections.dec();
            self.metrics.refused.inc();
        }
        self.metrics.connections.inc();
        let chair = Arc::new(Chair::default());
        let number = taken.add(address, chair.clone());
        drop(taken);
        Some(Seat { seats: self.clone(), number, chair })
    }
}

impl Seat {
    /// A request begins; it lasts as long as what is given back.
    pub fn busy(&self) -> Busy {
        if !self.chair.has_spoken.swap(true, Relaxed) {
            self.seats.taken().has_spoken(self.number);
        }
        self.chair.requests.fetch_add(1, Relaxed);
        Busy(self.chair.clone())
    }

    /// Until the seat is given to a newer connection.
    pub async fn given_away(&self) {
        self.chair.leaves.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.seats.taken().remove(self.number).is_some() {
            self.seats.metrics.connections.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(seat: &Seat) -> bool {
        !seat.seats.taken().seats.contains_key(&seat.number)
    }

    #[test]
    fn the_oldest_silent_connection_makes_room_and_one_that_is_served_never_does() {
        let config =
            HttpConfig { connections_max: 4, connections_per_address_max: 3, ..HttpConfig::default() };
        let seats = Seats::new(HttpMetrics::default());
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let take = |address| seats.take(address, &config);
        let (served, first, second) = (take(a).unwrap(), take(a).unwrap(), take(a).unwrap());
        let request = served.busy();
        let third = take(a).unwrap();
        assert!(gone(&first) && !gone(&served) && !gone(&second));
        let other = take(b).unwrap();
        // The whole is full: the oldest silent one goes, whose address does not matter.
        let another = take(b).unwrap();
        assert!(gone(&second) && !gone(&third) && !gone(&other));
        // Nobody is silent: one whose request is answered goes, none that waits for its answer.
        let requests = [third.busy(), other.busy(), another.busy()];
        assert!(take(b).is_none());
        drop(request);
        assert!(take(b).is_some() && gone(&served) && !gone(&third));
        drop(requests);
        drop((served, first, second, third, other, another));
        let taken = seats.taken();
        assert!(taken.seats.is_empty() && taken.silent.is_empty() && taken.addresses.is_empty());
        assert_eq!(seats.metrics.connections.get(), 0);
    }
}
