//! Panics on purpose, in threads: whoever holds a build with the feature `planted-panics` names a place, and the thread
//! that comes by there panics. It shows that no thread ends without the process saying so.
//!
//! Without the feature there is nothing here.

/// From now on, the next thread that comes by `place` panics.
#[cfg(feature = "planted-panics")]
pub fn plant(place: &str) {
    *PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(place.to_owned());
}

#[cfg(feature = "planted-panics")]
static PLANTED: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);

/// Panics where that was planted.
#[cfg(feature = "planted-panics")]
pub fn panic_in(place: &str) {
    let mut planted = PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if planted.as_deref() == Some(place) {
        *planted = None;
        drop(planted);
        panic!("planted in the thread {place}");
    }
}

#[cfg(not(feature = "planted-panics"))]
#[inline(always)]
pub const fn panic_in(_: &str) {}
