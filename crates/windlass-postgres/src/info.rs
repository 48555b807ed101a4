//! How well the store is.

use windlass_core::view::{Check, Health, Info};

use crate::Shared;
use crate::errors::Fault;
use crate::rows::value;
use crate::schema::SCHEMA_VERSION;
use crate::tx::Tx;

/// A transaction older than this keeps dead rows from being removed, in seconds.
const TRANSACTION_GOOD: f64 = 300.0;
/// Dead rows beyond this many, and more than the living ones, mean that vacuum does not keep up.
const DEAD_ROWS_GOOD: i64 = 100_000;

/// What is cheap to know.
pub(crate) async fn info(tx: &Tx<'_>, shared: &Shared) -> Result<Info, Fault> {
    let (settings, size, version, oldest, rows, locks) = tokio::try_join!(
        tx.query(
            "SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'), \
             current_setting('full_page_writes'), current_setting('wal_level')",
            &[],
        ),
        tx.query(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c \
             WHERE c.relnamespace = split_part('windlass.x', '.', 1)::regnamespace AND c.relkind = 'r'",
            &[],
        ),
        tx.query("SELECT value FROM windlass.meta WHERE key = 'version'", &[]),
        tx.query(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity \
             WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend'",
            &[],
        ),
        tx.query(
            "SELECT coalesce(sum(n_dead_tup), 0)::bigint, coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_user_tables \
             WHERE relid IN ('windlass.live'::regclass, 'windlass.delta'::regclass)",
            &[],
        ),
        tx.query("SELECT pg_backend_pid(), current_setting('application_name')", &[]),
    )?;
    let (Some(settings), Some(size), Some(oldest), Some(rows)) =
        (settings.first(), size.first(), oldest.first(), rows.first())
    else {
        return Err(Fault::damaged("catalogue", "it says nothing"));
    };
    let sync: String = value(settings, 1)?;
    let fsync = value::<&str>(settings, 2)? == "on";
    let full_pages = value::<&str>(settings, 3)? == "on";
    let found = version.first().map_or(Ok(0), |row| value::<i64>(row, 0))?;
    let session: Option<String> = locks.first().map(|row| value(row, 1)).transpose()?;
    Ok(Info {
        kind: "postgres",
        location: shared.address.shown.clone(),
        durability: durability(&sync, fsync, full_pages),
        size_bytes: Some(u64::try_from(value::<i64>(size, 0)?).unwrap_or(0)),
        checks: vec![
            check("server", Health::Good, format!("PostgreSQL {}", value::<&str>(settings, 0)?)),
            schema_check(found),
            fsync_check(fsync, full_pages),
            commit_check(&sync),
            pooler_check(session.as_deref(), shared.address.config.get_application_name()),
            oldest_check(value(oldest, 0)?),
            dead_rows_check(value(rows, 0)?, value(rows, 1)?),
        ],
    })
}

fn durability(sync: &str, fsync: bool, full_pages: bool) -> String {
    let survives = match (fsync, sync) {
        (false, _) => "survives the end of the server process at best",
        (true, "off") => "survives the end of a worker, not a crash of the server",
        (true, "local") => "survives power loss of the server",
        (true, "remote_apply") => "survives power loss; on every synchronous standby and visible there",
        (true, "remote_write") => "survives power loss; handed to every synchronous standby",
        (true, _) => "survives power loss; on every synchronous standby",
    };
    let on = |on: bool| if on { "on" } else { "off" };
    format!("{survives}: synchronous_commit={sync}, fsync={}, full_page_writes={}", on(fsync), on(full_pages))
}

fn check(name: &'static str, health: Health, detail: String) -> Check {
    Check { name, health, detail }
}

fn schema_check(version: i64) -> Check {
    if version == i64::from(SCHEMA_VERSION) {
        return check("schema", Health::Good, format!("version {version}"));
    }
    let detail = format!(
        "version {version}, this program needs {SCHEMA_VERSION}: a newer program has migrated it, upgrade this one"
    );
    check("schema", Health::Bad, detail)
}

fn fsync_check(fsync: bool, full_pages: bool) -> Check {
    match (fsync, full_pages) {
        (true, true) => check("fsync", Health::Good, "on".to_owned()),
        (false, _) => {
            let detail = "off: a power loss may destroy the database; set fsync = on and restart the server";
            check("fsync", Health::Bad, detail.to_owned())
        }
        (true, false) => {
            let detail = "full_page_writes is off: a power loss may destroy pages unless the file system prevents it";
            check("fsync", Health::Warning, detail.to_owned())
        }
    }
}

fn commit_check(sync: &str) -> Check {
    if sync == "off" || sync == "local" {
        let detail = format!("synchronous_commit is {sync} in our own session: a pooler in between loses settings");
        return check("commits", Health::Warning, detail);
    }
    check("commits", Health::Good, format!("synchronous_commit={sync}"))
}

fn pooler_check(session: Option<&str>, ours: Option<&str>) -> Check {
    if session == ours {
        return check("pooler", Health::Good, "none is seen".to_owned());
    }
    let detail = "the session is not ours alone, a pooler may be in between: notifications are lost and waiting claims look \
                  once a second; connect directly if you can";
    check("pooler", Health::Warning, detail.to_owned())
}

fn oldest_check(seconds: f64) -> Check {
    if seconds < TRANSACTION_GOOD {
        return check("oldest transaction", Health::Good, format!("{seconds:.0} s"));
    }
    let detail = format!("{seconds:.0} s old: nothing is cleaned up meanwhile; end it, see pg_stat_activity");
    check("oldest transaction", Health::Warning, detail)
}

fn dead_rows_check(dead: i64, live: i64) -> Check {
    if dead < DEAD_ROWS_GOOD.max(live) {
        return check("dead rows", Health::Good, format!("{dead} of {}", dead + live));
    }
    let detail = format!("{dead} dead rows beside {live} live ones: see whether autovacuum runs");
    check("dead rows", Health::Warning, detail)
}
