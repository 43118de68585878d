//! Flows that the kernel tracks, of one network namespace (linux/netfilter/nfnetlink_conntrack.h): [`forget`].
//!
//! The kernel decides once per flow where it leads. Rules that change are not seen by a UDP client that goes on sending, until
//! its flow is forgotten; of TCP the next connection is another flow.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::{errno::Errno, libc};

use super::socket::Socket;

/// `NFNL_SUBSYS_CTNETLINK`, and of it `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// In a tuple: `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
const IP: u16 = 1;
const PROTOCOL: u16 = 2;
/// In `CTA_TUPLE_PROTO`: number and both ports.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE: u16 = 0x3fff;
const ATTRIBUTE_LEN: usize = 4;

/// A UDP flow of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Who sends.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// A UDP flow as the client sees it and as the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's packets as they came.
    pub original: Direction,
    /// The server's, before they are rewritten.
    pub reply: Direction,
}

impl Flow {
    /// Whether no address of it is rewritten.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        (self.reply.from, self.reply.to) == (self.original.to, self.original.from)
    }
}

/// Forgets the UDP flows of the calling thread's network namespace that are stale; says how many.
///
/// # Errors
/// The kernel does not track flows, or the rights are missing.
pub fn forget(is_stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let socket = Socket::open()?;
    let dump = u16::try_from(libc::NLM_F_DUMP).unwrap_or_default();
    let mut stale = Vec::new();
    socket.exchange(&request(GET, dump, u8::default(), &[]), |body| {
        if let Some((family, tuple)) = stale_tuple(body, &is_stale) {
            stale.push((family, tuple));
        }
    })?;
    let acknowledge = u16::try_from(libc::NLM_F_ACK).unwrap_or_default();
    for (family, tuple) in &stale {
        match socket.exchange(&request(DELETE, acknowledge, *family, tuple), |_body| {}) {
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            done => done?,
        }
    }
    Ok(stale.len())
}

/// A message with its `nlmsghdr`, its `nfgenmsg` and what follows.
fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let flags = flags | u16::try_from(libc::NLM_F_REQUEST).unwrap_or_default();
    let len = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Neither a number nor a port: one request at a time.
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// The family and the attribute by which the kernel finds the flow again.
fn stale_tuple(body: &[u8], is_stale: impl Fn(&Flow) -> bool) -> Option<(u8, Vec<u8>)> {
    let (header, attributes) = body.split_first_chunk::<4>()?;
    let [family, ..] = *header;
    let (mut original, mut reply, mut tuple) = (None, None, None);
    for (kind, value, whole) in Attributes(attributes) {
        match kind {
            ORIGINAL => (original, tuple) = (direction(value), Some(whole.to_vec())),
            REPLY => reply = direction(value),
            _ => {}
        }
    }
    let flow = Flow { original: original?, reply: reply? };
    is_stale(&flow).then_some((family, tuple?))
}

/// One direction, if it is one of UDP.
fn direction(tuple: &[u8]) -> Option<Direction> {
    let (mut ips, mut number) = (Vec::new(), None);
    let (mut from, mut to) = (None, None);
    for (kind, value, _) in Attributes(tuple) {
        match kind {
            // The source before the destination, of either IP version.
            IP => ips.extend(Attributes(value).filter_map(|(_, value, _)| address(value))),
            PROTOCOL => {
                for (kind, value, _) in Attributes(value) {
                    let port = || value.first_chunk().map(|port| u16::from_be_bytes(*port));
                    match kind {
                        NUMBER => number = value.first().copied(),
                        SOURCE_PORT => from = port(),
                        DESTINATION_PORT => to = port(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let [source, destination] = *ips.first_chunk()?;
    let is_udp = number.map(i32::from) == Some(libc::IPPROTO_UDP);
    is_udp.then_some(Direction { from: (source, from?).into(), to: (destination, to?).into() })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Attributes of netlink: kind, value, and the whole with its header and padding.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & TYPE;
        let value = self.0.get(ATTRIBUTE_LEN..len)?;
        let padded = len.next_multiple_of(4).min(self.0.len());
        let (whole, rest) = self.0.split_at_checked(padded)?;
        self.0 = rest;
        Some((kind, value, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, number: u8, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let nested = 0x8000;
        let ip = |kind, last| attribute(kind, &[10, 0, 0, last]);
        let ports = [
            attribute(NUMBER, &[number]),
            attribute(SOURCE_PORT, &from.1.to_be_bytes()),
            attribute(DESTINATION_PORT, &to.1.to_be_bytes()),
        ];
        let ips = attribute(nested | IP, &[ip(1, from.0), ip(2, to.0)].concat());
        let protocol = attribute(nested | PROTOCOL, &ports.concat());
        attribute(nested | kind, &[ips, protocol].concat())
    }

    fn body(number: u8) -> Vec<u8> {
        let original = tuple(ORIGINAL, number, (1, 4000), (2, 53));
        let reply = tuple(REPLY, number, (3, 5353), (1, 4000));
        [vec![2, 0, 0, 0], original, reply, attribute(18, &[0, 0])].concat()
    }

    #[test]
    fn a_flow_is_read_and_found_again_by_what_the_client_sent() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let flow = Flow {
            original: Direction { from: at("10.0.0.1:4000"), to: at("10.0.0.2:53") },
            reply: Direction { from: at("10.0.0.3:5353"), to: at("10.0.0.1:4000") },
        };
        let found = stale_tuple(&body(17), |it| *it == flow && !it.is_plain());
        assert_eq!(found.unwrap(), (2, tuple(ORIGINAL, 17, (1, 4000), (2, 53))));
        assert_eq!(stale_tuple(&body(17), |_| false), None);
        assert_eq!(stale_tuple(&body(6), |_| true), None, "TCP is left alone");
    }

    #[test]
    fn cut_answers_are_no_flows() {
        let whole = body(17);
        for len in 0..whole.len() {
            // Whatever it says, it ends.
            let _cut = stale_tuple(&whole[..len], |_| true);
        }
        for at in 4..whole.len() {
            let mut odd = whole.clone();
            odd[at] = 0xff;
            let _odd = stale_tuple(&odd, |_| true);
        }
    }
}
