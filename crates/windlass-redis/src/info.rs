//! How well the store is, as far as the server tells.

use redis::Value;
use windlass_core::StoreError;
use windlass_core::view::{Check, Health, Info};

use crate::link::info_field;
use crate::record::{integer, list, text, texts};
use crate::{Shared, VERSION};

/// Keys whose size is asked for; the rest is small beside them.
const LARGE_KEYS: [&str; 6] = ["task", "body", "id", "result", "ended", "history"];
/// A server that uses more of its `maxmemory` than this, in percent, should be looked at.
const MEMORY_USED_GOOD: u64 = 80;

/// What is cheap to know.
pub(crate) async fn info(shared: &Shared) -> Result<Info, StoreError> {
    let about = text(shared.link.ask(&redis::cmd("INFO")).await?)?;
    let (durability, persistence) =
        durability(&about, setting(shared, "appendfsync").await, setting(shared, "save").await);
    let (size, kept) = size(shared).await?;
    Ok(Info {
        kind: "redis",
        location: shared.link.location().to_string(),
        durability,
        size_bytes: size,
        checks: vec![schema(shared).await?, version(&about), persistence, eviction(&about), memory(&about), kept],
    })
}

fn check(name: &'static str, health: Health, detail: String) -> Check {
    Check { name, health, detail }
}

/// A setting of the server; managed services do not tell.
async fn setting(shared: &Shared, name: &str) -> Option<String> {
    let answer = shared.link.ask(redis::cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
    texts(answer).ok()?.into_iter().nth(1)
}

async fn schema(shared: &Shared) -> Result<Check, StoreError> {
    let stored = shared.link.ask(redis::cmd("HGET").arg(shared.key("meta")).arg("version")).await?;
    // A store that was emptied gets its version when it is opened again.
    let stored = integer(&stored).unwrap_or(i64::from(VERSION));
    Ok(if stored == i64::from(VERSION) {
        check("schema", Health::Good, format!("version {stored}"))
    } else {
        let detail = format!(
            "version {stored}, this program needs {VERSION}: a newer program has migrated it, upgrade this one"
        );
        check("schema", Health::Bad, detail)
    })
}

fn version(about: &str) -> Check {
    let detail = match info_field(about, "valkey_version") {
        Some(valkey) => format!("Valkey {valkey}"),
        None => format!("Redis {}", info_field(about, "redis_version").unwrap_or("of an unknown version")),
    };
    check("version", Health::Good, detail)
}

/// What a push that returned survives, in words, and what to think of it.
fn durability(about: &str, fsync: Option<String>, save: Option<String>) -> (String, Check) {
    let has_log = info_field(about, "aof_enabled") == Some("1");
    let has_snapshots = match &save {
        Some(save) => !save.is_empty(),
        // The setting is not told: a snapshot that was made says that some are made.
        None => info_field(about, "rdb_saves").is_some_and(|saves| saves != "0"),
    };
    let (words, health, advice) = match (has_log, fsync.as_deref()) {
        (true, Some("always")) => {
            ("a crash of the server and a power cut (append-only file, synced each time)", Health::Good, "")
        }
        (true, Some("everysec")) => (
            "a stop of the server; a crash on a slow disk or a power cut may lose up to 2 s (append-only file, synced every second)",
            Health::Good,
            "",
        ),
        (true, Some(_)) => (
            "a stop of the server; a power cut may lose what the kernel had not written (append-only file, not synced)",
            Health::Warning,
            "; set `appendfsync everysec`",
        ),
        (true, None) => {
            ("a crash of the server (append-only file; the server does not tell how often it syncs)", Health::Good, "")
        }
        (false, _) if has_snapshots => {
            ("nothing that happened since the last snapshot", Health::Warning, "; set `appendonly yes`")
        }
        (false, _) => ("nothing: the server keeps everything in memory only", Health::Bad, "; set `appendonly yes`"),
    };
    let failed = info_field(about, "aof_last_write_status").is_some_and(|status| status != "ok");
    let check = if has_log && failed {
        check(
            "durability",
            Health::Bad,
            "the server cannot write its append-only file; look at its disk and its log".to_owned(),
        )
    } else {
        check("durability", health, format!("survives {words}{advice}"))
    };
    (format!("survives {words}"), check)
}

fn eviction(about: &str) -> Check {
    match info_field(about, "maxmemory_policy") {
        Some("noeviction") => check("eviction", Health::Good, "noeviction: a full server refuses new tasks".to_owned()),
        Some(policy) if policy.starts_with("volatile") => check(
            "eviction",
            Health::Warning,
            format!("{policy}: no task is evicted, but `maxmemory-policy noeviction` is what is meant"),
        ),
        Some(policy) => check(
            "eviction",
            Health::Bad,
            format!("{policy}: a full server drops all tasks at once; set `maxmemory-policy noeviction`"),
        ),
        None => check(
            "eviction",
            Health::Warning,
            "the server does not tell; `maxmemory-policy` must be noeviction".to_owned(),
        ),
    }
}

fn memory(about: &str) -> Check {
    let number = |name: &str| info_field(about, name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (used, most) = (number("used_memory"), number("maxmemory"));
    let used_mib = used >> 20;
    if most == 0 {
        return check("memory", Health::Good, format!("{used_mib} MiB used, without a limit of the server's own"));
    }
    let detail = format!("{used_mib} of {} MiB used", most >> 20);
    if used * 100 <= most * MEMORY_USED_GOOD {
        check("memory", Health::Good, detail)
    } else {
        check("memory", Health::Warning, format!("{detail}; raise `maxmemory` or keep ended tasks for a shorter time"))
    }
}

/// About how many bytes the namespace takes, and how many for each task that is kept. The server estimates large keys from
/// a few of their members.
async fn size(shared: &Shared) -> Result<(Option<u64>, Check), StoreError> {
    let mut asked = redis::pipe();
    for name in LARGE_KEYS {
        asked.cmd("MEMORY").arg("USAGE").arg(shared.key(name)).arg("SAMPLES").arg(5);
    }
    asked.cmd("HLEN").arg(shared.key("task"));
    let Ok(answers) = shared.link.ask_all(&asked).await else {
        let detail = "the server does not tell how much memory tasks take".to_owned();
        return Ok((None, check("tasks", Health::Good, detail)));
    };
    let numbers = list(Value::Array(answers))?.iter().map(|value| integer(value).unwrap_or(0)).collect::<Vec<_>>();
    let bytes: u64 = numbers.iter().take(LARGE_KEYS.len()).map(|bytes| u64::try_from(*bytes).unwrap_or(0)).sum();
    let tasks = numbers.last().and_then(|tasks| u64::try_from(*tasks).ok()).unwrap_or(0);
    let each = bytes.checked_div(tasks).unwrap_or(0);
    Ok((Some(bytes), check("tasks", Health::Good, format!("{tasks} kept, about {each} bytes each"))))
}
