//! The receipt stream on disk: rows end to end in files named by their first position.
//!
//! Rows are appended after the commands that caused them are on stable storage, and not synced: what a crash takes is
//! made again from the journal, since positions are decided by the state. Before a segment of the journal may go, the
//! stream is synced. Readers use the files without the lock; only the last rows of a page cost more than a copy.
//!
//! So a file of receipts that cannot be written is no reason to end: rows wait in memory, are tried again with each
//! group, and while too many wait the store takes nothing. After a sync that failed nothing can be said of what the
//! file holds: then the stream is not synced any more, the journal stays, and the next start makes the rows again.

use super::folder::{Folder, Name};
use super::record::{self, FRAME_LEN, HEADER_LEN, Header};
use crate::files::File;
use crate::watch::EventWatch;
use postrider_core::id::{AppNo, UnixMillis};
use postrider_core::model::ReceiptEvent;
use postrider_core::port::{EventPage, StoreError};
use postrider_core::stored;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows between two entries of an index.
const INDEX_EVERY: u64 = 512;
/// Rows that a page looks at before it is given out with what it has, so that a quiet app among busy ones does not
/// make one page read everything.
const SCAN_MAX: usize = 50_000;
/// Bytes read at once.
const WINDOW: usize = 64 * 1024;
/// Rows that wait while they cannot be written; beyond it the store takes nothing.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How much could not be written so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Waiting {
    /// Nothing, or little.
    Little,
    /// Nothing more may come.
    TooMuch,
}

/// How long rows are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub segment_bytes: u64,
    pub bytes_max: u64,
    pub age_max_ms: u64,
}

/// See the module.
pub struct EventLog {
    inner: Mutex<Inner>,
    pub watch: Arc<EventWatch>,
    retention: Retention,
}

#[derive(Default)]
struct Inner {
    segments: VecDeque<EventSegment>,
    /// Rows not written yet: one group's, more while the disk is full.
    waiting: Rows,
    unsynced: bool,
    /// A sync failed: what the newest file holds is not certain.
    is_doubtful: bool,
    /// Why rows wait.
    trouble: Option<String>,
}

#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    /// Position and place in `bytes` of rows that go into the index.
    index: Vec<(u64, u64)>,
    first: u64,
    last: u64,
    latest_at: UnixMillis,
}

#[derive(Clone)]
struct EventSegment {
    file: Arc<dyn File>,
    first: u64,
    last: u64,
    len: u64,
    /// Time of its newest row, where known.
    latest_at: UnixMillis,
    /// Sparse: positions and places. Made when first read, for files of an earlier life.
    index: Option<Arc<Vec<(u64, u64)>>>,
}

impl EventLog {
    /// Opens what there is; rows behind damage in the newest file are cut off, they come again from the journal.
    pub fn open(folder: &Folder, retention: Retention) -> io::Result<EventLog> {
        let mut firsts: Vec<u64> = Vec::new();
        for name in folder.files.list(&folder.dir)? {
            if let Name::Events { first } = Name::parse(&name) {
                firsts.push(first);
            }
        }
        firsts.sort_unstable();
        let mut segments = VecDeque::new();
        for (i, first) in firsts.iter().enumerate() {
            let name = Name::Events { first: *first }.text();
            let file = folder.files.open(&folder.path(&name), true)?;
            let len = file.len()?;
            let mut segment = EventSegment {
                file,
                first: *first,
                last: first.saturating_sub(1),
                len,
                latest_at: 0,
                index: None,
            };
            match firsts.get(i + 1) {
                Some(next) => segment.last = next.saturating_sub(1),
                None => {
                    if !segment.take_stock(folder.store_id)? {
                        folder.remove(&name)?;
                        continue;
                    }
                    segment.file.set_len(segment.len)?;
                }
            }
            segments.push_back(segment);
        }
        let watch = Arc::new(EventWatch::default());
        watch.start_at(segments.back().map_or(0, |segment: &EventSegment| segment.last));
        let inner = Inner { segments, ..Inner::default() };
        Ok(EventLog { inner: Mutex::new(inner), watch, retention })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Position of the newest row.
    pub fn last(&self) -> u64 {
        self.watch.latest()
    }

    pub fn disk_bytes(&self) -> u64 {
        self.inner().segments.iter().map(|segment| segment.len).sum()
    }

    /// Drops the rows above `position`: they tell of commands that are not in the journal. True if there were any.
    pub fn rewind(&self, folder: &Folder, position: u64) -> io::Result<bool> {
        let mut inner = self.inner();
        let mut rewound = false;
        while let Some(segment) = inner.segments.back_mut().filter(|segment| segment.last > position) {
            rewound = true;
            if segment.first > position {
                folder.remove(&Name::Events { first: segment.first }.text())?;
                inner.segments.pop_back();
                continue;
            }
            let cut = segment.place_behind(position)?;
            segment.file.set_len(cut)?;
            (segment.last, segment.len, segment.index) = (position, cut, None);
        }
        self.watch.start_at(inner.segments.back().map_or(0, |segment| segment.last));
        Ok(rewound)
    }

    /// Appends rows and tells those who wait for them. What cannot be written waits for the next time.
    pub fn append(&self, folder: &Folder, events: &[ReceiptEvent]) -> Waiting {
        self.watch.note(events);
        let mut inner = self.inner();
        let waiting_from = if inner.waiting.bytes.is_empty() { 0 } else { inner.waiting.last };
        let from = self.last().max(waiting_from);
        let mut pushed = Ok(());
        for event in events.iter().filter(|event| event.position > from) {
            pushed = pushed.and_then(|()| inner.waiting.push(event));
        }
        let written = pushed.and_then(|()| inner.write_waiting(folder, self.retention));
        inner.note(written);
        let waits = inner.waiting.bytes.len();
        let last = inner.segments.back().map_or(0, |segment| segment.last);
        drop(inner);
        // While rows wait, those before them may be new all the same.
        self.watch.tell(last);
        if waits < WAITING_BYTES_MAX { Waiting::Little } else { Waiting::TooMuch }
    }

    /// Too much waits, also after one more try: nothing may be added now.
    pub fn is_overdue(&self, folder: &Folder) -> bool {
        let waits = self.inner().waiting.bytes.len();
        waits >= WAITING_BYTES_MAX && self.append(folder, &[]) == Waiting::TooMuch
    }

    /// Why receipts are not written, where that is so. Tries once more before it says so, for else a quiet store would go
    /// on saying it after the cause has gone.
    pub fn trouble(&self, folder: &Folder) -> Option<String> {
        if !self.inner().waiting.bytes.is_empty() {
            _ = self.append(folder, &[]);
        }
        self.inner().trouble.clone()
    }

    /// Bytes of rows that wait to be written.
    pub fn waiting_bytes(&self) -> u64 {
        self.inner().waiting.bytes.len() as u64
    }

    /// Makes all rows lasting; after that the journal is not needed for them. Fails while rows wait.
    pub fn sync(&self, folder: &Folder) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.waiting.bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let synced = inner.sync_newest(folder);
        if synced.is_err() {
            inner.note(synced);
            return Err(io::Error::other("receipts cannot be synced"));
        }
        Ok(())
    }

    /// Rows of an app with a position above `after`.
    pub fn page(&self, app: AppNo, after: u64, max: usize) -> Result<EventPage, StoreError> {
        let mut page = EventPage { events: Vec::new(), next: after, missed: false };
        let mut looked = 0;
        while page.events.len() < max && looked < SCAN_MAX {
            let Some(segment) = self.segment_for(page.next).map_err(failed)? else { break };
            if segment.first > page.next + 1 {
                page.missed = true;
                page.next = segment.first - 1;
            }
            let whole = segment.rows(page.next, |event| {
                (page.next, looked) = (event.position, looked + 1);
                if event.app == app {
                    page.events.push(event);
                }
                page.events.len() < max && looked < SCAN_MAX
            });
            match whole {
                Ok(true) => {}
                // Damage: the rest of this file cannot be read.
                Ok(false) => {
                    page.missed = true;
                    page.next = segment.last;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(page)
    }

    /// Behind which position the rows begin that happened at `at` or later. The clock never goes
    /// back, so rows are in order of time.
    pub fn before(&self, at: UnixMillis) -> Result<u64, StoreError> {
        let segments: Vec<EventSegment> = self.inner().segments.iter().cloned().collect();
        let is_before = |segment: &EventSegment| {
            let mut first = None;
            let read = segment.scan(HEADER_LEN as u64, |_, event, _| {
                first = Some(event.at);
                false
            });
            read.map(|()| first.is_some_and(|first| first < at))
        };
        // The last file whose first row is older: there the border lies.
        let (mut low, mut high) = (0, segments.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match is_before(&segments[middle]).map_err(failed)? {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let oldest = segments.first().map_or(0, |segment| segment.first.saturating_sub(1));
        let Some(segment) = low.checked_sub(1).and_then(|i| segments.get(i)) else { return Ok(oldest) };
        segment.place_in_time(at).map_err(failed)
    }

    /// The file with the first row above `after`, indexed.
    fn segment_for(&self, after: u64) -> io::Result<Option<EventSegment>> {
        let segment = {
            let inner = self.inner();
            let place = inner.segments.partition_point(|segment| segment.last <= after);
            let Some(segment) = inner.segments.get(place) else { return Ok(None) };
            segment.clone()
        };
        if segment.index.is_some() {
            return Ok(Some(segment));
        }
        // Outside the lock: it reads the whole file.
        let index = Arc::new(segment.make_index()?);
        if let Some(kept) = self.inner().segments.iter_mut().find(|kept| kept.first == segment.first) {
            kept.index.get_or_insert(index.clone());
        }
        Ok(Some(EventSegment { index: Some(index), ..segment }))
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Failed(format!("reading receipts: {error}"))
}

impl Rows {
    fn push(&mut self, event: &ReceiptEvent) -> io::Result<()> {
        if self.bytes.is_empty() {
            (self.first, self.index) = (event.position, Vec::new());
        }
        if event.position.is_multiple_of(INDEX_EVERY) {
            self.index.push((event.position, self.bytes.len() as u64));
        }
        (self.last, self.latest_at) = (event.position, self.latest_at.max(event.at));
        let mut row = Vec::with_capacity(64);
        stored::put_event(event, &mut row);
        record::append_frame(&row, &mut self.bytes).map_err(io::Error::other)
    }
}

impl Inner {
    /// Keeps why rows wait, and tells when that begins and ends.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) if self.is_doubtful => {}
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("receipts can be written again");
                }
            }
            Err(error) => {
                let why = format!("receipts cannot be written: {error}");
                if self.trouble.is_none() {
                    tracing::error!(%error, "receipts cannot be written: they wait, and the journal is kept for them");
                }
                self.trouble = Some(why);
            }
        }
    }

    /// A sync that fails is not believed when it succeeds later: what it was to write may be gone.
    fn sync_newest(&mut self, folder: &Folder) -> io::Result<()> {
        if self.is_doubtful {
            return Err(io::Error::other("an earlier sync failed; the next start makes them again"));
        }
        if self.unsynced
            && let Some(segment) = self.segments.back()
        {
            let synced = segment.file.sync();
            self.is_doubtful = synced.is_err();
            synced?;
            folder.files.sync_dir(&folder.dir)?;
        }
        self.unsynced = false;
        Ok(())
    }

    fn write_waiting(&mut self, folder: &Folder, retention: Retention) -> io::Result<()> {
        if self.waiting.bytes.is_empty() {
            return Ok(());
        }
        let fits = self.segments.back().is_some_and(|segment| {
            // All that is doubtful has to be in the newest file: the next start looks through that one only.
            let has_room = segment.len < retention.segment_bytes || self.is_doubtful;
            segment.last + 1 == self.waiting.first && has_room
        });
        if !fits {
            self.start_segment(folder)?;
            self.retire(folder, retention);
        }
        let waiting = &mut self.waiting;
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        segment.file.write_all_at(&waiting.bytes, segment.len)?;
        if let Some(index) = &mut segment.index {
            let index = Arc::make_mut(index);
            index.extend(waiting.index.iter().map(|(position, at)| (*position, at + segment.len)));
        }
        segment.len += waiting.bytes.len() as u64;
        (segment.last, segment.latest_at) = (waiting.last, segment.latest_at.max(waiting.latest_at));
        waiting.bytes.clear();
        if waiting.bytes.capacity() > 4 * 1024 * 1024 {
            waiting.bytes = Vec::new();
        }
        self.unsynced = true;
        Ok(())
    }

    fn start_segment(&mut self, folder: &Folder) -> io::Result<()> {
        self.sync_newest(folder)?;
        let first = self.waiting.first;
        let last = self.segments.back().map_or(0, |segment| segment.last);
        if last + 1 < first {
            tracing::error!(last, first, "receipts between these positions are gone");
        }
        let path = folder.path(&Name::Events { first }.text());
        let file = match folder.files.create(&path) {
            // Left by a try whose header could not be written, and which could not be removed then.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                folder.files.remove(&path)?;
                folder.files.create(&path)?
            }
            created => created?,
        };
        let header = folder.header(record::EVENTS, 0, first).encode();
        if let Err(error) = file.write_all_at(&header, 0) {
            let _ = folder.files.remove(&path);
            return Err(error);
        }
        let len = HEADER_LEN as u64;
        let index = Some(Arc::new(Vec::new()));
        self.segments.push_back(EventSegment {
            file,
            first,
            last: first.saturating_sub(1),
            len,
            latest_at: 0,
            index,
        });
        Ok(())
    }

    /// Deletes whole files that are too many or too old. A failure costs space only, and is tried again.
    fn retire(&mut self, folder: &Folder, retention: Retention) {
        let now = self.waiting.latest_at;
        while self.segments.len() > 1 {
            let bytes: u64 = self.segments.iter().map(|segment| segment.len).sum();
            let Some(oldest) = self.segments.front_mut() else { break };
            if oldest.latest_at == 0 {
                oldest.latest_at = oldest.find_latest();
            }
            let old = oldest.latest_at + retention.age_max_ms < now;
            if !old && bytes <= retention.bytes_max {
                break;
            }
            if let Err(error) = folder.remove(&Name::Events { first: oldest.first }.text()) {
                tracing::warn!(%error, "old receipts cannot be deleted");
                break;
            }
            self.segments.pop_front();
        }
    }
}

impl EventSegment {
    /// Reads the file through: sets what is in it. False if not even its header is good.
    fn take_stock(&mut self, store_id: u64) -> io::Result<bool> {
        let len = self.len.min(HEADER_LEN as u64) as usize;
        let mut header = vec![0; len];
        self.file.read_exact_at(&mut header, 0)?;
        match Header::decode(&header, record::EVENTS) {
            Ok(header) if header.store_id == store_id && header.first == self.first => {}
            Err(record::BadHeader::Newer(version)) => {
                return Err(io::Error::other(format!("receipts of the newer format {version}")));
            }
            _ => return Ok(false),
        }
        let (mut index, mut end, mut last, mut latest) = (Vec::new(), HEADER_LEN as u64, self.last, 0);
        self.scan(HEADER_LEN as u64, |at, event, len| {
            if event.position != last + 1 {
                return false;
            }
            if event.position.is_multiple_of(INDEX_EVERY) {
                index.push((event.position, at));
            }
            (last, latest, end) = (event.position, event.at.max(latest), at + len);
            true
        })?;
        (self.last, self.len, self.latest_at, self.index) = (last, end, latest, Some(Arc::new(index)));
        Ok(true)
    }

    fn make_index(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut index = Vec::new();
        self.scan(HEADER_LEN as u64, |at, event, _| {
            if event.position.is_multiple_of(INDEX_EVERY) {
                index.push((event.position, at));
            }
            true
        })?;
        Ok(index)
    }

    /// The last position before `at`, where the first row is older.
    fn place_in_time(&self, at: UnixMillis) -> io::Result<u64> {
        let index = match &self.index {
            Some(index) => index.clone(),
            None => Arc::new(self.make_index()?),
        };
        let (mut low, mut high) = (0, index.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let mut is_older = false;
            self.scan(index[middle].1, |_, event, _| {
                is_older = event.at < at;
                false
            })?;
            if is_older { low = middle + 1 } else { high = middle }
        }
        let from = low.checked_sub(1).map_or(HEADER_LEN as u64, |i| index[i].1);
        let mut last = self.first;
        self.scan(from, |_, event, _| {
            let is_older = event.at < at;
            if is_older {
                last = event.position;
            }
            is_older
        })?;
        Ok(last)
    }

    fn find_latest(&self) -> UnixMillis {
        let mut latest = 1;
        // What cannot be read is taken for old.
        let _ = self.scan(HEADER_LEN as u64, |_, event, _| {
            latest = latest.max(event.at);
            true
        });
        latest
    }

    /// Calls `row` with each row above `after` until it has enough. False if damage stands in the way.
    fn rows(&self, after: u64, mut row: impl FnMut(ReceiptEvent) -> bool) -> io::Result<bool> {
        let index = self.index.as_deref().map(Vec::as_slice).unwrap_or_default();
        let before = index.partition_point(|(position, _)| *position <= after + 1);
        let start = before.checked_sub(1).and_then(|i| index.get(i)).map_or(HEADER_LEN as u64, |(_, at)| *at);
        let mut enough = false;
        let mut reached = after;
        self.scan(start, |_, event, _| {
            if event.position > self.last {
                return false;
            }
            reached = reached.max(event.position);
            enough = event.position > after && !row(event);
            !enough
        })?;
        Ok(enough || reached >= self.last)
    }

    /// Where the row after `position` begins.
    fn place_behind(&self, position: u64) -> io::Result<u64> {
        let mut place = HEADER_LEN as u64;
        self.scan(place, |at, event, len| {
            let before = event.position <= position;
            if before {
                place = at + len;
            }
            before
        })?;
        Ok(place)
    }

    /// Calls `row` with place, row and length of each whole row from `at` on, until it says no or a row is damaged.
    fn scan(&self, mut at: u64, mut row: impl FnMut(u64, ReceiptEvent, u64) -> bool) -> io::Result<()> {
        let mut window: Vec<u8> = Vec::new();
        let mut start = at;
        while at < self.len {
            let in_window = (at - start) as usize;
            let rest = window.get(in_window..).unwrap_or_default();
            let whole = record::open_frame(rest)
                .and_then(|bytes| Some((stored::get_event(bytes).ok()?, bytes.len())));
            if let Some((event, len)) = whole {
                let len = (len + FRAME_LEN) as u64;
                if !row(at, event, len) {
                    return Ok(());
                }
                at += len;
                continue;
            }
            // Not whole here: read on from its beginning, unless that was done.
            let available = (self.len - at).min(WINDOW as u64) as usize;
            if in_window == 0 && window.len() >= available {
                return Ok(());
            }
            window.resize(available, 0);
            self.file.read_exact_at(&mut window, at)?;
            start = at;
        }
        Ok(())
    }
}

/// Position of the last row that is whole, without changing anything.
pub fn last_position(folder: &Folder) -> io::Result<u64> {
    let names = folder.files.list(&folder.dir)?;
    let first = names.iter().filter_map(|name| match Name::parse(name) {
        Name::Events { first } => Some(first),
        _ => None,
    });
    let Some(first) = first.max() else { return Ok(0) };
    let (rows, _) = verify(&folder.read(&Name::Events { first }.text())?);
    Ok((first + rows).saturating_sub(1))
}

/// Verifies a file of receipts: how many rows are good, and where the first bad one is.
pub fn verify(bytes: &[u8]) -> (u64, Option<usize>) {
    let (mut at, mut rows) = (HEADER_LEN.min(bytes.len()), 0);
    while at < bytes.len() {
        let Some(row) = record::open_frame(&bytes[at..]) else { return (rows, Some(at)) };
        at += row.len() + FRAME_LEN;
        rows += 1;
    }
    (rows, None)
}
