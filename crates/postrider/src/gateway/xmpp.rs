//! Between XMPP's words and the core's: accounts, proofs, and what devices send to each other.

use super::driver::Driver;
use super::mailbox::Mail;
use super::{Reply, Shared, mqtt};
use crate::proof;
use hmac::{Hmac, KeyInit, Mac};
use postrider_core::delivery::between::SendError;
use postrider_core::devices::{DeviceError, NewDevice};
use postrider_core::id::{AppNo, DeviceRef};
use postrider_core::model::{Origin, Platform, Profile};
use postrider_proto as proto;
use postrider_proto::Text;
use postrider_proto::xmpp::{
    AccountAction, AccountOutcome, Answer, ChannelBinding, NotAllowed, Request, ScramHash, ScramKeys, Stanza,
    StanzaOutcome,
};
use sha2::Sha256;

impl Driver {
    pub(super) fn act_on_xmpp(&mut self, slot: u32, request: Request) {
        match request {
            Request::Keys { user, hash } => {
                let answer = match self.begin_challenge(slot) {
                    true => Answer::Keys(Box::new(self.keys_of(&user, hash))),
                    false => Answer::NoKeys,
                };
                self.answer_xmpp(slot, answer);
            }
            Request::WrongProof { user } => self.count_wrong_proof(slot, &user),
            Request::Account { token, user, action } => self.change_account(slot, token, &user, action),
            Request::Items { token, topic } => {
                self.charge(slot);
                let items = self.items(slot, &topic);
                self.answer_xmpp(slot, Answer::Items { token, items });
            }
            Request::Stanza { token, stanza } => self.send_stanza(slot, token, stanza),
        }
    }

    fn answer_xmpp(&mut self, slot: u32, answer: Answer) {
        self.answer(slot, proto::Reply::Xmpp(answer));
    }

    /// Names that there are not, and devices without keys, get keys that fit no secret.
    fn keys_of(&self, user: &str, hash: ScramHash) -> ScramKeys {
        let engine = &self.shared.engine;
        let (app, name) = self.app_and_name(user);
        let at = engine.store.device_by_id(app, name);
        let kept = at.and_then(|at| engine.store.sign_in(at)?.proof_keys);
        kept.and_then(|kept| proof::keys_of(&kept, hash)).unwrap_or_else(|| {
            let name = self.whole_name(user);
            ScramKeys::fake(hash, &name, &fake_secret(&self.shared), proof::ITERATIONS)
        })
    }

    /// A name with its app, as far as the name alone tells: `x` and `default/x` are one device, so they must have one salt
    /// where there is none too. Which apps there are does not come into it.
    fn whole_name(&self, user: &str) -> String {
        let app = || self.shared.engine.store.app(self.shared.config.app).map(|app| app.id);
        if user.contains('/') { user.to_owned() } else { format!("{}/{user}", app().unwrap_or_default()) }
    }

    /// Whether the peer is challenged. It has to answer: one that asks again, or goes, has failed.
    fn begin_challenge(&mut self, slot: u32) -> bool {
        self.leave_challenge(slot);
        let Some(peer) = self.conn(slot).map(|c| c.peer) else { return false };
        let may = self.shared.admission.may_challenge(peer, self.now);
        if let Some(conn) = self.conn(slot).filter(|_| may) {
            conn.owes_proof = true;
        }
        may
    }

    /// A challenge that waits for its answer gets none.
    pub(super) fn leave_challenge(&mut self, slot: u32) {
        let Some(conn) = self.conn(slot).filter(|c| c.owes_proof) else { return };
        conn.owes_proof = false;
        let peer = conn.peer;
        if self.shared.admission.count_failure(peer, self.now) {
            tracing::debug!(%peer, "a challenge to prove a password was left unanswered");
        }
    }

    fn count_wrong_proof(&mut self, slot: u32, user: &str) {
        let Some(conn) = self.conn(slot) else { return };
        conn.owes_proof = false;
        let peer = conn.peer;
        if self.shared.admission.count_failure(peer, self.now) {
            tracing::info!(%peer, user = self.loggable(Some(user)), "a proof of a password was wrong");
        }
    }

    fn change_account(&mut self, slot: u32, token: u32, user: &str, action: AccountAction) {
        let at = self.reference(slot);
        let mailbox = self.mailbox.clone();
        let tell = move |outcome| {
            let answer = Answer::Account { token, outcome };
            mailbox.post(Mail::Reply(at, Reply::Protocol(proto::Reply::Xmpp(answer))));
        };
        self.charge(slot);
        let Some(conn) = self.conn(slot) else { return };
        if conn.busy().changes_account {
            return self.answer_account(slot, token, AccountOutcome::Unavailable);
        }
        conn.busy().changes_account = true;
        conn.uncommitted += 1;
        let (peer, session) = (conn.peer, conn.session);
        let own = session.and_then(|session| self.shared.engine.session_device(session));
        let shared = self.shared.clone();
        match (action, own) {
            (AccountAction::Create { password }, None) => {
                if !shared.admission.count_registration(peer, self.now) {
                    tracing::info!(%peer, "a registration was refused, one of many");
                    return tell(AccountOutcome::Unavailable);
                }
                let (name, keys) = (user.to_owned(), shared.clone());
                self.derive(tell, move |tell| create(&keys, name, password, tell));
            }
            (AccountAction::ChangePassword { password }, Some(at)) => {
                self.derive(tell, move |tell| change_password(&shared, at, &password, tell));
            }
            (AccountAction::Remove, Some(at)) => {
                let told = |removed: Result<_, _>| {
                    removed.map_or(AccountOutcome::Unavailable, |_| AccountOutcome::Done)
                };
                shared.engine.delete_own_device(at, Box::new(move |removed| tell(told(removed))));
            }
            _ => tell(AccountOutcome::NotAllowed),
        }
    }

    /// Hands work on an account to the thread for it, or answers that too much of it waits.
    fn derive<T>(&self, tell: T, work: impl FnOnce(T) + Send + 'static)
    where
        T: FnOnce(AccountOutcome) + Clone + Send + 'static,
    {
        let job = tell.clone();
        if !self.shared.accounts.submit(move || work(job)) {
            tell(AccountOutcome::Unavailable);
        }
    }

    fn answer_account(&mut self, slot: u32, token: u32, outcome: AccountOutcome) {
        self.answer_xmpp(slot, Answer::Account { token, outcome });
    }

    /// The retained message of a topic; filters name none.
    fn items(&mut self, slot: u32, topic: &Text) -> Result<Vec<proto::Publish>, NotAllowed> {
        let session = self.conn(slot).and_then(|c| c.session).ok_or(NotAllowed)?;
        let engine = &self.shared.engine;
        if topic.contains(['+', '#']) || !engine.session_may_receive(session, topic) {
            return Err(NotAllowed);
        }
        Ok(engine.retained(session, topic).iter().map(|found| mqtt::publish_of(&found.content)).collect())
    }

    fn send_stanza(&mut self, slot: u32, token: u32, stanza: Stanza) {
        self.shared.metrics.messages_in.inc();
        self.charge(slot);
        let at = self.reference(slot);
        let Stanza { to, is_lasting, bytes } = stanza;
        let (app, name) = self.app_and_name(&to);
        let engine = self.shared.engine.clone();
        let Some(session) = self.conn(slot).and_then(|c| c.session) else { return };
        let outcome = if !self.shared.config.xmpp.device_messages {
            StanzaOutcome::NotAllowed
        } else if engine.session_device(session).is_none_or(|own| own.app != app) {
            StanzaOutcome::Unavailable
        } else if is_lasting {
            let mailbox = self.mailbox.clone();
            let done = move |sent: Result<(), SendError>| {
                let answer = Answer::Stanza { token, outcome: stanza_outcome(sent) };
                mailbox.post(Mail::Reply(at, Reply::Protocol(proto::Reply::Xmpp(answer))));
            };
            engine.send_lasting(session, name, bytes, Box::new(done));
            if let Some(conn) = self.conn(slot) {
                conn.uncommitted += 1;
            }
            return;
        } else {
            stanza_outcome(engine.send_passing(session, name, bytes))
        };
        self.answer_xmpp(slot, Answer::Stanza { token, outcome });
    }

    /// TLS is up: the protocol hears of it before it hears anything that came inside.
    pub(super) fn tell_of_tls(&mut self, slot: u32) {
        let config = &self.shared.config;
        let end_point = config.tls.as_ref().and_then(|tls| tls.end_point.clone());
        let binds = config.xmpp.binds_channels;
        let Some(conn) = self.conn(slot).filter(|c| c.awaits_tls) else { return };
        let Some(exporter) = conn.transport.exporter() else { return };
        let channel = match binds {
            true => ChannelBinding { exporter, server_end_point: end_point },
            false => ChannelBinding::default(),
        };
        conn.awaits_tls = false;
        if let super::Protocol::Xmpp(xmpp) = &mut conn.protocol {
            xmpp.handle_tls(channel);
        }
    }

    /// What was to be said in clear is written: from here on the peer's bytes are its handshake.
    pub(super) fn switch_to_tls(&mut self, slot: u32) {
        let Some(tls) = self.shared.config.tls.as_ref().map(|tls| tls.config.clone()) else {
            return self.close_now(slot, "no_tls");
        };
        let Some(conn) = self.conn(slot) else { return };
        conn.starts_tls = false;
        conn.awaits_tls = true;
        if let Err(error) = conn.transport.start_tls(tls) {
            tracing::error!(%error, "TLS could not begin");
            return self.close_now(slot, "no_tls");
        }
        // The hello may be there already, and raise no edge any more.
        self.read_again(slot);
    }
}

fn create(
    shared: &Shared,
    name: String,
    password: String,
    tell: impl FnOnce(AccountOutcome) + Send + 'static,
) {
    let proof_keys = shared.config.xmpp.proofs.keys(&password, &*shared.engine.chance);
    let profile = Profile { platform: Platform::Android, ..Profile::default() };
    let device = NewDevice {
        id: Some(name),
        secret: password,
        is_secret_brought: false,
        proof_keys,
        profile,
        origin: Origin::Xmpp,
        idempotency_key: None,
        idempotency_owner: 0,
    };
    let done = move |registered: Result<_, DeviceError>| tell(account_outcome(registered.map(|_| ())));
    shared.engine.register(shared.config.app, device, Box::new(done));
}

fn change_password(
    shared: &Shared,
    at: DeviceRef,
    password: &str,
    tell: impl FnOnce(AccountOutcome) + Send + 'static,
) {
    let proof_keys = shared.config.xmpp.proofs.keys(password, &*shared.engine.chance);
    let done = move |changed| tell(account_outcome(changed));
    shared.engine.change_secret(at, password, proof_keys, Box::new(done));
}

fn account_outcome(result: Result<(), DeviceError>) -> AccountOutcome {
    match result {
        Ok(()) => AccountOutcome::Done,
        Err(DeviceError::Exists) => AccountOutcome::Conflict,
        Err(DeviceError::Invalid { .. }) => AccountOutcome::NotAcceptable,
        Err(DeviceError::Missing | DeviceError::NotOwnToSay { .. } | DeviceError::IdempotencyMismatch) => {
            AccountOutcome::NotAllowed
        }
        Err(
            DeviceError::TooMany { .. }
            | DeviceError::TooManyOwn { .. }
            | DeviceError::ProfileTooLarge { .. }
            | DeviceError::Store(_),
        ) => AccountOutcome::Unavailable,
    }
}

fn stanza_outcome(sent: Result<(), SendError>) -> StanzaOutcome {
    match sent {
        Ok(()) => StanzaOutcome::Accepted,
        Err(SendError::Unavailable) => StanzaOutcome::Unavailable,
        Err(SendError::InboxFull) => StanzaOutcome::QuotaExceeded,
        Err(SendError::TooLarge) => StanzaOutcome::NotAllowed,
        Err(SendError::TryLater) => StanzaOutcome::TryLater,
    }
}

/// The same after a restart, or the salts of names that there are not would tell themselves by changing.
fn fake_secret(shared: &Shared) -> [u8; 32] {
    let keys = [None, Some(AppNo(0))].into_iter().flat_map(|app| shared.engine.store.keys(app));
    let hash = keys.map(|key| key.hash).next().unwrap_or_default();
    // HMAC takes keys of any length.
    Hmac::<Sha256>::new_from_slice(&hash)
        .map_or([0; 32], |mac| mac.chain_update(b"keys of nobody").finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_core_and_the_protocol_mean_the_same_topic() {
        assert_eq!(postrider_core::access::PEER_TOPIC, postrider_proto::xmpp::STANZA_TOPIC);
    }
}
