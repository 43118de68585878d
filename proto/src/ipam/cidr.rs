//! Address blocks as numbers: [`Cidr`]. IPv4 and IPv6 alike; the family is known from the context.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An aligned block of `2^bits` addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr {
    pub(super) first: u128,
    pub(super) bits: u8,
}

impl Cidr {
    /// The block of a network; nothing if it has host bits.
    pub(super) fn of(net: &IpNet) -> Option<Self> {
        let bits = net.max_prefix_len() - net.prefix_len();
        (net.addr() == net.network()).then(|| Self { first: number(net.addr()), bits })
    }

    pub(super) fn net(self, v6: bool) -> IpNet {
        let longest: u8 = if v6 { 128 } else { 32 };
        let ip = address(self.first, v6);
        // INVARIANT: `bits` came from a network of the same family, so the length fits.
        IpNet::new(ip, longest.saturating_sub(self.bits)).unwrap_or_else(|_| IpNet::from(ip))
    }

    pub(super) fn last(self) -> u128 {
        self.first | 1u128.checked_shl(self.bits.into()).unwrap_or(0).wrapping_sub(1)
    }

    pub(super) fn size(self) -> u128 {
        (self.last() - self.first).saturating_add(1)
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last() <= self.last()
    }

    /// What two blocks have in common: nothing, or the smaller one.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        if self.contains(other) { Some(other) } else { other.contains(self).then_some(self) }
    }

    /// What is left without these blocks, in order.
    pub(super) fn without(self, others: &[Self]) -> Vec<Self> {
        if others.iter().any(|other| other.contains(self)) {
            return Vec::new();
        }
        match self.halves().filter(|_| others.iter().any(|other| self.contains(*other))) {
            Some((low, high)) => [low.without(others), high.without(others)].concat(),
            None => vec![self],
        }
    }

    pub(super) fn halves(self) -> Option<(Self, Self)> {
        let bits = self.bits.checked_sub(1)?;
        Some((Self { first: self.first, bits }, Self { first: self.first | (1 << bits), bits }))
    }
}

pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

pub(super) fn address(number: u128, v6: bool) -> IpAddr {
    if v6 {
        return IpAddr::V6(Ipv6Addr::from(number));
    }
    // INVARIANT: numbers of the IPv4 family came from 32 bits.
    IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(0)))
}

/// The fewest blocks that cover exactly these addresses, in order.
pub(super) fn cover(first: u128, last: u128) -> Vec<Cidr> {
    let mut blocks = Vec::new();
    let mut at = first;
    while at <= last {
        // The largest block that is aligned here and does not reach beyond the end.
        let mut block = Cidr { first: at, bits: u8::try_from(at.trailing_zeros()).unwrap_or(128) };
        while block.last() > last {
            block.bits -= 1;
        }
        blocks.push(block);
        let Some(next) = block.last().checked_add(1) else { break };
        at = next;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(text: &str) -> Cidr {
        Cidr::of(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn edges_of_both_families() {
        for text in
            ["0.0.0.0/0", "255.255.255.255/32", "10.0.0.0/8", "::/0", "fd00::/64", "ffff::/16"]
        {
            let net: IpNet = text.parse().unwrap();
            let cidr = block(text);
            assert_eq!(cidr.net(net.max_prefix_len() == 128), net);
            assert_eq!(cidr.first, number(net.network()));
            assert_eq!(cidr.last(), number(net.broadcast()), "{text}");
        }
        assert_eq!(block("::/0").size(), u128::MAX, "2^128 does not fit and saturates");
        assert!(Cidr::of(&"10.0.0.1/24".parse().unwrap()).is_none());
        assert!(block("10.0.0.1/32").halves().is_none());
        let (low, high) = block("::/0").halves().unwrap();
        assert_eq!((low, high), (block("::/1"), block("8000::/1")));
        assert_eq!(cover(0, u128::MAX), [block("::/0")]);
    }

    #[test]
    fn what_is_left_of_a_block_without_others() {
        let whole = block("10.0.0.0/24");
        let without = |others: &[&str]| {
            let others: Vec<Cidr> = others.iter().map(|text| block(text)).collect();
            whole.without(&others)
        };
        assert_eq!(without(&["10.0.1.0/24", "fd00::/64"]), [whole]);
        assert_eq!(without(&["10.0.0.0/16"]), []);
        assert_eq!(without(&["10.0.0.0/25", "10.0.0.128/25"]), []);
        let left = ["10.0.0.0/25", "10.0.0.192/26"].map(block);
        assert_eq!(without(&["10.0.0.128/26"]), left);
        let first = without(&["10.0.0.0/32"]);
        assert_eq!(first, cover(whole.first + 1, whole.last()));
    }

    proptest! {
        #[test]
        fn cover_is_exact_and_aligned(a in 0u128..5000, b in 0u128..5000, base in any::<u64>()) {
            let base = u128::from(base) << 16;
            let (first, last) = (base + a.min(b), base + a.max(b));
            let mut at = first;
            let blocks = cover(first, last);
            for block in &blocks {
                prop_assert_eq!(block.first, at);
                prop_assert_eq!(block.first % block.size(), 0);
                at = block.last() + 1;
            }
            prop_assert_eq!(at, last + 1);
            prop_assert!(blocks.len() <= 26, "twice the bits of 5000 at most");
        }
    }
}
