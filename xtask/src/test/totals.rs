//! How many tests ran, read from the closing lines of the test runners.

use std::ops::AddAssign;

use crate::process::without_colours;

/// Tests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Totals {
    /// How many ran.
    pub(super) fn ran(self) -> u64 {
        self.passed + self.failed
    }

    /// Adds up every closing line of `cargo test`, `cargo nextest` and `pytest` in the output.
    pub(super) fn of_output(output: &str) -> Self {
        let mut totals = Self::default();
        for line in without_colours(output).lines() {
            // What a test has printed that nextest shows is indented, its own closing line too: nextest has counted it.
            let counts = if let Some(counts) = line.strip_prefix("test result: ") {
                counts
            } else if let Some((_, counts)) =
                line.trim_start().strip_prefix("Summary [").and_then(|rest| rest.split_once(" run: "))
            {
                counts
            } else if let Some(counts) = pytest_counts(line) {
                counts
            } else {
                continue;
            };
            totals += Self {
                passed: count_before(counts, "passed"),
                failed: count_before(counts, "failed")
                    + count_before(counts, "error")
                    + count_before(counts, "errors")
                    + count_before(counts, "timed out")
                    + count_before(counts, "exec failed"),
                skipped: count_before(counts, "skipped") + count_before(counts, "ignored"),
            };
        }
        totals
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The counts of pytest's closing line: `== 3 failed, 12 passed, 1 skipped in 4.20s ==`; without its rulers when it is quiet.
fn pytest_counts(line: &str) -> Option<&str> {
    let (counts, time) = line.trim_matches(['=', ' ']).rsplit_once(" in ")?;
    let begins = counts.split(' ').next()?.parse::<u64>().is_ok();
    let takes = time.split(' ').next()?.strip_suffix('s')?.parse::<f64>().is_ok();
    (begins && takes).then_some(counts)
}

/// The number right before the first `word`; 0 when it does not occur.
fn count_before(counts: &str, word: &str) -> u64 {
    let parts = counts.split([',', ';', '(', ')', '.']).map(str::trim);
    let count = parts.filter_map(|part| part.strip_suffix(word)).find_map(|number| number.trim().parse().ok());
    count.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_test_is_added_up_over_its_binaries() {
        let output = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
            test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(Totals::of_output(output), Totals { passed: 7, failed: 3, skipped: 1 });
    }

    #[test]
    fn nextest_is_read_through_its_colours() {
        let output = "\u{1b}[32;1m     Summary\u{1b}[0m [   1.2s] 27 tests run: 25 passed (1 slow), 1 failed, 1 timed out, 2 skipped\n";
        assert_eq!(Totals::of_output(output), Totals { passed: 25, failed: 2, skipped: 2 });
    }

    #[test]
    fn a_test_that_nextest_shows_is_counted_once() {
        let output = "        FAIL [   0.1s] a_test\n  stdout ---\n    test result: FAILED. 0 passed; 1 failed; 0 ignored\n\
            \u{20}    Summary [   1.2s] 2 tests run: 1 passed, 1 failed, 0 skipped\n";
        assert_eq!(Totals::of_output(output), Totals { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn pytest_is_read_with_and_without_its_rulers() {
        let ruled = "==== 2 failed, 30 passed, 4 skipped, 1 warning, 3 errors in 61.20s (0:01:01) ====\n";
        assert_eq!(Totals::of_output(ruled), Totals { passed: 30, failed: 5, skipped: 4 });
        assert_eq!(Totals::of_output("1 passed in 0.01s\n"), Totals { passed: 1, failed: 0, skipped: 0 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Totals::of_output("we passed 3 passed\n"), Totals::default());
    }
}
