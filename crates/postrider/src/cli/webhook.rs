//! `webhook`: where an app's receipts are posted to.

use super::Failure;
use super::remote::{Api, Remote, segment};
use super::screen::{Screen, clean, count};
use clap::Subcommand;
use serde_json::{Map, Value, json};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  postrider webhook put crm https://hooks.example.org/in --event delivered --event expired\n  \
        postrider webhook test crm\n  postrider webhook replay crm --from 2026-11-01T00:00:00Z"
)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List webhooks.
    List,
    /// Make a webhook, or say anew what it does. A secret that the server makes is shown this once.
    Put {
        /// Its id: letters, digits, - _ and .
        id: String,
        url: String,
        /// A step that is sent; may be repeated. All where it is left out.
        #[arg(long = "event", value_name = "STEP")]
        events: Vec<String>,
        /// What signs, `whsec_…`; the one before signs beside it for a day.
        #[arg(long, env = "POSTRIDER_WEBHOOK_SECRET", hide_env_values = true)]
        secret: Option<String>,
        /// Events of one request, at most.
        #[arg(long, value_name = "N")]
        batch_max: Option<u32>,
        /// Send nothing for now: events wait.
        #[arg(long)]
        disabled: bool,
    },
    /// Show a webhook and how it is going.
    Show { id: String },
    /// Delete a webhook.
    Delete { id: String },
    /// Send a test event now, and tell how that went.
    Test { id: String },
    /// Give a webhook a new secret, shown this once.
    Rotate {
        id: String,
        /// How long the one before signs beside it, in seconds; a day where nothing is said.
        #[arg(long, value_name = "SECONDS")]
        overlap_secs: Option<u64>,
    },
    /// Send events again.
    Replay {
        id: String,
        /// A cursor, or a time: 2026-11-01T00:00:00Z.
        #[arg(long)]
        from: String,
    },
    /// List the last attempts that failed.
    Failures { id: String },
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let api = args.remote.api()?;
    let at = |id: &str| format!("/v1/webhooks/{}", segment(id));
    match args.what {
        What::List => list(&api, screen)?,
        What::Put { id, url, events, secret, batch_max, disabled } => {
            let mut body = Map::from_iter([
                ("url".into(), json!(url)),
                ("events".into(), json!(events)),
                ("enabled".into(), json!(!disabled)),
            ]);
            body.extend(secret.map(|secret| ("secret".into(), json!(secret))));
            body.extend(batch_max.map(|max| ("batch_max".into(), json!(max))));
            shown(&api.put_json(&at(&id), &Value::Object(body))?, screen);
        }
        What::Show { id } => shown(&api.get(&at(&id))?, screen),
        What::Delete { id } => {
            api.delete(&at(&id))?;
            done(screen, &json!({ "deleted": id }), &format!("The webhook {id} is deleted."));
        }
        What::Test { id } => test(&api.post(&format!("{}/test", at(&id)), &json!({}))?, screen)?,
        What::Rotate { id, overlap_secs } => {
            let mut body = Map::new();
            body.extend(overlap_secs.map(|secs| ("overlap_secs".into(), json!(secs))));
            let made = api.post(&format!("{}/secret", at(&id)), &Value::Object(body))?;
            let (secret, until) = (text(&made, "secret"), text(&made, "previous_signs_until"));
            done(screen, &made, &format!("{secret}\nThe one before signs beside it until {until}."));
        }
        What::Replay { id, from } => {
            shown(&api.post(&format!("{}/replay", at(&id)), &json!({ "from": from }))?, screen);
        }
        What::Failures { id } => failures(&api.get(&format!("{}/failures", at(&id)))?, screen),
    }
    Ok(())
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().map(|text| clean(text).into_owned()).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> String {
    count(value[name].as_u64().unwrap_or(0))
}

fn done(screen: &Screen, answer: &Value, sentence: &str) {
    if screen.json { screen.value(answer) } else { screen.line(sentence) }
}

fn list(api: &Api, screen: &Screen) -> Result<(), Failure> {
    let found = api.get("/v1/webhooks")?;
    if screen.json {
        screen.value(&found);
        return Ok(());
    }
    let row = |hook: &Value| {
        let state = screen.state(&text(hook, "state"));
        let lag = format!("{} s", number(hook, "lag_secs"));
        vec![text(hook, "id"), state, lag, number(hook, "events_delivered"), text(hook, "url")]
    };
    let rows: Vec<_> = found["webhooks"].as_array().into_iter().flatten().map(row).collect();
    screen.table(&["id", "state", "lag", "delivered", "url"], &rows);
    Ok(())
}

fn shown(hook: &Value, screen: &Screen) {
    if screen.json {
        return screen.value(hook);
    }
    let steps: Vec<&str> =
        hook["events"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let steps = if steps.is_empty() { "all".to_owned() } else { steps.join(", ") };
    screen.line(format!("{}  {}", text(hook, "id"), screen.state(&text(hook, "state"))));
    screen.line(format!("url        {}", text(hook, "url")));
    screen.line(format!("events     {steps}, at most {} at once", number(hook, "batch_max")));
    let (sent, failed) = (number(hook, "events_delivered"), number(hook, "events_failed"));
    screen.line(format!("delivered  {sent}, given up {failed}, {} s behind", number(hook, "lag_secs")));
    if hook["failed_attempts"].as_u64().unwrap_or(0) > 0 {
        let (tries, since) = (number(hook, "failed_attempts"), text(hook, "failing_since"));
        screen.line(format!(
            "failing    {tries} attempts since {since}; next {}",
            text(hook, "next_attempt_at")
        ));
    }
    if hook["secret"].is_string() {
        screen.line(format!("secret     {}", text(hook, "secret")));
        screen.note("Note the secret now: it is not shown again.");
    }
}

fn test(tested: &Value, screen: &Screen) -> Result<(), Failure> {
    let outcome = text(tested, "outcome");
    done(screen, tested, &format!("{outcome} after {} ms", number(tested, "duration_ms")));
    if outcome == "status_2xx" { Ok(()) } else { Err(Failure::Quiet(1)) }
}

fn failures(found: &Value, screen: &Screen) {
    if screen.json {
        return screen.value(found);
    }
    let row = |failure: &Value| {
        let end = if failure["gave_up"] == json!(true) { "given up" } else { "" };
        vec![
            text(failure, "at"),
            text(failure, "outcome"),
            number(failure, "attempt"),
            number(failure, "events"),
            text(failure, "webhook_id"),
            end.to_owned(),
        ]
    };
    let rows: Vec<_> = found["failures"].as_array().into_iter().flatten().map(row).collect();
    screen.table(&["at", "outcome", "attempt", "events", "webhook-id", ""], &rows);
}
