//! What the tests of this crate share.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use windlass_core::backend::{Backend, Claim, Demand, Push, Pushed, Settled, Settlement};
use windlass_core::flow::Follow;
use windlass_core::{Args, Envelope, Json, NodeId, QueueName, TaskName, Verdict};
use windlass_sqlite::{Options, SqliteStore};

/// A folder that goes with the test, and the file of a store in it.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) file: PathBuf,
}

pub(crate) fn place() -> Place {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tasks.db");
    Place { folder, file }
}

pub(crate) fn open(file: &Path) -> SqliteStore {
    SqliteStore::open(file, Options::default()).expect("the store opens")
}

pub(crate) fn task() -> Envelope {
    Envelope::new(TaskName::known("noop"), QueueName::default(), Args::none())
}

pub(crate) async fn push(store: &SqliteStore, envelopes: Vec<Envelope>) -> Vec<Pushed> {
    store.push(&Push { envelopes, groups: Vec::new() }).await.expect("pushed")
}

pub(crate) fn demand(max: usize, wait: Duration) -> Demand {
    Demand {
        node: NodeId::known("node-1"),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(30),
        except: Vec::new(),
        wait,
        hush: tokio_util::sync::CancellationToken::new(),
    }
}

pub(crate) async fn claim(store: &SqliteStore, max: usize) -> Vec<Claim> {
    store.claim(&demand(max, Duration::ZERO)).await.expect("claimed")
}

pub(crate) fn done(claim: &Claim) -> Settled {
    Settled {
        receipt: claim.receipt.clone(),
        verdict: Verdict::Succeeded { result: Json::null(), skipped: None },
        follow: Follow::default(),
    }
}

pub(crate) async fn settle(store: &SqliteStore, claims: &[Claim]) -> Vec<Settlement> {
    let settled: Vec<_> = claims.iter().map(done).collect();
    store.settle(&settled).await.expect("settled")
}
