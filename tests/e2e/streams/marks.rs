//! Congestion marks cross the tunnel both ways (RFC 6040), sealed and plain.

use std::{
    io::IoSliceMut,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use vxmesh::api::Network;
use vxmesh_proto::frame::ecn::Ecn;
use vxmesh_tests::{
    lab::{Allowed, DEADLINE, Lab, Plugged, wait_until},
    stream,
    traffic::udp_to,
};

use super::lab;

/// Enough that most of it leaves in trains.
const BULK: usize = 4 << 20;

/// What a receiver in the sandbox sees of datagrams that are sent to it with these marks.
struct Seen<'a> {
    from: &'a Plugged,
    ip: IpAddr,
    receiver: UdpSocket,
}

impl<'a> Seen<'a> {
    fn new(from: &'a Plugged, to: &Plugged, ip: IpAddr) -> Result<Self> {
        let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let receiver = to.netns.run(|| Ok(UdpSocket::bind((any, 0))?))?;
        receiver.set_read_timeout(Some(DEADLINE))?;
        if ip.is_ipv4() {
            setsockopt(&receiver, sockopt::IpRecvTos, &true)?;
        } else {
            setsockopt(&receiver, sockopt::Ipv6RecvTClass, &true)?;
        }
        Ok(Self { from, ip, receiver })
    }

    fn send(&self, mark: Ecn) -> Result<()> {
        let port = self.receiver.local_addr()?.port();
        let sender = self.from.netns.run(|| udp_to(self.ip, port))?;
        if self.ip.is_ipv4() {
            setsockopt(&sender, sockopt::Ipv4Tos, &mark.bits().into())?;
        } else {
            setsockopt(&sender, sockopt::Ipv6TClass, &mark.bits().into())?;
        }
        sender.send(&[mark.bits()])?;
        Ok(())
    }

    /// What was sent, and what came.
    fn next(&self) -> Result<(Ecn, Ecn)> {
        let (mut sent, mut room) = ([0], nix::cmsg_space!(i32));
        let mut parts = [IoSliceMut::new(&mut sent)];
        let fd = self.receiver.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut room), MsgFlags::empty())
                .context("nothing came")?;
        let class = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
            _ => None,
        });
        let came = Ecn::from_bits(class.context("no mark")?);
        Ok((Ecn::from_bits(sent[0]), came))
    }
}

/// Two networks, sealed and plain, each with a sandbox on either host.
fn networks(lab: &Lab) -> Result<Vec<(Plugged, Plugged)>> {
    let mut pairs = Vec::new();
    for (name, encrypted) in [("blue", "--encrypted=true"), ("plain", "--encrypted=false")] {
        let create = ["network", "create", name, encrypted];
        let network: Network = lab.json("h1", &create)?;
        wait_until("h2 lists the network", || {
            let networks: Vec<Network> = lab.get("h2", "/v1/networks")?;
            Ok(networks.iter().any(|listed| listed.id == network.id))
        })?;
        let a = lab.sandbox("h1", name, &format!("{name}-a"))?;
        pairs.push((a, lab.sandbox("h2", name, &format!("{name}-b"))?));
    }
    let all: Vec<_> = pairs.iter().flat_map(|(a, b)| [&a.endpoint, &b.endpoint]).collect();
    lab.all_know(&all)?;
    Ok(pairs)
}

/// Has a host change the outer marks of what comes to its data ports.
fn on_the_way(lab: &Lab, rule: &str) -> Result<()> {
    lab.sh(
        "h2",
        &format!(
            "nft 'add table inet way; flush table inet way;
            add chain inet way in {{ type filter hook prerouting priority -300; }};
            add rule inet way in udp dport {{ 7761, 4789 }} {rule}'"
        ),
    )?;
    Ok(())
}

fn cross(underlay: &'static str, ip: &str) -> Result<()> {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    let lab = lab(1500, underlay)?;
    let pairs = networks(&lab)?;
    for (a, b) in &pairs {
        for to in &b.endpoint.ips {
            let seen = Seen::new(a, b, to.addr())?;
            on_the_way(&lab, "counter")?;
            for mark in [NotEct, Ect0, Ect1, Ce] {
                seen.send(mark)?;
                ensure!(seen.next()? == (mark, mark), "{to}: {mark:?} on a quiet way");
            }
            // A router that is congested marks what may be marked: so the outer headers have the
            // marks.
            on_the_way(&lab, &format!("{ip} ecn != not-ect {ip} ecn set ce"))?;
            for (mark, expected) in [(NotEct, NotEct), (Ect0, Ce), (Ect1, Ce), (Ce, Ce)] {
                seen.send(mark)?;
                ensure!(seen.next()? == (mark, expected), "{to}: {mark:?} on a congested way");
            }
            // One that marks everything should have dropped the others.
            on_the_way(&lab, &format!("{ip} ecn set ce"))?;
            let dropped = lab.dropped("h2", "congested_not_ect")?;
            seen.send(NotEct)?;
            seen.send(Ect0)?;
            ensure!(seen.next()? == (Ect0, Ce), "{to}: another came");
            wait_until("the drop is counted", || {
                Ok(lab.dropped("h2", "congested_not_ect")? > dropped)
            })?;
        }
        // Long streams with marks: in trains, and put together again.
        on_the_way(&lab, &format!("{ip} ecn != not-ect {ip} ecn set ce"))?;
        for plugged in [a, b] {
            lab.sh(
                &plugged.host,
                &format!("nsenter --net={} sysctl -qw net.ipv4.tcp_ecn=1", plugged.sandbox.netns),
            )?;
        }
        for to in &b.endpoint.ips {
            stream::tcp(&a.netns, &b.netns, to.addr(), BULK)?;
        }
        on_the_way(&lab, "counter")?;
        let counters = format!(
            "nsenter --net={} nstat -asz IpExtInCEPkts Ip6InCEPkts | tail -n +2",
            b.sandbox.netns
        );
        let said = lab.sh("h2", &counters)?;
        for line in said.lines() {
            let count = line.split_whitespace().nth(1).context("no count")?;
            ensure!(count.parse::<u64>()? > 100, "{said}");
        }
    }
    drop(pairs);
    lab.finish(Allowed { drops: &["congested_not_ect"], warnings: &[] })
}

#[test]
fn congestion_marks_cross_the_tunnel() -> Result<()> {
    cross("v4", "ip")
}

#[test]
fn congestion_marks_cross_the_tunnel_over_ipv6() -> Result<()> {
    cross("v6", "ip6")
}
