//! The graph of a workflow as text: an indented tree for people, DOT for Graphviz.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use windlass::workflow::view::{NodeKind, NodeState, NodeView, When, WorkflowView};
use windlass::{State, TaskId};

use crate::commands::task::tone_of;
use crate::output::{Out, Tone};

/// Names of tasks before one that waits for several; more are counted.
const NAMED_MAX: usize = 3;

/// Each task on a line, behind everything that it waits for. What starts side by side is indented.
pub(super) fn tree(view: &WorkflowView, out: &Out) -> String {
    let graph = Graph::of(view);
    let width = graph.lines.iter().map(|(at, depth)| depth * 2 + label(&view.nodes[*at]).len()).max().unwrap_or(0);
    let mut text = String::new();
    for (at, depth) in &graph.lines {
        let node = &view.nodes[*at];
        let name = format!("{:indent$}{}", "", label(node), indent = depth * 2);
        let (state, tone) = match &node.kind {
            NodeKind::Task { state, .. } => (state.as_str(), tone(*state)),
            NodeKind::Join => ("", Tone::Plain),
        };
        let id = if matches!(node.kind, NodeKind::Join) { String::new() } else { node.id.to_string() };
        let line = format!(
            "{name:width$}  {}  {}{}",
            out.tone(&format!("{state:9}"), tone),
            out.tone(&id, Tone::Dim),
            graph.note(view, *at)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn label(node: &NodeView) -> &str {
    match &node.kind {
        NodeKind::Task { name, .. } => name.as_str(),
        NodeKind::Join => "(all of them)",
    }
}

fn tone(state: NodeState) -> Tone {
    match state {
        NodeState::Known(state) => tone_of(state),
        NodeState::Planned | NodeState::Gone => Tone::Dim,
    }
}

/// The nodes by their place in the view, and the order in which they are written.
struct Graph {
    before: HashMap<usize, Vec<(usize, When)>>,
    /// Place and depth of each node.
    lines: Vec<(usize, usize)>,
}

impl Graph {
    fn of(view: &WorkflowView) -> Self {
        let places: BTreeMap<&TaskId, usize> = view.nodes.iter().enumerate().map(|(at, node)| (&node.id, at)).collect();
        let (mut before, mut after) =
            (HashMap::<usize, Vec<(usize, When)>>::new(), HashMap::<usize, Vec<usize>>::new());
        for edge in &view.edges {
            let (Some(from), Some(to)) = (places.get(&edge.from), places.get(&edge.to)) else { continue };
            before.entry(*to).or_default().push((*from, edge.when));
            after.entry(*from).or_default().push(*to);
        }
        let mut missing: Vec<usize> = (0..view.nodes.len()).map(|at| before.get(&at).map_or(0, Vec::len)).collect();
        let (mut depths, mut lines) = (HashMap::new(), Vec::new());
        let mut next: Vec<usize> = (0..view.nodes.len()).rev().filter(|at| missing[*at] == 0).collect();
        let mut written = HashSet::new();
        while let Some(at) = next.pop() {
            if !written.insert(at) {
                continue;
            }
            let depth = depth(before.get(&at), &after, &depths);
            depths.insert(at, depth);
            lines.push((at, depth));
            for to in after.get(&at).into_iter().flatten().rev() {
                missing[*to] = missing[*to].saturating_sub(1);
                if missing[*to] == 0 {
                    next.push(*to);
                }
            }
        }
        Self { before, lines }
    }

    /// What a node waits for, when its place on the page does not tell.
    fn note(&self, view: &WorkflowView, at: usize) -> String {
        let before = self.before.get(&at).map(Vec::as_slice).unwrap_or_default();
        match before {
            [(from, When::Failure)] => format!("  because {} gave up", label(&view.nodes[*from])),
            [] | [_] => String::new(),
            several => {
                let named: Vec<&str> =
                    several.iter().take(NAMED_MAX).map(|(from, _)| label(&view.nodes[*from])).collect();
                let more = several.len().saturating_sub(NAMED_MAX);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("  after {}{more}", named.join(", "))
            }
        }
    }
}

/// One step further in than a task that several follow; one step out again behind several.
fn depth(
    before: Option<&Vec<(usize, When)>>,
    after: &HashMap<usize, Vec<usize>>,
    depths: &HashMap<usize, usize>,
) -> usize {
    let before = before.map(Vec::as_slice).unwrap_or_default();
    let depth_of = |at: &usize| depths.get(at).copied().unwrap_or(0);
    match before {
        [] => 0,
        [(from, _)] => depth_of(from) + usize::from(after.get(from).is_some_and(|after| after.len() > 1)),
        several => several.iter().map(|(from, _)| depth_of(from)).min().unwrap_or(0).saturating_sub(1),
    }
}

/// For `dot`: boxes in the colours of their states, dashed arrows to what starts on failure.
pub(super) fn dot(view: &WorkflowView) -> String {
    let mut text =
        String::from("digraph workflow {\n  rankdir=LR;\n  node [shape=box style=\"rounded,filled\" fontname=sans];\n");
    // Writing to a string cannot fail.
    for NodeView { id, kind } in &view.nodes {
        let _ = match kind {
            NodeKind::Task { name, state, .. } => {
                let label = format!("{}\\n{}", quoted(name.as_str()), state.as_str());
                writeln!(text, "  \"{}\" [label=\"{label}\" fillcolor=\"{}\"];", quoted(id), colour(*state))
            }
            NodeKind::Join => writeln!(text, "  \"{}\" [shape=point label=\"\"];", quoted(id)),
        };
    }
    for edge in &view.edges {
        let style = match edge.when {
            When::Success => "",
            When::Failure => " [style=dashed label=\"on failure\"]",
        };
        let _ = writeln!(text, "  \"{}\" -> \"{}\"{style};", quoted(&edge.from), quoted(&edge.to));
    }
    text.push_str("}\n");
    text
}

fn quoted(text: impl ToString) -> String {
    text.to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

fn colour(state: NodeState) -> &'static str {
    match state {
        NodeState::Known(State::Succeeded) => "palegreen",
        NodeState::Known(State::Dead | State::Expired) => "salmon",
        NodeState::Known(State::Running) => "lightskyblue",
        NodeState::Known(State::Ready | State::Scheduled | State::Parked) => "lightyellow",
        NodeState::Known(State::Cancelled) => "lightgrey",
        NodeState::Planned | NodeState::Gone => "white",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use windlass::TaskName;
    use windlass::workflow::view::{Edge, Progress};

    /// a, then b and c side by side, then d; e when a fails.
    fn view() -> WorkflowView {
        let node = |name: &str, state| NodeView {
            id: format!("id-{name}").parse().unwrap(),
            kind: NodeKind::Task { name: TaskName::known(name), queue: None, state, attempt: 1 },
        };
        let edge = |from: &str, to: &str, when| Edge {
            from: format!("id-{from}").parse().unwrap(),
            to: format!("id-{to}").parse().unwrap(),
            when,
        };
        WorkflowView {
            nodes: vec![
                node("a", NodeState::Known(State::Succeeded)),
                node("b", NodeState::Known(State::Dead)),
                node("c", NodeState::Known(State::Running)),
                node("mend", NodeState::Known(State::Ready)),
                node("say\"hi", NodeState::Planned),
            ],
            edges: vec![
                edge("a", "b", When::Success),
                edge("a", "c", When::Success),
                edge("b", "mend", When::Failure),
                edge("b", "say\"hi", When::Success),
                edge("c", "say\"hi", When::Success),
            ],
            progress: Progress::default(),
        }
    }

    #[test]
    fn a_tree_shows_what_is_side_by_side_and_what_waits_for_several() {
        let cli = crate::args::Cli::parse_from(["windlass", "--color", "never", "--utc", "task", "ls"]);
        let text = tree(&view(), &Out::of(&cli.global).expect("flags that fit"));
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "a succeeded id-a",
                "b dead id-b",
                "mend ready id-mend because b gave up",
                "c running id-c",
                "say\"hi planned id-say\"hi after b, c",
            ]
        );
        assert!(text.contains("\n  b ") && text.contains("\n    mend ") && text.contains("\nsay"), "{text}");
    }

    #[test]
    fn dot_is_quoted() {
        let text = dot(&view());
        assert!(text.contains(r#""id-say\"hi" [label="say\"hi\nplanned""#), "{text}");
        assert!(text.contains(r#""id-b" -> "id-mend" [style=dashed"#), "{text}");
        assert_eq!(text.matches(" -> ").count(), 5);
    }
}
