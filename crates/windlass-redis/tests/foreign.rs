//! Foreign messages in lists and streams: taken, held, accepted, put back, recovered, and waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_redis::foreign::{Channels, Command, Line, Lists, Reply, Stream, Taken};
use windlass_servers::{Aof, Proxy, Redis};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

struct Stage {
    server: Redis,
    line: Arc<Line>,
}

impl Stage {
    fn new() -> Self {
        let server = Redis::start(Aof::EverySec).expect("a server");
        let line = Arc::new(Line::to(server.url().parse().expect("a URL")));
        Self { server, line }
    }

    async fn ask(&self, words: &[&str]) -> Reply {
        self.line.ask(&command(words)).await.expect("an answer")
    }

    async fn push(&self, list: &str, messages: &[&str]) {
        for message in messages {
            self.ask(&["LPUSH", list, message]).await;
        }
    }

    async fn all(&self, list: &str) -> Vec<String> {
        let items = self.ask(&["LRANGE", list, "0", "-1"]).await.list();
        items.into_iter().filter_map(|item| String::from_utf8(item.bytes()?).ok()).collect()
    }
}

fn command(words: &[&str]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn said(taken: &[Taken]) -> Vec<(&str, String)> {
    taken.iter().map(|taken| (taken.list.as_str(), String::from_utf8_lossy(&taken.message).into_owned())).collect()
}

fn tokens(taken: &[Taken]) -> Vec<String> {
    taken.iter().map(|taken| taken.token.clone()).collect()
}

async fn take(lists: &Lists, from: &[&str], max: usize) -> Vec<Taken> {
    lists.take(&names(from), max, NO_WAIT, &CancellationToken::new()).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_of_the_first_list_comes_first_and_what_is_accepted_is_gone() {
    let stage = Stage::new();
    stage.push("mail", &["1", "2", "3"]).await;
    stage.push("other", &["4", "5"]).await;
    let lists = Lists::new(Arc::clone(&stage.line), "");
    let taken = take(&lists, &["mail", "other"], 4).await;
    let expected = [("mail", "1"), ("mail", "2"), ("mail", "3"), ("other", "4")];
    assert_eq!(said(&taken), expected.map(|(list, message)| (list, message.to_owned())));
    lists.accept(&tokens(&taken)).await.expect("accepted");
    assert_eq!(said(&take(&lists, &["mail", "other"], 4).await), [("other", "5".to_owned())]);
    assert_eq!(lists.recover(10, NO_WAIT).await.expect("an answer"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_back_is_served_next_in_its_order_and_only_once() {
    let stage = Stage::new();
    stage.push("mail", &["1", "2", "3"]).await;
    let lists = Lists::new(Arc::clone(&stage.line), "shop:");
    let taken = take(&lists, &["mail"], 2).await;
    for _ in 0..2 {
        lists.put_back(&tokens(&taken)).await.expect("back");
    }
    assert_eq!(stage.all("mail").await, ["3", "2", "1"]);
    let again = take(&lists, &["mail"], 1).await;
    assert_eq!(said(&again), [("mail", "1".to_owned())]);
    assert_ne!(again[0].token, taken[0].token, "taken anew, it is another delivery");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_session_holds_is_taken_over_under_its_tokens() {
    let stage = Stage::new();
    stage.push("mail", &["1", "2", "with \u{1f6a2} and : in it"]).await;
    let dead = Lists::new(Arc::clone(&stage.line), "");
    let held = take(&dead, &["mail"], 3).await;
    drop(dead);
    let living = Lists::new(Arc::clone(&stage.line), "");
    assert_eq!(living.recover(10, LONG).await.expect("an answer"), [], "it was there a moment ago");
    let mut found = living.recover(2, NO_WAIT).await.expect("an answer");
    assert_eq!(found.len(), 2, "no more than was asked for");
    found.extend(living.recover(10, NO_WAIT).await.expect("an answer"));
    let by_token = |mut taken: Vec<Taken>| {
        taken.sort_by(|one, other| one.token.cmp(&other.token));
        taken
    };
    assert_eq!(by_token(found.clone()), by_token(held));
    living.accept(&tokens(&found)).await.expect("accepted");
    assert_eq!(living.recover(10, NO_WAIT).await.expect("an answer"), []);
    let keys = stage.ask(&["KEYS", "windlass.held:*"]).await.list();
    assert!(keys.len() <= 1, "nothing is left of the dead session: {keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_only_stood_still_gives_no_token_twice() {
    let stage = Stage::new();
    stage.push("mail", &["1"]).await;
    let (still, other) = (Lists::new(Arc::clone(&stage.line), ""), Lists::new(Arc::clone(&stage.line), ""));
    let before = take(&still, &["mail"], 1).await;
    assert_eq!(other.recover(10, NO_WAIT).await.expect("an answer"), before);
    stage.push("mail", &["2"]).await;
    let after = take(&still, &["mail"], 1).await;
    assert_ne!(tokens(&after), tokens(&before));
    still.accept(&tokens(&before)).await.expect("no harm");
    assert_eq!(stage.ask(&["EXISTS", "mail"]).await, Reply::Number(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_without_an_answer_comes_with_the_next_one() {
    let stage = Stage::new();
    stage.push("mail", &["1", "2", "3"]).await;
    let proxy = Proxy::to(stage.server.address()).expect("a proxy");
    let url = format!("redis://{}/0", proxy.address());
    let lists = Lists::new(Arc::new(Line::to(url.parse().expect("a URL"))), "");
    // Connected, and the script is known: the next request is the one that takes.
    assert_eq!(take(&lists, &["empty"], 2).await, []);
    proxy.cut_after_next_request();
    lists.take(&names(&["mail"]), 2, NO_WAIT, &CancellationToken::new()).await.expect_err("no answer");
    assert_eq!(stage.all("mail").await, ["3"], "they were taken all the same");
    let taken = take(&lists, &["mail"], 2).await;
    assert_eq!(said(&taken), [("mail", "1".to_owned()), ("mail", "2".to_owned())]);
    lists.accept(&tokens(&taken)).await.expect("accepted");
    assert_eq!(said(&take(&lists, &["mail"], 2).await), [("mail", "3".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_never_take_the_same_message() {
    let stage = Stage::new();
    let all: Vec<String> = (0..2_000).map(|number| number.to_string()).collect();
    stage.push("mail", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let taker = async || {
        let (lists, mut mine) = (Lists::new(Arc::clone(&stage.line), ""), Vec::new());
        loop {
            let taken = take(&lists, &["mail"], 7).await;
            if taken.is_empty() {
                return mine;
            }
            lists.accept(&tokens(&taken)).await.expect("accepted");
            mine.extend(said(&taken).into_iter().map(|(_, message)| message));
        }
    };
    let (mut one, other) = tokio::join!(taker(), taker());
    one.extend(other);
    one.sort_by_key(|message| message.parse::<u32>().expect("a number"));
    assert_eq!(one, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_woken_by_a_message_in_any_of_the_lists() {
    let stage = Stage::new();
    let lists = Arc::new(Lists::new(Arc::clone(&stage.line), ""));
    for list in ["b", "a", "c"] {
        let waiting = tokio::spawn({
            let lists = Arc::clone(&lists);
            async move { lists.take(&names(&["a", "b", "c"]), 10, LONG, &CancellationToken::new()).await }
        });
        // The server says when somebody has asked to be told.
        while stage.server.cli(&["INFO", "clients"]).expect("an answer").contains("tracking_clients:0") {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        stage.push(list, &["now"]).await;
        let taken = waiting.await.expect("no panic").expect("an answer");
        assert_eq!(said(&taken), [(list, "now".to_owned())]);
        println!("woken after {:?}", began.elapsed());
        assert!(began.elapsed() < LONG / 2, "by the message, not by the end of the wait");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_it_is_hushed() {
    let stage = Stage::new();
    let lists = Lists::new(Arc::clone(&stage.line), "");
    let hush = CancellationToken::new();
    let wanted = names(&["a"]);
    let (taken, ()) = tokio::join!(lists.take(&wanted, 10, LONG, &hush), async { hush.cancel() });
    assert_eq!(taken.expect("an answer"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_list_hinders_only_itself() {
    let stage = Stage::new();
    stage.ask(&["XADD", "strange", "*", "data", "x"]).await;
    stage.push("mail", &["1"]).await;
    let lists = Lists::new(Arc::clone(&stage.line), "");
    assert_eq!(said(&take(&lists, &["strange", "mail"], 10).await), [("mail", "1".to_owned())]);
    let wrong = lists.take(&names(&["strange", "mail"]), 10, NO_WAIT, &CancellationToken::new()).await;
    assert!(wrong.expect_err("no list").to_string().contains("WRONGTYPE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_pops_nothing() {
    let stage = Stage::new();
    stage.push("mail", &["1", "2"]).await;
    stage.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let lists = Lists::new(Arc::clone(&stage.line), "");
    lists.take(&names(&["mail"]), 10, NO_WAIT, &CancellationToken::new()).await.expect_err("it is full");
    assert_eq!(stage.all("mail").await, ["2", "1"]);
    stage.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(take(&lists, &["mail"], 10).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_survives_a_restart_of_the_server() {
    let mut stage = Stage::new();
    let lists = Arc::new(Lists::new(Arc::clone(&stage.line), ""));
    let wait = |lists: Arc<Lists>| {
        tokio::spawn(async move {
            loop {
                match lists.take(&names(&["mail"]), 10, LONG, &CancellationToken::new()).await {
                    Ok(taken) if !taken.is_empty() => return taken,
                    // Whoever takes decides how long to pause; the next attempt waits for the connection anyway.
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            }
        })
    };
    let waiting = wait(Arc::clone(&lists));
    stage.server.stop();
    stage.server.start_again().expect("again");
    let began = Instant::now();
    let other = Line::to(stage.server.url().parse().expect("a URL"));
    other.ask(&command(&["LPUSH", "mail", "after"])).await.expect("pushed");
    assert_eq!(said(&waiting.await.expect("no panic")), [("mail", "after".to_owned())]);
    println!("{:?} after the server was back", began.elapsed());
}

fn ids(entries: &[windlass_redis::foreign::Entry]) -> Vec<(String, String)> {
    entries.iter().map(|entry| (entry.stream.clone(), entry.id.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_stream_are_pending_until_they_are_accepted() {
    let stage = Stage::new();
    stage.ask(&["XADD", "jobs", "*", "data", "early"]).await;
    let consumer = |name: &str| Stream::new(Arc::clone(&stage.line), names(&["jobs"]), "workers", name);
    let (one, other) = (consumer("one"), consumer("other"));
    for _ in 0..2 {
        one.make_group("0").await.expect("a group, also when it is there already");
    }
    stage.ask(&["XADD", "jobs", "*", "data", "late"]).await;
    let hush = CancellationToken::new();
    let taken = one.take(10, NO_WAIT, &hush).await.expect("an answer");
    let values: Vec<_> = taken.iter().map(|entry| entry.fields.clone()).collect();
    let field = |value: &str| vec![(b"data".to_vec(), value.as_bytes().to_vec())];
    assert_eq!(values, [field("early"), field("late")]);
    one.accept(&ids(&taken[..1])).await.expect("accepted");
    assert_eq!(other.take(10, NO_WAIT, &hush).await.expect("an answer"), []);
    assert_eq!(other.recover(10, LONG).await.expect("an answer"), [], "it is not idle yet");
    one.put_back(&ids(&taken[1..]), LONG).await.expect("left");
    let found = other.recover(10, LONG).await.expect("an answer");
    assert_eq!(ids(&found), ids(&taken[1..]), "under the same id");
    other.accept(&ids(&found)).await.expect("accepted");
    let pending = stage.ask(&["XPENDING", "jobs", "workers"]).await.list();
    assert_eq!(pending[0], Reply::Number(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_stream_is_woken_by_an_entry() {
    let stage = Stage::new();
    let consumer = Arc::new(Stream::new(Arc::clone(&stage.line), names(&["jobs"]), "workers", "one"));
    consumer.make_group("$").await.expect("a group");
    let waiting = tokio::spawn({
        let consumer = Arc::clone(&consumer);
        async move { consumer.take(10, LONG, &CancellationToken::new()).await }
    });
    while stage.server.cli(&["INFO", "clients"]).expect("an answer").contains("tracking_clients:0") {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    stage.ask(&["XADD", "jobs", "*", "data", "x"]).await;
    assert_eq!(waiting.await.expect("no panic").expect("an answer").len(), 1);
    assert!(began.elapsed() < LONG / 2, "by the entry, not by the end of the wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn published_messages_are_heard_again_after_the_server_was_restarted() {
    let mut stage = Stage::new();
    let mut channels = Channels::listen(Arc::clone(&stage.line), names(&["/0.control", "/0.events/*"]));
    let hear_one = async |stage: &Stage, channels: &mut Channels, channel: &str, message: &str| {
        // Nobody hears what is published before the connection is there.
        loop {
            if stage
                .line
                .ask(&command(&["PUBLISH", channel, message]))
                .await
                .is_ok_and(|heard| heard == Reply::Number(1))
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        channels.next().await.expect("a message")
    };
    let heard = hear_one(&stage, &mut channels, "/0.events/task.multi", "1").await;
    assert_eq!((heard.channel.as_str(), heard.message.as_slice()), ("/0.events/task.multi", &b"1"[..]));
    stage.server.stop();
    stage.server.start_again().expect("again");
    let heard = hear_one(&stage, &mut channels, "/0.control", "2").await;
    assert_eq!((heard.channel.as_str(), heard.message.as_slice()), ("/0.control", &b"2"[..]));
}
