//! The checks of the doctor, from the configuration down to single queues.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass::bridges::RedisLocation;
use windlass::bridges::redis::Line;
use windlass::bridges::url::Over;
use windlass::config::{Loaded, Origin};
use windlass::view::{Filter, Health, Info, Node, NodePhase, PAGE_MAX, Page, QueueCounts};
use windlass::{Backend, Location, QueueName, State, TaskName, Timestamp};

use super::Finding;
use crate::args::Global;
use crate::exit::Problem;
use crate::output::{Out, ago, bytes, plural, roughly};
use crate::program::Program;
use crate::settings::{self, Missing, shown_store};

/// A store that takes longer than this to answer is not well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Below this a store soon cannot write any more.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// A file that is newer than now by more than this: somebody's clock is wrong.
const SKEW_MAX: Duration = Duration::from_secs(5);
/// A task that could have been started this long ago waits for something that does not come.
const STUCK_AFTER: Duration = Duration::from_secs(5 * 60);
/// The machines whose clocks these are agree when their beats are not from the future by more than this.
const BEAT_SKEW_MAX: Duration = Duration::from_secs(2);

/// Everything that can be looked at. What depends on something broken is left out.
pub(super) async fn at_everything(global: &Global, program: &Program, out: &Out) -> Vec<Finding> {
    let sources = settings::sources(global, []);
    let mut loaded = match sources.load() {
        Ok(loaded) => loaded,
        Err(errors) => {
            let advice = "mend these lines; `windlass config check` says when they are right";
            return vec![Finding::bad("configuration", errors.to_string(), advice)];
        }
    };
    let mut findings = vec![at_configuration(&loaded, sources.file_name())];
    if let Err(problem) = settings::follow_bridge(&mut loaded) {
        findings.push(Finding::bad("bridge", problem.text(), problem.next_step()));
        return findings;
    }
    findings.extend(at_bridge(&loaded).await);
    if let Ok(Location::Sqlite(path)) = loaded.config.store.parse() {
        findings.extend(at_file(&path, out.now()));
    }
    let opened = tokio::time::timeout(PATIENCE, settings::open(&loaded, Missing::Refuse)).await;
    let backend = match opened {
        Ok(Ok(backend)) => backend,
        Ok(Err(problem)) => {
            // The doctor does not send people to the doctor; the text says what to do.
            let advice = Some(problem.next_step()).filter(|next| !next.contains("doctor")).unwrap_or_default();
            findings.push(Finding::bad("store", problem.text(), advice));
            return findings;
        }
        Err(_) => {
            let seen = format!("{} does not answer within {}", shown_store(&loaded), roughly(PATIENCE));
            findings.push(Finding::bad("store", seen, "see who holds it: `fuser` or `lsof` on the file"));
            return findings;
        }
    };
    match tokio::time::timeout(PATIENCE, at_store(backend.as_ref(), program, out, &mut findings)).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => findings.push(Finding::bad("store", problem.text(), "see the log of the workers")),
        Err(_) => {
            findings.push(Finding::bad("store", "it stopped answering", "see the load and the disk of the machine"));
        }
    }
    findings
}

fn at_configuration(loaded: &Loaded, file: Option<&str>) -> Finding {
    let set = loaded.origins().iter().filter(|setting| setting.origin != Origin::BuiltIn).count();
    let file = file.map_or_else(|| "no file".to_owned(), |file| format!("file {file}"));
    Finding::good("configuration", format!("valid; {file}, {} set", plural(set as u64, "key")))
}

/// Whether the server answers that messages of other programs are in.
async fn at_bridge(loaded: &Loaded) -> Option<Finding> {
    // That it can be read was said with the configuration.
    let url = settings::bridge(loaded).ok()??;
    let location: RedisLocation = match (url.over, url.server().parse()) {
        (Over::Redis, Ok(location)) => location,
        (Over::Redis, Err(wrong)) => {
            return Some(Finding::bad("bridge", format!("{url}: {wrong}"), "see docs/bridges.md"));
        }
        (Over::Amqp, _) => {
            return Some(Finding::good("bridge", format!("{url}; not asked: a worker says whether it answers")));
        }
    };
    let line = Line::to(location);
    let asked = tokio::time::timeout(PATIENCE, line.ask(&[b"PING".to_vec()])).await;
    let wrong = match asked {
        Ok(Ok(_)) => return Some(Finding::good("bridge", format!("{url} answers"))),
        Ok(Err(error)) => format!("{url}: {error}"),
        Err(_) => format!("{url} does not answer within {}", roughly(PATIENCE)),
    };
    Some(Finding::bad("bridge", wrong, "start the server, or correct `bridge`: see `windlass config show --origin`"))
}

/// The file of a store: may it be written, is there space, does the clock agree.
fn at_file(path: &Path, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned);
    if !folder.exists() {
        let seen = format!("the folder {} does not exist", folder.display());
        return vec![Finding::bad("folder", seen, format!("make it: `mkdir -p {}`", folder.display()))];
    }
    match free_bytes(&folder) {
        Some(free) if free < FREE_BYTES_MIN => findings.push(Finding::bad(
            "disk",
            format!("{} free in {}", bytes(free), folder.display()),
            "make room: a store that cannot write takes no tasks; nothing that it has is lost",
        )),
        Some(free) => findings.push(Finding::good("disk", format!("{} free", bytes(free)))),
        None => {}
    }
    let Ok(metadata) = path.metadata() else { return findings };
    if metadata.permissions().readonly() {
        let advice = format!("let this user write it: `chmod u+w {}`", path.display());
        findings.push(Finding::bad("file", format!("{} is read-only", path.display()), advice));
    }
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    if let Some(modified) = modified {
        let modified = Timestamp::from_micros(i64::try_from(modified.as_micros()).unwrap_or(i64::MAX));
        let ahead = modified.since(now);
        findings.push(if ahead > SKEW_MAX {
            Finding::warning(
                "clock",
                format!("{} was written {} in the future", path.display(), roughly(ahead)),
                "the clock was moved back, or another machine's is ahead: leases and delays wait that much longer; see `timedatectl`",
            )
        } else {
            Finding::good("clock", format!("{now}; the file was written {}", ago(modified, now)))
        });
    }
    findings
}

/// How much room the disk of a folder has; `None` where that cannot be told.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stats = rustix::fs::statvfs(folder).ok()?;
        Some(stats.f_bavail * stats.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

async fn at_store(
    backend: &dyn Backend,
    program: &Program,
    out: &Out,
    findings: &mut Vec<Finding>,
) -> Result<(), Problem> {
    let info = backend.info().await?;
    findings.extend(at_info(&info));
    let nodes = backend.nodes().await?;
    findings.extend(at_nodes(&nodes, out.now()));
    let counts = backend.counts().await?;
    findings.extend(at_queues(counts.queues.iter(), &nodes, out.now()));
    if counts.closed {
        let advice = "finish the move with the same `windlass transfer`, or open the store with `windlass transfer --reopen URL`";
        findings.push(Finding::bad("closed", "it was moved to another store: nothing is started here", advice));
    }
    if !counts.paused_tasks.is_empty() {
        let names: Vec<&str> = counts.paused_tasks.iter().map(TaskName::as_str).collect();
        let advice = "`windlass task resume NAME` when the pause is over";
        findings.push(Finding::warning("paused tasks", names.join(", "), advice));
    }
    let total = counts.total();
    if total.parked > 0 {
        findings.push(at_parked(backend, program, total.parked).await?);
    }
    findings.push(if total.dead > 0 {
        let advice = "`windlass dlq stats` says why, `windlass dlq retry` replays them";
        Finding::warning("dead letters", plural(total.dead, "task"), advice)
    } else {
        Finding::good("dead letters", "none")
    });
    let schedules = backend.schedules().await?;
    let fires = |record: &&windlass::view::ScheduleRecord| !record.paused && record.next.is_some();
    let late = schedules.iter().filter(fires).filter_map(|record| record.next).map(|next| out.now().since(next)).max();
    if let Some(late) = late.filter(|late| *late > Duration::from_secs(30)) {
        findings.push(Finding::warning(
            "schedules",
            format!("a slot is {} late: nobody fires schedules", roughly(late)),
            "start `windlass scheduler`, or workers with `--schedules`",
        ));
    } else if !schedules.is_empty() {
        findings.push(Finding::good("schedules", plural(schedules.len() as u64, "schedule")));
    }
    Ok(())
}

fn at_info(info: &Info) -> Vec<Finding> {
    let size = info.size_bytes.map(|size| format!(", {}", bytes(size))).unwrap_or_default();
    let mut findings = vec![
        Finding::good("store", format!("{} {}{size}", info.kind, info.location)),
        Finding::good("durability", info.durability.clone()),
    ];
    findings.extend(info.checks.iter().map(|check| match check.health {
        Health::Good => Finding::good(check.name, check.detail.clone()),
        // A store says what to do in its own words.
        Health::Warning => Finding::warning(check.name, check.detail.clone(), ""),
        Health::Bad => Finding::bad(check.name, check.detail.clone(), ""),
    }));
    findings
}

fn at_nodes(nodes: &[Node], now: Timestamp) -> Vec<Finding> {
    let alive: Vec<&Node> = nodes.iter().filter(|node| node.alive).collect();
    let running = alive.iter().filter(|node| node.info.phase == NodePhase::Running).count();
    let mut findings = vec![match (alive.len(), running) {
        (0, _) => Finding::warning("nodes", "none is alive: nothing is started", "start one with `windlass worker`"),
        (alive, 0) => {
            let advice = "`windlass node resume NODE` lets one take tasks again";
            Finding::warning("nodes", format!("{alive} alive, none takes tasks"), advice)
        }
        (alive, running) => Finding::good("nodes", format!("{alive} alive, {running} running")),
    }];
    let lost: Vec<&str> = nodes
        .iter()
        .filter(|node| !node.alive && node.info.phase != NodePhase::Stopped)
        .map(|node| node.info.id.as_str())
        .collect();
    if !lost.is_empty() {
        let shown = lost.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let seen = format!("{} ended without saying so: {shown}", plural(lost.len() as u64, "node"));
        findings.push(Finding::warning("lost nodes", seen, "see their last log lines; what they ran is run by others"));
    }
    if let Some(node) = nodes.iter().find(|node| node.beat_at.since(now) > BEAT_SKEW_MAX) {
        findings.push(Finding::warning(
            "clocks",
            format!("{} beats from the future: {} ahead", node.info.id, roughly(node.beat_at.since(now))),
            "set the clocks of the machines by NTP",
        ));
    }
    let versions: BTreeSet<&str> = alive.iter().map(|node| node.info.version.as_str()).collect();
    if versions.len() > 1 {
        let seen = format!("nodes of different versions: {}", versions.into_iter().collect::<Vec<_>>().join(", "));
        findings.push(Finding::warning("versions", seen, "bring the older ones up to date"));
    }
    findings
}

fn at_queues<'q>(
    queues: impl Iterator<Item = (&'q QueueName, &'q QueueCounts)>,
    nodes: &[Node],
    now: Timestamp,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let works_on = |queue: &QueueName| {
        nodes.iter().any(|node| {
            node.alive
                && node.info.phase == NodePhase::Running
                && node.info.slots > 0
                && node.info.queues.contains(queue)
        })
    };
    for (name, counts) in queues {
        let waits = counts.oldest_ready_at.map(|at| now.since(at)).unwrap_or_default();
        if counts.paused {
            let seen = format!("`{name}` is paused with {} ready", counts.ready);
            findings.push(Finding::warning(
                "paused queue",
                seen,
                format!("`windlass queue resume {name}` when it is over"),
            ));
        } else if counts.ready > 0 && !works_on(name) {
            let seen = format!("`{name}` has {} and nobody works on it", plural(counts.ready, "ready task"));
            findings.push(Finding::warning("stuck queue", seen, format!("start `windlass worker -Q {name}`")));
        } else if counts.ready > 0 && waits > STUCK_AFTER {
            let seen = format!("the next of `{name}` waits for {}", roughly(waits));
            findings.push(Finding::warning("slow queue", seen, "add workers or slots, or see what its tasks wait for"));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("queues", "none is stuck"));
    }
    findings
}

async fn at_parked(backend: &dyn Backend, program: &Program, count: u64) -> Result<Finding, Problem> {
    let listing = backend.list(&Filter::in_states([State::Parked]), &Page::first(PAGE_MAX)).await?;
    let names: BTreeSet<&TaskName> = listing.tasks.iter().map(|record| &record.envelope.name).collect();
    let shown: Vec<&str> = names.iter().take(5).map(|name| name.as_str()).collect();
    let nearest = names.iter().find_map(|name| {
        let known = program.definitions().map(|definition| definition.name.as_str());
        crate::task_args::nearest(name.as_str(), known).filter(|known| *known != name.as_str())
    });
    let advice = match nearest {
        Some(nearest) => format!("start a worker that declares them; was `{nearest}` meant?"),
        None => "start a worker that declares them: after an hour they become dead letters".to_owned(),
    };
    let seen = format!("{} whose name no node declares: {}", plural(count, "task"), shown.join(", "));
    Ok(Finding::warning("parked tasks", seen, advice))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use windlass::NodeId;
    use windlass::view::NodeInfo;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn node(alive: bool, queue: &str) -> Node {
        let info = NodeInfo {
            id: NodeId::known("w1"),
            host: String::new(),
            pid: 1,
            version: "1".to_owned(),
            started_at: NOW,
            queues: vec![QueueName::known(queue)],
            tasks: Vec::new(),
            slots: 8,
            busy: 0,
            finished: 0,
            failed: 0,
            phase: NodePhase::Running,
        };
        Node { info, beat_at: NOW, alive }
    }

    fn ready(count: u64, since: Duration) -> QueueCounts {
        QueueCounts { ready: count, oldest_ready_at: Some(NOW - since), ..QueueCounts::default() }
    }

    #[test]
    fn a_queue_that_nobody_works_on_is_stuck_and_one_that_waits_is_slow() {
        let mail = QueueName::known("mail");
        let look = |counts: QueueCounts, nodes: &[Node]| {
            let finding = at_queues([(&mail, &counts)].into_iter(), nodes, NOW).remove(0);
            (finding.name, finding.level)
        };
        assert_eq!(look(ready(3, Duration::ZERO), &[node(true, "other")]), ("stuck queue", Level::Warning));
        assert_eq!(look(ready(3, Duration::ZERO), &[node(false, "mail")]), ("stuck queue", Level::Warning));
        assert_eq!(look(ready(3, Duration::from_secs(600)), &[node(true, "mail")]), ("slow queue", Level::Warning));
        assert_eq!(look(ready(3, Duration::ZERO), &[node(true, "mail")]), ("queues", Level::Good));
        let paused = QueueCounts { paused: true, ..ready(1, Duration::ZERO) };
        assert_eq!(look(paused, &[node(true, "mail")]), ("paused queue", Level::Warning));
    }

    #[test]
    fn nodes_that_are_gone_or_ahead_are_seen() {
        let names =
            |nodes: &[Node]| at_nodes(nodes, NOW).into_iter().map(|one| (one.name, one.level)).collect::<Vec<_>>();
        assert_eq!(names(&[node(true, "a")]), [("nodes", Level::Good)]);
        assert_eq!(names(&[node(false, "a")]), [("nodes", Level::Warning), ("lost nodes", Level::Warning)]);
        let ahead = Node { beat_at: NOW + Duration::from_secs(60), ..node(true, "a") };
        assert_eq!(names(&[ahead]), [("nodes", Level::Good), ("clocks", Level::Warning)]);
    }

    #[test]
    fn a_folder_that_is_missing_is_bad() {
        let findings = at_file(Path::new("no/such/folder/x.db"), NOW);
        assert_eq!((findings[0].name, findings[0].level), ("folder", Level::Bad));
        assert!(findings[0].advice.contains("mkdir -p no/such/folder"), "{findings:?}");
    }
}
