//! `bench limits`: what a store allows, without an engine.
//!
//! What each line does exactly is written in [`raw`](super::raw), one file for each store. The runs go round robin over
//! all lines, so that whatever else the machine does hits all of them.

use serde_json::{Value, json};
use windlass::QueueName;

use super::raw::{Found, Raw, Row};
use super::server::facts_text;
use super::stats::{Latencies, Runs, rounded};
use super::{Bench, Repeat, Report, bed};
use crate::exit::Problem;
use crate::output::bytes;

/// What a store allows, without an engine
///
/// Bare loops of the store's own commands: the least that an honest at-least-once queue must do. Rates are tasks a
/// second; CPU is milliseconds for 1,000 tasks.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench limits                              SQLite, in a temporary file beside you
  windlass bench limits --store redis://127.0.0.1/0 --runs 5
  windlass bench limits --store postgres://127.0.0.1/test --batches 100,500 --connections 3")]
pub(crate) struct Args {
    /// Tasks of each line, at most; a line takes 2,000 turns at most
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    tasks: u32,
    /// Sizes of the batches
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = clap::value_parser!(u32).range(1..=2_000))]
    batches: Vec<u32>,
    /// Numbers of connections
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,4", value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: Vec<u32>,
    /// Bytes of arguments in each task
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    payload: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// One line over all runs.
#[derive(Debug)]
struct Line {
    what: &'static str,
    batch: usize,
    connections: usize,
    rate: Runs,
    times: Latencies,
    server_cpu: Runs,
    client_cpu: Runs,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let Some(raw) = Raw::of(&bench.place) else {
        return Err(Problem::usage(
            "nothing is below memory: the engine itself is the limit there",
            "name a store: --store sqlite, redis://HOST/0 or postgres://HOST/DATABASE",
        ));
    };
    let of = |counts: &[u32]| counts.iter().map(|count| *count as usize).collect::<Vec<_>>();
    let cases = raw.cases(&of(&args.batches), &of(&args.connections));
    let body = bed::noops(&QueueName::default(), 1, args.payload as usize)?[0].to_body();
    let mut lines: Vec<Line> = Vec::new();
    for number in 1..=args.repeat.runs {
        for (done, case) in cases.iter().enumerate() {
            bench.progress(format_args!("run {number} of {}: {} of {}", args.repeat.runs, done + 1, cases.len()));
            for row in raw.measure(*case, args.tasks as usize, &body).await? {
                // Some cases have a line in common: it has more runs then.
                if let Some(line) = lines.iter_mut().find(|line| line.is_of(&row)) {
                    line.add(&row);
                } else {
                    let mut line = Line::of(&row);
                    line.add(&row);
                    lines.push(line);
                }
            }
        }
    }

    let mut report = Report::new("limits", bench.place.kind());
    if let Some(server) = bench.place.server() {
        let facts = server.facts().await?;
        let text = facts_text(&facts);
        report.put("server", facts, text);
    }
    report.put("runs", json!(args.repeat.runs), args.repeat.runs.to_string());
    report.put("payload_bytes", json!(args.payload), bytes(args.payload.into()));
    let text = std::iter::once(Line::head()).chain(lines.iter().map(Line::text)).collect::<Vec<_>>().join("\n");
    report.put("cases", lines.iter().map(Line::json).collect(), text);
    Ok(report)
}

impl Line {
    fn of(row: &Row) -> Self {
        Self {
            what: row.what,
            batch: row.batch,
            connections: row.connections,
            rate: Runs::default(),
            times: Latencies::default(),
            server_cpu: Runs::default(),
            client_cpu: Runs::default(),
        }
    }

    fn is_of(&self, row: &Row) -> bool {
        (self.what, self.batch, self.connections) == (row.what, row.batch, row.connections)
    }

    fn add(&mut self, row: &Row) {
        match &row.found {
            Found::Rate(rate) => self.rate.add(*rate),
            Found::Times(times) => self.times.add(times),
        }
        self.server_cpu.add_known(row.server_cpu);
        self.client_cpu.add_known(row.client_cpu);
    }

    fn head() -> String {
        format!("{:<52} {:>5} {:>5}  {:>7} {:>7}  {}", "", "batch", "conns", "server", "client", "tasks/s, or time")
    }

    fn text(&self) -> String {
        let found = if self.times.count() > 0 { self.times.text() } else { self.rate.text("tasks/s") };
        let cpu = |runs: &Runs| if runs.count() == 0 { "-".to_owned() } else { format!("{:.2}", runs.median()) };
        format!(
            "{:<52} {:>5} {:>5}  {:>7} {:>7}  {found}",
            self.what,
            self.batch,
            self.connections,
            cpu(&self.server_cpu),
            cpu(&self.client_cpu),
        )
    }

    fn json(&self) -> Value {
        let cpu = |runs: &Runs| if runs.count() == 0 { Value::Null } else { json!(rounded(runs.median())) };
        let mut json = json!({
            "what": self.what,
            "batch": self.batch,
            "connections": self.connections,
            "server_cpu_us_per_task": cpu(&self.server_cpu),
            "client_cpu_us_per_task": cpu(&self.client_cpu),
        });
        if self.times.count() > 0 {
            json["times"] = self.times.json();
        } else {
            json["tasks_per_s"] = self.rate.json();
        }
        json
    }
}
