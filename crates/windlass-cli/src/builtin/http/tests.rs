//! The client against real sockets: honest receivers, and those that try to hold, fill or mislead it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use windlass::config::{Config, HttpConfig};
use windlass::{Failure, Secret, TaskError, TaskId, Timestamp};

use super::client::{HttpClient, Sender};
use super::guard::{Reach, Resolver};
use super::{BodyForm, HttpAnswer, HttpRequest, sign};

/// A receiver that answers with what a function makes of the request, byte by byte as it is.
struct Receiver {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn answering(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::speaking(move |mut stream, request| {
            let answer = answer(&request);
            async move {
                stream.write_all(answer.as_bytes()).await.ok()?;
                Some(stream)
            }
        })
        .await
    }

    /// `speak` returns the connection when it may be used again.
    async fn speaking<F, Fut>(speak: F) -> Self
    where
        F: Fn(TcpStream, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<TcpStream>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver =
            Self { port: listener.local_addr().unwrap().port(), connections: Arc::default(), requests: Arc::default() };
        let (connections, requests, speak) =
            (Arc::clone(&receiver.connections), Arc::clone(&receiver.requests), Arc::new(speak));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, speak) = (Arc::clone(&requests), Arc::clone(&speak));
                tokio::spawn(async move {
                    let mut open = Some(stream);
                    while let Some(mut stream) = open.take() {
                        let Some(request) = read_request(&mut stream).await else { return };
                        requests.lock().push(request.clone());
                        open = speak(stream, request).await;
                    }
                });
            }
        });
        receiver
    }

    /// Writes to whoever connects, whatever they want.
    async fn without_asking(text: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(text.as_bytes()).await;
                // Closing with unread input would reset the connection before the text is read.
                while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
            }
        });
        Self { port, connections: Arc::default(), requests: Arc::default() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn config() -> HttpConfig {
    HttpConfig { allow_private: true, ..Config::default().tasks.http }
}

fn client() -> HttpClient {
    HttpClient::new(&config()).unwrap()
}

fn get(url: &str) -> HttpRequest {
    HttpRequest::to(url)
}

fn sender() -> Sender {
    Sender { id: TaskId::new("order-1017").unwrap(), attempt: 2, now: Timestamp::from_secs(1_800_000_000) }
}

async fn send(client: &HttpClient, task: &HttpRequest) -> Result<HttpAnswer, TaskError> {
    client.send(task, &sender()).await
}

fn failed(result: Result<HttpAnswer, TaskError>) -> Failure {
    match result {
        Err(TaskError::Failed(failure)) => failure,
        other => panic!("expected a failure that is tried again: {other:?}"),
    }
}

fn fatal(result: Result<HttpAnswer, TaskError>) -> Failure {
    match result {
        Err(TaskError::Fatal(failure)) => failure,
        other => panic!("expected a failure for good: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_says_who_sends_it_and_which_attempt_it_is() {
    let receiver = Receiver::answering(|_| ok("fine")).await;
    let mut task = get(&receiver.url("/a?b=c"));
    task.headers.insert("X-Tenant".to_owned(), "acme".to_owned());
    let answer = send(&client(), &task).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str(), answer.form, answer.cut), (200, "fine", BodyForm::Text, false));
    let request = receiver.requests().remove(0);
    assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{request}");
    for line in ["idempotency-key: order-1017", "windlass-attempt: 2", "x-tenant: acme", "user-agent: windlass/"] {
        assert!(request.contains(&format!("\r\n{line}")), "{line} in {request}");
    }
}

#[tokio::test]
async fn a_json_body_is_posted_and_signed() {
    let receiver = Receiver::answering(|_| ok("")).await;
    let key = "s3cret";
    let client = HttpClient::new(&HttpConfig { signing_key: Some(Secret::new(key.to_owned())), ..config() }).unwrap();
    let mut task = get(&receiver.url("/"));
    task.json = Some(json!({"a": 1}));
    task.sign = true;
    send(&client, &task).await.unwrap();
    let request = receiver.requests().remove(0);
    assert!(request.starts_with("POST / ") && request.contains("content-type: application/json"), "{request}");
    let body = request.split_once("\r\n\r\n").unwrap().1;
    let signature = sign::signature(key, sender().now, body.as_bytes());
    assert!(request.contains(&format!("\r\nwindlass-signature: {signature}\r\n")), "{request}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let receiver = Receiver::answering(|_| ok("x")).await;
    let client = client();
    for _ in 0..5 {
        send(&client, &get(&receiver.url("/"))).await.unwrap();
    }
    assert_eq!((receiver.requests().len(), receiver.connections.load(Ordering::SeqCst)), (5, 1));
}

#[tokio::test]
async fn what_can_never_be_sent_is_fatal_and_says_why() {
    for (arguments, word) in [
        (json!({"url": "not a url"}), "url"),
        (json!({"url": "http://127.0.0.1/", "body": "x", "json": 1}), "both"),
        (json!({"url": "http://127.0.0.1/", "method": "G E T"}), "method"),
        (json!({"url": "http://127.0.0.1/", "method": "CONNECT"}), "tunnel"),
        (json!({"url": "http://127.0.0.1/", "headers": {"a b": "c"}}), "`a b`"),
        (json!({"url": "http://127.0.0.1/", "headers": {"a": "b\r\nc: d"}}), "character"),
        (json!({"url": "http://127.0.0.1/", "headers": {"Content-Length": "5"}}), "content-length"),
        (json!({"url": "http://127.0.0.1/", "sign": true}), "tasks.http.signing_key"),
        (json!({"url": "http://127.0.0.1/", "follow_redirects": 11}), "follow_redirects"),
    ] {
        let task: HttpRequest = serde_json::from_value(arguments).unwrap();
        let failure = fatal(send(&client(), &task).await);
        assert!(failure.class == "bad_request" && failure.message.contains(word), "{failure}");
    }
}

#[tokio::test]
async fn answers_become_what_the_engine_should_do() {
    let receiver = Receiver::answering(|request| match request.split(' ').nth(1) {
        Some("/busy") => "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".to_owned(),
        Some("/limit") => "HTTP/1.1 429 Slow\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n".to_owned(),
        Some("/never?token=abc") => "HTTP/1.1 400 Bad\r\ncontent-length: 13\r\n\r\nno such\norder".to_owned(),
        _ => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
    })
    .await;
    let client = client();
    let busy = send(&client, &get(&receiver.url("/busy"))).await.unwrap_err();
    assert!(
        matches!(busy, TaskError::Retry { after, ref failure } if after.as_secs() == 7 && failure.class == "http_5xx")
    );
    let limit = send(&client, &get(&receiver.url("/limit"))).await.unwrap_err();
    assert!(matches!(limit, TaskError::Throttled { after } if after.as_secs() == 9));
    let never = fatal(send(&client, &get(&receiver.url("/never?token=abc"))).await);
    assert_eq!(never.class, "http_4xx");
    assert!(never.message.ends_with("/never answered 400 Bad Request: no such order"), "{never}");
    assert_eq!(failed(send(&client, &get(&receiver.url("/"))).await).class, "http_5xx");
}

#[tokio::test]
async fn a_redirect_keeps_its_secrets_to_the_first_receiver() {
    let second = Receiver::answering(|_| ok("there")).await;
    let target = second.url("/b");
    let first =
        Receiver::answering(move |_| format!("HTTP/1.1 307 Go\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"))
            .await;
    let mut task = get(&first.url("/a"));
    task.body = Some("payload".to_owned());
    task.headers.insert("Authorization".to_owned(), "Bearer abc".to_owned());
    assert_eq!(send(&client(), &task).await.unwrap().body, "there");
    assert!(first.requests()[0].contains("Bearer abc"));
    let request = second.requests().remove(0);
    assert!(
        request.starts_with("POST /b ") && request.ends_with("payload") && !request.contains("Bearer"),
        "{request}"
    );
}

#[tokio::test]
async fn after_see_other_the_body_stays_behind() {
    let receiver = Receiver::answering(|request| {
        if request.starts_with("GET") {
            return ok("done");
        }
        "HTTP/1.1 303 See\r\nlocation: ../done\r\ncontent-length: 0\r\n\r\n".to_owned()
    })
    .await;
    let mut task = get(&receiver.url("/x/y"));
    task.body = Some("payload".to_owned());
    assert_eq!(send(&client(), &task).await.unwrap().body, "done");
    assert!(receiver.requests()[1].starts_with("GET /done ") && !receiver.requests()[1].contains("content-type"));
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let receiver =
        Receiver::answering(|_| "HTTP/1.1 302 Round\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    assert_eq!(fatal(send(&client(), &get(&receiver.url("/"))).await).class, "redirects");
    assert_eq!(receiver.requests().len(), 6);
    let mut task = get(&receiver.url("/"));
    task.follow_redirects = Some(0);
    assert_eq!(fatal(send(&client(), &task).await).class, "http_3xx");
    task.expect = vec![302];
    assert_eq!(send(&client(), &task).await.unwrap().headers["location"], "/");
}

#[tokio::test]
async fn a_public_receiver_cannot_send_a_request_on_to_a_private_address() {
    for location in ["http://169.254.169.254/latest/", "http://localhost/", "//[::1]/", "http://u:p@public.test/"] {
        let receiver = Receiver::answering(move |_| {
            format!("HTTP/1.1 302 Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
        })
        .await;
        // The name stands for a public receiver; the guard of the URL sees only the name.
        let resolver = Resolver::fixed(Reach::Anywhere, &["127.0.0.1"]);
        let client = HttpClient::resolving_by(resolver, Reach::Public, &config()).unwrap();
        let failure = fatal(send(&client, &get(&format!("http://public.test:{}/", receiver.port))).await);
        assert_eq!(failure.class, "forbidden", "{location}: {failure}");
        assert_eq!(receiver.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_never_connected_to() {
    let receiver = Receiver::answering(|_| ok("secret")).await;
    for addresses in [&["127.0.0.1"][..], &["10.0.0.1", "::ffff:127.0.0.1"]] {
        let resolver = Resolver::fixed(Reach::Public, addresses);
        let client = HttpClient::resolving_by(resolver, Reach::Public, &config()).unwrap();
        let failure = fatal(send(&client, &get(&format!("http://rebound.test:{}/", receiver.port))).await);
        assert!(failure.class == "forbidden" && failure.message.contains("allow_private"), "{failure}");
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    let receiver = Receiver::speaking(|mut stream, _| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        loop {
            stream.write_all(&[b'x'; 8192]).await.ok()?;
        }
    })
    .await;
    let client = HttpClient::new(&HttpConfig { max_response_bytes: 100_000, ..config() }).unwrap();
    let answer = send(&client, &get(&receiver.url("/"))).await.unwrap();
    assert_eq!((answer.body.len(), answer.cut), (100_000, true));
}

#[tokio::test]
async fn a_body_that_drips_runs_into_the_limit() {
    let receiver = Receiver::speaking(|mut stream, _| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.ok()?;
        loop {
            stream.write_all(b"x").await.ok()?;
            // tidy: allow(sleep): the slowness is what is tested
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut task = get(&receiver.url("/"));
    task.timeout = serde_json::from_str("\"200ms\"").unwrap();
    let failure = failed(send(&client(), &task).await);
    assert_eq!((failure.class.as_str(), failure.message.as_str()), ("timeout", "no whole answer within 200ms"));
}

#[tokio::test]
async fn a_receiver_that_never_answers_runs_into_the_limit() {
    let receiver = Receiver::speaking(|stream, _| async move {
        std::future::pending::<()>().await;
        Some(stream)
    })
    .await;
    let client = HttpClient::new(&HttpConfig { timeout: Duration::from_millis(100), ..config() }).unwrap();
    assert_eq!(failed(send(&client, &get(&receiver.url("/"))).await).class, "timeout");
}

#[tokio::test]
async fn broken_answers_are_tried_again() {
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(4_000_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(20_000));
    for (name, answer) in [
        ("huge header", huge.as_str()),
        ("many headers", many.as_str()),
        ("broken chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n"),
        ("chunk that never comes", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhello"),
        ("short body", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello"),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhello"),
        ("not HTTP", "SSH-2.0-OpenSSH_9.2\r\n"),
        ("nothing", ""),
    ] {
        let answer = answer.to_owned();
        let receiver = Receiver::speaking(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                stream.write_all(answer.as_bytes()).await.ok()?;
                None
            }
        })
        .await;
        let failure = failed(send(&client(), &get(&receiver.url("/"))).await);
        assert_eq!(failure.class, "connection", "{name}: {failure}");
    }
}

#[tokio::test]
async fn nobody_there_is_tried_again() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failure = failed(send(&client(), &get(&format!("http://{unused}/?token=abc"))).await);
    assert_eq!(failure.class, "connect");
    assert!(!failure.message.contains("abc"), "{failure}");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let client = client();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificate = rustls::pki_types::CertificateDer::from(&include_bytes!("fixtures/self_signed.der")[..]);
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(&include_bytes!("fixtures/self_signed.key.der")[..]);
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate], key.into()).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // The client breaks off; nothing is left to do.
            let _ = connection.complete_io(&mut stream);
        }
    });
    let failure = failed(send(&client, &get(&format!("https://127.0.0.1:{port}/"))).await);
    assert!(failure.class == "tls" && failure.message.contains("certificate"), "{failure}");
}

#[tokio::test]
async fn a_receiver_without_tls_is_a_failure_of_tls() {
    let receiver = Receiver::without_asking("HTTP/1.1 400 Bad\r\n\r\n").await;
    let url = receiver.url("/").replace("http://", "https://");
    let failure = failed(send(&client(), &get(&url)).await);
    assert_eq!(failure.class, "tls", "{failure}");
}
