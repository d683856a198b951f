//! Where the heads of HTTP/1.1 requests end in what a connection sends, and whether each line of
//! theirs ends with CR LF.
//!
//! hyper takes a bare LF for the end of a line; a proxy in front may not, and then the two see
//! different requests (RFC 9112 §2.2, request smuggling). hyper does not tell how a line ended, so
//! the bytes are followed here as they are read, bodies by their length, so that the head of a
//! request that was sent behind another one is looked at as well.

/// Letters of a line that are looked at: those of `Content-Length` with its number are fewer.
const LINE_MAX: usize = 48;

/// What was read of a connection, up to now.
#[derive(Debug, Default)]
pub struct Heads {
    at: At,
    /// The line that is being read, without its blanks.
    line: Line,
    /// The head that is being read: lines before this one, and what it says of its body.
    lines: u32,
    length: Option<u64>,
    /// Whole heads whose requests have not begun.
    ahead: u32,
    /// No head behind those that are ahead is clean: a line ended with LF alone, or it is not
    /// known where a body ends.
    is_lost: bool,
    /// Something came behind the last whole head.
    has_more: bool,
    last: u8,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// Nothing more is looked at.
    End,
}

#[derive(Debug)]
struct Line {
    letters: [u8; LINE_MAX],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { letters: [0; LINE_MAX], len: 0 }
    }
}

impl Line {
    fn add(&mut self, byte: u8) {
        if !matches!(byte, b' ' | b'\t' | b'\r') {
            if let Some(letter) = self.letters.get_mut(self.len) {
                *letter = byte.to_ascii_lowercase();
            }
            self.len += 1;
        }
    }

    fn value_of(&self, name: &[u8]) -> Option<&[u8]> {
        self.letters[..self.len.min(LINE_MAX)].strip_prefix(name)
    }
}

impl Heads {
    pub fn read(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            match self.at {
                At::End => return self.has_more = true,
                At::Body(left) => {
                    let here = left.min(bytes.len() as u64);
                    self.has_more = true;
                    self.at = if left == here { At::Head } else { At::Body(left - here) };
                    // No longer than the slice.
                    bytes = &bytes[here as usize..];
                }
                At::Head => {
                    self.has_more = true;
                    self.read_head(*byte);
                    bytes = rest;
                }
            }
        }
    }

    fn read_head(&mut self, byte: u8) {
        let last = std::mem::replace(&mut self.last, byte);
        if byte != b'\n' {
            return self.line.add(byte);
        }
        if last != b'\r' {
            self.is_lost = true;
            self.at = At::End;
            return;
        }
        let line = std::mem::take(&mut self.line);
        match (self.lines, line.len) {
            // Empty lines before a request are passed over (RFC 9112 §2.2).
            (0, 0) => {}
            (_, 0) => self.end_head(),
            // The preface of HTTP/2 (RFC 9113 §3.4), where frames follow.
            (0, _) if line.value_of(b"pri*http/2").is_some() => self.at = At::End,
            (0, _) => self.lines = 1,
            _ => {
                self.lines = self.lines.saturating_add(1);
                self.read_field(&line);
            }
        }
    }

    fn read_field(&mut self, line: &Line) {
        if let Some(value) = line.value_of(b"content-length:") {
            // The same number may be listed more than once; hyper refuses all else.
            let first = value.split(|b| *b == b',').next().unwrap_or_default();
            let number = std::str::from_utf8(first).ok().and_then(|text| text.parse().ok());
            let is_whole = line.len <= LINE_MAX;
            self.length = Some(number.filter(|_| is_whole).unwrap_or(u64::MAX));
        } else if line.value_of(b"transfer-encoding:").is_some() {
            self.length = Some(u64::MAX);
        }
    }

    fn end_head(&mut self) {
        self.lines = 0;
        self.ahead = self.ahead.saturating_add(1);
        self.has_more = false;
        self.at = match self.length.take() {
            None | Some(0) => At::Head,
            Some(u64::MAX) => {
                self.is_lost = true;
                At::End
            }
            Some(length) => At::Body(length),
        };
    }

    /// The next request begins; whether each line of its head ended with CR LF.
    pub fn begin(&mut self) -> bool {
        match self.ahead.checked_sub(1) {
            Some(left) => {
                self.ahead = left;
                true
            }
            None => !self.is_lost,
        }
    }

    /// Nothing was read behind the head of the request that began last.
    pub fn is_at_end(&self) -> bool {
        self.ahead == 0 && !self.has_more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each request of a connection has a clean head, however its bytes are cut.
    fn judged(text: &str, requests: usize) -> Vec<bool> {
        let mut whole = Heads::default();
        whole.read(text.as_bytes());
        let verdicts: Vec<bool> = (0..requests).map(|_| whole.begin()).collect();
        for cut in 1..text.len() {
            let mut parts = Heads::default();
            text.as_bytes().chunks(cut).for_each(|part| parts.read(part));
            assert_eq!((0..requests).map(|_| parts.begin()).collect::<Vec<_>>(), verdicts, "{cut}");
            assert_eq!(parts.is_at_end(), whole.is_at_end(), "{cut}");
        }
        verdicts
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    #[test]
    fn each_head_that_is_sent_behind_another_is_looked_at() {
        let bad = "GET / HTTP/1.1\r\nHost: x\nX: a\r\n\r\n";
        assert_eq!(judged(&format!("{GET}{GET}"), 2), [true, true]);
        assert_eq!(judged(&format!("{GET}{bad}"), 2), [true, false]);
        assert_eq!(judged(&format!("{GET}\r\n{GET}{bad}{GET}"), 3), [true, true, false]);
        assert_eq!(judged(&format!("{GET}\n{GET}"), 2), [true, false]);
    }

    #[test]
    fn bodies_are_passed_over_by_their_length() {
        let post = |field: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n{body}");
        let bad = "GET / HTTP/1.1\nHost: x\r\n\r\n";
        for field in
            ["Content-Length: 4", "content-length:   4  ", "CONTENT-LENGTH:\t4, 4", "Content-Length: 0004"]
        {
            assert_eq!(judged(&format!("{}{GET}", post(field, "\n\n\r\n")), 2), [true, true], "{field}");
            assert_eq!(judged(&format!("{}{bad}", post(field, "\n\n\r\n")), 2), [true, false], "{field}");
        }
        // Where the body ends is not known here: with such a request the connection ends.
        for field in ["Transfer-Encoding: chunked", &format!("Content-Length: {}4", "0".repeat(60))] {
            assert_eq!(judged(&post(field, "\n\n\r\nGET / HTTP/1.1\r\n\r\n"), 2), [true, false], "{field}");
        }
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\n\n\n";
        assert_eq!(judged(preface, 2), [true, true], "frames are no heads");
    }

    #[test]
    fn whether_a_request_came_alone_is_known() {
        let mut heads = Heads::default();
        heads.read(GET.as_bytes());
        assert!(heads.begin() && heads.is_at_end());
        heads.read(b"\r");
        assert!(!heads.is_at_end());
        heads.read(format!("\n{GET}").as_bytes());
        assert!(!heads.is_at_end() && heads.begin() && heads.is_at_end());
    }
}
