//! The verdict on the packet before, for the packets of its flow that follow it: [`Judged`].
//!
//! A flow's packets differ in what no verdict depends on. So a packet of TCP or UDP that has the
//! addresses, of Ethernet and IP, and the ports of one that was delivered is delivered, too,
//! without another look into the tables. Its length is looked at.

use super::{
    Step, Watch,
    inbound::{self, InboundVerdict},
};
use crate::{
    addr::{MacAddr, NodeId},
    frame::{FlowKey, Headers},
    tables::NetworkTable,
    wire::ethernet,
};

/// What one snapshot said of the last packet from one node. It must not be kept for another
/// snapshot or another node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    last: Option<Delivered>,
}

/// The flow of a packet that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivered {
    source: MacAddr,
    destination: MacAddr,
    flow: FlowKey,
}

impl Judged {
    /// What [`inbound()`](super::inbound()) says of the frame, which has these headers. Of one that
    /// is remembered the watcher sees the step that is taken.
    pub fn inbound<P>(
        &mut self,
        table: &NetworkTable<P>,
        from: &NodeId,
        frame: &[u8],
        headers: Option<&Headers>,
        watch: &mut impl Watch,
    ) -> InboundVerdict {
        let flow = headers.and_then(Delivered::of);
        let known = flow.is_some() && flow == self.last;
        if known && frame.len() <= usize::from(table.spec().mtu) + ethernet::HEADER_LEN {
            watch.step(Step::Mtu, frame);
            return InboundVerdict::Deliver;
        }
        let verdict = inbound::judged(table, from, frame, headers, watch);
        if matches!(verdict, InboundVerdict::Deliver) && flow.is_some() {
            self.last = flow;
        }
        verdict
    }
}

impl Delivered {
    /// Nothing where a verdict may depend on more: only whole packets of TCP and UDP are
    /// remembered.
    fn of(headers: &Headers) -> Option<Self> {
        let flow = headers.flow();
        matches!(flow, FlowKey::Ip { ports: Some(_), .. }).then_some(Self {
            source: headers.source,
            destination: headers.destination,
            flow,
        })
    }
}
