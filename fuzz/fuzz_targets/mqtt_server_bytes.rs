//! Any bytes of a client. The body is in `crates/postrider-fuzz/src/bodies.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider_fuzz::bodies::mqtt_server_bytes(data));
