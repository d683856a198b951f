//! Any bytes after a sign-in, at every level, cut by what the bytes themselves say; and the gateway's answers to them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_proto::mqtt::{ServerConfig, ServerConnection};
use postrider_proto::{
    Deliver, Event, Fanned, Output, Publish, PublishOutcome, Qos, Reply, ServerProtocol, SubscribeOutcome,
    Text,
};
use std::sync::Arc;

const CONNECTS: [&[u8]; 4] = [
    b"\x10\x0F\0\x06MQIsdp\x03\x02\0\x3C\0\x01c",
    b"\x10\x0D\0\x04MQTT\x04\x02\0\x3C\0\x01c",
    b"\x10\x11\0\x04MQTT\x05\x02\0\x3C\x03\x22\0\x04\0\x01c",
    b"",
];

fn feed(connection: &mut ServerConnection, bytes: &[u8]) -> bool {
    let mut out = Output::default();
    connection.handle_bytes(bytes, 0, &mut out);
    let mut is_closed = out.close.is_some();
    while !out.events.is_empty() {
        for event in std::mem::take(&mut out.events) {
            let reply = match event {
                Event::Connect(_) => Reply::Connect(Ok(Box::default())),
                Event::Publish { token, .. } => Reply::Publish { token, outcome: PublishOutcome::Accepted },
                Event::Subscribe { token, filters, .. } => {
                    let outcomes =
                        filters.iter().map(|filter| SubscribeOutcome::Granted(filter.qos)).collect();
                    Reply::Subscribe { token, outcomes }
                }
                Event::Unsubscribe { token, filters } => {
                    Reply::Unsubscribe { token, existed: vec![true; filters.len()] }
                }
                _ => continue,
            };
            connection.handle_reply(reply, 0, &mut out);
            is_closed |= out.close.is_some();
        }
    }
    is_closed
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let mut connection = ServerConnection::new(Arc::new(ServerConfig::default()), 0);
    feed(&mut connection, CONNECTS[usize::from(choice) % CONNECTS.len()]);
    let mut fanned = Fanned::new(Publish { topic: Text::from("t"), ..Publish::default() });
    for (delivery, qos) in [Qos::AtLeastOnce, Qos::ExactlyOnce].into_iter().enumerate() {
        let how = Deliver {
            delivery: delivery as u64,
            qos,
            retain: false,
            dup: false,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        connection.handle_deliver(&mut fanned, how, 0, &mut Vec::new());
    }
    let step = 1 + usize::from(choice >> 2);
    for part in data.chunks(step) {
        if feed(&mut connection, part) {
            assert_eq!(connection.window(), 0);
            break;
        }
    }
    let _ = connection.take_inflight();
});
