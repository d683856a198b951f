//! The bytes of the journal: pure encoding and decoding, no files.
//!
//! A segment is a header and records end to end. A record is
//!
//! ```text
//! ┌ head, 32 bytes ────────────────────────────────────────────────────────────┐
//! │ seq u64 │ group u32 │ kind u32 │ command_len u32 │ content_len u32          │
//! │ crc32c of the command u32 │ crc32c of the head u32                          │
//! ├ command (tagged, without content) ──┬ content: len u32, crc32c u32, bytes ─┤
//! ```
//!
//! The head has a checksum of its own, so that damage in a body does not lose the records behind it. `group` is where
//! the group of this record began: all before it was on stable storage when this was written. So a bad record is a torn
//! write if no later record says that it was once whole, and corruption if one does. Content stands in a frame of its
//! own, the same here and in content files: a [`BlobRef`] leads to the frame, which is checked on each read.
//!
//! Each file's header names the format, the rules by which its commands are executed, and the release
//! that wrote it ([`Written`]).

use postrider_core::command::Command;
use postrider_core::id::Seq;
use postrider_core::model::Content;
use postrider_core::state::rules::RULES;
use postrider_core::stored;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;

pub const HEAD_LEN: usize = 32;
/// Length and checksum in front of a content.
pub const FRAME_LEN: usize = 8;
/// 2: a checkpoint has the proof keys behind the state; two commands more. 3: tagged fields instead
/// of structs in postcard (`postrider_core::stored`).
pub const FORMAT_VERSION: u32 = 3;
/// Of each file's header.
pub const HEADER_LEN: usize = 48;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Command,
    /// The last one of a journal that was closed in order: from here nothing may be missing or torn.
    Seal,
}

/// The fixed part in front of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub seq: Seq,
    pub group: u32,
    pub kind: Kind,
    pub command_len: u32,
    /// With its frame; 0 without content.
    pub content_len: u32,
    pub command_crc: u32,
}

impl Head {
    pub fn record_len(&self) -> usize {
        HEAD_LEN + self.command_len as usize + self.content_len as usize
    }

    /// `salt` is a secret of the file: bytes that a sender puts into a message never pass for a head.
    pub fn encode(&self, salt: u64) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.group.to_le_bytes());
        let kind: u32 = match self.kind {
            Kind::Command => KIND_COMMAND,
            Kind::Seal => KIND_SEAL,
        };
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.command_len.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.content_len.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.command_crc.to_le_bytes());
        let crc = head_crc(&bytes, salt);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None`: these bytes are not a head, or a damaged one.
    pub fn decode(bytes: &[u8], salt: u64) -> Option<Head> {
        let bytes = bytes.get(..HEAD_LEN)?;
        let kind = match u32_at(bytes, 12) {
            KIND_COMMAND => Kind::Command,
            KIND_SEAL => Kind::Seal,
            _ => return None,
        };
        if head_crc(bytes, salt) != u32_at(bytes, 28) {
            return None;
        }
        Some(Head {
            seq: u64_at(bytes, 0),
            group: u32_at(bytes, 8),
            kind,
            command_len: u32_at(bytes, 16),
            content_len: u32_at(bytes, 20),
            command_crc: u32_at(bytes, 24),
        })
    }
}

fn head_crc(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &bytes[..28])
}

// Four letters rather than 1 and 2, so that heads can be searched for in a damaged file.
const KIND_COMMAND: u32 = u32::from_le_bytes(*b"pCmd");
const KIND_SEAL: u32 = u32::from_le_bytes(*b"pEnd");

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A command's bytes, ready but for its number and place: made on the caller's thread, so that the one writer need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub command_len: u32,
    pub command_crc: u32,
    pub content_len: u32,
}

impl Encoded {
    pub fn body_len(&self) -> usize {
        self.command_len as usize + self.content_len as usize
    }
}

/// Appends a command's body to `out` and takes the content out of the command: what is executed is what recovery will
/// see, so nothing can come to depend on a content that will not be there.
pub fn encode_body(command: &mut Command, out: &mut Vec<u8>) -> Result<Encoded, postcard::Error> {
    let content = command.take_content();
    let start = out.len();
    stored::put_command(command, out);
    let command_len = to_u32(out.len() - start)?;
    let command_crc = crc32c::crc32c(&out[start..]);
    let before = out.len();
    if let Some(content) = content {
        append_content(&content, out)?;
    }
    Ok(Encoded { command_len, command_crc, content_len: to_u32(out.len() - before)? })
}

/// Appends a content in its frame.
pub fn append_content(content: &Content, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_LEN]);
    stored::put_content(content, out);
    let len = to_u32(out.len() - start - FRAME_LEN)?;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    let crc = frame_crc(len, &out[start + FRAME_LEN..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn frame_crc(len: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), bytes)
}

/// The bytes within a frame, if it is whole; `frame` may be longer than it.
pub fn open_frame(frame: &[u8]) -> Option<&[u8]> {
    let len = frame.get(..FRAME_LEN).map(|_| u32_at(frame, 0))?;
    let bytes = frame[FRAME_LEN..].get(..len as usize)?;
    (frame_crc(len, bytes) == u32_at(frame, 4)).then_some(bytes)
}

/// Puts bytes into a frame.
pub fn append_frame(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    let len = to_u32(bytes.len())?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&frame_crc(len, bytes).to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Reads a content out of its frame; `None` when anything of it is damaged.
pub fn decode_content(frame: &[u8]) -> Option<Content> {
    stored::get_content(open_frame(frame)?).ok()
}

fn to_u32(len: usize) -> Result<u32, postcard::Error> {
    u32::try_from(len).map_err(|_| postcard::Error::SerializeBufferFull)
}

/// What lies at a place of a segment.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// A whole record.
    Record { head: Head, command: &'a [u8] },
    /// A record whose command is good and whose content is not.
    BadContent { head: Head, command: &'a [u8] },
    /// A record whose head is good and whose command is not.
    BadCommand { head: Head },
    /// Nothing readable.
    BadHead,
    /// Only zeros follow, or nothing: the end of what was written.
    End,
}

/// Looks at the record that should begin at `offset`. Never panics, whatever the bytes are.
pub fn parse(segment: &[u8], offset: usize, salt: u64) -> Parsed<'_> {
    let rest = segment.get(offset..).unwrap_or_default();
    let Some(head) = Head::decode(rest, salt) else {
        return if rest.iter().all(|byte| *byte == 0) { Parsed::End } else { Parsed::BadHead };
    };
    let Some(body) = rest.get(HEAD_LEN..head.record_len()) else { return Parsed::BadHead };
    let (command, content) = body.split_at(head.command_len as usize);
    if crc32c::crc32c(command) != head.command_crc {
        return Parsed::BadCommand { head };
    }
    let content_is_whole =
        content.is_empty() || open_frame(content).is_some_and(|c| c.len() + FRAME_LEN == content.len());
    if content_is_whole { Parsed::Record { head, command } } else { Parsed::BadContent { head, command } }
}

/// The next offset at or behind `from` at which a good head stands whose number is in `seqs`: where reading can go on.
pub fn resync(segment: &[u8], from: usize, seqs: RangeInclusive<Seq>, salt: u64) -> Option<usize> {
    (from..segment.len().saturating_sub(HEAD_LEN - 1)).find(|&at| {
        let kind = u32_at(segment, at + 12);
        (kind == KIND_COMMAND || kind == KIND_SEAL)
            && Head::decode(&segment[at..], salt).is_some_and(|head| seqs.contains(&head.seq))
    })
}

/// What each file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub magic: [u8; 8],
    pub store_id: u64,
    /// 0 where the file has no number.
    pub file: u32,
    /// First number in the file: of a command or of an event; of a checkpoint the last one in it.
    pub first: u64,
    pub flags: u32,
    pub written: Written,
}

/// By what program a file was written. A later program is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written {
    /// How its bytes are to be read.
    pub format: u32,
    /// How its commands are executed; of a checkpoint: how those that it is made of were.
    pub rules: u32,
    pub release: Release,
}

impl Written {
    pub const NOW: Written = Written { format: FORMAT_VERSION, rules: RULES, release: Release::PRESENT };

    fn read(header: &[u8]) -> Written {
        let format = u32_at(header, 8);
        // The first two formats say nothing of rules: they are of one release. Of the third, only
        // unreleased programs wrote headers without, and they executed by the second rules.
        let rules = match u32_at(header, 36) {
            _ if format < 3 => 1,
            0 => 2,
            rules => rules,
        };
        Written { format, rules, release: Release(u32_at(header, 40)) }
    }
}

/// A release's number, in four bytes; 0 where a file does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(u32);

impl Release {
    pub const PRESENT: Release = Release(
        number(env!("CARGO_PKG_VERSION_MAJOR")) << 20
            | number(env!("CARGO_PKG_VERSION_MINOR")) << 10
            | number(env!("CARGO_PKG_VERSION_PATCH")),
    );
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0.1, or a build of that time"),
            packed => write!(f, "{}.{}.{}", packed >> 20, packed >> 10 & 0x3ff, packed & 0x3ff),
        }
    }
}

const fn number(digits: &str) -> u32 {
    let (mut number, mut i) = (0, 0);
    while i < digits.len() {
        number = number * 10 + (digits.as_bytes()[i] - b'0') as u32;
        i += 1;
    }
    number
}

/// The file was written without waiting for the disk.
pub const FLAG_RELAXED: u32 = 1;

pub const JOURNAL: [u8; 8] = *b"PRjournl";
pub const CONTENTS: [u8; 8] = *b"PRcontnt";
pub const CHECKPOINT: [u8; 8] = *b"PRcheckp";
pub const EVENTS: [u8; 8] = *b"PRevents";
pub const STORE: [u8; 8] = *b"PRstore\0";
pub const HISTORY: [u8; 8] = *b"PRhistry";

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    Damaged,
    Newer(u32),
}

impl Header {
    /// Of a file that is written now.
    pub fn new(magic: [u8; 8], store_id: u64, file: u32, first: u64) -> Header {
        Header { magic, store_id, file, first, flags: 0, written: Written::NOW }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&self.magic);
        bytes[8..12].copy_from_slice(&self.written.format.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.file.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.store_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.written.rules.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.written.release.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], magic: [u8; 8]) -> Result<Header, BadHeader> {
        let bytes = bytes.get(..HEADER_LEN).ok_or(BadHeader::Damaged)?;
        if crc32c::crc32c(&bytes[..HEADER_LEN - 4]) != u32_at(bytes, HEADER_LEN - 4) || bytes[..8] != magic {
            return Err(BadHeader::Damaged);
        }
        // Length, checksum and version of the header stay where they are in every version to come.
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(BadHeader::Newer(version));
        }
        Ok(Header {
            magic,
            store_id: u64_at(bytes, 16),
            file: u32_at(bytes, 12),
            first: u64_at(bytes, 24),
            flags: u32_at(bytes, 32),
            written: Written::read(bytes),
        })
    }
}

/// Which content files a checkpoint needs: its first frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub seq: Seq,
    pub next_file: u32,
    /// Number and length.
    pub contents: Vec<(u32, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::id::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn retain(payload: Vec<u8>) -> Command {
        let content = Content { topic: Some("a/b".into()), payload: payload.into(), properties: None };
        let message = postrider_core::command::RetainedMessage {
            qos: 1,
            expires_at: 9,
            room: None,
            content: Some(Arc::new(content)),
        };
        Command::Retain { app: AppNo(1), topic: "a/b".into(), message: Some(message) }
    }

    fn record(seq: Seq, payload: Vec<u8>) -> Vec<u8> {
        let mut body = Vec::new();
        let encoded = encode_body(&mut retain(payload), &mut body).unwrap();
        let head = Head {
            seq,
            group: 7,
            kind: Kind::Command,
            command_len: encoded.command_len,
            content_len: encoded.content_len,
            command_crc: encoded.command_crc,
        };
        let mut bytes = head.encode(9).to_vec();
        bytes.extend_from_slice(&body);
        bytes
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(seq in any::<u64>(), payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let bytes = record(seq, payload.clone());
            match parse(&bytes, 0, 9) {
                Parsed::Record { head, command } => {
                    prop_assert_eq!(head.seq, seq);
                    prop_assert_eq!(head.record_len(), bytes.len());
                    prop_assert!(stored::get_command(command).is_ok());
                    prop_assert_eq!(&decode_content(&bytes[HEAD_LEN + command.len()..]).unwrap().payload[..], &payload[..]);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn any_flipped_bit_of_a_record_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = record(5, payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let accepted = matches!(parse(&bytes, 0, 9), Parsed::Record { .. });
            prop_assert!(!accepted);
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..400) {
            let _ = parse(&bytes, at, 9);
            let _ = resync(&bytes, at, 0..=u64::MAX, 9);
            let _ = decode_content(&bytes);
            let _ = Header::decode(&bytes, JOURNAL);
        }

        #[test]
        fn reading_goes_on_behind_damage(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = garbage.clone();
            bytes.extend(record(77, vec![1, 2, 3]));
            prop_assert_eq!(resync(&bytes, 0, 70..=80, 9), Some(garbage.len()));
            prop_assert_eq!(resync(&bytes, 0, 1..=60, 9), None);
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let header = Header::new(JOURNAL, 1, 2, 3);
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes, JOURNAL), Ok(header));
        bytes[8] = 9;
        assert_eq!(Header::decode(&bytes, JOURNAL), Err(BadHeader::Damaged));
        let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes, JOURNAL), Err(BadHeader::Newer(9)));
    }

    #[test]
    fn a_header_says_by_which_rules_and_which_release_it_was_written() {
        let written = |format: u32, rules: u32, release: u32| {
            let written = Written { format, rules, release: Release(release) };
            let bytes = Header { written, ..Header::new(JOURNAL, 1, 2, 3) }.encode();
            Header::decode(&bytes, JOURNAL).unwrap().written
        };
        assert_eq!(written(FORMAT_VERSION, RULES, Release::PRESENT.0), Written::NOW);
        assert_eq!(written(FORMAT_VERSION, 77, 0).rules, 77);
        // Files of formats that say nothing of it.
        assert_eq!((written(1, 0, 0).rules, written(2, 0, 0).rules, written(3, 0, 0).rules), (1, 1, 2));
        assert_eq!(Release(1 << 20 | 22 << 10 | 333).to_string(), "1.22.333");
        assert_eq!(Release::PRESENT.to_string(), env!("CARGO_PKG_VERSION"));
    }

    /// The bytes as they are, then as a command and as a content with heads and checksums that are right.
    fn decoders(data: &[u8]) {
        let at = data.first().map_or(0, |b| usize::from(*b));
        let _ = (parse(data, at, 9), resync(data, at, 0..=u64::MAX, 9), decode_content(data));
        let _ = Header::decode(data, JOURNAL);
        let mut bytes = Vec::new();
        append_frame(data, &mut bytes).unwrap();
        if let Some(content) = decode_content(&bytes) {
            let mut again = Vec::new();
            append_content(&content, &mut again).unwrap();
            assert_eq!(decode_content(&again).as_ref(), Some(&content));
        }
        let head = Head {
            seq: 1,
            group: 1,
            kind: Kind::Command,
            command_len: data.len() as u32,
            content_len: 0,
            command_crc: crc32c::crc32c(data),
        };
        let record = [&head.encode(9)[..], data].concat();
        let Parsed::Record { command, .. } = parse(&record, 0, 9) else { panic!("a whole record") };
        if let Ok(mut command) = stored::get_command(command) {
            let mut again = Vec::new();
            let _ = encode_body(&mut command, &mut again);
        }
        let _ = postcard::from_bytes::<Manifest>(data);
    }

    #[test]
    fn fuzz_store_records() {
        postrider_fuzz::run("store_records", decoders);
    }
}
