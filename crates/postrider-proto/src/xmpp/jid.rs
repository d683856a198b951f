//! Addresses: `local@domain/resource` (RFC 7622), and names of devices inside of them.
//!
//! A local part cannot have all the characters that a device's name may have; those are escaped (XEP-0106).

/// The parts of an address, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jid<'a> {
    pub local: Option<&'a str>,
    pub domain: &'a str,
    pub resource: Option<&'a str>,
}

/// RFC 7622 §3: of each part.
const PART_BYTES_MAX: usize = 1_023;

impl<'a> Jid<'a> {
    /// `None` when it is no address.
    pub fn parse(text: &'a str) -> Option<Jid<'a>> {
        let (bare, resource) = match text.split_once('/') {
            Some((bare, resource)) => (bare, Some(resource)),
            None => (text, None),
        };
        let (local, domain) = match bare.split_once('@') {
            Some((local, domain)) => (Some(local), domain),
            None => (None, bare),
        };
        let is_part = |part: &str| is_part(part);
        let is_local = |local: &str| is_part(local) && !local.contains(['"', '&', '\'', ':', '<', '>', ' ']);
        let is_valid = is_part(domain)
            && !domain.contains(['@', ' '])
            && local.is_none_or(is_local)
            && resource.is_none_or(is_part);
        is_valid.then_some(Jid { local, domain, resource })
    }
}

/// Whether the text may be a part of an address.
pub(crate) fn is_part(part: &str) -> bool {
    !part.is_empty() && part.len() <= PART_BYTES_MAX && !part.chars().any(char::is_control)
}

/// The characters that a local part may not have (XEP-0106 §4.3), and the backslash.
const ESCAPED: &str = " \"&'/:<>@\\";

/// A device's name as a local part.
pub fn escape_local(name: &str) -> String {
    let mut local = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        // A backslash is escaped only where it would be read as the start of an escape.
        let is_literal = c == '\\' && unescape_at(&name[at..]).is_none();
        if ESCAPED.contains(c) && !is_literal {
            local.push_str(&format!("\\{:02x}", u32::from(c)));
        } else {
            local.push(c);
        }
    }
    local
}

/// The device's name of a local part.
pub fn unescape_local(local: &str) -> String {
    let mut name = String::with_capacity(local.len());
    let mut rest = local;
    while let Some(c) = rest.chars().next() {
        let (shown, len) = unescape_at(rest).map_or((c, c.len_utf8()), |c| (c, 3));
        name.push(shown);
        rest = &rest[len..];
    }
    name
}

fn unescape_at(text: &str) -> Option<char> {
    let digits = text.strip_prefix('\\')?.get(..2).filter(|d| !d.starts_with('+'))?;
    let c = char::from(u8::from_str_radix(digits, 16).ok()?);
    ESCAPED.contains(c).then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let parse = |text| Jid::parse(text).map(|j| (j.local, j.domain, j.resource));
        assert_eq!(parse("a@b/c/d@e"), Some((Some("a"), "b", Some("c/d@e"))));
        assert_eq!(parse("127.0.0.1"), Some((None, "127.0.0.1", None)));
        for bad in ["", "@b", "a@", "a@b@c", "a@b/", "a b@c", "a@b\u{7}", "<@b", &"x".repeat(1_024)] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_survive_as_local_parts() {
        for name in ["phone-1", "app/phone", "a@b", "d'artagnan", r"c:\20x", r"\2f", r"back\slash", "ä\\"] {
            let local = escape_local(name);
            assert_eq!(unescape_local(&local), name, "{local}");
            assert!(Jid::parse(&format!("{local}@d")).is_some_and(|j| j.local == Some(&local)), "{local}");
        }
        assert_eq!(escape_local("app/phone"), r"app\2fphone");
    }
}
