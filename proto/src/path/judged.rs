//! The verdict on the packet before, for the packets of its flow that follow it: [`Judged`].
//!
//! A flow's packets differ in what no verdict depends on. So a packet whose headers agree with
//! those of one that was delivered is delivered, too, without another look into the tables:
//!
//! ```text
//! equal    : Ethernet 14 | IPv4 version, header length, TOS; fragment bits, TTL, protocol; addresses | ports
//!            Ethernet 14 | IPv6 version, class, flow label; next header, hop limit; addresses        | ports
//! its own  : lengths, which are checked; identification and checksum, which nothing depends on
//! ```
//!
//! Only packets of TCP and UDP right behind an IP header without options or extensions are
//! remembered.

use super::{InboundVerdict, inbound};
use crate::{
    addr::NodeId,
    tables::NetworkTable,
    wire::{TCP, UDP, array, be16, ethernet, ipv4, ipv6},
};

/// Where the ports are.
const UPPER4: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;
const UPPER6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
/// All bytes that are looked at.
const HEAD4: usize = UPPER4 + 4;
const HEAD6: usize = UPPER6 + 4;

/// What one snapshot said of the last packet from one node. It must not be kept for another
/// snapshot or another node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    last: Option<Head>,
}

/// The headers of a packet that was delivered.
#[derive(Clone, Copy, Debug)]
enum Head {
    V4([u8; HEAD4]),
    V6([u8; HEAD6]),
}

impl Judged {
    /// What [`inbound()`] says of the frame.
    pub fn inbound<P>(
        &mut self,
        table: &NetworkTable<P>,
        from: &NodeId,
        frame: &[u8],
    ) -> InboundVerdict {
        let known = self.last.is_some_and(|last| last.is_of(frame));
        if known && frame.len() <= usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
            return InboundVerdict::Deliver;
        }
        let verdict = inbound(table, from, frame);
        if matches!(verdict, InboundVerdict::Deliver) {
            self.last = Head::of(frame);
        }
        verdict
    }
}

impl Head {
    fn of(frame: &[u8]) -> Option<Self> {
        match be16(frame, 12)? {
            ethernet::IPV4 => {
                let head: [u8; HEAD4] = array(frame, 0)?;
                let whole = head[14] == 0x45 && be16(&head, 20)? & 0x3fff == 0;
                (whole && matches!(head[23], TCP | UDP)).then_some(Self::V4(head))
            }
            ethernet::IPV6 => {
                let head: [u8; HEAD6] = array(frame, 0)?;
                matches!(head[20], TCP | UDP).then_some(Self::V6(head))
            }
            _ => None,
        }
    }

    /// Whether the frame is a whole packet of the same flow.
    fn is_of(&self, frame: &[u8]) -> bool {
        match self {
            Self::V4(last) => array::<HEAD4>(frame, 0).is_some_and(|head| {
                let end = ethernet::HEADER_LEN + length(&head, 16);
                let same = head[..16] == last[..16]
                    && head[20..24] == last[20..24]
                    && head[26..] == last[26..];
                same && (HEAD4..=frame.len()).contains(&end)
            }),
            Self::V6(last) => array::<HEAD6>(frame, 0).is_some_and(|head| {
                let end = UPPER6 + length(&head, 18);
                let same = head[..18] == last[..18] && head[20..] == last[20..];
                same && (HEAD6..=frame.len()).contains(&end)
            }),
        }
    }
}

fn length(head: &[u8], at: usize) -> usize {
    be16(head, at).map_or(0, usize::from)
}
