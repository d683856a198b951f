//! Sizes that a million connections depend on.

use postrider_proto::mqtt::ServerConnection;
use postrider_proto::ws::{MqttOverWs, XmppOverWs};
use postrider_proto::xmpp;

#[test]
fn a_connection_takes_few_bytes() {
    let bytes = size_of::<ServerConnection>();
    assert!(bytes <= 160, "mqtt::ServerConnection takes {bytes} bytes");
    let bytes = size_of::<MqttOverWs<ServerConnection>>();
    assert!(bytes <= 288, "over WebSocket it takes {bytes} bytes");
}

#[test]
fn an_xmpp_connection_takes_few_bytes() {
    let bytes = size_of::<xmpp::ServerConnection>();
    assert!(bytes <= 232, "xmpp::ServerConnection takes {bytes} bytes");
    let bytes = size_of::<XmppOverWs>();
    assert!(bytes <= 400, "over WebSocket it takes {bytes} bytes");
}
