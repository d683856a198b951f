//! Who may do what: the one gate. Every path that hands a message to a device asks [`Access::may_receive`], every path
//! that takes one in asks [`Access::may_publish`]; live, replayed, retained, will and shared alike.

use crate::topics;

/// Where a device finds its pushes.
pub const INBOX_TOPIC: &str = "$push/inbox";
/// What one device sends to another, in the words of the protocol that both speak. Nobody can publish or subscribe to it.
pub const PEER_TOPIC: &str = "$peer/inbox";
/// Where a device tells what became of them.
pub const RECEIPTS_TOPIC: &str = "$push/receipts";

/// The rights of the devices of a listener. Patterns are topic filters; `{device}` stands for the device's own id.
#[derive(Clone, Debug)]
pub struct Access {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    /// Filters refused although `subscribe` covers them.
    pub subscribe_deny: Vec<String>,
    /// The reason code for a refused filter (MQTT 5 §3.9.3); some old test suites know 0x80 only.
    pub refusal_code: u8,
    /// Whether devices may leave messages on topics (A9).
    pub retain: bool,
    /// Whether clients without a registration may sign in.
    pub anonymous: bool,
    /// Whether devices may set their own alias and tags, and so receive what is for a user or group.
    pub own_alias_and_tags: bool,
}

impl Default for Access {
    fn default() -> Access {
        Access {
            publish: vec!["devices/{device}/#".into()],
            subscribe: vec!["devices/{device}/#".into(), "public/#".into()],
            subscribe_deny: Vec::new(),
            refusal_code: 0x87,
            retain: false,
            anonymous: false,
            own_alias_and_tags: false,
        }
    }
}

impl Access {
    /// Everything is allowed: for trusted networks and test suites.
    pub fn open() -> Access {
        let all = vec!["#".to_owned()];
        Access { publish: all.clone(), subscribe: all, retain: true, anonymous: true, ..Access::default() }
    }

    /// Whether a message on `topic` may be handed to the device now.
    pub fn may_receive(&self, device: &str, topic: &str) -> bool {
        topic == INBOX_TOPIC
            || (!self.subscribe_deny.iter().any(|p| topics::matches(p, topic))
                && self.subscribe.iter().any(|p| matches_own(p, device, topic)))
    }

    /// Whether the device may subscribe to the filter: everything it can match must be allowed.
    pub fn may_subscribe(&self, device: &str, filter: &str) -> bool {
        filter == INBOX_TOPIC
            || (!self.subscribe_deny.iter().any(|p| topics::covers(p, filter))
                && self.subscribe.iter().any(|p| topics::covers(&own(p, device), filter)))
    }

    /// Whether the device may publish to the topic (a will and a retained message included).
    pub fn may_publish(&self, device: &str, topic: &str) -> bool {
        topic == RECEIPTS_TOPIC || self.publish.iter().any(|p| matches_own(p, device, topic))
    }

    /// Every device may receive everything that it could subscribe to: then the check needs no look at the topic.
    pub fn receives_all(&self) -> bool {
        self.subscribe_deny.is_empty() && self.subscribe.iter().any(|p| p == "#")
    }
}

/// A pattern with the device's id put in. The id is compared as one level, never read as a pattern.
fn own(pattern: &str, device: &str) -> String {
    let safe = !device.contains(['/', '+', '#']);
    let level = |l| if l == "{device}" && safe { device } else { l };
    pattern.split('/').map(level).collect::<Vec<_>>().join("/")
}

fn matches_own(pattern: &str, device: &str, topic: &str) -> bool {
    if pattern.contains("{device}") {
        topics::matches(&own(pattern, device), topic)
    } else {
        topics::matches(pattern, topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reaches_its_own_topics_and_the_public_ones_only() {
        let access = Access::default();
        assert!(access.may_subscribe("d1", "devices/d1/#") && access.may_subscribe("d1", "$push/inbox"));
        assert!(access.may_subscribe("d1", "public/news/+"));
        for filter in ["#", "+/+/+", "devices/+/x", "devices/d2/x", "devices/#", "$push/#", "$SYS/x"] {
            assert!(!access.may_subscribe("d1", filter), "{filter}");
        }
        assert!(access.may_publish("d1", "devices/d1/up") && access.may_publish("d1", "$push/receipts"));
        assert!(!access.may_publish("d1", "devices/d2/up") && !access.may_publish("d1", "public/x"));
    }

    #[test]
    fn an_id_that_looks_like_a_pattern_opens_nothing() {
        let access = Access::default();
        for id in ["#", "+", "a/#", "d1/../d2"] {
            assert!(!access.may_subscribe(id, "devices/d2/x"), "{id}");
            assert!(!access.may_receive(id, "devices/d2/x"), "{id}");
            assert!(!access.may_publish(id, "devices/d2/x"), "{id}");
        }
    }

    #[test]
    fn a_denied_filter_stays_denied_where_all_is_allowed() {
        let access = Access { subscribe_deny: vec!["test/nosubscribe".into()], ..Access::open() };
        assert!(
            !access.may_subscribe("x", "test/nosubscribe") && !access.may_receive("x", "test/nosubscribe")
        );
        assert!(access.may_subscribe("x", "#") && access.may_receive("x", "test/other"));
    }
}
