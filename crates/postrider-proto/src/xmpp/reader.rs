//! Bytes of a stream, cut anywhere, → stream header, stanzas, stream end.
//!
//! Restricted as RFC 6120 §11 wants it: no document type, no processing instruction but the declaration, no comment, no
//! entity but the five. All limits are kept while reading. The work goes token by token (a tag, a run of text): a token
//! that is cut is held until it is whole, a stanza that is cut is a stack of open elements, and between stanzas there is
//! neither. Nothing recurses over the peer's depth.

use super::ns;
use super::xml::{Attribute, Element, Node, is_char};
use std::sync::Arc;

/// What a stream may bring (reliability.md L17, L18).
#[derive(Clone, Debug)]
pub struct XmlLimits {
    pub depth_max: usize,
    pub attributes_max: usize,
    pub declarations_max: usize,
    pub name_bytes_max: usize,
    pub value_bytes_max: usize,
}

impl Default for XmlLimits {
    fn default() -> Self {
        XmlLimits {
            depth_max: 16,
            attributes_max: 32,
            declarations_max: 8,
            name_bytes_max: 256,
            value_bytes_max: 4 * 1024,
        }
    }
}

/// How much a stanza may be.
#[derive(Clone, Copy, Debug)]
pub struct StanzaLimits {
    pub bytes_max: usize,
    /// Elements, attributes, namespace declarations and pieces of text: each takes many times the memory of its bytes.
    pub parts_max: usize,
}

/// What is wrong with the peer's XML; each is a stream error of RFC 6120 §4.9.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("not UTF-8")]
    BadFormat,
    #[error("a prefix that was not declared")]
    BadNamespacePrefix,
    #[error("a second stream header")]
    InvalidXml,
    #[error("not well-formed")]
    NotWellFormed,
    #[error("over a limit")]
    PolicyViolation,
    #[error("a part of XML that XMPP forbids")]
    RestrictedXml,
    #[error("an encoding other than UTF-8")]
    UnsupportedEncoding,
}

/// What was read.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// The start tag of the stream.
    Open(Element),
    /// A whole child of the stream; in framed mode, of the message.
    Stanza(Element),
    /// The end tag of the stream.
    Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing read: a declaration may come.
    #[default]
    Start,
    /// The declaration was read.
    Prolog,
    InStream,
    /// Each element stands alone (RFC 7395 §3.3).
    Framed,
    Ended,
}

/// A namespace declaration; the default one has an empty prefix.
type Declaration = (Box<str>, Arc<str>);

/// An element whose end tag has not come.
#[derive(Debug)]
struct Open {
    element: Element,
    /// The name as written.
    qname: Box<str>,
    declarations: Vec<Declaration>,
}

#[derive(Debug, Default)]
pub struct Reader {
    /// A cut token.
    held: Vec<u8>,
    stack: Vec<Open>,
    /// The stream header's own declarations and name, where they are not the usual ones.
    stream: Option<Box<(Vec<Declaration>, Box<str>)>>,
    /// So many bytes of `held` are known to be UTF-8.
    checked: u32,
    /// Bytes of the stanza under way, without the cut token.
    stanza_bytes: u32,
    /// Its elements, attributes, declarations and texts.
    stanza_parts: u32,
    /// The quote that is open at the end of `held`, or 0.
    quote: u8,
    state: State,
}

const STREAM_NAME: &str = "stream:stream";

impl Reader {
    /// For RFC 7395: no stream element around, each stanza alone.
    pub fn framed() -> Self {
        Reader { state: State::Framed, ..Reader::default() }
    }

    /// Forgets everything: a new stream begins (after TLS, after SASL).
    pub fn restart(&mut self) {
        let state = if self.state == State::Framed { State::Framed } else { State::Start };
        *self = Reader { state, ..Reader::default() };
    }

    /// The default namespace of the stream.
    pub fn content_namespace(&self) -> Arc<str> {
        self.namespace("", &[]).unwrap_or_default()
    }

    /// Nothing of a stanza has been read.
    pub fn is_between_stanzas(&self) -> bool {
        self.held.is_empty() && self.stack.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn owns_heap(&self) -> bool {
        self.held.capacity() > 0 || self.stack.capacity() > 0 || self.stream.is_some()
    }

    /// Takes the next piece off `input`; `None` when `input` is used up first.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        limits: &XmlLimits,
        stanza: StanzaLimits,
    ) -> Result<Option<Piece>, XmlError> {
        loop {
            if self.held.is_empty() {
                self.skip_blanks(input)?;
            }
            if input.is_empty() {
                return Ok(None);
            }
            let room = stanza.bytes_max.saturating_sub(self.stanza_bytes as usize);
            let piece = if self.held.is_empty() {
                self.quote = 0;
                match self.token_len(input, 0, room)? {
                    Some(len) => {
                        let (token, rest) = input.split_at(len);
                        *input = rest;
                        self.take_token(token, limits)?
                    }
                    None => self.hold(input, room)?,
                }
            } else {
                self.continue_held(input, room, limits)?
            };
            if self.stanza_parts as usize > stanza.parts_max {
                return Err(XmlError::PolicyViolation);
            }
            if piece.is_some() {
                self.stanza_parts = 0;
                return Ok(piece);
            }
        }
    }

    /// Blanks between stanzas are the peer's sign of life; in front of a stream they do no harm.
    fn skip_blanks(&mut self, input: &mut &[u8]) -> Result<(), XmlError> {
        if self.state == State::Ended {
            *input = &[];
        }
        if !self.stack.is_empty() {
            return Ok(());
        }
        let blanks = input.iter().take_while(|b| b" \t\r\n".contains(b)).count();
        *input = &input[blanks..];
        match input.first() {
            None | Some(b'<') => Ok(()),
            // The byte order marks of UTF-16.
            Some(0xFE | 0xFF) if self.state == State::Start => Err(XmlError::UnsupportedEncoding),
            Some(_) => Err(XmlError::NotWellFormed),
        }
    }

    fn hold(&mut self, input: &mut &[u8], room: usize) -> Result<Option<Piece>, XmlError> {
        let old = self.held.len();
        self.held.extend_from_slice(&input[..input.len().min((room + 1).saturating_sub(old))]);
        *input = &[];
        self.check_held(room)?;
        Ok(None)
    }

    fn check_held(&mut self, room: usize) -> Result<(), XmlError> {
        let visible = &self.held[..self.held.len().min(room)];
        let from = (self.checked as usize).min(visible.len());
        match std::str::from_utf8(&visible[from..]) {
            Ok(_) => self.checked = visible.len() as u32,
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to() as u32,
            Err(_) => return Err(XmlError::BadFormat),
        }
        if self.held.len() > room { Err(XmlError::PolicyViolation) } else { Ok(()) }
    }

    /// Completes the cut token, if `input` has its rest.
    fn continue_held(
        &mut self,
        input: &mut &[u8],
        room: usize,
        limits: &XmlLimits,
    ) -> Result<Option<Piece>, XmlError> {
        let old = self.held.len();
        let mut held = std::mem::take(&mut self.held);
        let taken = input.len().min((room + 1).saturating_sub(old));
        held.extend_from_slice(&input[..taken]);
        let len = self.token_len(&held, old, room);
        match len? {
            Some(len) => {
                *input = &input[len.saturating_sub(old)..];
                held.truncate(len);
                self.checked = 0;
                self.take_token(&held, limits)
            }
            None => {
                self.held = held;
                *input = &[];
                self.check_held(room)?;
                Ok(None)
            }
        }
    }

    /// How long the token at the start of `bytes` is, of which the first `seen` bytes were looked at before. `None`: it is
    /// not whole, or longer than there is room for.
    fn token_len(&mut self, bytes: &[u8], seen: usize, room: usize) -> Result<Option<usize>, XmlError> {
        let visible = &bytes[..bytes.len().min(room)];
        let end = match bytes {
            [b'<', b'!', ..] => return self.cdata_len(visible, seen),
            [b'<', b'?', ..] => return self.declaration_len(visible, seen),
            [b'<', ..] => self.tag_len(visible, seen),
            _ => {
                let next = visible.iter().skip(seen).position(|b| *b == b'<').map(|at| at + seen);
                // The text ends just where the room does.
                next.or((bytes.len() > room && bytes[room] == b'<').then_some(room))
            }
        };
        Ok(end)
    }

    fn tag_len(&mut self, bytes: &[u8], seen: usize) -> Option<usize> {
        for (at, &byte) in bytes.iter().enumerate().skip(seen) {
            match (self.quote, byte) {
                (0, b'>') => return Some(at + 1),
                (0, b'"' | b'\'') => self.quote = byte,
                (quote, _) if quote == byte => self.quote = 0,
                _ => {}
            }
        }
        None
    }

    /// `<!` begins a CDATA section, or what is forbidden; that is known by its next bytes.
    fn cdata_len(&self, bytes: &[u8], seen: usize) -> Result<Option<usize>, XmlError> {
        const START: &[u8] = b"<![CDATA[";
        let known = bytes.len().min(START.len());
        if bytes[..known] != START[..known] || self.stack.is_empty() {
            return Err(XmlError::RestrictedXml);
        }
        Ok(end_of(bytes, START.len().max(seen.saturating_sub(2)), b"]]>"))
    }

    fn declaration_len(&self, bytes: &[u8], seen: usize) -> Result<Option<usize>, XmlError> {
        const START: &[u8] = b"<?xml";
        let known = bytes.len().min(START.len());
        if self.state != State::Start || bytes[..known] != START[..known] {
            return Err(XmlError::RestrictedXml);
        }
        if bytes.get(START.len()).is_some_and(|b| !b" \t\r\n".contains(b)) {
            return Err(XmlError::RestrictedXml);
        }
        Ok(end_of(bytes, START.len().max(seen.saturating_sub(1)), b"?>"))
    }

    fn take_token(&mut self, token: &[u8], limits: &XmlLimits) -> Result<Option<Piece>, XmlError> {
        let text = std::str::from_utf8(token).map_err(|_| XmlError::BadFormat)?;
        self.stanza_bytes += token.len() as u32;
        let piece = match token {
            [b'<', b'!', ..] => {
                self.add_text(cdata_text(text)?);
                None
            }
            [b'<', b'?', ..] => {
                self.state = State::Prolog;
                check_declaration(text)?;
                None
            }
            [b'<', b'/', ..] => self.end_tag(text)?,
            [b'<', ..] => self.start_tag(text, limits)?,
            _ => {
                self.add_text(unescaped(text, false)?);
                None
            }
        };
        if self.stack.is_empty() {
            self.stack = Vec::new();
            self.stanza_bytes = 0;
        }
        Ok(piece)
    }

    fn add_text(&mut self, text: String) {
        let Some(open) = self.stack.last_mut() else { return };
        self.stanza_parts += 1;
        match open.element.nodes.last_mut() {
            Some(Node::Text(before)) => before.push_str(&text),
            _ => open.element.nodes.push(Node::Text(text)),
        }
    }

    fn start_tag(&mut self, token: &str, limits: &XmlLimits) -> Result<Option<Piece>, XmlError> {
        let is_empty = token.ends_with("/>");
        let inside = &token[1..token.len() - if is_empty { 2 } else { 1 }];
        if self.stack.len() >= limits.depth_max {
            return Err(XmlError::PolicyViolation);
        }
        let (open, attributes) = self.open_of(inside, limits)?;
        self.stanza_parts += 1 + (attributes.len() + open.declarations.len()) as u32;
        let element = Element { attributes, ..open.element };
        let open = Open { element, ..open };
        let is_stream = open.element.is(ns::STREAMS, "stream") && self.stack.is_empty();
        match self.state {
            State::Start | State::Prolog => return self.open_stream(open, is_empty),
            State::InStream if is_stream => return Err(XmlError::InvalidXml),
            _ if is_empty => return Ok(self.complete(open.element)),
            _ => self.stack.push(open),
        }
        Ok(None)
    }

    fn open_stream(&mut self, open: Open, is_empty: bool) -> Result<Option<Piece>, XmlError> {
        if is_empty {
            return Err(XmlError::NotWellFormed);
        }
        self.state = State::InStream;
        let Open { element, qname, declarations } = open;
        let is_usual = *qname == *STREAM_NAME
            && declarations.len() == 2
            && declarations.iter().all(|(prefix, ns)| usual_namespace(prefix) == Some(&**ns));
        self.stream = (!is_usual).then(|| Box::new((declarations, qname)));
        Ok(Some(Piece::Open(element)))
    }

    fn end_tag(&mut self, token: &str) -> Result<Option<Piece>, XmlError> {
        let name = token[2..token.len() - 1].trim_end_matches([' ', '\t', '\r', '\n']);
        match self.stack.pop() {
            Some(open) if *open.qname == *name => Ok(self.complete(open.element)),
            Some(_) => Err(XmlError::NotWellFormed),
            None => {
                let stream_name = self.stream.as_ref().map_or(STREAM_NAME, |s| &*s.1);
                if self.state != State::InStream || name != stream_name {
                    return Err(XmlError::NotWellFormed);
                }
                self.state = State::Ended;
                Ok(Some(Piece::Close))
            }
        }
    }

    fn complete(&mut self, element: Element) -> Option<Piece> {
        match self.stack.last_mut() {
            Some(outer) => {
                outer.element.nodes.push(Node::Element(element));
                None
            }
            None => Some(Piece::Stanza(element)),
        }
    }

    /// The element of a start tag's inside, and its attributes apart.
    fn open_of(&self, inside: &str, limits: &XmlLimits) -> Result<(Open, Vec<Attribute>), XmlError> {
        let name_len = inside.find([' ', '\t', '\r', '\n']).unwrap_or(inside.len());
        let (qname, rest) = inside.split_at(name_len);
        let (prefix, name) = split_name(qname, limits)?;
        let (written, declarations) = attributes_of(rest, limits)?;
        let ns = self.namespace(prefix, &declarations)?;
        let mut attributes: Vec<Attribute> = Vec::with_capacity(written.len());
        for (qname, value) in written {
            let (prefix, name) = split_name(qname, limits)?;
            let (ns, name) = match prefix {
                "" => (None, name),
                "xml" => (None, qname),
                prefix => (Some(self.namespace(prefix, &declarations)?), name),
            };
            if attributes.iter().any(|a| *a.name == *name && a.ns == ns) {
                return Err(XmlError::NotWellFormed);
            }
            attributes.push(Attribute { ns, name: name.into(), value: value.into() });
        }
        let element = Element { ns, name: name.into(), attributes: Vec::new(), nodes: Vec::new() };
        Ok((Open { element, qname: qname.into(), declarations }, attributes))
    }

    /// What a prefix stands for at this place.
    fn namespace(&self, prefix: &str, own: &[Declaration]) -> Result<Arc<str>, XmlError> {
        let find = |declarations: &[Declaration]| {
            declarations.iter().find(|(p, _)| **p == *prefix).map(|(_, ns)| ns.clone())
        };
        let open = || self.stack.iter().rev().find_map(|open| find(&open.declarations));
        let in_stream = || match (&self.stream, self.state) {
            (Some(stream), _) => find(&stream.0),
            (None, State::InStream) => usual_namespace(prefix).map(Arc::from),
            _ => None,
        };
        match find(own).or_else(open).or_else(in_stream) {
            Some(ns) => Ok(ns),
            None if prefix.is_empty() => Ok(Arc::from("")),
            None if prefix == "xml" => Ok(Arc::from(ns::XML)),
            None => Err(XmlError::BadNamespacePrefix),
        }
    }
}

/// The end of the first `mark` at or after `from`.
fn end_of(bytes: &[u8], from: usize, mark: &[u8]) -> Option<usize> {
    let found = bytes.get(from..)?.windows(mark.len()).position(|w| w == mark);
    found.map(|at| from + at + mark.len())
}

/// What nearly every client declares in its stream header; remembered without memory.
fn usual_namespace(prefix: &str) -> Option<&'static str> {
    match prefix {
        "" => Some(ns::CLIENT),
        "stream" => Some(ns::STREAMS),
        _ => None,
    }
}

/// Prefix and local name (Namespaces in XML §4).
fn split_name<'a>(qname: &'a str, limits: &XmlLimits) -> Result<(&'a str, &'a str), XmlError> {
    if qname.len() > limits.name_bytes_max {
        return Err(XmlError::PolicyViolation);
    }
    let (prefix, name) = match qname.split_once(':') {
        Some((prefix, name)) if is_name(prefix) => (prefix, name),
        Some(_) => return Err(XmlError::NotWellFormed),
        None => ("", qname),
    };
    if is_name(name) { Ok((prefix, name)) } else { Err(XmlError::NotWellFormed) }
}

/// XML §2.3, without the colon.
fn is_name(name: &str) -> bool {
    let is_start = |c: char| {
        matches!(c, 'A'..='Z' | 'a'..='z' | '_' | '\u{C0}'..='\u{D6}' | '\u{D8}'..='\u{F6}' | '\u{F8}'..='\u{2FF}'
            | '\u{370}'..='\u{37D}' | '\u{37F}'..='\u{1FFF}' | '\u{200C}' | '\u{200D}' | '\u{2070}'..='\u{218F}'
            | '\u{2C00}'..='\u{2FEF}' | '\u{3001}'..='\u{D7FF}' | '\u{F900}'..='\u{FDCF}' | '\u{FDF0}'..='\u{FFFD}'
            | '\u{10000}'..='\u{EFFFF}')
    };
    let is_other = |c: char| matches!(c, '-' | '.' | '0'..='9' | '\u{B7}' | '\u{300}'..='\u{36F}' | '\u{203F}' | '\u{2040}');
    name.starts_with(is_start) && name.chars().all(|c| is_start(c) || is_other(c))
}

/// The attributes as written and the namespace declarations, counted before anything is resolved.
#[allow(clippy::type_complexity, reason = "used once")]
fn attributes_of<'a>(
    inside: &'a str,
    limits: &XmlLimits,
) -> Result<(Vec<(&'a str, String)>, Vec<Declaration>), XmlError> {
    const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];
    let (mut attributes, mut declarations) = (Vec::new(), Vec::<Declaration>::new());
    let mut rest = inside;
    loop {
        let trimmed = rest.trim_start_matches(BLANKS);
        if trimmed.is_empty() {
            return Ok((attributes, declarations));
        }
        // XML §3.1: a blank before each.
        let (name, after) = trimmed.split_once('=').ok_or(XmlError::NotWellFormed)?;
        if trimmed.len() == rest.len() {
            return Err(XmlError::NotWellFormed);
        }
        let name = name.trim_end_matches(BLANKS);
        let after = after.trim_start_matches(BLANKS);
        let quote =
            after.chars().next().filter(|q| matches!(q, '"' | '\'')).ok_or(XmlError::NotWellFormed)?;
        let (value, after) = after[1..].split_once(quote).ok_or(XmlError::NotWellFormed)?;
        rest = after;
        if value.len() > limits.value_bytes_max {
            return Err(XmlError::PolicyViolation);
        }
        if value.contains('<') {
            return Err(XmlError::NotWellFormed);
        }
        let value = unescaped(value, true)?;
        let prefix = if name == "xmlns" { Some("") } else { name.strip_prefix("xmlns:") };
        match prefix {
            Some(prefix) => declare(prefix, value, &mut declarations, limits)?,
            None if attributes.len() == limits.attributes_max => return Err(XmlError::PolicyViolation),
            None => attributes.push((name, value)),
        }
    }
}

fn declare(
    prefix: &str,
    ns: String,
    declarations: &mut Vec<Declaration>,
    limits: &XmlLimits,
) -> Result<(), XmlError> {
    if declarations.len() == limits.declarations_max {
        return Err(XmlError::PolicyViolation);
    }
    split_name(if prefix.is_empty() { "xmlns" } else { prefix }, limits)?;
    let is_reserved = prefix == "xmlns" || (prefix == "xml") != (ns == ns::XML);
    let is_undeclaring = !prefix.is_empty() && ns.is_empty();
    if is_reserved || is_undeclaring || declarations.iter().any(|(p, _)| **p == *prefix) {
        return Err(XmlError::NotWellFormed);
    }
    declarations.push((prefix.into(), ns.into()));
    Ok(())
}

/// XML §2.8; §11.5 of RFC 6120: version 1.0, UTF-8.
fn check_declaration(token: &str) -> Result<(), XmlError> {
    let inside = &token["<?xml".len()..token.len() - "?>".len()];
    let limits = XmlLimits::default();
    let (attributes, declarations) = attributes_of(inside, &limits)?;
    if !declarations.is_empty() || attributes.first().is_none_or(|(name, _)| *name != "version") {
        return Err(XmlError::NotWellFormed);
    }
    for (name, value) in attributes {
        match name {
            "encoding" if !value.eq_ignore_ascii_case("utf-8") => return Err(XmlError::UnsupportedEncoding),
            "version" | "encoding" | "standalone" => {}
            _ => return Err(XmlError::NotWellFormed),
        }
    }
    Ok(())
}

fn cdata_text(token: &str) -> Result<String, XmlError> {
    let inside = &token["<![CDATA[".len()..token.len() - "]]>".len()];
    if inside.chars().all(is_char) {
        Ok(inside.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Err(XmlError::NotWellFormed)
    }
}

/// Text with its references resolved and its line ends made one (XML §2.11, §3.3.3, §4.6).
fn unescaped(raw: &str, is_value: bool) -> Result<String, XmlError> {
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '&' => {
                let end = raw[at..].find(';').ok_or(XmlError::NotWellFormed)?;
                text.push(referred(&raw[at + 1..at + end])?);
                // A reference is of one-byte characters only, or it would not have been one.
                chars.nth(end - 1);
            }
            '\r' if raw[at + 1..].starts_with('\n') => {}
            '\t' | '\n' | '\r' if is_value => text.push(' '),
            '\r' => text.push('\n'),
            c if is_char(c) => text.push(c),
            _ => return Err(XmlError::NotWellFormed),
        }
    }
    Ok(text)
}

/// What stands between `&` and `;`.
fn referred(name: &str) -> Result<char, XmlError> {
    let number = match name.strip_prefix('#') {
        Some(digits) => match digits.strip_prefix('x') {
            Some(hex) => from_digits(hex, 16),
            None => from_digits(digits, 10),
        },
        None => {
            return match name {
                "lt" => Ok('<'),
                "gt" => Ok('>'),
                "amp" => Ok('&'),
                "quot" => Ok('"'),
                "apos" => Ok('\''),
                name if is_name(name) => Err(XmlError::RestrictedXml),
                _ => Err(XmlError::NotWellFormed),
            };
        }
    };
    number.filter(|c| is_char(*c)).ok_or(XmlError::NotWellFormed)
}

fn from_digits(digits: &str, radix: u32) -> Option<char> {
    // `from_str_radix` would take a sign.
    let are_digits = digits.chars().all(|c| c.is_digit(radix));
    u32::from_str_radix(digits, radix).ok().filter(|_| are_digits).and_then(char::from_u32)
}
