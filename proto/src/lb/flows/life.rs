//! How far a flow has come: [`Life`], one word that changes by compare-and-exchange alone.
//!
//! ```text
//! seconds 32 | generation 24 | 0 | backend's FIN 1 | client's FIN 1 | TCP 1 | state 4
//!
//! TCP : HalfOpen -SYN,ACK-> Answered -client's ACK-> Established -FIN-> Closing -FIN-> Closed
//!       any -RST-> Closed
//! UDP : HalfOpen -answer-> Established
//! ```
//!
//! Whether a segment is within its window is not looked at: what is not is passed on, and the ends
//! judge it. So an RST that the other end does not believe closes a flow here that goes on; it is
//! kept as long as it is used, if nobody needs its room.

use std::time::Duration;

use crate::frame::Ip;
use crate::wire::{Fragment, TCP, UDP};

/// A connection that is not yet there: longer than the longest pause between two SYNs of Linux.
const HALF_OPEN: Duration = Duration::from_secs(75);
/// An idle one: longer than the two hours after which keepalive asks (RFC 1122 section 4.2.3.6).
const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 15 * 60);
/// One of which one end has closed its half (RFC 5382, REQ-5: transitory).
const CLOSING: Duration = Duration::from_secs(4 * 60);
/// One that ended: for what is still on its way.
const CLOSED: Duration = Duration::from_secs(15);
/// Datagrams (RFC 4787, REQ-5).
const DATAGRAMS: Duration = Duration::from_secs(3 * 60);

const IS_TCP: u64 = 1 << 4;
const CLIENT_FIN: u64 = 1 << 5;
const BACKEND_FIN: u64 = 1 << 6;
const STATE: u64 = 0xf;
const GENERATION_AT: u32 = 8;
const GENERATION: u64 = 0xff_ffff;
const SECONDS_AT: u32 = 32;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Who sent a packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Who opened it.
    Client,
    /// Who answers.
    Backend,
}

/// What a packet means to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It opens a connection.
    Syn,
    /// It accepts one.
    SynAck,
    /// Its sender has nothing more to say.
    Fin,
    /// There is no such connection.
    Rst,
    /// Any other segment.
    Segment,
    /// A datagram.
    Datagram,
}

impl Sign {
    /// What the packet means; nothing if it is neither TCP nor UDP, has no ports, or is cut off.
    #[must_use]
    pub fn of(ip: &Ip, frame: &[u8]) -> Option<Self> {
        match ip.protocol {
            UDP if ip.fragment != Fragment::Later => Some(Self::Datagram),
            TCP if ip.fragment != Fragment::Later => {
                let flags = *ip.upper(frame).payload.get(13)?;
                Some(match flags {
                    _ if flags & RST != 0 => Self::Rst,
                    _ if flags & (SYN | ACK) == SYN => Self::Syn,
                    _ if flags & SYN != 0 => Self::SynAck,
                    _ if flags & FIN != 0 => Self::Fin,
                    _ => Self::Segment,
                })
            }
            _ => None,
        }
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The client spoke, nobody answered.
    HalfOpen,
    /// The backend accepts; the client has not shown that it hears it.
    Answered,
    /// Both speak. Nobody takes its place.
    Established,
    /// One end has nothing more to say.
    Closing,
    /// It ended. Whoever needs its place takes it.
    Closed,
}

impl State {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// What the low bits of a word say.
const FREE: u64 = 0;
/// Somebody writes the entry: nobody else may read it.
const TAKEN: u64 = 1;
const STATES: [State; 5] =
    [State::HalfOpen, State::Answered, State::Established, State::Closing, State::Closed];

/// One entry's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Life(pub(super) u64);

impl Life {
    /// That of a flow that begins, in an entry that was taken.
    pub(super) const fn begin(self, is_tcp: bool, second: u32) -> Self {
        let kind = if is_tcp { IS_TCP } else { 0 };
        self.with(Some(State::HalfOpen), kind, second)
    }

    /// That of the entry while its owner writes it. Another generation: who looked at it before
    /// sees that it is not the same any more.
    pub(super) const fn taken(self) -> Self {
        let generation = (self.0 >> GENERATION_AT).wrapping_add(1) & GENERATION;
        Self(generation << GENERATION_AT | TAKEN)
    }

    /// That of an entry in which nothing is.
    pub(super) const fn free(self) -> Self {
        Self(self.0 & GENERATION << GENERATION_AT | FREE)
    }

    pub(super) const fn generation(self) -> u64 {
        self.0 >> GENERATION_AT & GENERATION
    }

    pub(super) const fn is_taken(self) -> bool {
        self.0 & STATE == TAKEN
    }

    /// How far the flow is; nothing if there is none.
    pub(super) fn state(self) -> Option<State> {
        let at = usize::try_from((self.0 & STATE).checked_sub(TAKEN + 1)?).ok()?;
        STATES.get(at).copied()
    }

    const fn is_tcp(self) -> bool {
        self.0 & IS_TCP != 0
    }

    pub(super) const fn second(self) -> u32 {
        (self.0 >> SECONDS_AT) as u32
    }

    const fn with(self, state: Option<State>, flags: u64, second: u32) -> Self {
        let state = match state {
            None => TAKEN,
            Some(state) => state as u64 + TAKEN + 1,
        };
        let generation = self.0 & GENERATION << GENERATION_AT;
        Self((second as u64) << SECONDS_AT | generation | flags | state)
    }

    /// After a packet.
    pub(super) fn after(self, sender: Sender, sign: Sign, second: u32) -> Self {
        let Some(state) = self.state() else { return self };
        let mut flags = self.0 & (IS_TCP | CLIENT_FIN | BACKEND_FIN);
        if sign == Sign::Fin && state >= State::Answered {
            flags |= match sender {
                Sender::Client => CLIENT_FIN,
                Sender::Backend => BACKEND_FIN,
            };
        }
        let fins = flags & (CLIENT_FIN | BACKEND_FIN);
        let state = match (state, sender, sign) {
            (_, _, Sign::Rst) | (State::Closed, _, _) => State::Closed,
            _ if fins == CLIENT_FIN | BACKEND_FIN => State::Closed,
            _ if fins != 0 => State::Closing,
            (State::HalfOpen, Sender::Backend, Sign::SynAck) => State::Answered,
            (State::HalfOpen, Sender::Backend, Sign::Datagram) => State::Established,
            (State::Answered, Sender::Client, Sign::Segment) => State::Established,
            (state, ..) => state,
        };
        // Two threads may see a second's change in either order.
        self.with(Some(state), flags, second.max(self.second()))
    }

    /// Whether nobody may need it any more: it was not used for as long as its state is kept.
    pub(super) fn is_over(self, second: u32) -> bool {
        let Some(state) = self.state() else { return false };
        let kept = match state {
            State::Closed => CLOSED,
            _ if !self.is_tcp() => DATAGRAMS,
            State::HalfOpen | State::Answered => HALF_OPEN,
            State::Established => ESTABLISHED,
            State::Closing => CLOSING,
        };
        u64::from(second.saturating_sub(self.second())) >= kept.as_secs()
    }

    /// Whether it counts as half-open.
    pub(super) fn is_half_open(self) -> bool {
        matches!(self.state(), Some(State::HalfOpen | State::Answered))
    }

    /// Whether it counts towards limits.
    pub(super) fn is_open(self) -> bool {
        self.state().is_some_and(|state| state != State::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Sender::{Backend, Client};

    fn run(is_tcp: bool, packets: &[(Sender, Sign)]) -> State {
        let begun = Life::default().taken().begin(is_tcp, 0);
        let end = packets.iter().fold(begun, |life, (sender, sign)| life.after(*sender, *sign, 0));
        assert_eq!(end.generation(), begun.generation());
        end.state().unwrap()
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        let (syn, answer, ack) =
            ((Client, Sign::Syn), (Backend, Sign::SynAck), (Client, Sign::Segment));
        let (fin, fin_back) = ((Client, Sign::Fin), (Backend, Sign::Fin));
        for (packets, state) in [
            (&[syn][..], State::HalfOpen),
            (&[syn, syn, (Backend, Sign::Segment)], State::HalfOpen),
            (&[syn, answer], State::Answered),
            (&[syn, answer, answer, syn], State::Answered),
            (&[syn, answer, ack], State::Established),
            (&[syn, answer, ack, fin], State::Closing),
            (&[syn, answer, ack, fin, fin], State::Closing),
            (&[syn, answer, ack, fin, (Backend, Sign::Segment)], State::Closing),
            (&[syn, answer, ack, fin, fin_back], State::Closed),
            (&[syn, answer, ack, fin_back, fin, ack], State::Closed),
            (&[syn, answer, fin], State::Closing),
            (&[syn, (Backend, Sign::Rst)], State::Closed),
            (&[syn, answer, ack, (Client, Sign::Rst), ack], State::Closed),
        ] {
            assert_eq!(run(true, packets), state, "{packets:?}");
        }
        let (ask, reply) = ((Client, Sign::Datagram), (Backend, Sign::Datagram));
        assert_eq!(run(false, &[ask, ask]), State::HalfOpen);
        assert_eq!(run(false, &[ask, reply, ask]), State::Established);
    }

    #[test]
    fn each_state_is_kept_for_its_time_after_the_last_packet() {
        let life = |is_tcp, packets: &[(Sender, Sign)]| {
            let begun = Life::default().taken().begin(is_tcp, 0);
            packets.iter().fold(begun, |life, (sender, sign)| life.after(*sender, *sign, 100))
        };
        let (syn, answer, ack) =
            ((Client, Sign::Syn), (Backend, Sign::SynAck), (Client, Sign::Segment));
        for (life, kept) in [
            (life(true, &[syn]), 75),
            (life(true, &[syn, answer, ack]), 8100),
            (life(true, &[syn, answer, ack, (Client, Sign::Fin)]), 240),
            (life(true, &[syn, (Backend, Sign::Rst)]), 15),
            (life(false, &[(Client, Sign::Datagram)]), 180),
            (life(false, &[(Backend, Sign::Datagram)]), 180),
        ] {
            assert!(!life.is_over(0) && !life.is_over(100 + kept - 1), "{life:?}");
            assert!(life.is_over(100 + kept) && life.is_over(u32::MAX), "{life:?}");
        }
        assert!(!Life::default().is_over(u32::MAX) && !Life::default().taken().is_over(u32::MAX));
    }

    #[test]
    fn an_entry_that_is_used_again_is_told_from_before() {
        let one = Life::default().taken();
        let two = one.begin(true, 5).taken();
        assert!(one.is_taken() && two.is_taken() && one != two);
        assert_eq!((one.generation(), two.generation(), two.second()), (1, 2, 0));
        assert_eq!(two.free().state(), None);
        assert!(!two.free().is_taken());
        assert_eq!(two.free().generation(), 2);
        let last = Life(GENERATION << GENERATION_AT);
        assert_eq!(last.taken().generation(), 0);
    }
}
