//! Panics on purpose: a payload that names a place panics there. `conformance/panics.py` shows that nobody else suffers (P15).
//!
//! Without the feature `planted-panics` there is nothing here.

/// Panics where the feature is on and the bytes are `panic in <place>`.
#[cfg(feature = "planted-panics")]
pub fn panic_in(place: &str, bytes: &[u8]) {
    if let Some(thread) = bytes.strip_prefix(b"panic in thread ") {
        return postrider_store::planted::plant(&String::from_utf8_lossy(thread));
    }
    if bytes.strip_prefix(b"panic in ").is_some_and(|named| named == place.as_bytes()) {
        panic!("planted in {place}");
    }
}

/// Panics where a payload `panic in thread <name>` came before.
pub fn panic_in_thread(name: &str) {
    postrider_store::planted::panic_in(name);
}

#[cfg(not(feature = "planted-panics"))]
#[inline(always)]
pub const fn panic_in(_: &str, _: &[u8]) {}
