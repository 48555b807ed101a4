//! `windlass doctor`: what is wrong, and what to do about it.

mod look;

use std::fmt::Write as _;

use serde_json::json;

use crate::args::Global;
use crate::exit::{Exit, Outcome};
use crate::output::{Out, Tone};
use crate::program::{Program, as_typed};

/// Look for what is wrong and say what to do about it
///
/// Checks the configuration, the store, the disk, the clock, nodes, queues, parked tasks and dead letters. Exit code 1
/// when something does not work; warnings do not count.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass doctor
  windlass doctor --store sqlite:/var/lib/app/tasks.db
  windlass doctor --json")]
pub(crate) struct Args {}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Good,
    /// It works, but somebody should look.
    Warning,
    /// It does not work.
    Bad,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warn",
            Self::Bad => "bad",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Good => Tone::Good,
            Self::Warning => Tone::Warn,
            Self::Bad => Tone::Bad,
        }
    }
}

/// What was checked, what was seen, and what to do about it.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    name: &'static str,
    level: Level,
    seen: String,
    advice: String,
}

impl Finding {
    pub(crate) fn good(name: &'static str, seen: impl Into<String>) -> Self {
        Self { name, level: Level::Good, seen: seen.into(), advice: String::new() }
    }

    pub(crate) fn warning(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, seen: seen.into(), advice: as_typed(&advice.into()).into_owned() }
    }

    pub(crate) fn bad(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, level: Level::Bad, seen: seen.into(), advice: as_typed(&advice.into()).into_owned() }
    }
}

pub(crate) async fn run(global: &Global, _: &Args, program: Program) -> Outcome {
    let out = Out::of(global)?;
    let findings = look::at_everything(global, &program, &out).await;
    report(&out, &findings)
}

fn report(out: &Out, findings: &[Finding]) -> Outcome {
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Good);
    let checks: Vec<_> = findings
        .iter()
        .map(|one| json!({"name": one.name, "status": one.level.word(), "seen": one.seen, "advice": one.advice}))
        .collect();
    out.object(worst.word(), json!({"status": worst.word(), "checks": checks}), || text(out, findings))?;
    Ok(if worst == Level::Bad { Exit::Failed } else { Exit::Ok })
}

/// Writing to a string cannot fail.
fn text(out: &Out, findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = out.tone(&format!("{:4}", finding.level.word()), finding.level.tone());
        let seen = finding.seen.replace('\n', &format!("\n{:width$}        ", ""));
        let _ = writeln!(text, "{mark}  {:width$}  {seen}", finding.name);
        if !finding.advice.is_empty() {
            let _ = writeln!(text, "{:width$}        {} {}", "", out.tone("try:", Tone::Strong), finding.advice);
        }
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (bad, warnings) = (count(Level::Bad), count(Level::Warning));
    let _ = match (bad, warnings) {
        (0, 0) => writeln!(text, "\neverything is as it should be"),
        (0, warnings) => writeln!(text, "\nit works; {warnings} to look at"),
        (bad, warnings) => writeln!(text, "\n{bad} wrong, {warnings} to look at"),
    };
    text
}
