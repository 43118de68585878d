//! What the kernel says of devices and modules (netlink(7), `NETLINK_KOBJECT_UEVENT`), said by a
//! test.

use anyhow::Result;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use std::os::fd::AsRawFd;

use crate::netns::NetNs;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// The first type that is no control message (`NLMSG_MIN_TYPE`).
const TYPE: u16 = 16;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

/// Has the kernel say `lines` to whoever listens in a namespace; the first is `ACTION@PATH`.
///
/// # Errors
///
/// The rights are missing.
pub fn say(netns: &NetNs, lines: &[&str]) -> Result<()> {
    let text: String = lines.iter().map(|line| format!("{line}\0")).collect();
    // The kernel takes the header of a request off and sends the rest on.
    let len = u32::try_from(HEADER_LEN + text.len())?;
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(TYPE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(text.as_bytes());
    netns.run(|| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        Ok(())
    })
}
