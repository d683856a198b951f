//! The stored form of jobs.

use super::codec::*;
use crate::id::*;
use crate::jobs::*;
use crate::state::jobs::Job;

numbers!(JobKind { 1 EmptyApp, 2 Webhook });
record!(JobName { 1 app, 2 kind, 3 subject });
record!(Lease { 1 no, 2 worker, 3 until });
record!(Job {
    1 name, 2 cursor, 3 state, 4 opened_at, 5 leases, 6 woken, 7 failures, 8 last_error, 9 failed_at,
    10 leases_lost,
});

/// One field, whose tag says which state it is.
impl Record for JobState {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            JobState::Due { since } => since.put_value(1, out),
            JobState::Waiting { until } => until.put_value(2, out),
            JobState::Leased(lease) => lease.put_value(3, out),
            JobState::Parked => true.put_value(4, out),
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        match Fields(bytes).next().ok_or(Bad::Missing)?? {
            (1, raw) => Ok(JobState::Due { since: Value::get_value(raw)? }),
            (2, raw) => Ok(JobState::Waiting { until: Value::get_value(raw)? }),
            (3, raw) => Value::get_value(raw).map(JobState::Leased),
            (4, _) => Ok(JobState::Parked),
            (tag, _) => Err(Bad::UnknownField(tag)),
        }
    }
}
nested!(JobState);

/// The same for what a worker says.
impl Record for JobOutcome {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            JobOutcome::Again => true.put_value(1, out),
            JobOutcome::Rest { until } => until.put_value(2, out),
            JobOutcome::Keep { until } => until.put_value(3, out),
            JobOutcome::Failed { retry_at, error } => put_nested(4, out, |out| {
                retry_at.put_field(1, out);
                error.put_field(2, out);
            }),
            JobOutcome::Parked { error } => error.put_value(5, out),
            JobOutcome::Closed => true.put_value(6, out),
        }
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        match Fields(bytes).next().ok_or(Bad::Missing)?? {
            (1, _) => Ok(JobOutcome::Again),
            (2, raw) => Ok(JobOutcome::Rest { until: Value::get_value(raw)? }),
            (3, raw) => Ok(JobOutcome::Keep { until: Value::get_value(raw)? }),
            (4, raw) => {
                let (retry_at, error): (UnixMillis, String) = Value::get_value(raw)?;
                Ok(JobOutcome::Failed { retry_at, error })
            }
            (5, raw) => Ok(JobOutcome::Parked { error: Value::get_value(raw)? }),
            (6, _) => Ok(JobOutcome::Closed),
            (tag, _) => Err(Bad::UnknownField(tag)),
        }
    }
}
nested!(JobOutcome);
