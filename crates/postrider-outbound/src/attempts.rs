//! What comes of an attempt to send a batch: pure, with time and chance as arguments.
//!
//! A batch that fails is sent again, after a wait that grows from a second to an hour, with some
//! chance in it so that not all webhooks of a receiver come at once. The order is kept: nothing
//! overtakes it. After the time that the settings give (three days) it is given up: its events are
//! counted and noted as failed, and the webhook goes on with those behind them.

use crate::client::{Answer, SendError};
use postrider_core::id::UnixMillis;
use postrider_core::webhooks::{WebhookFailure, WebhookProgress, WebhookStop};

/// Seconds to wait after the first failure, the second, and so on; the last one repeats.
const WAITS_SECS: [u64; 7] = [1, 5, 30, 120, 600, 1_800, 3_600];
/// What a receiver may ask for by `Retry-After`, at most.
const RETRY_AFTER_MAX_MS: u64 = 3_600_000;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The longest wait between two attempts, where the receiver asks for no longer one.
    pub wait_max_ms: u64,
    /// A batch is tried for so long.
    pub give_up_ms: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { wait_max_ms: 3_600_000, give_up_ms: 3 * 24 * 3_600_000 }
    }
}

/// What came of one attempt.
pub type Attempt = Result<Answer, SendError>;

/// What is to be stored of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    pub progress: WebhookProgress,
    pub failure: Option<WebhookFailure>,
    pub stop: Option<WebhookStop>,
}

/// Short words for what came of an attempt, for lists, metrics and logs.
pub fn words(attempt: &Attempt) -> &'static str {
    match attempt {
        Ok(Answer { status: 410, .. }) => "gone",
        Ok(Answer { status, .. }) => match status / 100 {
            1 => "status_1xx",
            2 => "status_2xx",
            3 => "status_3xx",
            4 => "status_4xx",
            _ => "status_5xx",
        },
        Err(error) => error.words(),
    }
}

/// Takes in what came of sending `progress.sending` at `now`. `chance`: any number.
pub fn settle(
    progress: &WebhookProgress,
    attempt: &Attempt,
    request_id: &str,
    policy: Policy,
    (now, chance): (UnixMillis, u64),
) -> Settled {
    let mut progress = progress.clone();
    let Some(batch) = progress.sending else { return Settled { progress, failure: None, stop: None } };
    if matches!(attempt, Ok(answer) if answer.status / 100 == 2) {
        progress.delivered += u64::from(batch.events);
        progress.delivered_at = Some(now);
        progress.end_batch(batch);
        return Settled { progress, failure: None, stop: None };
    }
    progress.attempts += 1;
    let since = *progress.failing_since.get_or_insert(now);
    let gone = matches!(attempt, Ok(answer) if answer.status == 410);
    let mut failure = WebhookFailure {
        at: now,
        what: words(attempt).to_owned(),
        attempt: progress.attempts,
        request_id: request_id.to_owned(),
        events: batch.events,
        gave_up: false,
    };
    if gone {
        // Its owner may switch it on again, and then it goes on with this batch.
        return Settled { progress, failure: Some(failure), stop: Some(WebhookStop::Gone) };
    }
    if now.saturating_sub(since) >= policy.give_up_ms {
        failure.gave_up = true;
        progress.give_up(batch);
    } else {
        let asked = attempt.as_ref().ok().and_then(|answer| answer.retry_after_ms).unwrap_or(0);
        let wait = wait_ms(progress.attempts, policy.wait_max_ms, chance).max(asked.min(RETRY_AFTER_MAX_MS));
        // The last attempt comes when the time is over, not an hour later.
        progress.next_at = (now + wait).min((since + policy.give_up_ms).max(now + 1));
    }
    Settled { progress, failure: Some(failure), stop: None }
}

/// The wait after so many failures in a row, a fifth more or less.
fn wait_ms(attempts: u32, max_ms: u64, chance: u64) -> u64 {
    let place = (attempts.max(1) as usize - 1).min(WAITS_SECS.len() - 1);
    let wait = (WAITS_SECS[place] * 1_000).min(max_ms.max(1));
    wait - wait / 5 + chance % (2 * wait / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::webhooks::WebhookBatch;

    const HOUR: u64 = 3_600_000;
    const REFUSED: Attempt = Err(SendError::Connect);

    fn sending(to: u64) -> WebhookProgress {
        let sending = Some(WebhookBatch { to, epoch: 1, events: 3 });
        WebhookProgress { position: to - 3, sending, ..WebhookProgress::default() }
    }

    fn answer(status: u16) -> Attempt {
        Ok(Answer { status, retry_after_ms: None })
    }

    fn at(progress: &WebhookProgress, attempt: &Attempt, now: u64) -> Settled {
        settle(progress, attempt, "id", Policy::default(), (now, now))
    }

    #[test]
    fn what_is_taken_is_done_with_and_the_next_batch_goes_at_once() {
        for status in [200, 202, 204, 299] {
            let Settled { progress, failure, stop } = at(&sending(9), &answer(status), 50);
            assert_eq!((progress.position, progress.sending, progress.next_at), (9, None, 0), "{status}");
            assert_eq!((progress.delivered, progress.delivered_at), (3, Some(50)));
            assert_eq!((failure, stop), (None, None));
        }
    }

    #[test]
    fn every_other_answer_is_a_failure_that_keeps_the_batch() {
        for (attempt, said) in [
            (answer(102), "status_1xx"),
            (answer(302), "status_3xx"),
            (answer(400), "status_4xx"),
            (answer(429), "status_4xx"),
            (answer(500), "status_5xx"),
            (answer(999), "status_5xx"),
            (REFUSED, "connect"),
            (Err(SendError::Timeout), "timeout"),
        ] {
            let before = sending(9);
            let Settled { progress, failure, stop } = at(&before, &attempt, 50);
            let failure = failure.unwrap();
            assert_eq!((failure.what.as_str(), failure.gave_up, stop), (said, false, None));
            assert_eq!((progress.position, progress.sending), (before.position, before.sending));
            assert!(progress.next_at >= 850 && progress.next_at <= 1_250, "{}", progress.next_at);
        }
    }

    #[test]
    fn a_receiver_that_is_away_for_an_hour_gets_the_batch_soon_after_and_one_that_stays_away_loses_it_after_three_days()
     {
        let (mut progress, mut now, mut tries) = (sending(9), 1_000_000, 0);
        let begun = now;
        while now < begun + HOUR {
            let settled = at(&progress, &REFUSED, now);
            (progress, tries) = (settled.progress, tries + 1);
            assert!(progress.next_at > now && progress.sending.is_some());
            now = progress.next_at;
        }
        assert!((7..=12).contains(&tries), "{tries} tries in an hour");
        assert!(now < begun + 2 * HOUR + HOUR / 2, "the next one comes within the longest wait");
        assert_eq!(at(&progress, &answer(200), now).progress.position, 9);

        let gave_up = loop {
            let settled = at(&progress, &REFUSED, now);
            progress = settled.progress;
            if settled.failure.as_ref().is_some_and(|failure| failure.gave_up) {
                break now;
            }
            now = progress.next_at;
        };
        assert_eq!(gave_up, begun + 72 * HOUR, "the last attempt comes when the time is over");
        assert_eq!((progress.position, progress.sending, progress.given_up), (9, None, 3));
        assert_eq!((progress.attempts, progress.failing_since, progress.next_at), (0, None, 0));
    }

    #[test]
    fn a_receiver_may_ask_for_an_hour_and_no_more() {
        for (asked, least, most) in [(0, 800, 1_200), (120_000, 120_000, 120_000), (u64::MAX, HOUR, HOUR)] {
            let attempt = Ok(Answer { status: 429, retry_after_ms: Some(asked) });
            let next = at(&sending(9), &attempt, 0).progress.next_at;
            assert!((least..=most).contains(&next), "{asked}: {next}");
        }
    }

    #[test]
    fn gone_stops_the_webhook_and_keeps_the_batch() {
        let Settled { progress, failure, stop } = at(&sending(9), &answer(410), 50);
        assert_eq!((failure.unwrap().what.as_str(), stop), ("gone", Some(WebhookStop::Gone)));
        assert_eq!((progress.position, progress.sending.map(|batch| batch.to)), (6, Some(9)));
    }

    #[test]
    fn waits_grow_have_chance_in_them_and_keep_to_the_bound() {
        for attempts in 1..20 {
            let waits: Vec<u64> = (0..500).map(|chance| wait_ms(attempts, HOUR, chance * 7_919)).collect();
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            let middle = WAITS_SECS[(attempts as usize - 1).min(6)] * 1_000;
            assert!(*least >= middle * 4 / 5 && *most <= middle * 6 / 5 + 1 && least < most, "{attempts}");
        }
        assert!((0..100).all(|chance| wait_ms(9, 1_000, chance) <= 1_200));
        assert_eq!(wait_ms(0, 0, 5), 1);
    }
}
