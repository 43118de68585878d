//! Which of the sockets that share the data port gets a datagram.
//!
//! A classic BPF program at the sockets decides (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)):
//!
//! ```text
//! data of a sparse flow, handshakes : the last socket, in front of which nothing stands
//! data                              : the socket of the key's index, so what is sealed with one key stays in order
//! ```
//!
//! The flag is read before anybody knows whether it is genuine. Whoever forges it reaches a thread
//! that looks at each datagram as the others do.

use std::io;

use nix::{
    libc::{self, sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt},
};
use vxmesh_proto::session::wire::{FLAG_SPARSE, Kind};

use super::udp::UdpIo;

/// Where in a data message the low byte of its flags is, and that of its key's index.
const FLAGS_AT: u32 = 2;
const INDEX_AT: u32 = 4;

/// Opens the other sockets of the data port, so that there are `receivers` of them in all, and that
/// of sparse flows.
pub(super) fn share(udp: &UdpIo, receivers: usize) -> io::Result<(Vec<UdpIo>, UdpIo)> {
    let others = (1..receivers).map(|_| udp.share()).collect::<io::Result<Vec<_>>>()?;
    let mut sparse = udp.share()?;
    sparse.mark_sparse();
    let count = u32::try_from(receivers).map_err(io::Error::other)?;
    let mut program = program(count);
    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    setsockopt(udp, sockopt::AttachReusePortCbpf, &program)?;
    Ok((others, sparse))
}

/// Numbers count the sockets as they came to the port. A load behind the end gives 0.
fn program(receivers: u32) -> [sock_filter; 8] {
    let step = |code: u32, k: u32, jt: u8, jf: u8| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at, 0, 0);
    let jump = |kind, k, jt, jf| step(libc::BPF_JMP | kind | libc::BPF_K, k, jt, jf);
    [
        load(0),
        jump(libc::BPF_JEQ, u32::from(Kind::Data.number()), 0, 5),
        load(FLAGS_AT),
        jump(libc::BPF_JSET, u32::from(FLAG_SPARSE), 3, 0),
        load(INDEX_AT),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, receivers, 0, 0),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, receivers, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSliceMut,
        net::{Ipv4Addr, SocketAddr, UdpSocket},
        os::fd::{AsFd, AsRawFd},
    };

    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg},
    };
    use vxmesh_proto::{frame::ecn::Ecn, session::wire::FLAG_CONTROL};

    use super::*;
    use crate::datapath::udp::Batch;

    /// A data message of a key with this index.
    fn data(flags: u16, index: u32) -> Vec<u8> {
        let mut datagram = vec![0; 40];
        datagram[..2].copy_from_slice(&[Kind::Data.number(), 1]);
        datagram[2..4].copy_from_slice(&flags.to_le_bytes());
        datagram[4..8].copy_from_slice(&index.to_le_bytes());
        datagram
    }

    #[test]
    fn each_datagram_comes_to_the_socket_of_its_lane_and_key() {
        let first = UdpIo::bind(0).unwrap();
        let (others, sparse) = share(&first, 3).unwrap();
        let sockets = [&first, &others[0], &others[1], &sparse];
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, first.local_addr().unwrap().port()));
        let sender = UdpIo::bind(0).unwrap();
        let init = [&[Kind::Init.number(), 1][..], &[0; 100]].concat();
        for (datagram, lane) in [
            (data(0, 0x0102_0300), 0),
            (data(0, 0x0102_0301), 1),
            (data(FLAG_CONTROL, 2), 2),
            (data(0, 3), 0),
            (data(FLAG_SPARSE, 1), 3),
            (data(FLAG_SPARSE | FLAG_CONTROL, 2), 3),
            (init, 3),
            (vec![Kind::Data.number()], 0),
        ] {
            sender.send(to, &datagram, None, Ecn::NotEct).unwrap();
            let mut fds = sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            assert_eq!(poll(&mut fds, PollTimeout::from(5_000u16)).unwrap(), 1, "{datagram:?}");
            let came = fds.iter().position(|fd| fd.any().unwrap()).unwrap();
            assert_eq!(came, lane, "{datagram:?}");
            let mut batch: Batch = Batch::default();
            sockets[came].recv(&mut batch).unwrap();
            assert_eq!(batch.datagrams().next().unwrap().1, datagram);
        }
    }

    #[test]
    fn what_the_sparse_socket_sends_is_marked_and_from_the_same_port() {
        let first = UdpIo::bind(0).unwrap();
        let (_others, sparse) = share(&first, 1).unwrap();
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = receiver.local_addr().unwrap();
        setsockopt(&receiver, sockopt::IpRecvTos, &true).unwrap();
        for (socket, ecn, expected) in [
            (&first, Ecn::NotEct, 0),
            (&first, Ecn::Ect0, 2),
            (&first, Ecn::Ce, 3),
            (&sparse, Ecn::NotEct, 0x48),
            (&sparse, Ecn::Ect0, 0x4a),
            (&sparse, Ecn::Ect1, 0x49),
            (&sparse, Ecn::Ce, 0x4b),
        ] {
            socket.send(to, b"marked?", None, ecn).unwrap();
            let mut bytes = [0; 16];
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let mut room = nix::cmsg_space!(u8);
            let (fd, flags) = (receiver.as_raw_fd(), MsgFlags::empty());
            let message = recvmsg::<SockaddrIn>(fd, &mut slices, Some(&mut room), flags).unwrap();
            let from = message.address.unwrap().port();
            assert_eq!(from, first.local_addr().unwrap().port());
            let marks: Vec<_> = message.cmsgs().unwrap().collect();
            assert_eq!(marks, [ControlMessageOwned::Ipv4Tos(expected)]);
        }
    }
}
