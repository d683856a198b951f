//! Any bytes on a WebSocket, and the same bytes cut otherwise: the messages are the same. Then MQTT over it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_proto::mqtt::{ServerConfig, ServerConnection};
use postrider_proto::ws::{self, Message, MqttOverWs, WsConfig, WsOutput};
use postrider_proto::{Close, Output, ServerProtocol};
use std::sync::Arc;

fn messages(data: &[u8], step: usize) -> (Vec<Message>, Vec<u8>, Option<Close>) {
    let mut connection = ws::ServerConnection::new(Arc::new(WsConfig::default()), 0);
    let mut out = WsOutput::default();
    for part in data.chunks(step) {
        connection.handle_bytes(part, 0, &mut out);
    }
    (out.messages, out.bytes, out.close)
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(messages(data, 1), messages(data, 7));
    assert_eq!(messages(data, 7), messages(data, data.len().max(1)));
    let inner = ServerConnection::new(Arc::new(ServerConfig::default()), 0);
    let mut connection = MqttOverWs::new(Arc::new(WsConfig::default()), inner);
    connection.handle_bytes(data, 0, &mut Output::default());
});
