//! Which steps a frame takes, and where it ends.

use super::*;
use crate::path::{
    Step::{self, *},
    watch::tests::Seen,
};

impl Net {
    fn seen_out(&self, frame: &mut Frame<'_>) -> (OutboundVerdict<'_, u32>, Seen) {
        let mut seen = Seen::default();
        let now = self.start + Duration::from_secs(86_400);
        (outbound(&self.table, frame, &mut Scratch::new(), now, &mut seen), seen)
    }

    fn seen_in(&self, from: u8, frame: &[u8]) -> (InboundVerdict, Seen) {
        let mut seen = Seen::default();
        (inbound(&self.table, &node(from), frame, &mut seen), seen)
    }
}

/// The first steps of a way, up to and with the last.
fn up_to(steps: &[Step], first: Step, last: Step) -> Vec<Step> {
    let at = |step| steps.iter().position(|other| *other == step).unwrap();
    steps[at(first)..=at(last)].to_vec()
}

/// Whether the steps are in the order of the way, each at most once.
fn in_order(way: &[Step], steps: &[Step]) -> bool {
    let at = |step: &Step| way.iter().position(|other| other == step);
    steps.iter().all(|step| at(step).is_some()) && steps.is_sorted_by(|a, b| at(a) < at(b))
}

#[test]
fn a_frame_takes_the_steps_out_up_to_where_it_ends() {
    use DropReason::{BadOffload, FdbUnknown, IpSpoofed, Runt, SourceUnknown, TooBig};
    let net = Net::new();
    let to = mac(REMOTE);
    let mut long = with_ethertype(0x88b5);
    long.resize(1390 + 15, 0);
    for (last, dropped, mut bytes) in [
        (Ethernet, Some(Runt), vec![0; 13]),
        (Source, Some(SourceUnknown), udp4(NOBODY, to, v4(LOCAL))),
        (Source, Some(IpSpoofed), udp4(LOCAL, to, v4(REMOTE))),
        (Neighbours, None, request(LOCAL, REMOTE)),
        (Mtu, Some(TooBig), long),
        (Destination, Some(FdbUnknown), udp4(LOCAL, mac(NOBODY), v4(LOCAL))),
        (Checksum, None, udp4(LOCAL, to, v4(LOCAL))),
    ] {
        let (_, seen) = net.seen_out(&mut Frame::plain(&mut bytes));
        let steps = up_to(Step::OUT, Ethernet, last);
        assert_eq!(seen, Seen { steps, dropped: dropped.into_iter().collect() });
    }
    // A checksum that would change the source address.
    let mut bytes = udp4(LOCAL, to, v4(LOCAL));
    let checksum = Some(PartialChecksum { start: 28, offset: 0 });
    let mut frame = Frame::new(&mut bytes, Offload { gso: None, checksum });
    let (_, seen) = net.seen_out(&mut frame);
    let steps = up_to(Step::OUT, Ethernet, Checksum);
    assert_eq!(seen, Seen { steps, dropped: vec![BadOffload] });
}

#[test]
fn a_frame_takes_the_steps_in_up_to_where_it_ends() {
    use DropReason::{IpSpoofed, NotAMember, NotLocal, Runt, SourceNotOwned, TooBig, VniUnknown};
    let net = Net::new();
    let good = udp4(REMOTE, mac(LOCAL), v4(REMOTE));
    let mut long = good.clone();
    long.resize(1390 + 15, 0);
    for (from, last, dropped, frame) in [
        (3, Peer, Some(NotAMember), good.clone()),
        (1, Ethernet, Some(Runt), vec![0; 13]),
        (2, Source, Some(SourceNotOwned), good.clone()),
        (1, Source, Some(IpSpoofed), udp4(REMOTE, mac(LOCAL), v4(OTHER))),
        (1, Mtu, Some(TooBig), long),
        (1, Destination, Some(NotLocal), udp4(REMOTE, mac(OTHER), v4(REMOTE))),
        (1, Destination, None, good.clone()),
    ] {
        let (_, seen) = net.seen_in(from, &frame);
        let steps = up_to(Step::IN, Peer, last);
        assert_eq!(seen, Seen { steps, dropped: dropped.into_iter().collect() });
    }
    let mut packet = [&vxlan::header(net.table.spec().vni)[..], &good].concat();
    let mut seen = Seen::default();
    let _known = inbound_vxlan(|_| Some(&net.table), &node(1), &mut packet, &mut seen);
    assert_eq!(seen, Seen { steps: up_to(Step::IN, Vxlan, Destination), dropped: vec![] });
    let mut seen = Seen::default();
    let _unknown = inbound_vxlan::<u32>(|_| None, &node(1), &mut packet, &mut seen);
    assert_eq!(seen, Seen { steps: vec![Vxlan], dropped: vec![VniUnknown] });
}

#[test]
fn a_frame_like_the_one_before_is_only_measured() {
    let net = Net::new();
    let frame = udp4(REMOTE, mac(LOCAL), v4(REMOTE));
    let headers = Headers::parse(&frame);
    let (mut judged, mut seen) = (Judged::default(), Seen::default());
    for _ in 0..2 {
        let verdict = judged.inbound(&net.table, &node(1), &frame, headers.as_ref(), &mut seen);
        assert_eq!(verdict, InboundVerdict::Deliver);
    }
    let steps = [up_to(Step::IN, Peer, Destination), vec![Mtu]].concat();
    assert_eq!(seen, Seen { steps, dropped: vec![] });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// I4: who looks on is told of each frame that is dropped, once and why, and of no other.
    #[test]
    fn i4_a_watcher_is_told_every_drop_once(mut frame in any_frame(), from in 0u8..4) {
        let net = Net::new();
        let (verdict, seen) = net.seen_in(from, &frame);
        let dropped = match verdict {
            InboundVerdict::Drop(reason) => vec![reason],
            InboundVerdict::Deliver => vec![],
        };
        prop_assert_eq!(&seen.dropped, &dropped);
        prop_assert!(in_order(Step::IN, &seen.steps), "{:?}", seen.steps);
        let (verdict, seen) = net.seen_out(&mut Frame::plain(&mut frame));
        let dropped = match verdict {
            OutboundVerdict::Drop(reason) => vec![reason],
            _ => vec![],
        };
        prop_assert_eq!(&seen.dropped, &dropped);
        prop_assert!(in_order(Step::OUT, &seen.steps), "{:?}", seen.steps);
    }
}
