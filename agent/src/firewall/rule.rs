//! The language of rules: what a packet is compared with and what becomes of it. What is said of
//! frames is [`super::frame`]'s.
//!
//! A [`Rule`] is a list of [`Expr`]essions of nf_tables (linux/netfilter/nf_tables.h): each loads a
//! property of the packet into a register, compares a register, or acts. The first comparison that
//! fails ends the rule. Constructors below make what nft(8) writes, e.g. [`input`] is `iifname`,
//! [`destination`] is `ip daddr` or `ip6 daddr`.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_bindings::{
    nftables::{
        CmpOps, CtKeys, FibFlags, LookupFlags, MetaKeys, ObjectType, PayloadBase, PushExprAttrs,
        PushExprListAttrs, Registers, VerdictCode,
    },
    traits::Pusher,
    utils::{finalize_nested_header, push_header, push_nested_header},
};
use nix::libc;

/// `IFNAMSIZ` of linux/if.h.
const IFNAME_SIZE: usize = 16;
/// Longest comment; nft(8) shows no longer one.
const COMMENT_LEN: usize = 126;
/// The states of a connection (`NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h).
const ESTABLISHED_OR_RELATED: u32 = 0b110;
const NEW: u32 = 0b1000;
/// `IPS_DST_NAT`: the destination of the connection was rewritten.
const DST_NAT: u32 = 1 << 5;
/// `IP_CT_DIR_REPLY`.
const REPLY: u8 = 1;
/// How long a bridge that switched something is remembered.
const REMEMBERED: u64 = 60_000;
/// How long it is known who was counted last.
const BLAMED: u64 = 3_600_000;
/// `RTN_LOCAL` as the address type that `fib` gives.
const LOCAL: u32 = 2;
const SYN_RST: u8 = 0x06;
const SYN_ACK: u8 = 0x12;
const SYN: u8 = 0x02;
/// `NFT_PAYLOAD_CSUM_INET`.
const INTERNET_CHECKSUM: u32 = 1;
/// TCP's maximum segment size (RFC 9293 section 3.2): option 2, its value after kind and length.
const MSS: u8 = 2;

/// One expression. Values are loaded into the first register. The second takes ports that are
/// written, and the latter part of a key of two. The parts of a longer key stand word by word from
/// the first register on ([`register`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    Meta(u32),
    Payload {
        base: u32,
        offset: u32,
        len: u32,
    },
    /// A part of a key.
    PayloadAt {
        register: u32,
        base: u32,
        offset: u32,
        len: u32,
    },
    /// A field of an extension header of IPv6; without a length, whether the header is there.
    Extension {
        header: u8,
        offset: u32,
        len: u32,
    },
    Ct(u32),
    /// A property of the packet, as the latter part of a key.
    MetaBehind(u32),
    /// Whether the destination is one of the host's addresses, or of the interface by which it came
    /// in, as an address type.
    DestinationType {
        of_input: bool,
    },
    And(Vec<u8>),
    Equal(Vec<u8>),
    Differs(Vec<u8>),
    AtLeast(Vec<u8>),
    AtMost(Vec<u8>),
    /// The key is in this set of the table; or is not.
    In {
        set: &'static str,
        is: bool,
    },
    /// The key is in this set of the table for so many milliseconds from now on, with a counter if
    /// it is to be counted.
    Remember {
        set: &'static str,
        milliseconds: u64,
        counted: bool,
    },
    /// The key is not in this set of the table any more.
    Forget {
        set: &'static str,
    },
    /// A number, as the latter part of a key.
    NumberBehind(u32),
    Port(u16),
    /// Writes the port that was loaded there, and corrects the checksum.
    WritePort {
        offset: u32,
        checksum: u32,
    },
    /// These bytes, as what is written.
    Value(Vec<u8>),
    /// Writes what was loaded there, and corrects no checksum.
    Write {
        base: u32,
        offset: u32,
        len: u32,
    },
    /// The largest segment that fits the packet's route.
    RouteMss,
    /// Lowers the segment size that a SYN announces.
    SetMss,
    DestinationNat {
        v4: bool,
    },
    Masquerade,
    Counter,
    /// Counts with the table's counter of this name.
    Count(&'static str),
    Verdict(u32),
    /// Its sender is told: by a reset of the connection, or by ICMP.
    Reject {
        reset: bool,
    },
    Jump(&'static str),
    Goto(&'static str),
}

/// A rule with its comment, which tells what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(super) comment: String,
    pub(super) exprs: Vec<Expr>,
}

/// A part of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause(pub(super) Vec<Expr>);

impl Clause {
    /// ... if this is true, too.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// TCP or UDP.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(super) fn number(self) -> u8 {
        // INVARIANT: protocol numbers have eight bits.
        u8::try_from(match self {
            Self::Tcp => libc::IPPROTO_TCP,
            Self::Udp => libc::IPPROTO_UDP,
        })
        .unwrap_or_default()
    }

    /// It is of this protocol.
    pub(super) fn is_carried(self) -> Clause {
        Clause(vec![Expr::Meta(MetaKeys::L4Proto as u32), Expr::Equal(vec![self.number()])])
    }
}

impl Rule {
    /// A rule that is true for every packet.
    #[must_use]
    pub fn new(comment: impl AsRef<str>) -> Self {
        let ascii = comment.as_ref().chars().filter(char::is_ascii);
        Self { comment: ascii.take(COMMENT_LEN).collect(), exprs: Vec::new() }
    }

    /// ... if this is true, too; or: then this happens.
    #[must_use]
    pub fn and(mut self, clause: Clause) -> Self {
        self.exprs.extend(clause.0);
        self
    }

    /// ... and this is true before all that it says.
    #[must_use]
    pub(super) fn after(mut self, clause: Clause) -> Self {
        self.exprs.splice(..0, clause.0);
        self
    }

    /// The counter that it names.
    #[cfg(test)]
    pub(super) fn counter(&self) -> Option<&'static str> {
        self.exprs.iter().find_map(|expr| match expr {
            Expr::Count(name) => Some(*name),
            _ => None,
        })
    }
}

/// A name of interfaces: exact, or all that begin so where it ends in `*`.
fn name(text: &str) -> Vec<u8> {
    match text.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut name = text.as_bytes().to_vec();
            name.resize(IFNAME_SIZE, 0);
            name
        }
    }
}

/// It came in by an interface of this name.
#[must_use]
pub fn input(interface: &str) -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::Iifname as u32), Expr::Equal(name(interface))])
}

/// It goes out by an interface of this name.
#[must_use]
pub fn output(interface: &str) -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::Oifname as u32), Expr::Equal(name(interface))])
}

/// It came in by no interface of this name.
#[must_use]
pub fn input_not(interface: &str) -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::Iifname as u32), Expr::Differs(name(interface))])
}

/// It goes out by no interface of this name.
#[must_use]
pub fn output_not(interface: &str) -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::Oifname as u32), Expr::Differs(name(interface))])
}

/// The interface by which it came in is a bridge.
#[must_use]
pub fn from_bridge() -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::Iifkind as u32), Expr::Equal(name("bridge"))])
}

fn version(ipv4: bool) -> Vec<Expr> {
    let family = if ipv4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
    let family = u8::try_from(family).unwrap_or_default();
    vec![Expr::Meta(MetaKeys::Nfproto as u32), Expr::Equal(vec![family])]
}

/// It goes out by the interface by which it came in, and that is a bridge: two rules, of which the
/// first notes the bridge in a set of names of two interfaces. So there are only pairs of the same
/// interface, whatever comes and goes.
pub(super) fn within_a_bridge(set: &'static str) -> [Clause; 2] {
    let pair = |out: u32| [Expr::Meta(MetaKeys::Iifname as u32), Expr::MetaBehind(out)];
    let note = pair(MetaKeys::Iifname as u32);
    let remember = Expr::Remember { set, milliseconds: REMEMBERED, counted: false };
    let note = note.into_iter().chain([remember]);
    let look = pair(MetaKeys::Oifname as u32);
    let look = look.into_iter().chain([Expr::In { set, is: true }]);
    [note.collect(), look.collect()].map(|exprs| from_bridge().and(Clause(exprs)))
}

/// It is of this IP version.
#[must_use]
pub fn is_ip(ipv4: bool) -> Clause {
    Clause(version(ipv4))
}

/// The same where frames are looked at before they are routed.
pub(super) fn is_ip_frame(ipv4: bool) -> Clause {
    let ethertype: u16 = if ipv4 { 0x0800 } else { 0x86dd };
    let value = ethertype.to_be_bytes().to_vec();
    Clause(vec![Expr::Meta(MetaKeys::Protocol as u32), Expr::Equal(value)])
}

/// Where the addresses stand in the header: offset of source and destination, and their length.
const fn layout(ipv4: bool) -> (u32, u32, u32) {
    if ipv4 { (12, 16, 4) } else { (8, 24, 16) }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn within(net: IpNet, offset: u32, compare: fn(Vec<u8>) -> Expr) -> Clause {
    let ipv4 = net.addr().is_ipv4();
    let (_, _, len) = layout(ipv4);
    let mut exprs = version(ipv4);
    exprs.push(Expr::Payload { base: PayloadBase::NetworkHeader as u32, offset, len });
    exprs.push(Expr::And(octets(net.netmask())));
    exprs.push(compare(octets(net.network())));
    Clause(exprs)
}

/// Its source is in the prefix.
#[must_use]
pub fn source(net: IpNet) -> Clause {
    within(net, layout(net.addr().is_ipv4()).0, Expr::Equal)
}

/// Its source is not in the prefix, though of its IP version.
#[must_use]
pub fn source_not(net: IpNet) -> Clause {
    within(net, layout(net.addr().is_ipv4()).0, Expr::Differs)
}

/// Its destination is in the prefix.
#[must_use]
pub fn destination(net: IpNet) -> Clause {
    within(net, layout(net.addr().is_ipv4()).1, Expr::Equal)
}

/// Its destination is not in the prefix, though of its IP version.
#[must_use]
pub fn destination_not(net: IpNet) -> Clause {
    within(net, layout(net.addr().is_ipv4()).1, Expr::Differs)
}

/// Its destination is an address of this host.
#[must_use]
pub fn destination_is_local() -> Clause {
    destination_type(false)
}

/// Its destination is an address of the interface by which it came in.
#[must_use]
pub fn destination_is_inputs() -> Clause {
    destination_type(true)
}

fn destination_type(of_input: bool) -> Clause {
    let local = LOCAL.to_ne_bytes().to_vec();
    Clause(vec![Expr::DestinationType { of_input }, Expr::Equal(local)])
}

/// It is to this port.
#[must_use]
pub fn destination_port(protocol: Protocol, port: u16) -> Clause {
    let mut exprs = protocol.is_carried().0;
    exprs.push(Expr::Payload { base: PayloadBase::TransportHeader as u32, offset: 2, len: 2 });
    exprs.push(Expr::Equal(port.to_be_bytes().to_vec()));
    Clause(exprs)
}

fn any_bit(key: u32, bits: u32) -> Clause {
    let none = 0u32.to_ne_bytes().to_vec();
    Clause(vec![Expr::Ct(key), Expr::And(bits.to_ne_bytes().to_vec()), Expr::Differs(none)])
}

/// It belongs to a connection that was let through before.
#[must_use]
pub fn established() -> Clause {
    any_bit(CtKeys::State as u32, ESTABLISHED_OR_RELATED)
}

/// It begins a connection, or what the kernel takes for one.
#[must_use]
pub fn new() -> Clause {
    any_bit(CtKeys::State as u32, NEW)
}

/// It is an answer in a connection that was let through before.
#[must_use]
pub fn answer() -> Clause {
    Clause(vec![Expr::Ct(CtKeys::Direction as u32), Expr::Equal(vec![REPLY])])
}

/// It begins a TCP connection, or is of another protocol.
#[must_use]
pub fn begins(protocol: Protocol) -> Clause {
    match protocol {
        Protocol::Tcp => Clause(vec![
            Expr::Payload { base: PayloadBase::TransportHeader as u32, offset: 13, len: 1 },
            Expr::And(vec![SYN_ACK]),
            Expr::Equal(vec![SYN]),
        ]),
        Protocol::Udp => Clause::default(),
    }
}

/// It belongs to a connection to a published port.
#[must_use]
pub fn published() -> Clause {
    any_bit(CtKeys::Status as u32, DST_NAT)
}

/// Lowers the segment size that a SYN announces to what fits its route.
#[must_use]
pub fn clamp_mss() -> Clause {
    Clause(vec![
        Expr::Meta(MetaKeys::L4Proto as u32),
        Expr::Equal(vec![Protocol::Tcp.number()]),
        Expr::Payload { base: PayloadBase::TransportHeader as u32, offset: 13, len: 1 },
        Expr::And(vec![SYN_RST]),
        Expr::Equal(vec![SYN]),
        Expr::RouteMss,
        Expr::SetMss,
    ])
}

/// Its source becomes the address of the interface by which it goes out.
#[must_use]
pub fn masquerade() -> Clause {
    Clause(vec![Expr::Counter, Expr::Masquerade])
}

/// Its destination becomes this one.
#[must_use]
pub fn redirect_to(ip: IpAddr, port: u16) -> Clause {
    Clause(vec![
        Expr::Counter,
        Expr::Value(octets(ip)),
        Expr::Port(port),
        Expr::DestinationNat { v4: ip.is_ipv4() },
    ])
}

/// It is let through this chain.
#[must_use]
pub fn accept() -> Clause {
    Clause(vec![Expr::Counter, Expr::Verdict(VerdictCode::Accept as u32)])
}

/// It is dropped and counted.
#[must_use]
pub fn drop() -> Clause {
    Clause(vec![Expr::Counter, Expr::Verdict(VerdictCode::Drop as u32)])
}

/// It is refused, so that its sender knows at once.
#[must_use]
pub fn refuse(protocol: Protocol) -> Clause {
    Clause(vec![Expr::Counter, Expr::Reject { reset: protocol == Protocol::Tcp }])
}

/// It is dropped and counted by the table's counter of this name.
#[must_use]
pub fn drop_as(counter: &'static str) -> Clause {
    Clause(vec![Expr::Count(counter), Expr::Verdict(VerdictCode::Drop as u32)])
}

/// It is counted in a set of the table, for the interface by which it came in and a number.
pub(super) fn count_for(set: &'static str, number: u32) -> Clause {
    Clause(vec![
        Expr::Meta(MetaKeys::Iifname as u32),
        Expr::NumberBehind(number),
        Expr::Remember { set, milliseconds: BLAMED, counted: true },
    ])
}

/// The rules of another chain of the table decide, and none of this one any more.
#[must_use]
pub fn goto(chain: &'static str) -> Clause {
    Clause(vec![Expr::Goto(chain)])
}

/// The rules of another chain of the table decide, and if none does, the rest of this one.
#[must_use]
pub fn jump(chain: &'static str) -> Clause {
    Clause(vec![Expr::Jump(chain)])
}

const VALUE: u32 = Registers::Reg1 as u32;
/// The second register, four words behind the first.
pub(super) const SECOND: u32 = Registers::Reg2 as u32;

/// Where a part of a key is loaded that stands behind so many words of it, at least one.
pub(super) const fn register(words: u32) -> u32 {
    Registers::Reg3200 as u32 + words
}

/// Writes expressions as attributes of a rule.
pub(super) fn encode<P: Pusher>(mut list: PushExprListAttrs<P>, exprs: &[Expr]) -> P {
    for expr in exprs {
        list = encode_one(list, expr);
    }
    list.end_nested()
}

fn encode_one<P: Pusher>(list: PushExprListAttrs<P>, expr: &Expr) -> PushExprListAttrs<P> {
    let elem = list.nested_elem();
    match expr {
        Expr::Meta(key) => {
            elem.nested_data_meta().push_dreg(VALUE).push_key(*key).end_nested().end_nested()
        }
        Expr::Ct(key) => {
            elem.nested_data_ct().push_dreg(VALUE).push_key(*key).end_nested().end_nested()
        }
        Expr::MetaBehind(key) => {
            elem.nested_data_meta().push_dreg(SECOND).push_key(*key).end_nested().end_nested()
        }
        Expr::Payload { base, offset, len } => load(elem, VALUE, (*base, *offset, *len)),
        Expr::PayloadAt { register, base, offset, len } => {
            load(elem, *register, (*base, *offset, *len))
        }
        Expr::Extension { header, offset, len } => {
            extension(elem.push_name(c"exthdr"), *header, *offset, *len).end_nested()
        }
        Expr::DestinationType { of_input } => {
            let fib = elem.nested_data_fib().push_dreg(VALUE);
            let fib = fib.push_result(FIB_ADDRTYPE);
            let input = if *of_input { FibFlags::Iif as u32 } else { 0 };
            fib.push_flags(FibFlags::Daddr as u32 | input).end_nested().end_nested()
        }
        Expr::And(mask) => {
            let and = elem.nested_data_bitwise().push_sreg(VALUE).push_dreg(VALUE);
            let and = and.push_len(u32::try_from(mask.len()).unwrap_or_default());
            let and = and.nested_mask().push_value(mask).end_nested();
            and.nested_xor().push_value(&vec![0; mask.len()]).end_nested().end_nested().end_nested()
        }
        Expr::Equal(value) => compare(elem, CmpOps::Eq, value),
        Expr::Differs(value) => compare(elem, CmpOps::Neq, value),
        Expr::AtLeast(value) => compare(elem, CmpOps::Gte, value),
        Expr::AtMost(value) => compare(elem, CmpOps::Lte, value),
        Expr::In { set, is } => lookup(elem.push_name(c"lookup"), set, *is).end_nested(),
        Expr::Remember { set, milliseconds, counted } => {
            dynset(elem.push_name(c"dynset"), set, Some((*milliseconds, *counted))).end_nested()
        }
        Expr::Forget { set } => dynset(elem.push_name(c"dynset"), set, None).end_nested(),
        Expr::NumberBehind(number) => immediate(elem, SECOND, &number.to_be_bytes()),
        Expr::Port(port) => immediate(elem, SECOND, &port.to_be_bytes()),
        Expr::WritePort { offset, checksum } => {
            let write = elem.nested_data_payload().push_sreg(SECOND);
            let write = write.push_base(PayloadBase::TransportHeader as u32).push_offset(*offset);
            let write = write.push_len(2).push_csum_type(INTERNET_CHECKSUM);
            write.push_csum_offset(*checksum).end_nested().end_nested()
        }
        Expr::Value(value) => immediate(elem, VALUE, value),
        Expr::Write { base, offset, len } => {
            let write = elem.nested_data_payload().push_sreg(VALUE).push_base(*base);
            write.push_offset(*offset).push_len(*len).end_nested().end_nested()
        }
        Expr::DestinationNat { v4 } => {
            let family = if *v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
            let nat = elem.nested_data_nat().push_type(DNAT);
            let nat = nat.push_family(u32::try_from(family).unwrap_or_default());
            nat.push_reg_addr_min(VALUE).push_reg_proto_min(SECOND).end_nested().end_nested()
        }
        Expr::Verdict(code) => verdict(elem, *code, None),
        Expr::Reject { reset } => {
            let (kind, code) = if *reset { (TCP_RESET, 0) } else { (ICMPX, ICMPX_PORT) };
            let reject = elem.nested_data_reject().push_type(kind).push_icmp_code(code);
            reject.end_nested().end_nested()
        }
        Expr::Jump(chain) => verdict(elem, VerdictCode::Jump as u32, Some(chain)),
        Expr::Goto(chain) => verdict(elem, VerdictCode::Goto as u32, Some(chain)),
        Expr::Count(name) => {
            let counter = elem.nested_data_objref().push_imm_type(ObjectType::Counter as u32);
            counter.push_imm_name_bytes(name.as_bytes()).end_nested().end_nested()
        }
        Expr::Counter => elem.nested_data_counter().end_nested().end_nested(),
        Expr::RouteMss => other(elem.push_name(c"rt"), &[(1, VALUE), (2, RT_TCPMSS)]).end_nested(),
        Expr::SetMss => set_mss(elem.push_name(c"exthdr")).end_nested(),
        Expr::Masquerade => other(elem.push_name(c"masq"), &[]).end_nested(),
    }
}

fn immediate<P: Pusher>(
    elem: PushExprAttrs<PushExprListAttrs<P>>,
    register: u32,
    value: &[u8],
) -> PushExprListAttrs<P> {
    let data = elem.nested_data_immediate().push_dreg(register).nested_data();
    data.push_value(value).end_nested().end_nested().end_nested()
}

fn load<P: Pusher>(
    elem: PushExprAttrs<PushExprListAttrs<P>>,
    register: u32,
    (base, offset, len): (u32, u32, u32),
) -> PushExprListAttrs<P> {
    let payload = elem.nested_data_payload().push_dreg(register).push_base(base);
    payload.push_offset(offset).push_len(len).end_nested().end_nested()
}

fn compare<P: Pusher>(
    elem: PushExprAttrs<PushExprListAttrs<P>>,
    op: CmpOps,
    value: &[u8],
) -> PushExprListAttrs<P> {
    let cmp = elem.nested_data_cmp().push_sreg(VALUE).push_op(op as u32);
    cmp.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

fn verdict<P: Pusher>(
    elem: PushExprAttrs<PushExprListAttrs<P>>,
    code: u32,
    chain: Option<&str>,
) -> PushExprListAttrs<P> {
    let data = elem.nested_data_immediate().push_dreg(Registers::RegVerdict as u32);
    let mut verdict = data.nested_data().nested_verdict().push_code(code);
    if let Some(chain) = chain {
        verdict = verdict.push_chain_bytes(chain.as_bytes());
    }
    verdict.end_nested().end_nested().end_nested().end_nested()
}

/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count these from 0, the kernel from 1.
const FIB_ADDRTYPE: u32 = 3;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `NFT_RT_TCPMSS`.
const RT_TCPMSS: u32 = 3;
/// `NFT_REJECT_TCP_RST`, `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_PORT_UNREACH`.
const TCP_RESET: u32 = 1;
const ICMPX: u32 = 2;
const ICMPX_PORT: u8 = 1;
/// `NFTA_EXPR_DATA`.
const EXPR_DATA: u16 = 2;

/// The data of an expression that the bindings do not know: numbers in network order.
fn other<P: Pusher>(mut elem: P, numbers: &[(u16, u32)]) -> P {
    let buffer = elem.as_vec_mut();
    let at = push_nested_header(buffer, EXPR_DATA);
    for (kind, number) in numbers {
        push_header(buffer, *kind, 4);
        buffer.extend(number.to_be_bytes());
    }
    finalize_nested_header(buffer, at);
    elem
}

/// `lookup`; the bindings have other numbers than the kernel.
fn lookup<P: Pusher>(mut elem: P, set: &str, is: bool) -> P {
    const SREG: u16 = 2;
    const FLAGS: u16 = 5;
    let buffer = elem.as_vec_mut();
    let at = push_nested_header(buffer, EXPR_DATA);
    push_set(buffer, set);
    let flags = if is { 0 } else { LookupFlags::Invert as u32 };
    for (kind, number) in [(SREG, VALUE), (FLAGS, flags)] {
        push_header(buffer, kind, 4);
        buffer.extend(number.to_be_bytes());
    }
    finalize_nested_header(buffer, at);
    elem
}

/// `dynset`, which the bindings do not have: the key in the set is made new, or lives on for so
/// many milliseconds, and its counter counts; without a time it ends.
fn dynset<P: Pusher>(mut elem: P, set: &str, kept: Option<(u64, bool)>) -> P {
    const OP: u16 = 3;
    const SREG_KEY: u16 = 4;
    const TIMEOUT: u16 = 6;
    const EXPR: u16 = 7;
    const EXPR_NAME: u16 = 1;
    const UPDATE: u32 = 1;
    const DELETE: u32 = 2;
    let buffer = elem.as_vec_mut();
    let at = push_nested_header(buffer, EXPR_DATA);
    push_set(buffer, set);
    let op = if kept.is_some() { UPDATE } else { DELETE };
    for (kind, number) in [(OP, op), (SREG_KEY, VALUE)] {
        push_header(buffer, kind, 4);
        buffer.extend(number.to_be_bytes());
    }
    if let Some((milliseconds, _counted)) = kept {
        push_header(buffer, TIMEOUT, 8);
        buffer.extend(milliseconds.to_be_bytes());
    }
    if kept.is_some_and(|(_milliseconds, counted)| counted) {
        let expr = push_nested_header(buffer, EXPR);
        push_header(buffer, EXPR_NAME, 8);
        buffer.extend(b"counter\0");
        finalize_nested_header(buffer, expr);
    }
    finalize_nested_header(buffer, at);
    elem
}

/// The name of a set, as the first attribute of `lookup` and `dynset`.
fn push_set(buffer: &mut Vec<u8>, set: &str) {
    const SET: u16 = 1;
    let mut name = set.as_bytes().to_vec();
    name.push(0);
    push_header(buffer, SET, u16::try_from(name.len()).unwrap_or_default());
    name.resize(name.len().next_multiple_of(4), 0);
    buffer.extend(name);
}

/// `exthdr`, which writes a TCP option.
fn set_mss<P: Pusher>(elem: P) -> P {
    const SREG: u16 = 7;
    exthdr(elem, MSS, (2, 2), [(EXTHDR_OP, TCP_OPTION), (SREG, VALUE)])
}

/// `exthdr`, which reads an extension header of IPv6, or with the flag whether there is one.
fn extension<P: Pusher>(elem: P, header: u8, offset: u32, len: u32) -> P {
    const DREG: u16 = 1;
    const FLAGS: u16 = 5;
    const PRESENT: u32 = 1;
    let (len, flags) = if len == 0 { (1, PRESENT) } else { (len, 0) };
    exthdr(elem, header, (offset, len), [(DREG, VALUE), (FLAGS, flags)])
}

/// `NFTA_EXTHDR_OP` and the one that is not zero.
const EXTHDR_OP: u16 = 6;
const TCP_OPTION: u32 = 1;

/// NFTA_EXTHDR_TYPE is one byte, the others are numbers.
fn exthdr<P: Pusher>(mut elem: P, kind: u8, (offset, len): (u32, u32), rest: [(u16, u32); 2]) -> P {
    const TYPE: u16 = 2;
    const OFFSET: u16 = 3;
    const LEN: u16 = 4;
    let buffer = elem.as_vec_mut();
    let at = push_nested_header(buffer, EXPR_DATA);
    push_header(buffer, TYPE, 1);
    buffer.extend([kind, 0, 0, 0]);
    for (kind, number) in [(OFFSET, offset), (LEN, len)].into_iter().chain(rest) {
        push_header(buffer, kind, 4);
        buffer.extend(number.to_be_bytes());
    }
    finalize_nested_header(buffer, at);
    elem
}
