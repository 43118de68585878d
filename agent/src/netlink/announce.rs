//! Says at once, from an endpoint's own interface, which MAC its addresses have: whoever spoke with
//! another MAC under one of them, on this host, behind a VTEP that learns or on the link of a
//! macvlan, would find out only after seconds.

use std::{io, net::IpAddr, os::fd::AsRawFd, time::Duration};

use ipnet::IpNet;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};
use tracing::debug;
use vxmesh_proto::{addr::MacAddr, path::announce::Announcement};

use super::{netns::Netns, overlay::Plug};

/// The second one comes after this: a bridge may not have noticed yet that the cable is plugged in
/// when the first does.
const AGAIN: Duration = Duration::from_millis(100);

/// Has the interface of an endpoint announce its addresses, now and once more. A failure costs
/// others some seconds. Needs a tokio runtime.
pub(super) fn announce(netns: Netns, ifname: &str, plug: &Plug) {
    let (ifname, mac) = (ifname.to_owned(), plug.mac);
    let ips: Vec<IpAddr> = plug.ips.iter().map(IpNet::addr).collect();
    let announce = move || {
        if let Err(error) = send(&netns, &ifname, mac, &ips) {
            debug!(%ifname, %mac, %error, "addresses are not announced");
        }
    };
    announce();
    tokio::spawn(async move {
        tokio::time::sleep(AGAIN).await;
        announce();
    });
}

fn send(netns: &Netns, ifname: &str, mac: MacAddr, ips: &[IpAddr]) -> io::Result<()> {
    netns.run(|| {
        let link = getifaddrs()?
            .filter(|entry| entry.interface_name == ifname)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .ok_or(io::ErrorKind::NotFound)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol it takes nothing.
        let raw = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        for ip in ips {
            let frame = Announcement { ip: *ip, mac }.to_frame();
            sendto(raw.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
        }
        Ok(())
    })
}
