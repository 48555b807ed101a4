//! What SQLite's errors mean for the caller, each with the next step in its text.
//!
//! Jobs and readers fail with a [`Fault`]; [`Fault::into_store_error`] turns it into the port's error at the door.

use std::fmt::Display;
use std::path::Path;

use rusqlite::ErrorCode;
use windlass_core::StoreError;

/// Below this much free space an I/O error is reported as a full disk: SQLite has no own code for a shared-memory file
/// or a journal that could not grow.
const SCARCE_BYTES: u64 = 1024 * 1024;

/// Why a job or a reader failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// SQLite said so.
    Sql(rusqlite::Error),
    /// We said so; the answer is complete.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// A value in the file that no version of ours wrote.
    pub(crate) fn damaged(what: &str, detail: impl Display) -> Self {
        Self::Store(StoreError::Broken(format!(
            "the store holds a damaged {what}: {detail}; check the file with `windlass doctor` and restore a backup if it is damaged"
        )))
    }

    /// The answer to the caller.
    pub(crate) fn into_store_error(self, path: &Path) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Sql(error) => store_error(&error, path),
        }
    }

    /// The same answer once more, for everybody who waited for the same transaction.
    pub(crate) fn to_store_error(&self, path: &Path) -> StoreError {
        match self {
            Self::Store(error) => again(error),
            Self::Sql(error) => store_error(error, path),
        }
    }
}

/// A copy of an error; its source, when it has one, as text.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unreachable(source) => StoreError::Unreachable(source.to_string().into()),
        StoreError::Busy(text) => StoreError::Busy(text.clone()),
        StoreError::NoSpace(text) => StoreError::NoSpace(text.clone()),
        StoreError::Denied(text) => StoreError::Denied(text.clone()),
        StoreError::Broken(text) => StoreError::Broken(text.clone()),
        StoreError::Rejected(text) => StoreError::Rejected(text.clone()),
    }
}

fn store_error(error: &rusqlite::Error, path: &Path) -> StoreError {
    let shown = path.display();
    let rusqlite::Error::SqliteFailure(failure, message) = error else {
        return StoreError::Broken(format!(
            "`{shown}` does not hold what this version expects ({error}); \
             check the file with `windlass doctor` and restore a backup if it is damaged"
        ));
    };
    let said = message.as_deref().unwrap_or("no details");
    match failure.code {
        ErrorCode::DiskFull => no_space(path),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Busy(format!(
            "another process holds `{shown}` for too long; \
             end a transaction that was left open (a shell, a backup), or raise the busy timeout"
        )),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreError::Broken(format!(
            "`{shown}` is damaged or not a SQLite database ({said}); \
             stop all processes, keep a copy, and restore a backup or recover it with `sqlite3 {shown} .recover`"
        )),
        ErrorCode::ReadOnly => read_only(path),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => StoreError::Broken(format!(
            "`{shown}` cannot be opened ({said}); this user must be able to write the file and its directory, \
             where SQLite keeps two more files beside it"
        )),
        ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed => match free_bytes(path) {
            Some(free) if free < SCARCE_BYTES => no_space(path),
            _ => StoreError::Unreachable(
                format!("reading or writing `{shown}` failed ({error}); look at the disk and the kernel's log").into(),
            ),
        },
        ErrorCode::OutOfMemory => {
            StoreError::Unreachable(format!("no memory left while working with `{shown}`; free some").into())
        }
        _ => StoreError::Broken(format!(
            "SQLite refused to work with `{shown}` ({error}); \
             check the file with `windlass doctor` and restore a backup if it is damaged"
        )),
    }
}

/// Nothing can be written to the file.
pub(crate) fn read_only(path: &Path) -> StoreError {
    StoreError::Broken(format!(
        "`{}` is read-only; give this user write permission for the file and its directory, \
         and look whether the file system is mounted read-only",
        path.display()
    ))
}

fn no_space(path: &Path) -> StoreError {
    let free = free_bytes(path).map_or_else(String::new, |free| format!(" ({} KiB are free)", free / 1024));
    StoreError::NoSpace(format!(
        "the disk of `{}` is full{free}; free some space, the work goes on by itself",
        path.display()
    ))
}

/// Free space of the file system that holds `path`, for this user.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let place = if path.exists() { path } else { path.parent().filter(|parent| !parent.as_os_str().is_empty())? };
    let space = rustix::fs::statvfs(place).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}
