//! `windlass health`: one answer for probes: 0 healthy, 1 not.

use std::time::{Duration, Instant};

use serde_json::json;
use windlass::NodeId;
use windlass::view::{Health, NodePhase};

use crate::context::Context;
use crate::exit::{Exit, Outcome};
use crate::output::Tone;
use crate::program::as_typed;

/// Say whether the store answers and somebody works
///
/// Exit code 0 is healthy, 1 is not: for HEALTHCHECK of containers and for exec probes.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass health
  windlass health --node w1@host                this worker beats
  windlass health --store-only                  before any worker runs
  windlass health --json")]
pub(crate) struct Args {
    /// Only this node counts; %h is the host
    #[arg(long, value_name = "NODE", conflicts_with = "store_only")]
    node: Option<NodeId>,
    /// Whether anybody works does not matter
    #[arg(long)]
    store_only: bool,
    /// The store must answer within this long
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::task::read_duration)]
    timeout: Duration,
}

/// One thing that was looked at.
struct Finding {
    name: &'static str,
    good: bool,
    detail: String,
}

pub(crate) async fn run(context: &Context, args: &Args) -> Outcome {
    let mut findings = Vec::new();
    let asked = Instant::now();
    match tokio::time::timeout(args.timeout, look(context, args, &mut findings)).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            findings.push(Finding { name: "store", good: false, detail: problem.text().to_owned() });
        }
        Err(_) => {
            let detail = format!("no answer within {}", windlass::format_duration(args.timeout));
            findings.push(Finding { name: "store", good: false, detail });
        }
    }
    let healthy = findings.iter().all(|finding| finding.good);
    let status = if healthy { "healthy" } else { "unhealthy" };
    let checks: Vec<_> = findings
        .iter()
        .map(|finding| json!({"name": finding.name, "status": if finding.good { "pass" } else { "fail" }, "detail": finding.detail}))
        .collect();
    let json = json!({"status": status, "latency_ms": asked.elapsed().as_millis() as u64, "checks": checks});
    let out = &context.out;
    out.object(status, json, || {
        let tone = if healthy { Tone::Good } else { Tone::Bad };
        let lines = findings.iter().map(|finding| {
            let (mark, tone) = if finding.good { ("ok", Tone::Good) } else { ("fail", Tone::Bad) };
            format!("  {}  {}: {}\n", out.tone(&format!("{mark:4}"), tone), finding.name, finding.detail)
        });
        format!("{}\n{}", out.tone(status, tone), lines.collect::<String>())
    })?;
    if !healthy {
        out.say("  try: `windlass doctor`");
    }
    Ok(if healthy { Exit::Ok } else { Exit::Failed })
}

async fn look(context: &Context, args: &Args, findings: &mut Vec<Finding>) -> Result<(), crate::exit::Problem> {
    let backend = context.store().await?;
    let info = backend.info().await?;
    let bad: Vec<&str> =
        info.checks.iter().filter(|check| check.health == Health::Bad).map(|check| check.detail.as_str()).collect();
    let detail = if bad.is_empty() { format!("{} answers", info.kind) } else { bad.join("; ") };
    findings.push(Finding { name: "store", good: bad.is_empty(), detail });
    if args.store_only {
        return Ok(());
    }
    let nodes = backend.nodes().await?;
    let alive = |phase: NodePhase| nodes.iter().filter(|node| node.alive && node.info.phase == phase).count();
    let finding = if let Some(wanted) = &args.node {
        let wanted = super::worker::node_name(Some(wanted))?;
        let node = nodes.iter().find(|node| node.info.id == wanted);
        let detail = match node {
            Some(node) => format!("{wanted} beat {}", crate::output::ago(node.beat_at, context.out.now())),
            None => format!("{wanted} was not seen in the last day"),
        };
        Finding { name: "node", good: node.is_some_and(|node| node.alive), detail }
    } else {
        let (running, quiet) = (alive(NodePhase::Running), alive(NodePhase::Quiet));
        let detail = match (running, quiet) {
            (0, 0) => "no node is alive: start one with `windlass worker`".to_owned(),
            (0, quiet) => format!("all {quiet} living nodes are quiet: `windlass node resume NODE`"),
            (running, _) => format!("{running} running"),
        };
        Finding { name: "nodes", good: running > 0, detail: as_typed(&detail).into_owned() }
    };
    findings.push(finding);
    Ok(())
}
