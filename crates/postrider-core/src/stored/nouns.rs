//! The stored form of the domain's nouns.

use super::codec::*;
use crate::command::*;
use crate::model::*;
use crate::port::Counters;

numbers!(Platform { 0 Android, 1 Ios, 2 Harmony, 3 Web, 4 Desktop, 5 Iot, 6 Other });
numbers!(Origin { 0 AppServer, 1 RegisterKey, 2 Demo, 3 Xmpp });
numbers!(Priority { 0 Low, 1 Normal, 2 High });
numbers!(KeyScope { 0 App, 1 Send, 2 Read, 3 Admin, 4 Register });
numbers!(Step {
    0 Accepted, 1 Queued, 2 Sent, 3 Delivered, 4 Displayed, 5 Dismissed, 6 Replied, 7 Clicked,
    8 Expired, 9 Superseded, 10 Evicted, 11 Cancelled, 12 Rejected, 13 Erased, 14 HandedOver,
    15 Forwarded,
});
numbers!(Reason {
    0 None, 1 Ttl, 2 NotConnected, 3 Collapsed, 4 QueueFull, 5 Recalled, 6 Unregistered, 7 Refused,
    8 NotAllowed, 9 TooLarge, 10 NoAcknowledgement, 11 Corrupt, 12 SessionEnded,
});

record!(Profile { 1 platform, 2 alias, 3 tags, 4 attributes, 5 provider_tokens });
record!(ProfileChange {
    1 platform, 2 alias, 3 tags, 4 add_tags, 5 remove_tags, 6 attributes, 7 provider_tokens,
});
record!(StoredSession { 1 expiry_secs, 2 left_at });
record!(StoredSubscription { 1 filter, 2 share, 3 qos, 4 no_local, 5 retain_as_published, 6 id });
record!(StoredKey { 1 id, 2 name, 3 scope, 4 hash, 5 created_at, 6 revoked_at });
record!(Content { 1 topic, 2 payload, 3 properties });
record!(ContentProperties {
    1 payload_is_utf8, 2 expires, 3 content_type, 4 response_topic, 5 correlation, 6 user,
});
record!(Target { 1 device, 2 qos, 3 retain, 4 subscription_ids });
record!(SharedTarget { 1 share, 2 member, 3 qos, 4 retain });
record!(HandOn { 1 at, 2 stay, 3 shares, 4 only_here, 5 inbox_max, 6 inbox_bytes_max });
record!(ReceiptEvent {
    1 position, 2 at, 3 app, 4 message, 5 device, 6 step, 7 reason, 8 count, 9 submission, 10 road,
});
record!(Forward { 1 app, 2 road, 3 deliveries, 4 now });
record!(Submission { 1 key, 2 audience, 3 exclude, 4 title, 5 body });
record!(BlobRef { 1 file, 2 offset, 3 len });
record!(Retained { 1 topic, 2 qos, 3 expires_at, 4 blob });
record!(Registration { 1 app, 2 id, 3 secret_hash, 4 profile, 5 now, 6 idempotency, 7 origin, 8 quota });
record!(DeviceQuota { 1 all_max, 2 own_max });
record!(Room { 1 messages_max, 2 bytes_max, 3 broadcasts_max });
record!(RetainedRoom { 1 messages_max, 2 bytes_max });
record!(Idempotency { 1 key, 2 request, 3 keep_until, 4 keys_max });
record!(NewMessage {
    1 app, 2 id, 3 targets, 4 accepted_at, 5 expires_at, 6 priority, 7 collapse_key, 8 backlog,
    9 idempotency, 10 tracked, 11 push, 12 reject_when_full, 13 inbox_max, 14 inbox_bytes_max,
    15 submission, 16 peer_inbox_max, 17 room,
} but { content = None });
record!(RetainedMessage { 1 qos, 2 expires_at, 3 room } but { content = None });
record!(Progress { 1 device, 2 which, 3 step, 4 reason, 5 sent_at });

/// One of several: a record with one field, whose tag says which.
macro_rules! choice {
    ($type:ident { $($tag:literal $variant:ident),* $(,)? }) => {
        impl Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($type::$variant(value) => value.put_value($tag, out),)*
                }
            }

            fn get(bytes: &[u8]) -> Result<Self, Bad> {
                match Fields(bytes).next().ok_or(Bad::Missing)?? {
                    $(($tag, raw) => Value::get_value(raw).map($type::$variant),)*
                    (tag, _) => Err(Bad::UnknownField(tag)),
                }
            }
        }
        nested!($type);
    };
}
choice!(Attribute { 1 Text, 2 Number, 3 Bool, 4 Integer });
choice!(Which { 1 Seq, 2 Id });

/// Numbered devices, or a set of them, or the member of a shared subscription where the second or third field is there.
impl Record for Targets {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Targets::Direct(list) => list.put_field(1, out),
            Targets::Broadcast(set) => set.put_value(2, out),
            Targets::Shared(target) => target.put_value(3, out),
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        let mut list = Slot::default();
        for field in Fields(bytes) {
            match field? {
                (1, raw) => list.gather(raw)?,
                (2, raw) => return DeviceSet::get_value(raw).map(Targets::Broadcast),
                (3, raw) => return Value::get_value(raw).map(Targets::Shared),
                (tag, _) => return Err(Bad::UnknownField(tag)),
            }
        }
        list.finish().map(Targets::Direct)
    }
}
nested!(Targets);

/// 0: all, 1: the latest, `n + 2`: the last `n`.
impl Value for Backlog {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        let number = match self {
            Backlog::All => 0,
            Backlog::Latest => 1,
            Backlog::Last(n) => u64::from(*n) + 2,
        };
        number.put_value(tag, out);
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        match u64::get_value(raw)? {
            0 => Ok(Backlog::All),
            1 => Ok(Backlog::Latest),
            n => u16::try_from(n - 2).map(Backlog::Last).map_err(|_| Bad::Malformed),
        }
    }

    fn absent() -> Option<Self> {
        Some(Backlog::All)
    }

    fn is_absent(&self) -> bool {
        *self == Backlog::All
    }
}
once!(Backlog);

/// A field within an option, which is there although it may be empty: `Some(None)` takes a
/// device's alias away, `Some([])` its tags.
macro_rules! optional_field {
    ($type:ty) => {
        impl Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                put_nested(tag, out, |out| self.put_field(1, out));
            }

            fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
                let mut field = Slot::default();
                for inner in Fields(raw.bytes()?) {
                    match inner? {
                        (1, raw) => field.gather(raw)?,
                        (tag, _) => return Err(Bad::UnknownField(tag)),
                    }
                }
                field.finish()
            }

            fn absent() -> Option<Self> {
                None
            }

            fn is_absent(&self) -> bool {
                false
            }
        }
    };
}
optional_field!(Option<String>);
optional_field!(Vec<String>);

/// Only the steps that were reached, so that a new step changes nothing.
impl Record for Counters {
    fn put(&self, out: &mut Vec<u8>) {
        let Counters { messages, created, ended } = self;
        messages.put_field(1, out);
        created.put_field(2, out);
        for (step, count) in Step::ALL.iter().zip(ended).filter(|(_, count)| **count > 0) {
            (*step, *count).put_value(3, out);
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        let mut counters = Counters::default();
        for field in Fields(bytes) {
            match field? {
                (1, raw) => counters.messages = Value::get_value(raw)?,
                (2, raw) => counters.created = Value::get_value(raw)?,
                (3, raw) => {
                    let (step, count): (Step, u64) = Value::get_value(raw)?;
                    counters.ended[step as usize] = count;
                }
                (tag, _) => return Err(Bad::UnknownField(tag)),
            }
        }
        Ok(counters)
    }
}
nested!(Counters);
