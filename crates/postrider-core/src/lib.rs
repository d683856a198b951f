//! What happens to a message: the delivery rules of postrider, without sockets, files or clocks.
//!
//! Read [`delivery`] for the life of a message, [`state`] for what is kept of it, [`port`] for what this crate asks of the
//! world. Adapters call [`Engine`]. No protocol's name occurs here.

pub mod access;
mod apps;
pub mod audience;
pub mod command;
pub mod delivery;
pub mod devices;
mod engine;
pub mod hub;
pub mod id;
pub mod jobs;
pub mod limits;
pub mod model;
pub mod port;
mod pruning;
pub mod seeded;
pub mod session;
mod shares;
pub mod state;
pub mod stored;
pub mod topics;
pub mod webhooks;

pub use engine::Engine;
