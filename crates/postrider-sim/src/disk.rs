//! The disk of a world: small segments, so that a minute sees many of them.

use crate::plan::Plan;
use postrider_store::EmbeddedConfig;

pub const DIR: &str = "/data";

pub fn config(plan: &Plan) -> EmbeddedConfig {
    EmbeddedConfig {
        segment_bytes: plan.segment_bytes,
        checkpoint_bytes: u64::MAX,
        close_checkpoint_bytes: 0,
        events_segment_bytes: 4 * 1024,
        min_free_bytes: 0,
        min_free_percent: 0,
        reserve_bytes: 0,
        ..EmbeddedConfig::new(DIR)
    }
}
