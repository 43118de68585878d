//! Frames back to the client of a flow: answers of backends, and ICMP errors either way.

use super::{
    flows::{Flow, Found, Sender},
    service_mac,
    translate::{Balancer, Packet, Way, answered, fragmented},
};
use crate::{
    frame::{Frame, Quoted, Rewrite},
    reason::DropReason,
    tables::Place,
};

impl<P> Balancer<'_, P> {
    /// Gives a frame that came out of the mesh, if it is the answer of a backend, its VIP as the
    /// source. One of a client outside of the network is made ready for its backend here.
    ///
    /// # Errors
    /// It is one, and is malformed, or goes nowhere.
    pub(crate) fn answer(&self, frame: &mut Frame<'_>) -> Result<(), DropReason> {
        if self.relay(frame)? {
            return Ok(());
        }
        let flows = self.services.flows();
        let found = if let Some(packet) = Packet::of(self.network(), frame) {
            let found = flows.find(&packet.tuple).filter(|found| found.sender == Sender::Backend);
            let Some(found) = found else { return Ok(()) };
            self.observe(&found, packet.sign);
            if self.is_of_another(&found, &packet, frame)? {
                return Ok(());
            }
            // One that was forgotten at this moment: its answer must not show the backend all the
            // same.
            let _state = self.note(&found, packet.sign);
            self.remember(&packet, &found);
            found
        } else if let Some(of) = fragmented(self.network(), frame) {
            let found = flows.find_fragmented(&of, self.now);
            let Some(found) = found.filter(|it| it.sender == Sender::Backend) else {
                return Ok(());
            };
            found
        } else {
            return self.answer_error(frame);
        };
        frame.rewrite(&self.answer_rewrite(&found.flow))?;
        self.count(&found, frame);
        Ok(())
    }

    /// The same for an ICMP error about a packet to a backend, as it was when it had been
    /// rewritten.
    fn answer_error(&self, frame: &mut Frame<'_>) -> Result<(), DropReason> {
        let Some(quoted) = Quoted::of(frame) else { return Ok(()) };
        let found = self.services.flows().find(&answered(self.network(), &quoted));
        let Some(found) = found.filter(|found| found.sender == Sender::Backend) else {
            return Ok(());
        };
        self.observe_error(&found, &quoted);
        let (outer, inner) = self.error_rewrites(&found.flow, frame);
        frame.rewrite_error(&quoted, &outer, &inner)
    }

    /// An error that a local endpoint sent: a client about an answer, which had the VIP as its
    /// source, or a local backend.
    pub(super) fn take_error(
        &self,
        quoted: &Quoted,
        frame: &mut Frame<'_>,
    ) -> Result<Way, DropReason> {
        let Some(ip) = frame.headers().and_then(|headers| headers.ip) else {
            return Err(DropReason::MalformedIp);
        };
        let Some(found) = self.services.flows().find(&answered(self.network(), quoted)) else {
            if self.table.service_at(ip.destination).is_some() {
                return Err(DropReason::FlowUnknown);
            }
            return self.pass_on(ip.destination, frame);
        };
        let flow = &found.flow;
        if found.sender == Sender::Backend {
            self.observe_error(&found, quoted);
            let (outer, inner) = self.error_rewrites(flow, frame);
            let (way, to) = self.way_to_client(flow)?;
            let outer =
                Rewrite { source_mac: to.source_mac, destination_mac: to.destination_mac, ..outer };
            frame.rewrite_error(quoted, &outer, &inner)?;
            return Ok(way);
        }
        let row = self.row_of(&found)?;
        let (way, source_mac) = self.way_to(row);
        let is_clients = ip.source == flow.client.ip();
        let outer = Rewrite {
            source: (is_clients && flow.seen() != flow.client).then(|| flow.seen()),
            destination: Some(flow.backend),
            source_mac,
            destination_mac: Some(row.mac),
        };
        let inner = Rewrite {
            source: Some(flow.backend),
            destination: Some(flow.seen()),
            ..Rewrite::default()
        };
        frame.rewrite_error(quoted, &outer, &inner)?;
        Ok(way)
    }

    /// Makes the answer of a local backend one of the service, to its client.
    pub(super) fn to_client(
        &self,
        found: &Found,
        frame: &mut Frame<'_>,
    ) -> Result<Way, DropReason> {
        let (way, to) = self.way_to_client(&found.flow)?;
        frame.rewrite(&to)?;
        self.count(found, frame);
        Ok(way)
    }

    /// What makes an answer one of the service, or of a backend that was asked directly.
    fn answer_rewrite(&self, flow: &Flow) -> Rewrite {
        Rewrite {
            source: Some(flow.vip),
            destination: (flow.seen() != flow.client).then_some(flow.client),
            source_mac: (!flow.is_direct()).then(|| service_mac(self.network())),
            destination_mac: None,
        }
    }

    /// The same for one that was brought here from the local network, and where it goes.
    fn way_to_client(&self, flow: &Flow) -> Result<(Way, Rewrite), DropReason> {
        if flow.is_relayed {
            let destination_mac = Some(self.router_of(flow)?);
            return Ok((Way::Mesh, Rewrite { destination_mac, ..self.answer_rewrite(flow) }));
        }
        let row = self.table.fdb(flow.client_mac);
        if !row.is_some_and(|row| matches!(row.place, Place::Local)) {
            return Err(DropReason::NotLocal);
        }
        let to = Rewrite {
            source_mac: Some(service_mac(self.network())),
            destination_mac: Some(flow.client_mac),
            ..self.answer_rewrite(flow)
        };
        Ok((Way::Local, to))
    }

    /// What makes an error one about a packet to the service, around what it quotes and in it. It
    /// is the backend's, or that of a router on the way, which keeps its address.
    fn error_rewrites(&self, flow: &Flow, frame: &Frame<'_>) -> (Rewrite, Rewrite) {
        let sender = frame.headers().and_then(|headers| headers.ip).map(|ip| ip.source);
        let to = self.answer_rewrite(flow);
        let is_backends = sender == Some(flow.backend.ip());
        let outer = Rewrite {
            source: to.source.filter(|_| is_backends),
            source_mac: to.source_mac.filter(|_| is_backends),
            ..to
        };
        let inner = Rewrite {
            source: Some(flow.client),
            destination: Some(flow.vip),
            ..Rewrite::default()
        };
        (outer, inner)
    }
}
