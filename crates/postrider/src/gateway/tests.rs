//! The gateway itself, on sockets of this machine, over the memory store.

use super::*;
use crate::config::Config;
use crate::gateway::listener::{Listens, bind};
use crate::platform::OsChance;
use crate::supervise::Supervisor;
use postrider_core::access::Access;
use postrider_core::command::{Command, Outcome};
use postrider_core::limits::Limits;
use postrider_core::model::*;
use postrider_core::port::{Clock, Done, Store};
use postrider_core::session::secret_hash;
use postrider_store::MemoryStore;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> u64 {
        std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
    }
}

/// A gateway with one worker, an MQTT and an XMPP listener, and one device `d1` with the secret `secret`.
struct Live {
    gateway: Gateway,
    store: MemoryStore,
    supervisor: Supervisor,
    metrics: GatewayMetrics,
    mqtt: SocketAddr,
    xmpp: SocketAddr,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.supervisor.stopping();
        self.gateway.stop();
    }
}

fn submit(store: &MemoryStore, command: Command) -> Outcome {
    let (tell, told) = std::sync::mpsc::channel();
    let done: Done = Box::new(move |outcomes| tell.send(outcomes).unwrap());
    store.submit(vec![command], done);
    told.recv().unwrap().unwrap().remove(0)
}

impl Live {
    fn start(change: impl FnOnce(&mut Config)) -> Live {
        let mut config = Config::default();
        config.xmpp.allow_plaintext = true;
        change(&mut config);
        let store = MemoryStore::new();
        submit(&store, Command::CreateApp { id: "default".into(), name: "default".into(), at: 1 });
        let registration = postrider_core::command::Registration {
            origin: None,
            quota: None,
            app: AppNo(0),
            id: "d1".into(),
            secret_hash: Some(secret_hash(b"secret")),
            profile: Profile::default(),
            now: 1,
            idempotency: None,
        };
        submit(&store, Command::Register(Box::new(registration)));
        let limits = Limits { connects_per_minute_max: 0, ..config.core_limits() };
        let port: Arc<dyn Store> = Arc::new(store.clone());
        let engine = Engine::new(port, limits, Access::default(), Arc::new(WallClock), Arc::new(OsChance));
        let (mqtt, mqtt_listeners) = bind(([127, 0, 0, 1], 0).into(), 1).unwrap();
        let (xmpp, xmpp_listeners) = bind(([127, 0, 0, 1], 0).into(), 1).unwrap();
        let all = mqtt_listeners.into_iter().map(|l| (l, Listens::Mqtt));
        let all = all.chain(xmpp_listeners.into_iter().map(|l| (l, Listens::Xmpp)));
        let (metrics, supervisor) = (GatewayMetrics::default(), Supervisor::default());
        let tokens = Arc::new(Tokens::new(None, &OsChance));
        let settings = config.gateway_settings(AppNo(0), None);
        let gateway = Gateway::start(
            engine,
            tokens,
            settings,
            metrics.clone(),
            (vec![all.collect()], supervisor.clone()),
        )
        .unwrap();
        Live { gateway, store, supervisor, metrics, mqtt, xmpp }
    }

    fn refused(&self, limit: &str) -> u64 {
        self.metrics.connections_refused.get_or_create(&label("limit", limit)).get()
    }

    fn closed(&self, kind: &str) -> u64 {
        self.metrics.connections_closed.get_or_create(&label("kind", kind)).get()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // Only a test that fails waits so long.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// CONNECT of MQTT 5 by the device.
fn sign_in(client: &str) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x05\xc2\0\x3c\0".to_vec();
    for text in [client, "d1", "secret"] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    [&[0x10, body.len() as u8][..], &body].concat()
}

/// The reason code of the CONNACK.
fn connack(stream: &mut TcpStream) -> u8 {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 0x20, "{head:?}");
    let mut body = vec![0; head[1].into()];
    stream.read_exact(&mut body).unwrap();
    body[1]
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    _ = stream.read_to_end(&mut all);
    all
}

#[test]
fn silent_connections_make_room_for_the_one_that_signs_in() {
    let live = Live::start(|config| config.gateway.unauthenticated_per_address_max = 3);
    let mut silent: Vec<TcpStream> = (0..3).map(|_| connect(live.mqtt)).collect();
    let mut phone = connect(live.mqtt);
    phone.write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut phone), 0);
    assert_eq!(rest(&mut silent[0]), b"", "the oldest went");
    assert_eq!((live.refused("unauthenticated_per_address"), live.closed("busy")), (1, 1));
    // The others may still sign in.
    silent[1].write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut silent[1]), 0);
}

#[test]
fn a_listener_that_is_flooded_keeps_nobody_from_another() {
    let live = Live::start(|config| {
        config.gateway.unauthenticated_max = 4;
        config.gateway.unauthenticated_per_address_max = 0;
    });
    let mut phone = connect(live.mqtt);
    let mut flood = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(live.xmpp);
        stream.write_all(b"<stream:stream to='localhost' xmlns='jabber:client'").unwrap();
        flood.push(stream);
    }
    // The last of them is in once the first seventeen are out.
    for stream in &mut flood[..17] {
        rest(stream);
    }
    phone.write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut phone), 0, "the oldest of all was no one of the flood");
    assert_eq!(live.refused("unauthenticated"), 17);
}

#[test]
fn a_connection_without_a_place_is_told_so_in_its_own_words() {
    let live = Live::start(|config| config.gateway.per_address_max = 1);
    let mut phone = connect(live.mqtt);
    phone.write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut phone), 0);
    let mut second = connect(live.mqtt);
    second.write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut second), 0x89, "server busy");
    let mut third = connect(live.xmpp);
    third.write_all(b"<stream:stream to='localhost' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>").unwrap();
    let told = String::from_utf8(rest(&mut third)).unwrap();
    assert!(told.contains("<resource-constraint"), "{told}");
    assert_eq!(live.refused("per_address"), 2);
    assert_eq!(live.gateway.reserve(([127, 0, 0, 1], 5).into(), true).err(), Some(Full::Address));
    // They took nobody's place: the phone is still there.
    phone.write_all(&[0xc0, 0]).unwrap();
    let mut pong = [0; 2];
    phone.read_exact(&mut pong).unwrap();
    assert_eq!(pong, [0xd0, 0]);
}

#[test]
fn a_place_that_is_held_and_not_used_is_given_back() {
    let live = Live::start(|config| config.gateway.per_address_max = 1);
    let here = ([127, 0, 0, 1], 5).into();
    for is_known in [true, false, true, true] {
        drop(live.gateway.reserve(here, is_known).unwrap());
    }
    assert_eq!(live.gateway.counts(), (0, 0));
}

#[test]
fn behind_a_proxy_connections_count_for_the_address_that_it_names() {
    let live = Live::start(|config| {
        config.gateway.per_address_max = 1;
        config.proxy_protocol.mqtt = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
    });
    let begin = |header: &[u8], client: &str| {
        let mut stream = connect(live.mqtt);
        stream.write_all(&header[..5]).unwrap();
        stream.write_all(&[&header[5..], &sign_in(client)].concat()).unwrap();
        let code = connack(&mut stream);
        (stream, code)
    };
    let v1 = |n: u8| format!("PROXY TCP4 203.0.113.{n} 192.0.2.1 5 1883\r\n").into_bytes();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([203, 0, 113, 2, 192, 0, 2, 1, 0, 7, 7, 0x5b]);
    let first = begin(&v1(1), "phone");
    let second = begin(&v2, "phone");
    assert_eq!((first.1, second.1), (0, 0));
    // A second one of the same client is one too many.
    assert_eq!(begin(&v1(2), "phone").1, 0x89);
    let mut bare = connect(live.mqtt);
    bare.write_all(&sign_in("phone")).unwrap();
    assert_eq!((rest(&mut bare), live.closed("no_proxy_header")), (Vec::new(), 1));
    // Nobody else is believed, and the operator can see why it fails.
    let mut stranger = connect(live.xmpp);
    stranger.write_all(&v1(3)).unwrap();
    assert_eq!((rest(&mut stranger), live.closed("proxy_not_trusted")), (Vec::new(), 1));
}

#[test]
fn a_subscription_that_is_there_already_is_not_written_once_more() {
    let live = Live::start(|_| {});
    let mut phone = connect(live.mqtt);
    // MQTT 3.1.1, a session that lasts.
    phone.write_all(b"\x10\x19\0\x04MQTT\x04\xc0\0\x3c\0\x01p\0\x02d1\0\x06secret").unwrap();
    assert_eq!(connack(&mut phone), 0);
    let mut ask = |packet: &[u8], answer: &[u8]| {
        phone.write_all(packet).unwrap();
        let mut told = vec![0; answer.len()];
        phone.read_exact(&mut told).unwrap();
        assert_eq!(told, answer);
        live.store.stats().commands
    };
    let subscribe = |qos| [&b"\x82\x10\0\x01\0\x0bdevices/d1/"[..], &[qos]].concat();
    let first = ask(&subscribe(1), &[0x90, 3, 0, 1, 1]);
    for _ in 0..3 {
        assert_eq!(ask(&subscribe(1), &[0x90, 3, 0, 1, 1]), first, "nothing changed");
    }
    let second = ask(&subscribe(0), &[0x90, 3, 0, 1, 0]);
    assert!(second > first);
    let unsubscribe = b"\xa2\x0f\0\x01\0\x0bdevices/d1/";
    let third = ask(unsubscribe, &[0xb0, 2, 0, 1]);
    assert!(third > second);
    assert_eq!(ask(unsubscribe, &[0xb0, 2, 0, 1]), third, "there was nothing to take away");
    assert!(ask(&subscribe(0), &[0x90, 3, 0, 1, 0]) > third);
}

/// An XMPP stream in clear up to the challenge, or what is said instead of one.
fn ask_for_challenge(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(address);
    let first = "n,,n=d1,r=abcdefghijklmnop";
    let first = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, first);
    let open = "<stream:stream to='localhost' xmlns='jabber:client' \
                xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
    let auth =
        format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>{first}</auth>");
    stream.write_all(format!("{open}{auth}").as_bytes()).unwrap();
    let mut told = String::new();
    let mut byte = [0];
    while !["</challenge>", "</failure>"].iter().any(|end| told.ends_with(end)) {
        stream.read_exact(&mut byte).unwrap();
        told.push(byte[0].into());
    }
    (stream, told)
}

#[test]
fn an_address_that_leaves_challenges_unanswered_gets_them_at_a_rate() {
    let live = Live::start(|config| config.gateway.failures_burst = 3);
    let challenges = (0..200).filter(|_| {
        let (mut stream, told) = ask_for_challenge(live.xmpp);
        // Gone, and seen to be gone, without an answer.
        stream.write_all(b"</stream:stream>").unwrap();
        rest(&mut stream);
        told.contains("<challenge")
    });
    let begun = Instant::now();
    let count = challenges.count();
    // The first three, and then no more than twenty a second, twenty of them at once.
    let most = 3 + 20 + begun.elapsed().as_millis() / 50 + 1;
    assert!((23..=most as usize).contains(&count), "{count} of 200, {most} at most");
    // Right credentials of the same address are taken all the while.
    let mut phone = connect(live.mqtt);
    phone.write_all(&sign_in("phone")).unwrap();
    assert_eq!(connack(&mut phone), 0);
}

#[test]
fn publishes_of_one_piece_that_find_no_room_are_told_so_one_by_one() {
    let live = Live::start(|config| config.limits.app_messages_max = 2);
    let mut phone = connect(live.mqtt);
    // A session that lasts an hour, with a subscription to its own topic.
    let mut packet = sign_in("phone");
    packet[9] = 0xc0;
    packet[12] = 5;
    packet.splice(13..13, [0x11, 0, 0, 0x0e, 0x10]);
    packet[1] += 5;
    phone.write_all(&packet).unwrap();
    assert_eq!(connack(&mut phone), 0);
    phone.write_all(b"\x82\x11\0\x01\0\0\x0bdevices/d1/\x01").unwrap();
    let mut suback = [0; 6];
    phone.read_exact(&mut suback).unwrap();
    assert_eq!(suback, [0x90, 4, 0, 1, 0, 1]);
    let publish = |n: u8| [&b"\x32\x11\0\x0bdevices/d1/\0"[..], &[n, 0, b'x']].concat();
    phone.write_all(&(1..=4).flat_map(publish).collect::<Vec<u8>>()).unwrap();
    let mut codes = [None; 4];
    while codes.contains(&None) {
        let mut head = [0; 2];
        phone.read_exact(&mut head).unwrap();
        let mut body = vec![0; head[1].into()];
        phone.read_exact(&mut body).unwrap();
        if head[0] == 0x40 {
            codes[usize::from(body[1]) - 1] = Some(body.get(2).copied().unwrap_or(0));
        }
    }
    assert_eq!(codes, [Some(0), Some(0), Some(0x97), Some(0x97)], "quota exceeded");
}
