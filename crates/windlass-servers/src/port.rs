//! Free ports on 127.0.0.1.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::Error;

/// Below the ports that Linux and macOS give to outgoing connections. A server that is down for a while would otherwise
/// lose its port to one of them; and a client that keeps connecting to such a port ends up connected to itself.
const FIRST: u16 = 20_000;
/// How many there are to choose from.
const COUNT: u16 = 12_000;

/// Listens on a port that nobody else has.
///
/// Dropping the listener frees the port for a server; until that has bound it, another program may take it.
pub(crate) fn listen() -> Result<TcpListener, Error> {
    // Programs that start at the same time begin at different ports.
    let start = RandomState::new().hash_one(()) % u64::from(COUNT);
    let ports = (0..COUNT).map(|step| FIRST + ((start + u64::from(step)) % u64::from(COUNT)) as u16);
    let mut last = None;
    for port in ports {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    let source = last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(Error::Machine { what: format!("listen on any port from {FIRST} to {}", FIRST + COUNT - 1), source })
}

/// A port that was free a moment ago.
pub(crate) fn free() -> Result<SocketAddr, Error> {
    listen()?.local_addr().map_err(Error::cannot("read the address of a listener"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_have_different_ports_out_of_the_range() {
        let (one, two) = (listen().expect("a port"), listen().expect("a port"));
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        assert_ne!(port(&one), port(&two));
        assert!((FIRST..FIRST + COUNT).contains(&port(&one)));
    }
}
