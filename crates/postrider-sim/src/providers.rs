//! Providers, as a script of chance: one takes a delivery that waits for its device, and some time later
//! another is asked, as a plan would that does not look again. What was acknowledged or ended meanwhile
//! has to be gone from every plan.

use crate::ledger::About;
use crate::server::{Mail, Server, Turn};
use crate::world::{Happening, World};
use postrider_core::delivery::forward::Road;
use postrider_core::delivery::receipt::ReceiptSource;
use postrider_core::id::*;
use postrider_core::port::*;

/// A delivery that providers are asked to bring.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    pub at: DeviceRef,
    pub seq: Seq,
    pub id: MessageId,
}

impl World {
    /// A provider takes something that waits for some device.
    pub fn provider_acts(&mut self) {
        let Some(every_ms) = self.plan.provider_every_ms.filter(|_| !self.calm) else { return };
        let wait = self.random.between(1, every_ms * 2);
        self.after(wait, Happening::ProviderActs);
        let known: Vec<DeviceRef> =
            self.devices.iter().filter(|d| d.registered).filter_map(|d| d.at).collect();
        let (Some(at), Some(server)) = (self.random.pick(&known).copied(), &self.server) else { return };
        let waiting = server.store.pending(at, Position::default(), 8, self.now);
        let waiting: Vec<(Seq, MessageId)> =
            waiting.into_iter().filter_map(|one| Some((one.seq, one.id?))).collect();
        let Some((seq, id)) = self.random.pick(&waiting).copied() else { return };
        let handover = Handover { at, seq, id };
        let later = self.random.between(1, 20_000);
        self.after(later, Happening::NextProvider { handover });
        self.hand_over(handover, "first");
    }

    /// The next stage of its plan is due.
    pub fn next_provider(&mut self, handover: Handover) {
        self.hand_over(handover, "second");
    }

    fn hand_over(&mut self, handover: Handover, road: &str) {
        self.read_receipts();
        let Handover { at, seq, id } = handover;
        let has_ended = self.ledger.has_ended(id, at);
        let (Some(server), Some(road)) = (&self.server, Road::new(road)) else { return };
        let mail = server.mail.clone();
        let done = move |taken: Result<usize, StoreError>| {
            if taken.is_ok_and(|taken| taken > 0) {
                mail.post(Mail::Forwarded { handover, has_ended });
            }
        };
        let deliveries = vec![(at.device, seq)];
        let done = Box::new(done);
        let source = ReceiptSource::Provider { app: at.app, road: &road, deliveries, done };
        server.engine.record_receipts(source);
        let device = self.ledger.devices.get(&at).map(|known| known.index);
        let about = About { push: self.ledger.push_of(id), device };
        self.note(about, format!("provider {road:?}: asked to bring {seq}"));
    }
}

impl Server {
    /// The server let a provider have it.
    pub fn was_forwarded(&mut self, handover: Handover, has_ended: bool, t: &mut Turn<'_>) {
        let Handover { at, seq, id } = handover;
        let device = t.ledger.devices.get(&at).map(|known| known.index);
        let about = About { push: t.ledger.push_of(id), device };
        if has_ended {
            let what = format!("{seq} goes to a provider after it ended");
            t.ledger.break_rule("never after the end", about, what);
        }
    }
}
