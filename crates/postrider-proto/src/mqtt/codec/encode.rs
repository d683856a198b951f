//! Packets → bytes, appended to a buffer of the caller's.

use crate::mqtt::packet::*;
use crate::mqtt::property::{self, Writer, put_binary, put_varint, varint_len};
use crate::{Publish, Qos, RetainHandling, Subscription, Will};

/// Appends a packet as `level` writes it.
///
/// What a level does not know is left out. A packet beyond 268,435,455 bytes cannot be written and is not to be made.
pub fn encode(packet: &Packet, level: Level, bytes: &mut Vec<u8>) {
    match packet {
        Packet::Connect(connect) => encode_connect(connect, bytes),
        Packet::ConnAck(connack) => encode_connack(connack, level, bytes),
        Packet::Publish(packet) => PublishFrame::from_packet(packet, level).write(bytes),
        Packet::PubAck(ack) => encode_ack(Kind::PubAck, *ack, level, bytes),
        Packet::PubRec(ack) => encode_ack(Kind::PubRec, *ack, level, bytes),
        Packet::PubRel(ack) => encode_ack(Kind::PubRel, *ack, level, bytes),
        Packet::PubComp(ack) => encode_ack(Kind::PubComp, *ack, level, bytes),
        Packet::Subscribe(subscribe) => encode_subscribe(subscribe, level, bytes),
        Packet::SubAck(suback) => encode_codes(Kind::SubAck, suback.id, &suback.codes, (0, 0), level, bytes),
        Packet::Unsubscribe(unsubscribe) => encode_unsubscribe(unsubscribe, level, bytes),
        Packet::UnsubAck(unsuback) => {
            let codes: &[u8] = if level.is_v5() { &unsuback.codes } else { &[] };
            encode_codes(Kind::UnsubAck, unsuback.id, codes, (0, 0), level, bytes);
        }
        Packet::PingReq => bytes.extend_from_slice(&[(Kind::PingReq as u8) << 4, 0]),
        Packet::PingResp => bytes.extend_from_slice(&[(Kind::PingResp as u8) << 4, 0]),
        Packet::Disconnect(disconnect) => encode_disconnect(disconnect, level, bytes),
        Packet::Auth(auth) => encode_auth(auth, bytes),
    }
}

fn put_header(kind: Kind, body_len: usize, bytes: &mut Vec<u8>) {
    bytes.push((kind as u8) << 4 | kind.flags());
    put_varint(bytes, body_len);
}

fn put_body(kind: Kind, body: &[u8], bytes: &mut Vec<u8>) {
    put_header(kind, body.len(), bytes);
    bytes.extend_from_slice(body);
}

/// Writes a block of properties with its length before it. For packets that are rare; PUBLISH counts beforehand.
fn put_properties(body: &mut Vec<u8>, write: impl FnOnce(&mut Writer<'_>)) {
    let mut block = Vec::new();
    write(&mut Writer(&mut block));
    put_varint(body, block.len());
    body.extend_from_slice(&block);
}

fn encode_connect(connect: &Connect, bytes: &mut Vec<u8>) {
    let level = connect.level;
    let mut body = Vec::new();
    put_binary(&mut body, if level == Level::V31 { b"MQIsdp" } else { b"MQTT" });
    body.push(level as u8 | if connect.is_bridge { super::BRIDGE_BIT } else { 0 });
    body.push(connect_flags(connect));
    body.extend_from_slice(&connect.keepalive_secs.to_be_bytes());
    if level.is_v5() {
        let properties = &connect.properties;
        put_properties(&mut body, |writer| {
            writer.u32(property::SESSION_EXPIRY, properties.session_expiry_secs);
            writer.u16(property::RECEIVE_MAXIMUM, properties.receive_maximum);
            writer.u32(property::MAXIMUM_PACKET_SIZE, properties.packet_bytes_max);
            writer.u16(property::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
            writer.flag(property::REQUEST_RESPONSE_INFORMATION, properties.request_response_information);
            writer.flag(property::REQUEST_PROBLEM_INFORMATION, properties.request_problem_information);
            writer.text(property::AUTH_METHOD, properties.auth_method.as_ref());
            writer.binary(property::AUTH_DATA, properties.auth_data.as_ref());
            writer.user(&properties.user);
        });
    }
    put_binary(&mut body, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
        put_will(will, level, &mut body);
    }
    if let Some(user) = &connect.user {
        put_binary(&mut body, user.as_bytes());
    }
    if let Some(password) = &connect.password {
        put_binary(&mut body, password);
    }
    put_body(Kind::Connect, &body, bytes);
}

fn connect_flags(connect: &Connect) -> u8 {
    let will = connect
        .will
        .as_ref()
        .map_or(0, |will| 0x04 | (will.publish.qos as u8) << 3 | u8::from(will.publish.retain) << 5);
    u8::from(connect.user.is_some()) << 7
        | u8::from(connect.password.is_some()) << 6
        | will
        | u8::from(connect.clean_start) << 1
}

fn put_will(will: &Will, level: Level, body: &mut Vec<u8>) {
    if level.is_v5() {
        put_properties(body, |writer| {
            writer.u32(property::WILL_DELAY, (will.delay_secs > 0).then_some(will.delay_secs));
            if let Some(properties) = &will.publish.properties {
                writer.u32(property::MESSAGE_EXPIRY, properties.expiry_secs);
                writer.publish(properties);
            }
        });
    }
    put_binary(body, will.publish.topic.as_bytes());
    put_binary(body, &will.publish.payload);
}

fn encode_connack(connack: &ConnAck, level: Level, bytes: &mut Vec<u8>) {
    // COMPAT: at level 3 the first byte would say that topic name compression was accepted.
    let session_present = connack.session_present && level != Level::V31;
    let mut body = vec![u8::from(session_present), connack.code];
    if level.is_v5() {
        let properties = &connack.properties;
        put_properties(&mut body, |writer| {
            writer.u32(property::SESSION_EXPIRY, properties.session_expiry_secs);
            writer.u16(property::RECEIVE_MAXIMUM, properties.receive_maximum);
            writer.u8(property::MAXIMUM_QOS, properties.maximum_qos);
            writer.flag(property::RETAIN_AVAILABLE, properties.retain_available);
            writer.u32(property::MAXIMUM_PACKET_SIZE, properties.packet_bytes_max);
            writer.text(property::ASSIGNED_CLIENT_ID, properties.assigned_client_id.as_ref());
            writer.u16(property::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
            writer.text(property::REASON_STRING, properties.reason.as_ref());
            writer.flag(property::WILDCARD_AVAILABLE, properties.wildcard_available);
            writer.flag(property::SUBSCRIPTION_IDS_AVAILABLE, properties.subscription_ids_available);
            writer.flag(property::SHARED_AVAILABLE, properties.shared_available);
            writer.u16(property::SERVER_KEEPALIVE, properties.server_keepalive_secs);
            writer.text(property::RESPONSE_INFORMATION, properties.response_information.as_ref());
            writer.text(property::SERVER_REFERENCE, properties.server_reference.as_ref());
            writer.text(property::AUTH_METHOD, properties.auth_method.as_ref());
            writer.binary(property::AUTH_DATA, properties.auth_data.as_ref());
            writer.user(&properties.user);
        });
    }
    put_body(Kind::ConnAck, &body, bytes);
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP in its shortest form (§3.4.2.1); allocates nothing.
pub(crate) fn encode_ack(kind: Kind, ack: Ack, level: Level, bytes: &mut Vec<u8>) {
    let has_code = level.is_v5() && ack.code != 0;
    put_header(kind, 2 + usize::from(has_code), bytes);
    bytes.extend_from_slice(&ack.id.to_be_bytes());
    if has_code {
        bytes.push(ack.code);
    }
}

/// SUBACK and UNSUBACK: `codes`, and then one code `excess.0` times.
pub(crate) fn encode_codes(
    kind: Kind,
    id: u16,
    codes: &[u8],
    excess: (usize, u8),
    level: Level,
    bytes: &mut Vec<u8>,
) {
    put_header(kind, 2 + usize::from(level.is_v5()) + codes.len() + excess.0, bytes);
    bytes.extend_from_slice(&id.to_be_bytes());
    if level.is_v5() {
        bytes.push(0);
    }
    bytes.extend_from_slice(codes);
    bytes.resize(bytes.len() + excess.0, excess.1);
}

fn encode_subscribe(subscribe: &Subscribe, level: Level, bytes: &mut Vec<u8>) {
    let mut body = subscribe.id.to_be_bytes().to_vec();
    if level.is_v5() {
        put_properties(&mut body, |writer| {
            if let Some(id) = subscribe.subscription_id {
                writer.varint(property::SUBSCRIPTION_ID, id);
            }
        });
    }
    for subscription in &subscribe.filters {
        put_filter(subscription, &mut body);
        body.push(subscription_options(subscription, level));
    }
    put_body(Kind::Subscribe, &body, bytes);
}

fn put_filter(subscription: &Subscription, body: &mut Vec<u8>) {
    match &subscription.share {
        None => put_binary(body, subscription.filter.as_bytes()),
        Some(group) => {
            let whole = format!("$share/{group}/{}", subscription.filter);
            put_binary(body, whole.as_bytes());
        }
    }
}

fn subscription_options(subscription: &Subscription, level: Level) -> u8 {
    let qos = subscription.qos as u8;
    if !level.is_v5() {
        return qos;
    }
    let retain_handling = match subscription.retain_handling {
        RetainHandling::Send => 0,
        RetainHandling::SendIfNew => 1,
        RetainHandling::DoNotSend => 2,
    };
    qos | u8::from(subscription.no_local) << 2
        | u8::from(subscription.retain_as_published) << 3
        | retain_handling << 4
}

fn encode_unsubscribe(unsubscribe: &Unsubscribe, level: Level, bytes: &mut Vec<u8>) {
    let mut body = unsubscribe.id.to_be_bytes().to_vec();
    if level.is_v5() {
        body.push(0);
    }
    for filter in &unsubscribe.filters {
        put_binary(&mut body, filter.as_bytes());
    }
    put_body(Kind::Unsubscribe, &body, bytes);
}

fn encode_disconnect(disconnect: &Disconnect, level: Level, bytes: &mut Vec<u8>) {
    let mut body = Vec::new();
    if level.is_v5() {
        let has_properties = disconnect.session_expiry_secs.is_some()
            || disconnect.reason.is_some()
            || disconnect.server_reference.is_some();
        if disconnect.code != 0 || has_properties {
            body.push(disconnect.code);
        }
        if has_properties {
            put_properties(&mut body, |writer| {
                writer.u32(property::SESSION_EXPIRY, disconnect.session_expiry_secs);
                writer.text(property::REASON_STRING, disconnect.reason.as_ref());
                writer.text(property::SERVER_REFERENCE, disconnect.server_reference.as_ref());
            });
        }
    }
    put_body(Kind::Disconnect, &body, bytes);
}

fn encode_auth(auth: &Auth, bytes: &mut Vec<u8>) {
    let mut body = vec![auth.code];
    put_properties(&mut body, |writer| {
        writer.text(property::AUTH_METHOD, auth.method.as_ref());
        writer.binary(property::AUTH_DATA, auth.data.as_ref());
        writer.text(property::REASON_STRING, auth.reason.as_ref());
    });
    put_body(Kind::Auth, &body, bytes);
}

/// A PUBLISH about to be written: the message, and what this hop adds. Its length is known before a byte is written.
#[derive(Clone, Copy, Debug)]
pub struct PublishFrame<'a> {
    pub level: Level,
    pub publish: &'a Publish,
    pub qos: Qos,
    pub retain: bool,
    pub dup: bool,
    /// Not written at QoS 0.
    pub id: u16,
    /// With `names_topic` false the alias stands alone.
    pub alias: Option<u16>,
    pub names_topic: bool,
    pub expiry_secs: Option<u32>,
    pub subscription_ids: &'a [u32],
}

/// Where in a written PUBLISH the parts stand that differ from peer to peer, counted from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub id: usize,
    pub expiry: usize,
}

impl<'a> PublishFrame<'a> {
    pub fn from_packet(packet: &'a PublishPacket, level: Level) -> Self {
        let publish = &packet.publish;
        PublishFrame {
            level,
            publish,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            id: packet.id,
            alias: packet.alias,
            names_topic: true,
            expiry_secs: publish.properties.as_ref().and_then(|properties| properties.expiry_secs),
            subscription_ids: &packet.subscription_ids,
        }
    }

    fn topic(&self) -> &'a [u8] {
        if self.names_topic { self.publish.topic.as_bytes() } else { &[] }
    }

    fn properties_len(&self) -> usize {
        let ids = self.subscription_ids.iter().map(|&id| 1 + varint_len(id as usize)).sum::<usize>();
        usize::from(self.expiry_secs.is_some()) * 5
            + usize::from(self.alias.is_some()) * 3
            + ids
            + self.publish.properties.as_ref().map_or(0, |properties| property::publish_len(properties))
    }

    fn body_len(&self) -> usize {
        let properties_len = match self.level {
            Level::V5 => varint_len(self.properties_len()) + self.properties_len(),
            _ => 0,
        };
        let id_len = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        2 + self.topic().len() + id_len + properties_len + self.publish.payload.len()
    }

    /// The length of the whole packet.
    pub fn total_len(&self) -> usize {
        let body_len = self.body_len();
        1 + varint_len(body_len) + body_len
    }

    pub fn write(&self, bytes: &mut Vec<u8>) {
        self.write_with_places(bytes);
    }

    /// The expiry is written first of the properties, so that its place depends on the topic alone.
    pub(crate) fn write_with_places(&self, bytes: &mut Vec<u8>) -> Places {
        let start = bytes.len();
        let mut places = Places::default();
        let body_len = self.body_len();
        bytes.reserve(5 + body_len);
        bytes.push(publish_first_byte(self.qos, self.retain, self.dup));
        put_varint(bytes, body_len);
        put_binary(bytes, self.topic());
        if self.qos != Qos::AtMostOnce {
            places.id = bytes.len() - start;
            bytes.extend_from_slice(&self.id.to_be_bytes());
        }
        if self.level.is_v5() {
            put_varint(bytes, self.properties_len());
            // After the identifier of the property.
            places.expiry = bytes.len() - start + 1;
            let mut writer = Writer(bytes);
            writer.u32(property::MESSAGE_EXPIRY, self.expiry_secs);
            writer.u16(property::TOPIC_ALIAS, self.alias);
            for &id in self.subscription_ids {
                writer.varint(property::SUBSCRIPTION_ID, id);
            }
            if let Some(properties) = &self.publish.properties {
                writer.publish(properties);
            }
        }
        bytes.extend_from_slice(&self.publish.payload);
        places
    }
}

/// The first byte of a PUBLISH (§3.3.1).
pub(crate) fn publish_first_byte(qos: Qos, retain: bool, dup: bool) -> u8 {
    let dup = dup && qos != Qos::AtMostOnce;
    (Kind::Publish as u8) << 4 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain)
}

/// CONNACK without properties, as 3.x has it and as every refusal is.
pub(crate) fn encode_refusal(level: Level, code: u8, bytes: &mut Vec<u8>) {
    encode(&Packet::ConnAck(Box::new(ConnAck { code, ..ConnAck::default() })), level, bytes);
}
