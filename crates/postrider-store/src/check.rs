//! Verifying a data folder without changing anything: every record of every file, and the state that comes out of them.

use crate::embedded::OpenError;
use crate::embedded::Problem;
use crate::embedded::events;
use crate::embedded::folder::{Folder, Identity, LOCK, Name};
use crate::embedded::history::{Found, HISTORY, History};
use crate::embedded::record::{self, FRAME_LEN, HEADER_LEN, Header};
use crate::embedded::recover::{self, Repair, Unusable};
use crate::embedded::upgrade::KnownRules;
use crate::files::Files;
use postrider_core::id::Seq;
use postrider_core::port::{Audit, StoreError};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What was found in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    pub name: String,
    pub bytes: u64,
    /// Records, rows, contents or frames that are whole.
    pub whole: u64,
}

/// What [`check`] found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    pub files: Vec<FileReport>,
    /// Damage and gaps; none means that everything stored can be read.
    pub problems: Vec<Problem>,
    /// Number of the last command.
    pub seq: Seq,
    pub open_messages: u64,
    pub open_deliveries: u64,
    /// Contents that are still needed, all read.
    pub contents: u64,
    /// Whether created deliveries are ended or open, app by app.
    pub audit: Audit,
    /// It was closed in order. Where not, the unfinished end of the last segment is no damage.
    pub clean: bool,
}

impl CheckReport {
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.audit.apps.iter().all(|(_, app)| app.gap() == 0)
    }
}

/// The same as [`check`], of a folder that is there and whose server is stopped.
pub fn check_stopped(dir: &Path, files: Arc<dyn Files>) -> Result<CheckReport, OpenError> {
    let _lock = stopped(dir, &*files)?;
    check(dir, files)
}

/// Takes a data folder that is there and whose server is stopped.
pub fn stopped(dir: &Path, files: &dyn Files) -> Result<Box<dyn Send + Sync>, OpenError> {
    if let Err(source) = files.list(dir) {
        return Err(match source.kind() {
            io::ErrorKind::NotFound => OpenError::NoSuchFolder(dir.to_path_buf()),
            _ => OpenError::Io { what: format!("the folder {}", dir.display()), source },
        });
    }
    if Identity::read(dir, files)?.is_none() && !has_data(dir, files)? {
        return Err(OpenError::NoDataFolder(dir.to_path_buf()));
    }
    files.lock(&dir.join(LOCK)).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Running(dir.to_path_buf()),
        _ => OpenError::io("the lock of the data folder", source),
    })
}

fn has_data(dir: &Path, files: &dyn Files) -> Result<bool, OpenError> {
    let names = files.list(dir).map_err(|error| OpenError::io("the data folder", error))?;
    Ok(names.iter().any(|name| !matches!(Name::parse(name), Name::Other | Name::Unfinished)))
}

/// Reads everything in a data folder. The store should be closed: else its youngest commands may look unfinished.
pub fn check(dir: &Path, files: Arc<dyn Files>) -> Result<CheckReport, OpenError> {
    let Some(identity) = Identity::read(dir, &*files)? else {
        return Err(OpenError::Damaged(format!("{} is no data folder: it has no STORE file", dir.display())));
    };
    let folder = Folder::new(dir.to_path_buf(), files, &identity, KnownRules::OURS);
    let mut no_events = |_| Ok(());
    let mut recovered = recover::recover(&folder, Repair::No, &mut no_events)?;
    let mut report = CheckReport {
        problems: std::mem::take(&mut recovered.problems),
        seq: recovered.state.seq(),
        audit: recovered.state.audit(),
        clean: recovered.clean,
        ..CheckReport::default()
    };
    (report.open_messages, report.open_deliveries) = recovered.state.open_counts();
    let mut names = folder.files.list(dir).map_err(|error| OpenError::io("the data folder", error))?;
    names.sort();
    // Names of journals sort by their first command, so the next one's name tells where one has to end.
    let journals: Vec<Seq> = names.iter().filter_map(|name| first_of(name)).collect();
    for name in names {
        let next = first_of(&name).and_then(|first| journals.iter().copied().find(|next| *next > first));
        let Some((whole, bad)) = look_into(&folder, &name, next)? else { continue };
        report.files.push(whole);
        // What recovery told is not told twice.
        let told = report.problems.iter().any(|problem| problem.file == name);
        report.problems.extend(bad.filter(|_| !told));
    }
    if History::read(dir, &*folder.files)? == Found::Damage {
        let what = "the list of starts: clients begin anew".to_owned();
        report.problems.push(Problem { file: HISTORY.to_owned(), offset: 0, len: 0, what });
    }
    let mut blobs = Vec::new();
    recovered.state.for_each_blob(&mut |blob| blobs.push(*blob));
    for blob in blobs {
        match folder.content(blob) {
            Ok(_) => report.contents += 1,
            Err(StoreError::Corrupt(what) | StoreError::Failed(what)) => {
                let (offset, len) = (u64::from(blob.offset), u64::from(blob.len));
                report.problems.push(Problem { file: format!("file {}", blob.file), offset, len, what });
            }
            Err(_) => {
                let (offset, len) = (u64::from(blob.offset), u64::from(blob.len));
                let what = "a content that is still needed is missing".to_owned();
                report.problems.push(Problem { file: format!("file {}", blob.file), offset, len, what });
            }
        }
    }
    Ok(report)
}

fn first_of(name: &str) -> Option<Seq> {
    match Name::parse(name) {
        Name::Journal { first, .. } => Some(first),
        _ => None,
    }
}

/// A file on its own. Of journals before the checkpoint recovery reads nothing, so damage in them is found only here.
/// The unfinished end of the last one is judged by recovery, which knows whether it ever was whole.
fn look_into(
    folder: &Folder,
    name: &str,
    next: Option<Seq>,
) -> Result<Option<(FileReport, Option<Problem>)>, OpenError> {
    let parsed = Name::parse(name);
    if matches!(parsed, Name::Other | Name::Unfinished) {
        return Ok(None);
    }
    let bytes = folder.read(name).map_err(|error| OpenError::io(name, error))?;
    let (whole, bad) = match parsed {
        Name::Journal { file, .. } => records(&bytes, folder.salt(file), next),
        Name::Contents { .. } => contents(&bytes),
        Name::Events { .. } => events::verify(&bytes),
        _ => match recover::read_checkpoint(folder, name, &bytes, false) {
            Ok(_) => (1, None),
            Err(Unusable::Damaged(at)) => (0, Some(at as usize)),
            Err(Unusable::Refuse(error)) => return Err(error),
        },
    };
    let magic = match parsed {
        Name::Journal { .. } => record::JOURNAL,
        Name::Contents { .. } => record::CONTENTS,
        Name::Events { .. } => record::EVENTS,
        _ => record::CHECKPOINT,
    };
    let bad_header = Header::decode(&bytes, magic).is_err().then_some(0);
    let report = FileReport { name: name.to_owned(), bytes: bytes.len() as u64, whole };
    let problem = bad_header.or(bad).map(|at| Problem {
        file: name.to_owned(),
        offset: at as u64,
        len: (bytes.len() - at) as u64,
        what: "damage begins here".to_owned(),
    });
    Ok(Some((report, problem)))
}

/// `next` is the first command of the segment behind, where there is one.
fn records(bytes: &[u8], salt: u64, next: Option<Seq>) -> (u64, Option<usize>) {
    let (mut at, mut whole, mut seq) = (HEADER_LEN, 0, None);
    loop {
        match record::parse(bytes, at, salt) {
            record::Parsed::Record { head, .. } => {
                (at, whole, seq) = (at + head.record_len(), whole + 1, Some(head.seq));
            }
            record::Parsed::End => {
                let short = seq.is_some_and(|seq| next.is_some_and(|next| seq + 1 != next));
                return (whole, short.then_some(at.min(bytes.len())));
            }
            _ => return (whole, next.map(|_| at)),
        }
    }
}

fn contents(bytes: &[u8]) -> (u64, Option<usize>) {
    let (mut at, mut whole) = (HEADER_LEN, 0);
    while at < bytes.len() {
        let Some(content) = record::open_frame(&bytes[at..]) else { return (whole, Some(at)) };
        (at, whole) = (at + FRAME_LEN + content.len(), whole + 1);
    }
    (whole, None)
}
