//! How well the store is.

use rusqlite::Connection;
use windlass_core::view::{Check, Health, Info};

use crate::errors::{Fault, free_bytes};
use crate::file::{self, Home};
use crate::{Shared, schema};

/// Below this much free space somebody should look.
const FREE_BYTES_GOOD: u64 = 256 * 1024 * 1024;
/// A log over this size means that it cannot be emptied.
const LOG_BYTES_GOOD: u64 = 128 * 1024 * 1024;

/// What is cheap to know.
pub(crate) fn info(db: &Connection, shared: &Shared) -> Result<Info, Fault> {
    let path = &shared.path;
    let log_bytes = file::size_of(&file::wal_of(path));
    Ok(Info {
        kind: "sqlite",
        location: path.display().to_string(),
        durability: shared.durability.in_words().to_owned(),
        size_bytes: Some(file::size_of(path) + log_bytes),
        checks: vec![schema_check(db)?, home(path), space(path), log(log_bytes), mode(path), gives_back(db)?],
    })
}

fn check(name: &'static str, health: Health, detail: String) -> Check {
    Check { name, health, detail }
}

fn schema_check(db: &Connection) -> Result<Check, Fault> {
    let version = schema::version(db)?;
    Ok(if version == schema::SCHEMA_VERSION {
        check("schema", Health::Good, format!("version {version}"))
    } else {
        let newest = schema::SCHEMA_VERSION;
        check(
            "schema",
            Health::Bad,
            format!(
                "version {version}, this program needs {newest}: a newer program has migrated it, upgrade this one"
            ),
        )
    })
}

fn home(path: &std::path::Path) -> Check {
    let (health, detail) = match file::home_of(path) {
        Home::Disk => (Health::Good, "a local disk".to_owned()),
        Home::Memory => {
            (Health::Warning, "in memory: everything is lost when the machine stops; use a disk".to_owned())
        }
        Home::Network(name) => {
            (Health::Bad, format!("{name}: locks are not reliable there; move the file to a local disk"))
        }
        Home::Unknown => (Health::Warning, "the kernel does not say what kind it is".to_owned()),
    };
    check("file system", health, detail)
}

fn space(path: &std::path::Path) -> Check {
    match free_bytes(path) {
        Some(free) if free >= FREE_BYTES_GOOD => check("free space", Health::Good, format!("{} MiB", free >> 20)),
        Some(free) => check("free space", Health::Warning, format!("{} MiB left; free some", free >> 20)),
        None => check("free space", Health::Warning, "the kernel does not say how much is left".to_owned()),
    }
}

fn log(bytes: u64) -> Check {
    if bytes <= LOG_BYTES_GOOD {
        return check("log size", Health::Good, format!("{} MiB", bytes >> 20));
    }
    let detail = format!(
        "{} MiB, because a process has been reading for a long time; end transactions that were left open (a shell, a backup)",
        bytes >> 20
    );
    check("log size", Health::Warning, detail)
}

fn mode(path: &std::path::Path) -> Check {
    match file::others_may(path) {
        None => check("file mode", Health::Good, "for this user alone".to_owned()),
        Some(mode) => check(
            "file mode",
            Health::Warning,
            format!("{mode:03o}: other users can read what tasks carry; `chmod 600 {}`", path.display()),
        ),
    }
}

fn gives_back(db: &Connection) -> Result<Check, Fault> {
    let mode: i64 = db.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
    Ok(if mode == 2 {
        check("space after pruning", Health::Good, "goes back to the file system".to_owned())
    } else {
        let detail = "stays in the file, which was not created by Windlass; \
                      stop all processes and run `PRAGMA auto_vacuum = INCREMENTAL; VACUUM` once";
        check("space after pruning", Health::Warning, detail.to_owned())
    })
}

/// Reads the whole file and says whether it is sound. Takes about a second for each gigabyte.
pub(crate) fn soundness(db: &Connection) -> Result<Check, Fault> {
    let mut select = db.prepare("PRAGMA quick_check(5)")?;
    let said = select.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(if said == ["ok"] {
        check("soundness", Health::Good, "every page is where it belongs".to_owned())
    } else {
        let detail = format!("{}; stop all processes, keep a copy, and restore a backup", said.join("; "));
        check("soundness", Health::Bad, detail)
    })
}
