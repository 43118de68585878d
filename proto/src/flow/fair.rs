//! Frames of bulk flows that wait for their turn ([`Fair`]): each flow gets the same share of the
//! worker's time.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995) over flows, as in fq_codel (RFC 8290), where
//! a frame costs what it takes to carry it ([`cost`]). When too many wait, the flow loses one whose
//! frames would take the longest. A flood of small frames so loses its own, and a stream beside it
//! keeps half of the time.

use std::collections::VecDeque;

/// What each frame costs beside its bytes: to take and judge a small one takes as long as this many
/// bytes of a large one.
const PER_FRAME: usize = 2048;
/// What each packet costs that a frame is cut into: headers, checksums, a seal of its own.
const PER_PACKET: usize = 384;
/// What a flow may spend in a round: a large frame of packets of usual length.
const QUANTUM: usize = 96 * 1024;
/// Flows that are told apart. Two that share a place share a flow's time.
const FLOWS: usize = 64;

/// What it takes to carry a frame of so many bytes that stands for so many packets, in bytes of a
/// large one.
#[must_use]
pub const fn cost(len: usize, packets: usize) -> usize {
    len.saturating_add(PER_FRAME).saturating_add(packets.saturating_mul(PER_PACKET))
}

/// The frames of one network.
#[derive(Debug)]
pub struct Fair<T> {
    flows: Vec<Flow<T>>,
    /// Those with frames, in the order of their turns.
    active: VecDeque<usize>,
    count: usize,
}

#[derive(Debug)]
struct Flow<T> {
    frames: VecDeque<(usize, T)>,
    /// What all of them cost.
    cost: usize,
    deficit: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { flows: Vec::new(), active: VecDeque::new(), count: 0 }
    }
}

impl<T> Fair<T> {
    /// How many frames wait.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether frames of a flow wait, or of another with the same place.
    #[must_use]
    pub fn holds(&self, flow: u64) -> bool {
        self.flows.get(place(flow)).is_some_and(|flow| !flow.frames.is_empty())
    }

    /// Adds a frame of a flow behind the others of it.
    pub fn push(&mut self, flow: u64, cost: usize, frame: T) {
        if self.flows.is_empty() {
            // Most networks never have any.
            self.flows.resize_with(FLOWS, || Flow { frames: VecDeque::new(), cost: 0, deficit: 0 });
        }
        let at = place(flow);
        let Some(flow) = self.flows.get_mut(at) else { return };
        if flow.frames.is_empty() {
            self.active.push_back(at);
        }
        flow.frames.push_back((cost, frame));
        flow.cost += cost;
        self.count += 1;
    }

    /// Takes the next frame.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let at = *self.active.front()?;
            let flow = self.flows.get_mut(at)?;
            let (cost, _) = flow.frames.front()?;
            if *cost > flow.deficit {
                flow.deficit += QUANTUM;
                self.active.rotate_left(1);
                continue;
            }
            flow.deficit -= cost;
            return self.take(at, VecDeque::pop_front);
        }
    }

    /// Takes the newest frame of the flow whose frames cost most.
    pub fn shed(&mut self) -> Option<T> {
        let costs = self.active.iter().filter_map(|at| Some((self.flows.get(*at)?.cost, *at)));
        let (_, at) = costs.max()?;
        self.take(at, VecDeque::pop_back)
    }

    fn take(
        &mut self,
        at: usize,
        take: impl FnOnce(&mut VecDeque<(usize, T)>) -> Option<(usize, T)>,
    ) -> Option<T> {
        let flow = self.flows.get_mut(at)?;
        let (cost, frame) = take(&mut flow.frames)?;
        flow.cost -= cost;
        self.count -= 1;
        if flow.frames.is_empty() {
            flow.deficit = 0;
            self.active.retain(|other| *other != at);
        }
        Some(frame)
    }
}

fn place(flow: u64) -> usize {
    usize::try_from(flow % FLOWS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_of_small_frames_leaves_a_stream_its_half() {
        let mut fair = Fair::default();
        for _ in 0..1000 {
            fair.push(1, cost(106, 1), 106);
        }
        for _ in 0..8 {
            fair.push(2, cost(64_000, 45), 64_000);
        }
        let mut spent = HashMap::new();
        for _ in 0..300 {
            let len = fair.pop().unwrap();
            *spent.entry(len).or_insert(0) += cost(len, if len == 106 { 1 } else { 45 });
        }
        let (small, large) = (spent[&106], spent[&64_000]);
        assert!(small.abs_diff(large) < 2 * QUANTUM, "{small} and {large}");
        assert!(large > 300_000, "{large}");
    }

    #[test]
    fn who_has_most_sheds() {
        let mut fair = Fair::default();
        for number in 0..100 {
            fair.push(1, cost(64, 1), (1, number));
        }
        assert!(fair.holds(1) && !fair.holds(2));
        fair.push(2, cost(64_000, 45), (2, 0));
        assert_eq!(fair.shed(), Some((1, 99)), "the newest of the flood");
        for _ in 0..3 {
            fair.push(2, cost(64_000, 45), (2, 1));
        }
        assert_eq!(fair.shed(), Some((2, 1)), "four super-frames cost more than 99 small ones");
        assert_eq!(fair.count(), 102);
        let tiny = cost(64_000, 744);
        assert!(tiny > 3 * cost(64_000, 45), "tiny segments are not for nothing");
        while fair.shed().is_some() {}
        assert!(fair.is_empty() && fair.pop().is_none());
    }

    proptest! {
        #[test]
        fn each_flow_stays_in_order_and_nothing_is_lost(
            frames in prop::collection::vec((0..100u64, 0..5_000_000usize), 0..300),
        ) {
            let mut fair = Fair::default();
            for (number, (flow, len)) in frames.iter().enumerate() {
                fair.push(*flow, *len, (*flow, number));
            }
            let mut last = HashMap::new();
            for _ in 0..frames.len() {
                let (flow, number) = fair.pop().unwrap();
                prop_assert!(last.insert(flow, number).is_none_or(|before| before < number));
            }
            prop_assert!(fair.is_empty() && fair.pop().is_none());
            prop_assert_eq!(fair.count(), 0);
        }
    }
}
