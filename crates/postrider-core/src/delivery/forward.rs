//! Roads: how a provider is named that took deliveries to bring them to their devices. Such deliveries are
//! `forwarded`, and stay open until a device acknowledges or their time is over.
//!
//! Whoever speaks to providers says so by `ReceiptSource::Provider`. Nobody does yet.

use std::sync::Arc;

/// The longest name of a road.
const ROAD_BYTES_MAX: usize = 64;

/// The name of a road: of a provider, as the app knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Road(Arc<str>);

impl Road {
    /// `None` for what is empty or longer than 64 bytes.
    pub fn new(name: &str) -> Option<Road> {
        (1..=ROAD_BYTES_MAX).contains(&name.len()).then(|| Road(name.into()))
    }

    pub fn name(&self) -> &Arc<str> {
        &self.0
    }
}
