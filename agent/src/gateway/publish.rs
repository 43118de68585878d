//! Ports of the host that lead to a sandbox or a service: what a user asks for, and how the host's
//! ports are held.
//!
//! ```text
//! [IP:]HOST[:SANDBOX][/tcp|udp]       HOST and SANDBOX are ports or ranges of one length; IPv6 addresses stand in brackets
//! 8080          8080 of all addresses to 8080         :80        a free port to 80
//! 8080:80/udp   8080 to 80                            127.0.0.1::80, [fd00::1]:8080:80, 8000-8009:80-89
//! ```
//!
//! Each published port is held by a socket that is bound and never used, so that a port in use is
//! noticed before anything is changed, and no other program takes it afterwards and wonders.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use nix::errno::Errno;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use thiserror::Error;
use vxmesh_proto::object::share_address;

use crate::firewall::rule::Protocol;

/// Ports of one sandbox: each is four rules or more.
pub const PORTS: usize = 256;
/// Where a free port is looked for: below the ports that Linux gives to clients
/// (ip_local_port_range), as Swarm does.
const FREE: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// One port to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// An address of the host; all of them otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The host's port; a free one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The sandbox's port.
    pub sandbox_port: u16,
}

impl Publish {
    /// Whether both want one port of one address; free ports are chosen so that they do not.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port.is_some()
            && self.port == other.port
            && share_address(self.ip, other.ip)
    }
}

/// Several ports to publish, as they are written in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRange(pub Vec<Publish>);

/// Why a word names no ports.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// The form is another.
    #[error("write [IP:]HOST[:SANDBOX][/tcp|udp], such as 8080:80, :80 or 127.0.0.1:8080:80/udp")]
    Form,
    /// Neither a port nor a range of ports.
    #[error("`{0}` is no port: write 1 to 65535, or a range such as 8000-8009")]
    Port(String),
    /// Nothing that can be published.
    #[error("`{0}` is neither tcp nor udp")]
    Protocol(String),
    /// Not an address.
    #[error("`{0}` is no address: write 10.0.0.1 or [fd00::1]")]
    Address(String),
    /// The ranges differ.
    #[error(
        "{0} ports of the host cannot lead to {1} ports of the sandbox: give both ranges one length"
    )]
    Lengths(usize, usize),
    /// Too many.
    #[error("{0} ports are too many: publish at most {PORTS}")]
    TooMany(usize),
    /// The kernel sends nothing from there to another interface.
    #[error(
        "::1 cannot be published, since the kernel lets nothing pass between it and another interface: publish on 127.0.0.1"
    )]
    Loopback6,
    /// The kernel routes nothing from there or to there.
    #[error(
        "{0} cannot be published: link-local addresses of IPv6 are not routed; publish on another address of that interface"
    )]
    LinkLocal6(Ipv6Addr),
    /// Nobody has it alone.
    #[error("{0} cannot be published: it is no address of one host")]
    Group(IpAddr),
}

impl FromStr for PublishRange {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(PublishError::Protocol(other.to_owned())),
        };
        let (ip, rest) = address(rest)?;
        let (host, sandbox) = match rest.split_once(':') {
            None => (Some(rest), rest),
            Some(("", sandbox)) => (None, sandbox),
            Some((host, sandbox)) => (Some(host), sandbox),
        };
        let sandbox = ports(sandbox)?;
        let host = host.map(ports).transpose()?;
        if let Some(host) = &host
            && host.len() != sandbox.len()
        {
            return Err(PublishError::Lengths(host.len(), sandbox.len()));
        }
        if sandbox.len() > PORTS {
            return Err(PublishError::TooMany(sandbox.len()));
        }
        let publish = |(at, sandbox_port)| Publish {
            protocol,
            ip,
            port: host.as_ref().and_then(|host: &Vec<u16>| host.get(at).copied()),
            sandbox_port,
        };
        Ok(Self(sandbox.into_iter().enumerate().map(publish).collect()))
    }
}

/// The address in front, if there is one, and the rest.
fn address(text: &str) -> Result<(Option<IpAddr>, &str), PublishError> {
    let (ip, rest) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or(PublishError::Form)?;
        let parsed: Result<Ipv6Addr, _> = ip.parse();
        let parsed = parsed.map_err(|_fault| PublishError::Address(ip.to_owned()))?;
        (IpAddr::V6(parsed), rest.strip_prefix(':').ok_or(PublishError::Form)?)
    } else {
        match text.split_once(':') {
            // A port has no points.
            Some((ip, rest)) if ip.contains('.') => {
                let parsed: Result<Ipv4Addr, _> = ip.parse();
                (parsed.map_err(|_fault| PublishError::Address(ip.to_owned()))?.into(), rest)
            }
            Some(_) | None => return Ok((None, text)),
        }
    };
    // As programs write an IPv4 address that speak IPv6 only.
    let ip = ip.to_canonical();
    check_address(ip)?;
    Ok((Some(ip), rest))
}

/// Refuses addresses at which nothing can be published, whatever the host has.
///
/// # Errors
/// It is such an address.
pub fn check_address(ip: IpAddr) -> Result<(), PublishError> {
    match ip {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Err(PublishError::Loopback6),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(PublishError::LinkLocal6(v6)),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Err(PublishError::Group(ip)),
        ip if ip.is_multicast() => Err(PublishError::Group(ip)),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

fn ports(text: &str) -> Result<Vec<u16>, PublishError> {
    let port = |part: &str| match part.parse::<u16>() {
        Ok(port) if port > 0 && part.bytes().all(|digit| digit.is_ascii_digit()) => Ok(port),
        Ok(_) | Err(_) => Err(PublishError::Port(text.to_owned())),
    };
    match text.split_once('-') {
        None => Ok(vec![port(text)?]),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(PublishError::Port(text.to_owned()));
            }
            Ok((first..=last).collect())
        }
    }
}

/// Why a port of the host cannot be had.
#[derive(Debug, Error)]
pub enum HoldError {
    /// Some program has it.
    #[error("port {port}/{} of {} is in use on this host", .protocol.as_str(), place(.ip))]
    Taken {
        /// TCP or UDP.
        protocol: Protocol,
        /// Where, if not on all addresses.
        ip: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// The host has no such address.
    #[error("{0} is no address of this host")]
    NotHere(IpAddr),
    /// All of them are in use.
    #[error("every port from {} to {} is in use on this host", FREE.start(), FREE.end())]
    NoneFree,
    /// The system says no.
    #[error("cannot hold a port of the host: {0}")]
    Io(#[from] io::Error),
}

/// A port of the host that nobody else can take.
#[derive(Debug)]
pub struct Held {
    /// Its number.
    pub port: u16,
    _socket: Socket,
}

/// One of those that are free on most hosts.
#[must_use]
pub fn any_free() -> u16 {
    rand::rng().random_range(FREE)
}

/// Holds a port: the wanted one, or a free one.
///
/// # Errors
/// It is in use, or the address is not the host's.
pub fn hold(protocol: Protocol, ip: Option<IpAddr>, port: Option<u16>) -> Result<Held, HoldError> {
    if let Some(port) = port {
        return bind(protocol, ip, port);
    }
    let count = FREE.end() - FREE.start() + 1;
    let begin = rand::rng().random_range(0..count);
    for n in 0..count {
        match bind(protocol, ip, FREE.start() + (begin + n) % count) {
            Err(HoldError::Taken { .. }) => {}
            done => return done,
        }
    }
    Err(HoldError::NoneFree)
}

/// Whether this host has an address, or it stands for all that it has.
#[must_use]
pub fn is_here(ip: IpAddr) -> bool {
    let free = bind_to(Protocol::Udp, ip, 0, true);
    let missing = free.err().and_then(|error| error.raw_os_error());
    missing != Some(Errno::EADDRNOTAVAIL as i32)
}

fn place(ip: &Option<IpAddr>) -> String {
    ip.map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string())
}

fn bind(protocol: Protocol, ip: Option<IpAddr>, port: u16) -> Result<Held, HoldError> {
    let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let bound = match ip {
        Some(ip) => bind_to(protocol, ip, port, true),
        // Of both IP versions at once; a kernel without IPv6 has one.
        None => match bind_to(protocol, any6, port, false) {
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                bind_to(protocol, Ipv4Addr::UNSPECIFIED.into(), port, false)
            }
            bound => bound,
        },
    };
    bound.map(|socket| Held { port, _socket: socket }).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => HoldError::Taken { protocol, ip, port },
            Some(Errno::EADDRNOTAVAIL) => HoldError::NotHere(ip.unwrap_or(any6)),
            _ => HoldError::Io(error),
        }
    })
}

fn bind_to(protocol: Protocol, ip: IpAddr, port: u16, only: bool) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let to = SocketAddr::new(ip, port);
    let socket = Socket::new(Domain::for_address(to), kind.cloexec(), None)?;
    if ip.is_ipv6() {
        socket.set_only_v6(only)?;
    }
    socket.bind(&to.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Publish {
        let PublishRange(all) = text.parse().unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all[0]
    }

    #[test]
    fn words() {
        for (text, ip, port, sandbox_port, protocol) in [
            ("8080", None, Some(8080), 8080, Protocol::Tcp),
            ("8080:80", None, Some(8080), 80, Protocol::Tcp),
            (":80", None, None, 80, Protocol::Tcp),
            ("53:53/udp", None, Some(53), 53, Protocol::Udp),
            ("127.0.0.1:8080", Some("127.0.0.1"), Some(8080), 8080, Protocol::Tcp),
            ("127.0.0.1:8080:80/tcp", Some("127.0.0.1"), Some(8080), 80, Protocol::Tcp),
            ("10.0.0.1::80", Some("10.0.0.1"), None, 80, Protocol::Tcp),
            ("[fd00::1]:8080:80", Some("fd00::1"), Some(8080), 80, Protocol::Tcp),
            ("[fd00::1]::80", Some("fd00::1"), None, 80, Protocol::Tcp),
            ("[::]:65535:1", Some("::"), Some(65535), 1, Protocol::Tcp),
            ("[::ffff:127.0.0.1]::80", Some("127.0.0.1"), None, 80, Protocol::Tcp),
        ] {
            let ip = ip.map(|ip| ip.parse().unwrap());
            assert_eq!(one(text), Publish { protocol, ip, port, sandbox_port }, "{text}");
        }
        let PublishRange(range) = "8000-8002:80-82".parse().unwrap();
        let pairs: Vec<_> = range.iter().map(|one| (one.port, one.sandbox_port)).collect();
        assert_eq!(pairs, [(Some(8000), 80), (Some(8001), 81), (Some(8002), 82)]);
        let PublishRange(range) = ":80-82".parse().unwrap();
        assert!(range.len() == 3 && range.iter().all(|one| one.port.is_none()));
    }

    #[test]
    fn nonsense_is_named() {
        for (text, says) in [
            ("", "is no port"),
            (":", "is no port"),
            ("0", "is no port"),
            ("65536", "is no port"),
            ("+80", "is no port"),
            ("http", "is no port"),
            ("80-70", "is no port"),
            ("80:", "is no port"),
            ("80:80:80", "is no port"),
            ("80/sctp", "neither tcp nor udp"),
            ("80/", "neither tcp nor udp"),
            ("10.0.0.256:80", "is no address"),
            ("[fd00::g]:80:80", "is no address"),
            ("[fd00::1]80", "write [IP:]HOST"),
            ("[fd00::1", "write [IP:]HOST"),
            ("[::1]:80:80", "::1 cannot be published"),
            ("[fe80::1]:80:80", "fe80::1 cannot be published: link-local"),
            ("224.0.0.1:80:80", "no address of one host"),
            ("255.255.255.255:80:80", "no address of one host"),
            ("[ff02::1]:80:80", "no address of one host"),
            ("8000-8009:80-81", "10 ports of the host cannot lead to 2"),
            ("1-1000", "too many"),
        ] {
            let error = text.parse::<PublishRange>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn who_meets() {
        for (one, other, meet) in [
            ("80", "80:81", true),
            ("80", "80/udp", false),
            ("80", "81:80", false),
            ("80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[fd00::1]:80", false),
            ("[::]:80", "[fd00::1]:80", true),
            ("10.0.0.1:80", "10.0.0.2:80", false),
            (":80", ":80", false),
        ] {
            let (one, another) = (self::one(one), self::one(other));
            assert_eq!((one.meets(&another), another.meets(&one)), (meet, meet), "{one:?} {other}");
        }
    }

    #[test]
    fn a_port_is_held_once() {
        let local = Some(IpAddr::from([127, 0, 0, 1]));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let held = hold(protocol, local, None).unwrap();
            assert!(FREE.contains(&held.port));
            for ip in [local, None, Some(Ipv4Addr::UNSPECIFIED.into())] {
                let again = hold(protocol, ip, Some(held.port));
                assert!(matches!(again, Err(HoldError::Taken { .. })), "{ip:?}: {again:?}");
            }
            let port = held.port;
            drop(held);
            assert_eq!(hold(protocol, None, Some(port)).unwrap().port, port);
        }
        let stranger = hold(Protocol::Tcp, Some([192, 0, 2, 1].into()), None);
        assert!(matches!(stranger, Err(HoldError::NotHere(_))), "{stranger:?}");
    }
}
