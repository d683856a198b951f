//! How things look: plain lines, colours on a terminal, JSON for programs. Everything that is not ours is cleaned first,
//! since a notification could otherwise command the reader's terminal.

use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// Where a command shows what it did.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub json: bool,
    pub color: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
    Accent,
}

impl Screen {
    /// Colours on a terminal, unless `NO_COLOR` asks for none (no-color.org).
    pub fn of_process(json: bool) -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able =
            std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Screen { json, color: wanted && able && !json }
    }

    /// A line on standard output. A reader that went away (`| head`) is no error.
    pub fn line(&self, text: impl AsRef<str>) {
        _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
    }

    /// A text as it is, with a line's end at its end.
    pub fn text(&self, text: &str) {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        _ = write!(std::io::stdout().lock(), "{text}{end}");
    }

    /// A value on one line.
    pub fn value(&self, value: &Value) {
        self.line(value.to_string());
    }

    /// A line for people, beside the result.
    pub fn note(&self, text: impl AsRef<str>) {
        _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
    }

    /// An error, on standard error.
    pub fn error(&self, code: &str, message: &str, hint: Option<&str>) {
        if self.json {
            return self
                .note(json!({ "error": { "code": code, "message": message, "hint": hint } }).to_string());
        }
        self.note(format!("{} {message}", self.style(Style::Bad, "error:")));
        if let Some(hint) = hint {
            self.note(format!("{} {hint}", self.style(Style::Dim, "hint:")));
        }
    }

    pub fn style(&self, style: Style, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Bad => "31",
            Style::Warn => "33",
            Style::Accent => "36",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A state of a delivery in its colour.
    pub fn state(&self, state: &str) -> String {
        let style = match state {
            "delivered" | "displayed" | "clicked" | "replied" | "handed_over" => Style::Good,
            "accepted" | "queued" | "sent" | "forwarded" => Style::Accent,
            "rejected" | "evicted" | "erased" => Style::Bad,
            _ => Style::Warn,
        };
        self.style(style, clean(state))
    }

    /// Rows under a head, in columns.
    pub fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        for (at, line) in columns(head, rows).into_iter().enumerate() {
            self.line(if at == 0 { self.style(Style::Dim, line) } else { line });
        }
    }
}

/// Text of others, without what a terminal would take for commands.
pub fn clean(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            // Marks that turn the direction of what follows.
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(is_bad) { Cow::Owned(text.replace(is_bad, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Columns that a text takes on a terminal: letters of East Asia take two.
pub fn width(text: &str) -> usize {
    let one = |c: char| match c as u32 {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    text.chars().map(one).sum()
}

fn padded(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}

/// A table's lines, the head first.
pub fn columns(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = head.iter().map(|title| title.to_uppercase()).collect();
    let all: Vec<Vec<String>> = std::iter::once(&head)
        .chain(rows)
        .map(|row| row.iter().map(|cell| clean(cell).replace(['\n', '\t'], " ")).collect())
        .collect();
    let widest = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|c| width(c)).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| widest(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, to)| padded(cell, *to)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// Words put into lines of at most `max` columns; longer words are cut.
pub fn wrapped(text: &str, max: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in clean(text).replace('\t', " ").lines() {
        let mut line = String::new();
        for word in paragraph.split_inclusive(' ') {
            if !line.is_empty() && width(&line) + width(word.trim_end()) > max {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            for letter in word.chars() {
                if width(&line) >= max && letter != ' ' {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(letter);
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Text in a frame with a title above and a remark below.
pub fn framed(title: &str, body: &[String], foot: &str) -> Vec<String> {
    let (title, foot) = (clean(title).replace(['\n', '\t'], " "), clean(foot).into_owned());
    let inner = body.iter().map(|line| width(line)).max().unwrap_or(0);
    let inner = inner.max(width(&title) + 2).max(width(&foot) + 2).max(30);
    let rule = |text: &str| "─".repeat(inner.saturating_sub(width(text) + 1));
    let mut lines = vec![format!("╭─ {title} {}╮", rule(&title))];
    lines.extend(body.iter().map(|line| format!("│ {} │", padded(line, inner))));
    lines.push(format!("╰─ {foot} {}╯", rule(&foot)));
    lines
}

/// A span of time as people say it.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// A number in groups of three.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 device`, `2 devices`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_script() {
        let rows = vec![
            vec!["d1".into(), "推送".into(), "x".into()],
            vec!["device-2".into(), "a".into(), "y".into()],
        ];
        let lines = columns(&["id", "alias", "state"], &rows);
        assert_eq!(lines, ["ID        ALIAS  STATE", "d1        推送   x", "device-2  a      y"]);
    }

    #[test]
    fn nothing_of_others_commands_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c\nd"), "a\u{fffd}[2Jb\u{fffd}c\nd");
        let plain = Screen { json: false, color: false };
        assert_eq!(plain.style(Style::Bad, "x"), "x");
        assert_eq!(Screen { json: false, color: true }.style(Style::Bad, "x"), "\x1b[31mx\x1b[0m");
    }

    #[test]
    fn a_frame_is_as_wide_as_its_longest_line() {
        let lines = framed("Hello", &wrapped("one two three four five six seven eight", 34), "id 1");
        assert_eq!(
            lines,
            [
                "╭─ Hello ───────────────────────────╮",
                "│ one two three four five six seven │",
                "│ eight                             │",
                "╰─ id 1 ────────────────────────────╯",
            ]
        );
        let widths: Vec<_> = framed("标题", &["正文".into()], "").iter().map(|l| width(l)).collect();
        assert!(widths.windows(2).all(|w| w[0] == w[1]), "{widths:?}");
    }

    #[test]
    fn long_words_are_cut_and_lines_kept() {
        assert_eq!(wrapped("abcdef\ngh", 4), ["abcd", "ef", "gh"]);
        assert_eq!(wrapped("", 4), Vec::<String>::new());
        assert_eq!(wrapped("推送推送", 4), ["推送", "推送"]);
    }

    #[test]
    fn spans_and_counts_read_well() {
        let said: Vec<_> = [7, 1_250, 61_000, 3_700_000, 200_000_000].map(span).to_vec();
        assert_eq!(said, ["7 ms", "1.2 s", "1 min 1 s", "1 h 1 min", "2 days"]);
        assert_eq!(
            [0, 1, 1_000].map(|n| counted(n, "device", "devices")),
            ["0 devices", "1 device", "1,000 devices"]
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
