//! The stored form of commands: one field, whose tag says which command it is.

use super::codec::*;
use crate::command::Command;

/// Each command with its tag: commands with fields of their own, and those that carry one record.
macro_rules! commands {
    (
        fields { $($tag:literal $name:ident { $($at:literal $field:ident),* $(,)? })* }
        records { $($record_tag:literal $record_name:ident)* }
    ) => {
        impl Record for Command {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Command::$name { $($field),* } => put_nested($tag, out, |out| {
                        $($field.put_field($at, out);)*
                    }),)*
                    $(Command::$record_name(record) => {
                        put_nested($record_tag, out, |out| record.put(out));
                    })*
                }
            }

            fn get(bytes: &[u8]) -> Result<Command, Bad> {
                let (tag, raw) = Fields(bytes).next().ok_or(Bad::Missing)??;
                let bytes = raw.bytes()?;
                match tag {
                    $($tag => {
                        $(let mut $field = Slot::default();)*
                        for field in Fields(bytes) {
                            match field? {
                                $(($at, raw) => $field.gather(raw)?,)*
                                (tag, _) => return Err(Bad::UnknownField(tag)),
                            }
                        }
                        Ok(Command::$name { $($field: $field.finish()?),* })
                    })*
                    $($record_tag => Record::get(bytes).map(Command::$record_name),)*
                    tag => Err(Bad::UnknownField(tag)),
                }
            }
        }
    };
}

commands! {
    fields {
        1 CreateApp { 1 id, 2 name, 3 at }
        2 AddKey { 1 app, 2 key, 3 keys_max }
        3 RevokeKey { 1 app, 2 key_id, 3 at }
        5 ChangeDevice { 1 at, 2 change }
        6 DeleteDevice { 1 at, 2 now }
        7 OpenSession { 1 at, 2 expiry_secs, 3 fresh, 4 now }
        8 LeaveSession { 1 at, 2 expiry_secs, 3 now }
        9 EndSession { 1 at, 2 now }
        10 Subscribe { 1 at, 2 subscriptions }
        11 Unsubscribe { 1 at, 2 filters }
        13 Progress { 1 app, 2 steps, 3 now }
        14 Cancel { 1 app, 2 message, 3 now }
        15 Expire { 1 now, 2 limit, 3 history_before, 4 history_max }
        16 Retain { 1 app, 2 topic, 3 message }
        17 Enroll { 1 registration, 2 proof_keys }
        18 ChangeSecret { 1 at, 2 secret_hash, 3 proof_keys }
        19 Seen { 1 at, 2 now }
        20 HearPeers { 1 at, 2 hears }
        21 ClearInbox { 1 at, 2 now }
        22 RenameApp { 1 app, 2 name }
        23 CloseApp { 1 app, 2 now }
        24 EmptyApp { 1 app, 2 limit, 3 now }
        26 OpenJob { 1 name, 2 cursor, 3 due_at, 4 now }
        27 ClaimJobs { 1 kind, 2 worker, 3 max, 4 until, 5 now, 6 only }
        28 SettleJob { 1 job, 2 lease, 3 cursor, 4 outcome, 5 now }
        29 WakeJobs { 1 jobs, 2 failed_too, 3 now }
        30 RewindJob { 1 job, 2 cursor, 3 now }
        31 CloseJob { 1 job, 2 now }
        37 DropWebhook { 1 app, 2 id }
        39 ReplayWebhook { 1 app, 2 id, 3 position }
    }
    records {
        4 Register
        12 Accept
        25 HandOn
        36 PutWebhook
        38 MoveWebhook
        46 Forward
    }
}
