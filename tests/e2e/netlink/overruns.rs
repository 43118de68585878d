//! What a data socket lost for want of room, and what is no such loss.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use anyhow::{Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use vxmesh::datapath::{
    drops::Drops,
    udp::{Batch, UdpIo},
};
use vxmesh_proto::frame::ecn::Ecn;
use vxmesh_tests::topology::{Topology, ok, wait_until};

/// Sent each time.
const MANY: u64 = 50;
/// The kernel looks at the checksum of a shorter one before it knows whose it is.
const LEN: u16 = 200;

/// Sends datagrams with a checksum that does not fit.
fn send_bad(to: SocketAddr) -> io::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)?;
    let (from, port) = (12_345_u16.to_be_bytes(), to.port().to_be_bytes());
    let header = [from, port, LEN.to_be_bytes(), [0xba, 0xad]].concat();
    let datagram = [header, vec![7; usize::from(LEN) - 8]].concat();
    let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    for _ in 0..MANY {
        sendto(raw.as_raw_fd(), &datagram, &to, MsgFlags::empty())?;
    }
    Ok(())
}

/// What the namespace counts under this name.
fn counted(text: &str, name: &str) -> u64 {
    let mut words = text.split_whitespace().skip_while(|word| *word != name).skip(1);
    words.next().and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[test]
fn a_bad_checksum_is_no_want_of_room() -> Result<()> {
    let topology = Topology::new()?;
    let host = topology.sandbox("host")?;
    ok(&host.netns, "ip link set lo up")?;
    let (socket, full) = host.netns.run(|| Ok((UdpIo::bind(0)?, UdpIo::bind_sender(0)?)))?;
    let drops = Drops::default();
    let lost = || -> Result<u64> {
        host.netns.run(|| {
            [&socket, &full].iter().for_each(|socket| socket.count_overruns(&drops));
            Ok(())
        })?;
        Ok(drops.rows().iter().map(|(_, count)| *count).sum())
    };
    let mut batch = Batch::<8>::default();
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let to = SocketAddr::new(ip, socket.local_addr()?.port());
        let before = ok(&host.netns, "nstat -asz")?;
        host.netns.run(|| send_bad(to))?;
        let name = if ip.is_ipv4() { "UdpInCsumErrors" } else { "Udp6InCsumErrors" };
        wait_until("the kernel found all of them", || {
            let _nothing = socket.recv(&mut batch);
            let now = ok(&host.netns, "nstat -asz")?;
            Ok(counted(&now, name) >= counted(&before, name) + MANY)
        })?;
        ensure!(lost()? == 0, "{ip}: {:?}", drops.rows());
    }
    // What finds no room is counted all the same, and alone.
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), full.local_addr()?.port());
    for _ in 0..MANY {
        host.netns.run(|| socket.send(at, &[0; 1000], None, Ecn::NotEct))?;
    }
    wait_until("what finds no room is counted", || Ok(lost()? > MANY / 2))?;
    ensure!(lost()? <= MANY, "{:?}", drops.rows());
    Ok(())
}
