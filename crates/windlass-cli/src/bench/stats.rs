//! Numbers from many measurements: percentiles, and the median of runs with its spread. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Values below this are counted exactly; above, every doubling has half as many steps: an error below 0.8 %.
const EXACT: u64 = 256;
const STEPS: u64 = EXACT / 2;
const DOUBLINGS: u64 = 64 - EXACT.trailing_zeros() as u64;

/// Counts values by their size, in fixed memory: a run of a million tasks must not show in what is measured.
#[derive(Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let places = (EXACT + DOUBLINGS * STEPS) as usize;
        Self { counts: vec![0; places], total: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts a value.
    pub(super) fn add(&mut self, value: u64) {
        self.counts[place(value)] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Counts everything that another one has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many values there are.
    pub(super) fn count(&self) -> u64 {
        self.total
    }

    /// Their mean; zero when there are none.
    pub(super) fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    /// The largest.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The value that this share of all values does not exceed; zero when there are none.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return value_at(place).min(self.max);
            }
        }
        0
    }

    /// As JSON, with the unit in every key.
    pub(super) fn json(&self, unit: &str) -> Value {
        let named = |name: &str| format!("{name}_{unit}");
        json!({
            "count": self.total,
            named("p50"): self.quantile(0.50),
            named("p95"): self.quantile(0.95),
            named("p99"): self.quantile(0.99),
            named("max"): self.max,
        })
    }
}

impl Histogram {
    /// The quantiles of microseconds, for people.
    pub(super) fn text(&self) -> String {
        let quantile = |share| micros(self.quantile(share));
        format!("p50 {}, p95 {}, p99 {}, max {}", quantile(0.50), quantile(0.95), quantile(0.99), micros(self.max))
    }
}

/// How it goes from one process to another: only the places that hold something.
#[derive(Serialize, Deserialize)]
struct Sparse {
    counts: Vec<(usize, u64)>,
    sum: u64,
    max: u64,
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        Sparse { counts, sum: self.sum, max: self.max }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sparse = Sparse::deserialize(deserializer)?;
        let mut histogram = Self { sum: sparse.sum, max: sparse.max, ..Self::default() };
        for (place, count) in sparse.counts {
            let known = histogram.counts.get_mut(place).ok_or_else(|| serde::de::Error::custom("a place too far"))?;
            *known += count;
            histogram.total += count;
        }
        Ok(histogram)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({} values)", self.total)
    }
}

fn place(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let doubling = u64::from(value.ilog2()) - u64::from(EXACT.ilog2());
    let step = (value >> (doubling + 1)) - STEPS;
    (EXACT + doubling * STEPS + step) as usize
}

/// The middle of the values that share a place.
fn value_at(place: usize) -> u64 {
    let place = place as u64;
    if place < EXACT {
        return place;
    }
    let (doubling, step) = ((place - EXACT) / STEPS, (place - EXACT) % STEPS);
    ((step + STEPS) << (doubling + 1)) + (1 << doubling)
}

/// What several runs have given.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs(Vec<f64>);

impl Runs {
    pub(super) fn add(&mut self, value: f64) {
        let place = self.0.partition_point(|other| *other < value);
        self.0.insert(place, value);
    }

    /// Adds what one run has given, if it has.
    pub(super) fn add_known(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.add(value);
        }
    }

    /// How many runs there were.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one, or the mean of the two in the middle; zero when there are none.
    pub(super) fn median(&self) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        f64::midpoint(self.0[last / 2], self.0[last.div_ceil(2)])
    }

    fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    pub(super) fn json(&self) -> Value {
        json!({ "median": rounded(self.median()), "min": rounded(self.min()), "max": rounded(self.max()) })
    }

    /// `41,200 tasks/s (39,800 to 42,000)`.
    pub(super) fn text(&self, unit: &str) -> String {
        let number = |value: f64| if value >= 100.0 { thousands(value as u64) } else { format!("{value:.2}") };
        let median = number(self.median());
        if self.0.len() < 2 {
            return format!("{median} {unit}");
        }
        format!("{median} {unit} ({} to {})", number(self.min()), number(self.max()))
    }
}

/// Times that were measured in several runs: all of them together, and how far the runs differ.
#[derive(Debug, Clone, Default)]
pub(super) struct Latencies {
    all: Histogram,
    p50: Runs,
    p99: Runs,
}

impl Latencies {
    /// Adds a run, in microseconds. One without values says nothing.
    pub(super) fn add(&mut self, run: &Histogram) {
        if run.count() == 0 {
            return;
        }
        self.all.merge(run);
        self.p50.add(run.quantile(0.50) as f64);
        self.p99.add(run.quantile(0.99) as f64);
    }

    pub(super) fn count(&self) -> u64 {
        self.all.count()
    }

    /// The median of the runs' medians, in microseconds.
    pub(super) fn p50(&self) -> f64 {
        self.p50.median()
    }

    /// The median of the runs' 99th percentiles, in microseconds.
    pub(super) fn p99(&self) -> f64 {
        self.p99.median()
    }

    /// The quantiles of all values, and the median and the range of those of the runs.
    pub(super) fn json(&self) -> Value {
        let mut json = self.all.json("us");
        json["runs"] = json!({ "p50_us": self.p50.json(), "p99_us": self.p99.json() });
        json
    }

    pub(super) fn text(&self) -> String {
        let all = self.all.text();
        if self.p99.count() < 2 {
            return all;
        }
        let number = |value: f64| micros(value as u64);
        let runs = &self.p99;
        format!("{all}; p99 of the runs {} ({} to {})", number(runs.median()), number(runs.min()), number(runs.max()))
    }
}

/// What is worth keeping of a number that was measured.
pub(super) fn rounded(value: f64) -> f64 {
    if value >= 1_000.0 { value.round() } else { (value * 1_000.0).round() / 1_000.0 }
}

/// `1,234,567`.
pub(super) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds in the unit that reads best.
fn micros(value: u64) -> String {
    match value {
        0..1_000 => format!("{value} us"),
        1_000..1_000_000 => format!("{:.2} ms", value as f64 / 1e3),
        _ => format!("{:.2} s", value as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_values_are_exact_and_large_ones_within_a_percent() {
        for value in (0..2_000).chain([10_000, 123_456, 9_999_999, u64::from(u32::MAX), u64::MAX / 3]) {
            let mut histogram = Histogram::default();
            histogram.add(value);
            // The largest is known exactly, so another one above it shows what the place says.
            histogram.add(u64::MAX);
            let answer = histogram.quantile(0.5);
            let error = answer.abs_diff(value) as f64;
            assert!(error <= value as f64 * 0.01 && (value >= EXACT || error == 0.0), "{value}: {answer}");
        }
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|value| histogram.add(value));
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99), histogram.quantile(1.0)), (50, 99, 100));
        assert_eq!((histogram.max(), histogram.count()), (100, 100));
        assert!((histogram.mean() - 50.5).abs() < 1e-9);
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }

    #[test]
    fn merging_counts_both() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.add(3);
        other.add(7_000);
        one.merge(&other);
        assert_eq!((one.count(), one.max(), one.quantile(0.5)), (2, 7_000, 3));
    }

    #[test]
    fn the_median_of_runs_is_the_middle() {
        let mut runs = Runs::default();
        assert!(runs.median().abs() < 1e-9);
        for value in [5.0, 1.0, 3.0] {
            runs.add(value);
        }
        assert_eq!(runs.text("tasks/s"), "3.00 tasks/s (1.00 to 5.00)");
        runs.add(4.0);
        assert!((runs.median() - 3.5).abs() < 1e-9);
    }

    #[test]
    fn a_histogram_goes_to_another_process_and_back() {
        let mut histogram = Histogram::default();
        for value in [0, 3, 7_000, 7_000, u64::from(u32::MAX)] {
            histogram.add(value);
        }
        let text = serde_json::to_string(&histogram).unwrap();
        assert!(text.len() < 200, "only what is there is written: {text}");
        let back: Histogram = serde_json::from_str(&text).unwrap();
        assert_eq!((back.count(), back.max(), back.quantile(0.5)), (5, u64::from(u32::MAX), histogram.quantile(0.5)));
        assert!((back.mean() - histogram.mean()).abs() < 1e-9);
        assert!(serde_json::from_str::<Histogram>(r#"{"counts":[[999999,1]],"sum":0,"max":0}"#).is_err());
    }

    #[test]
    fn latencies_take_the_median_of_the_runs_and_show_their_range() {
        let mut latencies = Latencies::default();
        for micros in [100, 300, 200] {
            let mut run = Histogram::default();
            run.add(micros);
            latencies.add(&run);
        }
        latencies.add(&Histogram::default());
        assert_eq!(latencies.count(), 3, "an empty run says nothing");
        assert!((latencies.p50() - 200.0).abs() < 2.0 && (latencies.p99() - 200.0).abs() < 2.0);
        let json = latencies.json();
        assert_eq!((&json["max_us"], &json["count"]), (&300.into(), &3.into()));
        assert!(json["runs"]["p99_us"]["min"].as_f64().unwrap() < 102.0);
        assert!(latencies.text().contains("p99 of the runs"), "{}", latencies.text());
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((thousands(999).as_str(), thousands(1_234_567).as_str()), ("999", "1,234,567"));
        assert_eq!((micros(12), micros(1_500), micros(2_000_000)), ("12 us".into(), "1.50 ms".into(), "2.00 s".into()));
    }
}
