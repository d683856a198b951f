//! The header of a proxy. The body is in `crates/postrider-fuzz/src/bodies.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider_fuzz::bodies::proxy_header(data));
