//! What is read can be written, and is then read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_proto::mqtt::codec::{self, Limits};
use postrider_proto::mqtt::{Level, Packet};

fn decode(bytes: &[u8], level: Level) -> Option<Packet> {
    let header = codec::header(bytes, Some(level), 1 << 20).ok()??;
    let body = bytes.get(header.header_len..header.total_len())?;
    codec::decode(header, body, level, &Limits::of_protocol()).ok()
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let level = [Level::V31, Level::V311, Level::V5][usize::from(choice) % 3];
    let Some(packet) = decode(data, level) else { return };
    // A CONNECT brings its own level.
    let level = if let Packet::Connect(connect) = &packet { connect.level } else { level };
    let mut bytes = Vec::new();
    codec::encode(&packet, level, &mut bytes);
    let again = decode(&bytes, level).expect("what was written can be read");
    let mut bytes_again = Vec::new();
    codec::encode(&again, level, &mut bytes_again);
    assert_eq!(bytes, bytes_again);
});
