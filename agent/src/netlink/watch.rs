//! What the kernel says of changes, as it happens: [`Watch`].
//!
//! ```text
//! rtnetlink : links, addresses, routes and the rules that choose a table of them, neighbours (a bridge's FDB is among
//!             them), settings, numbers of namespaces
//! nf_tables : any rule, set or table
//! uevents   : bridges begin to show frames to rules for packets, this machine was restored
//! ```
//!
//! One socket of the first two kinds hears of the namespace in which it was opened and of all
//! namespaces that have a number there (`NETLINK_LISTEN_ALL_NSID`), so a hundred networks need no
//! more descriptors than one. [`Links::number`] gives a namespace its number, which ends with it.
//! The kernel drops what does not fit into a socket's queue and says so: [`Heard::Lost`].

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use futures_util::StreamExt;
use ipnet::IpNet;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt::RcvBufForce,
    },
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        nsid::{NsidAttribute, NsidMessage},
    },
    sys::{Socket, protocols},
};
use tokio::io::{Interest, unix::AsyncFd};
use vxmesh_proto::addr::MacAddr;

use super::{
    link::{Links, parse, system},
    netns::Netns,
    route::route_of,
};

/// Groups of rtnetlink (`RTNLGRP_*` of linux/rtnetlink.h): links, neighbours, addresses, routes and
/// policy rules of both IP versions, their settings, numbers of namespaces.
const ROUTE_GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 28];
/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const RULE_GROUPS: [u32; 1] = [7];
/// What the kernel itself says, and not udev after it.
const KERNEL_GROUPS: [u32; 1] = [1];
/// The module with which bridges show frames to rules for packets, in every namespace at once.
const BRIDGE_FILTER: &[u8] = b"add@/module/br_netfilter";
/// How the kernel says that a hypervisor started this machine from an image
/// (drivers/virt/vmgenid.c).
const NEW_GENERATION: &[u8] = b"NEW_VMGENID=1";
/// Room for what comes while nobody reads.
const QUEUE: usize = 4 << 20;
/// The largest datagram that the kernel makes of one change.
const DATAGRAM: usize = 1 << 16;
/// Datagrams that are read before what they say is looked at.
const AT_ONCE: usize = 1024;
const HEADER_LEN: usize = 16;
const SOL_NETLINK: libc::c_int = 270;
/// `NETLINK_LISTEN_ALL_NSID`, also the kind of the control message with the number.
const NUMBER: libc::c_int = 8;
/// Message types of linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const NEW_POLICY_RULE: u16 = 32;
const DEL_POLICY_RULE: u16 = 33;
const NEW_SETTING: u16 = 80;
const DEL_SETTING: u16 = 81;
const DEL_NUMBER: u16 = 89;
/// A `netconfmsg`, padded, and the kind of the attribute with the interface.
const NETCONF_LEN: usize = 4;
const NETCONF_INTERFACE: u16 = 1;
/// The neighbours of a bridge.
const AF_BRIDGE: u8 = 7;

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface was made or is different.
    Link(String),
    /// An interface is gone, from here or for good.
    LinkGone {
        /// Its name.
        name: String,
        /// Its MAC address.
        mac: Option<MacAddr>,
    },
    /// An address of the interface with this number.
    Address(u32),
    /// A bridge's table.
    Fdb,
    /// A route to here.
    Route(IpNet),
    /// Rules that choose a routing table.
    PolicyRules,
    /// Rules of nf_tables.
    Rules,
    /// A setting of the kernel that it tells of, such as forwarding: of the interface with this
    /// number, or of all.
    Setting(Option<u32>),
    /// A namespace with this number is gone.
    NamespaceGone(i32),
    /// From now on bridges show frames to rules for packets, unless told otherwise.
    BridgeFilter,
    /// This machine goes on from an image of its memory.
    Restored,
}

/// Something that happened in a namespace: that of the socket, or one with a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number.
    pub namespace: Option<i32>,
    /// What.
    pub change: Change,
}

/// What there was to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// These, in the order in which they happened where they are of one kind of socket.
    Events(Vec<Event>),
    /// More than could be kept: anything may have changed.
    Lost,
}

/// What a datagram of one kind of socket says.
type Reading = fn(&[u8], &mut Vec<Change>);

/// The sockets.
#[derive(Debug)]
pub struct Watch {
    routes: AsyncFd<OwnedFd>,
    rules: AsyncFd<OwnedFd>,
    kernel: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Listens in the calling thread's namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            routes: registered(
                listen(protocols::NETLINK_ROUTE, &ROUTE_GROUPS)?,
                Interest::READABLE,
            )?,
            rules: registered(
                listen(protocols::NETLINK_NETFILTER, &RULE_GROUPS)?,
                Interest::READABLE,
            )?,
            kernel: registered(
                listen(protocols::NETLINK_KOBJECT_UEVENT, &KERNEL_GROUPS)?,
                Interest::READABLE,
            )?,
        })
    }

    /// Waits until something happened in a namespace that is asked for. Can be dropped at any time.
    ///
    /// # Errors
    /// A socket failed.
    pub async fn hear(&self, is_asked: impl Fn(Option<i32>) -> bool) -> io::Result<Heard> {
        loop {
            let (mut ready, kind): (_, Reading) = tokio::select! {
                ready = self.routes.readable() => (ready?, route_changes),
                ready = self.rules.readable() => (ready?, rule_changes),
                ready = self.kernel.readable() => (ready?, kernel_changes),
            };
            let mut events = Vec::new();
            let read = ready.try_io(|socket| {
                match read(socket.get_ref(), &is_asked, kind, &mut events) {
                    // What was read before is to be looked at first.
                    Err(error)
                        if error.kind() == io::ErrorKind::WouldBlock && !events.is_empty() =>
                    {
                        Ok(())
                    }
                    read => read,
                }
            });
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Heard::Lost);
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(())) if !events.is_empty() => return Ok(Heard::Events(events)),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "the runtime knows no safe way to watch a descriptor")]
fn registered(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same and open as long as its owner, which goes into
    // what is made here.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<OwnedFd> {
    let mut socket = Socket::new(protocol)?;
    setsockopt(&socket.as_fd(), RcvBufForce, &QUEUE)?;
    // The kernel tells each namespace of what concerns the whole machine.
    socket.set_listen_all_namespaces(protocol != protocols::NETLINK_KOBJECT_UEVENT)?;
    socket.set_non_blocking(true)?;
    socket.bind_auto()?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.as_fd().try_clone_to_owned()
}

/// Reads until nothing is left; the same change is noted once.
fn read(
    socket: &OwnedFd,
    is_asked: impl Fn(Option<i32>) -> bool,
    changes: Reading,
    events: &mut Vec<Event>,
) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    let mut control = nix::cmsg_space!(libc::c_int, libc::c_int);
    for _ in 0..AT_ONCE {
        let mut into = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<NetlinkAddr>(
            socket.as_raw_fd(),
            &mut into,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let number = received.cmsgs()?.find_map(number_of);
        let len = received.bytes;
        if !is_asked(number) {
            continue;
        }
        let mut found = Vec::new();
        changes(buffer.get(..len).unwrap_or_default(), &mut found);
        for change in found {
            let event = Event { namespace: number, change };
            if events.last() != Some(&event) {
                events.push(event);
            }
        }
    }
    Ok(())
}

fn number_of(message: ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(message) = message else { return None };
    let header = message.cmsg_header;
    let ours = header.cmsg_level == SOL_NETLINK && header.cmsg_type == NUMBER;
    ours.then(|| message.data_bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)))?
}

fn rule_changes(_datagram: &[u8], changes: &mut Vec<Change>) {
    changes.push(Change::Rules);
}

/// `ACTION@PATH` and lines `KEY=VALUE`, each with a zero behind it.
fn kernel_changes(datagram: &[u8], changes: &mut Vec<Change>) {
    let mut lines = datagram.split(|byte| *byte == 0);
    if lines.next() == Some(BRIDGE_FILTER) {
        changes.push(Change::BridgeFilter);
    } else if lines.any(|line| line == NEW_GENERATION) {
        changes.push(Change::Restored);
    }
}

fn route_changes(datagram: &[u8], changes: &mut Vec<Change>) {
    let mut rest = datagram;
    while let Some((header, len)) = header_of(rest) {
        let Some(body) = rest.get(HEADER_LEN..len) else { return };
        changes.extend(change_of(&header, body));
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The header of the first message, and the message's length.
fn header_of(bytes: &[u8]) -> Option<(NetlinkHeader, usize)> {
    let mut header = NetlinkHeader::default();
    header.length = u32::from_ne_bytes(*bytes.first_chunk()?);
    header.message_type = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((header, usize::try_from(header.length).ok()?))
}

fn change_of(header: &NetlinkHeader, body: &[u8]) -> Option<Change> {
    let family = body.first().copied()?;
    match header.message_type {
        NEW_SETTING | DEL_SETTING => return Some(Change::Setting(interface_set(body))),
        NEW_POLICY_RULE | DEL_POLICY_RULE => return Some(Change::PolicyRules),
        NEW_NEIGHBOUR | DEL_NEIGHBOUR => return (family == AF_BRIDGE).then_some(Change::Fdb),
        NEW_LINK | DEL_LINK | NEW_ADDRESS | DEL_ADDRESS | NEW_ROUTE | DEL_ROUTE | DEL_NUMBER => {}
        _ => return None,
    }
    match RouteNetlinkMessage::deserialize(header, body).ok()? {
        // Of a bridge's port that is one no more, the kernel says that the bridge's link is gone.
        RouteNetlinkMessage::DelLink(link) if family != AF_BRIDGE => {
            let link = parse(&link);
            Some(Change::LinkGone { name: link.name, mac: link.mac })
        }
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            Some(Change::Link(parse(&link).name))
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(Change::Address(address.header.index))
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Some(Change::Route(route_of(&route)?.destination))
        }
        RouteNetlinkMessage::DelNsId(message) => id_in(&message).map(Change::NamespaceGone),
        _ => None,
    }
}

/// The interface of which a message tells a setting: the first attribute has its number
/// (`NETCONFA_IFINDEX` of linux/netconf.h), which is negative for those of all and of new ones.
fn interface_set(body: &[u8]) -> Option<u32> {
    let attribute = body.get(NETCONF_LEN..)?;
    let kind = u16::from_ne_bytes(*attribute.get(2..)?.first_chunk()?);
    let number = i32::from_ne_bytes(*attribute.get(4..)?.first_chunk()?);
    u32::try_from(number).ok().filter(|_| kind == NETCONF_INTERFACE)
}

fn id_in(message: &NsidMessage) -> Option<i32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    })
}

impl Links {
    /// The number of another namespace in this one, given to it if it has none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn number(&self, netns: &Netns) -> io::Result<i32> {
        let fd = NsidAttribute::Fd(netns.as_fd().as_raw_fd().unsigned_abs());
        let mut wanted = NsidMessage::default();
        // Any that is free.
        wanted.attributes = vec![NsidAttribute::Id(-1), fd.clone()];
        let given = self.ask(RouteNetlinkMessage::NewNsId(wanted), NLM_F_REQUEST | NLM_F_ACK).await;
        match given {
            Err(error) if error.raw_os_error() != Some(Errno::EEXIST as i32) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let mut question = NsidMessage::default();
        question.attributes = vec![fd];
        let answer = self.ask(RouteNetlinkMessage::GetNsId(question), NLM_F_REQUEST).await?;
        answer.ok_or_else(|| io::Error::other("the namespace has no number"))
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<i32>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self.handle.clone().request(request).map_err(system)?;
        let mut number = None;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(system(rtnetlink::Error::NetlinkError(error)));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                    number = id_in(&message);
                }
                _ => {}
            }
        }
        Ok(number)
    }
}

/// The mounts of this process's mount namespace: pins of network namespaces are among them.
#[derive(Debug)]
pub struct Mounts(AsyncFd<OwnedFd>);

impl Mounts {
    /// Watches from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn open() -> io::Result<Self> {
        let file = File::open("/proc/self/mountinfo")?;
        Ok(Self(registered(file.into(), Interest::PRIORITY)?))
    }

    /// Waits until one came or went (proc_pid_mountinfo(5)).
    ///
    /// # Errors
    /// The file cannot be watched.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

/// A process, whose end can be waited for.
#[derive(Debug)]
pub struct Process(AsyncFd<OwnedFd>);

impl Process {
    /// The process with this number. Needs a tokio runtime.
    ///
    /// # Errors
    /// There is none (`ESRCH`), or it cannot be watched.
    #[expect(unsafe_code, reason = "pidfd_open(2), which nix does not know")]
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: the call takes two numbers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = Errno::result(fd)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(registered(fd, Interest::READABLE)?))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It cannot be watched.
    pub async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

/// The number of the process that a path such as `/proc/PID/ns/net` names.
#[must_use]
pub fn process_of(path: &Path) -> Option<i32> {
    let rest = path.to_str()?.strip_prefix("/proc/")?;
    rest.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_datagram_says_nothing() {
        let mut changes = Vec::new();
        for datagram in [&[][..], &[1], &[255; 16], &[20, 0, 0, 0, 16, 0, 0, 0], &[0; 64]] {
            route_changes(datagram, &mut changes);
        }
        assert_eq!(changes, []);
    }

    #[test]
    fn of_what_the_kernel_says_little_matters() {
        let said = |datagram: &[u8]| {
            let mut changes = Vec::new();
            kernel_changes(datagram, &mut changes);
            changes
        };
        let loaded =
            b"add@/module/br_netfilter\0ACTION=add\0DEVPATH=/module/br_netfilter\0SEQNUM=9\0";
        assert_eq!(said(loaded), [Change::BridgeFilter]);
        let restored = b"change@/devices/LNXSYSTM:00/QEMUVGID:00\0ACTION=change\0NEW_VMGENID=1\0";
        assert_eq!(said(restored), [Change::Restored]);
        for other in [
            &b""[..],
            b"remove@/module/br_netfilter\0ACTION=remove\0",
            b"add@/module/br_netfilter2\0",
            b"add@/devices/virtual/net/eth0\0INTERFACE=NEW_VMGENID=1\0",
            b"\0\0",
        ] {
            assert_eq!(said(other), [], "{other:?}");
        }
    }

    #[test]
    fn a_path_names_a_process() {
        for (path, pid) in [
            ("/proc/12/ns/net", Some(12)),
            ("/proc/self/ns/net", None),
            ("/run/netns/12", None),
            ("/proc/12", None),
        ] {
            assert_eq!(process_of(Path::new(path)), pid, "{path}");
        }
    }
}
