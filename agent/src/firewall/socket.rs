//! The netlink socket to nf_tables (nfnetlink, linux/netfilter/nfnetlink.h): [`Socket`].
//!
//! ```text
//! change : BATCH_BEGIN, requests, BATCH_END in one datagram; each request is answered, and all of them hold or none
//! dump   : one request; answers of several parts, then DONE
//! ```

use std::{
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::AsFd,
    time::Duration,
};

use netlink_bindings::{
    nftables::{Chained, Nfgenmsg},
    traits::NetlinkChained,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Type};

/// Room for the requests of one change and for their answers: some thousand rules.
const BUFFER: usize = 8 << 20;
/// The kernel's dumps come in parts of 32 KiB at most.
const PART: usize = 1 << 16;
/// The kernel answers at once; this only keeps a defect from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// `NFNL_SUBSYS_NFTABLES`, whom a batch is for.
const SUBSYSTEM: u16 = 10;
const HEADER_LEN: usize = 16;

/// An open socket; it belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Socket(socket2::Socket);

/// Requests that are carried out together.
pub(super) struct Batch(Chained<'static>);

impl Batch {
    pub(super) fn new() -> Self {
        let mut chain = Chained::new(1);
        chain.request().op_batch_begin_do(&batch_header());
        Self(chain)
    }

    /// Another request.
    pub(super) fn request(&mut self) -> netlink_bindings::nftables::Request<'_> {
        self.0.request()
    }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.cloexec(),
            Some(Protocol::from(libc::NETLINK_NETFILTER)),
        )?;
        setsockopt(&socket.as_fd(), sockopt::SndBufForce, &BUFFER)?;
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Takes what an earlier request left: not every kernel answers the end of a batch, so nobody
    /// waits for that.
    fn forget_answers(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); HEADER_LEN];
        loop {
            match self.0.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Carries a batch out: wholly, or not at all.
    pub(super) fn change(&self, batch: Batch) -> io::Result<()> {
        let Batch(mut chain) = batch;
        chain.request().op_batch_end_do(&batch_header());
        let chain = chain.finalize();
        self.forget_answers()?;
        self.0.send(chain.payload())?;
        // The frame of the batch is not answered by every kernel; the last request is, after the
        // others.
        let last = u32::try_from(chain.chain_len()).unwrap_or(u32::MAX).saturating_sub(1);
        let mut buffer = vec![0; PART];
        loop {
            let len = (&self.0).read(&mut buffer)?;
            for message in Messages(buffer.get(..len).unwrap_or_default()) {
                if let Some(code) = message.error()? {
                    if code != 0 {
                        let what =
                            message.sequence.checked_sub(1).and_then(|at| at.try_into().ok());
                        let what = what.map_or("batch", |at| chain.name(at));
                        let source = io::Error::from_raw_os_error(-code);
                        return Err(io::Error::new(source.kind(), format!("{what}: {source}")));
                    }
                    if message.sequence == last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Asks a question and hands each part of the answer to `each`.
    pub(super) fn ask(
        &self,
        question: Chained<'static>,
        each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.ask_raw(question.finalize().payload(), each)
    }

    /// As [`ask`](Self::ask), of another part of netfilter.
    pub(super) fn ask_raw(&self, question: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.forget_answers()?;
        self.0.send(question)?;
        let mut buffer = vec![0; PART];
        loop {
            let len = (&self.0).read(&mut buffer)?;
            for message in Messages(buffer.get(..len).unwrap_or_default()) {
                match message.error()? {
                    None => each(message.body),
                    Some(0) => return Ok(()),
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                }
            }
        }
    }
}

/// A request of this kind that the kernel acknowledges.
pub(super) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or_default();
    let (sequence, port) = (1u32, 0u32);
    let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
    [&head, &sequence.to_ne_bytes()[..], &port.to_ne_bytes(), body].concat()
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The code of an acknowledgement, zero or negative; nothing if it is no such.
    fn error(&self) -> io::Result<Option<i32>> {
        if ![libc::NLMSG_ERROR, libc::NLMSG_DONE].contains(&i32::from(self.kind)) {
            return Ok(None);
        }
        let code = self.body.first_chunk().ok_or_else(|| io::Error::other("half an answer"))?;
        Ok(Some(i32::from_ne_bytes(*code)))
    }
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*self.0.get(8..)?.first_chunk()?);
        let body = self.0.get(HEADER_LEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    }
}
