//! What belongs to one machine: its folders, and the hosts its packages come from.

use crate::finding::Finding;
use crate::tree::Tree;

/// Put together here so that this file does not find itself.
const TRACES: [(&str, &str); 10] = [
    (concat!("/wo", "rk/"), "write the path relative to the repository"),
    (concat!("/tmp/", "wl"), "use a temporary folder made by the test"),
    (concat!("/ro", "ot/"), "use `$HOME` or a path relative to the repository"),
    (concat!("crates", ".io/"), "name the crate, not the host"),
    (concat!("index.crates", ".io"), "name the crate, not the host"),
    (concat!("py", "pi.org"), "name the package, not the host"),
    (concat!("files.python", "hosted.org"), "name the package, not the host"),
    (concat!("registry.", "npmjs.org"), "name the package, not the host"),
    (concat!("deb.", "debian.org"), "name the package, not the host"),
    (concat!("snapshot.", "debian.org"), "name the package, not the host"),
];
/// Lock files name their registry by design.
const LOCK_FILES: [&str; 2] = ["Cargo.lock", "package-lock.json"];

/// Reports every trace of a machine.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| !LOCK_FILES.iter().any(|lock| file.path.ends_with(lock))) {
        for (at, line) in file.text.lines().enumerate() {
            let found = TRACES.iter().find(|(trace, _)| contains_from_its_start(line, trace));
            findings.extend(found.map(|(trace, fix)| Finding::at(&file.path, at + 1, format!("`{trace}`"), *fix)));
        }
    }
    findings
}

/// Whether the trace is in the line as a path or host of its own, not as the middle of a longer one (`/srv/work/x`).
fn contains_from_its_start(line: &str, trace: &str) -> bool {
    line.match_indices(trace).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|char| char.is_alphanumeric() || matches!(char, '_' | '-' | '}' | '.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trace_is_found() {
        for (trace, _) in TRACES {
            let text = format!("see {trace}file\n");
            assert_eq!(check(&Tree::of(&[("docs/a.md", &text)])).len(), 1, "{trace}");
        }
    }

    #[test]
    fn lock_files_and_longer_paths_are_no_traces() {
        let host = format!("source = \"{}\"\n", TRACES[4].0);
        assert_eq!(check(&Tree::of(&[("Cargo.lock", &host)])).len(), 0);
        let longer = format!("cd /srv{}x\n", TRACES[0].0);
        assert_eq!(check(&Tree::of(&[("a.md", &longer)])).len(), 0);
    }
}
