//! What only XMPP asks of who reads the events, and the answers.

use super::scram::{ScramHash, ScramKeys};
use crate::{Publish, Text};
use bytes::Bytes;

/// Inside of [`crate::Event::Xmpp`]. `token`s come back in the [`Answer`].
#[derive(Debug)]
pub enum Request {
    /// The peer begins to prove that it knows the password of `user`. Answer: [`Answer::Keys`]; for a name that there is not,
    /// [`ScramKeys::fake`], so that nobody finds out which there are. Or [`Answer::NoKeys`].
    Keys { user: Text, hash: ScramHash },
    /// The proof for `user` was wrong: to be counted as a wrong password is (L31). No answer.
    WrongProof { user: Text },
    /// XEP-0077. Answer: [`Answer::Account`].
    Account { token: u32, user: Text, action: AccountAction },
    /// The last message of a topic (XEP-0060 §6.5). Answer: [`Answer::Items`].
    Items { token: u32, topic: Text },
    /// A stanza for another device. Answer: [`Answer::Stanza`].
    Stanza { token: u32, stanza: Stanza },
}

/// What is to become of an account.
#[derive(Clone, PartialEq, Eq)]
pub enum AccountAction {
    /// By a peer that has not signed in.
    Create { password: String },
    /// By its owner. Other connections of the account end.
    ChangePassword { password: String },
    /// By its owner. When it is gone, this connection ends too ([`crate::Goodbye::Revoked`]).
    Remove,
}

impl std::fmt::Debug for AccountAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AccountAction::Create { .. } => "Create",
            AccountAction::ChangePassword { .. } => "ChangePassword",
            AccountAction::Remove => "Remove",
        })
    }
}

/// A stanza on its way to another device: to be delivered as content with the topic [`super::STANZA_TOPIC`] and `bytes` as payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Stanza {
    /// The device's name.
    pub to: Text,
    /// A message that waits in the device's inbox until it is acknowledged (QoS 1). Otherwise it is for a device that is
    /// connected now, and lost if it is not (QoS 0).
    pub is_lasting: bool,
    /// The whole stanza, with the sender's full address in `from`.
    pub bytes: Bytes,
}

/// Inside of [`crate::Reply::Xmpp`].
#[derive(Debug)]
pub enum Answer {
    Keys(Box<ScramKeys>),
    /// Too many of this peer's address were left unanswered: there is no challenge now.
    NoKeys,
    Account {
        token: u32,
        outcome: AccountOutcome,
    },
    /// The last message, if the topic keeps one; `Err`: it is not for this peer.
    Items {
        token: u32,
        items: Result<Vec<Publish>, NotAllowed>,
    },
    Stanza {
        token: u32,
        outcome: StanzaOutcome,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllowed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountOutcome {
    Done,
    /// The name is taken.
    Conflict,
    NotAllowed,
    /// The name or the password is not fit for one.
    NotAcceptable,
    /// Too often, or the store takes nothing now.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StanzaOutcome {
    /// In the inbox, on stable storage; or written to the device that is connected.
    Accepted,
    /// There is no such device, or it is not connected and the stanza does not wait.
    Unavailable,
    NotAllowed,
    /// The inbox is full.
    QuotaExceeded,
    /// The store takes nothing now.
    TryLater,
}
