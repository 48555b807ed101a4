//! A network between a client and a server that breaks when the test says so.
//!
//! One thread accepts; two threads a connection carry its bytes, one in each direction. What they may do is in one
//! [`State`] behind a lock; each fault changes it and, where it ends connections, waits until their sockets are closed.
//! So when a method returns, its fault has happened.
//!
//! A connection is ended by a reset (RST): its sockets are set to linger for no time, and the last thread that carries it
//! closes them.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Error, port};

/// More than a request of a test, so that one request is one read.
const BUFFER_BYTES: usize = 64 * 1024;
/// A server on the same machine takes a connection or refuses it at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a thread writes to somebody who does not read before it looks whether the connection was cut.
const WRITE_LIMIT: Duration = Duration::from_millis(50);
/// Connections that are cut are closed within `WRITE_LIMIT`; anything else is a defect of this file.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);
/// A machine without free file descriptors accepts nothing for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Passes TCP connections on to a server until it is told to break them.
///
/// Dropping it ends its connections and its threads.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// What went through a proxy so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections that clients made.
    pub accepted: u64,
    /// Connections that are open now, from client to server.
    pub open: usize,
    /// Answers that [`Proxy::cut_after_next_request`] kept from their client.
    pub answers_lost: u64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes every connection on to `target`.
    ///
    /// The target need not listen yet: a client that comes too early is reset, some while they still connect.
    /// # Errors
    /// When no port is free.
    pub fn to(target: SocketAddr) -> Result<Self, Error> {
        let listener = port::listen()?;
        let address = listener.local_addr().map_err(Error::cannot("read the address of a listener"))?;
        let shared = Arc::new(Shared { target, state: Mutex::default(), changed: Condvar::new() });
        let acceptor = Mutex::new(Some(accept_on(listener, &shared)));
        Ok(Self { address, shared, acceptor })
    }

    /// Where clients connect; the same for its whole life.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection, at both ends. New ones are treated as before.
    pub fn cut(&self) {
        self.shared.cut(self.shared.lock());
    }

    /// Lets no byte pass any more, in neither direction. Connections stay open, and new ones are accepted: to both ends it
    /// looks as if the other thinks for a long time.
    ///
    /// What was sent before the call may still arrive.
    pub fn stall(&self) {
        self.listen(Flow::Stalled);
    }

    /// Resets every open connection and refuses new ones, until [`Self::resume`] or [`Self::stall`].
    pub fn refuse(&self) {
        // Held to the end: a flow that is opened again meanwhile would keep the acceptor, and this call, for ever.
        let mut acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.shared.lock();
        state.flow = Flow::Refused;
        self.shared.cut(state);
        if let Some(acceptor) = acceptor.take() {
            // It waits for a connection: this one wakes it. If another came first it has ended, and this one fails.
            drop(TcpStream::connect_timeout(&self.address, CONNECT_LIMIT));
            drop(acceptor.join());
        }
    }

    /// Makes everything whole: accepts connections and lets their bytes pass, those first that waited.
    ///
    /// # Panics
    /// When it refused connections before and another program has taken its port since.
    pub fn resume(&self) {
        self.listen(Flow::Open);
    }

    /// Passes the next bytes that any client sends on to the server, and resets that connection when the server begins to
    /// answer: the request was carried out and the answer is lost.
    ///
    /// Holds for one request; the handshake of a new connection counts as one. An answer that is on its way to that client
    /// already counts as the answer.
    pub fn cut_after_next_request(&self) {
        self.shared.lock().loses_next_answer = true;
    }

    /// What went through so far.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts()
    }

    /// Waits until the counts are as the caller wants them, and answers with them.
    ///
    /// # Errors
    /// [`Error::NotSeen`] after `limit`, with the last counts.
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&Counts) -> bool) -> Result<Counts, Error> {
        let state = self.shared.lock();
        let state = self.shared.wait_while(state, limit, |state| !wanted(&state.counts()));
        let counts = state.counts();
        if wanted(&counts) { Ok(counts) } else { Err(Error::NotSeen { limit, seen: format!("{counts:?}") }) }
    }

    /// Lets bytes flow or not, and accepts connections, if it does not yet.
    fn listen(&self, flow: Flow) {
        let mut acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.lock().flow = flow;
        self.shared.changed.notify_all();
        if acceptor.is_none() {
            let listener = TcpListener::bind(self.address)
                .unwrap_or_else(|error| panic!("the proxy cannot listen on {} again: {error}", self.address));
            *acceptor = Some(accept_on(listener, &self.shared));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

/// What all threads of a proxy see.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// Whenever the state changes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    flow: Flow,
    /// The next request that passes loses its answer.
    loses_next_answer: bool,
    /// How often everything was cut: a connection that was accepted before a cut and is made after it, is cut too.
    cuts: u64,
    accepted: u64,
    answers_lost: u64,
    /// Open connections by their number, which is that of their acceptance.
    links: BTreeMap<u64, Arc<Link>>,
}

/// What happens to bytes and to new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Flow {
    #[default]
    Open,
    Stalled,
    Refused,
}

/// One connection of a client and its other half, to the server.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    is_cut: AtomicBool,
    loses_answer: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl State {
    fn counts(&self) -> Counts {
        Counts { accepted: self.accepted, open: self.links.len(), answers_lost: self.answers_lost }
    }
}

impl Link {
    fn new(client: TcpStream, server: TcpStream) -> io::Result<Self> {
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(WRITE_LIMIT))?;
        }
        Ok(Self { client, server, is_cut: AtomicBool::new(false), loses_answer: AtomicBool::new(false) })
    }

    /// Makes both threads leave; the last of them closes both sockets with a reset.
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            close_with_reset(stream);
            // Wakes the thread that reads from it, and tells the other end nothing. It fails when that end is gone.
            drop(stream.shutdown(Shutdown::Read));
        }
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    /// Carries bytes in one direction until one end closes or the connection is cut.
    fn carry(&self, direction: Direction, shared: &Shared) {
        let (mut from, to) = match direction {
            Direction::ToServer => (&self.client, &self.server),
            Direction::ToClient => (&self.server, &self.client),
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read,
            };
            if !shared.may_pass(self, direction, read.as_ref().is_ok_and(|length| *length > 0)) {
                return;
            }
            match read {
                // The end of what this side has to say is passed on; the other side may still speak.
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(length) if self.write(to, &buffer[..length]).is_ok() => {}
                // One end was reset: so is the other.
                Ok(_) | Err(_) => return self.cut(),
            }
        }
    }

    /// Writes everything, however slowly the other end reads, unless the connection is cut.
    fn write(&self, mut to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.is_cut() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'state>(
        &self,
        state: MutexGuard<'state, State>,
        limit: Duration,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'state, State> {
        let waited = self.changed.wait_timeout_while(state, limit, |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Cuts every open connection and waits until all their sockets are closed.
    fn cut(&self, mut state: MutexGuard<'_, State>) {
        state.cuts += 1;
        for link in state.links.values() {
            link.cut();
        }
        // Those who wait for the stall to end shall see it.
        self.changed.notify_all();
        let next = state.accepted + 1;
        let is_open = |state: &State| state.links.range(..next).any(|(_, link)| link.is_cut());
        let state = self.wait_while(state, CLOSE_LIMIT, is_open);
        assert!(
            !is_open(&state) || thread::panicking(),
            "a connection that was cut is still open after {CLOSE_LIMIT:?}"
        );
    }

    /// Waits while the flow is stalled. Answers whether what was read may pass; if not, the connection is over.
    fn may_pass(&self, link: &Link, direction: Direction, has_bytes: bool) -> bool {
        let mut state = self.lock();
        while state.flow == Flow::Stalled && !link.is_cut() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if link.is_cut() {
            return false;
        }
        if has_bytes {
            match direction {
                Direction::ToServer => {
                    if std::mem::take(&mut state.loses_next_answer) {
                        link.loses_answer.store(true, Ordering::SeqCst);
                    }
                }
                Direction::ToClient if link.loses_answer.load(Ordering::SeqCst) => {
                    state.answers_lost += 1;
                    link.cut();
                    self.changed.notify_all();
                    return false;
                }
                Direction::ToClient => {}
            }
        }
        true
    }

    /// Makes the other half of a connection and carries its bytes to its end.
    fn serve(&self, client: TcpStream, number: u64, cuts: u64) {
        close_with_reset(&client);
        // A server that is down resets its clients; leaving here does that.
        let Ok(server) = TcpStream::connect_timeout(&self.target, CONNECT_LIMIT) else { return };
        close_with_reset(&server);
        let Ok(link) = Link::new(client, server).map(Arc::new) else { return };
        {
            let mut state = self.lock();
            if state.cuts != cuts {
                return;
            }
            for stream in [&link.client, &link.server] {
                close_in_order(stream);
            }
            state.links.insert(number, Arc::clone(&link));
            self.changed.notify_all();
        }
        thread::scope(|scope| {
            scope.spawn(|| link.carry(Direction::ToClient, self));
            link.carry(Direction::ToServer, self);
        });
        // Closed under the lock: who sees that the connection is not there any more may rely on its reset.
        let mut state = self.lock();
        drop(state.links.remove(&number));
        drop(link);
        self.changed.notify_all();
    }
}

/// Accepts connections in a thread until the flow is refused, and then one more, which wakes it.
fn accept_on(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        loop {
            let accepted = listener.accept();
            let mut state = shared.lock();
            if state.flow == Flow::Refused {
                if let Ok((client, _)) = accepted {
                    close_with_reset(&client);
                }
                return;
            }
            let Ok((client, _)) = accepted else {
                drop(state);
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            state.accepted += 1;
            let (number, cuts) = (state.accepted, state.cuts);
            drop(state);
            shared.changed.notify_all();
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.serve(client, number, cuts));
        }
    })
}

/// When this socket is closed, its other end is reset: what was sent and not read yet may be lost, too.
fn close_with_reset(stream: &TcpStream) {
    // Fails only for a socket that is no longer connected, which has nothing to reset.
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// When this socket is closed, its other end reads everything and then the end.
fn close_in_order(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, None);
}

#[cfg(test)]
mod tests;
