//! The file itself: where it may be, and whether it is still the one that was opened.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use windlass_core::StoreError;

/// Only the user who runs the service reads what tasks carry.
const MODE: u32 = 0o600;

/// Files are created one at a time: closing a new one would give up the locks of a store that was opened in between.
static CREATING: Mutex<()> = Mutex::new(());

/// The identity of the open file: a file that was deleted, moved or replaced under us keeps taking writes that nobody
/// will find.
#[derive(Debug)]
pub(crate) struct SameFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SameFile {
    pub(crate) fn at(path: &Path) -> Result<Self, StoreError> {
        let there = std::fs::metadata(path).map_err(|error| gone(path, &error))?;
        Ok(Self { path: path.to_owned(), device: there.dev(), inode: there.ino() })
    }

    /// One system call.
    ///
    /// # Errors
    /// [`StoreError::Broken`] when another file or none is there.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let there = std::fs::metadata(&self.path).map_err(|error| gone(&self.path, &error))?;
        if there.dev() != self.device || there.ino() != self.inode {
            return Err(StoreError::Broken(format!(
                "`{}` was replaced by another file while this process used it; nothing more is written; \
                 restart this process to use the file that is there now",
                self.path.display()
            )));
        }
        Ok(())
    }
}

fn gone(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Broken(format!(
        "`{}` was deleted or moved while this process used it ({error}); nothing more is written; \
         put it back, together with its `-wal` file, and restart all processes that use it",
        path.display()
    ))
}

/// Creates the file if there is none, for this user alone. The journal's files get the same mode from SQLite.
///
/// # Errors
/// [`StoreError::Broken`] with what to do about the path.
pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
    let shown = path.display();
    let broken = |text: String| Err(StoreError::Broken(text));
    if path.is_dir() {
        return broken(format!(
            "`{shown}` is a directory; name a file in it, such as `{}`",
            path.join("tasks.db").display()
        ));
    }
    let _creating = CREATING.lock();
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        return broken(format!(
            "the directory `{0}` of the store `{shown}` does not exist; create it with `mkdir -p {0}`",
            parent.display()
        ));
    }
    match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            broken(format!("`{shown}` cannot be created ({error}); this user must be able to write in its directory"))
        }
    }
}

/// What kind of file system holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// A disk of this machine.
    Disk,
    /// Gone with the next start of the machine.
    Memory,
    /// Another machine's, by this name.
    Network(&'static str),
    /// Nobody can tell.
    Unknown,
}

/// File systems whose locks or shared memory do not work between machines, by the number that the kernel gives them.
const NETWORK: [(u64, &str); 11] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x7375_7245, "Coda"),
    (0x4750_4653, "GPFS"),
    (0x6573_5546, "FUSE"),
];
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Asks the kernel.
pub(crate) fn home_of(path: &Path) -> Home {
    let Ok(about) = rustix::fs::statfs(path) else { return Home::Unknown };
    // The field's type and sign differ between platforms; the numbers have 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "platforms differ")]
    home_of_number(about.f_type as u64 & 0xffff_ffff)
}

fn home_of_number(number: u64) -> Home {
    if let Some((_, name)) = NETWORK.into_iter().find(|(known, _)| *known == number) {
        return Home::Network(name);
    }
    if MEMORY.contains(&number) { Home::Memory } else { Home::Disk }
}

/// Refuses files of other machines.
///
/// # Errors
/// [`StoreError::Broken`] with the reason.
pub(crate) fn refuse_network(path: &Path) -> Result<(), StoreError> {
    match home_of(path) {
        Home::Network(name) => Err(network_refused(path, name)),
        Home::Disk | Home::Memory | Home::Unknown => Ok(()),
    }
}

fn network_refused(path: &Path, name: &str) -> StoreError {
    StoreError::Broken(format!(
        "`{}` is on a network or user-space file system ({name}), where SQLite's locks are not reliable and tasks would \
         be damaged or run twice; put it on a local disk, use PostgreSQL or Redis for several machines, or accept the \
         risk with the option `network files: accept`",
        path.display()
    ))
}

/// The size of a file; zero when there is none.
pub(crate) fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |there| there.len())
}

/// The log beside the file.
pub(crate) fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// The permission bits that others have, when they have any.
pub(crate) fn others_may(path: &Path) -> Option<u32> {
    // Never by opening it: closing any handle of a file gives up all locks that this process has on it, SQLite's too.
    let there = std::fs::metadata(path).ok()?;
    Some(there.mode() & 0o777).filter(|mode| mode & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_of_other_machines_are_known_by_their_number() {
        assert_eq!(home_of_number(0x6969), Home::Network("NFS"));
        assert_eq!(home_of_number(0xff53_4d42), Home::Network("CIFS"));
        assert_eq!(home_of_number(0x0102_1994), Home::Memory);
        assert_eq!(home_of_number(0xef53), Home::Disk);
    }

    #[test]
    fn a_network_file_system_is_refused_with_the_reason_and_the_next_step() {
        let refused = network_refused(Path::new("/mnt/tasks.db"), "NFS").to_string();
        assert!(refused.contains("NFS") && refused.contains("local disk"), "{refused}");
    }
}
