//! What the demo found, as a table for people and as JSON for programs.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

/// The version of the JSON.
const SCHEMA_VERSION: u32 = 1;

/// What was checked and measured.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    pub(super) speed: Speed,
    pub(super) latencies: Vec<Latency>,
    pub(super) took: Duration,
}

/// Something that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) detail: String,
    /// Why it does not hold; nothing when it does.
    pub(super) problem: Option<String>,
}

/// How fast it went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    /// Tasks enqueued in a second.
    pub(super) enqueued: f64,
    /// Deliveries in a second, from the first to the last one.
    pub(super) deliveries: f64,
    /// Deliveries in the best second.
    pub(super) best: u64,
    /// Attempts of all tasks in a second.
    pub(super) attempts: f64,
}

/// How long something took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Latency {
    pub(super) name: &'static str,
    pub(super) p50: Duration,
    pub(super) p95: Duration,
    pub(super) p99: Duration,
}

impl Latency {
    /// From single measurements; zero without any.
    pub(super) fn of(name: &'static str, mut measured: Vec<Duration>) -> Self {
        measured.sort_unstable();
        let at = |percent: usize| percentile(&measured, percent);
        Self { name, p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// The smallest value that `percent` of the sorted values do not exceed.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl Report {
    /// Whether every check holds.
    pub(super) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.problem.is_none())
    }

    pub(super) fn to_table(&self) -> String {
        let mut table = bare();
        for check in &self.checks {
            let mark = if check.problem.is_none() { "✔" } else { "✘" };
            table.add_row([mark, check.name, check.problem.as_deref().unwrap_or(&check.detail)]);
        }
        let mut latencies = bare();
        latencies.add_row(["latency", "p50", "p95", "p99"]);
        for Latency { name, p50, p95, p99 } in &self.latencies {
            latencies.add_row([(*name).to_owned(), millis(*p50), millis(*p95), millis(*p99)]);
        }
        for column in latencies.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let Speed { enqueued, deliveries, best, attempts } = self.speed;
        let (failed, of) = (self.checks.iter().filter(|check| check.problem.is_some()).count(), self.checks.len());
        let verdict = match failed {
            0 => format!("All {of} checks hold"),
            1 => format!("1 of {of} checks does not hold"),
            _ => format!("{failed} of {of} checks do not hold"),
        };
        let text = format!(
            "{table}\n\nspeed  {} deliveries/s ({} in the best second), {} attempts/s, enqueued {} tasks/s\n\n{latencies}\n\n\
             {verdict}; {:.1} s.",
            grouped(deliveries as u64),
            grouped(best),
            grouped(attempts as u64),
            grouped(enqueued as u64),
            self.took.as_secs_f64()
        );
        // Columns are filled up with spaces to the right.
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n")
    }

    pub(super) fn to_json(&self) -> Value {
        let ms = |duration: Duration| duration.as_micros() as f64 / 1_000.0;
        let checks = self.checks.iter().map(|check| {
            json!({ "name": check.name, "holds": check.problem.is_none(), "detail": check.detail, "problem": check.problem })
        });
        let latencies = self.latencies.iter().map(|latency| {
            let Latency { name, p50, p95, p99 } = latency;
            json!({ "name": name, "p50_ms": ms(*p50), "p95_ms": ms(*p95), "p99_ms": ms(*p99) })
        });
        json!({
            "schema_version": SCHEMA_VERSION,
            "holds": self.holds(),
            "took_ms": ms(self.took),
            "checks": checks.collect::<Vec<_>>(),
            "speed": {
                "enqueued_per_s": self.speed.enqueued,
                "deliveries_per_s": self.speed.deliveries,
                "deliveries_in_best_s": self.speed.best,
                "attempts_per_s": self.speed.attempts,
            },
            "latencies": latencies.collect::<Vec<_>>(),
        })
    }
}

fn bare() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

fn millis(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1_000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{} ms", grouped(ms as u64)) }
}

/// `20,000`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(problem: Option<&str>) -> Report {
        let check = |problem: Option<&str>| Check {
            name: "delivered",
            detail: "all".to_owned(),
            problem: problem.map(str::to_owned),
        };
        Report {
            checks: vec![check(None), check(problem)],
            speed: Speed { enqueued: 1.0, deliveries: 2.0, best: 3, attempts: 4.0 },
            latencies: vec![Latency::of("start to end", vec![Duration::from_millis(2); 3])],
            took: Duration::from_secs(3),
        }
    }

    #[test]
    fn one_failed_check_fails_the_report() {
        assert!(report(None).holds() && report(None).to_table().contains("All 2 checks hold"));
        let failed = report(Some("3 are missing"));
        assert!(!failed.holds());
        let table = failed.to_table();
        assert!(table.contains("✘") && table.contains("3 are missing") && table.contains("1 of 2"), "{table}");
        assert_eq!(failed.to_json()["holds"], false);
        assert_eq!(failed.to_json()["checks"][1]["problem"], "3 are missing");
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let measured: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let latency = Latency::of("x", measured);
        assert_eq!([latency.p50, latency.p95, latency.p99].map(|p| p.as_millis()), [50, 95, 99]);
        assert_eq!(Latency::of("x", vec![]).p99, Duration::ZERO);
    }

    #[test]
    fn large_numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
