//! The temporary folder of a server: removed with the value, and by others when the program was killed before that.
//!
//! A program that is killed removes nothing. So each folder holds a locked file for as long as its program lives, and
//! who makes a folder first removes those whose lock is free.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::Error;

const PREFIX: &str = "windlass-servers-";
const LOCK: &str = "in-use";
/// A folder is there a moment before its lock is; a young one is left alone.
const YOUNG: Duration = Duration::from_secs(10);

/// A folder of one server.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: TempDir,
    /// Held, never read: the operating system frees it when the program ends, however it ends.
    _lock: File,
}

impl Folder {
    /// Makes an empty folder below the machine's folder for temporary files, and removes what killed programs left there.
    pub(crate) fn new() -> Result<Self, Error> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent, SystemTime::now());
        Self::below(&parent).map_err(Error::cannot(format!("make a folder in {}", parent.display())))
    }

    fn below(parent: &Path) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::create_new(folder.path().join(LOCK))?;
        lock.lock()?;
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of programs that no longer live. What cannot be removed is another user's; it stays.
fn remove_abandoned(parent: &Path, now: SystemTime) {
    for folder in abandoned(parent, now) {
        drop(fs::remove_dir_all(folder));
    }
}

fn abandoned(parent: &Path, now: SystemTime) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.filter(|entry| {
        let made = entry.metadata().and_then(|folder| folder.modified());
        let is_old = made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age > YOUNG));
        is_old && File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
    })
    .map(|entry| entry.path())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_folder_whose_program_is_gone_is_abandoned() {
        let parent = tempfile::tempdir().expect("a folder");
        let held = Folder::below(parent.path()).expect("a folder");
        let left = parent.path().join(format!("{PREFIX}left"));
        fs::create_dir(&left).expect("a folder");
        File::create(left.join(LOCK)).expect("a file");
        fs::create_dir(parent.path().join("somebody-elses")).expect("a folder");

        assert_eq!(abandoned(parent.path(), SystemTime::now()), Vec::<PathBuf>::new(), "young ones stay");
        let later = SystemTime::now() + YOUNG + Duration::from_secs(1);
        assert_eq!(abandoned(parent.path(), later), std::slice::from_ref(&left));

        remove_abandoned(parent.path(), later);
        assert!(!left.exists() && held.path().exists());
    }

    #[test]
    fn a_folder_goes_with_its_value() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::below(parent.path()).expect("a folder");
        fs::write(folder.path().join("data"), "x").expect("a file");
        let path = folder.path().to_path_buf();
        drop(folder);
        assert!(!path.exists());
    }
}
