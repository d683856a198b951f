//! Requests with conditions: "only if it is not what I have" (RFC 9110 §13.1.2).

use axum::http::{HeaderMap, HeaderValue, header};

/// The entity tags that a client holds. Proxies weaken tags when they compress, merge lines into
/// lists, and browsers send what they got: so all forms are compared, weakly.
#[derive(Clone, Debug, Default)]
pub struct IfNoneMatch(Vec<HeaderValue>);

impl IfNoneMatch {
    pub fn of(headers: &HeaderMap) -> IfNoneMatch {
        IfNoneMatch(headers.get_all(header::IF_NONE_MATCH).iter().cloned().collect())
    }

    /// Whether the client holds what has this tag.
    pub fn has(&self, tag: &HeaderValue) -> bool {
        self.0.iter().any(|line| list_has(line.as_bytes(), opaque(tag.as_bytes())))
    }
}

/// A tag without the mark of a weak one.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a list of tags names this one. What is no list of tags names none.
fn list_has(list: &[u8], wanted: &[u8]) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = list;
    loop {
        let blank = |b: &u8| matches!(b, b' ' | b'\t' | b',');
        rest = &rest[rest.iter().position(|b| !blank(b)).unwrap_or(rest.len())..];
        let from_quote = opaque(rest);
        // A tag may contain commas, so its end is the second quote.
        let Some(end) = from_quote.iter().skip(1).position(|b| *b == b'"').map(|n| n + 2) else {
            return false;
        };
        if from_quote[0] != b'"' {
            return false;
        }
        if from_quote[..end] == *wanted {
            return true;
        }
        rest = &from_quote[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(lines: &[&str], tag: &'static str) -> bool {
        let lines = lines.iter().map(|line| HeaderValue::from_str(line).unwrap()).collect();
        IfNoneMatch(lines).has(&HeaderValue::from_static(tag))
    }

    #[test]
    fn tags_are_compared_weakly_in_lists_and_by_line() {
        for lines in [
            &["\"x\""] as &[&str],
            &["W/\"x\""],
            &["\"y\", \"x\""],
            &["\"y\",W/\"x\""],
            &["W/\"a,b\" ,, W/\"x\" ,\"z\""],
            &["\"y\"", "\"x\""],
            &["*"],
            &[" * "],
        ] {
            assert!(has(lines, "\"x\""), "{lines:?}");
            assert!(has(lines, "W/\"x\""), "{lines:?}");
        }
    }

    #[test]
    fn other_tags_and_what_is_no_tag_do_not_match() {
        for line in ["", "x", "\"y\"", "\"x", "x\"", "w/\"x\"", "\"a,\"x\"\"", "\"X\"", "**", "W/", ","] {
            assert!(!has(&[line], "\"x\""), "{line}");
        }
        assert!(!has(&[], "\"x\""));
    }
}
