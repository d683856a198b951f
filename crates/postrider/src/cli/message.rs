//! `message`: what became of what was sent.

use super::Failure;
use super::remote::{Api, Remote, query, segment};
use super::screen::{Screen, Style, clean, count, counted, span};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  postrider message list\n  postrider message trace MESSAGE DEVICE")]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

/// Which messages a list shows.
#[derive(Debug, clap::Args)]
struct Wanted {
    /// How many at most.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Accepted at this time or later: RFC 3339, or milliseconds since 1970.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Accepted before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With a delivery in this state.
    #[arg(long)]
    state: Option<String>,
    /// Sent by the key of this id.
    #[arg(long, value_name = "KEY_ID")]
    by_key: Option<String>,
    /// With this in title, body, audience or collapse key, in any case.
    #[arg(long)]
    text: Option<String>,
    /// Where an earlier list ended.
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The latest messages: to whom, their title, and their counts.
    List(Wanted),
    /// The report of a message: how many deliveries are in which state, and why.
    Show { message: String },
    /// The way of a message to its devices, step by step, with times.
    Trace {
        message: String,
        /// Only to this device.
        #[arg(value_name = "DEVICE")]
        to: Option<String>,
        /// The same, by name.
        #[arg(long, conflicts_with = "to")]
        device: Option<String>,
        /// Only deliveries in this state: queued, sent, delivered, expired …
        #[arg(long)]
        state: Option<String>,
        /// How many deliveries at most.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Take a message back, as far as it is not delivered.
    Cancel { message: String },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    match args.what {
        What::List(wanted) => list(&api, wanted, screen),
        What::Show { message } => {
            let report = api.get(&path(&message))?;
            if screen.json {
                screen.value(&report)
            } else {
                show(&report, screen)
            }
            Ok(())
        }
        What::Trace { message, to: Some(device), .. } | What::Trace { message, device: Some(device), .. } => {
            let delivery = api.get(&format!("{}/deliveries/{}", path(&message), segment(&device)))?;
            if screen.json {
                screen.value(&delivery)
            } else {
                trace(&delivery, screen)
            }
            Ok(())
        }
        What::Trace { message, to: None, device: None, state, limit } => {
            let pairs = [("state", state), ("limit", Some(limit.to_string()))];
            let page = api.get(&format!("{}/deliveries{}", path(&message), query(&pairs)))?;
            if screen.json {
                screen.value(&page);
                return Ok(());
            }
            let deliveries = page["deliveries"].as_array().into_iter().flatten();
            deliveries.for_each(|delivery| trace(delivery, screen));
            if page["next_cursor"].is_string() {
                screen.note(format!("There are more; --limit is {limit}."));
            }
            Ok(())
        }
        What::Cancel { message } => {
            let answer = api.delete(&path(&message))?;
            if screen.json {
                screen.value(&answer);
            } else {
                let stopped = answer["cancelled"].as_u64().unwrap_or(0);
                let deliveries = counted(stopped, "delivery that was", "deliveries that were");
                screen.line(format!("Taken back: {deliveries} open will not be made."));
            }
            Ok(())
        }
    }
}

pub fn path(message: &str) -> String {
    format!("/v1/messages/{}", segment(message))
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("")).into_owned()
}

/// `12 delivered, 1 expired`, in the order of the ladder where the server gives one.
fn states(report: &Value) -> Vec<(String, u64)> {
    let counts = report["states"].as_object().into_iter().flatten();
    let mut states: Vec<_> = counts.map(|(state, n)| (state.clone(), n.as_u64().unwrap_or(0))).collect();
    states.sort_by_key(|(state, _)| ladder(state));
    states
}

fn ladder(state: &str) -> usize {
    use postrider_core::model::Step;
    Step::ALL.iter().position(|step| step.name() == state).unwrap_or(usize::MAX)
}

fn list(api: &Api, wanted: Wanted, screen: &Screen) -> Result<(), Failure> {
    let Wanted { limit, since, until, state, by_key, text, mut cursor } = wanted;
    let mut messages = Vec::new();
    // A page of a filtered list may be short and not the last.
    loop {
        let wanted = (limit - messages.len()).min(100);
        let pairs = [
            ("limit", Some(wanted.to_string())),
            ("since", since.clone()),
            ("until", until.clone()),
            ("state", state.clone()),
            ("sent_by", by_key.clone()),
            ("text", text.clone()),
            ("cursor", cursor),
        ];
        let page = api.get(&format!("/v1/messages{}", query(&pairs)))?;
        messages.extend(page["messages"].as_array().into_iter().flatten().cloned());
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() || messages.len() >= limit {
            break;
        }
    }
    if screen.json {
        screen.value(&serde_json::json!({ "messages": messages, "next_cursor": cursor }));
        return Ok(());
    }
    let rows: Vec<_> = messages.iter().map(row).collect();
    screen.table(&["message", "accepted", "for", "title", "targeted", "states"], &rows);
    if let Some(cursor) = cursor {
        screen.note(format!("There are more: --cursor {cursor}"));
    }
    Ok(())
}

fn row(report: &Value) -> Vec<String> {
    let said: Vec<_> = states(report).iter().map(|(state, n)| format!("{} {state}", count(*n))).collect();
    let targeted = count(report["targeted"].as_u64().unwrap_or(0));
    let audience = cut(&audience(&report["audience"]), 40);
    let title = report["title"].as_str().or(report["body"].as_str()).unwrap_or_default();
    let title = cut(&clean(title), 40);
    vec![
        text(&report["message_id"]),
        text(&report["accepted_at"]),
        audience,
        title,
        targeted,
        said.join(", "),
    ]
}

/// `tag news`, or the expression where it is not that simple.
fn audience(audience: &Value) -> String {
    let simple = audience.as_object().filter(|clauses| clauses.len() == 1);
    match (audience, simple.and_then(|clauses| clauses.iter().next())) {
        (Value::Null, _) => String::new(),
        (Value::String(all), _) => clean(all).into_owned(),
        (_, Some((kind, Value::String(name)))) => clean(&format!("{kind} {name}")).into_owned(),
        (other, _) => clean(&other.to_string()).into_owned(),
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A report for people.
pub fn show(report: &Value, screen: &Screen) {
    let targeted = report["targeted"].as_u64().unwrap_or(0);
    let id = screen.style(Style::Bold, text(&report["message_id"]));
    screen.line(format!("{id}  for {}", counted(targeted, "device", "devices")));
    let (from, until) = (text(&report["accepted_at"]), text(&report["expires_at"]));
    screen.line(screen.style(Style::Dim, format!("accepted {from}, expires {until}")));
    if let Some(key) = report["sent_by"].as_str() {
        screen.line(format!("to {}, by the key {}", audience(&report["audience"]), clean(key)));
    }
    for part in ["title", "body"] {
        if let Some(text) = report[part].as_str() {
            screen.line(format!("{part}: {}", clean(text)));
        }
    }
    for (state, n) in states(report) {
        screen.line(format!("  {:>9}  {}", count(n), screen.state(&state)));
    }
    for reason in report["reasons"].as_array().into_iter().flatten() {
        let why = text(&reason["reason"]);
        if !why.is_empty() {
            let n = count(reason["count"].as_u64().unwrap_or(0));
            screen.line(format!("  {n:>9}  {} because: {why}", text(&reason["state"])));
        }
    }
}

/// The timeline of a delivery for people.
pub fn trace(delivery: &Value, screen: &Screen) {
    let device =
        delivery["device_id"].as_str().map_or("(a deleted device)".into(), |id| clean(id).into_owned());
    screen.line(format!(
        "{}  {}",
        screen.style(Style::Bold, device),
        screen.state(&text(&delivery["state"]))
    ));
    timeline(delivery).into_iter().for_each(|line| screen.line(format!("  {line}")));
}

/// A line a step: when, how long after the first, what, why.
fn timeline(delivery: &Value) -> Vec<String> {
    let moments: Vec<&Value> = delivery["timeline"].as_array().into_iter().flatten().collect();
    let at = |moment: &Value| moment["at_unix_ms"].as_u64().unwrap_or(0);
    let start = moments.first().map_or(0, |first| at(first));
    let line = |moment: &&Value| {
        let after = format!("+{}", span(at(moment).saturating_sub(start)));
        let why = moment["reason"].as_str().or(moment["road"].as_str());
        let why = why.map_or(String::new(), |why| format!(" ({})", clean(why)));
        format!("{}  {after:>12}  {}{why}", text(&moment["at"]), text(&moment["step"]))
    };
    moments.iter().map(line).collect()
}

/// Waits until every delivery of a message has come to an end, or to `wanted`; the last report either way.
pub fn wait(api: &Api, message: &str, timeout: std::time::Duration) -> Result<Value, Failure> {
    let start = std::time::Instant::now();
    let mut pause = std::time::Duration::from_millis(20);
    loop {
        let report = api.get(&path(message))?;
        if is_settled(&report) || start.elapsed() >= timeout {
            return Ok(report);
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(std::time::Duration::from_millis(500));
    }
}

/// Nothing of it is on its way any more.
pub fn is_settled(report: &Value) -> bool {
    use postrider_core::model::Step;
    let is_under_way = |step: &Step| !step.ends() && !step.by_app();
    let mut open = Step::ALL.into_iter().filter(is_under_way);
    !open.any(|step| report["states"][step.name()].as_u64().unwrap_or(0) > 0)
}

/// Report and, for one device, the timeline as one value.
pub fn as_json(accepted: &Value, report: &Value, delivery: Option<&Value>) -> Value {
    json!({ "accepted": accepted, "report": report, "delivery": delivery })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_tells_how_long_each_step_took() {
        let delivery = json!({ "timeline": [
            { "step": "accepted", "at": "2026-01-01T00:00:00.000Z", "at_unix_ms": 1_000 },
            { "step": "delivered", "at": "2026-01-01T00:00:00.012Z", "at_unix_ms": 1_012, "reason": "ttl" },
        ]});
        assert_eq!(
            timeline(&delivery),
            [
                "2026-01-01T00:00:00.000Z         +0 ms  accepted",
                "2026-01-01T00:00:00.012Z        +12 ms  delivered (ttl)",
            ]
        );
        assert!(timeline(&Value::Null).is_empty());
    }

    #[test]
    fn a_report_is_settled_when_nothing_is_under_way() {
        assert!(!is_settled(&json!({ "states": { "queued": 1, "delivered": 3 } })));
        assert!(is_settled(&json!({ "states": { "displayed": 1, "expired": 3 } })));
        assert!(!is_settled(&json!({ "states": { "delivered": 1, "forwarded": 3 } })));
        let order: Vec<_> =
            states(&json!({ "states": { "sent": 1, "expired": 2, "delivered": 3, "queued": 4 } }));
        assert_eq!(
            order.iter().map(|(s, _)| s.as_str()).collect::<Vec<_>>(),
            ["queued", "sent", "delivered", "expired"]
        );
    }
}
