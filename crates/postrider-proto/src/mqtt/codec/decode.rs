//! Bodies of packets → packets, for all levels and both directions.

use super::{Header, Limits, ProtocolError, Reader};
use crate::mqtt::packet::*;
use crate::mqtt::property::{self, Place, Value};
use crate::mqtt::topic;
use crate::{Publish, Qos, RetainHandling, Subscription, Text, Will};
use bytes::Bytes;

type Result<T> = std::result::Result<T, ProtocolError>;

/// The bit of a protocol level by which a bridge says what it is.
pub const BRIDGE_BIT: u8 = 0x80;

/// What the head of a CONNECT claims to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Known {
        level: Level,
        /// The peer is another broker: a client of 3.x that sets the highest bit of the level.
        is_bridge: bool,
    },
    /// MQTT, but of a level that there is not: to be answered (MQTT-3.1.2-2).
    UnknownLevel(u8),
}

/// Reads protocol name and level of a CONNECT. Anything but `MQTT` and `MQIsdp` is no MQTT (MQTT-3.1.2-1).
pub fn protocol_of(body: &[u8]) -> Result<Protocol> {
    let mut reader = Reader::new(body);
    let name = reader.binary_ref()?;
    let is_isdp = name == b"MQIsdp";
    if !is_isdp && name != b"MQTT" {
        return Err(ProtocolError::new("not_mqtt", code::UNSUPPORTED_VERSION));
    }
    let stated = reader.u8()?;
    // COMPAT: mosquitto's bridges ask with 0x83 and 0x84; in MQTT 5 the options of a subscription say the same.
    let is_bridge = stated & BRIDGE_BIT != 0;
    Ok(match stated & !BRIDGE_BIT {
        3 if is_isdp => Protocol::Known { level: Level::V31, is_bridge },
        4 if !is_isdp => Protocol::Known { level: Level::V311, is_bridge },
        5 if !is_isdp && !is_bridge => Protocol::Known { level: Level::V5, is_bridge },
        _ => Protocol::UnknownLevel(stated),
    })
}

/// Decodes the body that belongs to `header`. `level` is the connection's; a CONNECT brings its own.
pub fn decode(header: Header, body: &[u8], level: Level, limits: &Limits) -> Result<Packet> {
    let mut reader = Reader::new(body);
    let reader = &mut reader;
    let packet = match header.kind {
        Kind::Connect => Packet::Connect(Box::new(connect(reader, header.flags, limits)?)),
        Kind::ConnAck => Packet::ConnAck(Box::new(connack(reader, level, limits)?)),
        Kind::Publish => Packet::Publish(publish(reader, header.flags, level, limits)?),
        Kind::PubAck => Packet::PubAck(ack(reader, level, limits)?),
        Kind::PubRec => Packet::PubRec(ack(reader, level, limits)?),
        Kind::PubRel => Packet::PubRel(ack(reader, level, limits)?),
        Kind::PubComp => Packet::PubComp(ack(reader, level, limits)?),
        Kind::Subscribe => Packet::Subscribe(subscribe(reader, level, limits)?),
        Kind::SubAck => Packet::SubAck(suback(reader, level, limits)?),
        Kind::Unsubscribe => Packet::Unsubscribe(unsubscribe(reader, level, limits)?),
        Kind::UnsubAck => Packet::UnsubAck(unsuback(reader, level, limits)?),
        Kind::PingReq => Packet::PingReq,
        Kind::PingResp => Packet::PingResp,
        Kind::Disconnect => Packet::Disconnect(Box::new(disconnect(reader, level, limits)?)),
        Kind::Auth => Packet::Auth(Box::new(auth(reader, limits)?)),
    };
    if reader.is_at_end() { Ok(packet) } else { Err(ProtocolError::MALFORMED) }
}

/// The bits of the CONNECT flags (§3.1.2.3).
#[derive(Clone, Copy)]
struct ConnectFlags(u8);

impl ConnectFlags {
    fn has_user(self) -> bool {
        self.0 & 0x80 != 0
    }

    fn has_password(self) -> bool {
        self.0 & 0x40 != 0
    }

    fn will_retain(self) -> bool {
        self.0 & 0x20 != 0
    }

    fn will_qos(self) -> Option<Qos> {
        Qos::from_u8(self.0 >> 3 & 3)
    }

    fn has_will(self) -> bool {
        self.0 & 0x04 != 0
    }

    fn clean_start(self) -> bool {
        self.0 & 0x02 != 0
    }

    fn check(self, level: Level) -> Result<()> {
        // MQTT-3.1.2-3. COMPAT: for wmqtt and SAM bit 0 means topic name compression.
        let is_reserved_set = self.0 & 0x01 != 0 && level != Level::V31;
        // MQTT-3.1.2-11, -13, -15: no will, no QoS and no retain of it.
        let is_stray_will = !self.has_will() && self.0 & 0x38 != 0;
        // MQTT-3.1.2-14.
        let is_will_qos_3 = self.will_qos().is_none();
        // MQTT-3.1.2-22 of 3.1.1; 5 allows a password alone, and 3.1 is read leniently.
        let is_stray_password = level == Level::V311 && self.has_password() && !self.has_user();
        if is_reserved_set || is_stray_will || is_will_qos_3 || is_stray_password {
            return Err(ProtocolError::MALFORMED);
        }
        Ok(())
    }
}

fn connect(reader: &mut Reader<'_>, header_flags: u8, limits: &Limits) -> Result<Connect> {
    let (level, is_bridge) = match protocol_of(reader.peek())? {
        Protocol::Known { level, is_bridge } => (level, is_bridge),
        Protocol::UnknownLevel(_) => return Err(ProtocolError::UNSUPPORTED_VERSION),
    };
    reader.binary_ref()?;
    reader.u8()?;
    if header_flags != 0 && level != Level::V31 {
        return Err(ProtocolError::MALFORMED);
    }
    let flags = ConnectFlags(reader.u8()?);
    flags.check(level)?;
    let keepalive_secs = reader.u16()?;
    let properties =
        if level.is_v5() { connect_properties(reader, limits)? } else { ConnectProperties::default() };
    // The identifier gets a buffer of its own: it lives as long as the connection, and the password must not.
    let client_id = reader.str_ref()?;
    if client_id.len() > limits.client_id_bytes_max {
        return Err(ProtocolError::CLIENT_ID);
    }
    let client_id = if client_id.is_empty() { Text::default() } else { Text::from(client_id) };
    let will = if flags.has_will() { Some(Box::new(will(reader, flags, level, limits)?)) } else { None };
    // COMPAT: in 3.1 the remaining length has precedence over the flags of user and password.
    let is_there = |reader: &Reader<'_>, flag: bool| flag && !(level == Level::V31 && reader.is_at_end());
    let user = if is_there(reader, flags.has_user()) { Some(reader.str_ref()?) } else { None };
    let password = if is_there(reader, flags.has_password()) { Some(reader.binary_ref()?) } else { None };
    if user.is_some_and(|user| user.len() > limits.user_bytes_max)
        || password.is_some_and(|password| password.len() > limits.password_bytes_max)
    {
        return Err(ProtocolError::CREDENTIALS);
    }
    Ok(Connect {
        level,
        is_bridge,
        client_id,
        clean_start: flags.clean_start(),
        keepalive_secs,
        user: user.map(Text::from),
        password: password.map(Bytes::copy_from_slice),
        will,
        properties,
    })
}

fn connect_properties(reader: &mut Reader<'_>, limits: &Limits) -> Result<ConnectProperties> {
    let mut found = ConnectProperties::default();
    property::read(reader, Place::Connect, limits, |id, value| {
        match (id, value) {
            (property::SESSION_EXPIRY, Value::U32(secs)) => found.session_expiry_secs = Some(secs),
            (property::RECEIVE_MAXIMUM, Value::U16(maximum)) => {
                found.receive_maximum = Some(non_zero(maximum)?)
            }
            (property::MAXIMUM_PACKET_SIZE, Value::U32(bytes)) => {
                found.packet_bytes_max = Some(non_zero(bytes)?)
            }
            (property::TOPIC_ALIAS_MAXIMUM, Value::U16(maximum)) => found.topic_alias_maximum = Some(maximum),
            (property::REQUEST_RESPONSE_INFORMATION, Value::Flag(flag)) => {
                found.request_response_information = Some(flag);
            }
            (property::REQUEST_PROBLEM_INFORMATION, Value::Flag(flag)) => {
                found.request_problem_information = Some(flag);
            }
            (property::AUTH_METHOD, Value::Text(method)) => found.auth_method = Some(method),
            (property::AUTH_DATA, Value::Binary(data)) => found.auth_data = Some(data),
            (_, Value::Pair(name, value)) => found.user.push((name, value)),
            _ => return Err(ProtocolError::MALFORMED),
        }
        Ok(())
    })?;
    // §3.1.2.11.10.
    if found.auth_data.is_some() && found.auth_method.is_none() {
        return Err(ProtocolError::PROTOCOL);
    }
    Ok(found)
}

fn non_zero<N: Default + PartialEq>(value: N) -> Result<N> {
    if value == N::default() { Err(ProtocolError::PROTOCOL) } else { Ok(value) }
}

/// Will properties, topic and payload: read from a buffer of their own, since a will outlives its CONNECT.
fn will(reader: &mut Reader<'_>, flags: ConnectFlags, level: Level, limits: &Limits) -> Result<Will> {
    let mut probe = Reader::new(reader.peek());
    if level.is_v5() {
        let properties_len = probe.varint()? as usize;
        probe.skip(properties_len)?;
    }
    probe.binary_ref()?;
    probe.binary_ref()?;
    let will_len = reader.left() - probe.left();
    let mut reader = Reader::new(reader.take(will_len)?);

    let mut properties = None;
    let mut delay_secs = 0;
    if level.is_v5() {
        property::read(&mut reader, Place::Will, limits, |id, value| {
            match property::take_publish(&mut properties, id, value)? {
                None => {}
                Some(Value::U32(secs)) if id == property::WILL_DELAY => delay_secs = secs,
                Some(_) => return Err(ProtocolError::MALFORMED),
            }
            Ok(())
        })?;
    }
    let topic = topic_name(&mut reader, limits)?;
    if topic.is_empty() {
        return Err(ProtocolError::TOPIC);
    }
    let payload = reader.binary()?;
    let qos = flags.will_qos().ok_or(ProtocolError::MALFORMED)?;
    let publish = Publish { topic, payload, qos, retain: flags.will_retain(), dup: false, properties };
    Ok(Will { publish, delay_secs })
}

/// A topic name, or the empty one where MQTT 5 has an alias instead. Checked before its bytes are copied.
fn topic_name(reader: &mut Reader<'_>, limits: &Limits) -> Result<Text> {
    let name = reader.str_ref()?;
    if !name.is_empty() {
        topic::check_name(name, limits.topic_bytes_max, limits.topic_levels_max)?;
    }
    Ok(Text::checked(reader.slice(name.len())))
}

fn connack(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<ConnAck> {
    let flags = reader.u8()?;
    // COMPAT: in 3.1 the byte is reserved.
    if flags > 1 && level != Level::V31 {
        return Err(ProtocolError::MALFORMED);
    }
    let code = reader.u8()?;
    let mut found = ConnAckProperties::default();
    if level.is_v5() {
        property::read(reader, Place::ConnAck, limits, |id, value| {
            match (id, value) {
                (property::SESSION_EXPIRY, Value::U32(secs)) => found.session_expiry_secs = Some(secs),
                (property::RECEIVE_MAXIMUM, Value::U16(maximum)) => {
                    found.receive_maximum = Some(non_zero(maximum)?);
                }
                (property::MAXIMUM_QOS, Value::Flag(qos)) => found.maximum_qos = Some(u8::from(qos)),
                (property::RETAIN_AVAILABLE, Value::Flag(flag)) => found.retain_available = Some(flag),
                (property::MAXIMUM_PACKET_SIZE, Value::U32(bytes)) => {
                    found.packet_bytes_max = Some(non_zero(bytes)?);
                }
                (property::ASSIGNED_CLIENT_ID, Value::Text(text)) => found.assigned_client_id = Some(text),
                (property::TOPIC_ALIAS_MAXIMUM, Value::U16(maximum)) => {
                    found.topic_alias_maximum = Some(maximum)
                }
                (property::REASON_STRING, Value::Text(text)) => found.reason = Some(text),
                (property::WILDCARD_AVAILABLE, Value::Flag(flag)) => found.wildcard_available = Some(flag),
                (property::SUBSCRIPTION_IDS_AVAILABLE, Value::Flag(flag)) => {
                    found.subscription_ids_available = Some(flag);
                }
                (property::SHARED_AVAILABLE, Value::Flag(flag)) => found.shared_available = Some(flag),
                (property::SERVER_KEEPALIVE, Value::U16(secs)) => found.server_keepalive_secs = Some(secs),
                (property::RESPONSE_INFORMATION, Value::Text(text)) => {
                    found.response_information = Some(text)
                }
                (property::SERVER_REFERENCE, Value::Text(text)) => found.server_reference = Some(text),
                (property::AUTH_METHOD, Value::Text(text)) => found.auth_method = Some(text),
                (property::AUTH_DATA, Value::Binary(data)) => found.auth_data = Some(data),
                (_, Value::Pair(name, value)) => found.user.push((name, value)),
                _ => return Err(ProtocolError::MALFORMED),
            }
            Ok(())
        })?;
    }
    Ok(ConnAck { session_present: flags & 1 != 0 && level != Level::V31, code, properties: found })
}

fn publish(reader: &mut Reader<'_>, flags: u8, level: Level, limits: &Limits) -> Result<PublishPacket> {
    let qos = Qos::from_u8(flags >> 1 & 3).ok_or(ProtocolError::MALFORMED)?;
    let mut dup = flags & 0x08 != 0;
    if dup && qos == Qos::AtMostOnce {
        // MQTT-3.3.1-2. COMPAT: 3.1 says nothing about it.
        if level != Level::V31 {
            return Err(ProtocolError::MALFORMED);
        }
        dup = false;
    }
    let topic = topic_name(reader, limits)?;
    let id = if qos == Qos::AtMostOnce { 0 } else { packet_id(reader, level)? };
    let mut packet = PublishPacket { id, ..PublishPacket::default() };
    let mut properties = None;
    if level.is_v5() {
        property::read(reader, Place::Publish, limits, |id, value| {
            match (id, property::take_publish(&mut properties, id, value)?) {
                (_, None) => {}
                // MQTT-3.3.2-8.
                (property::TOPIC_ALIAS, Some(Value::U16(0))) => return Err(ProtocolError::TOPIC_ALIAS),
                (property::TOPIC_ALIAS, Some(Value::U16(alias))) => packet.alias = Some(alias),
                (property::SUBSCRIPTION_ID, Some(Value::U32(id))) => {
                    packet.subscription_ids.push(non_zero(id)?)
                }
                _ => return Err(ProtocolError::MALFORMED),
            }
            Ok(())
        })?;
    }
    if topic.is_empty() && packet.alias.is_none() {
        return Err(ProtocolError::PROTOCOL);
    }
    let payload = reader.rest();
    packet.publish = Publish { topic, payload, qos, retain: flags & 1 != 0, dup, properties };
    Ok(packet)
}

/// A packet id where one must be (MQTT-2.2.1-3).
fn packet_id(reader: &mut Reader<'_>, level: Level) -> Result<u16> {
    let id = reader.u16()?;
    // COMPAT: SAM draws its ids by chance, and 0 is one of them.
    if id == 0 && level != Level::V31 {
        return Err(ProtocolError::PROTOCOL);
    }
    Ok(id)
}

/// Reads properties of which none matters here: a reason string, user properties.
fn skip_properties(reader: &mut Reader<'_>, place: Place, limits: &Limits) -> Result<()> {
    property::read(reader, place, limits, |_, _| Ok(()))
}

fn ack(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<Ack> {
    let id = reader.u16()?;
    // MQTT 5 lets success and the empty block of properties be left out (§3.4.2.1).
    let code = if level.is_v5() && !reader.is_at_end() { reader.u8()? } else { 0 };
    if level.is_v5() && !reader.is_at_end() {
        skip_properties(reader, Place::Ack, limits)?;
    }
    Ok(Ack { id, code })
}

fn subscribe(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<Subscribe> {
    let id = packet_id(reader, level)?;
    let mut subscription_id = None;
    if level.is_v5() {
        property::read(reader, Place::Subscribe, limits, |_, value| {
            if let Value::U32(id) = value {
                subscription_id = Some(non_zero(id)?);
            }
            Ok(())
        })?;
    }
    // MQTT-3.8.3-3.
    if reader.is_at_end() {
        return Err(ProtocolError::PROTOCOL);
    }
    let mut packet = Subscribe { id, subscription_id, filters: Vec::new(), excess: 0 };
    while !reader.is_at_end() {
        if packet.filters.len() == limits.filters_max {
            reader.str_ref()?;
            reader.u8()?;
            packet.excess += 1;
            continue;
        }
        let whole = reader.text()?;
        let options = reader.u8()?;
        packet.filters.push(subscription(whole, options, level, limits)?);
    }
    Ok(packet)
}

fn subscription(whole: Text, options: u8, level: Level, limits: &Limits) -> Result<Subscription> {
    let reserved = match level {
        Level::V31 => 0,
        Level::V311 => 0xFC,
        Level::V5 => 0xC0,
    };
    // MQTT-3.8.3-4, -5.
    if options & reserved != 0 {
        return Err(ProtocolError::MALFORMED);
    }
    let qos = Qos::from_u8(options & 3).ok_or(ProtocolError::MALFORMED)?;
    let v5_options = if level.is_v5() { options } else { 0 };
    let retain_handling = match v5_options >> 4 & 3 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::DoNotSend,
        _ => return Err(ProtocolError::PROTOCOL),
    };
    let no_local = v5_options & 0x04 != 0;
    let parsed = topic::parse_filter(&whole, limits.topic_bytes_max, limits.topic_levels_max);
    let valid = parsed.is_ok();
    let (share, filter) = parsed.map_or((None, whole), |parsed| (parsed.share, parsed.filter));
    // MQTT-3.8.3-4 of MQTT 5.
    if no_local && share.is_some() {
        return Err(ProtocolError::PROTOCOL);
    }
    let retain_as_published = v5_options & 0x08 != 0;
    Ok(Subscription { filter, share, qos, no_local, retain_as_published, retain_handling, valid })
}

fn suback(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<SubAck> {
    let id = reader.u16()?;
    if level.is_v5() {
        skip_properties(reader, Place::Ack, limits)?;
    }
    Ok(SubAck { id, codes: reader.rest().to_vec() })
}

fn unsubscribe(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<Unsubscribe> {
    let id = packet_id(reader, level)?;
    if level.is_v5() {
        skip_properties(reader, Place::Unsubscribe, limits)?;
    }
    // MQTT-3.10.3-2.
    if reader.is_at_end() {
        return Err(ProtocolError::PROTOCOL);
    }
    let mut filters = Vec::new();
    while !reader.is_at_end() {
        filters.push(reader.text()?);
    }
    Ok(Unsubscribe { id, filters })
}

fn unsuback(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<UnsubAck> {
    let id = reader.u16()?;
    if level.is_v5() {
        skip_properties(reader, Place::Ack, limits)?;
        return Ok(UnsubAck { id, codes: reader.rest().to_vec() });
    }
    Ok(UnsubAck { id, codes: Vec::new() })
}

fn disconnect(reader: &mut Reader<'_>, level: Level, limits: &Limits) -> Result<Disconnect> {
    let mut packet = Disconnect::default();
    if !level.is_v5() || reader.is_at_end() {
        return Ok(packet);
    }
    packet.code = reader.u8()?;
    if reader.is_at_end() {
        return Ok(packet);
    }
    property::read(reader, Place::Disconnect, limits, |id, value| {
        match (id, value) {
            (property::SESSION_EXPIRY, Value::U32(secs)) => packet.session_expiry_secs = Some(secs),
            (property::REASON_STRING, Value::Text(text)) => packet.reason = Some(text),
            (property::SERVER_REFERENCE, Value::Text(text)) => packet.server_reference = Some(text),
            (_, Value::Pair(..)) => {}
            _ => return Err(ProtocolError::MALFORMED),
        }
        Ok(())
    })?;
    Ok(packet)
}

fn auth(reader: &mut Reader<'_>, limits: &Limits) -> Result<Auth> {
    let mut packet = Auth::default();
    if reader.is_at_end() {
        return Ok(packet);
    }
    packet.code = reader.u8()?;
    if reader.is_at_end() {
        return Ok(packet);
    }
    property::read(reader, Place::Auth, limits, |id, value| {
        match (id, value) {
            (property::AUTH_METHOD, Value::Text(method)) => packet.method = Some(method),
            (property::AUTH_DATA, Value::Binary(data)) => packet.data = Some(data),
            (property::REASON_STRING, Value::Text(text)) => packet.reason = Some(text),
            (_, Value::Pair(..)) => {}
            _ => return Err(ProtocolError::MALFORMED),
        }
        Ok(())
    })?;
    Ok(packet)
}
