//! Every public body, by the stable runner.

use postrider_fuzz::{bodies, run};

#[test]
fn fuzz_mqtt_server_bytes() {
    run("mqtt_server_bytes", bodies::mqtt_server_bytes);
}

#[test]
fn fuzz_mqtt_client_bytes() {
    run("mqtt_client_bytes", bodies::mqtt_client_bytes);
}

#[test]
fn fuzz_mqtt_codec_round_trip() {
    run("mqtt_codec_round_trip", bodies::mqtt_codec_round_trip);
}

#[test]
fn fuzz_proxy_header() {
    run("proxy_header", bodies::proxy_header);
}

#[test]
fn fuzz_topic_matcher() {
    run("topic_matcher", bodies::topic_matcher);
}

#[test]
fn fuzz_ws_server_bytes() {
    run("ws_server_bytes", bodies::ws_server_bytes);
}

#[test]
fn fuzz_xmpp_server_bytes() {
    run("xmpp_server_bytes", postrider_fuzz::xmpp::xmpp_server_bytes);
}

#[test]
fn fuzz_json_socket_bytes() {
    run("json_socket_bytes", postrider_fuzz::json::json_socket_bytes);
}
