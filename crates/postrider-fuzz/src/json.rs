//! Any text to a connection that speaks JSON over a WebSocket: before the sign-in and after it, with the gateway's answers.

use postrider_proto::json::{JsonConfig, SocketConnection};
use postrider_proto::ws::frame::{Opcode, write_client_frame};
use postrider_proto::ws::{ServerConnection, WsConfig};
use postrider_proto::{
    Deliver, Delivered, Event, Fanned, Output, PUSH_TOPIC, Publish, PublishOutcome, Qos, Reply,
    ServerProtocol, SubscribeOutcome, Subscription,
};
use std::sync::Arc;

const HELLO: &[u8] = br#"{"type":"hello","device":"d","secret":"s"}"#;

/// Lines are frames; with an odd first byte they come after a sign-in. Whatever is delivered is JSON.
pub fn json_socket_bytes(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let ws = ServerConnection::new(Arc::new(WsConfig::default()), 0);
    let mut connection = SocketConnection::new(Arc::new(JsonConfig::default()), ws, 0);
    if choice & 1 == 1 {
        feed(&mut connection, HELLO);
        deliver(&mut connection, data);
    }
    for line in data.split(|byte| *byte == b'\n') {
        if feed(&mut connection, line) {
            assert_eq!(connection.window(), 0);
            break;
        }
    }
}

fn deliver(connection: &mut SocketConnection, payload: &[u8]) {
    for topic in [PUSH_TOPIC, "a/b"] {
        let publish = Publish { topic: topic.into(), payload: payload.to_vec().into(), ..Publish::default() };
        let how = Deliver {
            delivery: 7,
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: true,
            subscription_ids: &[],
            expiry_left_secs: None,
            cursor: None,
            late_since: None,
        };
        let mut bytes = Vec::new();
        let written = connection.handle_deliver(&mut Fanned::new(publish), how, 0, &mut bytes);
        assert_eq!(written, Delivered::Written);
        let start = match bytes[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let frame: Result<serde_json::Value, _> = serde_json::from_slice(&bytes[start..]);
        assert!(frame.is_ok_and(|f| f["delivery"] == "7"), "a frame is not JSON: {bytes:02x?}");
    }
}

/// Lets the connection read one text frame and answers its events; true when it wants to close.
fn feed(connection: &mut SocketConnection, text: &[u8]) -> bool {
    let (mut bytes, mut out) = (Vec::new(), Output::default());
    write_client_frame(Opcode::Text, true, text, [1, 2, 3, 4], &mut bytes);
    connection.handle_bytes(&bytes, 0, &mut out);
    let mut is_closed = out.close.is_some();
    while !out.events.is_empty() {
        for event in std::mem::take(&mut out.events) {
            if let Some(reply) = reply_to(&event) {
                connection.handle_reply(reply, 0, &mut out);
                is_closed |= out.close.is_some();
            }
        }
    }
    is_closed
}

fn reply_to(event: &Event) -> Option<Reply> {
    let outcome = PublishOutcome::Accepted;
    match event {
        Event::Connect(_) => Some(Reply::Connect(Ok(Box::default()))),
        Event::Publish { token, .. } | Event::Receipt { token, .. } => {
            Some(Reply::Publish { token: *token, outcome })
        }
        Event::Subscribe { token, filters, .. } => {
            let granted = |f: &Subscription| SubscribeOutcome::Granted(f.qos);
            Some(Reply::Subscribe { token: *token, outcomes: filters.iter().map(granted).collect() })
        }
        Event::Unsubscribe { token, filters } => {
            Some(Reply::Unsubscribe { token: *token, existed: vec![true; filters.len()] })
        }
        Event::Ping => Some(Reply::Ping { time_ms: 0 }),
        _ => None,
    }
}
