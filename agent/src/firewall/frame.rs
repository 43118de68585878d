//! What rules say of frames that a bridge switches: Ethernet, ARP and what is behind the IP header,
//! beside [`super::rule`].
//!
//! A field that a frame is too short for, or whose header the kernel does not find, makes no
//! comparison true. So what must be there is compared, too ([`at_least`]).

use std::time::Duration;

use netlink_bindings::nftables::{MetaKeys, PayloadBase};
use vxmesh_proto::addr::MacAddr;

use super::rule::{Clause, Expr, SECOND, register};

/// `IFNAMSIZ` of linux/if.h.
const IFNAME_SIZE: usize = 16;
/// The fragment header of IPv6 (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;

/// Where something stands in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    base: u32,
    offset: u32,
    len: u32,
}

impl Field {
    /// Of the Ethernet header, in which a tag counts as part of the frame.
    #[must_use]
    pub const fn link(offset: u32, len: u32) -> Self {
        Self { base: PayloadBase::LinkLayerHeader as u32, offset, len }
    }

    /// Of what the Ethernet header says that follows.
    #[must_use]
    pub const fn network(offset: u32, len: u32) -> Self {
        Self { base: PayloadBase::NetworkHeader as u32, offset, len }
    }

    /// Of what the IP header and its extensions say that follows; a later fragment has none of
    /// that.
    #[must_use]
    pub const fn transport(offset: u32, len: u32) -> Self {
        Self { base: PayloadBase::TransportHeader as u32, offset, len }
    }

    /// Its bytes.
    pub(super) const fn width(self) -> usize {
        self.len as usize
    }

    const fn load(self) -> Expr {
        let Self { base, offset, len } = self;
        Expr::Payload { base, offset, len }
    }
}

/// The field has this value.
#[must_use]
pub fn is(field: Field, value: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::Equal(value.to_vec())])
}

/// The field is there and has another value.
#[must_use]
pub fn is_not(field: Field, value: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::Differs(value.to_vec())])
}

/// These bits of the field have this value.
#[must_use]
pub fn masked(field: Field, mask: &[u8], value: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::And(mask.to_vec()), Expr::Equal(value.to_vec())])
}

/// Some of these bits of the field are set.
#[must_use]
pub fn any_of(field: Field, bits: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::And(bits.to_vec()), Expr::Differs(vec![0; bits.len()])])
}

/// The field is there and as large as this.
#[must_use]
pub fn at_least(field: Field, value: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::AtLeast(value.to_vec())])
}

/// The field is there and no larger than this.
#[must_use]
pub fn at_most(field: Field, value: &[u8]) -> Clause {
    Clause(vec![field.load(), Expr::AtMost(value.to_vec())])
}

/// The value of the field is in the set.
#[must_use]
pub fn is_one_of(field: Field, set: &'static str) -> Clause {
    Clause(vec![field.load(), Expr::In { set, is: true }])
}

/// The field is there, and in the set there is no such value.
#[must_use]
pub fn is_none_of(field: Field, set: &'static str) -> Clause {
    Clause(vec![field.load(), Expr::In { set, is: false }])
}

/// The set has the value of the field from now on for this time.
#[must_use]
pub fn remember(field: Field, set: &'static str, time: Duration) -> Clause {
    Clause(vec![field.load(), kept(set, time)])
}

fn kept(set: &'static str, time: Duration) -> Expr {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Expr::Remember { set, milliseconds, counted: false }
}

/// What the IP header carries, and these fields behind it.
fn flow(fields: &[Field]) -> Vec<Expr> {
    let mut exprs = vec![Expr::Meta(MetaKeys::L4Proto as u32)];
    let mut words = 1;
    for Field { base, offset, len } in fields.iter().copied() {
        exprs.push(Expr::PayloadAt { register: register(words), base, offset, len });
        words += len.div_ceil(4);
    }
    exprs
}

/// What it carries and these fields are together in the set.
#[must_use]
pub fn flow_is_in(fields: &[Field], set: &'static str) -> Clause {
    Clause([flow(fields), vec![Expr::In { set, is: true }]].concat())
}

/// The set has what it carries and these fields from now on for this time. Where the set has no
/// room, the rule ends.
#[must_use]
pub fn remember_flow(fields: &[Field], set: &'static str, time: Duration) -> Clause {
    Clause([flow(fields), vec![kept(set, time)]].concat())
}

/// The set does not have them any more.
#[must_use]
pub fn forget_flow(fields: &[Field], set: &'static str) -> Clause {
    Clause([flow(fields), vec![Expr::Forget { set }]].concat())
}

/// The field gets this value. No checksum covers it.
#[must_use]
pub fn write(Field { base, offset, len }: Field, value: &[u8]) -> Clause {
    Clause(vec![Expr::Value(value.to_vec()), Expr::Write { base, offset, len }])
}

/// The interface by which the frame came, and this field, are together in the set.
#[must_use]
pub fn port_has(field: Field, set: &'static str) -> Clause {
    with_port(field, set, true)
}

/// The interface by which the frame came, and this field, are not together in the set.
#[must_use]
pub fn port_has_not(field: Field, set: &'static str) -> Clause {
    with_port(field, set, false)
}

fn with_port(Field { base, offset, len }: Field, set: &'static str, is: bool) -> Clause {
    Clause(vec![
        Expr::Meta(MetaKeys::Iifname as u32),
        Expr::PayloadAt { register: SECOND, base, offset, len },
        Expr::In { set, is },
    ])
}

/// A key of such a set: each part fills whole words.
#[must_use]
pub fn key(port: &str, field: &[u8]) -> Vec<u8> {
    let mut key = port.as_bytes().to_vec();
    key.resize(IFNAME_SIZE, 0);
    key.extend(field);
    key.resize(key.len().next_multiple_of(4), 0);
    key
}

/// The IP header is whole, and this is what it carries behind all extensions.
#[must_use]
pub fn carries(protocol: u8) -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::L4Proto as u32), Expr::Equal(vec![protocol])])
}

/// The IP header and its extensions are whole.
#[must_use]
pub fn is_whole() -> Clause {
    Clause(vec![Expr::Meta(MetaKeys::L4Proto as u32), Expr::AtLeast(vec![0])])
}

/// It is a fragment of an IPv6 packet, or is not.
#[must_use]
pub fn is_fragment(is: bool) -> Clause {
    let there = Expr::Extension { header: FRAGMENT, offset: 0, len: 0 };
    Clause(vec![there, Expr::Equal(vec![u8::from(is)])])
}

/// It is a fragment of an IPv6 packet other than the first.
#[must_use]
pub fn is_later_fragment() -> Clause {
    let offset = Expr::Extension { header: FRAGMENT, offset: 2, len: 2 };
    Clause(vec![offset, Expr::And(vec![0xff, 0xf8]), Expr::Differs(vec![0, 0])])
}

/// The destination of the frame.
pub const DESTINATION: Field = Field::link(0, 6);
/// Its source.
pub const SOURCE: Field = Field::link(6, 6);
/// Its type.
pub const TYPE: Field = Field::link(12, 2);

/// From this MAC.
#[must_use]
pub fn from_mac(mac: MacAddr) -> Clause {
    is(SOURCE, &mac.0)
}

/// From another MAC than this.
#[must_use]
pub fn from_mac_not(mac: MacAddr) -> Clause {
    is_not(SOURCE, &mac.0)
}
