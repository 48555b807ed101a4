//! What the reader sees last: a table of the steps and the closing lines.

use std::fmt;
use std::time::Duration;

use super::totals::Totals;

/// What became of a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed(String),
    /// What it works on does not exist yet.
    Nothing(String),
    Failed(String),
    /// A step before it failed.
    NotRun,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, note) = match self {
            Self::Passed(note) => ("passed", note.as_str()),
            Self::Nothing(why) => ("nothing to run", why.as_str()),
            Self::Failed(what) => ("FAILED", what.as_str()),
            Self::NotRun => ("not run", ""),
        };
        out.write_str(word)?;
        if note.is_empty() { Ok(()) } else { write!(out, " ({note})") }
    }
}

/// One step in the table.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    pub(super) took: Duration,
    pub(super) totals: Totals,
}

impl Line {
    /// A step that an earlier failure kept from running.
    pub(super) fn not_run(name: &'static str) -> Self {
        Self { name, verdict: Verdict::NotRun, took: Duration::ZERO, totals: Totals::default() }
    }
}

/// The table and the closing lines. The last line counts tests, in the form that test reports share.
pub(super) fn render(lines: &[Line], took: Duration) -> String {
    let row = |line: &Line| format!("{:<10} {:>8}  {}", line.name, spell(line.took), line.verdict);
    let mut text: Vec<String> = lines.iter().map(row).collect();
    text.push(String::new());
    text.push(format!("windlass: {}, {}", count_steps(lines), spell(took)));
    let mut totals = Totals::default();
    for line in lines {
        totals += line.totals;
    }
    // A run without tests says nothing about tests, rather than that none failed.
    if totals != Totals::default() {
        text.push(format!("tests: {} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped));
    }
    text.join("\n")
}

fn count_steps(lines: &[Line]) -> String {
    let count = |matches: fn(&Verdict) -> bool| lines.iter().filter(|line| matches(&line.verdict)).count();
    let passed = count(|verdict| matches!(verdict, Verdict::Passed(_)));
    let always = [
        format!("{passed} {} passed", if passed == 1 { "step" } else { "steps" }),
        format!("{} failed", count(|verdict| matches!(verdict, Verdict::Failed(_)))),
    ];
    let sometimes = [
        (count(|verdict| matches!(verdict, Verdict::Nothing(_))), "with nothing to run"),
        (count(|verdict| matches!(verdict, Verdict::NotRun)), "not run"),
    ];
    let sometimes = sometimes.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    always.into_iter().chain(sometimes).collect::<Vec<_>>().join(", ")
}

/// A duration as people read it: `0.4s`, `41s`, `12m03s`.
pub(super) fn spell(took: Duration) -> String {
    let secs = took.as_secs();
    match secs {
        0..10 => format!("{:.1}s", took.as_secs_f64()),
        10..60 => format!("{secs}s"),
        _ => format!("{}m{:02}s", secs / 60, secs % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &'static str, verdict: Verdict, totals: Totals) -> Line {
        Line { name, verdict, took: Duration::from_secs(75), totals }
    }

    #[test]
    fn the_closing_lines_count_steps_and_tests() {
        let lines = [
            line("test", Verdict::Passed("nextest".to_owned()), Totals { passed: 40, failed: 0, skipped: 1 }),
            line("doctest", Verdict::Passed(String::new()), Totals { passed: 2, ..Totals::default() }),
            line("examples", Verdict::Nothing("no examples".to_owned()), Totals::default()),
        ];
        let text = render(&lines, Duration::from_secs(723));
        assert!(text.starts_with("test          1m15s  passed (nextest)\n"), "{text}");
        assert!(
            text.ends_with(
                "windlass: 2 steps passed, 0 failed, 1 with nothing to run, 12m03s\ntests: 42 passed, 0 failed, 1 skipped"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_run_without_tests_claims_none() {
        let text = render(
            &[line("fmt", Verdict::Failed("no".to_owned()), Totals::default()), Line::not_run("tidy")],
            Duration::ZERO,
        );
        assert!(text.ends_with("windlass: 0 steps passed, 1 failed, 1 not run, 0.0s"), "{text}");
    }
}
