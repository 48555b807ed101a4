//! `windlass node`: the fleet, and orders to it.

use serde_json::json;
use windlass::NodeId;
use windlass::backend::{Command as StoreCommand, Order};
use windlass::view::{Node, NodePhase};
use windlass::worker::SLOTS_MAX;

use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json;
use crate::output::{Cell, Column, Listing, Row, Tone, ago};
use crate::supervisor::{CHILDREN_MAX, is_supervisor};

/// Look at running workers and give them orders
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass node ls
  windlass node quiet w1@host
  windlass node resize w1@host --slots 32
  windlass node resize w1@host --processes 4
  windlass node stop w1@host")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List nodes that were seen in the last day, the living first
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass node ls
  windlass node ls --alive
  windlass node ls --json"
    )]
    Ls {
        /// Only those that are alive
        #[arg(long)]
        alive: bool,
    },
    /// Show one node
    #[command(after_help = "\
EXAMPLES
  windlass node show w1@host")]
    Show {
        /// The node
        #[arg(value_name = "NODE")]
        id: NodeId,
    },
    /// Claim nothing more, finish what runs, and stay
    #[command(after_help = "\
EXAMPLES
  windlass node quiet w1@host w2@host")]
    Quiet(Nodes),
    /// Claim again
    #[command(after_help = "\
EXAMPLES
  windlass node resume w1@host")]
    Resume(Nodes),
    /// Finish what runs, then end
    #[command(after_help = "\
EXAMPLES
  windlass node stop w1@host
  windlass node stop --all --yes")]
    Stop(Nodes),
    /// Run this many tasks at once, or, of a supervisor, this many processes
    #[command(after_help = "\
EXAMPLES
  windlass node resize w1@host --slots 32
  windlass node resize w1@host --processes 4")]
    Resize {
        #[command(flatten)]
        nodes: Nodes,
        /// How many tasks a worker runs at once
        #[arg(long, value_name = "COUNT", required_unless_present = "processes", conflicts_with = "processes")]
        slots: Option<usize>,
        /// How many processes share the work of a supervisor
        #[arg(long, value_name = "COUNT")]
        processes: Option<usize>,
    },
}

/// Who gets an order.
#[derive(Debug, Clone, clap::Args)]
struct Nodes {
    /// Nodes
    #[arg(value_name = "NODE", required_unless_present = "all")]
    ids: Vec<NodeId>,
    /// Every node that is alive
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not ask before all nodes get the order
    #[arg(short, long)]
    yes: bool,
}

const COLUMNS: &[Column] = &[
    Column::new("NODE"),
    Column::new("STATUS"),
    Column::new("BUSY"),
    Column::new("QUEUES").stretch(),
    Column::new("FINISHED"),
    Column::new("FAILED"),
    Column::new("STARTED"),
    Column::new("LAST BEAT"),
    Column::new("HOST").wide(),
    Column::new("PID").wide(),
    Column::new("VERSION").wide(),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls { alive } => list(context, alive).await,
        Command::Show { id } => show(context, &id).await,
        Command::Quiet(nodes) => order(context, nodes, Order::Quiet, "told to take no more tasks").await,
        Command::Resume(nodes) => order(context, nodes, Order::Resume, "told to take tasks again").await,
        Command::Stop(nodes) => order(context, nodes, Order::Stop, "told to stop").await,
        Command::Resize { nodes, slots, processes } => resize(context, nodes, slots, processes).await,
    }
}

async fn resize(context: &Context, wanted: Nodes, slots: Option<usize>, processes: Option<usize>) -> Outcome {
    let (count, max, what) = match (slots, processes) {
        (_, Some(processes)) => (processes, CHILDREN_MAX, "processes"),
        (slots, None) => (slots.unwrap_or_default(), SLOTS_MAX, "slots"),
    };
    if count > max {
        return Err(Problem::usage(
            format_args!("{count} {what} are more than a node can have"),
            format_args!("choose up to {max}, or start another node"),
        ));
    }
    let nodes = context.store().await?.nodes().await?;
    // The same number would mean something else to the other kind.
    let mistaken = |node: &&Node| wanted.ids.contains(&node.info.id) && is_supervisor(node) != processes.is_some();
    if let Some(node) = nodes.iter().find(mistaken) {
        let (is, has) =
            if is_supervisor(node) { ("a supervisor", "--processes") } else { ("no supervisor", "--slots") };
        let id = &node.info.id;
        return Err(Problem::usage(
            format_args!("node `{id}` is {is}"),
            format_args!("write `windlass node resize {id} {has} {count}`"),
        ));
    }
    let same_kind = move |node: &Node| is_supervisor(node) == processes.is_some();
    order_some(context, wanted, same_kind, Order::Resize(count), "told to resize").await
}

/// What a node does, as one word with its colour.
fn status(node: &Node) -> (&'static str, Tone) {
    match (node.alive, node.info.phase) {
        (_, NodePhase::Stopped) => ("stopped", Tone::Dim),
        (false, NodePhase::Running | NodePhase::Quiet | NodePhase::Stopping) => ("lost", Tone::Bad),
        (true, NodePhase::Running) => ("running", Tone::Good),
        (true, NodePhase::Quiet) => ("quiet", Tone::Warn),
        (true, NodePhase::Stopping) => ("stopping", Tone::Warn),
    }
}

async fn list(context: &Context, alive: bool) -> Outcome {
    let nodes = context.store().await?.nodes().await?;
    let rows = nodes.iter().filter(|node| node.alive || !alive).map(|node| row(context, node)).collect();
    let empty = "no node was seen in the last day: start one with `windlass worker`";
    context.out.listing(&Listing::whole("nodes", COLUMNS, empty, rows))
}

fn row(context: &Context, node: &Node) -> Row {
    let info = &node.info;
    let (word, tone) = status(node);
    let queues: Vec<String> = info.queues.iter().map(ToString::to_string).collect();
    Row {
        id: info.id.to_string(),
        cells: vec![
            info.id.to_string().into(),
            Cell::toned(word, tone),
            format!("{}/{}", info.busy, info.slots).into(),
            queues.join(",").into(),
            info.finished.to_string().into(),
            Cell::count(info.failed, Tone::Warn),
            context.out.when(info.started_at).into(),
            context.out.when(node.beat_at).into(),
            info.host.clone().into(),
            info.pid.to_string().into(),
            info.version.clone().into(),
        ],
        json: json::node(node),
    }
}

async fn show(context: &Context, id: &NodeId) -> Outcome {
    let nodes = context.store().await?.nodes().await?;
    let node = nodes.iter().find(|node| node.info.id == *id).ok_or_else(|| unknown(id, &nodes))?;
    let out = &context.out;
    out.object(id.as_str(), json::node(node), || {
        let info = &node.info;
        let (word, tone) = status(node);
        let names = |names: Vec<String>| names.join(", ");
        out.fields(&[
            ("node", info.id.to_string()),
            ("status", out.tone(word, tone)),
            ("host", info.host.clone()),
            ("pid", info.pid.to_string()),
            ("version", info.version.clone()),
            ("started", format!("{} ({})", out.exactly(info.started_at), ago(info.started_at, out.now()))),
            ("last beat", format!("{} ({})", out.exactly(node.beat_at), ago(node.beat_at, out.now()))),
            ("slots", format!("{} of {} busy", info.busy, info.slots)),
            ("finished", format!("{}, {} of them failed", info.finished, info.failed)),
            ("queues", names(info.queues.iter().map(ToString::to_string).collect())),
            ("tasks", names(info.tasks.iter().map(ToString::to_string).collect())),
        ])
    })
}

fn unknown(id: &NodeId, nodes: &[Node]) -> Problem {
    let next = match crate::task_args::nearest(id.as_str(), nodes.iter().map(|node| node.info.id.as_str())) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "`windlass node ls` lists all nodes".to_owned(),
    };
    Problem::new(Exit::NotFound, format_args!("no node `{id}` was seen in the last day"), next)
}

async fn order(context: &Context, wanted: Nodes, order: Order, told: &str) -> Outcome {
    order_some(context, wanted, |_| true, order, told).await
}

/// When every node is meant, it is every node that this holds for.
async fn order_some(
    context: &Context,
    wanted: Nodes,
    meant: impl Fn(&Node) -> bool,
    order: Order,
    told: &str,
) -> Outcome {
    let backend = context.store().await?;
    let nodes = backend.nodes().await?;
    let ids: Vec<NodeId> = if wanted.all {
        let ids: Vec<NodeId> =
            nodes.iter().filter(|node| node.alive && meant(node)).map(|node| node.info.id.clone()).collect();
        let agreed = if wanted.yes { crate::context::Agreed::Already } else { crate::context::Agreed::Ask };
        let question = format!("{} will be {told}.", crate::output::plural(ids.len() as u64, "node"));
        crate::context::confirm(&question, agreed)?;
        ids
    } else {
        wanted.ids
    };
    for id in &ids {
        let node = nodes.iter().find(|node| node.info.id == *id).ok_or_else(|| unknown(id, &nodes))?;
        if !node.alive {
            return Err(Problem::new(
                Exit::Conflict,
                format_args!("node `{id}` is {}: it hears nothing", status(node).0),
                "`windlass node ls --alive` lists who does",
            ));
        }
    }
    let mut changed = 0;
    for id in &ids {
        changed += backend.command(&StoreCommand::Order { node: id.clone(), order }).await?.changed;
    }
    context.out.object(&changed.to_string(), json!({"changed": changed, "nodes": ids}), || {
        let shown: Vec<String> = ids.iter().map(ToString::to_string).collect();
        format!("{} {told}; it is heard within a second\n", shown.join(", "))
    })
}
