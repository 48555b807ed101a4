//! What the machine is, and what this process uses of it: from `/proc`, so that nothing has to be installed.
//!
//! On systems without it the numbers are missing, not wrong.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// `/proc` counts CPU time in these, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a reader must know to compare numbers.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    cores: usize,
    processor: String,
    file_system: String,
    build: &'static str,
}

impl Machine {
    /// This machine, with the file system of a folder.
    pub(super) fn of(folder: &Path) -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            file_system: file_system(folder).unwrap_or_else(|| "unknown".to_owned()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }

    /// Numbers of a debug build say nothing.
    pub(super) fn is_for_debugging(&self) -> bool {
        self.build == "debug"
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "file_system": self.file_system,
            "version": env!("CARGO_PKG_VERSION"),
            "build": self.build,
            "load_1m": load(),
        })
    }

    /// In one line, for people.
    pub(super) fn text(&self) -> String {
        let Self { cores, processor, file_system, build } = self;
        let load = load().map_or_else(String::new, |load| format!(", load {load:.2}"));
        let version = env!("CARGO_PKG_VERSION");
        format!("{cores} cores ({processor}), {file_system}, windlass {version} {build}{load}")
    }
}

/// The kind of the file system that a folder is on: that of the longest mount point above it.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let kind = kind.split(' ').next()?.to_owned();
        folder.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Seconds of CPU that this process has used, in user and system together; steps of 10 ms.
pub(super) fn cpu_seconds() -> Option<f64> {
    ticks_of(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Seconds of CPU that a process and its children have used: those that are there, and those that have ended.
pub(super) fn cpu_seconds_of_family(pid: i32) -> Option<f64> {
    let stat = stat_of(pid)?;
    let ended: f64 = fields_of(&stat)?.skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let living = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let child = stat_of(entry.ok()?.file_name().to_str()?.parse().ok()?)?;
        (parent_of(&child)? == pid).then(|| ticks_of(&child))?
    });
    Some(ticks_of(&stat)? + ended / TICKS_PER_SECOND + living.sum::<f64>())
}

/// The parent of a process of this machine that runs a program of this name.
pub(super) fn parent_of_process(pid: i32, program: &str) -> Option<i32> {
    let stat = stat_of(pid)?;
    let name = stat.split_once('(')?.1.rsplit_once(')')?.0;
    name.starts_with(program).then(|| parent_of(&stat))?
}

fn stat_of(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// What follows the name of the program, which is in parentheses and may hold anything.
fn fields_of(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

fn parent_of(stat: &str) -> Option<i32> {
    fields_of(stat)?.nth(1)?.parse().ok()
}

fn ticks_of(stat: &str) -> Option<f64> {
    let mut fields = fields_of(stat)?.skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

/// Seconds of CPU that the threads have used which are there now; exact, for a process that hardly works.
pub(super) fn cpu_seconds_of_threads() -> Option<f64> {
    let mut nanos = 0.0;
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let scheduled = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanos += scheduled.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanos / 1e9)
}

/// Memory of this process that is in RAM, in bytes.
pub(super) fn memory_now() -> Option<u64> {
    status("VmRSS:")
}

/// The part of it that this process alone has; the rest is the program's file, which all its processes share.
pub(super) fn memory_private() -> Option<u64> {
    status("RssAnon:")
}

/// The most memory that was in RAM since the last [`forget_peak`].
pub(super) fn memory_peak() -> Option<u64> {
    status("VmHWM:")
}

/// Starts to look for the peak anew. Where that is not allowed, the peak stays that of the whole process.
pub(super) fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn status(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The size of a file in bytes; zero when it is not there.
pub(super) fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 90 0 0 0 250 50 0 0 20 0 1 0 100 1000 200";
        assert_eq!(ticks_of(stat), Some(3.0));
        assert_eq!(ticks_of("nothing"), None);
        assert_eq!(parent_of(stat), Some(1));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(memory_now().unwrap() > 100_000 && memory_peak().unwrap() >= 100_000);
        assert!(cpu_seconds().is_some() && cpu_seconds_of_threads().unwrap() > 0.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_time_of_a_family_has_that_of_its_members() {
        let me = std::process::id() as i32;
        let own = cpu_seconds().unwrap();
        let family = cpu_seconds_of_family(me).unwrap();
        assert!(family >= own, "{family} has {own} in it");
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(parent_of_process(me, name.trim()).is_some_and(|parent| parent > 0));
        assert_eq!(parent_of_process(me, "another program"), None);
    }

    #[test]
    fn facts_are_in_one_line() {
        let text = Machine::of(Path::new(".")).text();
        assert!(text.contains("cores (") && text.contains(env!("CARGO_PKG_VERSION")) && !text.contains('\n'), "{text}");
    }
}
