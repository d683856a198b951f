//! Jobs are listed, found by what they are, and tried again.

use super::*;
use postrider_core::jobs::*;

impl World {
    /// Opens a job of an app; its number.
    pub fn job(&self, app: AppNo, subject: u64) -> JobNo {
        let name = JobName { app: Some(app), kind: JobKind::Webhook, subject };
        let engine = &self.api.engine;
        engine.open_job(name, 7, engine.clock.now(), Box::new(|_| {}));
        engine.store.job_named(&name).unwrap().no
    }

    /// Claims the job that is due for longest, and says what came of it.
    fn settle_next(&self, outcome: JobOutcome) {
        let (tell, told) = std::sync::mpsc::channel();
        let (engine, until) = (&self.api.engine, self.clock.now() + 30_000);
        engine.claim_jobs(JobKind::Webhook, 1, 1, until, Box::new(move |jobs| tell.send(jobs).unwrap()));
        let job = told.recv().unwrap().unwrap().remove(0);
        engine.settle_job(job.no, job.lease, None, outcome, Box::new(|_| {}));
    }

    async fn jobs(&self, query: &str) -> Value {
        let (status, page) = self.call(ADMIN_KEY, &format!("GET /v1/admin/jobs{query}"), Value::Null).await;
        assert_eq!(status, 200, "{page}");
        page
    }

    async fn job_ids(&self, query: &str) -> Vec<u64> {
        let page = self.jobs(query).await;
        page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_u64().unwrap()).collect()
    }
}

#[tokio::test]
async fn jobs_are_shown_with_what_hinders_them() {
    let world = World::new();
    let now = world.clock.now();
    world.job(AppNo(0), 5);
    let shown = world.jobs("").await["jobs"][0].clone();
    assert_eq!(
        shown,
        json!({
            "id": 1, "kind": "webhook", "app": "default", "subject": 5, "state": "due", "cursor": 7,
            "opened_at": "2023-11-14T22:13:20.000Z", "due_since": "2023-11-14T22:13:20.000Z",
            "next_at": null, "failures": 0, "last_error": null, "failed_at": null, "leases_lost": 0,
        })
    );
    let error = "é".repeat(300);
    world.settle_next(JobOutcome::Failed { retry_at: now + 60_000, error });
    let shown = world.jobs("").await["jobs"][0].clone();
    assert_eq!((&shown["state"], &shown["failures"]), (&json!("waiting"), &json!(1)));
    assert_eq!(shown["next_at"], "2023-11-14T22:14:20.000Z");
    assert_eq!(shown["failed_at"], "2023-11-14T22:13:20.000Z");
    assert_eq!(shown["last_error"].as_str().unwrap(), "é".repeat(200), "its length is bounded");
}

#[tokio::test]
async fn a_job_that_is_parked_is_tried_again_when_an_operator_says_so() {
    let world = World::new();
    let job = world.job(AppNo(0), 1);
    world.settle_next(JobOutcome::Parked { error: "gone".into() });
    assert_eq!(world.job_ids("?state=parked").await, [job.0]);
    let line = format!("POST /v1/admin/jobs/{}/retry", job.0);
    assert_eq!(world.call(ADMIN_KEY, &line, Value::Null).await.0, 204);
    assert_eq!(world.job_ids("?state=due").await, [job.0]);
    let (status, answer) = world.call(ADMIN_KEY, "POST /v1/admin/jobs/99/retry", Value::Null).await;
    assert_eq!((status, code(&answer)), (404, "no_such_job"));
}

#[tokio::test]
async fn jobs_are_found_by_app_kind_and_state_page_by_page() {
    let world = World::new();
    for subject in 0..5 {
        world.job(AppNo((subject % 2) as u32), subject);
    }
    assert_eq!(world.job_ids("?app=other").await, [2, 4]);
    assert_eq!(world.job_ids("?kind=empty_app").await, [0; 0]);
    assert_eq!(world.job_ids("?kind=webhook&state=due&app=default").await, [1, 3, 5]);
    let (mut found, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        found.extend(world.job_ids(&query).await);
        match world.jobs(&query).await["next_cursor"].as_str() {
            Some(next) => query = format!("?limit=2&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, [1, 2, 3, 4, 5]);
    for (query, status, expected) in [
        ("?kind=mail", 400, "invalid_parameter"),
        ("?state=lost", 400, "invalid_parameter"),
        ("?app=nobody", 404, "no_such_app"),
        ("?cursor=x", 400, "invalid_cursor"),
        ("?limit=0", 400, "invalid_parameter"),
    ] {
        let answer = world.call(ADMIN_KEY, &format!("GET /v1/admin/jobs{query}"), Value::Null).await;
        assert_eq!((answer.0, code(&answer.1)), (status, expected), "{query}");
    }
}

#[tokio::test]
async fn a_deleted_app_is_emptied_by_a_job_that_is_shown_until_it_is_done() {
    let world = World::new();
    let job = world.job(AppNo(1), 1);
    assert_eq!(world.call(ADMIN_KEY, "DELETE /v1/apps/other", Value::Null).await.0, 204);
    let page = world.jobs("").await;
    let [emptying] = page["jobs"].as_array().unwrap().as_slice() else { panic!("{page}") };
    assert_eq!((&emptying["kind"], &emptying["app"]), (&json!("empty_app"), &json!("other")));
    assert_ne!(emptying["id"], job.0);
    while world.api.engine.store.closing_app().is_some() {
        world.api.engine.tick();
    }
    assert_eq!(world.job_ids("").await, [0; 0]);
}
