//! Tells workers of new receipts of their app, and from where on they are: a worker that has read
//! everything need not look through what came for other apps since.

use super::lock;
use postrider_core::id::AppNo;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// All of them.
pub struct Bells(Mutex<Inner>);

struct Inner {
    latest: u64,
    by_app: HashMap<AppNo, Vec<Arc<Bell>>>,
}

/// That of one worker.
#[derive(Default)]
pub struct Bell {
    rung: Notify,
    /// Behind which position there may be receipts of the app that the worker was not told of yet.
    news_behind: Mutex<Option<u64>>,
}

impl Bell {
    pub fn ring(&self) {
        self.rung.notify_one();
    }

    /// Until it rings, or has rung since the last time.
    pub async fn heard(&self) {
        self.rung.notified().await;
    }

    /// Behind which position there is news, once.
    pub fn take_news(&self) -> Option<u64> {
        lock(&self.news_behind).take()
    }
}

impl Bells {
    pub fn starting_at(latest: u64) -> Bells {
        Bells(Mutex::new(Inner { latest, by_app: HashMap::new() }))
    }

    pub fn add(&self, app: AppNo) -> Arc<Bell> {
        let bell = Arc::new(Bell::default());
        lock(&self.0).by_app.entry(app).or_default().push(bell.clone());
        bell
    }

    pub fn remove(&self, app: AppNo, bell: &Arc<Bell>) {
        let mut inner = lock(&self.0);
        if let Some(bells) = inner.by_app.get_mut(&app) {
            bells.retain(|other| !Arc::ptr_eq(other, bell));
            if bells.is_empty() {
                inner.by_app.remove(&app);
            }
        }
    }

    pub fn ring(&self, app: AppNo) {
        lock(&self.0).by_app.get(&app).into_iter().flatten().for_each(|bell| bell.ring());
    }

    /// There are receipts up to `position` now, new ones of these apps.
    pub fn told(&self, position: u64, apps: &BTreeSet<AppNo>) {
        let mut inner = lock(&self.0);
        let before = inner.latest;
        inner.latest = before.max(position);
        if inner.by_app.is_empty() {
            return;
        }
        for bell in apps.iter().filter_map(|app| inner.by_app.get(app)).flatten() {
            let mut behind = lock(&bell.news_behind);
            *behind = Some(behind.map_or(before, |behind| behind.min(before)));
            bell.ring();
        }
    }

    /// Up to where there are no receipts that the worker was not told of.
    pub fn quiet_up_to(&self, bell: &Bell) -> Option<u64> {
        let inner = lock(&self.0);
        lock(&bell.news_behind).is_none().then_some(inner.latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_of_news_of_its_app_and_from_where_on_they_are() {
        let bells = Bells::starting_at(10);
        let (one, two) = (bells.add(AppNo(1)), bells.add(AppNo(2)));
        bells.told(20, &[AppNo(1)].into());
        bells.told(30, &[AppNo(2), AppNo(9)].into());
        bells.told(40, &[AppNo(1)].into());
        assert_eq!(bells.quiet_up_to(&one), None);
        assert_eq!((one.take_news(), two.take_news()), (Some(10), Some(20)));
        assert_eq!((one.take_news(), bells.quiet_up_to(&one)), (None, Some(40)));
        bells.told(50, &[].into());
        assert_eq!(bells.quiet_up_to(&one), Some(50));
        bells.remove(AppNo(1), &one);
        bells.told(60, &[AppNo(1)].into());
        assert_eq!(one.take_news(), None);
    }
}
