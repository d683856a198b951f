//! Any bytes to an XMPP server: before sign-in, after it, in a session, and in one with stream management; with the gateway's answers,
//! and messages on their way. However the bytes are cut, the connection ends in the same way.

use postrider_proto::xmpp::{
    AccountOutcome, Answer, Request, ScramKeys, ServerConfig, ServerConnection, StanzaOutcome,
};
use postrider_proto::{
    Deliver, Event, Fanned, Output, Publish, PublishOutcome, Qos, Reply, ServerProtocol, SubscribeOutcome,
};
use std::sync::Arc;

const OPEN: &[u8] = b"<stream:stream to='d' xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
const AUTH: &[u8] = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHUAcHc=</auth>";
const BIND: &[u8] = b"<iq id='b' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq><presence/>";
const ENABLE: &[u8] = b"<enable xmlns='urn:xmpp:sm:3' resume='true'/>";

/// What goes before the bytes.
const BEGINS: [&[&[u8]]; 6] = [
    &[],
    &[OPEN],
    &[OPEN, AUTH],
    &[OPEN, AUTH, OPEN],
    &[OPEN, AUTH, OPEN, BIND],
    &[OPEN, AUTH, OPEN, BIND, ENABLE],
];

/// The first byte chooses the beginning and the cut.
pub fn xmpp_server_bytes(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let begin = BEGINS[usize::from(choice) % BEGINS.len()];
    let step = 1 + usize::from(choice) / BEGINS.len();
    assert_eq!(ending(begin, data, step), ending(begin, data, usize::MAX));
}

fn ending(begin: &[&[u8]], data: &[u8], step: usize) -> Option<&'static str> {
    let config = ServerConfig {
        allows_plaintext: true,
        offers_registration: true,
        offers_legacy_auth: true,
        requests_max: usize::MAX,
        ..ServerConfig::default()
    };
    let mut connection = ServerConnection::new(Arc::new(config), [1; 32], 0);
    for part in begin {
        feed(&mut connection, part);
    }
    deliver(&mut connection);
    let end = data.chunks(step).find_map(|part| feed(&mut connection, part));
    if end.is_some() {
        assert_eq!(connection.window(), 0);
        assert!(feed(&mut connection, b"<presence/>").is_none(), "a closed connection says nothing more");
    }
    let _ = connection.take_saved_stream(1);
    end
}

fn deliver(connection: &mut ServerConnection) {
    for (delivery, payload) in [(1, "{\"id\":\"m\"}"), (2, "\u{1}")] {
        let mut fanned = Fanned::new(Publish { payload: payload.into(), ..Publish::default() });
        let how = Deliver {
            delivery,
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: Some(delivery),
        };
        connection.handle_deliver(&mut fanned, how, 0, &mut Vec::new());
    }
}

/// How the connection ended, if it did.
fn feed(connection: &mut ServerConnection, bytes: &[u8]) -> Option<&'static str> {
    let mut out = Output::default();
    connection.handle_bytes(bytes, 0, &mut out);
    while !out.events.is_empty() {
        for event in std::mem::take(&mut out.events) {
            if let Some(reply) = answer(event) {
                connection.handle_reply(reply, 0, &mut out);
            }
        }
    }
    assert!(std::str::from_utf8(&out.bytes).is_ok());
    out.close.map(|close| close.kind)
}

fn answer(event: Event) -> Option<Reply> {
    Some(match event {
        Event::Connect(_) => Reply::Connect(Ok(Box::default())),
        Event::Publish { token, .. } => Reply::Publish { token, outcome: PublishOutcome::Accepted },
        Event::Subscribe { token, filters, .. } => {
            let outcomes = filters.iter().map(|filter| SubscribeOutcome::Granted(filter.qos)).collect();
            Reply::Subscribe { token, outcomes }
        }
        Event::Unsubscribe { token, filters } => {
            Reply::Unsubscribe { token, existed: vec![true; filters.len()] }
        }
        Event::Xmpp(request) => Reply::Xmpp(match *request {
            Request::WrongProof { .. } => return None,
            Request::Keys { user, hash } => Answer::Keys(Box::new(ScramKeys::fake(hash, &user, b"s", 1))),
            Request::Account { token, .. } => Answer::Account { token, outcome: AccountOutcome::Done },
            Request::Items { token, .. } => Answer::Items { token, items: Ok(vec![Publish::default()]) },
            Request::Stanza { token, .. } => Answer::Stanza { token, outcome: StanzaOutcome::Unavailable },
        }),
        _ => return None,
    })
}
