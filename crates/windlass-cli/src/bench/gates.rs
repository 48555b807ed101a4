//! `bench gates`: what limits cost that stop nothing.
//!
//! Each pair of runs drains the same tasks twice, on fresh queues: without limits, and with a rate and a concurrency that
//! are far above what is reached. The share of a pair is what the limits leave of the rate. With `--keys` the tasks have
//! keys in both runs, and each key has limits of its own as well. Which of the two comes first changes from pair to pair:
//! whatever else the machine does hits both.

use std::time::Duration;

use serde_json::json;
use windlass::QueueName;
use windlass::limit::{Limit, LimitChange, RATE_COUNT_MAX, Rate, Rule, Subject};

use super::bed::Open;
use super::drain::{self, Plan, Setting};
use super::stats::{Runs, thousands};
use super::{Bench, Goal, Repeat, Report};
use crate::exit::Problem;

/// What limits leave of the rate, in percent.
const SHARE_MIN: f64 = 80.0;

/// What limits cost that stop nothing
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench gates                               SQLite, a rate and a concurrency for the queue
  windlass bench gates --keys 50                     and for each of 50 keys
  windlass bench gates --store postgres://127.0.0.1/test --runs 5 --check")]
pub(crate) struct Args {
    #[command(flatten)]
    plan: Plan,
    /// The tasks have so many keys, and each key has limits too
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    keys: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let (place, runs) = (&bench.place, args.repeat.runs);
    let (mut without, mut with, mut share) = (Runs::default(), Runs::default(), Runs::default());
    for number in 1..=runs {
        let drain = async |limited| {
            drain::one(place, &args.plan, Setting { keys: args.keys, limited, ..Setting::default() }).await
        };
        let (unlimited, limited) = if number % 2 == 0 {
            let limited = drain(true).await?.drain;
            (drain(false).await?.drain, limited)
        } else {
            (drain(false).await?.drain, drain(true).await?.drain)
        };
        let text = |rate: f64| thousands(rate as u64);
        bench.progress(format_args!(
            "run {number} of {runs}: {} tasks/s without limits, {} with",
            text(unlimited),
            text(limited)
        ));
        without.add(unlimited);
        with.add(limited);
        share.add(limited / unlimited * 100.0);
    }
    let mut report = Report::new("gates", place.kind());
    report.put("tasks", json!(args.plan.tasks), thousands(args.plan.tasks.into()));
    report.put("slots", json!(args.plan.slots), args.plan.slots.to_string());
    report.put("keys", json!(args.keys), args.keys.to_string());
    report.put("runs", json!(runs), runs.to_string());
    report.rate("unlimited_tasks_per_s", &without, "tasks/s");
    report.rate("limited_tasks_per_s", &with, "tasks/s");
    report.rate("of_the_unlimited_rate_percent", &share, "%");
    report.goal(Goal::at_least("the rate under limits, of that without", share.median(), SHARE_MIN, "%"));
    Ok(report)
}

/// Limits of a queue, and of its keys when it has some, that no drain reaches.
pub(super) fn loose(queue: &QueueName, keys: u32) -> Vec<Limit> {
    let burst = RATE_COUNT_MAX;
    let rate = Rate { burst, ..Rate::new(RATE_COUNT_MAX, Duration::from_secs(1)) };
    let rule = Rule { rate: Some(rate), concurrency: Some(1_000_000), ..Rule::default() };
    let limit = |subject| Limit { subject, rule: rule.clone() };
    let mut limits = vec![limit(Subject::Queue(queue.clone()))];
    if keys > 0 {
        limits.push(limit(Subject::KeysOfQueue(queue.clone())));
    }
    limits
}

/// Sets them.
pub(super) async fn set(open: &Open, limits: Vec<Limit>) -> Result<(), Problem> {
    for limit in limits {
        open.backend.limit(&LimitChange::Set(limit)).await?;
    }
    Ok(())
}
