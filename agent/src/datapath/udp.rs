//! The data socket: sealed datagrams to and from the underlay.
//!
//! Dual-stack sockets (`[::]`, IPv4 as mapped addresses; 0.0.0.0 where the host has no IPv6).
//! Datagrams are never fragmented: DF is set and what the path cannot carry comes back as an error.
//! Receiving takes a batch per call and lets the kernel glue equal datagrams of one flow together
//! (UDP_GRO); [`Batch`] takes them apart again.
//!
//! Several sockets may share the port (SO_REUSEPORT), one for each thread and one for sparse flows;
//! which of them gets a datagram is decided by [`super::lanes`].

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, MsgHdr, Protocol, SockAddr, SockRef, Socket, Type};
use tracing::debug;
use vxmesh_proto::frame::ecn::Ecn;

use super::{drops::Drops, overruns::Overruns};

/// Kernel buffers: 8 MiB hold about 50 ms of full-size datagrams at 1 Gbit/s while a worker is
/// descheduled.
pub(super) const SOCKET_BUFFER: usize = 8 << 20;
/// Datagram trains taken with one call. Each slot needs [`SLOT_LEN`] bytes, so a batch owns 512
/// KiB.
const SLOTS: usize = 8;
/// So many datagrams at once are no bulk.
const FEW: usize = 3;
/// A train glued by UDP_GRO is never longer than one maximal IP packet.
const SLOT_LEN: usize = 65_536;
/// linux/udp.h: accept zero checksums over IPv6.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// DSCP AF21, low-latency data, as it stands in the header.
const LOW_LATENCY: u8 = 0x48;
/// The length of a control message that holds an `int`, and the room it takes.
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<libc::c_int>();
const CONTROL_SPACE: usize = CONTROL_LEN.next_multiple_of(size_of::<usize>());
/// How long a sender waits for room in the socket's buffer before it gives a datagram up.
const SEND_WAIT_MS: u16 = 10;

/// The data socket.
#[derive(Debug)]
pub struct UdpIo {
    socket: UdpSocket,
    state: UdpSocketState,
    dual_stack: bool,
    marked: bool,
    overruns: Overruns,
}

impl UdpIo {
    /// Opens the socket in the calling thread's network namespace; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// The port is taken, or the host refuses the socket.
    pub fn bind(port: u16) -> io::Result<Self> {
        Self::bind_with(port, SOCKET_BUFFER)
    }

    /// Opens a socket from which is only sent: the kernel keeps next to nothing of what comes.
    ///
    /// # Errors
    /// The port is taken, or the host refuses the socket.
    pub fn bind_sender(port: u16) -> io::Result<Self> {
        Self::bind_with(port, 0)
    }

    fn bind_with(port: u16, receive: usize) -> io::Result<Self> {
        match Self::open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into(), receive, false) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                Self::open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), receive, false)
            }
            opened => opened,
        }
    }

    /// Opens another socket that shares the port. The port was free when the first took it; nobody
    /// else who does not ask for sharing gets it.
    ///
    /// # Errors
    /// The host refuses the socket.
    pub fn share(&self) -> io::Result<Self> {
        SockRef::from(&self.socket).set_reuse_port(true)?;
        let domain = if self.dual_stack { Domain::IPV6 } else { Domain::IPV4 };
        Self::open(domain, self.local_addr()?, SOCKET_BUFFER, true)
    }

    /// Marks what is sent alone for the sparse lane: it may be treated better on the way (RFC 4594
    /// section 4.7), and the receiver's kernel does not glue it behind the datagrams of a bulk
    /// flow. A mark that cannot be had costs only that.
    pub fn mark_sparse(&mut self) {
        self.marked = true;
        let socket = SockRef::from(&self.socket);
        let class = u32::from(LOW_LATENCY);
        for marked in [socket.set_tos_v4(class), socket.set_tclass_v6(class)] {
            if let Err(error) = marked {
                debug!(%error, "datagrams of sparse flows are not marked");
            }
        }
    }

    fn open(domain: Domain, addr: SocketAddr, receive: usize, shares: bool) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if shares {
            socket.set_reuse_port(true)?;
        }
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        // More than rmem_max needs CAP_NET_ADMIN; without it the kernel clamps, which costs speed
        // only.
        if setsockopt(&socket, sockopt::RcvBufForce, &receive).is_err() {
            socket.set_recv_buffer_size(receive)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            socket.set_send_buffer_size(SOCKET_BUFFER)?;
        }
        socket.bind(&addr.into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        let (dual_stack, overruns) = (domain == Domain::IPV6, Overruns::new());
        Ok(Self { socket, state, dual_stack, marked: false, overruns })
    }

    /// Has the kernel give each datagram alone. What it glues together may be several datagrams
    /// (UDP_GRO), but also one of a tunnel whose payload is a burst; then it says how the payload
    /// is to be cut, and nothing tells the two apart.
    ///
    /// # Errors
    /// The kernel does not do so.
    pub fn receive_singly(&self) -> io::Result<()> {
        match setsockopt(&self.socket, sockopt::UdpGroSegment, &false) {
            // A kernel that does not know the option glues nothing.
            Ok(()) | Err(Errno::ENOPROTOOPT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes datagrams over IPv6 that have no checksum, too, as a tunnel may (RFC 6935).
    ///
    /// # Errors
    /// The kernel does not know the option.
    pub fn accept_no_checksum(&self) -> io::Result<()> {
        if !self.dual_stack {
            return Ok(());
        }
        let on: libc::c_int = 1;
        #[expect(unsafe_code, reason = "neither nix nor socket2 has the option")]
        // SAFETY: the descriptor is open, and the option's value is an int that outlives the call.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_UDP,
                UDP_NO_CHECK6_RX,
                (&raw const on).cast(),
                libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default(),
            )
        };
        Errno::result(done).map(|_zero| ()).map_err(io::Error::from)
    }

    /// The bound address.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What the kernel granted.
    pub fn offloads(&self) -> impl Iterator<Item = &'static str> + use<> {
        let send = (self.state.max_gso_segments() > 1).then_some("udp_segment");
        let receive = (self.state.gro_segments() > 1).then_some("udp_gro");
        send.into_iter().chain(receive)
    }

    /// Sends one datagram, or with `segment` a train of datagrams of that length (the last may be
    /// shorter), all with this mark.
    ///
    /// # Errors
    /// The path cannot carry the length (`EMSGSIZE`), there is no route, or the socket stays full.
    pub fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
        ecn: Ecn,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.to_socket(to),
            ecn: EcnCodepoint::from_bits(ecn.bits()),
            contents,
            segment_size: segment,
            src_ip: None,
        };
        match self.try_send(&transmit, ecn) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(SEND_WAIT_MS))?;
                self.try_send(&transmit, ecn)
            }
            result => result,
        }
    }

    fn try_send(&self, transmit: &Transmit<'_>, ecn: Ecn) -> io::Result<()> {
        // `quinn_udp` says the mark of each datagram anew, and knows only that of ECN.
        match (self.marked && transmit.segment_size.is_none(), ecn) {
            (false, _) => self.state.try_send((&self.socket).into(), transmit),
            (true, Ecn::NotEct) => {
                self.socket.send_to(transmit.contents, transmit.destination).map(drop)
            }
            (true, ecn) => {
                let control = control(transmit.destination.ip(), LOW_LATENCY | ecn.bits());
                let (to, parts) =
                    (SockAddr::from(transmit.destination), [IoSlice::new(transmit.contents)]);
                let message =
                    MsgHdr::new().with_addr(&to).with_buffers(&parts).with_control(&control);
                SockRef::from(&self.socket).sendmsg(&message, 0).map(drop)
            }
        }
    }

    /// Takes what is there without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing.
    pub fn recv<const N: usize>(&self, batch: &mut Batch<N>) -> io::Result<()> {
        batch.filled = 0;
        let mut slices = batch.buffers.chunks_mut(SLOT_LEN).map(IoSliceMut::new);
        let mut slots: [IoSliceMut<'_>; N] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        batch.filled = self.state.recv((&self.socket).into(), &mut slots, &mut batch.metas)?;
        Ok(())
    }

    /// Counts what came since the last time and was not taken in time.
    pub fn count_overruns(&self, drops: &Drops) {
        self.overruns.count(self.as_fd(), drops);
    }

    fn to_socket(&self, addr: SocketAddr) -> SocketAddr {
        match addr {
            SocketAddr::V4(v4) if self.dual_stack => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            other => other,
        }
    }
}

impl AsFd for UdpIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The control message (cmsg(3)) that has a datagram leave with this TOS or traffic class.
fn control(to: IpAddr, class: u8) -> [u8; CONTROL_SPACE] {
    let over_v4 = matches!(to.to_canonical(), IpAddr::V4(_));
    let (level, kind) = if over_v4 {
        (libc::IPPROTO_IP, libc::IP_TOS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
    };
    let numbers = [level, kind, libc::c_int::from(class)].map(libc::c_int::to_ne_bytes);
    let fields = CONTROL_LEN.to_ne_bytes().into_iter().chain(numbers.into_iter().flatten());
    let mut message = [0; CONTROL_SPACE];
    for (to, byte) in message.iter_mut().zip(fields) {
        *to = byte;
    }
    message
}

/// Buffers for one call of [`UdpIo::recv`].
#[derive(Debug)]
pub struct Batch<const N: usize = SLOTS> {
    buffers: Vec<u8>,
    metas: [RecvMeta; N],
    filled: usize,
}

/// What the kernel gave as one: a datagram, or several that it glued together.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where in the arena.
    pub at: Range<usize>,
    /// How long each datagram is but the last.
    pub stride: usize,
    /// The mark of all of them.
    pub ecn: Ecn,
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Self { buffers: vec![0; N * SLOT_LEN], metas: [RecvMeta::default(); N], filled: 0 }
    }
}

impl<const N: usize> Batch<N> {
    /// Whether it is more than a few questions and answers.
    pub fn is_bulk(&self) -> bool {
        let trains = self.metas.iter().take(self.filled);
        self.filled > FEW || trains.into_iter().any(|meta| meta.len > meta.stride)
    }

    /// The buffers of all slots, one after another.
    pub fn arena(&mut self) -> &mut [u8] {
        &mut self.buffers
    }

    /// What the kernel put into each slot.
    pub fn arrivals(&self) -> impl Iterator<Item = Arrival> + use<N> {
        let (metas, filled) = (self.metas, self.filled);
        metas.into_iter().take(filled).enumerate().map(|(slot, meta)| {
            let begin = slot * SLOT_LEN;
            Arrival {
                from: canonical(meta.addr),
                at: begin..begin + meta.len.min(SLOT_LEN),
                stride: meta.stride.max(1),
                ecn: Ecn::from_bits(meta.ecn.map_or(0, |ecn| ecn as u8)),
            }
        })
    }

    /// Every datagram of the batch with its sender, in order of arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        self.buffers.chunks_mut(SLOT_LEN).zip(&self.metas).take(self.filled).flat_map(
            |(buffer, meta)| {
                let from = canonical(meta.addr);
                let train = buffer.get_mut(..meta.len).unwrap_or_default();
                // An empty datagram has no part, and yet it came.
                let empty: Option<&mut [u8]> = (meta.len == 0).then_some(&mut []);
                let parts = train.chunks_mut(meta.stride.max(1)).chain(empty);
                parts.map(move |datagram| (from, datagram))
            },
        )
    }
}

/// An IPv4-mapped IPv6 address as the IPv4 address that it is.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(v6) => SocketAddr::new(v6.to_canonical(), addr.port()),
        IpAddr::V4(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn recv_one(socket: &UdpIo) -> (SocketAddr, Vec<u8>) {
        let mut batch: Batch = Batch::default();
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5_000u16)).unwrap(), 1, "nothing came");
        socket.recv(&mut batch).unwrap();
        let (from, bytes) = batch.datagrams().next().unwrap();
        (from, bytes.to_vec())
    }

    #[test]
    fn carries_both_ip_versions_over_one_socket() {
        let (a, b) = (UdpIo::bind(0).unwrap(), UdpIo::bind(0).unwrap());
        let (port_a, port_b) = (a.local_addr().unwrap().port(), b.local_addr().unwrap().port());
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            a.send((ip, port_b).into(), b"over", None, Ecn::NotEct).unwrap();
            let (from, bytes) = recv_one(&b);
            assert_eq!(bytes, b"over");
            assert_eq!(from, SocketAddr::from((ip, port_a)));
        }
    }

    #[test]
    fn an_empty_datagram_arrives() {
        let (a, b) = (UdpIo::bind(0).unwrap(), UdpIo::bind(0).unwrap());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.local_addr().unwrap().port()));
        a.send(to, &[], None, Ecn::NotEct).unwrap();
        assert_eq!(recv_one(&b).1, b"");
    }

    #[test]
    fn a_train_arrives_as_its_datagrams() {
        let (a, b) = (UdpIo::bind(0).unwrap(), UdpIo::bind(0).unwrap());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.local_addr().unwrap().port()));
        let sent: Vec<u8> = (0..250u8).collect();
        a.send(to, &sent, Some(100), Ecn::NotEct).unwrap();

        let mut got: Vec<Vec<u8>> = Vec::new();
        let mut batch: Batch = Batch::default();
        while got.len() < 3 {
            let mut fds = [PollFd::new(b.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut fds, PollTimeout::from(5_000u16)).unwrap(),
                1,
                "only {} came",
                got.len()
            );
            b.recv(&mut batch).unwrap();
            got.extend(batch.datagrams().map(|(_, bytes)| bytes.to_vec()));
        }
        assert_eq!(got, sent.chunks(100).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }

    #[test]
    fn a_taken_port_is_an_error() {
        let first = UdpIo::bind(0).unwrap();
        let error = UdpIo::bind(first.local_addr().unwrap().port()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn sockets_that_share_a_port_each_have_their_peers() {
        let first = UdpIo::bind(0).unwrap();
        let all = [first.share().unwrap(), first.share().unwrap(), first];
        let to = all[0].local_addr().unwrap();
        assert!(all.iter().all(|socket| socket.local_addr().unwrap() == to));
        assert_eq!(UdpIo::bind(to.port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);

        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()));
        let peers: Vec<UdpIo> = (0..32).map(|_| UdpIo::bind(0).unwrap()).collect();
        for number in 0..8u8 {
            peers.iter().for_each(|peer| peer.send(to, &[number], None, Ecn::NotEct).unwrap());
        }
        let (mut batch, mut used, mut seen) = (Batch::<SLOTS>::default(), 0, HashSet::new());
        for socket in &all {
            let mut came: HashMap<SocketAddr, Vec<u8>> = HashMap::new();
            while socket.recv(&mut batch).is_ok() {
                for (from, bytes) in batch.datagrams() {
                    came.entry(from).or_default().extend_from_slice(bytes);
                }
            }
            for (from, numbers) in &came {
                assert_eq!(*numbers, [0, 1, 2, 3, 4, 5, 6, 7], "{from}: whole and in order");
                assert!(seen.insert(*from), "{from} at two sockets");
            }
            used += usize::from(!came.is_empty());
        }
        assert_eq!(seen.len(), peers.len());
        assert!(used > 1, "all peers at one socket");
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        assert_eq!(
            canonical("[::ffff:10.0.0.1]:5".parse().unwrap()),
            "10.0.0.1:5".parse().unwrap()
        );
        assert_eq!(canonical("[fd00::1]:5".parse().unwrap()), "[fd00::1]:5".parse().unwrap());
    }
}
