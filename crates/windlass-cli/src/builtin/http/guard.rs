//! Where `http.request` may go: whoever may enqueue must not reach what only this machine can reach.
//!
//! Three gates, each closed by itself: the URL ([`check_url`], for every redirect as well), an address written in the URL
//! (the connector does not resolve it), and every address that a name resolves to ([`Resolver`], inside of the connector,
//! so that a name cannot answer differently the second time).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How far requests may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Public addresses only.
    Public,
    /// This machine and its networks as well.
    Anywhere,
}

/// A place that requests must not go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Checks everything about a URL that can be known before its name is resolved.
pub(crate) fn check_url(url: &Url, reach: Reach) -> Result<(), Refused> {
    if !matches!(url.scheme(), "http" | "https") {
        let scheme: String = url.scheme().chars().take(20).collect();
        return Err(Refused(format!("the scheme `{scheme}` is not http or https")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused("the URL holds a user or a password: send an authorization header instead".to_owned()));
    }
    let Some(host) = url.host_str() else {
        return Err(Refused("the URL has no host".to_owned()));
    };
    match reach {
        Reach::Anywhere => Ok(()),
        Reach::Public => {
            // A full stop at the end and capital letters do not change who is meant.
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            if name == "localhost" || name.ends_with(".localhost") {
                return Err(refused(host, "is this machine"));
            }
            match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
                Ok(address) => check_address(host, address),
                Err(_) => Ok(()),
            }
        }
    }
}

fn check_address(host: &str, address: IpAddr) -> Result<(), Refused> {
    kind(address).map_or(Ok(()), |kind| Err(refused(host, kind)))
}

fn refused(host: &str, kind: &str) -> Refused {
    let host: String = host.chars().take(100).collect();
    Refused(format!("`{host}` {kind}: only public addresses are called unless `tasks.http.allow_private` is set"))
}

/// What kind of address this is when it is not a public one.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("is this network"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("is a private address"),
        [100, 64..=127, ..] => Some("is a shared address of a provider"),
        [127, ..] => Some("is this machine"),
        // Most clouds hand out credentials at 169.254.169.254.
        [169, 254, ..] => Some("is a link-local address"),
        // The one metadata service with a public address: Azure's.
        [168, 63, 129, 16] => Some("is a metadata service"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Some("is a reserved address")
        }
        [224..=239, ..] => Some("is a multicast address"),
        [240..=255, ..] => Some("is a reserved address"),
        _ => None,
    }
}

/// Everything outside of the global unicast block is refused, and in it what stands for another address or for nothing.
fn kind_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_loopback() {
        return Some("is this machine");
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] => Some("is an IPv4 address in disguise"),
        [0x64, 0xff9b, ..] => Some("is an IPv4 address behind a translator"),
        [0xfc00..=0xfdff, ..] => Some("is a private address"),
        [0xfe80..=0xfebf, ..] => Some("is a link-local address"),
        [0xff00..=0xffff, ..] => Some("is a multicast address"),
        [0x2001, 0, ..] => Some("is a Teredo tunnel"),
        [0x2001, 0x1..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("is a reserved address"),
        [0x2002, ..] => Some("is a 6to4 tunnel"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("is a reserved address"),
    }
}

/// Turns a name into addresses.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Resolves names for the connector and keeps back what must not be connected to.
pub(crate) struct Resolver {
    reach: Reach,
    lookup: Lookup,
}

impl Resolver {
    /// Asks the system.
    pub(crate) fn of_the_system(reach: Reach) -> Self {
        // The connector puts in the port.
        let lookup: Lookup =
            Arc::new(|name| async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }.boxed());
        Self { reach, lookup }
    }

    /// Knows one answer.
    #[cfg(test)]
    pub(crate) fn fixed(reach: Reach, addresses: &[&str]) -> Self {
        let addresses: Vec<SocketAddr> =
            addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect();
        Self { reach, lookup: Arc::new(move |_| std::future::ready(Ok(addresses.clone())).boxed()) }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, reach) = (name.as_str().to_owned(), self.reach);
        let found = (self.lookup)(host.clone());
        Box::pin(async move {
            let found = found.await?;
            Ok(Box::new(allowed(&host, found, reach)?.into_iter()) as Addrs)
        })
    }
}

/// The addresses that may be connected to; an error when a name has none.
fn allowed(host: &str, found: Vec<SocketAddr>, reach: Reach) -> Result<Vec<SocketAddr>, Refused> {
    match reach {
        Reach::Anywhere => Ok(found),
        Reach::Public => {
            let first_kind = found.iter().find_map(|address| kind(address.ip()));
            let public: Vec<SocketAddr> = found.into_iter().filter(|address| kind(address.ip()).is_none()).collect();
            match first_kind {
                Some(kind) if public.is_empty() => Err(refused(host, kind)),
                _ => Ok(public),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<(), Refused> {
        check_url(&Url::parse(url).unwrap(), Reach::Public)
    }

    #[test]
    fn public_addresses_pass() {
        for url in [
            "https://example.com/",
            "http://93.184.216.34:8080/",
            "https://[2606:2800:220:1:248:1893:25c8:1946]/",
            "https://172.32.0.1/",
            "https://100.128.0.1/",
            "https://localhost.example.com/",
        ] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn what_is_not_public_is_refused_however_it_is_written() {
        for url in [
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://0/",
            "http://10.1.2.3/",
            "http://172.16.0.1/",
            "http://172.31.255.255/",
            "http://192.168.1.1/",
            "http://100.64.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://168.63.129.16/",
            "http://100.100.100.200/",
            "http://192.0.0.192/",
            "http://198.18.0.1/",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:a00:1]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[64:ff9b:1::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[2001:0:7f00:1::]/",
            "http://[2001:db8::1]/",
            "http://[fc00::1]/",
            "http://[fd00:ec2::254]/",
            "http://[fe80::1]/",
            "http://[fec0::1]/",
            "http://[ff02::1]/",
        ] {
            assert!(check(url).is_err(), "{url}");
        }
    }

    #[test]
    fn users_and_other_schemes_are_refused_even_when_private_addresses_are_allowed() {
        for url in
            ["http://user@example.com/", "http://user:pw@example.com/", "ftp://example.com/", "file:///etc/passwd"]
        {
            let refused = check_url(&Url::parse(url).unwrap(), Reach::Anywhere).unwrap_err().to_string();
            assert!(!refused.contains("pw"), "{refused}");
        }
        assert_eq!(check_url(&Url::parse("http://127.0.0.1/").unwrap(), Reach::Anywhere), Ok(()));
    }

    #[test]
    fn a_name_is_reached_by_its_public_addresses_only() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
        };
        let mixed = addresses(&["127.0.0.1", "93.184.216.34", "::1"]);
        assert_eq!(allowed("x", mixed.clone(), Reach::Public), Ok(addresses(&["93.184.216.34"])));
        assert_eq!(allowed("x", mixed.clone(), Reach::Anywhere), Ok(mixed));
        let refused = allowed("x", addresses(&["10.0.0.1", "::1"]), Reach::Public).unwrap_err().to_string();
        assert!(refused.contains("`x` is a private address") && refused.contains("allow_private"), "{refused}");
    }
}
