//! Every way to write every key, and what someone may have meant who wrote something else.

use std::collections::{BTreeMap, BTreeSet};

use super::VARIABLE_PREFIX;
use super::key::{Alias, KeyInfo, variable_of};
use super::keys::RESERVED_VARIABLES;

/// A longer name is no slip of the pen, and comparing it would be slow.
const COMPARED_BYTES_MAX: usize = 100;
/// How alike two names are before one is suggested for the other, 0 to 1.
const ALIKE_MIN: f64 = 0.6;

/// What a name sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    /// The key, as its place in the table.
    pub(super) index: usize,
    /// What is written.
    pub(super) content: Content,
    /// 0 for the key's own name, then its aliases in their order.
    pub(super) rank: usize,
}

/// What is written under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The value.
    Value,
    /// The path of a file that holds it.
    Path,
}

/// The names of all keys.
pub(super) struct Spellings {
    /// In the file and in flags: `worker.slots`.
    pub(super) keys: BTreeMap<String, Target>,
    /// In the environment and `.env`: `WINDLASS_WORKER__SLOTS`.
    pub(super) variables: BTreeMap<String, Target>,
    /// `worker`, `tasks`, `tasks.http`.
    pub(super) sections: BTreeSet<String>,
}

impl Spellings {
    /// # Panics
    /// When two keys go by the same name: a mistake in the tables.
    pub(super) fn of(infos: &[&KeyInfo]) -> Self {
        let mut all = Self { keys: BTreeMap::new(), variables: BTreeMap::new(), sections: BTreeSet::new() };
        for (index, info) in infos.iter().enumerate() {
            all.add_key(index, info, info.name, 0);
            for (at, alias) in info.aliases.iter().enumerate() {
                match alias {
                    Alias::Key { name, .. } => all.add_key(index, info, name, at + 1),
                    Alias::Variable { name, .. } => all.add_variable(index, info, name, at + 1),
                }
            }
        }
        all
    }

    fn add_key(&mut self, index: usize, info: &KeyInfo, name: &str, rank: usize) {
        insert(&mut self.keys, name.to_owned(), Target { index, content: Content::Value, rank });
        if info.may_be_in_a_file() {
            insert(&mut self.keys, format!("{name}_file"), Target { index, content: Content::Path, rank });
        }
        self.sections.extend(name.match_indices('.').map(|(at, _)| name[..at].to_owned()));
        self.add_variable(index, info, &variable_of(name), rank);
    }

    fn add_variable(&mut self, index: usize, info: &KeyInfo, name: &str, rank: usize) {
        insert(&mut self.variables, name.to_owned(), Target { index, content: Content::Value, rank });
        if info.may_be_in_a_file() {
            insert(&mut self.variables, format!("{name}_FILE"), Target { index, content: Content::Path, rank });
        }
    }

    /// What to do about a key that nobody knows.
    pub(super) fn advise_key(&self, unknown: &str) -> String {
        let names = self.keys.keys().chain(&self.sections);
        match closest(unknown, names.map(|name| (name.as_str(), name.as_str()))) {
            Some(name) => format!("is unknown: did you mean `{name}`?"),
            None => "is unknown: remove it, or see `windlass config show` for all keys".to_owned(),
        }
    }

    /// What to do about a variable that begins like ours and that nobody knows.
    pub(super) fn advise_variable(&self, unknown: &str) -> String {
        // Compared as the keys they are made from, so that the wrong section is recognised here too.
        let as_keys: Vec<_> = self.variables.keys().filter_map(|name| Some((key_of(name)?, name.as_str()))).collect();
        let names = as_keys.iter().map(|(key, name)| (key.as_str(), *name));
        match key_of(unknown).and_then(|unknown| closest(&unknown, names)) {
            Some(name) => format!("is unknown: did you mean {name}?"),
            None => "is unknown: unset it, or see `windlass config show` for all keys".to_owned(),
        }
    }

    /// Whether a variable is nobody's mistake although no key goes by it.
    pub(super) fn is_foreign(variable: &str, value: &str) -> bool {
        !variable.starts_with(VARIABLE_PREFIX)
            || RESERVED_VARIABLES.iter().any(|(name, _)| *name == variable)
            || OF_OUR_TESTS.iter().any(|prefix| variable.starts_with(prefix))
            || is_service_link(variable, value)
    }
}

/// What our own tests are told in the environment, where they run our programs too.
const OF_OUR_TESTS: [&str; 3] = ["WINDLASS_TEST_", "WINDLASS_CHAOS_", "WINDLASS_SIM_"];

/// Kubernetes puts these into every container beside a service called `windlass` or `windlass-web`:
/// `WINDLASS_SERVICE_HOST`, `WINDLASS_WEB_PORT=tcp://10.0.0.1:80`, `WINDLASS_WEB_PORT_80_TCP_ADDR`.
fn is_service_link(variable: &str, value: &str) -> bool {
    let is_of_port = |(_, rest): (&str, &str)| rest.starts_with(|char: char| char.is_ascii_digit());
    variable.ends_with("_SERVICE_HOST")
        || variable.ends_with("_SERVICE_PORT")
        || variable.contains("_SERVICE_PORT_")
        || (variable.ends_with("_PORT") && value.contains("://"))
        || variable.split_once("_PORT_").is_some_and(is_of_port)
}

fn insert(names: &mut BTreeMap<String, Target>, name: String, target: Target) {
    let taken = names.insert(name.clone(), target);
    assert!(taken.is_none(), "two keys of the configuration go by the name `{name}`");
}

/// The key that a variable of ours would be made from.
fn key_of(variable: &str) -> Option<String> {
    variable.strip_prefix(VARIABLE_PREFIX).map(|rest| rest.to_ascii_lowercase().replace("__", "."))
}

/// What `unknown` is most likely a slip of: of names and what they stand for, the latter.
fn closest<'n>(unknown: &str, names: impl IntoIterator<Item = (&'n str, &'n str)>) -> Option<&'n str> {
    if unknown.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let scored = names.into_iter().map(|(name, meant)| (likeness(unknown, name), meant));
    let best = scored.max_by(|(left, _), (right, _)| left.total_cmp(right))?;
    (best.0 >= ALIKE_MIN).then_some(best.1)
}

/// How alike two names are, 0 to 1. In the same section only the last parts count: what two names share for sure says
/// nothing about a slip. The right key in the wrong section is very much alike.
fn likeness(unknown: &str, name: &str) -> f64 {
    let whole = strsim::normalized_damerau_levenshtein(unknown, name);
    let (section, last) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    let (name_section, name_last) = name.rsplit_once('.').unwrap_or(("", name));
    let parts = if section == name_section {
        strsim::normalized_damerau_levenshtein(last, name_last)
    } else if last == name_last {
        0.9
    } else {
        whole * 0.9
    };
    // The whole decides between two that are alike in part.
    parts * 0.99 + whole * 0.01
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        let infos: Vec<_> = KEYS.iter().map(crate::config::Key::info).collect();
        let spellings = Spellings::of(&infos);
        for (unknown, meant) in [
            ("worker.slot", "worker.slots"),
            ("wroker.slots", "worker.slots"),
            ("slots", "worker.slots"),
            ("worker.timeout", "tasks.http.timeout"),
            ("tasks.http.time_out", "tasks.http.timeout"),
            ("workers", "worker"),
            ("Store", "store"),
        ] {
            assert_eq!(spellings.advise_key(unknown), format!("is unknown: did you mean `{meant}`?"), "{unknown}");
        }
        for (unknown, meant) in [
            ("WINDLASS_WORKER_SLOTS", "WINDLASS_WORKER__SLOTS"),
            ("WINDLASS_SLOTS", "WINDLASS_WORKER__SLOTS"),
            ("WINDLASS_STORES", "WINDLASS_STORE"),
            ("WINDLASS_TASKS__HTTP_TIMEOUT", "WINDLASS_TASKS__HTTP__TIMEOUT"),
        ] {
            assert_eq!(spellings.advise_variable(unknown), format!("is unknown: did you mean {meant}?"), "{unknown}");
        }
        for unknown in ["colour", "tasks.http.proxy", "x".repeat(1_000_000).as_str()] {
            assert!(spellings.advise_key(unknown).contains("config show"), "{unknown}");
        }
        assert!(spellings.advise_variable("WINDLASS_COLOUR").contains("config show"));
    }

    #[test]
    fn variables_of_a_cluster_are_nobodys_mistake() {
        for (variable, value) in [
            ("WINDLASS_SERVICE_HOST", "10.0.0.1"),
            ("WINDLASS_WEB_SERVICE_PORT", "80"),
            ("WINDLASS_WEB_SERVICE_PORT_HTTP", "80"),
            ("WINDLASS_PORT", "tcp://10.0.0.1:80"),
            ("WINDLASS_WEB_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("WINDLASS_CONFIG", "a.toml"),
            ("WINDLASS_TEST_REDIS_URL", "redis://127.0.0.1"),
            ("PATH", "/bin"),
        ] {
            assert!(Spellings::is_foreign(variable, value), "{variable}");
        }
        for (variable, value) in [("WINDLASS_PORT", "80"), ("WINDLASS_SLOTS", "8")] {
            assert!(!Spellings::is_foreign(variable, value), "{variable}");
        }
    }
}
