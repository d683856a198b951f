//! `device`: installations of an app.

use super::Failure;
use super::remote::{Api, Remote, query, segment};
use super::screen::{Screen, Style, clean, count, counted};
use clap::Subcommand;
use serde_json::{Map, Value, json};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  postrider device register --platform android --tag news --alias anna\n  postrider device list --tag news"
)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Register a device; its secret is shown this once.
    Register {
        /// Its id; drawn where it is left out.
        #[arg(long)]
        id: Option<String>,
        /// android, ios, harmony, web, desktop, iot or other.
        #[arg(long, default_value = "other")]
        platform: String,
        /// Your name for its user.
        #[arg(long)]
        alias: Option<String>,
        /// A tag; may be repeated.
        #[arg(long)]
        tag: Vec<String>,
    },
    /// List devices.
    List {
        #[arg(long)]
        tag: Option<String>,
        #[arg(long)]
        alias: Option<String>,
        #[arg(long)]
        platform: Option<String>,
        /// Only connected ones, or only the others.
        #[arg(long)]
        connected: Option<bool>,
        /// Only those last seen before: 2026-08-01T00:00:00Z.
        #[arg(long, value_name = "TIME")]
        seen_before: Option<String>,
        /// Only those last seen after.
        #[arg(long, value_name = "TIME")]
        seen_after: Option<String>,
        /// registered, or last_seen: those seen longest ago first.
        #[arg(long)]
        sort: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show a device: whether it is connected, what waits for it.
    Show { device: String },
    /// Give a device a new secret, shown this once; what was begun with the old one ends.
    Secret { device: String },
    /// Delete a device with all that waits for it.
    Delete { device: String },
    /// Delete devices that were not seen for long and are not connected, with all that waits for them.
    #[command(after_help = "Example: postrider device prune --unseen 90d --dry-run")]
    Prune {
        /// For how long: 90d, 12w.
        #[arg(long, value_parser = unseen)]
        unseen: u64,
        /// Name them, and delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Recall what waits for a device, as when its user signs out.
    Clear { device: String },
    /// Give a device a tag.
    Tag { device: String, tag: String },
    /// Take a tag away.
    Untag { device: String, tag: String },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    let at = |device: &str| format!("/v1/devices/{}", segment(device));
    match args.what {
        What::Register { id, platform, alias, tag } => {
            let mut body =
                Map::from_iter([("platform".into(), json!(platform)), ("tags".into(), json!(tag))]);
            body.extend(id.map(|id| ("device_id".into(), json!(id))));
            body.extend(alias.map(|alias| ("alias".into(), json!(alias))));
            registered(&api.post("/v1/devices", &Value::Object(body))?, screen);
        }
        What::List { tag, alias, platform, connected, seen_before, seen_after, sort, limit } => {
            let by = [
                ("tag", tag),
                ("alias", alias),
                ("platform", platform),
                ("connected", connected.map(|yes| yes.to_string())),
                ("seen_before", seen_before),
                ("seen_after", seen_after),
                ("sort", sort),
            ];
            list(&api, &by, limit, screen)?;
        }
        What::Prune { unseen, dry_run } => prune(&api, unseen, dry_run, screen)?,
        What::Clear { device } => {
            let cleared = api.delete(&format!("{}/inbox", at(&device)))?;
            let number = count(cleared["cancelled"].as_u64().unwrap_or(0));
            done(screen, &cleared, &format!("{number} recalled of what waited for {device}."));
        }
        What::Show { device } => show(&api.get(&at(&device))?, screen),
        What::Secret { device } => {
            let body = Value::Object(Map::new());
            registered(&api.post(&format!("{}/secret", at(&device)), &body)?, screen);
        }
        What::Delete { device } => {
            api.delete(&at(&device))?;
            done(screen, &json!({ "deleted": device }), &format!("{device} is deleted."));
        }
        What::Tag { device, tag } => {
            api.put(&format!("{}/tags/{}", at(&device), segment(&tag)))?;
            done(
                screen,
                &json!({ "device_id": device, "tagged": tag }),
                &format!("{device} has the tag {tag}."),
            );
        }
        What::Untag { device, tag } => {
            api.delete(&format!("{}/tags/{}", at(&device), segment(&tag)))?;
            done(
                screen,
                &json!({ "device_id": device, "untagged": tag }),
                &format!("{device} has lost the tag {tag}."),
            );
        }
    }
    Ok(())
}

fn done(screen: &Screen, answer: &Value, sentence: &str) {
    if screen.json { screen.value(answer) } else { screen.line(sentence) }
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("")).into_owned()
}

fn registered(device: &Value, screen: &Screen) {
    if screen.json {
        return screen.value(device);
    }
    let (id, secret) = (text(&device["device_id"]), text(&device["device_secret"]));
    screen.line(format!("device  {}", screen.style(Style::Bold, &id)));
    screen.line(format!("secret  {}", screen.style(Style::Bold, &secret)));
    screen.note(format!(
        "The secret is not shown again. Be this device: postrider listen --device {id} --secret {secret}"
    ));
}

/// `90d` or `12w`, in seconds.
fn unseen(text: &str) -> Result<u64, String> {
    let days = text.strip_suffix('d').and_then(|n| n.parse::<u64>().ok());
    let weeks = text.strip_suffix('w').and_then(|n| n.parse::<u64>().ok()?.checked_mul(7));
    match days.or(weeks).and_then(|days| days.checked_mul(86_400)) {
        Some(secs) if secs > 0 => Ok(secs),
        _ => Err("a number of days or weeks, such as 90d or 12w".to_owned()),
    }
}

/// Some at a time, so that the server does other things meanwhile.
fn prune(api: &Api, unseen_secs: u64, dry_run: bool, screen: &Screen) -> Result<(), Failure> {
    let (mut devices, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let request = json!({ "unseen_secs": unseen_secs, "dry_run": dry_run, "cursor": cursor });
        let answer = api.post("/v1/devices/prune", &request)?;
        let some = answer["devices"].as_array().cloned().unwrap_or_default();
        if !screen.json {
            some.iter().for_each(|device| screen.line(text(device)));
        }
        devices.extend(some);
        cursor = answer["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
        screen.note(format!("{} so far", count(devices.len() as u64)));
    }
    if screen.json {
        screen.value(&json!({ "devices": devices, "deleted": !dry_run }));
        return Ok(());
    }
    let what = if dry_run { "would be deleted" } else { "deleted" };
    screen.line(format!("{} {what}.", count(devices.len() as u64)));
    Ok(())
}

fn list(api: &Api, by: &[(&str, Option<String>)], limit: usize, screen: &Screen) -> Result<(), Failure> {
    let (mut devices, mut cursor) = (Vec::new(), None);
    while devices.len() < limit {
        let page = (limit - devices.len()).min(1_000).to_string();
        let pairs = [by, &[("limit", Some(page)), ("cursor", cursor)]].concat();
        let answer = api.get(&format!("/v1/devices{}", query(&pairs)))?;
        devices.extend(answer["devices"].as_array().cloned().unwrap_or_default());
        cursor = answer["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    if screen.json {
        screen.value(&json!({ "devices": devices, "next_cursor": cursor }));
        return Ok(());
    }
    let rows: Vec<_> = devices.iter().map(row).collect();
    screen.table(&["device", "platform", "alias", "tags", "connected", "inbox", "last seen"], &rows);
    if cursor.is_some() {
        screen.note(format!("There are more; --limit is {}.", count(limit as u64)));
    }
    Ok(())
}

fn tags(device: &Value) -> String {
    device["tags"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ")
}

fn row(device: &Value) -> Vec<String> {
    let connected = if device["connected"].as_bool() == Some(true) { "yes" } else { "no" };
    vec![
        text(&device["device_id"]),
        text(&device["platform"]),
        text(&device["alias"]),
        tags(device),
        connected.into(),
        count(device["inbox_len"].as_u64().unwrap_or(0)),
        text(&device["last_seen_at"]),
    ]
}

fn show(device: &Value, screen: &Screen) {
    if screen.json {
        return screen.value(device);
    }
    let label = |name: &str| screen.style(Style::Dim, format!("{name:<14}"));
    let connected = device["connected"].as_bool() == Some(true);
    let state = if connected { screen.style(Style::Good, "connected") } else { "away".into() };
    screen.line(format!("{}  {state}", screen.style(Style::Bold, text(&device["device_id"]))));
    for (name, value) in [
        ("platform", text(&device["platform"])),
        ("alias", text(&device["alias"])),
        ("tags", tags(device)),
        ("registered", text(&device["created_at"])),
        ("last seen", text(&device["last_seen_at"])),
        ("inbox", counted(device["inbox_len"].as_u64().unwrap_or(0), "message waits", "messages wait")),
    ] {
        if !value.is_empty() {
            screen.line(format!("{}{value}", label(name)));
        }
    }
    for subscription in device["subscriptions"].as_array().into_iter().flatten() {
        screen.line(format!(
            "{}{} at QoS {}",
            label("subscription"),
            text(&subscription["filter"]),
            subscription["qos"]
        ));
    }
}
