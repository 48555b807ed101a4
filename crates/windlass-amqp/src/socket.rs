//! The connection below AMQP: TCP or TLS, with limits on how long it takes to make, and a way to give it up at once.
//!
//! The client library reads and writes it on a thread of its own and closes it politely: it says goodbye and waits. A broker
//! that does not answer keeps such a thread for ever, so a [`Cord`] cuts the connection from our side.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_rs::Tokio;
use async_rs::traits::Reactor;
use futures_util::io::{AsyncRead, AsyncWrite};
use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::AmqpError;
use crate::location::{Location, Tls};

/// Names and TCP: a broker that returns must be found within five seconds, and the third packet of a lost handshake comes
/// after three.
const TCP_LIMIT: Duration = Duration::from_secs(4);
const TLS_LIMIT: Duration = Duration::from_secs(5);

/// Bytes to and from a broker.
pub(crate) struct Socket {
    stream: Box<dyn Stream>,
    cord: Cord,
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// Cuts a socket, whoever has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cord(Arc<Pulled>);

#[derive(Debug, Default)]
struct Pulled {
    is_pulled: AtomicBool,
    reader: Mutex<Option<Waker>>,
    writer: Mutex<Option<Waker>>,
}

impl Cord {
    /// Whoever reads from the socket or writes to it gets an error from now on.
    pub(crate) fn pull(&self) {
        self.0.is_pulled.store(true, Ordering::SeqCst);
        let wakers = [self.0.reader.lock().take(), self.0.writer.lock().take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn check(&self, waker: &Mutex<Option<Waker>>, context: &Context<'_>) -> io::Result<()> {
        *waker.lock() = Some(context.waker().clone());
        if self.0.is_pulled.load(Ordering::SeqCst) {
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "it was given up"));
        }
        Ok(())
    }
}

impl Socket {
    /// Connects, with TLS where the location asks for it.
    ///
    /// # Errors
    /// [`AmqpError::Unreachable`] when nobody answers in time; [`AmqpError::Broken`] when TLS fails.
    pub(crate) async fn connect(location: &Location) -> Result<Self, AmqpError> {
        let at = format!("`{location}`");
        let connect = TcpStream::connect((location.host.as_str(), location.port));
        let tcp = match timeout(TCP_LIMIT, connect).await {
            Ok(connected) => connected.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp)),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        };
        let tcp = tcp.map_err(|error| crate::error::of(&error.into(), &at))?;
        let Some(connector) = connector(location)? else { return Ok(Self::new(tcp)) };
        let name = ServerName::try_from(location.host.clone())
            .map_err(|_| AmqpError::Broken(format!("the host of {at} is no name that a certificate can have")))?;
        match timeout(TLS_LIMIT, connector.connect(name, tcp)).await {
            Ok(Ok(tls)) => Ok(Self::new(tls)),
            Ok(Err(error)) => Err(AmqpError::Broken(format!(
                "the TLS handshake with {at} failed ({error}); is it a TLS port? `?ca=FILE` names a private authority, amqp:// \
                 is without TLS"
            ))),
            Err(_) => Err(AmqpError::Unreachable(format!("{at} does not answer to TLS; is it its TLS port?"))),
        }
    }

    fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), cord: Cord::default() }
    }

    pub(crate) fn cord(&self) -> Cord {
        self.cord.clone()
    }
}

/// What makes TLS as the location asks for, or nothing.
fn connector(location: &Location) -> Result<Option<TlsConnector>, AmqpError> {
    let mut roots = RootCertStore::empty();
    match &location.tls {
        Tls::Off => return Ok(None),
        Tls::Public => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            }
        }
        Tls::Private(file) => {
            let unreadable = |error: &dyn fmt::Display| {
                AmqpError::Broken(format!("ca `{}` cannot be used ({error}); give a PEM file", file.display()))
            };
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
            if roots.is_empty() {
                return Err(unreadable(&"it holds no certificate"));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| AmqpError::Broken(format!("TLS cannot be set up ({error})")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        self.cord.check(&self.cord.0.reader, context)?;
        let mut buffer = ReadBuf::new(bytes);
        match tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), context, &mut buffer) {
            Poll::Ready(read) => Poll::Ready(read.map(|()| buffer.filled().len())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.cord.check(&self.cord.0.writer, context)?;
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.stream), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cord.check(&self.cord.0.writer, context)?;
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.stream), context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.stream), context)
    }
}

/// The timers of tokio, and our sockets, for the client library.
#[derive(Debug, Clone)]
pub(crate) struct Sockets(pub(crate) Tokio);

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[expect(refining_impl_trait, reason = "there is none")]
    fn register<H: io::Read + io::Write + Send + 'static>(&self, _socket: H) -> io::Result<Socket> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    fn interval(&self, dur: Duration) -> impl futures_util::Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(dur)
    }

    fn tcp_connect_addr(
        &self,
        _addr: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        // The socket is made before the library is started, with limits that it does not know.
        std::future::ready(Err(ErrorKind::Unsupported.into()))
    }
}
