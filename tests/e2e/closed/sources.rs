//! What leaves a network leaves with an address of the host, or not at all.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use vxmesh_tests::{
    lab::{Allowed, Lab, Plugged, tell, wait_until},
    netns::NetNs,
    outside::{self, Outside, call_tcp, sh},
    traffic::listen,
};

use crate::egress::{PORT, ip_of};

/// Packets that the outside got from anybody but the host.
const STRAYS: &str = "nft -f - <<'EOF'
table inet count {
    chain in {
        type filter hook prerouting priority -400
        ip daddr 10.213.0.200 ip saddr != 10.213.0.1 counter
        ip6 daddr fd13::200 ip6 saddr != { fd13::1, fe80::/10 } counter
    }
}
EOF";

/// A host's rules that keep what comes from networks out of the kernel's tracking.
const NOTRACK: &str = "nft -f - <<'EOF'
table inet theirs {
    chain raw {
        type filter hook prerouting priority -300
        iifname \"vxm*\" notrack
    }
}
EOF";

/// Packets of each kind that are dropped while rules change.
const FLOOD: u64 = 3000;
/// An address that no sandbox has.
const FOREIGN: &str = "10.99.0.1";

const TCP: u8 = 6;
const ICMP: u8 = 1;
/// RST, FIN and ACK, SYN and ACK, none, all of Christmas.
const FLAGS: [u8; 5] = [0x04, 0x11, 0x12, 0x00, 0x29];

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| {
        let high = pair.first().copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([high, pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

/// A TCP segment without data.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    let mut pseudo = [octets(from.ip()), octets(to.ip())].concat();
    pseudo.extend([0, TCP, 0, 20]);
    pseudo.extend(&segment);
    segment.splice(16..18, checksum(&pseudo));
    segment
}

/// An ICMP error about a datagram that nobody sent.
fn error_about_nothing(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut error = vec![3, 1, 0, 0, 0, 0, 0, 0];
    let mut inner = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    inner.extend([octets(to), octets(from)].concat());
    let sum = checksum(&inner);
    inner.splice(10..12, sum);
    error.extend(inner);
    error.extend([0x30, 0x39, 0x30, 0x3a, 0, 8, 0, 0]);
    let sum = checksum(&error);
    error.splice(2..4, sum);
    error
}

/// Sends this behind an IP header that the kernel makes.
fn send(sandbox: &NetNs, to: IpAddr, protocol: u8, packet: &[u8]) -> Result<()> {
    sandbox.run(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let protocol = if protocol == TCP { SockProtocol::Tcp } else { SockProtocol::Icmp };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(raw.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    })
}

/// Rules that are written anew while packets are dropped lose none of the counts, neither those of
/// routed packets nor those of a port.
fn count_while_rules_change(lab: &Lab, a: &Plugged) -> Result<()> {
    let own = ip_of(a, true)?;
    let pin = format!("/run/vxmesh/netns/{}", a.endpoint.network.short());
    let inside = lab.inner("h1", &pin)?;
    let gateway = "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'";
    let fixed =
        "$(ip neigh | sed -n \"s/^$g .*lladdr \\([^ ]*\\).*/\\1/p\") dev eth0 nud permanent";
    sh(
        &a.netns,
        &format!(
            "g=$({gateway}); ping -n -c 1 $g >/dev/null; ip neigh replace $g lladdr {fixed}; ip address add {FOREIGN}/32 dev lo"
        ),
    )?;
    let before = (lab.dropped("h1", "inner_source")?, lab.dropped("h1", "ip_spoofed")?);
    let mut rewritten = 0;
    std::thread::scope(|scope| {
        let strange = segment((own, 3000).into(), (outside::IPV4, PORT).into(), 1, 0x04);
        let routed = scope.spawn(move || {
            (0..FLOOD).try_for_each(|_| send(&a.netns, outside::IPV4, TCP, &strange))
        });
        let spoofed = format!("ping -n -q -i 0.001 -W 1 -c {FLOOD} -I {FOREIGN} {}", outside::IPV4);
        let switched = scope.spawn(move || sh(&a.netns, &format!("{spoofed} || true")));
        while !(routed.is_finished() && switched.is_finished()) {
            for (family, chain) in [("inet", "forward"), ("bridge", "guard")] {
                sh(
                    &inside,
                    &format!("nft add rule {family} vxmesh {chain} accept comment theirs"),
                )?;
                let list = format!("nft list chain {family} vxmesh {chain}");
                wait_until("the rules are as before", || {
                    Ok(!sh(&inside, &list)?.contains("theirs"))
                })?;
                rewritten += 1;
            }
        }
        routed.join().map_err(|_panic| anyhow!("who sends panicked"))??;
        switched.join().map_err(|_panic| anyhow!("who sends panicked"))?.map(drop)
    })?;
    tell(&format!("rules written anew {rewritten} times while 2 x {FLOOD} packets were dropped"));
    let now = || {
        Ok::<_, anyhow::Error>((
            lab.dropped("h1", "inner_source")?,
            lab.dropped("h1", "ip_spoofed")?,
        ))
    };
    let wanted = (before.0 + FLOOD, before.1 + FLOOD);
    if wait_until("all are counted", || Ok(now()? == wanted)).is_err() {
        bail!("{:?} counted, not {wanted:?}", now()?);
    }
    Ok(())
}

#[test]
fn nothing_leaves_with_an_inner_source() -> Result<()> {
    let lab = Lab::up(1)?;
    let outside = Outside::join(&lab)?;
    lab.network("h1", "blue")?;
    let h1 = lab.host("h1")?;
    let a = lab.sandbox("h1", "blue", "a")?;
    sh(&outside.netns, STRAYS)?;
    let mut sent = 0;
    for to in [outside::IPV4, outside::IPV6] {
        let own = ip_of(&a, to.is_ipv4())?;
        for (port, flags) in (2000..).zip(FLAGS) {
            let strange = segment((own, port).into(), (to, PORT).into(), 1, flags);
            send(&a.netns, to, TCP, &strange)?;
            sent += 1;
        }
        // Of a connection that is alive, but far from where it is.
        let listener = outside.netns.run(|| Ok(listen((to, PORT))?))?;
        let ours = a.netns.run(|| Ok(TcpStream::connect((to, PORT))?))?;
        let _theirs = listener.accept()?;
        for sequence in [0x1000_0000, 0x5000_0000, 0xa000_0000] {
            let far = segment(ours.local_addr()?, (to, PORT).into(), sequence, 0x10);
            send(&a.netns, to, TCP, &far)?;
        }
        // One of them at least is far ahead of it. What is far behind belongs to it: the kernel
        // takes it for late.
        sent += 1;
    }
    sent += 1;
    send(&a.netns, outside::IPV4, ICMP, &error_about_nothing(ip_of(&a, true)?, outside::IPV4))?;
    let no_strays = |what: &str| {
        // What is sent later arrives later.
        for to in [outside::IPV4, outside::IPV6] {
            call_tcp(&a.netns, (to, PORT).into(), &outside.netns, PORT)?;
        }
        let counters = sh(&outside.netns, "nft list table inet count")?;
        ensure!(counters.matches("counter packets 0 ").count() == 2, "{what}: {counters}");
        Ok::<_, anyhow::Error>(())
    };
    no_strays("out of a network")?;
    wait_until("they are counted", || Ok(lab.dropped("h1", "inner_source")? >= sent))?;
    count_while_rules_change(&lab, &a)?;

    // The host's own stage: what is not tracked there is not rewritten either.
    let before = lab.dropped("h1", "inner_source")?;
    sh(&h1, NOTRACK)?;
    for to in [outside::IPV4, outside::IPV6] {
        let answered = sh(&a.netns, &format!("ping -n -c 1 -W 1 {to}"));
        ensure!(answered.is_err(), "{answered:?}");
    }
    wait_until("they are counted on the host", || {
        Ok(lab.dropped("h1", "inner_source")? >= before + 2)
    })?;
    sh(&h1, "nft delete table inet theirs")?;
    no_strays("out of the host")?;
    lab.finish(Allowed { drops: &["ip_spoofed"], ..Allowed::default() })
}
