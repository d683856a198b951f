//! Who may connect at all: counts of connections in all, before sign-in, and by address (limits L4–L6).
//!
//! Where too many have not signed in, the newest is let in and the one that has been silent for the longest is pushed out: of
//! the listener with most of them, and there of the address with most of them. So nobody who only holds sockets open keeps
//! others from signing in, which takes them a moment.

use super::Full;
use postrider_core::port::ConnectionRef;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Zero means no limit.
#[derive(Clone, Debug)]
pub struct AdmissionLimits {
    pub connections_max: usize,
    /// Connections that have not signed in, in all and by address.
    pub unauthenticated_max: usize,
    pub unauthenticated_per_address_max: usize,
    pub per_address_max: usize,
    /// Wrong credentials of one address before it is only told that it tries too often (L31), and after how many seconds
    /// one more is heard.
    pub failures_burst: u32,
    pub failure_secs: u64,
    /// Accounts that devices of one address make for themselves (A21): at once, and after how many seconds one more.
    pub registrations_burst: u32,
    pub registration_secs: u64,
}

impl Default for AdmissionLimits {
    fn default() -> AdmissionLimits {
        AdmissionLimits {
            connections_max: 0,
            unauthenticated_max: 2_000,
            unauthenticated_per_address_max: 50,
            per_address_max: 2_000,
            failures_burst: 30,
            failure_secs: 60,
            registrations_burst: 20,
            registration_secs: 60,
        }
    }
}

/// The listener that a connection came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Road {
    Mqtt,
    MqttTls,
    Xmpp,
    XmppTls,
    Http,
}

const ROADS: usize = 5;

/// Connections that are let in only to be told that there is no place for them.
const REFUSED_MAX: usize = 200;

/// Connections whose proxy has not said yet for whom they are.
const UNNAMED_MAX: usize = 2_000;

/// Challenges in a second of an address that has failed as often as it may.
const CHALLENGES_PER_SEC: u32 = 20;

/// Addresses that are remembered; beyond it all knowledge is given up.
const ADDRESSES_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Admission {
    limits: AdmissionLimits,
    books: Mutex<Books>,
    refused: AtomicUsize,
    unnamed: AtomicUsize,
    failures: Leaking,
    /// Challenges of addresses that have failed as often as they may.
    challenges: Leaking,
    registrations: Leaking,
}

/// A place that was taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Names the place while its holder has not signed in; 0 when it is known already.
    pub ticket: u64,
    /// Those who have to go for it, and the limit that they were over.
    pub pushed_out: Vec<(ConnectionRef, &'static str)>,
}

#[derive(Debug, Default)]
struct Books {
    total: usize,
    /// Not signed in, by road.
    waiting: [usize; ROADS],
    addresses: HashMap<IpAddr, Address>,
    /// The addresses of those not signed in, by road and number.
    heaviest: BTreeSet<(usize, usize, IpAddr)>,
    last_ticket: u64,
}

/// An address where nobody waits needs no more than its count.
#[derive(Debug, Default)]
struct Address {
    all: usize,
    waiting: Option<Box<Waiting>>,
}

/// Connections of an address that have not signed in, by age.
#[derive(Debug, Default)]
struct Waiting {
    by_age: BTreeMap<u64, Waiter>,
    by_road: [usize; ROADS],
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    road: Road,
    /// Unknown while the socket is on its way to its worker.
    at: Option<ConnectionRef>,
}

fn above(count: usize, max: usize) -> bool {
    max > 0 && count > max
}

/// An IPv6 customer has a /64, so that is what counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

impl Books {
    fn all_of(&self, address: IpAddr) -> usize {
        self.addresses.get(&address).map_or(0, |a| a.all)
    }

    fn waiting_of(&self, address: IpAddr) -> usize {
        let waiting = self.addresses.get(&address).and_then(|a| a.waiting.as_ref());
        waiting.map_or(0, |waiting| waiting.by_age.len())
    }

    fn weigh(&mut self, road: Road, address: IpAddr, before: usize, after: usize) {
        let road = road as usize;
        if before > 0 {
            self.heaviest.remove(&(road, before, address));
        }
        if after > 0 {
            self.heaviest.insert((road, after, address));
        }
    }

    fn add(&mut self, address: IpAddr) {
        self.total += 1;
        self.addresses.entry(address).or_default().all += 1;
    }

    fn remove(&mut self, address: IpAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(counts) = self.addresses.get_mut(&address) {
            counts.all = counts.all.saturating_sub(1);
            if counts.all == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    fn begin_waiting(&mut self, address: IpAddr, waiter: Waiter) -> u64 {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let waiting = self.addresses.entry(address).or_default().waiting.get_or_insert_default();
        waiting.by_age.insert(ticket, waiter);
        let count = &mut waiting.by_road[waiter.road as usize];
        *count += 1;
        let after = *count;
        self.waiting[waiter.road as usize] += 1;
        self.weigh(waiter.road, address, after - 1, after);
        ticket
    }

    /// False where it waits no longer: it was pushed out.
    fn end_waiting(&mut self, address: IpAddr, ticket: u64) -> bool {
        let Some(counts) = self.addresses.get_mut(&address) else { return false };
        let Some(waiting) = &mut counts.waiting else { return false };
        let Some(Waiter { road, .. }) = waiting.by_age.remove(&ticket) else { return false };
        let count = &mut waiting.by_road[road as usize];
        *count -= 1;
        let after = *count;
        if waiting.by_age.is_empty() {
            counts.waiting = None;
        }
        self.waiting[road as usize] -= 1;
        self.weigh(road, address, after + 1, after);
        true
    }

    /// The oldest of an address, on the road by which most of its own came.
    fn oldest_of(&self, address: IpAddr) -> Option<(IpAddr, u64, ConnectionRef)> {
        let waiting = self.addresses.get(&address)?.waiting.as_ref()?;
        let fullest = waiting.by_road.iter().enumerate().max_by_key(|(_, count)| **count)?.0;
        waiting.oldest_on(fullest).map(|(ticket, at)| (address, ticket, at))
    }

    /// The oldest of the heaviest address on the fullest road.
    fn oldest_of_all(&self) -> Option<(IpAddr, u64, ConnectionRef)> {
        let fullest = self.waiting.iter().enumerate().max_by_key(|(_, count)| **count)?.0;
        let (first, last) = (IpAddr::from([0, 0, 0, 0]), IpAddr::from([0xffff_u16; 8]));
        let on_it = self.heaviest.range((fullest, 0, first)..=(fullest, usize::MAX, last));
        let heaviest = on_it.into_iter().next_back()?.2;
        let waiting = self.addresses.get(&heaviest)?.waiting.as_ref()?;
        waiting.oldest_on(fullest).map(|(ticket, at)| (heaviest, ticket, at))
    }
}

impl Waiting {
    /// The oldest whose socket is here; of another road where that one has none yet.
    fn oldest_on(&self, road: usize) -> Option<(u64, ConnectionRef)> {
        let mut here = self.by_age.iter().filter_map(|(ticket, w)| Some((w.road, *ticket, w.at?)));
        let first = here.clone().next();
        let on_road = here.find(|(of, _, _)| *of as usize == road);
        on_road.or(first).map(|(_, ticket, at)| (ticket, at))
    }
}

impl Admission {
    pub fn new(limits: AdmissionLimits) -> Admission {
        Admission { limits, ..Admission::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection of whom nothing is known yet. `at` may follow with [`Self::arrived`].
    pub fn enter(&self, address: IpAddr, road: Road, at: Option<ConnectionRef>) -> Result<Entered, Full> {
        let address = network(address);
        let mut books = self.books();
        let limits = &self.limits;
        // Whether there is a place is known before anybody goes for it.
        let is_over =
            |books: &Books| above(books.waiting_of(address) + 1, limits.unauthenticated_per_address_max);
        if is_over(&books) && books.oldest_of(address).is_none() {
            return Err(Full::Address);
        }
        let are_over =
            |books: &Books| above(books.waiting.iter().sum::<usize>() + 1, limits.unauthenticated_max);
        if are_over(&books) && books.oldest_of_all().is_none() {
            return Err(Full::Connections);
        }
        let mut pushed_out = self.make_room(&mut books, address)?;
        if is_over(&books)
            && let Some(oldest) = books.oldest_of(address)
        {
            pushed_out.push(push_out(&mut books, oldest, "unauthenticated_per_address"));
        }
        if are_over(&books)
            && let Some(oldest) = books.oldest_of_all()
        {
            pushed_out.push(push_out(&mut books, oldest, "unauthenticated"));
        }
        books.add(address);
        let ticket = books.begin_waiting(address, Waiter { road, at });
        Ok(Entered { ticket, pushed_out })
    }

    /// Takes a place for a connection that has proved who it is.
    pub fn enter_known(&self, address: IpAddr) -> Result<Entered, Full> {
        let address = network(address);
        let mut books = self.books();
        let pushed_out = self.make_room(&mut books, address)?;
        books.add(address);
        Ok(Entered { ticket: 0, pushed_out })
    }

    /// One more fits into the counts of all connections, or somebody who has not signed in goes.
    fn make_room(
        &self,
        books: &mut Books,
        address: IpAddr,
    ) -> Result<Vec<(ConnectionRef, &'static str)>, Full> {
        let mut pushed_out = Vec::new();
        if above(books.all_of(address) + 1, self.limits.per_address_max) {
            let oldest = books.oldest_of(address).ok_or(Full::Address)?;
            pushed_out.push(push_out(books, oldest, "per_address"));
        }
        if pushed_out.is_empty() && above(books.total + 1, self.limits.connections_max) {
            let oldest = books.oldest_of_all().ok_or(Full::Connections)?;
            pushed_out.push(push_out(books, oldest, "connections"));
        }
        Ok(pushed_out)
    }

    /// Where the connection of a place is, from now on.
    pub fn arrived(&self, address: IpAddr, ticket: u64, at: ConnectionRef) {
        let mut books = self.books();
        let waiting = books.addresses.get_mut(&network(address)).and_then(|a| a.waiting.as_mut());
        if let Some(waiter) = waiting.and_then(|waiting| waiting.by_age.get_mut(&ticket)) {
            waiter.at = Some(at);
        }
    }

    /// It signed in, or only lingers until its peer has read our reason: it is no longer one of those who wait.
    pub fn waits_no_longer(&self, address: IpAddr, ticket: u64) {
        let address = network(address);
        let mut books = self.books();
        if ticket != 0 && !books.end_waiting(address, ticket) {
            // It was to make room and signed in at that very moment: it stays.
            books.add(address);
        }
    }

    /// The connection ended.
    pub fn leave(&self, address: IpAddr, ticket: u64) {
        let address = network(address);
        let mut books = self.books();
        // Who was pushed out has left the books already.
        if ticket == 0 || books.end_waiting(address, ticket) {
            books.remove(address);
        }
    }

    /// Whether one more may be let in to be told that there is no place; [`Self::refused_left`] when it is gone.
    pub fn enter_refused(&self) -> bool {
        enter_up_to(&self.refused, REFUSED_MAX)
    }

    pub fn refused_left(&self) {
        self.refused.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether one more connection of a proxy may wait for its header; [`Self::unnamed_left`] when it has come.
    pub fn enter_unnamed(&self) -> bool {
        enter_up_to(&self.unnamed, UNNAMED_MAX)
    }

    pub fn unnamed_left(&self) {
        self.unnamed.fetch_sub(1, Ordering::Relaxed);
    }

    /// An address tried with wrong credentials; false when it did so too often to be told more than that.
    pub fn count_failure(&self, address: IpAddr, now_ms: u64) -> bool {
        let every_ms = self.limits.failure_secs.saturating_mul(1_000);
        self.failures.count(address, now_ms, self.limits.failures_burst, every_ms)
    }

    /// Whether a client of the address is challenged to prove a password. Where too many sign-ins
    /// failed, or were left unanswered, so many a second still are: behind the address may be
    /// honest clients, and their proofs are always taken.
    pub fn may_challenge(&self, address: IpAddr, now_ms: u64) -> bool {
        let every_ms = self.limits.failure_secs.saturating_mul(1_000);
        !self.failures.is_full(address, now_ms, self.limits.failures_burst, every_ms)
            || self.challenges.count(
                address,
                now_ms,
                CHALLENGES_PER_SEC,
                1_000 / u64::from(CHALLENGES_PER_SEC),
            )
    }

    /// A device of the address makes an account; false when too many did.
    pub fn count_registration(&self, address: IpAddr, now_ms: u64) -> bool {
        let limits = &self.limits;
        let every_ms = limits.registration_secs.saturating_mul(1_000);
        self.registrations.count(address, now_ms, limits.registrations_burst, every_ms)
    }

    pub fn unauthenticated(&self) -> usize {
        self.books().waiting.iter().sum()
    }

    pub fn total(&self) -> usize {
        self.books().total
    }
}

fn push_out(
    books: &mut Books,
    (address, ticket, at): (IpAddr, u64, ConnectionRef),
    limit: &'static str,
) -> (ConnectionRef, &'static str) {
    if books.end_waiting(address, ticket) {
        books.remove(address);
    }
    (at, limit)
}

fn enter_up_to(count: &AtomicUsize, max: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
}

/// A place that is held for a socket on its way from the HTTP server; given back unless the socket arrives.
pub struct Place(Option<(Arc<super::Shared>, SocketAddr, u64)>);

impl Place {
    pub(super) fn new(shared: Arc<super::Shared>, peer: SocketAddr, ticket: u64) -> Place {
        Place(Some((shared, peer, ticket)))
    }

    /// Of a server without a gateway.
    #[cfg(test)]
    pub fn of_nobody() -> Place {
        Place(None)
    }

    /// Whose it is, and the ticket; the connection gives the place back from now on.
    pub(super) fn take(mut self) -> Option<(SocketAddr, u64)> {
        self.0.take().map(|(_, peer, ticket)| (peer, ticket))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((shared, peer, ticket)) = self.0.take() {
            shared.admission.leave(peer.ip(), ticket);
        }
    }
}

/// How often something happened, by address.
#[derive(Debug, Default)]
struct Leaking(Mutex<HashMap<IpAddr, Bucket>>);

/// Leaks one in a while.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    count: u32,
    since_ms: u64,
}

impl Leaking {
    /// One more; false, and not counted, where the bucket is full. A burst of 0: no limit.
    fn count(&self, address: IpAddr, now_ms: u64, burst: u32, every_ms: u64) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDRESSES_MAX {
            all.clear();
        }
        let bucket = all.entry(network(address)).or_insert(Bucket { count: 0, since_ms: now_ms });
        bucket.leak(now_ms, every_ms);
        let fits = burst == 0 || bucket.count < burst;
        bucket.count += u32::from(fits);
        fits
    }
}

impl Leaking {
    fn is_full(&self, address: IpAddr, now_ms: u64, burst: u32, every_ms: u64) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bucket) = all.get_mut(&network(address)) else { return false };
        bucket.leak(now_ms, every_ms);
        burst > 0 && bucket.count >= burst
    }
}

impl Bucket {
    fn leak(&mut self, now: u64, every_ms: u64) {
        let gone = (now.saturating_sub(self.since_ms) / every_ms.max(1)).min(u64::from(u32::MAX));
        self.count = self.count.saturating_sub(gone as u32);
        self.since_ms += gone * every_ms.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(slot: u32) -> ConnectionRef {
        ConnectionRef { shard: 0, slot, generation: 0 }
    }

    fn pushed_out(entered: &Entered) -> Vec<u32> {
        entered.pushed_out.iter().map(|(at, _)| at.slot).collect()
    }

    fn limited(limits: AdmissionLimits) -> Admission {
        Admission::new(limits)
    }

    #[test]
    fn an_address_that_guesses_is_told_once_a_minute_after_its_burst() {
        let admission = Admission::new(AdmissionLimits::default());
        let (evil, good) = (ip("127.0.0.9"), ip("127.0.0.1"));
        assert!((0..30).all(|_| admission.count_failure(evil, 0)));
        assert!(!admission.count_failure(evil, 59_999) && admission.count_failure(good, 0));
        assert!(admission.count_failure(evil, 60_000) && !admission.count_failure(evil, 60_001));
        assert!((0..30).all(|_| admission.count_failure(evil, 60_000 * 40)));
        // It is still challenged, at a rate; others as they like.
        let challenged = |at| (0..100).filter(|_| admission.may_challenge(evil, at)).count();
        assert_eq!([60_000 * 40, 60_000 * 40, 60_000 * 40 + 500].map(challenged), [20, 0, 10]);
        assert!((0..100).all(|_| admission.may_challenge(good, 60_000 * 40)));
    }

    #[test]
    fn the_oldest_silent_connection_of_an_address_makes_room_for_its_newest() {
        let admission =
            limited(AdmissionLimits { unauthenticated_per_address_max: 2, ..AdmissionLimits::default() });
        let (evil, good) = (ip("127.0.0.9"), ip("127.0.0.1"));
        let enter = |address, slot| admission.enter(address, Road::Mqtt, Some(at(slot))).unwrap();
        let (first, second, other) = (enter(evil, 1), enter(evil, 2), enter(good, 3));
        assert!([&first, &second, &other].iter().all(|entered| entered.pushed_out.is_empty()));
        let third = enter(evil, 4);
        assert_eq!(third.pushed_out, [(at(1), "unauthenticated_per_address")]);
        // It has left the books; that its socket ends later changes nothing.
        admission.leave(evil, first.ticket);
        admission.waits_no_longer(evil, second.ticket);
        assert!(pushed_out(&enter(evil, 5)).is_empty());
        assert_eq!((admission.total(), admission.unauthenticated()), (4, 3));
        // Who signs in while it is being pushed out stays, and is counted.
        assert_eq!(pushed_out(&enter(evil, 6)), [4]);
        admission.waits_no_longer(evil, third.ticket);
        assert_eq!(admission.total(), 5);
    }

    #[test]
    fn when_all_places_are_taken_the_fullest_listener_and_its_heaviest_address_give_theirs() {
        let limits = AdmissionLimits { unauthenticated_max: 7, ..AdmissionLimits::default() };
        let admission = limited(limits);
        let enter =
            |address, road, slot| pushed_out(&admission.enter(ip(address), road, Some(at(slot))).unwrap());
        assert!(enter("127.0.0.1", Road::Mqtt, 0).is_empty());
        assert!(enter("127.0.0.2", Road::Xmpp, 1).is_empty());
        for slot in 2..4 {
            assert!(enter("127.0.0.3", Road::Xmpp, slot).is_empty());
        }
        for slot in 4..7 {
            assert!(enter("127.0.0.4", Road::Http, slot).is_empty());
        }
        // Three each by XMPP and HTTP; on HTTP one address has three, on XMPP none has.
        let of_the_full = enter("127.0.0.5", Road::Mqtt, 7);
        assert!(of_the_full == [4] || of_the_full == [2], "{of_the_full:?}");
        for slot in 8..20 {
            let out = enter("127.0.0.5", Road::Mqtt, slot);
            assert!(!out.contains(&0) || slot > 12, "the oldest of all is of a light address");
            assert_eq!(out.len(), 1);
        }
        assert_eq!(admission.unauthenticated(), 7);
    }

    #[test]
    fn known_connections_need_no_place_among_the_silent_and_push_them_out_of_the_whole() {
        let limits = AdmissionLimits {
            connections_max: 3,
            per_address_max: 2,
            unauthenticated_per_address_max: 1,
            ..AdmissionLimits::default()
        };
        let admission = limited(limits);
        let (a, b, c) = (ip("127.0.0.1"), ip("127.0.0.2"), ip("127.0.0.3"));
        assert!(admission.enter(a, Road::Http, Some(at(1))).unwrap().pushed_out.is_empty());
        assert_eq!(admission.enter_known(a).unwrap(), Entered::default());
        // Two of `a`: its silent one goes, and then nobody can.
        assert_eq!(admission.enter_known(a).unwrap().pushed_out, [(at(1), "per_address")]);
        assert_eq!(admission.enter_known(a), Err(Full::Address));
        assert!(admission.enter(b, Road::Mqtt, Some(at(2))).unwrap().pushed_out.is_empty());
        assert_eq!(admission.enter_known(c).unwrap().pushed_out, [(at(2), "connections")]);
        assert_eq!(admission.enter(b, Road::Mqtt, Some(at(3))), Err(Full::Connections));
        for address in [a, a, c] {
            admission.leave(address, 0);
        }
        assert_eq!((admission.total(), admission.unauthenticated()), (0, 0));
        let books = admission.books();
        assert!(books.addresses.is_empty() && books.heaviest.is_empty());
    }

    #[test]
    fn a_place_without_a_socket_is_pushed_out_only_once_the_socket_is_there() {
        let limits = AdmissionLimits { unauthenticated_per_address_max: 1, ..AdmissionLimits::default() };
        let admission = limited(limits);
        let here = ip("127.0.0.1");
        let first = admission.enter(here, Road::Http, None).unwrap();
        assert_eq!(admission.enter(here, Road::Http, None), Err(Full::Address));
        admission.arrived(here, first.ticket, at(9));
        assert_eq!(pushed_out(&admission.enter(here, Road::Http, None).unwrap()), [9]);
    }

    #[test]
    fn the_lanes_of_the_refused_and_of_the_unnamed_are_bounded() {
        let admission = Admission::default();
        assert!((0..REFUSED_MAX).all(|_| admission.enter_refused()) && !admission.enter_refused());
        admission.refused_left();
        assert!(admission.enter_refused());
        assert!((0..UNNAMED_MAX).all(|_| admission.enter_unnamed()) && !admission.enter_unnamed());
        admission.unnamed_left();
        assert!(admission.enter_unnamed());
    }

    #[test]
    fn a_whole_ipv6_network_counts_as_one_address() {
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::ffff:2")));
        assert_ne!(network(ip("2001:db8::1")), network(ip("2001:db8:0:1::1")));
    }
}
