//! A client that uses one port of its own for a VIP and, directly, for a backend of it. To the
//! backend both would look alike, so one of the two gets another port there:
//!
//! - The VIP came first: what begins a direct connection, or a datagram, gets it. That is a flow
//!   like those of services, whose VIP is the backend itself ([`Flow::is_direct`]).
//! - The direct connection came first, and nothing is known of it here: the backend answers the SYN
//!   to the VIP as a segment of the older connection (RFC 5961 section 4). The client would reset
//!   that, so it does not see the answer. Its next SYN has another port.
//!
//! Where datagrams were sent directly first, nothing tells the answers apart.

use super::{
    flows::{Flow, Found, Sender, Sign, State, Tuple},
    service::other_port,
    translate::{ATTEMPTS, Balancer, Packet},
};
use crate::{frame::Frame, reason::DropReason, wire::be16};

impl<P> Balancer<'_, P> {
    /// Gives a frame that goes directly to a backend another port, if a flow of the services has
    /// its ends.
    ///
    /// # Errors
    /// It goes nowhere.
    pub(crate) fn take_direct(&self, frame: &mut Frame<'_>) -> Result<(), DropReason> {
        let ip = frame.headers().and_then(|headers| headers.ip.as_ref());
        let port = ip.and_then(|ip| Some((ip.protocol, ip.ports?.1)));
        if !port.is_some_and(|(protocol, port)| self.services.has_backend_port(protocol, port)) {
            return Ok(());
        }
        let Some(packet) = Packet::of(self.network(), frame) else { return Ok(()) };
        let flows = self.services.flows();
        for _ in 0..ATTEMPTS {
            let Some(found) = flows.find(&packet.tuple) else {
                if self.begin_direct(&packet)? {
                    continue;
                }
                return Ok(());
            };
            if found.sender == Sender::Backend || !found.flow.is_direct() {
                return Ok(());
            }
            if packet.sign == Sign::Syn && found.state >= State::Closing {
                flows.remove(&found);
                continue;
            }
            let row = self.row_of(&found)?;
            if flows.note(&found, packet.sign, self.now).is_some() {
                return self.to_backend(&found, row, frame).map(|_way| ());
            }
        }
        Err(DropReason::FlowBusy)
    }

    /// Begins the flow of a packet that goes directly to a backend, if a flow of the services has
    /// its ends.
    pub(super) fn begin_direct(&self, packet: &Packet) -> Result<bool, DropReason> {
        let Tuple { source, destination, .. } = packet.tuple;
        if !matches!(packet.sign, Sign::Syn | Sign::Datagram) {
            return Ok(false);
        }
        let answers = Tuple { source: destination, destination: source, ..packet.tuple };
        let found = self.services.flows().find(&answers);
        let Some(found) = found.filter(|found| found.sender == Sender::Backend) else {
            return Ok(false);
        };
        self.insert(Flow {
            client: source,
            client_mac: packet.mac,
            vip: destination,
            seen_port: source.port(),
            is_relayed: false,
            ..found.flow
        })?;
        Ok(true)
    }

    /// Whether what a backend sent is of an older connection, which its flow looks like. The flow
    /// has another port then.
    ///
    /// # Errors
    /// It answers the flow's SYN.
    pub(super) fn is_of_another(
        &self,
        found: &Found,
        packet: &Packet,
        frame: &Frame<'_>,
    ) -> Result<bool, DropReason> {
        if found.state != State::HalfOpen || !matches!(packet.sign, Sign::Segment | Sign::Fin) {
            return Ok(false);
        }
        let flow = found.flow;
        if self.services.flows().remove(found) {
            let port = other_port(&flow.forward(), flow.backend, flow.seen_port.into());
            self.insert(Flow { seen_port: port, ..flow })?;
        }
        if is_bare(frame) { Err(DropReason::FlowClash) } else { Ok(true) }
    }
}

/// Whether a segment has no payload.
fn is_bare(frame: &Frame<'_>) -> bool {
    let ip = frame.headers().and_then(|headers| headers.ip);
    ip.is_some_and(|ip| {
        let tcp = ip.upper(frame.bytes()).payload;
        be16(tcp, 12).is_some_and(|word| usize::from(word >> 12) * 4 == tcp.len())
    })
}
