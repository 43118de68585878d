//! Networks that keep their endpoints from each other: what may cross the mesh there. One rule for
//! both directions, so that a sender that does not keep it gains nothing.
//!
//! - An endpoint sends to a node itself ([`Row::router`]) and to one of that node's addresses: a
//!   packet for another address would be carried on to an endpoint.
//! - A node itself sends with its own address as the source: it carries nothing from one of its
//!   endpoints to another.
//!
//! There are no services in such a network ([`NetworkTable::services`]; decision 40): what lets an
//! endpoint send to a backend's port must let the backend send from there, to whomever it likes.
//!
//! Gateway and local endpoints are not here: the bridge has them, and the kernel's rules keep them
//! apart there.

use crate::{
    frame::Headers,
    reason::DropReason,
    tables::{NetworkTable, Row},
};

/// Whether a frame of `row` may go to where it wants in the mesh.
pub(super) fn check<P>(
    table: &NetworkTable<P>,
    row: &Row<P>,
    headers: &Headers,
) -> Result<(), DropReason> {
    let allowed = !table.spec().isolated
        || if row.router {
            speaks_for_itself(table, row, headers)
        } else {
            asks_a_node(table, headers)
        };
    if allowed { Ok(()) } else { Err(DropReason::Isolated) }
}

/// Whether two endpoints may know each other's addresses.
pub(super) fn may_meet<P>(table: &NetworkTable<P>, one: &Row<P>, other: &Row<P>) -> bool {
    !table.spec().isolated || one.router || other.router
}

fn speaks_for_itself<P>(table: &NetworkTable<P>, row: &Row<P>, headers: &Headers) -> bool {
    headers.ip.is_none_or(|ip| ip.source.is_unspecified() || table.owns(row, ip.source))
}

fn asks_a_node<P>(table: &NetworkTable<P>, headers: &Headers) -> bool {
    let Some(node) = table.fdb(headers.destination).filter(|row| row.router) else { return false };
    headers.ip.is_none_or(|ip| table.owns(node, ip.destination))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use crate::{
        addr::MacAddr,
        frame::{Frame, PartialChecksum, vnet::Offload},
        path::{InboundVerdict, OutboundVerdict, Scratch, inbound, outbound},
        reason::DropReason,
        tables::{
            NetworkSpec, NetworkTable, Place, TableUpdate,
            tests::{mac, node, now, row, spec},
        },
        wire::{Arp, arp::Operation, checksum::Sum},
    };

    /// An endpoint and the node itself, here and there.
    const HERE: u8 = 10;
    const HERE_NODE: u8 = 20;
    const THERE: u8 = 11;
    const THERE_NODE: u8 = 21;

    fn table(isolated: bool) -> NetworkTable<u32> {
        let put = |owner: u8, n: u8, place| {
            let mut row = row(owner, n, place);
            row.router = n >= HERE_NODE;
            TableUpdate::Put(row)
        };
        let spec = NetworkSpec { isolated, ..spec() };
        NetworkTable::new(spec, 7, now()).apply([
            put(0, HERE, Place::Local),
            put(0, HERE_NODE, Place::Local),
            put(1, THERE, Place::Remote(1)),
            put(1, THERE_NODE, Place::Remote(1)),
            TableUpdate::PutMember(node(1), 1),
        ])
    }

    /// A datagram by a MAC to another MAC, and its addresses.
    fn udp(from: u8, to: MacAddr, source: u8, destination: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(from).0, to.0)
            .ipv4([10, 0, 0, source], [10, 0, 0, destination], 64)
            .udp(7, 7)
            .write(&mut frame, b"payload")
            .unwrap();
        frame
    }

    fn out(table: &NetworkTable<u32>, mut frame: Vec<u8>) -> OutboundVerdict<'_, u32> {
        outbound(table, &mut Frame::plain(&mut frame), &mut Scratch::new(), now(), &mut ())
    }

    #[test]
    fn what_crosses_the_mesh_comes_from_a_node_or_goes_to_one() {
        let (apart, open) = (table(true), table(false));
        let isolated = OutboundVerdict::Drop(DropReason::Isolated);
        let refused = InboundVerdict::Drop(DropReason::Isolated);
        for (what, allowed, (by, to, source, destination)) in [
            ("endpoint to endpoint", false, (HERE, mac(THERE), HERE, THERE)),
            ("endpoint to node", true, (HERE, mac(THERE_NODE), HERE, THERE_NODE)),
            ("by a node to an endpoint", false, (HERE, mac(THERE_NODE), HERE, THERE)),
            ("node to endpoint", true, (HERE_NODE, mac(THERE), HERE_NODE, THERE)),
            ("node to node", true, (HERE_NODE, mac(THERE_NODE), HERE_NODE, THERE_NODE)),
            ("carried by the node", false, (HERE_NODE, mac(THERE), HERE, THERE)),
        ] {
            let frame = udp(by, to, source, destination);
            let forward = OutboundVerdict::Forward(&1);
            assert_eq!(out(&open, frame.clone()), forward, "{what}");
            assert_eq!(out(&apart, frame), if allowed { forward } else { isolated }, "{what}");
            // The same from there, by a peer that sends what it should not.
            let there = |n: u8| if n == HERE || n == HERE_NODE { n + 1 } else { n - 1 };
            let mut to = to;
            to.0[5] = there(to.0[5]);
            let frame = udp(there(by), to, there(source), there(destination));
            assert_eq!(
                inbound(&open, &node(1), &frame, &mut ()),
                InboundVerdict::Deliver,
                "{what}"
            );
            let expected = if allowed { InboundVerdict::Deliver } else { refused };
            assert_eq!(inbound(&apart, &node(1), &frame, &mut ()), expected, "{what}");
        }
    }

    #[test]
    fn a_checksum_that_a_sandbox_puts_into_the_destination_leads_nowhere() {
        let apart = table(true);
        let mut frame = udp(HERE, mac(THERE_NODE), HERE, THERE_NODE);
        // The two bytes become those of the endpoint's address when they are completed.
        let filler = (0..=u16::MAX).find(|word| {
            frame[42..44].copy_from_slice(&word.to_be_bytes());
            Sum::default().bytes(&frame[32..]).checksum() == [0, THERE]
        });
        assert!(filler.is_some());
        let checksum = Some(PartialChecksum { start: 32, offset: 0 });
        let before = frame.clone();
        let mut leading = Frame::new(&mut frame, Offload { gso: None, checksum });
        let verdict = outbound(&apart, &mut leading, &mut Scratch::new(), now(), &mut ());
        assert_eq!(verdict, OutboundVerdict::Drop(DropReason::BadOffload));
        assert_eq!(frame, before);
    }

    #[test]
    fn an_endpoint_speaks_to_no_group_and_hears_of_nodes_only() {
        let apart = table(true);
        let all = MacAddr::BROADCAST;
        let isolated = OutboundVerdict::Drop(DropReason::Isolated);
        let refused = InboundVerdict::Drop(DropReason::Isolated);
        assert_eq!(out(&apart, udp(HERE, all, HERE, 255)), isolated);
        let alone = apart.apply([TableUpdate::RemoveMember(node(1))]);
        assert_eq!(out(&alone, udp(HERE, all, HERE, 255)), isolated, "whoever there is");
        assert!(matches!(
            out(&apart, udp(HERE_NODE, all, HERE_NODE, 255)),
            OutboundVerdict::Flood(_)
        ));
        assert_eq!(inbound(&apart, &node(1), &udp(THERE, all, THERE, 255), &mut ()), refused);
        let ask = |from: u8, target: u8| {
            let arp = Arp {
                operation: Operation::Request,
                sender_mac: mac(from),
                sender_ip: [10, 0, 0, from].into(),
                target_mac: all,
                target_ip: [10, 0, 0, target].into(),
            };
            arp.to_frame().to_vec()
        };
        assert_eq!(out(&apart, ask(HERE, THERE)), isolated);
        assert_eq!(out(&apart, ask(HERE, THERE_NODE)), OutboundVerdict::Hairpin);
        assert_eq!(out(&apart, ask(HERE_NODE, THERE)), OutboundVerdict::Hairpin);
    }
}
