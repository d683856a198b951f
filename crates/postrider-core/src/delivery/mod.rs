//! The life of a message, in order:
//!
//! 1. [`accept`]: a sender's message is checked, gets its id and expiry, its audience becomes a set, and it is committed;
//! 2. [`publish`]: a message on a topic finds its subscribers; those who are away get it by their inbox, like a push;
//! 3. [`dispatch`]: what is on stable storage wakes the connections that it concerns (payload-free);
//! 4. [`drain`]: a woken or new connection takes from its inbox as much as its window allows;
//! 5. [`receipt`]: acknowledgements and reports of devices become steps on the ladder, and end deliveries;
//!    [`forward`]: what a provider took by another road stays open meanwhile;
//! 6. [`expire`]: time passes: TTLs, session ends, delayed wills, old reports.

pub mod accept;
pub mod between;
pub mod dispatch;
pub mod drain;
pub mod expire;
pub mod forward;
pub mod publish;
pub mod receipt;
pub(crate) mod repeats;
pub mod request;
mod submission;
