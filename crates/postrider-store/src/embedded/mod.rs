//! The embedded store: a folder of append-only files, a state machine in memory, one thread that writes.
//!
//! Read in this order: `record` (the bytes), `replay` and `recover` (from bytes to a state), `queue` and `writer` (how a
//! command gets in), `checkpoint` (how old journal goes), `events` (the receipt stream), `space` (the full disk),
//! `upgrade` (folders of earlier releases).

mod checkpoint;
pub mod config;
pub mod events;
pub mod folder;
pub mod history;
mod notes;
mod queue;
pub mod record;
pub mod recover;
pub mod replay;
mod space;
pub mod stepped;
mod store;
pub mod upgrade;
mod writer;

use crate::files::{Files, is_full};
use crate::planted;
use crate::watch::EventWatch;
use config::{EmbeddedConfig, FailedBy, SyncMode};
use events::{EventLog, Retention, Waiting};
use folder::{EMPTY_LEN, Folder, Identity, LOCK, Name};
use history::{Found, History, Start};
use notes::Notes;
use postrider_core::port::StoreError;
use postrider_core::state::Live;
use queue::{Errand, Item, Queue};
use record::Written;
use recover::{Recovered, Repair};
use space::SpaceWatch;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data folder {0} is in use by another process")]
    Locked(PathBuf),
    #[error("there is no folder {0}")]
    NoSuchFolder(PathBuf),
    #[error("{0} is no data folder: nothing of postrider is in it")]
    NoDataFolder(PathBuf),
    #[error("the server of the data folder {0} is running: stop it first")]
    Running(PathBuf),
    #[error(
        "the data folder {0} can be read by others than its owner: chmod 700, or allow it in the configuration"
    )]
    OpenToOthers(PathBuf),
    #[error("{file} has the format {version}, newer than this program knows: use the newer program")]
    Newer { file: String, version: u32 },
    #[error(
        "{file} was written by the rules {rules} of release {release}, newer than this program knows: \
         use the newer program"
    )]
    NewerRules { file: String, rules: u32, release: String },
    #[error(
        "{file} has commands that were executed by the rules {rules}, which this program does not know \
         any more: start release {release} on this folder once, which writes a checkpoint, and stop it; \
         then start this program. Nothing was changed"
    )]
    DroppedRules { file: String, rules: u32, release: String },
    #[error(
        "the upgrade of the data folder needs {needed} bytes of free space, and {free} are free; \
         nothing was changed"
    )]
    NoRoomToUpgrade { needed: u64, free: u64 },
    #[error(
        "the data folder could not be upgraded: {0}; what was written was taken away, \
         the program that wrote the folder can go on with it"
    )]
    NotUpgraded(io::Error),
    #[error("{0} belongs to another store")]
    Foreign(String),
    #[error("damaged beyond recovery: {0}; nothing was changed, restore a backup")]
    Damaged(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl OpenError {
    pub(crate) fn io(what: &str, source: io::Error) -> OpenError {
        OpenError::Io { what: what.to_owned(), source }
    }
}

/// Something damaged or missing in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    pub offset: u64,
    pub len: u64,
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}+{}: {}", self.file, self.offset, self.len, self.what)
    }
}

#[derive(Default)]
struct Stats {
    commands: AtomicU64,
    commits: AtomicU64,
    bytes_written: AtomicU64,
    segment_bytes: AtomicU64,
    commit_micros: AtomicU64,
    sync_micros: AtomicU64,
    checkpoints: AtomicU64,
    quarantined: AtomicU64,
}

/// What the threads of one store share.
struct Shared {
    config: EmbeddedConfig,
    folder: Folder,
    state: RwLock<Live>,
    notes: Notes,
    /// Number of the last command on stable storage.
    durable: AtomicU64,
    events: EventLog,
    space: SpaceWatch,
    queue: Queue,
    failed: OnceLock<String>,
    stats: Stats,
    /// Held while files change their place in the store: a checkpoint coming into force, a group being undone.
    maintenance: Mutex<()>,
    checkpointing: Mutex<()>,
    closing: AtomicBool,
    /// Rung when a segment was closed, and at close.
    bell: (Mutex<bool>, Condvar),
}

impl Shared {
    fn has_failed(&self) -> bool {
        self.failed.get().is_some()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The store is over, for this reason; the first one counts.
    fn fail(&self, by: FailedBy, why: &str) {
        // First the reason: the writer ends when its queue is closed, and that is no failure of its own.
        let is_first = self.failed.set(why.to_owned()).is_ok();
        self.queue.close(StoreError::Failed(why.to_owned()));
        if is_first {
            tracing::error!(why, "the store has failed; nothing more is stored");
            if let Some(hook) = &self.config.on_fatal {
                hook(by, why);
            }
        }
    }

    /// Tells everybody who still waits for a store that has failed.
    fn abandon_queue(&self) {
        let why = self.failed.get().cloned().unwrap_or_default();
        for item in self.queue.drain() {
            let error = StoreError::Failed(why.clone());
            match item {
                Item::Batch(batch) => batch.tell(Err(error)),
                Item::Errand(Errand::Roll(tell) | Errand::Checkpoint(tell)) => drop(tell.send(Err(error))),
            }
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, Live> {
        self.state.read().unwrap_or_else(|_| self.half_changed())
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.state.write().unwrap_or_else(|_| self.half_changed())
    }

    /// A panic while the state was being changed: what it says now may be wrong, so nobody reads it any more. Whoever
    /// waits in the queue is told by the writer's thread, since the caller may hold locks of its own.
    fn half_changed(&self) -> ! {
        self.fail(FailedBy::Panic, "a panic left the state half changed");
        std::panic::resume_unwind(Box::new("the state was left half changed by a panic"))
    }

    fn segment_closed(&self) {
        *self.bell.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.1.notify_all();
    }

    fn note_problems(&self, problems: &[Problem]) {
        for problem in problems {
            tracing::error!(%problem, "damaged data is left out");
        }
        self.stats.quarantined.fetch_add(problems.len() as u64, Ordering::Relaxed);
    }

    /// Enough was closed since the last checkpoint, or enough time passed.
    fn checkpoint_is_due(&self, last: Instant) -> bool {
        let inventory = self.folder.inventory();
        let (base, size) = inventory.checkpoints.last().map_or((0, 0), |last| (last.seq, last.bytes));
        let closed: u64 = inventory.segments.iter().filter(|s| s.last > base).map(|s| s.len).sum();
        let late = last.elapsed() >= self.config.checkpoint_every;
        closed > self.config.checkpoint_bytes.max(size) || (late && closed > 0)
    }
}

/// See the module.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    history: History,
    problems: Vec<Problem>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: Box<dyn Send + Sync>,
}

impl EmbeddedStore {
    /// Opens the folder, or makes it, and recovers what is in it.
    pub fn open(config: EmbeddedConfig, files: Arc<dyn Files>) -> Result<EmbeddedStore, OpenError> {
        let (store, writer) = Self::recover(config, files)?;
        let shared = &store.shared;
        let mut threads = vec![spawn(shared, "store-writer", move |_| writer.run())?];
        threads.push(spawn(shared, "store-checkpoint", checkpointer)?);
        *store.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(store)
    }

    /// The store without its threads.
    fn recover(
        config: EmbeddedConfig,
        files: Arc<dyn Files>,
    ) -> Result<(EmbeddedStore, writer::Writer), OpenError> {
        let lock = take_folder(&config, &*files)?;
        let identity = identity(&config, &*files)?;
        let folder = Folder::new(config.dir.clone(), files, &identity, config.rules);
        let retention = Retention {
            segment_bytes: config.events_segment_bytes,
            bytes_max: config.events_bytes_max,
            age_max_ms: config.events_age_max.as_millis() as u64,
        };
        sweep_unfinished(&folder).map_err(|error| OpenError::io("the data folder", error))?;
        let events = EventLog::open(&folder, retention).map_err(|error| OpenError::io("receipts", error))?;
        let before = upgrade::prepare(&folder, &events)?;
        let recovered = recover_state(&folder, &events, before.is_some());
        if let (Err(_), Some(before)) = (&recovered, &before) {
            before.restore(&folder, &events);
        }
        let (mut state, problems) = recovered?;
        let start = Start { id: new_id(&*folder.files)?, seq: state.seq(), event: state.last_event() };
        // Behind damage, positions may now name other commands and receipts than before: no cursor is good any more.
        let history = begin_history(&folder, &identity, start, problems.is_empty())?;
        state.reuse_seq();
        if problems.is_empty() {
            tidy(&folder).map_err(|error| OpenError::io("the data folder", error))?;
        }
        Self::start(config, folder, (state, events), history, problems, lock)
    }

    fn start(
        config: EmbeddedConfig,
        folder: Folder,
        (state, events): (Live, EventLog),
        history: History,
        problems: Vec<Problem>,
        lock: Box<dyn Send + Sync>,
    ) -> Result<(EmbeddedStore, writer::Writer), OpenError> {
        if config.sync == SyncMode::Relaxed {
            tracing::warn!("sync is relaxed: what is acknowledged may be lost when the machine fails");
        }
        let seq = state.seq();
        let space = SpaceWatch::new(&config, &folder);
        space.lay_by(&folder);
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue_commands_max, config.queue_bytes_max),
            space,
            folder,
            state: RwLock::new(state),
            notes: Notes::default(),
            durable: AtomicU64::new(seq),
            events,
            failed: OnceLock::new(),
            stats: Stats::default(),
            maintenance: Mutex::new(()),
            checkpointing: Mutex::new(()),
            closing: AtomicBool::new(false),
            bell: Default::default(),
            config,
        });
        shared.note_problems(&problems);
        let writer = match writer::Writer::new(shared.clone(), seq + 1) {
            // The reserve is for acknowledgements, and they need a server.
            Err(error) if is_full(&error) && shared.space.give_up_reserve(&shared.folder) => {
                writer::Writer::new(shared.clone(), seq + 1)
            }
            made => made,
        };
        let writer = writer.map_err(|error| OpenError::io("a journal segment", error))?;
        Ok((EmbeddedStore { shared, history, problems, threads: Mutex::default(), _lock: lock }, writer))
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.shared.folder
    }

    /// What was damaged or missing when the store was opened.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// To be told of new receipts.
    pub fn watch_events(&self) -> Arc<EventWatch> {
        self.shared.events.watch.clone()
    }

    /// Closes the current segment and makes a checkpoint, now and on this thread. False if there is nothing new.
    pub fn checkpoint_now(&self) -> Result<bool, StoreError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.shared.queue.push_errand(Errand::Roll(tell))?;
        told.recv().map_err(|_| StoreError::Closed)??;
        make_checkpoint(&self.shared)
    }

    /// Stores everything that waits, then ends. With a checkpoint where it is cheap, so that the next start is quick.
    pub fn close(&self) {
        // First: a writer that ends while the store is not closing has failed.
        self.shared.closing.store(true, Ordering::Release);
        self.shared.queue.close(StoreError::Closed);
        self.shared.segment_closed();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        for thread in threads {
            // A panic was told where it happened.
            let _ = thread.join();
        }
        if !self.shared.has_failed() && self.close_checkpoint_is_cheap() {
            // Only for speed: the journal has it all.
            if let Err(error) = checkpoint::of_live_state(&self.shared) {
                tracing::warn!(%error, "no checkpoint at close");
            }
        }
    }

    fn close_checkpoint_is_cheap(&self) -> bool {
        let inventory = self.shared.folder.inventory();
        let (base, size) = inventory.checkpoints.last().map_or((0, 0), |last| (last.seq, last.bytes));
        let tail: u64 = inventory.segments.iter().filter(|s| s.last > base).map(|s| s.len).sum();
        let max = self.shared.config.close_checkpoint_bytes;
        tail > max / 64 && tail + size <= max && !self.shared.space.is_low()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// A thread of the store. One that ends before the store is closed takes the store with it: without its writer nobody
/// would ever be answered, without its checkpointer the journal would grow for ever.
fn spawn(
    shared: &Arc<Shared>,
    name: &'static str,
    work: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let shared = shared.clone();
    let supervised = move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&shared)));
        if ended.is_err() {
            shared.fail(FailedBy::Panic, &format!("the thread {name} panicked"));
        } else if !shared.is_closing() && !shared.has_failed() {
            shared.fail(FailedBy::Panic, &format!("the thread {name} ended"));
        }
        if shared.has_failed() {
            shared.abandon_queue();
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(supervised)
        .map_err(|error| OpenError::io("a thread", error))
}

fn take_folder(config: &EmbeddedConfig, files: &dyn Files) -> Result<Box<dyn Send + Sync>, OpenError> {
    let dir = &config.dir;
    let io = |error| OpenError::io(&format!("the data folder {}", dir.display()), error);
    files.create_dir(dir).map_err(io)?;
    let lock = files.lock(&dir.join(LOCK)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked(dir.clone()),
        _ => OpenError::io(&format!("the lock of the data folder {}", dir.display()), error),
    })?;
    if !config.allow_open_to_others && files.is_open_to_others(dir).map_err(io)? {
        // A folder that somebody just made for us is shut; one that has been open with data in it is a mistake to tell.
        let names = files.list(dir).map_err(io)?;
        if names.iter().any(|name| name != LOCK) {
            return Err(OpenError::OpenToOthers(dir.clone()));
        }
        files.shut_to_others(dir).map_err(io)?;
    }
    Ok(lock)
}

fn new_id(files: &dyn Files) -> Result<u64, OpenError> {
    files.entropy().map_err(|error| OpenError::io("chance", error))
}

/// Reads the store's identity, or gives an empty folder one.
fn identity(config: &EmbeddedConfig, files: &dyn Files) -> Result<Identity, OpenError> {
    if let Some(identity) = Identity::read(&config.dir, files)? {
        return Ok(identity);
    }
    let names = files.list(&config.dir).map_err(|error| OpenError::io("the data folder", error))?;
    let has_data = |name: &String| !matches!(Name::parse(name), Name::Other | Name::Unfinished);
    if names.iter().any(has_data) {
        return Err(OpenError::Damaged("the STORE files are gone".to_owned()));
    }
    let identity = Identity { store_id: new_id(files)?, epoch: new_id(files)?, written: Written::NOW };
    identity.write(&config.dir, files).map_err(|error| OpenError::io("STORE", error))?;
    Ok(identity)
}

/// The state, with all receipts that belong to it, ready for commands by the present rules.
fn recover_state(
    folder: &Folder,
    events: &EventLog,
    upgrades: bool,
) -> Result<(Live, Vec<Problem>), OpenError> {
    let began = Instant::now();
    let mut sink = |rows: Vec<_>| match events.append(folder, &rows) {
        Waiting::TooMuch => Err(io::Error::other("they cannot be written, and too many wait")),
        Waiting::Little => Ok(()),
    };
    let Recovered { state, volatile, problems, inventory, clean, relaxed, records, rules } =
        recover::recover(folder, Repair::Yes, &mut sink)?;
    let mut live = Live::new(state, volatile);
    tracing::info!(seq = live.seq(), records, millis = began.elapsed().as_millis(), "recovered");
    if relaxed && !clean {
        tracing::warn!("it was written with sync relaxed and not closed in order: its end may be lost");
    }
    events.rewind(folder, live.last_event()).map_err(|error| OpenError::io("receipts", error))?;
    *folder.inventory() = inventory;
    if upgrades {
        upgrade::write(folder, events, &mut live)?;
        tracing::info!(from = rules, to = folder.known.present, "the data folder is upgraded");
    }
    live.parts_mut().0.follow(folder.known.present);
    Ok((live, problems))
}

/// Adds this start to those that the folder knows; folders from before that have one epoch.
fn begin_history(
    folder: &Folder,
    identity: &Identity,
    start: Start,
    knows_earlier: bool,
) -> Result<History, OpenError> {
    let mut history = match History::read(&folder.dir, &*folder.files)? {
        Found::List(history) if knows_earlier => history,
        Found::Nothing if knows_earlier => History::beginning_with(identity.epoch),
        _ => History::default(),
    };
    history.begin(start);
    if let Err(error) = history.write(&folder.dir, &*folder.files, folder.store_id) {
        // Then the next start knows nothing of this one, and its clients begin anew.
        tracing::warn!(%error, "this start could not be noted: after the next one, clients read their inboxes anew");
    }
    Ok(history)
}

/// What was being made when the process ended, under names that are not in force.
fn sweep_unfinished(folder: &Folder) -> io::Result<()> {
    for name in folder.files.list(&folder.dir)? {
        if Name::parse(&name) == Name::Unfinished {
            folder.remove(&name)?;
        }
    }
    Ok(())
}

/// Only where nothing is damaged: what is not needed any more, and a last segment in which nothing was ever written.
fn tidy(folder: &Folder) -> io::Result<()> {
    let empty = folder.inventory().segments.pop_if(|last| last.len == EMPTY_LEN);
    if let Some(empty) = empty {
        folder.remove(&empty.name())?;
    }
    folder.sweep()
}

/// Waits for segments to be closed.
fn checkpointer(shared: &Shared) {
    let mut last = Instant::now();
    // What earlier lives closed is not older than need be either: a store that is often restarted would never get to it.
    shared.segment_closed();
    loop {
        {
            let mut rung = shared.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*rung && !shared.is_closing() && last.elapsed() < shared.config.checkpoint_every {
                let wait = shared.config.checkpoint_every.saturating_sub(last.elapsed());
                rung = shared
                    .bell
                    .1
                    .wait_timeout(rung, wait.max(Duration::from_millis(1)))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            *rung = false;
        }
        if shared.is_closing() || shared.has_failed() {
            return;
        }
        planted::panic_in("checkpoint");
        if last.elapsed() >= shared.config.checkpoint_every {
            roll_for_age(shared);
        }
        if shared.checkpoint_is_due(last) {
            // Told and counted where it happens; the next segment brings the next try.
            let _ = make_checkpoint(shared);
            last = Instant::now();
        } else if last.elapsed() >= shared.config.checkpoint_every {
            last = Instant::now();
        }
    }
}

/// A quiet store's segment is closed too, so that what was deleted leaves the disk.
fn roll_for_age(shared: &Shared) {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    if shared.queue.push_errand(Errand::Roll(tell)).is_ok() {
        let _ = told.recv();
    }
}

fn make_checkpoint(shared: &Shared) -> Result<bool, StoreError> {
    let began = Instant::now();
    let made = match checkpoint::in_background(shared) {
        Err(checkpoint::Failure::Damaged(what)) => {
            tracing::error!(what, "the journal on disk is damaged: the checkpoint is made of the live state");
            shared.stats.quarantined.fetch_add(1, Ordering::Relaxed);
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            shared.queue.push_errand(Errand::Checkpoint(tell))?;
            told.recv().map_err(|_| StoreError::Closed)?.map(|()| true)
        }
        Err(checkpoint::Failure::Stopped) => Err(StoreError::Closed),
        Err(error) => Err(StoreError::Failed(error.to_string())),
        Ok(made) => Ok(made),
    };
    match &made {
        Ok(true) => tracing::info!(millis = began.elapsed().as_millis(), "checkpoint"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "no checkpoint"),
    }
    made
}
