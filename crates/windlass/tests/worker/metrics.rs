//! What a worker counts.

use std::sync::Arc;

use windlass::metrics::Metrics;
use windlass::prelude::*;

use crate::rig::{MINUTE, Rig, What, act, app};

#[tokio::test(start_paused = true)]
async fn ends_retries_and_dead_letters_are_counted_by_task() {
    let rig = Rig::new().await;
    let metrics = Metrics::new();
    let registry = app().build().await.unwrap();
    let worker = Worker::new(rig.backend.clone(), registry, Settings::new(NodeId::known("w1")))
        .clock(Arc::new(rig.clock.clone()))
        .listener(metrics.clone());
    let shutdown = Shutdown::new();
    let ended = tokio::spawn(worker.run(shutdown.clone()));
    rig.client.enqueue(act(What::Return(1))).await.unwrap().output(MINUTE).await.unwrap();
    rig.client.enqueue(act(What::Fail)).await.unwrap().ended(MINUTE).await.unwrap();
    shutdown.begin(ShutdownStep::Graceful);
    ended.await.unwrap();

    let text = metrics.encode();
    for line in [
        r#"windlass_tasks_finished_total{queue="default",task="act",outcome="succeeded"} 1"#,
        r#"windlass_tasks_finished_total{queue="default",task="act",outcome="dead"} 1"#,
        r#"windlass_task_retries_total{queue="default",task="act",reason="scripted"} 3"#,
        r#"windlass_dead_letters_total{queue="default",task="act",reason="attempts_used_up"} 1"#,
        r#"windlass_task_end_to_end_seconds_count{queue="default",task="act"} 2"#,
        "windlass_worker_busy 0",
        "windlass_worker_up 0",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}
