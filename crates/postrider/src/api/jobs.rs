//! The list of jobs: slow work that goes on by itself. For holders of an admin key.

use super::auth::ByAdmin;
use super::error::{ApiError, Code};
use super::json::{Path, Query};
use super::{Api, Time, ask, cursors, page_size};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use postrider_core::id::JobNo;
use postrider_core::jobs::{JobFilter, JobKind, JobState, JobView, Lease};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Jobs that one request looks at, at most. A page may so be short, or empty, and not the last.
const LOOKED_MAX: usize = 10_000;
/// Jobs read from the store at once: it is not held for longer.
const READ_AT_ONCE: usize = 500;

/// A job.
#[derive(Debug, Serialize, ToSchema)]
pub struct Job {
    id: u64,
    #[schema(schema_with = super::openapi::job_kind)]
    kind: &'static str,
    /// Null where it is the server's own.
    app: Option<String>,
    /// A number that means something to the kind, such as that of a webhook.
    subject: u64,
    #[schema(schema_with = super::openapi::job_state)]
    state: &'static str,
    /// How far it has come, as a number that means something to the kind.
    cursor: u64,
    #[schema(value_type = String, format = DateTime)]
    opened_at: Time,
    /// Of a job that is due: since when.
    #[schema(value_type = Option<String>, format = DateTime)]
    due_since: Option<Time>,
    /// When a job that waits is due, or when the lease on it runs out. Null where it waits for
    /// something to do.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Time>,
    /// In a row.
    failures: u32,
    last_error: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    failed_at: Option<Time>,
    /// How often its worker did not settle it in time: it was ended, or is stuck.
    leases_lost: u32,
}

impl Job {
    fn of(api: &Api, view: JobView) -> Job {
        let (due_since, next_at) = match view.state {
            JobState::Due { since } => (Some(since), None),
            JobState::Waiting { until } | JobState::Leased(Lease { until, .. }) => (None, Some(until)),
            JobState::Parked => (None, None),
        };
        Job {
            id: view.no.0,
            kind: view.name.kind.name(),
            app: view.name.app.and_then(|app| api.engine.store.app(app)).map(|app| app.id),
            subject: view.name.subject,
            state: view.state.name(),
            cursor: view.cursor,
            opened_at: Time(view.opened_at),
            due_since: due_since.map(Time),
            next_at: next_at.filter(|at| *at != u64::MAX).map(Time),
            failures: view.failures,
            last_error: view.last_error,
            failed_at: view.failed_at.map(Time),
            leases_lost: view.leases_lost,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    app: Option<String>,
    kind: Option<String>,
    state: Option<String>,
}

/// A page of jobs, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobPage {
    jobs: Vec<Job>,
    /// Give it back as `cursor` for the next page; null on the last one. With a filter, a page may
    /// have fewer jobs than `limit`, or none, and not be the last.
    next_cursor: Option<String>,
}

fn filter(api: &Api, query: &JobQuery) -> Result<JobFilter, ApiError> {
    let app = match &query.app {
        Some(id) => Some(api.engine.store.app_by_id(id).ok_or(Code::NoSuchApp)?),
        None => None,
    };
    let kind = match &query.kind {
        Some(name) => {
            let kind = JobKind::ALL.into_iter().find(|kind| kind.name() == name);
            Some(kind.ok_or_else(|| one_of("kind", &JobKind::ALL.map(JobKind::name)))?)
        }
        None => None,
    };
    let state = match &query.state {
        Some(name) => {
            let place = JobState::NAMES.iter().position(|state| state == name);
            Some(place.ok_or_else(|| one_of("state", &JobState::NAMES))?)
        }
        None => None,
    };
    Ok(JobFilter { app, kind, state })
}

fn one_of(name: &'static str, words: &[&str]) -> ApiError {
    Code::InvalidParameter.at(name, format!("`{name}` is one of: {}.", words.join(", ")))
}

pub async fn list(
    _: ByAdmin,
    State(api): State<Api>,
    Query(query): Query<JobQuery>,
) -> Result<Json<JobPage>, ApiError> {
    let limit = page_size(&api, query.limit)?;
    let filter = filter(&api, &query)?;
    let after = cursors::read_list(&api, "job-", query.cursor.as_deref())?;
    let mut after = after.map(|no| JobNo(u64::try_from(no).unwrap_or(u64::MAX)));
    let (mut jobs, mut looked) = (Vec::new(), 0);
    let next = loop {
        let look = READ_AT_ONCE.min(limit - jobs.len());
        let (views, next) = api.engine.store.jobs(filter, after, look);
        jobs.extend(views.into_iter().map(|view| Job::of(&api, view)));
        (after, looked) = (next, looked + look);
        if next.is_none() || jobs.len() == limit || looked >= LOOKED_MAX {
            break next;
        }
    };
    Ok(Json(JobPage { jobs, next_cursor: next.map(|no| cursors::of_list(&api, "job-", no.0.into())) }))
}

/// A job that failed or is parked is due at once.
pub async fn retry(_: ByAdmin, State(api): State<Api>, Path(id): Path<u64>) -> Result<StatusCode, ApiError> {
    let job = JobNo(id);
    if api.engine.store.job(job).is_none() {
        return Err(Code::NoSuchJob.into());
    }
    ask(|done| api.engine.retry_job(job, done)).await??;
    Ok(StatusCode::NO_CONTENT)
}
