//! The sending side of the benchmark: registration, publishers, and what they measured.

use super::{PushArgs, Shared};
use crate::cli::Failure;
use crate::cli::remote::{Api, Refusal, query, segment};
use serde_json::json;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests at once while registering: one sync of the disk is shared by them.
const REGISTRARS: usize = 32;
/// A refusal says "later" (429, 503): the same request again, after a while.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A device to connect as.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub id: String,
    pub secret: String,
}

#[derive(Debug, Default)]
pub struct Published {
    pub accepted: u64,
    /// Messages refused for good.
    pub refused: u64,
    /// From the start to the last answer.
    pub micros: u64,
    /// Of each request, in microseconds.
    pub latencies: Vec<u32>,
}

/// The id of a device of this run.
fn device_id(run: &str, index: u64) -> String {
    format!("{run}-{index}")
}

pub fn register(api: &Api, run: &str, devices: u32) -> Result<Vec<Credentials>, Failure> {
    let register = |index: usize| {
        let id = device_id(run, index as u64);
        let answer =
            api.post("/v1/devices", &json!({ "device_id": id, "platform": "other", "tags": [run] }))?;
        Ok(Credentials { id, secret: answer["device_secret"].as_str().unwrap_or_default().to_owned() })
    };
    in_parallel(devices as usize, register)
}

pub fn unregister(api: &Api, devices: &[Credentials]) -> Result<(), Failure> {
    in_parallel(devices.len(), |index| api.delete(&format!("/v1/devices/{}", segment(&devices[index].id))))
        .map(|_| ())
}

/// Waits until the server has every acknowledgement: the inboxes of this run's devices are empty. What is left in them
/// when nothing has changed for so long.
pub fn settle(api: &Api, run: &str, patience: Duration) -> Result<u64, Failure> {
    let mut last = (u64::MAX, Instant::now());
    loop {
        let waiting = waiting(api, run)?;
        if waiting < last.0 {
            last = (waiting, Instant::now());
        }
        if waiting == 0 || last.1.elapsed() > patience {
            return Ok(waiting);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Messages in the inboxes of this run's devices.
fn waiting(api: &Api, run: &str) -> Result<u64, Failure> {
    let (mut sum, mut cursor) = (0, None);
    loop {
        let pairs = [("tag", Some(run.to_owned())), ("limit", Some("1000".to_owned())), ("cursor", cursor)];
        let page = api.get(&format!("/v1/devices{}", query(&pairs)))?;
        let devices = page["devices"].as_array().into_iter().flatten();
        sum += devices.filter_map(|device| device["inbox_len"].as_u64()).sum::<u64>();
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Ok(sum);
        }
    }
}

/// Does it for 0, 1, 2 …, on some threads; the results in order, or the first failure.
fn in_parallel<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let (next, work) = (&AtomicUsize::new(0), &work);
    let worker = move || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(done);
            }
            match work(index) {
                Ok(result) => done.push((index, result)),
                Err(failure) => {
                    // The others need not go on.
                    next.store(count, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
    };
    let mut all: Vec<(usize, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..REGISTRARS.min(count)).map(|_| scope.spawn(worker)).collect();
        let joined =
            threads.into_iter().map(|t| t.join().map_err(|_| Failure::failed("a thread panicked"))?);
        joined.collect::<Result<Vec<_>, Failure>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

/// Posts everything.
pub fn all(api: &Api, push: &PushArgs, run: &str, shared: &Shared) -> Result<Published, Failure> {
    let publish = || Publisher { api, push, run, shared, done: Published::default() }.run();
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..push.publishers).map(|_| scope.spawn(publish)).collect();
        let joined =
            threads.into_iter().map(|t| t.join().map_err(|_| Failure::failed("a publisher panicked"))?);
        joined.collect::<Result<Vec<_>, Failure>>()
    })?;
    Ok(parts.into_iter().fold(Published::default(), |mut sum, part| {
        sum.accepted += part.accepted;
        sum.refused += part.refused;
        sum.micros = sum.micros.max(part.micros);
        sum.latencies.extend(part.latencies);
        sum
    }))
}

struct Publisher<'a> {
    api: &'a Api,
    push: &'a PushArgs,
    run: &'a str,
    shared: &'a Shared,
    done: Published,
}

impl Publisher<'_> {
    fn run(mut self) -> Result<Published, Failure> {
        let filler = "x".repeat(self.push.bytes.saturating_sub(30));
        loop {
            let first = self.shared.next.fetch_add(self.push.batch, Ordering::Relaxed);
            if first >= self.push.messages {
                return Ok(self.done);
            }
            let last = (first + self.push.batch).min(self.push.messages);
            self.wait_for_turn(first);
            self.post(first, last, &filler)?;
        }
    }

    fn wait_for_turn(&self, number: u64) {
        let due =
            Duration::from_micros(number.saturating_mul(1_000_000).checked_div(self.push.rate).unwrap_or(0));
        let left = due.saturating_sub(self.shared.start.elapsed());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }

    /// One request, again and again while the server says "later".
    fn post(&mut self, first: u64, last: u64, filler: &str) -> Result<(), Failure> {
        let body = self.body(first, last, filler);
        let path = if self.push.batch == 1 { "/v1/messages" } else { "/v1/messages/batch" };
        loop {
            let asked = Instant::now();
            let (status, text) = self.api.post_text(path, &body, &[])?;
            if matches!(status, 429 | 503) {
                std::thread::sleep(RETRY_AFTER);
                continue;
            }
            if !(200..300).contains(&status) {
                return Err(Failure::Refused(Box::new(Refusal::read(status, &text))));
            }
            self.done.latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
            self.done.micros = self.shared.now_micros();
            let accepted = text.matches("\"message_id\"").count() as u64;
            self.done.accepted += accepted;
            self.done.refused += (last - first).saturating_sub(accepted);
            self.shared.accepted.fetch_add(accepted, Ordering::Release);
            return Ok(());
        }
    }

    /// Written by hand: the generator shares the machine with the server, and must cost little.
    fn body(&self, first: u64, last: u64, filler: &str) -> String {
        let sent = self.shared.now_micros();
        let mut body = String::with_capacity((last - first) as usize * (filler.len() + 120) + 16);
        let one = |number: u64, body: &mut String| {
            let device = device_id(self.run, number % u64::from(self.push.devices));
            _ = write!(
                body,
                r#"{{"audience":{{"device":"{device}"}},"data":{{"n":{number},"t":{sent},"x":"{filler}"}}}}"#
            );
        };
        if self.push.batch == 1 {
            one(first, &mut body);
            return body;
        }
        body.push_str(r#"{"messages":["#);
        for number in first..last {
            if number > first {
                body.push(',');
            }
            one(number, &mut body);
        }
        body.push_str("]}");
        body
    }
}
