//! Step 5, by another road. A provider took deliveries to bring them to their devices: they are
//! `forwarded`, and stay open until a device acknowledges or their time is over.
//!
//! This is where whoever speaks to providers says so. None does yet.

use crate::Engine;
use crate::command::*;
use crate::id::*;
use crate::port::*;
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
}

impl Engine {
    /// A provider took these deliveries. `done` gets how many of them were still open, had not gone
    /// this road before, and have a report: what has ended is not brought back by a provider.
    pub fn forwarded(
        &self,
        app: AppNo,
        road: &Road,
        deliveries: Vec<(DeviceNo, Seq)>,
        done: Box<dyn FnOnce(Result<usize, StoreError>) + Send>,
    ) {
        let now = self.clock.now();
        let forward = Forward { app, road: road.0.clone(), deliveries, now };
        self.submit_steps(Command::Forward(Box::new(forward)), done);
    }
}
