//! Any bytes to an XMPP server. The body is in `fuzz/bodies`, where the tests of postrider-proto run it too.
#![no_main]

#[path = "../bodies/xmpp_server_bytes.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::xmpp_server_bytes(data));
