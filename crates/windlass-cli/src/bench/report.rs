//! What a measurement answers: numbers for machines and for people, and what they should be.

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::stats::{Latencies, Runs, rounded, thousands};

/// What was measured: for machines and for people.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) json: Map<String, Value>,
    lines: Vec<(String, String)>,
    goals: Vec<Goal>,
}

/// What a number should be.
#[derive(Debug)]
pub(super) struct Goal {
    what: &'static str,
    value: f64,
    bound: Bound,
    unit: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub(super) fn at_least(what: &'static str, value: f64, least: f64, unit: &'static str) -> Self {
        Self { what, value, bound: Bound::AtLeast(least), unit }
    }

    pub(super) fn at_most(what: &'static str, value: f64, most: f64, unit: &'static str) -> Self {
        Self { what, value, bound: Bound::AtMost(most), unit }
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.value >= least,
            Bound::AtMost(most) => self.value <= most,
        }
    }

    fn text(&self) -> String {
        let number = |value: f64| if value >= 1_000.0 { thousands(value as u64) } else { rounded(value).to_string() };
        let (bound, limit) = match self.bound {
            Bound::AtLeast(least) => ("at least", number(least)),
            Bound::AtMost(most) => ("at most", number(most)),
        };
        let Self { what, value, unit, .. } = self;
        format!("{what}: {} {unit}, the goal is {bound} {limit} {unit}", number(*value))
    }

    fn json(&self) -> Value {
        let mut json =
            json!({ "what": self.what, "value": rounded(self.value), "unit": self.unit, "met": self.is_met() });
        let (bound, limit) = match self.bound {
            Bound::AtLeast(least) => ("at_least", least),
            Bound::AtMost(most) => ("at_most", most),
        };
        json[bound] = json!(limit);
        json
    }
}

impl Report {
    pub(super) fn new(measurement: &'static str, store: &'static str) -> Self {
        let mut report = Self { json: Map::new(), lines: Vec::new(), goals: Vec::new() };
        report.put("measurement", json!(measurement), measurement.to_owned());
        report.put("store", json!(store), store.to_owned());
        report
    }

    /// A number under the name that it has in JSON; people see the name without its unit, and a text with it.
    pub(super) fn put(&mut self, key: &str, json: Value, text: String) {
        self.json.insert(key.to_owned(), json);
        let label = ["_tasks_per_s", "_calls_per_s", "_per_s", "_percent", "_bytes", "_us_per_task", "_tasks", "_s"]
            .iter()
            .find_map(|unit| key.strip_suffix(unit))
            .unwrap_or(key);
        self.lines.push((label.replace('_', " "), text));
    }

    /// A rate of several runs.
    pub(super) fn rate(&mut self, key: &str, rate: &Runs, unit: &str) {
        self.put(key, rate.json(), rate.text(unit));
    }

    /// Times of several runs.
    pub(super) fn times(&mut self, key: &str, times: &Latencies) {
        self.put(key, times.json(), times.text());
    }

    /// CPU time in microseconds for each task, which is milliseconds for a thousand.
    pub(super) fn cpu(&mut self, key: &str, micros: &Runs) {
        if micros.count() == 0 {
            self.put(key, Value::Null, "not on this machine".to_owned());
            return;
        }
        let per_thousand = micros.median() / 1e3;
        let text = format!("{} = {per_thousand:.4} s per 1,000 tasks", micros.text("us a task"));
        self.put(key, micros.json(), text);
    }

    /// What a number should be; printed with whether it is.
    pub(super) fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// The goals that are missed, in words.
    pub(super) fn missed(&self) -> Option<String> {
        let missed: Vec<String> = self.goals.iter().filter(|goal| !goal.is_met()).map(Goal::text).collect();
        (!missed.is_empty()).then(|| missed.join("; "))
    }

    pub(super) fn with(mut self, machine: &Machine) -> (Value, Vec<(String, String)>) {
        self.json.insert("goals".to_owned(), self.goals.iter().map(Goal::json).collect());
        for goal in &self.goals {
            let met = if goal.is_met() { "goal met" } else { "goal missed" };
            self.lines.push((met.to_owned(), goal.text()));
        }
        self.json.insert("machine".to_owned(), machine.json());
        self.lines.push(("machine".to_owned(), machine.text()));
        (Value::Object(self.json), self.lines)
    }
}
