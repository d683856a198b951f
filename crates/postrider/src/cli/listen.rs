//! `listen`: a device on the command line.

use super::Failure;
use super::remote::Remote;
use super::screen::{Screen, Style, clean, framed, wrapped};
use crate::client::{ClientError, Device, Push};
use crate::dial::Address;
use crate::platform::OsChance;
use postrider_core::port::Chance;
use serde_json::json;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --device it registers a device of its own, which needs the app's key.
Examples:
  postrider listen
  postrider listen --device DEVICE --secret SECRET --mqtt push.example.org:1883")]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// The server's MQTT address; mqtts://HOST:PORT with TLS.
    #[arg(long, env = "POSTRIDER_MQTT", value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    mqtt: String,
    /// Be this device.
    #[arg(long, requires = "secret")]
    device: Option<String>,
    /// Its secret, as registering it gave.
    #[arg(long, requires = "device", env = "POSTRIDER_DEVICE_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Tags of the device that is registered; may be repeated.
    #[arg(long, conflicts_with = "device")]
    tag: Vec<String>,
    /// Stop after so many pushes.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Acknowledge, and do not report that it was displayed.
    #[arg(long)]
    no_receipts: bool,
}

/// Waits between attempts to connect: doubling from the first to the last, each drawn from its whole width.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A connection that held so long was a good one: the waits begin anew.
const HELD: Duration = Duration::from_secs(60);
/// Who never was connected gives up after so many attempts: the address is wrong rather than the server away.
const ATTEMPTS: u32 = 6;

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let cafile = args.remote.place.cafile.as_deref();
    let address =
        Address::parse(&args.mqtt, cafile).map_err(|why| Failure::Usage(format!("--mqtt: {why}")))?;
    let (device, secret) = match (&args.device, &args.secret) {
        (Some(device), Some(secret)) => (device.clone(), secret.clone()),
        _ => register(&args, screen)?,
    };
    let (mut seen, mut failures) = (Seen::default(), 0);
    loop {
        let since = Instant::now();
        let Err(error) = attend(&args, &address, (&device, &secret), &mut seen, screen) else {
            return Ok(());
        };
        if error.is_final() {
            let hint = match error {
                ClientError::Io(_) => "; trust its certificate with --cafile FILE",
                _ => "",
            };
            return Err(Failure::Failed(format!("{address}: {error}{hint}")));
        }
        failures = if since.elapsed() > HELD { 0 } else { failures + 1 };
        if !seen.connected && failures >= ATTEMPTS {
            let (server, why) = (address.to_string(), error.to_string());
            return Err(Failure::Unreachable { server, why, option: "--mqtt HOST:PORT" });
        }
        let wait = backoff(failures, OsChance.bits128());
        note(screen, "waiting", &format!("{address}: {error}; again in {:.1} s", wait.as_secs_f64()));
        if !seen.connected && failures == 1 {
            note(screen, "hint", HINT);
        }
        std::thread::sleep(wait);
    }
}

const HINT: &str = "Is the server running, and is this its MQTT address? Its line `listening …` has it as mqtt=HOST:PORT; \
    name it with --mqtt. The HTTP address is another one.";

/// What came of the connections so far.
#[derive(Default)]
struct Seen {
    connected: bool,
    taken: u64,
}

/// Between nothing and the full width, which doubles with each failure: a crowd that lost its server comes back spread.
fn backoff(failures: u32, chance: u128) -> Duration {
    let width = BACKOFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACKOFF_LAST);
    let millis = u64::try_from(width.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(u64::try_from(chance % u128::from(millis)).unwrap_or(millis))
}

fn register(args: &Args, screen: &Screen) -> Result<(String, String), Failure> {
    let api = args.remote.api()?;
    let answer = api.post("/v1/devices", &json!({ "platform": "desktop", "tags": args.tag }))?;
    let text = |name: &str| clean(answer[name].as_str().unwrap_or_default()).into_owned();
    let (device, secret) = (text("device_id"), text("device_secret"));
    if screen.json {
        screen.value(&json!({ "event": "registered", "device_id": device, "device_secret": secret }));
    } else {
        screen.line(format!("Registered as device {}.", screen.style(Style::Bold, &device)));
        let again = format!("To be it again: postrider listen --device {device} --secret {secret}");
        screen.line(screen.style(Style::Dim, again));
    }
    Ok((device, secret))
}

/// Connects, and shows what comes until the connection ends or enough came.
fn attend(
    args: &Args,
    address: &Address,
    (device, secret): (&str, &str),
    seen: &mut Seen,
    screen: &Screen,
) -> Result<(), ClientError> {
    let has_enough = |seen: &Seen| args.count.is_some_and(|count| seen.taken >= count);
    if has_enough(seen) {
        return Ok(());
    }
    let mut connected = Device::connect(address, device, secret)?;
    seen.connected = true;
    note(screen, "connected", &format!("Connected to {address}. Waiting for pushes; Ctrl-C ends."));
    loop {
        let Some(push) = connected.next(Duration::from_secs(3_600))? else { continue };
        if !push.repeated {
            show(&push, screen);
            seen.taken += 1;
        }
        connected.ack(&push)?;
        if let (Some(id), false) = (push.id(), args.no_receipts || push.repeated) {
            connected.report(id, "displayed")?;
        }
        if has_enough(seen) {
            // The goodbye comes after the receipts, on the same stream.
            connected.disconnect();
            return Ok(());
        }
    }
}

fn note(screen: &Screen, event: &str, sentence: &str) {
    if screen.json {
        screen.value(&json!({ "event": event, "message": sentence }));
    } else {
        screen.note(screen.style(Style::Dim, clean(sentence)));
    }
}

/// A push, in a frame or as a line of JSON.
pub fn show(push: &Push, screen: &Screen) {
    if screen.json {
        return screen.line(in_json(push));
    }
    picture(push).into_iter().for_each(|line| screen.line(line));
}

/// An envelope as it came, on one line: its numbers may have more digits than ours hold.
fn in_json(push: &Push) -> String {
    let payload = String::from_utf8_lossy(&push.payload);
    match &push.envelope {
        Some(_) => format!(r#"{{"event":"push","push":{}}}"#, payload.replace(['\n', '\r'], " ")),
        None => json!({ "event": "push", "payload": payload }).to_string(),
    }
}

/// The data of an envelope, as it was written.
fn data_of(push: &Push) -> Option<&str> {
    #[derive(serde::Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        data: Option<&'a serde_json::value::RawValue>,
    }
    serde_json::from_slice::<Envelope<'_>>(&push.payload).ok()?.data.map(|data| data.get())
}

fn picture(push: &Push) -> Vec<String> {
    const COLUMNS: usize = 60;
    let Some(envelope) = &push.envelope else {
        return framed("(raw payload)", &wrapped(&String::from_utf8_lossy(&push.payload), COLUMNS), "");
    };
    let notification = &envelope["notification"];
    let text = |name: &str| notification[name].as_str().unwrap_or_default();
    let title = if text("title").is_empty() { "(data)" } else { text("title") };
    let mut body = wrapped(text("body"), COLUMNS);
    if !text("click").is_empty() {
        body.extend(wrapped(&format!("→ {}", text("click")), COLUMNS));
    }
    if let Some(data) = data_of(push) {
        body.extend(wrapped(&format!("data {}", clean(data)), COLUMNS));
    }
    let title: String = title.chars().take(COLUMNS).collect();
    framed(&title, &body, push.id().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_shown_digit_by_digit() {
        let payload = r#"{"id":"m1","data":{"pi":3.14159265358979323846}}"#;
        let push = Push::of(payload.into());
        assert_eq!(in_json(&push), format!(r#"{{"event":"push","push":{payload}}}"#));
        assert!(picture(&push).concat().contains("3.14159265358979323846"));
    }

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let widest = |failures| backoff(failures, u128::from(u64::MAX) * 1_000);
        assert!((0..40).all(|failures| widest(failures) < BACKOFF_LAST));
        assert_eq!(backoff(3, 0), Duration::ZERO);
        assert_eq!(backoff(1, 999), Duration::from_millis(999));
        assert_eq!(backoff(20, 29_999), Duration::from_millis(29_999));
    }
}
