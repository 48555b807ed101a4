//! The proxy does each of its things, between a client and a server that repeats what it hears.

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
/// How long a reader waits before it may say that nothing comes. Only a proxy that fails is given too little time.
const SILENCE: Duration = Duration::from_millis(100);

/// A server that answers each read with the same bytes, and says what it read.
fn echo() -> (SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = port::listen().expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, heard) = std::sync::mpsc::sync_channel(100);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    // A test that does not listen has no need of it.
                    drop(sender.try_send(buffer[..length].to_vec()));
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, heard)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect_timeout(&proxy.address(), LIMIT).expect("the proxy accepts");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream
}

fn say(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("sent");
}

fn hear(mut stream: &TcpStream, text: &str) {
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&buffer), text);
}

fn talk(stream: &TcpStream, text: &str) {
    say(stream, text);
    hear(stream, text);
}

fn hears_nothing(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(SILENCE)).expect("a socket");
    let error = stream.read(&mut [0; 1]).expect_err("nothing comes");
    assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error}");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
}

fn is_reset(mut stream: &TcpStream) {
    let error = stream.read(&mut [0; 1]).expect_err("the connection is gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn bytes_pass_in_both_directions() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let (one, two) = (connect(&proxy), connect(&proxy));
    talk(&one, "one");
    talk(&two, "two");
    talk(&one, "three");
    assert_eq!(proxy.counts(), Counts { accepted: 2, open: 2, answers_lost: 0 });
}

#[test]
fn much_more_than_a_buffer_passes_whole() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let stream = connect(&proxy);
    let text = "0123456789 ".repeat(100_000);
    thread::scope(|scope| {
        scope.spawn(|| say(&stream, &text));
        hear(&stream, &text);
    });
}

#[test]
fn the_end_of_a_connection_passes_too() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let stream = connect(&proxy);
    say(&stream, "last words");
    stream.shutdown(Shutdown::Write).expect("a socket");
    hear(&stream, "last words");
    assert_eq!((&stream).read(&mut [0; 1]).expect("an orderly end"), 0);
    proxy.wait_for(LIMIT, |counts| counts.open == 0).expect("the connection ends");
}

#[test]
fn a_cut_resets_what_is_open_and_takes_new_connections() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let (one, two) = (connect(&proxy), connect(&proxy));
    talk(&one, "one");
    talk(&two, "two");
    proxy.cut();
    assert_eq!(proxy.counts().open, 0);
    is_reset(&one);
    is_reset(&two);
    talk(&connect(&proxy), "three");
}

#[test]
fn a_cut_ends_a_connection_to_somebody_who_does_not_read() {
    // Accepts, through its backlog, and reads nothing.
    let deaf = port::listen().expect("a port");
    let proxy = Proxy::to(deaf.local_addr().expect("bound")).expect("a proxy");
    let mut stream = connect(&proxy);
    stream.set_write_timeout(Some(SILENCE)).expect("a socket");
    let buffer = vec![0; BUFFER_BYTES];
    while stream.write(&buffer).is_ok() {}
    proxy.cut();
    assert_eq!(proxy.counts().open, 0);
}

#[test]
fn a_stall_holds_bytes_back_until_it_is_over() {
    let (server, heard) = echo();
    let proxy = Proxy::to(server).expect("a proxy");
    let stream = connect(&proxy);
    talk(&stream, "before");
    assert_eq!(heard.recv_timeout(LIMIT).expect("heard"), b"before");
    proxy.stall();
    say(&stream, "during");
    let other = connect(&proxy);
    say(&other, "new");
    hears_nothing(&stream);
    hears_nothing(&other);
    assert!(heard.try_recv().is_err(), "the server heard something");
    proxy.resume();
    hear(&stream, "during");
    hear(&other, "new");
}

#[test]
fn a_cut_ends_what_is_stalled() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let stream = connect(&proxy);
    talk(&stream, "before");
    proxy.stall();
    say(&stream, "during");
    proxy.cut();
    is_reset(&stream);
    let stream = connect(&proxy);
    say(&stream, "after");
    hears_nothing(&stream);
}

#[test]
fn a_refusing_proxy_has_nobody_listening_until_it_resumes() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let stream = connect(&proxy);
    talk(&stream, "before");
    proxy.refuse();
    is_reset(&stream);
    let error = TcpStream::connect_timeout(&proxy.address(), LIMIT).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    proxy.refuse();
    proxy.resume();
    talk(&connect(&proxy), "after");
    proxy.resume();
    talk(&connect(&proxy), "again");
}

#[test]
fn a_lost_answer_was_given_by_the_server_and_never_came() {
    let (server, heard) = echo();
    let proxy = Proxy::to(server).expect("a proxy");
    let stream = connect(&proxy);
    talk(&stream, "kept");
    assert_eq!(heard.recv_timeout(LIMIT).expect("heard"), b"kept");
    proxy.cut_after_next_request();
    say(&stream, "lost");
    assert_eq!(heard.recv_timeout(LIMIT).expect("the server heard it"), b"lost");
    is_reset(&stream);
    let counts = proxy.wait_for(LIMIT, |counts| counts.open == 0).expect("the connection ends");
    assert_eq!(counts.answers_lost, 1);
    talk(&connect(&proxy), "one request only");
}

#[test]
fn a_server_that_is_down_resets_its_clients() {
    let nobody = port::free().expect("a port");
    let proxy = Proxy::to(nobody).expect("a proxy");
    // The reset may come while the client still connects.
    let read = TcpStream::connect_timeout(&proxy.address(), LIMIT).and_then(|mut stream| stream.read(&mut [0; 1]));
    assert_eq!(read.expect_err("nobody is there").kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_server_that_resets_is_seen_by_its_client() {
    let listener = port::listen().expect("a port");
    let proxy = Proxy::to(listener.local_addr().expect("bound")).expect("a proxy");
    let stream = connect(&proxy);
    let (server, _) = listener.accept().expect("the proxy connects");
    close_with_reset(&server);
    drop(server);
    is_reset(&stream);
}

#[test]
fn a_dropped_proxy_ends_its_connections_and_its_listening() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let (stream, address) = (connect(&proxy), proxy.address());
    talk(&stream, "before");
    drop(proxy);
    is_reset(&stream);
    assert!(TcpStream::connect_timeout(&address, LIMIT).is_err());
}

#[test]
fn waiting_for_what_does_not_happen_ends_with_what_there_was() {
    let proxy = Proxy::to(echo().0).expect("a proxy");
    let error = proxy.wait_for(SILENCE, |counts| counts.accepted == 1).expect_err("nobody came");
    assert!(error.to_string().contains("accepted: 0"), "{error}");
}
