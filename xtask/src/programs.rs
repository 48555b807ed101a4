//! The programs that cargo has built, by kind and name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The programs that a build made.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    /// Binaries and examples by kind and name.
    by_name: BTreeMap<(String, String), PathBuf>,
    /// How many test programs there are besides.
    tests: usize,
}

impl Programs {
    /// The binary or example with this name.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Path> {
        self.by_name.get(&(kind.to_owned(), name.to_owned())).map(PathBuf::as_path)
    }

    /// How many binaries and examples there are.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// How many test programs there are besides.
    pub(crate) fn tests(&self) -> usize {
        self.tests
    }

    /// Reads cargo's messages, one JSON object a line.
    pub(crate) fn of_messages(messages: &str) -> Self {
        let mut programs = Self::default();
        for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let target = &message["target"];
            let (Some(executable), Some(kind), Some(name)) =
                (message["executable"].as_str(), target["kind"][0].as_str(), target["name"].as_str())
            else {
                continue;
            };
            // A test harness of a binary has the binary's name and kind; it is not the binary.
            if message["profile"]["test"] == true {
                programs.tests += 1;
            } else if matches!(kind, "bin" | "example") {
                programs.by_name.insert((kind.to_owned(), name.to_owned()), PathBuf::from(executable));
            }
        }
        programs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_their_test_harnesses() {
        let message = |test: bool, path: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "profile": { "test": test },
                "target": { "kind": ["bin"], "name": "windlass" }, "executable": path,
            })
            .to_string()
        };
        let messages =
            format!("{}\n{}\nnot json\n", message(false, "/t/windlass"), message(true, "/t/deps/windlass-1"));
        let programs = Programs::of_messages(&messages);
        assert_eq!(programs.find("bin", "windlass"), Some(Path::new("/t/windlass")));
        assert_eq!(programs.tests, 1);
    }
}
