//! The stored form of webhooks.

use super::codec::*;
use crate::webhooks::*;

numbers!(WebhookStop { 0 ByOwner, 1 Gone });

record!(Webhook {
    1 id, 2 settings, 3 secrets, 4 created_at, 5 version, 6 stopped, 7 progress, 8 failures,
    9 number,
});
record!(WebhookSettings { 1 url, 2 steps, 3 batch_max });
record!(SealedSecret { 1 sealed, 2 until });
record!(WebhookProgress {
    1 position, 2 sending, 3 attempts, 4 failing_since, 5 next_at, 6 delivered_at, 7 delivered,
    8 given_up,
});
record!(WebhookBatch { 1 to, 2 epoch, 3 events });
record!(WebhookFailure { 1 at, 2 what, 3 attempt, 4 request_id, 5 events, 6 gave_up });
record!(PutWebhook {
    1 app, 2 id, 3 seen, 4 settings, 5 secrets, 6 enabled, 7 webhooks_max, 8 now,
});
record!(MoveWebhook {
    1 app, 2 id, 3 version, 4 progress, 5 failure, 6 stop, 7 lease, 8 outcome, 9 now,
});
