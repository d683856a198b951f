//! What the sender of an accepted message should know all the same: names that no device answers to, a push to nobody.

use postrider_core::audience::{Selector, Unmatched};
use postrider_core::delivery::accept::UnmatchedNames;
use serde::Serialize;
use utoipa::ToSchema;

/// Names that a message lists; the field `names` has them all.
const NAMES_SHOWN: usize = 5;

macro_rules! warnings {
    ($($name:ident $code:literal $sentence:literal $remedy:literal)*) => {
        /// Which warning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum WarningCode { $($name),* }

        impl WarningCode {
            pub const ALL: &'static [WarningCode] = &[$(WarningCode::$name),*];

            /// Code, sentence, remedy.
            pub const fn row(self) -> (&'static str, &'static str, &'static str) {
                match self { $(WarningCode::$name => ($code, $sentence, $remedy)),* }
            }
        }
    };
}

warnings! {
    NobodyTargeted "nobody_targeted" "The message is for no device: nobody will get it."
        "The other warnings name what nobody answers to. `POST /v1/messages/estimate` counts an audience without sending."
    NobodyConnected "nobody_connected" "No device of the audience is connected, and the message does not wait."
        "Send it without `\"durability\": \"transient\"` and with a `ttl_secs` above 0."
    UnknownDevice "unknown_device" "Ids in the audience are of no device of this app."
        "The devices may have been deleted. The others get the message."
    UnknownAlias "unknown_alias" "Aliases in the audience are of no device of this app."
        "The users may have signed out. The others get the message."
    UnusedTag "unused_tag" "A tag in the audience is on no device."
        "Compare its spelling with `GET /v1/devices?tag=…`."
    NoSubscribers "no_subscribers" "No device has a session that subscribes to a topic of the audience."
        "Topics are compared letter by letter; `GET /v1/topics/{topic}` counts their subscribers."
    UnusedPlatform "unused_platform" "No device is of a platform of the audience."
        "Devices are of the platform that they were registered with; where nothing was said, of `other`."
}

/// Something that the sender should know.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Warning {
    /// Stable: programs may depend on it.
    code: &'static str,
    /// For people; may change.
    message: String,
    /// Where the names stand: `/audience` or `/exclude`.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    /// The names that it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    names: Vec<String>,
}

impl From<WarningCode> for Warning {
    fn from(code: WarningCode) -> Warning {
        let (code, sentence, _) = code.row();
        Warning { code, message: sentence.to_owned(), field: None, names: Vec::new() }
    }
}

/// Ids and aliases that no device has, and all that is to be said of the names and the number of devices.
pub fn of(unmatched: UnmatchedNames, nobody: Option<WarningCode>) -> (Vec<String>, Vec<Warning>) {
    let by_name = |u: &&Unmatched| matches!(u.selector, Selector::Device | Selector::Alias);
    let all = unmatched.audience.iter().chain(&unmatched.exclude);
    let unknown = all.filter(by_name).map(|u| u.name.clone()).collect();
    let mut warnings: Vec<Warning> = nobody.into_iter().map(Warning::from).collect();
    for (field, mut names) in [("/audience", unmatched.audience), ("/exclude", unmatched.exclude)] {
        names.sort_by_key(|u| u.selector);
        let groups = names.chunk_by(|a, b| a.selector == b.selector);
        warnings.extend(groups.map(|group| about(field, group)));
    }
    (unknown, warnings)
}

fn about(field: &'static str, group: &[Unmatched]) -> Warning {
    let (code, what) = match group[0].selector {
        Selector::Device => (WarningCode::UnknownDevice, "No device of this app has the id"),
        Selector::Alias => (WarningCode::UnknownAlias, "No device of this app has the alias"),
        Selector::Tag => (WarningCode::UnusedTag, "No device of this app has the tag"),
        Selector::Topic => (WarningCode::NoSubscribers, "No device of this app subscribes to"),
        Selector::Platform => (WarningCode::UnusedPlatform, "No device of this app is of the platform"),
    };
    let shown: Vec<_> = group.iter().take(NAMES_SHOWN).map(|u| format!("`{}`", u.name)).collect();
    let more = group.len() - shown.len();
    let more = if more > 0 { format!(" or {more} more") } else { String::new() };
    Warning {
        message: format!("{what} {}{more}.", shown.join(", ")),
        field: Some(field),
        names: group.iter().map(|u| u.name.clone()).collect(),
        ..code.into()
    }
}
