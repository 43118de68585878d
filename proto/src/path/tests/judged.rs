//! What is remembered of the packet before.

use super::*;

impl Net {
    /// What becomes of a frame that comes behind others.
    fn follow(&self, judged: &mut Judged, from: u8, frame: &[u8]) -> InboundVerdict {
        judged.inbound(&self.table, &node(from), frame, Headers::parse(frame).as_ref(), &mut ())
    }
}

/// Packets of few flows, mostly each a little different from the one before.
fn any_train() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let step = (any::<prop::sample::Index>(), any::<u8>(), 0usize..4, any::<bool>());
    (any_frame(), prop::collection::vec((prop::option::weighted(0.2, any_frame()), step), 1..20))
        .prop_map(|(first, steps)| {
            let mut train = vec![first.clone()];
            let mut last = first;
            for (other, (at, value, longer, keep)) in steps {
                let base = other.unwrap_or_else(|| last.clone());
                let mut frame = [base.as_slice(), &[0; 4][..longer]].concat();
                if let (Some(byte), false) = (frame.len().checked_sub(1), keep) {
                    frame[at.index(byte + 1)] = value;
                }
                train.push(frame);
                last = base;
            }
            train
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_remembered_of_a_packet_changes_no_verdict(train in any_train(), from in 0u8..4) {
        let net = Net::new();
        let mut judged = Judged::default();
        for frame in train {
            let verdict = net.follow(&mut judged, from, &frame);
            prop_assert_eq!(verdict, net.inbound(from, &frame), "{:02x?}", frame);
        }
    }
}

/// Each byte of a packet changed after the packet itself was delivered.
#[test]
fn every_changed_byte_is_judged_as_if_it_came_first() {
    let net = Net::new();
    let to = mac(LOCAL);
    for frame in [udp4(REMOTE, to, v4(REMOTE)), udp6(REMOTE, to, v6(REMOTE), (1, 2))] {
        for at in 0..frame.len() {
            for value in 0..=u8::MAX {
                let mut judged = Judged::default();
                assert_eq!(net.follow(&mut judged, 1, &frame), InboundVerdict::Deliver);
                let mut changed = frame.clone();
                changed[at] = value;
                let verdict = net.follow(&mut judged, 1, &changed);
                assert_eq!(verdict, net.inbound(1, &changed), "byte {at} = {value}");
            }
        }
        let mut judged = Judged::default();
        assert_eq!(net.follow(&mut judged, 1, &frame), InboundVerdict::Deliver);
        for len in 0..frame.len() + 2000 {
            let mut cut = frame.clone();
            cut.resize(len, 0);
            assert_eq!(net.follow(&mut judged, 1, &cut), net.inbound(1, &cut), "{len}");
        }
    }
}
