//! Several tasks as one: a chain, a group, and a chord (a group with a step after it), with and without failures.

use std::time::Duration;

use windlass::Json;
use windlass::flow::FailurePolicy;
use windlass::prelude::*;

/// Counts the words of a page.
#[derive(Task, Serialize, Deserialize)]
#[task(output = u64, retries = 0)]
struct Count {
    page: String,
}

/// Adds up what the tasks before it returned: `input` names the argument that takes it.
#[derive(Task, Serialize, Deserialize, Default)]
#[task(output = u64, input = "counts")]
struct Total {
    /// A group hands over a list in the order of its members; by policy `Any`, `null` for those that failed.
    counts: Vec<Option<u64>>,
}

/// Rounds up to tens.
#[derive(Task, Serialize, Deserialize, Default)]
#[task(output = u64, input = "number")]
struct Round {
    number: u64,
}

async fn count(task: Count, _cx: Cx) -> Result<u64, TaskError> {
    let words = task.page.split_whitespace().count();
    if words > 0 { Ok(words as u64) } else { Err(TaskError::fatal("the page is empty")) }
}

async fn total(task: Total, _cx: Cx) -> Result<u64, TaskError> {
    Ok(task.counts.into_iter().flatten().sum())
}

async fn round(task: Round, _cx: Cx) -> Result<u64, TaskError> {
    Ok(task.number.next_multiple_of(10))
}

fn pages(texts: [&str; 3]) -> impl Iterator<Item = Count> {
    texts.map(|page| Count { page: page.to_owned() }).into_iter()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (limit, store) = (Duration::from_secs(5), windlass::connect("memory:").await?);
    let registry = App::new("words").task(count).task(total).task(round).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let client = Client::new(store);

    // A chain: each step gets the result of the one before.
    let chained = client.start(chain(Count { page: "one two three".to_owned() }).then(Round::default())).await?;
    println!("chain: {}", chained.output::<Round>(limit).await?);

    // A group: side by side; what comes out is the results of its members.
    let side_by_side = client.start(group(pages(["a", "a b", "a b c"]))).await?;
    println!("group: {:?}", side_by_side.results(limit).await?.iter().map(Json::as_str).collect::<Vec<_>>());

    // A chord: the step after a group starts when the last member has arrived.
    let chord = client.start(group(pages(["a", "a b", "a b c"])).then(Total::default())).await?;
    println!("chord: {}", chord.output::<Total>(limit).await?);

    // By default one failed member fails the chord. What would have followed is a dead letter, not a silence.
    let failed = client.start(group(pages(["a", "", "a b c"])).then(Total::default())).await?;
    println!("all:   {}", failed.output::<Total>(limit).await.expect_err("one page is empty"));

    // By policy `Any` it goes on with what succeeded; by policy `Collect` the step gets the errors, too.
    let some = group(pages(["a", "", "a b c"])).policy(FailurePolicy::Any).then(Total::default());
    println!("any:   {}", client.start(some).await?.output::<Total>(limit).await?);

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
