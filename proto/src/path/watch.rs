//! The steps of a frame's way ([`Step`]), and who looks on while a frame takes them ([`Watch`]).
//!
//! The rules of `path` and the shell around them tell the watcher each step that a frame comes to,
//! and the reason if it goes no further. The watcher is a type parameter of every step: one that
//! does not look, like `()`, is compiled away.

use crate::reason::DropReason;

/// The steps of ARCHITECTURE.md, "Life of a frame". Those that both directions have are the same
/// rule; their order is that of [`Step::OUT`] and [`Step::IN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read from the TAP, with what the device says of its offloads.
    Read,
    /// Waits behind others of its flow, and for the turn of the flow.
    Wait,
    /// Opened: the bytes are those that the peer sealed. A plain network's come in clear.
    Open,
    /// Of a network that this host has.
    Vxlan,
    /// From a node that has a part in the network; in a plain network from one of its VTEPs.
    Peer,
    /// Whole, untagged, to no reserved group.
    Ethernet,
    /// What it says about its source is true.
    Source,
    /// A question about a remote endpoint is answered here.
    Neighbours,
    /// It fits the network.
    Mtu,
    /// To a service: it gets the backend of its flow as its destination. From a backend: it gets
    /// the VIP as its source.
    Services,
    /// Where it goes.
    Destination,
    /// Complete, and in one place with what was judged.
    Checksum,
    /// Cut into packets.
    Cut,
    /// Sealed for a peer; a plain network's leaves in clear.
    Seal,
    /// Put together with others of its flow and written to the TAP.
    Deliver,
}

impl Step {
    /// The way out, in order: a step's number is its place.
    pub const OUT: &[Self] = &[
        Self::Read,
        Self::Wait,
        Self::Ethernet,
        Self::Source,
        Self::Neighbours,
        Self::Mtu,
        Self::Services,
        Self::Destination,
        Self::Checksum,
        Self::Cut,
        Self::Seal,
    ];
    /// The way in.
    pub const IN: &[Self] = &[
        Self::Open,
        Self::Vxlan,
        Self::Peer,
        Self::Ethernet,
        Self::Source,
        Self::Mtu,
        Self::Destination,
        Self::Services,
        Self::Deliver,
    ];
}

/// Who looks on while frames go their way. What it does not ask for costs nothing.
pub trait Watch {
    /// A frame comes to this step.
    #[inline]
    fn step(&mut self, _step: Step, _frame: &[u8]) {}

    /// A frame goes no further than the step that it came to last.
    #[inline]
    fn drop(&mut self, _reason: DropReason, _frame: &[u8]) {}
}

/// Nobody.
impl Watch for () {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes down what it is told.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(in crate::path) struct Seen {
        pub(in crate::path) steps: Vec<Step>,
        pub(in crate::path) dropped: Vec<DropReason>,
    }

    impl Watch for Seen {
        fn step(&mut self, step: Step, _frame: &[u8]) {
            self.steps.push(step);
        }

        fn drop(&mut self, reason: DropReason, _frame: &[u8]) {
            self.dropped.push(reason);
        }
    }

    /// ARCHITECTURE.md numbers and names them as they are here.
    #[test]
    fn the_steps_are_those_of_the_architecture() {
        let text = include_str!("../../../ARCHITECTURE.md");
        let life = text.split("\n## ").find(|part| part.starts_with("Life of a frame")).unwrap();
        let (out, back) = life.split_once("\nIn. ").unwrap();
        for (steps, text) in [(Step::OUT, out), (Step::IN, back)] {
            let said: Vec<String> = text
                .lines()
                .filter_map(|line| line.split_once(". **"))
                .filter(|(number, _)| number.parse::<usize>().is_ok())
                .filter_map(|(number, rest)| Some(format!("{number} {}", rest.split_once("**")?.0)))
                .map(|line| line.to_lowercase())
                .collect();
            let here: Vec<String> = steps
                .iter()
                .enumerate()
                .map(|(at, step)| format!("{} {step:?}", at + 1).to_lowercase())
                .collect();
            assert_eq!(said, here);
        }
    }
}
