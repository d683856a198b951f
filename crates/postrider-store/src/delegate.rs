//! The questions that both stores pass on to the state as they are.

/// The methods of `port::Store` that are `State`'s own; needs `self.state()` and `self.state_mut()`.
#[macro_export]
#[doc(hidden)]
macro_rules! delegate_reads {
    (@one $($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $result { self.state().$name($($arg),*) })*
    };
    () => {
        $crate::delegate_reads! { @one
            app_by_id(id: &str) -> Option<AppNo>;
            apps() -> Vec<AppView>;
            closing_app() -> Option<AppNo>;
            app(app: AppNo) -> Option<AppView>;
            key(hash: &[u8; 32]) -> Option<(Option<AppNo>, StoredKey)>;
            keys(app: Option<AppNo>) -> Vec<StoredKey>;
            device_by_id(app: AppNo, id: &str) -> Option<DeviceRef>;
            device_ids(app: AppNo, devices: &[DeviceNo]) -> Vec<Option<String>>;
            sign_in(at: DeviceRef) -> Option<SignIn>;
            is_registered(at: DeviceRef) -> bool;
            has_secret(at: DeviceRef) -> Option<bool>;
            devices_seen(app: AppNo, filter: &DeviceFilter, after: Option<DeviceNo>, look: usize) -> (Vec<(DeviceNo, UnixMillis)>, Option<DeviceNo>);
            all_devices(app: AppNo) -> DeviceSet;
            own_devices(app: AppNo) -> OwnDevices;
            is_seen_due(at: DeviceRef, now: UnixMillis) -> bool;
            devices_with_alias(app: AppNo, alias: &str) -> DeviceSet;
            devices_with_tag(app: AppNo, tag: &str) -> DeviceSet;
            devices_on(app: AppNo, platform: Platform) -> DeviceSet;
            sessions() -> Vec<(DeviceRef, String, StoredSession, Vec<StoredSubscription>)>;
            shared_entries(at: DeviceRef) -> Vec<SharedEntry>;
            members_away(at: DeviceRef, share: &str, max: usize) -> Vec<DeviceRef>;
            retained(app: AppNo, filter: &str, max: usize, now: UnixMillis) -> Vec<Retained>;
            retained_count(app: AppNo) -> usize;
            retained_bytes(app: AppNo) -> u64;
            request_of(app: AppNo, key: u128) -> Option<u128>;
            live_broadcasts(app: AppNo) -> usize;
            kept(app: AppNo) -> (u64, u64);
            hears_peers(at: DeviceRef) -> bool;
            knows_message(app: AppNo, id: MessageId) -> bool;
            open_deliveries(at: DeviceRef, seqs: &[Seq]) -> Vec<Seq>;
            next_expiry() -> Option<UnixMillis>;
            job(no: JobNo) -> Option<JobView>;
            job_named(name: &JobName) -> Option<JobView>;
            jobs(filter: JobFilter, after: Option<JobNo>, look: usize) -> (Vec<JobView>, Option<JobNo>);
            job_stats() -> Vec<JobStats>;
            last_time() -> UnixMillis;
            webhook(app: AppNo, id: &str) -> Option<Webhook>;
            webhooks(app: AppNo) -> Vec<Webhook>;
            webhook_ids() -> Vec<(AppNo, String)>;
        }
    };
    // Those that a store may have to add something to, or to answer in slices.
    (views) => {
        $crate::delegate_reads! { @one
            device(at: DeviceRef) -> Option<DeviceView>;
            devices(app: AppNo, filter: &DeviceFilter, after: Option<DeviceNo>, max: usize) -> Vec<DeviceView>;
            message(app: AppNo, id: MessageId) -> Option<MessageView>;
            messages(app: AppNo, before: Option<MessageId>, max: usize) -> Vec<MessageView>;
            deliveries(app: AppNo, id: MessageId, step: Option<Step>, after: Option<DeviceNo>, max: usize) -> Vec<DeliveryView>;
            delivery(app: AppNo, id: MessageId, device: DeviceNo) -> Option<DeliveryView>;
            audit() -> Audit;
        }
    };
}
