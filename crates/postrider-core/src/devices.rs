//! Devices come to be and change: what is checked before the store is asked. Signing in is told in `session`.

use crate::Engine;
use crate::command::*;
use crate::delivery::accept::{AcceptError, check_name};
use crate::delivery::request::{self, digest};
use crate::id::*;
use crate::limits::Limits;
use crate::model::*;
use crate::port::*;
use crate::session::secret_hash;
use crate::state::apply_change;
use std::collections::BTreeMap;

/// Bytes of a device's own id; of a provider's token; providers of a device; bytes of an attribute's text.
pub const DEVICE_ID_BYTES_MAX: usize = 64;
const TOKEN_BYTES_MAX: usize = 4_096;
const TOKENS_MAX: usize = 16;
/// How long a device that registered itself may take to be there for the first time, before it may
/// have to make room for another.
const OWN_GRACE_MS: u64 = 600_000;
const ATTRIBUTE_BYTES_MAX: usize = 1_024;

/// A device that registers.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// The caller's own choice; else one is drawn.
    pub id: Option<String>,
    /// As the device will give it; only its hash is kept.
    pub secret: String,
    /// The caller has drawn the secret and will repeat the request with it where the answer is lost.
    pub is_secret_brought: bool,
    /// Derived from the secret; empty for devices that will only ever show it.
    pub proof_keys: ProofKeys,
    pub profile: Profile,
    pub origin: Origin,
    pub idempotency_key: Option<String>,
    /// Whose key it is: the same key of another caller names another request.
    pub idempotency_owner: u128,
}

/// Who changes what is known of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    AppServer,
    /// The device itself.
    Device,
}

/// The answer to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    pub at: DeviceRef,
    /// A repeated request: nothing was stored, the secret is still the first one.
    pub repeated: bool,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    #[error("{field}: {why}")]
    Invalid { field: &'static str, why: String },
    #[error("a device with this id exists")]
    Exists,
    #[error("no such device")]
    Missing,
    #[error("the device's profile would have {bytes} bytes, at most {max} are allowed")]
    ProfileTooLarge { bytes: usize, max: usize },
    #[error("alias and tags are what the app's server says of a device, not the device itself")]
    NotOwnToSay { field: &'static str },
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    #[error("the app has as many devices as it may have: {max}")]
    TooMany { max: u64 },
    #[error("as many devices of the app registered themselves as may: {max}")]
    TooManyOwn { max: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub type RegisterDone = Box<dyn FnOnce(Result<Registered, DeviceError>) + Send>;
pub type ChangeDone = Box<dyn FnOnce(Result<(), DeviceError>) + Send>;

impl Engine {
    /// Registers a device; `done` is called once it is on stable storage.
    pub fn register(&self, app: AppNo, device: NewDevice, done: RegisterDone) {
        if let Err(error) = self.check_new(app, &device) {
            return done(Err(error));
        }
        let now = self.clock.now();
        let hash = secret_hash(device.secret.as_bytes());
        let idempotency = self.idempotency_of(app, &device, &hash, now);
        let id = device.id.unwrap_or_else(|| format!("dev-{:032x}", self.chance.bits128()));
        let registration = Registration {
            app,
            id,
            secret_hash: Some(hash),
            profile: device.profile,
            now,
            idempotency,
            origin: Some(device.origin),
            quota: Some(self.device_quota()),
        };
        let (max, own_max) = (self.limits.devices_max, self.limits.own_devices_max);
        let told = move |outcomes: Result<Vec<Outcome>, StoreError>| match outcomes?.last() {
            Some(Outcome::Registered { at, existed }) => Ok(Registered { at: *at, repeated: *existed }),
            Some(Outcome::Refused(Refusal::TooManyDevices)) => Err(DeviceError::TooMany { max }),
            Some(Outcome::Refused(Refusal::TooManyOwnDevices)) => {
                Err(DeviceError::TooManyOwn { max: own_max })
            }
            other => Err(refused(other)),
        };
        let room = match self.make_room(app, device.origin) {
            Ok(room) => room,
            Err(error) => return done(Err(error)),
        };
        let displaced = (device.origin == Origin::AppServer)
            .then(|| self.displace_anonymous(app, &registration.id))
            .flatten();
        let registration = Box::new(registration);
        let register = match device.proof_keys.is_empty() {
            true => Command::Register(registration),
            false => Command::Enroll { registration, proof_keys: device.proof_keys },
        };
        let commands = displaced.into_iter().chain(room).chain([register]).collect();
        self.store.submit(commands, Box::new(move |outcomes| done(told(outcomes))));
    }

    pub(crate) fn device_quota(&self) -> DeviceQuota {
        DeviceQuota { all_max: self.limits.devices_max, own_max: self.limits.own_devices_max }
    }

    /// Devices that register themselves have a quota of their own, so that they do not keep the app's
    /// server from registering. Where it is used up, the oldest that was never there makes room.
    fn make_room(&self, app: AppNo, origin: Origin) -> Result<Option<Command>, DeviceError> {
        let max = self.limits.own_devices_max;
        if !origin.is_own() {
            return Ok(None);
        }
        let OwnDevices { count, never_seen } = self.store.own_devices(app);
        if count < max {
            return Ok(None);
        }
        let now = self.clock.now();
        match never_seen.filter(|(_, registered_at)| registered_at + OWN_GRACE_MS <= now) {
            Some((at, _)) => Ok(Some(Command::DeleteDevice { at, now })),
            None => Err(DeviceError::TooManyOwn { max }),
        }
    }

    /// What names a registration, so that it can be repeated: the caller's key, or else the secret
    /// that the caller has drawn, which nobody else knows.
    fn idempotency_of(
        &self,
        app: AppNo,
        device: &NewDevice,
        hash: &[u8; 32],
        now: UnixMillis,
    ) -> Option<Idempotency> {
        let keep_until = now + self.limits.idempotency_keep.as_millis() as u64;
        let keys_max = self.limits.idempotency_keys_max;
        if let Some(key) = &device.idempotency_key
            && let Some((key, request)) = self.remembered_before(
                app,
                digest(format!("device\n{key}").as_bytes()),
                request::of_device_before(&device.id, &device.profile),
            )
        {
            return Some(Idempotency { key, request, keep_until, keys_max });
        }
        let owner = device.idempotency_owner;
        let brought = device.is_secret_brought.then_some(hash);
        // A key names one request of one kind and caller: the same key on a message, or of another
        // key of the app, does not meet this one.
        let name = match (&device.idempotency_key, brought) {
            (Some(key), _) => format!("device\n{owner:032x}\n{key}"),
            (None, Some(hash)) => format!("device by secret\n{owner:032x}\n{hash:?}"),
            (None, None) => return None,
        };
        let request = request::of_device(device.id.as_deref(), &device.profile, brought);
        Some(Idempotency { key: digest(name.as_bytes()), request, keep_until, keys_max })
    }

    /// A request as releases up to November 2026 remember it, where it is the very same: then it is told by that.
    pub(crate) fn remembered_before(&self, app: AppNo, key: u128, request: u128) -> Option<(u128, u128)> {
        self.store.request_of(app, key).filter(|known| *known == request).map(|_| (key, request))
    }

    /// Gives a registered device another secret, and ends what was begun with the old one: its
    /// connection. Device, topics and inbox stay.
    pub fn replace_secret(&self, at: DeviceRef, secret: &str, proof_keys: ProofKeys, done: ChangeDone) {
        let engine = self.clone();
        let ended = move |changed: Result<(), DeviceError>| {
            if changed.is_ok() {
                engine.revoke(at);
            }
            done(changed);
        };
        self.change_secret(at, secret, proof_keys, Box::new(ended));
    }

    /// The same at the wish of the device's own connection, which goes on.
    pub fn change_secret(&self, at: DeviceRef, secret: &str, proof_keys: ProofKeys, done: ChangeDone) {
        let secret_hash = secret_hash(secret.as_bytes());
        let told = |outcomes: Result<Vec<Outcome>, StoreError>| match outcomes?.first() {
            Some(Outcome::Done) => Ok(()),
            other => Err(refused(other)),
        };
        self.store.submit(
            vec![Command::ChangeSecret { at, secret_hash, proof_keys }],
            Box::new(move |outcomes| done(told(outcomes))),
        );
    }

    /// Changes what is said of a device.
    pub fn change_device(&self, at: DeviceRef, change: ProfileChange, author: Author, done: ChangeDone) {
        self.change_and_clear(at, change, author, false, done);
    }

    /// The same; with `drop_pending` what waits for the device is recalled in the same moment: it was for another user.
    pub fn change_and_clear(
        &self,
        at: DeviceRef,
        change: ProfileChange,
        author: Author,
        drop_pending: bool,
        done: ChangeDone,
    ) {
        let allowed = self.check_author(at, &change, author);
        if let Err(error) = allowed.and_then(|()| self.check_change(at, &change, author)) {
            return done(Err(error));
        }
        let told = |outcomes: Result<Vec<Outcome>, StoreError>| match outcomes?.first() {
            Some(Outcome::Done) => Ok(()),
            other => Err(refused(other)),
        };
        let clear = drop_pending.then(|| Command::ClearInbox { at, now: self.clock.now() });
        self.store.submit(
            [Command::ChangeDevice { at, change }].into_iter().chain(clear).collect(),
            Box::new(move |outcomes| done(told(outcomes))),
        );
    }

    fn check_new(&self, app: AppNo, device: &NewDevice) -> Result<(), DeviceError> {
        let limits = &self.limits;
        if let Some(id) = &device.id {
            check_device_id(id)?;
        }
        name("Idempotency-Key", device.idempotency_key.as_deref(), limits.idempotency_key_bytes_max)?;
        let Profile { alias, tags, attributes, provider_tokens, .. } = &device.profile;
        name("alias", alias.as_deref(), limits.name_bytes_max)?;
        check_tags(tags.iter(), limits)?;
        check_attributes(attributes.iter(), limits)?;
        count("attributes", attributes.len(), limits.attributes_max)?;
        check_tokens(provider_tokens.iter(), limits)?;
        count("provider_tokens", provider_tokens.len(), TOKENS_MAX)?;
        let is_own = device.origin.is_own();
        let max = if is_own { limits.own_profile_bytes_max } else { limits.profile_bytes_max };
        check_size(&device.profile, max)?;
        let known = self.store.app(app).map_or(0, |a| a.devices);
        if known >= limits.devices_max {
            return Err(DeviceError::TooMany { max: limits.devices_max });
        }
        Ok(())
    }

    /// Alias and tags decide what a device receives: messages for a user, or for a group. So the
    /// app's server says them; a device only where the operator trusts all of them.
    fn check_author(&self, at: DeviceRef, change: &ProfileChange, author: Author) -> Result<(), DeviceError> {
        // A device that nobody vouched for says neither in any case; and of old ones nobody knows.
        let is_trusted = self.access.own_alias_and_tags
            && self.store.device(at).is_some_and(|device| device.origin == Some(Origin::AppServer));
        if author == Author::AppServer || is_trusted {
            return Ok(());
        }
        let touched = [
            ("alias", change.alias.is_some()),
            ("tags", change.tags.is_some()),
            ("add_tags", !change.add_tags.is_empty()),
            ("remove_tags", !change.remove_tags.is_empty()),
        ];
        match touched.into_iter().find(|(_, is_touched)| *is_touched) {
            Some((field, _)) => Err(DeviceError::NotOwnToSay { field }),
            None => Ok(()),
        }
    }

    fn check_change(&self, at: DeviceRef, change: &ProfileChange, author: Author) -> Result<(), DeviceError> {
        let limits = &self.limits;
        let profile = self.store.device(at).ok_or(DeviceError::Missing)?.profile;
        name("alias", change.alias.as_ref().and_then(|a| a.as_deref()), limits.name_bytes_max)?;
        let new_tags = change.tags.iter().flatten().chain(&change.add_tags);
        check_tags(new_tags, limits)?;
        let tags = change.tags.as_ref().unwrap_or(&profile.tags);
        count("tags", tags.len() + change.add_tags.len(), limits.tags_max)?;
        check_attributes(change.attributes.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))), limits)?;
        count("attributes", merged(&profile.attributes, &change.attributes), limits.attributes_max)?;
        check_tokens(change.provider_tokens.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))), limits)?;
        count("provider_tokens", merged(&profile.provider_tokens, &change.provider_tokens), TOKENS_MAX)?;
        let max = match author {
            Author::AppServer => limits.profile_bytes_max,
            Author::Device => limits.own_profile_bytes_max,
        };
        let before = profile_bytes(&profile);
        let mut after = profile;
        apply_change(&mut after, change);
        // What is above the limit already, since it was raised meanwhile or said by the app's
        // server, may shrink and stay.
        check_size(&after, max.max(before))
    }
}

/// Ids are put into topics, paths and logs, so their letters are few.
fn check_device_id(id: &str) -> Result<(), DeviceError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"._:@-".contains(&c);
    if id.is_empty() || id.len() > DEVICE_ID_BYTES_MAX || !id.bytes().all(fits) {
        return Err(invalid("device_id", "1 to 64 letters, digits, or . _ : @ -"));
    }
    check_segment("device_id", id)
}

/// Clients resolve `.` and `..` in a path, also percent-encoded (WHATWG URL, "path state"): a call
/// about such a name would reach another route.
fn check_segment(field: &'static str, name: &str) -> Result<(), DeviceError> {
    match name {
        "." | ".." => Err(invalid(field, "`.` and `..` cannot stand in a path")),
        _ => Ok(()),
    }
}

fn check_tags<'a>(tags: impl Iterator<Item = &'a String>, limits: &Limits) -> Result<(), DeviceError> {
    let mut number = 0;
    for tag in tags {
        name("tags", Some(tag), limits.name_bytes_max)?;
        check_segment("tags", tag)?;
        number += 1;
    }
    count("tags", number, limits.tags_max)
}

fn check_attributes<'a>(
    attributes: impl Iterator<Item = (&'a String, &'a Attribute)>,
    limits: &Limits,
) -> Result<(), DeviceError> {
    for (key, value) in attributes {
        name("attributes", Some(key), limits.name_bytes_max)?;
        match value {
            Attribute::Text(text) if text.len() > ATTRIBUTE_BYTES_MAX => {
                return Err(invalid(
                    "attributes",
                    format!("a value has at most {ATTRIBUTE_BYTES_MAX} bytes"),
                ));
            }
            Attribute::Number(number) if !number.is_finite() => {
                return Err(invalid("attributes", "a number must be finite"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_tokens<'a>(
    tokens: impl Iterator<Item = (&'a String, &'a String)>,
    limits: &Limits,
) -> Result<(), DeviceError> {
    for (provider, token) in tokens {
        name("provider_tokens", Some(provider), limits.name_bytes_max)?;
        name("provider_tokens", Some(token), TOKEN_BYTES_MAX)?;
    }
    Ok(())
}

/// Bytes of all that was said of a device.
fn profile_bytes(profile: &Profile) -> usize {
    let Profile { platform: _, alias, tags, attributes, provider_tokens } = profile;
    let value = |value: &Attribute| match value {
        Attribute::Text(text) => text.len(),
        _ => size_of::<f64>(),
    };
    alias.as_ref().map_or(0, String::len)
        + tags.iter().map(String::len).sum::<usize>()
        + attributes.iter().map(|(k, v)| k.len() + value(v)).sum::<usize>()
        + provider_tokens.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
}

fn check_size(profile: &Profile, max: usize) -> Result<(), DeviceError> {
    let bytes = profile_bytes(profile);
    if bytes > max { Err(DeviceError::ProfileTooLarge { bytes, max }) } else { Ok(()) }
}

/// Entries after a merge in which `None` removes.
fn merged<T, U>(old: &BTreeMap<String, T>, change: &BTreeMap<String, Option<U>>) -> usize {
    let kept = old.keys().filter(|k| !change.contains_key(*k)).count();
    kept + change.values().filter(|v| v.is_some()).count()
}

fn name(field: &'static str, text: Option<&str>, bytes_max: usize) -> Result<(), DeviceError> {
    check_name(field, text, bytes_max).map_err(|error| match error {
        AcceptError::Invalid { field, why } => DeviceError::Invalid { field, why },
        other => invalid(field, other.to_string()),
    })
}

fn count(field: &'static str, number: usize, max: usize) -> Result<(), DeviceError> {
    if number > max { Err(invalid(field, format!("at most {max}"))) } else { Ok(()) }
}

fn invalid(field: &'static str, why: impl Into<String>) -> DeviceError {
    DeviceError::Invalid { field, why: why.into() }
}

fn refused(outcome: Option<&Outcome>) -> DeviceError {
    match outcome {
        Some(Outcome::Refused(Refusal::Exists)) => DeviceError::Exists,
        Some(Outcome::Refused(Refusal::NoSuchDevice)) => DeviceError::Missing,
        Some(Outcome::Refused(Refusal::IdempotencyMismatch)) => DeviceError::IdempotencyMismatch,
        other => StoreError::Failed(format!("unexpected outcome {other:?}")).into(),
    }
}
