//! The detour from an address and port of a sandbox's loopback interface to the servers behind it:
//! [`Detour`].
//!
//! ```text
//! program ─ to 127.0.0.11:53 ─> lo ─ port becomes that of our socket ─> server
//! program <─ from 127.0.0.11:53 ─ port becomes 53 ─ lo <─ server
//! ```
//!
//! A socket of ours at port 53 would be in the way of a name server of the sandbox's own, which
//! wants that port on all addresses. So our sockets are at other ports, and what passes `lo` is
//! rewritten there, packet by packet: nothing is remembered of a connection, what passes other
//! interfaces is not looked at, and programs and rules in the sandbox see port 53.
//!
//! The table belongs to the netlink socket that made it (`NFT_TABLE_F_OWNER`, Linux 5.12):
//! `nft flush ruleset` in the sandbox leaves it alone, and it ends with the agent, so that programs
//! hear at once that nobody answers. On an older kernel the table goes when the agent stops, or
//! with the start of the next one if it was killed; it is not put back when a sandbox flushes it.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
};

use netlink_bindings::nftables::{PayloadBase, TableFlags};
use nix::libc;
use tracing::debug;

use super::{
    FirewallError, TABLE,
    frame::{Field, is},
    rule::{Clause, Expr, Protocol, Rule, is_ip_frame},
    socket::{Batch, Socket},
    table::{Family, TableId, clear, header, write_rule},
    user_data::comment,
};

const CHAIN: &str = "names";
/// The loopback interface.
const LOOPBACK: &str = "lo";
/// `NF_NETDEV_INGRESS`.
const INGRESS: u32 = 0;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// Where the addresses stand in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Where the ports stand in the header behind it.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// Leads to servers at other ports as long as it lives.
#[derive(Debug)]
pub struct Detour {
    owner: Socket,
    /// Whether the table ends with the socket.
    owned: bool,
}

impl Detour {
    /// Leads from an address of the calling thread's namespace to servers at its other ports, over
    /// UDP and TCP.
    ///
    /// # Errors
    /// The kernel refuses it, or another agent has one there.
    pub fn open(at: SocketAddrV4, udp: u16, tcp: u16) -> Result<Self, FirewallError> {
        let put = match Self::put(at, (udp, tcp), true) {
            // A kernel that knows no owners. What it refuses for another reason, it refuses again.
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) =>
            {
                Self::put(at, (udp, tcp), false)
            }
            put => put,
        };
        put.map_err(|error| FirewallError::new("write", TABLE, error))
    }

    fn put(at: SocketAddrV4, (udp, tcp): (u16, u16), owned: bool) -> io::Result<Self> {
        let owner = Socket::open()?;
        let mut batch = Batch::new();
        let family = header(libc::NFPROTO_NETDEV);
        if owned {
            let mut request = batch.request().set_create().op_newtable_do(&family);
            let table = request.encode().push_name_bytes(TABLE.as_bytes());
            drop(table.push_flags(TableFlags::Owner as u32));
        } else {
            // An agent that was killed left its own.
            clear(&mut batch, TableId { family: Family::Netdev, name: TABLE });
        }
        let mut request = batch.request().set_create().op_newchain_do(&family);
        let chain = request.encode().push_table_bytes(TABLE.as_bytes());
        let hook = chain.push_name_bytes(CHAIN.as_bytes()).nested_hook().push_num(INGRESS);
        let chain = hook.push_priority(0).push_dev_bytes(LOOPBACK.as_bytes()).end_nested();
        drop(chain.push_policy(ACCEPT).push_type_bytes(b"filter"));
        drop(request);
        for rule in rules(at, udp, tcp) {
            let mut request = batch.request().set_create().set_append().op_newrule_do(&family);
            let place = request.encode().push_table_bytes(TABLE.as_bytes());
            let place = place.push_chain_bytes(CHAIN.as_bytes());
            write_rule(place, &rule, &comment(&rule));
        }
        owner.change(batch)?;
        Ok(Self { owner, owned })
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        if self.owned {
            return;
        }
        let mut batch = Batch::new();
        let family = header(libc::NFPROTO_NETDEV);
        let mut request = batch.request().op_deltable_do(&family);
        drop(request.encode().push_name_bytes(TABLE.as_bytes()));
        drop(request);
        if let Err(error) = self.owner.change(batch) {
            debug!(%error, "the way to a sandbox's name server is left");
        }
    }
}

fn rules(at: SocketAddrV4, udp: u16, tcp: u16) -> impl Iterator<Item = Rule> {
    let ways = [(Protocol::Udp, udp), (Protocol::Tcp, tcp)].into_iter();
    ways.flat_map(move |(protocol, port)| {
        let there = Rule::new("questions go to the server")
            .and(on_ip(DESTINATION, *at.ip(), protocol))
            .and(rewrite(DESTINATION_PORT, (at.port(), port), protocol));
        let back = Rule::new("answers come from where was asked")
            .and(on_ip(SOURCE, *at.ip(), protocol))
            .and(rewrite(SOURCE_PORT, (port, at.port()), protocol));
        [there, back]
    })
}

/// It is IPv4 with this address there, and of this protocol.
fn on_ip(offset: u32, ip: Ipv4Addr, protocol: Protocol) -> Clause {
    let parts =
        [is_ip_frame(true), is(Field::network(offset, 4), &ip.octets()), protocol.is_carried()];
    Clause(parts.into_iter().flat_map(|clause| clause.0).collect())
}

/// If it has the one port there, it becomes the other.
fn rewrite(offset: u32, (from, to): (u16, u16), protocol: Protocol) -> Clause {
    let checksum = match protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    };
    Clause(vec![
        Expr::Payload { base: PayloadBase::TransportHeader as u32, offset, len: 2 },
        Expr::Equal(from.to_be_bytes().to_vec()),
        Expr::Port(to),
        Expr::WritePort { offset, checksum },
    ])
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
        time::Duration,
    };

    use super::*;
    use crate::netlink::{link::Links, netns::Netns};

    const AT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

    /// A namespace of its own, with its loopback interface up.
    struct Place(tempfile::TempDir, Netns);

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let netns = Netns::create(&dir.path().join("netns")).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async { Links::open(&netns).unwrap().bring_up("lo").await.unwrap() });
            Self(dir, netns)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            Netns::remove(&self.0.path().join("netns")).unwrap();
        }
    }

    /// Needs root, as all tests with namespaces.
    #[test]
    fn both_transports_take_the_detour_and_the_port_is_free() {
        leads_as_long_as_it_lives(true);
    }

    #[test]
    fn kernels_without_owners_have_the_detour_as_long_as_the_agent_runs() {
        leads_as_long_as_it_lives(false);
    }

    fn leads_as_long_as_it_lives(owned: bool) {
        let place = Place::new();
        let seen = place.1.run(|| {
            let (udp, tcp) = (UdpSocket::bind((*AT.ip(), 0))?, TcpListener::bind((*AT.ip(), 0))?);
            let ports = (udp.local_addr()?.port(), tcp.local_addr()?.port());
            // That of an agent that was killed.
            let _left = if owned { None } else { Some(Detour::put(AT, (1, 1), false)?) };
            let detour = Detour::put(AT, ports, owned)?;
            assert!(!owned || Detour::open(AT, 1, 1).is_err(), "the table is its socket's");
            // A name server of the sandbox's own, on IPv4 and on both versions.
            drop((UdpSocket::bind("0.0.0.0:53")?, TcpListener::bind("0.0.0.0:53")?));
            let own = (UdpSocket::bind("[::]:53")?, TcpListener::bind("[::]:53")?);
            let asker = UdpSocket::bind("127.0.0.1:0")?;
            asker.connect(AT)?;
            asker.set_read_timeout(Some(Duration::from_secs(10)))?;
            udp.set_read_timeout(Some(Duration::from_secs(10)))?;
            asker.send(b"who")?;
            let mut buffer = [0; 16];
            let (len, from) = udp.recv_from(&mut buffer)?;
            assert_eq!(&buffer[..len], b"who");
            udp.send_to(b"me", from)?;
            let len = asker.recv(&mut buffer)?;
            assert_eq!(&buffer[..len], b"me");
            let mut caller = TcpStream::connect(AT)?;
            let mut taken = tcp.accept()?.0;
            taken.write_all(&[7; 100_000])?;
            drop(taken);
            let mut text = Vec::new();
            caller.read_to_end(&mut text)?;
            drop((detour, own));
            // Nobody is there any more, and that is said.
            asker.send(b"who")?;
            Ok((text.len(), asker.recv(&mut buffer).is_err(), TcpStream::connect(AT).is_err()))
        });
        assert_eq!(seen.unwrap(), (100_000, true, true));
    }
}
