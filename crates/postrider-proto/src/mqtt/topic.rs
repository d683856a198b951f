//! Topic names and filters: their form, their limits, and whether one matches the other (MQTT 5 §4.7, §4.8).
//!
//! Nothing here recurses and nothing allocates: a topic of 65,535 slashes costs one pass over its bytes.
//! What a session subscribed to, and the index over all filters, are not here: they belong to the core.

use crate::Text;

/// Why a name or filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicError {
    /// MQTT-4.7.3-1.
    Empty,
    /// `#` or `+` in a name (MQTT-3.3.2-2), or where a filter does not allow it (MQTT-4.7.1-1, -2).
    Wildcard,
    /// A control character or a non-character: allowed to be refused by §1.5.4, and always refused here.
    ControlCharacter,
    TooLong,
    TooManyLevels,
    /// `$share/` with an empty group, a wildcard in the group, or no filter (MQTT-4.8.2-1, -2).
    Share,
}

/// Checks a topic name as it stands in a PUBLISH or a will.
pub fn check_name(name: &str, bytes_max: usize, levels_max: usize) -> Result<(), TopicError> {
    check_text(name, bytes_max, levels_max)?;
    if has_wildcard(name) {
        return Err(TopicError::Wildcard);
    }
    Ok(())
}

/// Checks a filter without its `$share/{group}/`.
pub fn check_filter(filter: &str, bytes_max: usize, levels_max: usize) -> Result<(), TopicError> {
    check_text(filter, bytes_max, levels_max)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        match level {
            "+" => {}
            "#" if is_last => {}
            _ if has_wildcard(level) => return Err(TopicError::Wildcard),
            _ => {}
        }
    }
    Ok(())
}

/// What both share. Length before levels before characters, so that the cheapest refusal comes first.
fn check_text(text: &str, bytes_max: usize, levels_max: usize) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > bytes_max {
        return Err(TopicError::TooLong);
    }
    if text.bytes().filter(|&byte| byte == b'/').count() >= levels_max {
        return Err(TopicError::TooManyLevels);
    }
    if text.chars().any(is_refused) {
        return Err(TopicError::ControlCharacter);
    }
    Ok(())
}

/// Control characters and Unicode non-characters (§1.5.4 lets a receiver refuse them). U+FEFF is neither (MQTT-1.5.4-3).
fn is_refused(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// Whether a filter has wildcards: if not, it is the name of the one topic that it matches.
pub fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|byte| matches!(byte, b'#' | b'+'))
}

/// A filter as subscribed to, in its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedFilter {
    pub share: Option<Text>,
    pub filter: Text,
}

/// Splits `$share/{group}/{filter}` (MQTT 5 §4.8.2) and checks the form of each part. `$share` works for 3.x clients too.
pub fn parse_filter(whole: &Text, bytes_max: usize, levels_max: usize) -> Result<ParsedFilter, TopicError> {
    let text = whole.as_str();
    let Some(rest) = text.strip_prefix("$share/") else {
        // `$share` alone has no filter; as an ordinary filter it could never match, so it is an error as well.
        if text == "$share" {
            return Err(TopicError::Share);
        }
        check_filter(text, bytes_max, levels_max)?;
        return Ok(ParsedFilter { share: None, filter: whole.clone() });
    };
    let Some((group, filter)) = rest.split_once('/') else { return Err(TopicError::Share) };
    if group.is_empty() || has_wildcard(group) || filter.is_empty() {
        return Err(TopicError::Share);
    }
    if group.len() > bytes_max {
        return Err(TopicError::TooLong);
    }
    if group.chars().any(is_refused) {
        return Err(TopicError::ControlCharacter);
    }
    check_filter(filter, bytes_max, levels_max)?;
    let bytes = whole.as_bytes();
    let group_at = text.len() - rest.len();
    let filter_at = text.len() - filter.len();
    Ok(ParsedFilter {
        share: Some(Text::checked(bytes.slice(group_at..filter_at - 1))),
        filter: Text::checked(bytes.slice(filter_at..)),
    })
}

/// Whether a well-formed filter (without `$share/`) matches a topic name.
///
/// A wildcard at the first level matches no name that begins with `$` (MQTT-4.7.2-1).
pub fn matches(filter: &str, topic: &str) -> bool {
    let (filter, topic) = (filter.as_bytes(), topic.as_bytes());
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'#' | b'+')) {
        return false;
    }
    let mut filter_levels = filter.split(|&byte| byte == b'/');
    let mut topic_levels = topic.split(|&byte| byte == b'/');
    loop {
        match (filter_levels.next(), topic_levels.next()) {
            // `#` stands for its parent as well (§4.7.1.2).
            (Some(b"#"), _) => return true,
            (Some(b"+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_in_the_specification() {
        let matching = [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/#", "sport"),
            ("#", "a"),
            ("#", "/"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/a"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("a//b", "a//b"),
            ("a/+/b", "a//b"),
            ("+/a/#", "x/a"),
        ];
        for (filter, topic) in matching {
            assert!(matches(filter, topic), "{filter} should match {topic}");
        }
        let apart = [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/a"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("+/+", "$TopicA/B"),
            ("ACCOUNTS", "Accounts"),
            ("a/b", "a/b/c"),
            ("a/b/c", "a/b"),
            ("/a", "a"),
            ("a/", "a"),
        ];
        for (filter, topic) in apart {
            assert!(!matches(filter, topic), "{filter} should not match {topic}");
        }
    }

    #[test]
    fn wildcards_stand_only_where_a_filter_allows_them() {
        for good in ["#", "+", "a/#", "+/+", "+/tennis/#", "/", "//", "a/+/b", "$SYS/#", "\u{FEFF}a"] {
            assert_eq!(check_filter(good, 512, 16), Ok(()), "{good}");
        }
        for bad in ["a/#/b", "a#", "a/b+", "+a", "##", "a/##", "#/"] {
            assert_eq!(check_filter(bad, 512, 16), Err(TopicError::Wildcard), "{bad}");
        }
        assert_eq!(check_filter("", 512, 16), Err(TopicError::Empty));
    }

    #[test]
    fn names_have_no_wildcards_no_control_characters_and_keep_their_limits() {
        assert_eq!(check_name("a/b", 512, 16), Ok(()));
        assert_eq!(check_name("\u{FEFF}/b", 512, 16), Ok(()));
        assert_eq!(check_name("a/+", 512, 16), Err(TopicError::Wildcard));
        for refused in ["a\u{1}", "a\u{1F}", "\u{7F}", "\u{9F}", "\u{FFFF}", "\u{FDD0}", "\u{1FFFE}"] {
            assert_eq!(check_name(refused, 512, 16), Err(TopicError::ControlCharacter), "{refused:?}");
        }
        assert_eq!(check_name(&"a/".repeat(15), 512, 16), Ok(()));
        assert_eq!(check_name(&"a/".repeat(16), 512, 16), Err(TopicError::TooManyLevels));
        assert_eq!(check_name(&"a".repeat(513), 512, 16), Err(TopicError::TooLong));
        assert_eq!(check_name(&"/".repeat(65_535), 65_535, 16), Err(TopicError::TooManyLevels));
    }

    #[test]
    fn shared_subscriptions_split_into_group_and_filter() {
        let parse = |text: &str| parse_filter(&Text::from(text), 512, 16);
        let parsed = parse("$share/g/a/#").unwrap();
        assert_eq!(parsed.share.as_deref(), Some("g"));
        assert_eq!(parsed.filter.as_str(), "a/#");
        assert_eq!(parse("$share/g//finance").unwrap().filter.as_str(), "/finance");
        assert_eq!(parse("a/b").unwrap(), ParsedFilter { share: None, filter: Text::from("a/b") });
        for bad in ["$share", "$share/", "$share/g", "$share/g/", "$share//t", "$share/g+/t", "$share/#/t"] {
            assert_eq!(parse(bad), Err(TopicError::Share), "{bad}");
        }
        assert_eq!(parse("$share/g/a#"), Err(TopicError::Wildcard));
    }
}
