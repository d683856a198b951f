//! Any bytes to an XMPP server. The body is in `crates/postrider-fuzz/src/xmpp.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider_fuzz::xmpp::xmpp_server_bytes(data));
