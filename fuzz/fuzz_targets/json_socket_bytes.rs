//! Any frames to a JSON connection. The body is in `crates/postrider-fuzz/src/json.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider_fuzz::json::json_socket_bytes(data));
