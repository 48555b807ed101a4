//! Recurring tasks: an interval and a cron line, in plain words and with a look ahead across a clock change.

use tokio::sync::mpsc;
use windlass::prelude::*;
use windlass::schedule::{Missed, Overlap, Spec};
use windlass::worker::Schedules;
use windlass::{Source, Timestamp};

/// Looks whether the suppliers answer.
#[derive(Task, Serialize, Deserialize)]
struct Probe {}

/// Sends the report of the day before.
#[derive(Task, Serialize, Deserialize)]
struct Report {
    recipient: String,
}

/// The slot is the planned instant; the handler may start later.
async fn probe(_task: Probe, cx: Cx<mpsc::Sender<Timestamp>>) -> Result<(), TaskError> {
    if let Source::Schedule { slot, .. } = &cx.envelope.source {
        cx.state().send(*slot).await?;
    }
    Ok(())
}

async fn report(task: Report, _cx: Cx<mpsc::Sender<Timestamp>>) -> Result<(), TaskError> {
    println!("report for {}", task.recipient);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Preview: in Berlin, 02:30 does not exist on 28 March 2027. That run takes place when the gap ends, at 03:00 (+02:00).
    let nightly = Spec::cron("30 2 * * *", "Europe/Berlin")?;
    println!("{}:", nightly.words());
    for slot in nightly.preview("2027-03-26T12:00:00Z".parse()?, 3) {
        println!("  {slot}");
    }
    println!("{}", Spec::cron("*/15 9-17 * * mon-fri", "America/New_York")?.words());

    // Schedules are declared beside the tasks. Any number of nodes may fire them: the store lets each slot through once.
    let (send, mut slots) = mpsc::channel(10);
    let report_at = cron("30 2 * * *").zone("Europe/Berlin").missed(Missed::Once).overlap(Overlap::Skip);
    let app = App::new("shop").with_state(send).task(probe).task(report);
    let app = app.schedule("probe", every("1s"), Probe {}).schedule(
        "report",
        report_at,
        Report { recipient: "ops@example.org".to_owned() },
    );

    let store = windlass::connect("memory:").await?;
    let settings = Settings { schedules: Schedules::Fire, ..Settings::new(NodeId::known("worker-1")) };
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), app.build().await?, settings);
    let worker = tokio::spawn(worker.start(shutdown.clone()));

    let first = slots.recv().await.ok_or("the worker has stopped")?;
    let second = slots.recv().await.ok_or("the worker has stopped")?;
    let whole_seconds = [first, second].iter().all(|slot| slot.as_micros() % 1_000_000 == 0);
    println!("two slots, on whole seconds: {}", whole_seconds && first != second);
    for record in store.schedules().await? {
        println!("schedule {}: {}", record.schedule.id, record.schedule.spec.words());
    }

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
