//! What serde says of a wrong value, in the words of JSON: "`platform` must be one of …", "did you mean `notification`?".

/// A wrong value as a person reads it.
#[derive(Debug, PartialEq)]
pub struct Spoken {
    pub message: String,
    /// The field that is missing, within the object that the error points to.
    pub missing: Option<String>,
}

/// `message` is serde's; `field` the name of the field it is about, empty for the whole body.
pub fn spoken(message: &str, field: &str) -> Spoken {
    // The place in the text helps nobody who has the pointer.
    let message = message.split(" at line ").next().unwrap_or_default();
    let named = |text: String| Spoken { message: text, missing: None };
    let subject = if field.is_empty() { "The body".to_owned() } else { format!("`{field}`") };
    if let Some(missing) = quoted_after(message, "missing field ") {
        let text = format!("`{missing}` is missing.");
        return Spoken { message: text, missing: Some(missing.to_owned()) };
    }
    if let Some(twice) = quoted_after(message, "duplicate field ") {
        return named(format!("`{twice}` comes twice."));
    }
    if let Some(unknown) = quoted_after(message, "unknown field ") {
        let known = quoted(message.split_once(", expected ").map_or("", |(_, rest)| rest));
        return named(format!(
            "There is no field `{unknown}`{}",
            suggestion(unknown, &known, "; there are ")
        ));
    }
    if let Some(unknown) = quoted_after(message, "unknown variant ") {
        let known = quoted(message.split_once(", expected ").map_or("", |(_, rest)| rest));
        let list = listed(&known, "or");
        let near = nearest(unknown, &known).map_or(String::new(), |n| format!(" Did you mean `{n}`?"));
        return named(format!("{subject} must be one of {list}, not `{unknown}`.{near}"));
    }
    for start in ["invalid type: ", "invalid value: "] {
        let Some((found, expected)) = message.strip_prefix(start).and_then(|m| m.split_once(", expected "))
        else {
            continue;
        };
        return named(format!("{subject} must be {}, not {}.", wanted(expected), found_word(found)));
    }
    named(match message {
        // What serde says of a word or one of several objects, when it is neither.
        "expected value" if takes_objects(field) => format!("{subject} must be a string or an object."),
        "expected value" => format!("{subject} must be a string."),
        "invalid digit found in string"
        | "cannot parse integer from empty string"
        | "number too large to fit in target type"
        | "number too small to fit in target type" => format!("{subject} must be a whole number, 0 or more."),
        "provided string was not `true` or `false`" => format!("{subject} must be `true` or `false`."),
        other if field.is_empty() => other.to_owned(),
        other => format!("{subject}: {other}"),
    })
}

/// Fields, and places of lists of audiences, that are a word or an object.
fn takes_objects(field: &str) -> bool {
    let is_place = !field.is_empty() && field.bytes().all(|b| b.is_ascii_digit());
    is_place || ["audience", "exclude", "not", "backlog"].contains(&field)
}

/// The known name that is most alike, where one is alike enough to be meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, near)| near)
}

fn suggestion(name: &str, known: &[&str], list: &str) -> String {
    match nearest(name, known) {
        Some(near) => format!("; did you mean `{near}`?"),
        None if known.is_empty() => ".".to_owned(),
        None => format!("{list}{}.", listed(known, "and")),
    }
}

fn listed(names: &[&str], last: &str) -> String {
    let names: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.strip_prefix('`')?.split('`').next()
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What serde expects.
fn wanted(expected: &str) -> String {
    let whole = |max: u64| format!("a whole number from 0 to {max}");
    match expected {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a borrowed string" | "a string" | "string" => "a string".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "string or map" => "a string or an object".to_owned(),
        "variant identifier" => "a name".to_owned(),
        _ if expected.starts_with("struct ") => "an object".to_owned(),
        _ if expected.starts_with("enum ") => "one of the words of this list".to_owned(),
        other => other.to_owned(),
    }
}

/// What serde found.
fn found_word(found: &str) -> String {
    let value = || quoted(found).first().map_or(found, |v| v).to_owned();
    match found.split_whitespace().next().unwrap_or_default() {
        "string" => "a string".to_owned(),
        "integer" | "floating" => format!("the number {}", value()),
        "boolean" => value(),
        "map" | "struct" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit" | "Option" => "null".to_owned(),
        _ => found.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_says_is_put_into_the_words_of_json() {
        for (message, field, expected) in [
            (
                "unknown variant `ioss`, expected `ios` or `web` at line 1 column 3",
                "platform",
                "`platform` must be one of `ios` or `web`, not `ioss`. Did you mean `ios`?",
            ),
            (
                "unknown field `notificaton`, expected one of `audience`, `notification`, `data`",
                "notificaton",
                "There is no field `notificaton`; did you mean `notification`?",
            ),
            ("unknown field `x`, expected `step`", "x", "There is no field `x`; there are `step`."),
            (
                "invalid type: string \"x\", expected u64",
                "ttl_secs",
                "`ttl_secs` must be a whole number, 0 or more, not a string.",
            ),
            (
                "invalid value: integer `256`, expected u8",
                "n",
                "`n` must be a whole number from 0 to 255, not the number 256.",
            ),
            (
                "invalid type: string \"x\", expected struct Notification",
                "notification",
                "`notification` must be an object, not a string.",
            ),
            ("invalid type: map, expected a sequence", "tags", "`tags` must be a list, not an object."),
            (
                "invalid type: null, expected struct MessageRequest",
                "",
                "The body must be an object, not null.",
            ),
            ("expected value at line 1 column 13", "audience", "`audience` must be a string or an object."),
            ("expected value at line 1 column 13", "platform", "`platform` must be a string."),
            ("duplicate field `limit`", "", "`limit` comes twice."),
            ("invalid digit found in string", "limit", "`limit` must be a whole number, 0 or more."),
        ] {
            assert_eq!(spoken(message, field).message, expected);
        }
        let missing = spoken("missing field `audience` at line 1 column 10", "");
        assert_eq!(
            (missing.message.as_str(), missing.missing.as_deref()),
            ("`audience` is missing.", Some("audience"))
        );
    }
}
