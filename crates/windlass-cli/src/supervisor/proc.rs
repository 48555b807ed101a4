//! What the system knows of processes: their memory, and who belongs to whose session.
//!
//! Linux only; elsewhere nothing is known, and the limits of memory have no effect.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Processes may start others while they are ended: so often all of them are looked for.
const ROUNDS: u32 = 10;

/// The resident memory of a process, in bytes.
pub(super) fn resident(pid: u32) -> Option<u64> {
    resident_of(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// Kills what a child has left behind: every process of its session, whatever group it is in.
pub(super) fn end_session(leader: u32) {
    let Some(leader) = pid(leader) else { return };
    // Where sessions cannot be listed, at least those of its own group.
    let _ = kill_process_group(leader, Signal::KILL);
    for _ in 0..ROUNDS {
        let left = members(leader);
        if left.is_empty() {
            return;
        }
        for member in left {
            // It may have ended by itself.
            let _ = kill_process(member, Signal::KILL);
        }
    }
}

fn members(leader: Pid) -> Vec<Pid> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return Vec::new() };
    folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(pid)
        .filter(|member| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.as_raw_pid())).unwrap_or_default();
            session_of(&stat) == Some(leader.as_raw_pid())
        })
        .collect()
}

/// The session of a living process. Its name comes before and may hold anything, also spaces and brackets.
fn session_of(stat: &str) -> Option<i32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // The parent and the group come between.
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

pub(super) fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_of_a_process_is_read() {
        assert_eq!(resident_of("Name:\tw\nVmRSS:\t   2048 kB\nThreads:\t3\n"), Some(2 << 20));
        assert_eq!(resident_of("Name:\tw\nState:\tZ\n"), None, "one that has ended has none");
        if cfg!(target_os = "linux") {
            assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        }
    }

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session_of("41 (sh) S 7 41 40 0 -1"), Some(40));
        assert_eq!(session_of("41 (a) b) 1 2) R 7 41 40 0 -1"), Some(40));
        assert_eq!(session_of("41 (sh) Z 7 41 40 0 -1"), None, "who is dead already need not be killed");
        assert_eq!(session_of(""), None);
    }
}
