//! What is on disk: the stored form of every command, content, receipt and state, apart from the
//! types in memory.
//!
//! - [`codec`]: tagged fields.
//! - `nouns`, `commands`, `image`: the form that is written today, the third. A command, a content
//!   and a state are lists of tagged fields.
//! - `beside`: what goes into a checkpoint beside the state, which no command made.
//! - `second`: the form of releases before 0.2, postcard of structs, frozen. Only read.
//!
//! **To store one field more**: add it to the type in memory, and to its list here with the next
//! free tag. What was written before is read with the zero of its type (0, "", empty, `None`);
//! where that is not what an old record means, use `Option`. **To store a command more**: a variant
//! of `Command`, a line in `commands`, and what it does to the state. A tag or a number that was
//! released is never used for anything else and never changes its type. Nothing else of a type in
//! memory reaches the disk: its order of fields, its names and its layout are free.
//!
//! The records name no release. Whoever writes a folder writes the format's version into the head
//! of each file; an older program refuses such a file in words, before it reads a record.

mod beside;
pub mod codec;
mod commands;
mod digest;
mod image;
mod jobs;
mod nouns;
mod second;
#[cfg(test)]
mod tests;
mod webhooks;

use crate::command::Command;
use crate::model::{Content, ReceiptEvent};
use codec::{Bad, Record};

pub use beside::{Written, write_volatile};
pub use digest::digest;
pub use image::{read_state, write_state};

/// In front of a command or a content of the third form. None of the second form begins so: there,
/// the first byte is the number of a command's variant, or whether a content has a topic.
const THIRD: u8 = 0xf3;

/// Appends a command without its content.
pub fn put_command(command: &Command, out: &mut Vec<u8>) {
    out.push(THIRD);
    command.put(out);
}

/// Reads a command of any form.
pub fn get_command(bytes: &[u8]) -> Result<Command, Bad> {
    match bytes.split_first() {
        Some((&THIRD, record)) => Command::get(record),
        _ => second::command(bytes),
    }
}

/// Appends a content.
pub fn put_content(content: &Content, out: &mut Vec<u8>) {
    out.push(THIRD);
    content.put(out);
}

/// Reads a content of any form.
pub fn get_content(bytes: &[u8]) -> Result<Content, Bad> {
    match bytes.split_first() {
        Some((&THIRD, record)) => Content::get(record),
        _ => second::content(bytes),
    }
}

/// Appends a receipt.
pub fn put_event(event: &ReceiptEvent, out: &mut Vec<u8>) {
    // A row of the second form begins with its position, which may be any number. So the third form
    // begins with a position that none has.
    out.push(0);
    out.push(THIRD);
    event.put(out);
}

/// Reads a receipt of any form.
pub fn get_event(bytes: &[u8]) -> Result<ReceiptEvent, Bad> {
    match bytes {
        [0, THIRD, record @ ..] => ReceiptEvent::get(record),
        _ => second::event(bytes),
    }
}
