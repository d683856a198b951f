//! Webhooks of apps: what their owners decide, and how far each has got.

use super::State;
use crate::command::*;
use crate::id::*;
use crate::jobs::JobState;
use crate::webhooks::*;

impl State {
    pub(super) fn put_webhook(&mut self, put: &PutWebhook) -> Result<Outcome, Refusal> {
        self.saw(put.now);
        let (events, number) = (self.events, self.seq);
        let app = self.open_app_mut(put.app)?;
        let old = app.webhooks.get_mut(&put.id);
        if old.as_ref().map_or(0, |webhook| webhook.version) != put.seen {
            return Err(Refusal::Stale);
        }
        let stopped = (!put.enabled).then_some(WebhookStop::ByOwner);
        let Some(webhook) = old else {
            if app.webhooks.len() >= put.webhooks_max as usize {
                return Err(Refusal::QuotaExceeded);
            }
            let webhook = Webhook {
                id: put.id.clone(),
                number,
                settings: put.settings.clone(),
                secrets: put.secrets.clone(),
                created_at: put.now,
                version: 1,
                stopped,
                progress: WebhookProgress { position: events, ..WebhookProgress::default() },
                failures: Vec::new(),
            };
            app.webhooks.insert(put.id.clone(), webhook);
            self.begin_job(put.app, &put.id, put.now);
            return Ok(Outcome::Done);
        };
        let (old, new) = (&webhook.settings, &put.settings);
        if (&old.steps, old.batch_max) != (&new.steps, new.batch_max) {
            // What was begun holds other events than the settings say now.
            webhook.progress.sending = None;
        }
        webhook.settings.clone_from(&put.settings);
        webhook.secrets.clone_from(&put.secrets);
        webhook.stopped = stopped;
        webhook.version += 1;
        webhook.progress.retry_at_once();
        self.begin_job(put.app, &put.id, put.now);
        Ok(Outcome::Done)
    }

    /// Its job begins at the webhook's place, and whoever has it loses it: what he does is of an older
    /// version.
    fn begin_job(&mut self, app: AppNo, id: &str, now: UnixMillis) {
        let Some(webhook) = self.app_ref(app).and_then(|app| app.webhooks.get(id)) else { return };
        let (name, position) = (webhook.job(app), webhook.progress.position);
        let state = match webhook.stopped {
            None => JobState::Due { since: now },
            Some(_) => JobState::Waiting { until: UnixMillis::MAX },
        };
        let (job, _) = self.open_job(name, position, now, now);
        self.begin_again(job, position, state);
    }

    pub(super) fn drop_webhook(&mut self, app: AppNo, id: &str) -> Result<Outcome, Refusal> {
        let dropped = self.open_app_mut(app)?.webhooks.remove(id).ok_or(Refusal::NoSuchWebhook)?;
        self.close_job_named(&dropped.job(app));
        Ok(Outcome::Done)
    }

    /// What is in flight is forgotten: whatever comes of it is refused as that of an older version.
    pub(super) fn replay_webhook(&mut self, app: AppNo, id: &str, position: u64) -> Result<Outcome, Refusal> {
        let position = position.min(self.events);
        let webhook = self.open_app_mut(app)?.webhooks.get_mut(id).ok_or(Refusal::NoSuchWebhook)?;
        webhook.version += 1;
        webhook.progress.retry_at_once();
        (webhook.progress.position, webhook.progress.sending) = (position, None);
        self.begin_job(app, id, self.last_time);
        Ok(Outcome::Done)
    }

    pub(super) fn move_webhook(&mut self, moved: &MoveWebhook) -> Result<Outcome, Refusal> {
        let app = self.open_app_mut(moved.app)?;
        let webhook = app.webhooks.get_mut(&moved.id).ok_or(Refusal::NoSuchWebhook)?;
        if webhook.version != moved.version {
            return Err(Refusal::Stale);
        }
        let name = webhook.job(moved.app);
        let job = self.job_no(&name).ok_or(Refusal::NoSuchJob)?;
        let position = Some(moved.progress.position);
        // Refused without the lease, and then nothing of the rest happens either.
        self.settle_job(job, moved.lease, position, &moved.outcome, moved.now)?;
        let app = self.open_app_mut(moved.app)?;
        let webhook = app.webhooks.get_mut(&moved.id).ok_or(Refusal::NoSuchWebhook)?;
        webhook.progress.clone_from(&moved.progress);
        if let Some(failure) = &moved.failure {
            webhook.failures.push(failure.clone());
            let surplus = webhook.failures.len().saturating_sub(FAILURES_MAX);
            webhook.failures.drain(..surplus);
        }
        webhook.stopped = webhook.stopped.or(moved.stop);
        Ok(Outcome::Done)
    }

    /// See [`crate::port::Store::webhook`].
    pub fn webhook(&self, app: AppNo, id: &str) -> Option<Webhook> {
        self.app_ref(app)?.webhooks.get(id).cloned()
    }

    /// See [`crate::port::Store::webhooks`].
    pub fn webhooks(&self, app: AppNo) -> Vec<Webhook> {
        self.app_ref(app).map_or(Vec::new(), |app| app.webhooks.values().cloned().collect())
    }

    /// See [`crate::port::Store::webhook_ids`].
    pub fn webhook_ids(&self) -> Vec<(AppNo, String)> {
        let apps = self.apps.iter().enumerate();
        let of = |(no, app): (usize, &super::App)| {
            let ids: Vec<_> = app.webhooks.keys().map(|id| (AppNo(no as u32), id.clone())).collect();
            ids
        };
        apps.flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Effects;
    use super::*;
    use crate::jobs::*;

    fn run(state: &mut State, command: Command) -> Outcome {
        state.execute(&command, Default::default(), &mut Effects::default())
    }

    fn put(id: &str, seen: u64) -> PutWebhook {
        PutWebhook {
            app: AppNo(0),
            id: id.into(),
            seen,
            settings: WebhookSettings {
                url: "https://a.example/".into(),
                batch_max: 9,
                ..Default::default()
            },
            secrets: vec![SealedSecret { sealed: [1, 2].into(), until: None }],
            enabled: true,
            webhooks_max: 2,
            now: 5,
        }
    }

    fn world() -> State {
        let mut state = State::default();
        run(&mut state, Command::CreateApp { id: "a".into(), name: String::new(), at: 1 });
        state.events = 40;
        assert_eq!(run(&mut state, Command::PutWebhook(Box::new(put("one", 0)))), Outcome::Done);
        state
    }

    /// What the worker of the webhook says, which claims its job where it has not.
    fn moved(state: &mut State, failure: Option<u32>) -> MoveWebhook {
        let webhook = state.webhook(AppNo(0), "one").unwrap();
        let failure = failure.map(|attempt| WebhookFailure {
            at: 9,
            what: "timeout".into(),
            attempt,
            request_id: String::new(),
            events: 1,
            gave_up: false,
        });
        let job = state.job_named(&webhook.job(AppNo(0))).unwrap();
        let lease = match job.state {
            JobState::Leased(lease) => lease.no,
            _ => {
                let claim = Command::ClaimJobs {
                    kind: JobKind::Webhook,
                    worker: 1,
                    max: 1,
                    until: 1_000,
                    now: 9,
                    only: Some(job.no),
                };
                let Outcome::JobsClaimed(jobs) = run(state, claim) else { panic!() };
                jobs[0].lease
            }
        };
        let progress = WebhookProgress { attempts: 3, next_at: 70, ..webhook.progress };
        MoveWebhook {
            app: AppNo(0),
            id: "one".into(),
            version: webhook.version,
            progress,
            failure,
            stop: None,
            lease,
            outcome: JobOutcome::Keep { until: 1_000 },
            now: 9,
        }
    }

    #[test]
    fn a_new_webhook_begins_with_the_next_receipt_and_a_changed_one_stays_where_it_is() {
        let mut state = world();
        assert_eq!(state.webhook(AppNo(0), "one").unwrap().progress.position, 40);
        let mut other = moved(&mut state, None);
        other.progress.position = 60;
        run(&mut state, Command::MoveWebhook(Box::new(other)));
        state.events = 90;
        run(&mut state, Command::PutWebhook(Box::new(put("one", 1))));
        let webhook = state.webhook(AppNo(0), "one").unwrap();
        assert_eq!((webhook.version, webhook.progress.position), (2, 60));
        assert_eq!(
            (webhook.progress.attempts, webhook.progress.next_at),
            (0, 0),
            "a change is tried at once"
        );
    }

    #[test]
    fn what_a_worker_says_of_an_older_version_is_refused() {
        let mut state = world();
        let late = moved(&mut state, Some(1));
        let replay = Command::ReplayWebhook { app: AppNo(0), id: "one".into(), position: 7 };
        assert_eq!(run(&mut state, replay), Outcome::Done);
        let before = state.webhook(AppNo(0), "one");
        let refused = run(&mut state, Command::MoveWebhook(Box::new(late)));
        assert_eq!(refused, Outcome::Refused(Refusal::Stale));
        assert_eq!(state.webhook(AppNo(0), "one"), before);
        assert_eq!(before.unwrap().progress.position, 7);
        let stale = run(&mut state, Command::PutWebhook(Box::new(put("one", 1))));
        assert_eq!(stale, Outcome::Refused(Refusal::Stale));
    }

    #[test]
    fn a_webhook_has_one_job_whose_lease_is_lost_with_each_change() {
        let mut state = world();
        let job = |state: &State| {
            let webhook = state.webhook(AppNo(0), "one").unwrap();
            state.job_named(&webhook.job(AppNo(0))).unwrap()
        };
        let opened = job(&state);
        assert_eq!((opened.cursor, opened.state), (40, JobState::Due { since: 5 }));
        let mut mine = moved(&mut state, Some(1));
        mine.outcome = JobOutcome::Failed { retry_at: 70, error: "timeout".into() };
        mine.progress.position = 41;
        assert_eq!(run(&mut state, Command::MoveWebhook(Box::new(mine.clone()))), Outcome::Done);
        let failed = job(&state);
        assert_eq!((failed.no, failed.cursor, failed.failures), (opened.no, 41, 1));
        assert_eq!(failed.state, JobState::Waiting { until: 70 });
        // The lease went with the settlement.
        let before = state.webhook(AppNo(0), "one");
        let refused = run(&mut state, Command::MoveWebhook(Box::new(mine)));
        assert_eq!(refused, Outcome::Refused(Refusal::LeaseLost));
        assert_eq!(state.webhook(AppNo(0), "one"), before);
        let mut off = put("one", 1);
        off.enabled = false;
        run(&mut state, Command::PutWebhook(Box::new(off)));
        assert_eq!(job(&state).state, JobState::Waiting { until: UnixMillis::MAX });
        run(&mut state, Command::PutWebhook(Box::new(put("one", 2))));
        assert_eq!((job(&state).state, job(&state).failures), (JobState::Due { since: 5 }, 0));
        run(&mut state, Command::DropWebhook { app: AppNo(0), id: "one".into() });
        assert_eq!(state.job(opened.no), None);
        // Another one of the same name has another job.
        run(&mut state, Command::PutWebhook(Box::new(put("one", 0))));
        assert_ne!(job(&state).name, opened.name);
    }

    #[test]
    fn a_replay_goes_no_further_than_there_are_receipts() {
        let mut state = world();
        run(&mut state, Command::ReplayWebhook { app: AppNo(0), id: "one".into(), position: u64::MAX });
        assert_eq!(state.webhook(AppNo(0), "one").unwrap().progress.position, 40);
    }

    #[test]
    fn webhooks_of_an_app_and_failures_of_a_webhook_are_bounded() {
        let mut state = world();
        assert_eq!(run(&mut state, Command::PutWebhook(Box::new(put("two", 0)))), Outcome::Done);
        let third = run(&mut state, Command::PutWebhook(Box::new(put("three", 0))));
        assert_eq!(third, Outcome::Refused(Refusal::QuotaExceeded));
        for attempt in 1..=FAILURES_MAX as u32 + 5 {
            let failed = moved(&mut state, Some(attempt));
            run(&mut state, Command::MoveWebhook(Box::new(failed)));
        }
        let failures = state.webhook(AppNo(0), "one").unwrap().failures;
        assert_eq!((failures.len(), failures[0].attempt), (FAILURES_MAX, 6));
    }

    #[test]
    fn a_deleted_app_has_no_webhooks() {
        let mut state = world();
        run(&mut state, Command::CloseApp { app: AppNo(0), now: 8 });
        assert_eq!(state.webhook_ids(), []);
        let refused = run(&mut state, Command::PutWebhook(Box::new(put("one", 0))));
        assert_eq!(refused, Outcome::Refused(Refusal::NoSuchApp));
    }
}
