//! The only crate that connects to third parties.
//!
//! Today these are the receivers of webhooks. What is decided is pure and apart from what connects:
//!
//! - [`guard`]: which URLs and addresses may be connected to at all.
//! - [`sign`]: the signature of a request, after Standard Webhooks.
//! - [`seal`]: secrets as they are stored.
//! - [`attempts`]: what comes of an attempt: when the next one is, when to give up.
//! - [`client`]: one request over one connection, with a bound on everything a receiver controls.
//! - [`webhooks`]: a worker for each webhook, which reads receipts, sends them and keeps the books.

pub mod attempts;
pub mod client;
pub mod guard;
pub mod seal;
pub mod sign;
pub mod webhooks;
