//! Flows as the kernel tracks them (ctnetlink, linux/netfilter/nfnetlink_conntrack.h), and how
//! those are forgotten that rules of now would carry elsewhere.
//!
//! Address translation is decided by a flow's first packet. A client that never pauses keeps a UDP
//! flow alive for good, and so on the way of rules that are gone: to a port that is published no
//! more, or to whoever has a sandbox's address next. What is forgotten here is decided anew with
//! its next packet.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use netlink_bindings::{
    conntrack::{Chained, IterableTupleAttrs, Nfgenmsg, OpGetDo, OpGetDump},
    traits::{NetlinkChained, NetlinkRequest},
    utils::{finalize_nested_header, push_header, push_nested_header},
};

use super::{FirewallError, rule::Protocol, socket::Socket};

/// How many flows the network namespace of who reads it has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;
/// `CTA_TUPLE_ORIG` and `CTA_ID`.
const TUPLE: u16 = 1;
const ID: u16 = 12;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP or UDP; nothing for others, whose ports are 0.
    pub protocol: Option<Protocol>,
    /// Who began it.
    pub from: SocketAddr,
    /// Whom it was meant for.
    pub to: SocketAddr,
    /// Who gets it.
    pub server: SocketAddr,
    /// As whom the server sees who began it.
    pub client: SocketAddr,
    /// Whether there was an answer.
    pub answered: bool,
}

impl Flow {
    /// Whether it goes where it was meant for.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.to == self.server
    }

    /// Whether nobody rewrites it, and nobody answered yet.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.is_direct() && self.from == self.client && !self.answered
    }

    /// Whether an address is one of its ends.
    #[must_use]
    pub fn touches(&self, ip: IpAddr) -> bool {
        [self.from, self.to, self.server, self.client].iter().any(|end| end.ip() == ip)
    }
}

/// Has the kernel forget the flows of the calling thread's network namespace of which this is true;
/// how many they were.
///
/// # Errors
/// The kernel does not track flows, or refuses.
pub fn forget(stale: impl Fn(&Flow) -> bool) -> Result<usize, FirewallError> {
    // For a list of one namespace's flows the kernel walks through those of all.
    if fs::read_to_string(COUNT).is_ok_and(|count| count.trim() == "0") {
        return Ok(0);
    }
    let failed = |error| FirewallError::new("forget", "old flows", error);
    let socket = Socket::open().map_err(failed)?;
    let mut question = Chained::new(1);
    question.request().op_get_dump(&Nfgenmsg::new());
    let mut requests = Vec::new();
    let asked = socket.ask_raw(question.finalize().payload(), |part| {
        if let Some((flow, request)) = decode(part)
            && stale(&flow)
        {
            requests.push(request);
        }
    });
    asked.map_err(failed)?;
    let mut count = 0;
    for request in requests {
        match socket.ask_raw(&request, |_none| {}) {
            Ok(()) => count += 1,
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(count)
}

/// A flow and the request to forget it. Those in zones are others'.
fn decode(part: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let (header, flow) = OpGetDump::decode_reply(part);
    if flow.get_zone().is_ok() {
        return None;
    }
    let (orig, reply) = (flow.get_tuple_orig().ok()?, flow.get_tuple_reply().ok()?);
    let request = request(&header, orig.get_buf(), flow.get_id().ok()?);
    let number = orig.get_tuple_proto().ok()?.get_proto_num().ok()?;
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|it| it.number() == number);
    let ((from, to), (server, client)) = (ends(&orig)?, ends(&reply)?);
    let answered = flow.get_status().is_ok_and(|status| status & SEEN_REPLY != 0);
    Some((Flow { protocol, from, to, server, client, answered }, request))
}

/// Source and destination.
fn ends(tuple: &IterableTupleAttrs<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, ports) = (tuple.get_tuple_ip().ok()?, tuple.get_tuple_proto().ok()?);
    let either = |v4: Option<IpAddr>, v6: Option<IpAddr>| v4.or(v6);
    let source =
        either(ip.get_ip_v4_src().ok().map(IpAddr::V4), ip.get_ip_v6_src().ok().map(IpAddr::V6))?;
    let destination =
        either(ip.get_ip_v4_dst().ok().map(IpAddr::V4), ip.get_ip_v6_dst().ok().map(IpAddr::V6))?;
    let source = (source, ports.get_proto_src_port().unwrap_or_default());
    let destination = (destination, ports.get_proto_dst_port().unwrap_or_default());
    Some((source.into(), destination.into()))
}

/// The bindings know how to ask for a flow, not how to delete one; the attributes are the same, and
/// the id keeps a newer flow between the same ends out of it.
fn request(header: &Nfgenmsg, tuple: &[u8], id: u32) -> Vec<u8> {
    let mut body = Vec::new();
    OpGetDo::encode_request(&mut body, header);
    let at = push_nested_header(&mut body, TUPLE);
    body.extend(tuple);
    finalize_nested_header(&mut body, at);
    push_header(&mut body, ID, 4);
    body.extend(id.to_be_bytes());
    super::socket::message(DELETE, &body)
}
