//! Congestion marks (ECN, RFC 3168) across the tunnel, in the normal mode of RFC 6040.
//!
//! ```text
//! out : the outer header gets the mark of the packet inside                     (section 4.1)
//! in  : outer     Not-ECT   ECT(0)    ECT(1)    CE                              (section 4.2)
//!       Not-ECT   Not-ECT   Not-ECT   Not-ECT   dropped
//!       ECT(0)    ECT(0)    ECT(0)    ECT(1)    CE
//!       ECT(1)    ECT(1)    ECT(1)    ECT(1)    CE
//!       CE        CE        CE        CE        CE
//! ```
//!
//! A packet that says CE outside and Not-ECT inside would have been dropped by the router that
//! marked it, if that had seen the packet inside; so it is dropped here. A frame that is no IP
//! packet (ARP) has no mark, and arrives whatever the outer header says.

use super::segments::put;
use crate::{
    reason::DropReason,
    wire::{array, be16, checksum::Sum, ethernet},
};

/// Where the bytes with version and class are: TOS in IPv4, the middle of the traffic class in
/// IPv6.
const IP: usize = ethernet::HEADER_LEN;
/// The checksum of an IPv4 header.
const CHECKSUM: usize = IP + 10;
/// How far the traffic class of IPv6 is shifted against TOS.
const CLASS_SHIFT: u32 = 4;

/// What a packet says of congestion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Its transport does not know of marks.
    #[default]
    NotEct,
    /// It does, and uses the other of the two values (RFC 9331: low latency).
    Ect1,
    /// It does.
    Ect0,
    /// A router on the way was congested.
    Ce,
}

impl Ecn {
    /// The mark in these low two bits of a TOS byte or a traffic class.
    #[must_use]
    pub const fn from_bits(class: u8) -> Self {
        match class & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The low two bits of a TOS byte or a traffic class.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// The mark of the packet in a frame. A frame without one has none either.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        Self::inside(frame).unwrap_or_default()
    }

    fn inside(frame: &[u8]) -> Option<Self> {
        let [_, class] = array(frame, IP)?;
        match be16(frame, 12)? {
            ethernet::IPV4 => Some(Self::from_bits(class)),
            ethernet::IPV6 => Some(Self::from_bits(class >> CLASS_SHIFT)),
            _ => None,
        }
    }
}

/// The mark that a packet has behind the tunnel; none if it is to be dropped.
#[must_use]
pub const fn combined(inner: Ecn, outer: Ecn) -> Option<Ecn> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::Ce, _) | (_, Ecn::Ce) => Some(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Some(Ecn::Ect1),
        (inner, _) => Some(inner),
    }
}

/// Gives a frame that came out of the tunnel the mark that it has now.
///
/// # Errors
/// It is to be dropped.
pub fn arrive(frame: &mut [u8], outer: Ecn) -> Result<(), DropReason> {
    if matches!(outer, Ecn::NotEct) {
        return Ok(());
    }
    let Some(inner) = Ecn::inside(frame) else { return Ok(()) };
    let mark = combined(inner, outer).ok_or(DropReason::CongestedNotEct)?;
    if mark != inner {
        set(frame, mark);
    }
    Ok(())
}

fn set(frame: &mut [u8], mark: Ecn) {
    let Some([version, class]) = array(frame, IP) else { return };
    if be16(frame, 12) == Some(ethernet::IPV6) {
        return put(frame, IP + 1, [class & !(3 << CLASS_SHIFT) | mark.bits() << CLASS_SHIFT]);
    }
    let Some(checksum) = be16(frame, CHECKSUM) else { return };
    let new = class & !3 | mark.bits();
    put(frame, IP + 1, [new]);
    // RFC 1624, equation 3: what was wrong before stays wrong.
    let word = |class| u16::from_be_bytes([version, class]);
    let sum = Sum::default().number(!checksum).without(word(class)).number(word(new));
    put(frame, CHECKSUM, sum.checksum());
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Header, Ipv6Header, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    fn v4(tos: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut ip = Ipv4Header::new(0, 64, 17.into(), [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        ip.dscp = (tos >> 2).try_into().unwrap();
        ip.ecn = (tos & 3).try_into().unwrap();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
        builder.udp(7, 9).write(&mut frame, b"payload").unwrap();
        frame
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        let ip = Ipv6Header {
            traffic_class: class,
            flow_label: 0xf_ffff.try_into().unwrap(),
            source: [1; 16],
            destination: [2; 16],
            hop_limit: 64,
            ..Default::default()
        };
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv6(ip, Default::default()));
        builder.udp(7, 9).write(&mut frame, b"payload").unwrap();
        frame
    }

    /// RFC 6040, figure 4, row by row.
    #[test]
    fn rfc_6040_figure_4() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        for (inner, row) in [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce); 4]),
        ] {
            for (outer, expected) in ALL.into_iter().zip(row) {
                assert_eq!(combined(inner, outer), expected, "{inner:?} in {outer:?}");
            }
        }
    }

    #[test]
    fn bits_are_those_of_rfc_3168() {
        assert_eq!(ALL.map(Ecn::bits), [0, 2, 1, 3]);
        assert!(ALL.into_iter().all(|ecn| Ecn::from_bits(0xfc | ecn.bits()) == ecn));
    }

    #[test]
    fn what_is_no_packet_arrives_whatever_is_outside() {
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&ethernet::ARP.to_be_bytes());
        let before = arp.clone();
        assert_eq!(Ecn::of(&arp), Ecn::NotEct);
        assert_eq!(arrive(&mut arp, Ecn::Ce), Ok(()));
        assert_eq!(arp, before);
        for len in 0..24 {
            let mut short = v4(2);
            short.truncate(len);
            // Nothing reads beyond it.
            let _fate = arrive(&mut short, Ecn::Ce);
        }
    }

    proptest! {
        /// The frame that arrives is the one that would have been sent with this mark, checksum
        /// included.
        #[test]
        fn only_the_mark_changes(class: u8, outer: u8) {
            let outer = Ecn::from_bits(outer);
            for build in [v4, v6] {
                let mut frame = build(class);
                prop_assert_eq!(Ecn::of(&frame), Ecn::from_bits(class));
                let before = frame.clone();
                match combined(Ecn::from_bits(class), outer) {
                    Some(mark) => {
                        prop_assert_eq!(arrive(&mut frame, outer), Ok(()));
                        prop_assert_eq!(frame, build(class & !3 | mark.bits()));
                    }
                    None => {
                        prop_assert_eq!(arrive(&mut frame, outer), Err(DropReason::CongestedNotEct));
                        prop_assert_eq!(frame, before);
                    }
                }
            }
        }
    }
}
