//! The same store wherever the server is: in a cluster, behind sentinels, on a socket, with scripts instead of functions.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Ask as _, PATIENCE, claim_one, demand, free_port, node, open, push_of, redis, redis_with, settled, succeeded, task,
};
use windlass_core::adoption::{Adopted, Adoption, Delivery};
use windlass_core::backend::{
    Backend, Command as Order, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged, Settlement, Target,
    TaskAction,
};
use windlass_core::flow::{After, FailurePolicy, Flow, Member, NewGroup};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::schedule::every;
use windlass_core::state::Spent;
use windlass_core::view::{Filter, NodeInfo, NodePhase, Page};
use windlass_core::{
    DeliveryId, Due, Envelope, Json, Key, QueueName, State, TaskId, Timestamp, Unique, UniqueKey, Verdict,
};
use windlass_redis::RedisStore;
use windlass_servers::Redis;

/// Every verb of the port once.
async fn every_verb_works(store: &RedisStore) {
    let unique = Unique::new(UniqueKey::known("one"));
    let first = Envelope { unique: Some(unique), ..task("work") };
    let later = Envelope { due: Due::After(Duration::from_secs(60)), ..task("later") };
    let pushed = store.push(&push_of([first.clone(), later.clone()])).await.expect("push");
    assert_eq!(pushed, [Pushed::Stored, Pushed::Stored]);

    let claim = claim_one(store).await;
    let renewal = Renewal { receipt: claim.receipt.clone(), progress: None, memo: Some("{}\n".to_owned()) };
    assert_eq!(store.renew(&[renewal], Duration::from_secs(30)).await.expect("renew"), [Renewed::Held]);
    let again = Verdict::Again {
        after: Duration::ZERO,
        spent: Spent::Yes,
        failure: Some(windlass_core::Failure::new("error", "not yet")),
    };
    assert_eq!(store.settle(&[settled(&claim, again)]).await.expect("settle"), [Settlement::Applied]);
    let claim = claim_one(store).await;
    assert_eq!((claim.attempt, claim.memo.as_str()), (2, "{}\n"));
    assert_eq!(store.settle(&[settled(&claim, succeeded())]).await.expect("settle"), [Settlement::Applied]);
    let ended = store.watch(std::slice::from_ref(&first.id), PATIENCE).await.expect("watch");
    assert_eq!((ended.len(), ended[0].history.len()), (1, 1));

    let delivery = Delivery { id: DeliveryId::known("bridge:1"), envelope: first.clone(), flaw: None };
    let flaw = Some(windlass_core::Failure::new("malformed", "no JSON"));
    let malformed = Delivery { id: DeliveryId::known("bridge:2"), envelope: task("malformed"), flaw };
    let adoption = Adoption {
        accepted: vec![delivery.id.clone()],
        deliveries: vec![delivery.clone(), malformed, delivery],
        demand: Some(demand(10, Duration::ZERO)),
    };
    let adopting = store.adopt(&adoption).await.expect("adopt");
    assert_eq!(adopting.adopted, [Adopted::Stored, Adopted::Stored, Adopted::Known], "the id of an ended task is free");
    assert_eq!(adopting.claims.len(), 1);
    store.settle(&[settled(&adopting.claims[0], succeeded())]).await.expect("settle");
    let accepted = adoption.deliveries.into_iter().map(|delivery| delivery.id).collect();
    store.adopt(&Adoption { accepted, ..Adoption::default() }).await.expect("adopt");

    let group = TaskId::random();
    let body = task("body");
    let after = After { push: vec![body.clone()], ..After::default() };
    let member = Flow { member: Some(Member { group: group.clone(), index: 0 }), ..Flow::default() };
    let member = Envelope { flow: Some(Box::new(member)), ..task("member") };
    let groups = vec![NewGroup { id: group, size: 1, policy: FailurePolicy::All, after }];
    store.push(&Push { envelopes: vec![member.clone()], groups }).await.expect("push");
    let claim = claim_one(store).await;
    store.settle(&[settled(&claim, succeeded())]).await.expect("settle");
    assert_eq!(claim_one(store).await.envelope.id, body.id);

    let cancel = Order::Tasks { target: Target::Ids(vec![later.id.clone()]), action: TaskAction::Cancel };
    assert_eq!(store.command(&cancel).await.expect("command").changed, 1);
    assert_eq!(store.command(&Order::PauseQueue(QueueName::default())).await.expect("command").changed, 1);
    assert_eq!(store.command(&Order::ResumeQueue(QueueName::default())).await.expect("command").changed, 1);
    let listing = store.list(&Filter::in_states([State::Cancelled]), &Page::first(10)).await.expect("list");
    assert_eq!(listing.tasks[0].envelope.id, later.id);

    let info = NodeInfo {
        id: node(),
        host: "host".to_owned(),
        pid: 1,
        version: "1".to_owned(),
        started_at: Timestamp::MIN,
        queues: vec![],
        tasks: vec![],
        slots: 1,
        busy: 0,
        finished: 0,
        failed: 0,
        phase: NodePhase::Running,
    };
    store.beat(&info, Duration::from_secs(30)).await.expect("beat");
    assert_eq!(store.nodes().await.expect("nodes").len(), 1);
    let slot = Timestamp::from_secs(1_800_000_000);
    let schedule = every("1m").schedule("minutely", task("report")).expect("a schedule");
    let put = ScheduleChange::Put { schedule, next: Some(slot) };
    assert_eq!(store.schedule(&put).await.expect("schedule"), ScheduleChanged::Done);
    let id = windlass_core::ScheduleId::known("minutely");
    let fire = ScheduleChange::Fire { id, expected: slot, next: None, push: vec![task("report")], missed: 0 };
    assert_eq!(store.schedule(&fire).await.expect("schedule"), ScheduleChanged::Done);
    assert_eq!(store.schedules().await.expect("schedules")[0].fired, 1);
    store.tick(&node()).await.expect("tick");
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.ready, counts.running, counts.succeeded, counts.cancelled), (1, 1, 3, 1));
    assert!(!store.info().await.expect("info").checks.is_empty());
    limits_and_notes_work(store).await;
    store.claim(&demand(10, Duration::ZERO)).await.expect("claim");
    let began = Instant::now();
    let nothing = store.claim(&demand(10, Duration::from_millis(50))).await.expect("claim");
    assert!(nothing.is_empty() && began.elapsed() >= Duration::from_millis(50));
}

async fn limits_and_notes_work(store: &RedisStore) {
    let subject = "keys-of-queue:default".parse().expect("a subject");
    let rule = Rule { concurrency: Some(1), rate: Some("10/s".parse().expect("a rate")), ..Rule::default() };
    assert!(store.limit(&LimitChange::Set(Limit { subject, rule })).await.expect("limit"));
    let keyed = || Envelope { key: Some(Key::known("a key")), ..task("keyed") };
    store.push(&push_of([keyed(), keyed()])).await.expect("push");
    let claims = store.claim(&demand(10, Duration::ZERO)).await.expect("claim");
    let of_key: Vec<_> = claims.iter().filter(|claim| claim.envelope.key.is_some()).collect();
    assert_eq!(of_key.len(), 1);
    assert_eq!(store.limits().await.expect("limits").gates[0].running, Some(1));
    store.settle(&[settled(of_key[0], succeeded())]).await.expect("settle");
    let (space, key) = ("test".to_owned(), "a key".to_owned());
    let write = NoteAsk::Write { space, key, seen: None, value: Json::null(), ttl: Duration::from_secs(60) };
    assert!(matches!(store.note(&write).await.expect("note"), NoteAnswer::Written(_)));
    let list = NoteAsk::List { space: None, after: None };
    assert!(matches!(store.note(&list).await.expect("note"), NoteAnswer::Notes(notes) if notes.len() == 1));
}

#[tokio::test]
async fn a_server_with_functions_is_used_through_functions() {
    let redis = redis();
    every_verb_works(&open(&redis.url()).await).await;
    assert!(redis.ask(&["FUNCTION", "LIST"]).contains("windlass_"));
}

#[tokio::test]
async fn a_user_that_may_not_define_functions_uses_scripts() {
    let redis = redis();
    redis.ask(&["ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-function", "-fcall"]);
    every_verb_works(&open(&format!("redis://plain:pw@{}", redis.address())).await).await;
    assert!(!redis.ask(&["FUNCTION", "LIST"]).contains("windlass_"));
}

#[tokio::test]
async fn a_user_with_the_rights_of_one_namespace_can_do_everything_in_it() {
    let redis = redis();
    let rights = ["~{mine}:*", "&{mine}:*", "+@all", "-@admin", "+info"];
    redis.ask(&[&["ACL", "SETUSER", "tenant", "on", ">pw"], rights.as_slice()].concat());
    let location = format!("redis://tenant:pw@{}?namespace=mine", redis.address());
    let location = location.parse().expect("a URL");
    let store = RedisStore::open(location, windlass_redis::Options::default()).await.expect("it has the rights");
    every_verb_works(&store).await;
}

#[tokio::test]
async fn a_cluster_is_used_through_the_node_that_has_the_namespace() {
    let redis = redis_with(&["--cluster-enabled", "yes"]);
    redis.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let began = Instant::now();
    while !redis.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        assert!(began.elapsed() < PATIENCE, "the cluster is ready");
        // tidy: allow(sleep): a cluster that comes up tells nobody
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    every_verb_works(&open(&format!("redis+cluster://{}", redis.address())).await).await;
}

#[tokio::test]
async fn a_cluster_of_two_nodes_names_the_right_one() {
    let nodes = [0, 1].map(|_| redis_with(&["--cluster-enabled", "yes"]));
    nodes[0].ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    nodes[1].ask(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    let port = nodes[1].address().port().to_string();
    nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port]);
    let began = Instant::now();
    while !nodes.iter().all(|node| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")) {
        assert!(began.elapsed() < PATIENCE, "the cluster is ready");
        // tidy: allow(sleep): a cluster that comes up tells nobody
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Namespaces fall into any slot: of a few, some are on the node that was not asked first.
    for _ in 0..6 {
        let store = open(&format!("redis+cluster://{}", nodes[0].address())).await;
        store.push(&push_of([task("work")])).await.expect("the store answers");
        assert_eq!(store.claim(&demand(1, Duration::ZERO)).await.expect("the store answers").len(), 1);
    }
}

#[tokio::test]
async fn the_primary_is_found_by_its_sentinel() {
    let redis = redis();
    let sentinel = Sentinel::of(&redis);
    every_verb_works(&open(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port)).await).await;
    let text = common::refused(&format!("redis+sentinel://127.0.0.1:{}/other", sentinel.port)).await.to_string();
    assert!(text.contains("know no primary `other`"), "{text}");
}

#[tokio::test]
async fn a_socket_of_this_machine_is_a_way_to_the_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("redis.sock");
    let _redis = redis_with(&["--unixsocket", &socket.display().to_string()]);
    every_verb_works(&open(&format!("redis+unix://{}", socket.display())).await).await;
}

#[tokio::test]
async fn tls_is_verified_by_the_authority_that_the_url_names() {
    let files = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| files.path().join(name).display().to_string();
    make_certificates(files.path());
    let tls_port = free_port();
    let options = [
        ["--tls-port", &tls_port.to_string()],
        ["--tls-cert-file", &file("server.pem")],
        ["--tls-key-file", &file("server.key")],
        ["--tls-ca-cert-file", &file("ca.pem")],
        ["--tls-auth-clients", "no"],
    ];
    let _redis = redis_with(options.as_flattened());
    let url = format!("rediss://localhost:{tls_port}?namespace=tls&ca={}", file("ca.pem"));
    let location: windlass_redis::Location = url.parse().expect("a URL");
    let store = RedisStore::open(location, windlass_redis::Options::default()).await;
    every_verb_works(&store.unwrap_or_else(|error| panic!("{error}"))).await;
    let error = common::refused(&format!("rediss://localhost:{tls_port}")).await;
    let text = error.to_string();
    assert!(matches!(error, windlass_core::StoreError::Broken(_)) && text.contains("TLS handshake"), "{text}");
}

/// An authority, and a certificate of it for this machine.
fn make_certificates(folder: &std::path::Path) {
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .expect("the folder can be written");
    for command in [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    ] {
        let made = Command::new("openssl").args(command.split(' ')).current_dir(folder).output();
        assert!(made.expect("openssl is installed").status.success(), "openssl {command}");
    }
}

#[tokio::test]
async fn namespaces_and_databases_do_not_see_each_other() {
    let redis = redis();
    let one = open(&redis.url()).await;
    let other = open(&redis.url()).await;
    let third = open(&format!("redis://{}/3", redis.address())).await;
    one.push(&push_of([task("work")])).await.expect("the store answers");
    for store in [&other, &third] {
        assert!(store.claim(&demand(1, Duration::ZERO)).await.expect("the store answers").is_empty());
    }
    assert_eq!(one.claim(&demand(1, Duration::ZERO)).await.expect("the store answers").len(), 1);
}

/// A sentinel that watches a server under the name `main`.
struct Sentinel {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Sentinel {
    fn of(redis: &Redis) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let settings = folder.path().join("sentinel.conf");
        let watched = redis.address().port();
        std::fs::write(
            &settings,
            format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {watched} 1\n"),
        )
        .expect("the folder can be written");
        let child = Command::new("redis-server")
            .arg(&settings)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let sentinel = Self { child, port, _folder: folder };
        let began = Instant::now();
        while !sentinel.knows_its_primary() {
            assert!(began.elapsed() < PATIENCE, "the sentinel starts");
            // tidy: allow(sleep): a sentinel that starts tells nobody
            std::thread::sleep(Duration::from_millis(20));
        }
        sentinel
    }

    fn knows_its_primary(&self) -> bool {
        let port = self.port.to_string();
        let asked = ["-p", &port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"];
        let said = Command::new("redis-cli").args(asked).output().expect("redis-cli is installed");
        String::from_utf8_lossy(&said.stdout).contains("127.0.0.1")
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
