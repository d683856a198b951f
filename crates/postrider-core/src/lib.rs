//! What happens to a message: the delivery rules of postrider.

pub mod command;
pub mod id;
pub mod model;
pub mod port;
pub mod state;
pub mod topics;
