//! `push`: send a message, and with `--wait` tell what became of it.

use super::Failure;
use super::message;
use super::remote::{Api, Remote, segment};
use super::screen::{Screen, Style, clean, counted};
use clap::ArgGroup;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("audience_given").required(true).multiple(true)
        .args(["device", "alias", "tag", "topic", "all", "audience"]),
    after_help = "Examples:\n  postrider push --device DEVICE --title Hello --body 'First push' --wait\n  \
        postrider push --tag news --title 'Match over' --body '3 : 1' --ttl 3600 --collapse-key score\n  \
        postrider push --audience '{\"and\":[{\"platform\":\"ios\"},{\"not\":{\"tag\":\"beta\"}}]}' --data '{\"sync\":true}'"
)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// The notification's title.
    #[arg(long)]
    title: Option<String>,
    /// The notification's text.
    #[arg(long)]
    body: Option<String>,
    /// The address of a picture to show.
    #[arg(long, value_name = "URL")]
    image: Option<String>,
    /// What a click opens.
    #[arg(long, value_name = "URL")]
    click: Option<String>,
    /// For the app on the device: JSON.
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// The same as a text, which need not be JSON.
    #[arg(long, conflicts_with = "data")]
    text: Option<String>,
    /// Seconds until it is no longer worth delivering.
    #[arg(long, value_name = "SECS")]
    ttl: Option<u64>,
    /// Of messages with the same key, a device that was away gets only the newest.
    #[arg(long, value_name = "KEY")]
    collapse_key: Option<String>,
    /// low, normal or high.
    #[arg(long)]
    priority: Option<String>,
    /// Repeating the command with the same key sends nothing twice.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until every device has it (or it has ended otherwise), at most so many seconds.
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "30")]
    wait: Option<u64>,
    // Last: its heading would stand over what follows.
    #[command(flatten)]
    to: To,
}

/// Whom it is for. Several are combined: whoever is named by any of them.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Whom it is for (several: any of them)")]
struct To {
    /// A device.
    #[arg(long)]
    device: Vec<String>,
    /// Devices with this alias.
    #[arg(long)]
    alias: Vec<String>,
    /// Devices with this tag.
    #[arg(long)]
    tag: Vec<String>,
    /// Devices that subscribe to this MQTT topic.
    #[arg(long)]
    topic: Vec<String>,
    /// Every device of the app.
    #[arg(long, conflicts_with_all = ["device", "alias", "tag", "topic", "audience"])]
    all: bool,
    /// Not these: an audience expression.
    #[arg(long, value_name = "JSON")]
    exclude: Option<String>,
    /// An audience expression, as in the API.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["device", "alias", "tag", "topic"])]
    audience: Option<String>,
}

impl To {
    fn audience(&self) -> Result<Value, Failure> {
        if self.all {
            return Ok(json!("all"));
        }
        if let Some(text) = &self.audience {
            return expression("--audience", text);
        }
        let kinds =
            [("device", &self.device), ("alias", &self.alias), ("tag", &self.tag), ("topic", &self.topic)];
        let mut clauses: Vec<Value> = kinds
            .iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| json!({ *kind: name })))
            .collect();
        Ok(if clauses.len() == 1 { clauses.remove(0) } else { json!({ "or": clauses }) })
    }
}

/// An option's value, which has to be JSON.
fn expression(option: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::Usage(format!("{option} is not JSON: {error}")))
}

impl Args {
    /// What goes to the device's app.
    fn data(&self) -> Result<Option<String>, Failure> {
        let Some(json) = &self.data else {
            return Ok(self.text.as_ref().map(|text| json!(text).to_string()));
        };
        let not_json = |error| format!("--data is not JSON: {error}; for a text there is --text");
        // As it was written: numbers may have more digits than ours hold.
        let checked: Result<&RawValue, _> = serde_json::from_str(json);
        checked.map(|raw| Some(raw.get().to_owned())).map_err(|error| Failure::Usage(not_json(error)))
    }

    /// The body, as text.
    fn request(&self) -> Result<String, Failure> {
        let mut request = Map::from_iter([("audience".to_owned(), self.to.audience()?)]);
        let mut set =
            |name: &str, value: Option<Value>| request.extend(value.map(|value| (name.to_owned(), value)));
        let shown =
            [("title", &self.title), ("body", &self.body), ("image", &self.image), ("click", &self.click)];
        let notification: Map<_, _> = shown
            .iter()
            .filter_map(|(name, text)| Some(((*name).to_owned(), json!(text.as_ref()?))))
            .collect();
        let data = self.data()?;
        if notification.is_empty() && data.is_none() {
            let nothing = "there is nothing to send: --title and --body, or --data, or --text";
            return Err(Failure::Usage(nothing.into()));
        }
        let exclude = self.to.exclude.as_ref().map(|text| expression("--exclude", text)).transpose()?;
        set("exclude", exclude);
        set("notification", (!notification.is_empty()).then_some(Value::Object(notification)));
        set("ttl_secs", self.ttl.map(Value::from));
        set("collapse_key", self.collapse_key.as_ref().map(|key| json!(key)));
        set("priority", self.priority.as_ref().map(|priority| json!(priority)));
        set("idempotency_key", self.idempotency_key.as_ref().map(|key| json!(key)));
        let mut text = Value::Object(request).to_string();
        if let Some(data) = data {
            // There is an audience before it.
            text.truncate(text.len() - 1);
            text.push_str(&format!(r#","data":{data}}}"#));
        }
        Ok(text)
    }
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    let accepted = api.post_json("/v1/messages", &args.request()?)?;
    if !screen.json {
        tell_accepted(&accepted, screen);
    }
    let (Some(secs), false) = (args.wait, accepted["durability"] == "transient") else {
        if screen.json {
            screen.value(&accepted);
        } else {
            screen.note(format!("What becomes of it: postrider message show {}", id_of(&accepted)));
        }
        return Ok(());
    };
    follow(&api, &args, &accepted, secs, screen)
}

fn id_of(accepted: &Value) -> &str {
    accepted["message_id"].as_str().unwrap_or_default()
}

fn tell_accepted(accepted: &Value, screen: &Screen) {
    let devices = counted(accepted["targeted"].as_u64().unwrap_or(0), "device", "devices");
    let repeated =
        if accepted["repeated"].as_bool() == Some(true) { " (it had been sent before)" } else { "" };
    let word = screen.style(Style::Good, "Accepted");
    screen.line(format!("{word} as {} for {devices}{repeated}.", clean(id_of(accepted))));
    for warning in accepted["warnings"].as_array().into_iter().flatten() {
        let text = warning.as_str().or(warning["message"].as_str()).unwrap_or_default();
        screen.note(format!("{} {}", screen.style(Style::Warn, "warning:"), clean(text)));
    }
}

/// Waits for what becomes of it, and shows that.
fn follow(api: &Api, args: &Args, accepted: &Value, secs: u64, screen: &Screen) -> Result<(), Failure> {
    let (id, targeted) = (id_of(accepted), accepted["targeted"].as_u64().unwrap_or(0));
    let report = message::wait(api, id, Duration::from_secs(secs))?;
    let delivery = match args.to.device.as_slice() {
        [device] if targeted == 1 => {
            Some(api.get(&format!("{}/deliveries/{}", message::path(id), segment(device)))?)
        }
        _ => None,
    };
    if screen.json {
        screen.value(&message::as_json(accepted, &report, delivery.as_ref()));
    } else if let Some(delivery) = &delivery {
        message::trace(delivery, screen);
    } else {
        message::show(&report, screen);
    }
    if targeted == 0 {
        return Err(Failure::Failed("it was for no device: nobody is meant by this audience now".into()));
    }
    if message::is_settled(&report) {
        return Ok(());
    }
    Err(Failure::Failed(format!("after {secs} s it is still under way; it goes on without this command")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Value, Failure> {
        text(line).map(|text| serde_json::from_str(&text).expect("the request is JSON"))
    }

    fn text(line: &str) -> Result<String, Failure> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once("push").chain(line.split(' '));
        <Line as clap::Parser>::try_parse_from(words).expect("the line parses").args.request()
    }

    #[test]
    fn what_is_given_goes_into_the_fields_of_the_api() {
        let line = r#"--tag a --exclude {"tag":"b"} --title T --image https://i --click /c --data {"n":12345678901234567890}"#;
        let wanted = json!({
            "audience": { "tag": "a" }, "exclude": { "tag": "b" }, "data": { "n": 12_345_678_901_234_567_890_u64 },
            "notification": { "title": "T", "image": "https://i", "click": "/c" },
        });
        assert_eq!(request(line).expect("a request"), wanted);
        assert_eq!(request("--all --text {\"a\":1").expect("a text")["data"], json!("{\"a\":1"));
    }

    #[test]
    fn data_is_sent_digit_by_digit() {
        let data = r#"{"pi":3.14159265358979323846,"sum":123456789012345678901234567890.5,"zero":-0}"#;
        let text = text(&format!("--all --data {data}")).expect("a request");
        assert_eq!(text, format!(r#"{{"audience":"all","data":{data}}}"#));
    }

    #[test]
    fn data_that_is_no_json_is_refused_and_says_what_a_text_is_given_by() {
        for (line, told) in [
            ("--all --data {\"a\":1", "--text"),
            ("--all --title T --exclude {", "--exclude"),
            ("--all", "nothing to send"),
        ] {
            match request(line) {
                Err(Failure::Usage(why)) => assert!(why.contains(told), "{line}: {why}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn one_name_is_a_clause_and_several_are_any_of_them() {
        let one = To { device: vec!["d".into()], ..To::default() };
        assert_eq!(one.audience().unwrap(), json!({ "device": "d" }));
        let more = To { tag: vec!["a".into(), "b".into()], topic: vec!["t".into()], ..To::default() };
        assert_eq!(
            more.audience().unwrap(),
            json!({ "or": [{ "tag": "a" }, { "tag": "b" }, { "topic": "t" }] })
        );
        let own = To { audience: Some(r#"{"not":{"tag":"x"}}"#.into()), ..To::default() };
        assert_eq!(own.audience().unwrap(), json!({ "not": { "tag": "x" } }));
        assert_eq!(To { all: true, ..To::default() }.audience().unwrap(), json!("all"));
    }
}
