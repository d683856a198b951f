//! What goes into one request.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::ReceiptEvent;
use postrider_core::port::{Store, StoreError};
use postrider_core::webhooks::{Webhook, WebhookBatch};
use postrider_proto::date_time;
use serde_json::{Value, json};
use sha2::Sha256;

/// Rows that are read at once.
const PAGE: usize = 500;
/// Pages that are read before the worker looks whether anything else is to be done.
const PAGES_MAX: usize = 20;

/// Receipts behind a position, those that the webhook wants.
#[derive(Debug, Default, PartialEq)]
pub struct Gathered {
    pub rows: Vec<ReceiptEvent>,
    /// Everything up to here was looked at.
    pub looked: u64,
    /// There is nothing behind `looked` now.
    pub is_end: bool,
    /// Some behind the position are no longer kept.
    pub missed: bool,
}

/// Reads files: takes a while.
pub fn gather(
    store: &dyn Store,
    app: AppNo,
    webhook: &Webhook,
    (after, up_to): (u64, u64),
    max: usize,
) -> Result<Gathered, StoreError> {
    let last = store.last_receipt().min(up_to);
    let mut gathered = Gathered { looked: after, ..Gathered::default() };
    for _ in 0..PAGES_MAX {
        let from = gathered.looked;
        gathered.is_end = from >= last;
        if gathered.is_end {
            break;
        }
        let page = store.events(app, from, PAGE)?;
        gathered.missed |= page.missed;
        for row in page.events.into_iter().filter(|row| row.position <= up_to && webhook.wants(row.step)) {
            gathered.looked = row.position;
            gathered.rows.push(row);
            if gathered.rows.len() >= max {
                return Ok(gathered);
            }
        }
        gathered.looked = page.next.min(up_to).max(from);
        if gathered.looked == from {
            break;
        }
    }
    Ok(gathered)
}

/// `webhook-id`: the same for the same batch of the same webhook, for ever. It tells nothing: places
/// in the stream count receipts of all apps.
pub fn request_id(key: &[u8; 32], app: AppNo, webhook: &str, (from, batch): (u64, WebhookBatch)) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
    let place = format!("webhook request|{}|{}|{from}|{}|{webhook}", app.0, batch.epoch, batch.to);
    mac.update(place.as_bytes());
    let whole = mac.finalize().into_bytes();
    format!("msg_{}", BASE64_URL_SAFE_NO_PAD.encode(&whole[..18]))
}

/// The body of a request.
pub fn envelope(kind: &str, at: UnixMillis, data: &Value) -> Vec<u8> {
    json!({ "type": kind, "timestamp": date_time(at), "data": data }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_an_id_of_its_own_that_stays() {
        let batch = WebhookBatch { to: 9, epoch: 5, events: 2 };
        let id = |app, webhook, from, batch| request_id(&[1; 32], AppNo(app), webhook, (from, batch));
        let first = id(0, "a", 3, batch);
        assert_eq!(first, id(0, "a", 3, batch));
        assert_eq!(first.len(), 28);
        for other in [
            id(1, "a", 3, batch),
            id(0, "b", 3, batch),
            id(0, "a", 4, batch),
            id(0, "a", 3, WebhookBatch { to: 10, ..batch }),
            id(0, "a", 3, WebhookBatch { epoch: 6, ..batch }),
        ] {
            assert_ne!(first, other);
        }
    }
}
