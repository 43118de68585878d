//! Several packets in one sealed payload (the `aggregate` flag of a data message):
//!
//! ```text
//! | length 2 | packet | length 2 | packet | ... | zeros or nothing
//! ```
//!
//! Lengths are little endian, as in the other headers of the data port. A packet is never empty: a
//! length of zero ends the list, and what follows only fills the datagram up to the length of those
//! beside it, so that all of them leave with one call.

use std::ops::Range;

use super::array;
use crate::session::wire::SEAL_OVERHEAD;

/// Bytes in front of each packet.
const PREFIX_LEN: usize = 2;
/// The longest list that is sent: whatever the way cannot carry, it carries this sealed, behind
/// IPv6 and UDP (RFC 8200 section 5).
pub const PAYLOAD_LEN: usize = 1280 - 48 - SEAL_OVERHEAD;
/// The longest packet that is put into one: four fit at least.
pub const PACKET_LEN: usize = PAYLOAD_LEN / 4 - PREFIX_LEN;

/// A packet is said to be longer than what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlong;

/// The packets of a payload that is being made. One alone lies there as a payload of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct List {
    packets: usize,
    len: usize,
}

impl List {
    /// How many packets there are.
    #[must_use]
    pub const fn packets(&self) -> usize {
        self.packets
    }

    /// Bytes of the payload.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no packet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Where the next packet is to be written, which has this length; nothing if it does not fit
    /// into the room for the payload.
    pub fn add<'r>(&mut self, room: &'r mut [u8], len: usize) -> Option<&'r mut [u8]> {
        let prefixes = match self.packets {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        let number = u16::try_from(len).ok().filter(|len| *len > 0)?;
        let end = self.len + prefixes * PREFIX_LEN + len;
        if end > room.len() {
            return None;
        }
        if self.packets == 1 {
            // The first is not alone any more.
            let first = u16::try_from(self.len).ok()?;
            room.copy_within(..self.len, PREFIX_LEN);
            *room.first_chunk_mut()? = first.to_le_bytes();
        }
        if self.packets > 0 {
            *room.get_mut(end - len - PREFIX_LEN..)?.first_chunk_mut()? = number.to_le_bytes();
        }
        self.packets += 1;
        self.len = end;
        room.get_mut(end - len..end)
    }

    /// Fills the room with zeros behind the packets.
    pub fn fill(&mut self, room: &mut [u8]) {
        room.get_mut(self.len..).unwrap_or_default().fill(0);
        self.len = room.len();
    }
}

/// Where the packet is whose length stands at `at`; nothing where the list ends.
///
/// # Errors
/// [`Overlong`]: the packet does not lie within.
pub fn packet(payload: &[u8], at: usize) -> Result<Option<Range<usize>>, Overlong> {
    let len = array(payload, at).map_or(0, |bytes| usize::from(u16::from_le_bytes(bytes)));
    let begin = at + PREFIX_LEN;
    match payload.get(begin..).map_or(0, <[u8]>::len) {
        _ if len == 0 => Ok(None),
        left if len <= left => Ok(Some(begin..begin + len)),
        _ => Err(Overlong),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(payload: &[u8]) -> Result<Vec<&[u8]>, Overlong> {
        let (mut packets, mut at) = (Vec::new(), 0);
        while let Some(range) = packet(payload, at)? {
            at = range.end;
            packets.push(&payload[range]);
        }
        Ok(packets)
    }

    #[test]
    fn what_ends_the_list_and_what_is_refused() {
        for (payload, packets) in [
            (&b""[..], Ok(vec![])),
            (b"\x01", Ok(vec![])),
            (b"\x00\x00garbage", Ok(vec![])),
            (b"\x01\x00a", Ok(vec![&b"a"[..]])),
            (b"\x01\x00a\x02\x00bc\x00\x00\x00\x00", Ok(vec![&b"a"[..], b"bc"])),
            (b"\x02\x00a", Err(Overlong)),
            (b"\x01\x00a\xff\xffbc", Err(Overlong)),
            (b"\x01\x00", Err(Overlong)),
        ] {
            assert_eq!(all(payload), packets, "{payload:?}");
        }
    }

    #[test]
    fn one_packet_stays_as_it_is_and_none_is_too_long() {
        let (mut list, mut room) = (List::default(), [0xee; 20]);
        list.add(&mut room, 6).unwrap().copy_from_slice(b"abcdef");
        assert_eq!((list.packets(), &room[..list.len()]), (1, &b"abcdef"[..]));
        assert!(list.add(&mut room, 11).is_none(), "6 and 11 and twice 2 are 21");
        assert!(list.add(&mut room, 0).is_none());
        assert_eq!((list.packets(), list.len()), (1, 6), "what does not fit changes nothing");
        list.add(&mut room, 10).unwrap().fill(b'z');
        assert_eq!(all(&room[..list.len()]), Ok(vec![&b"abcdef"[..], b"zzzzzzzzzz"]));
        assert!(list.add(&mut room, 1).is_none());
    }

    proptest! {
        #[test]
        fn packets_come_out_as_they_went_in(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 2..20),
            len in 0..2000usize,
            is_filled: bool,
        ) {
            let (mut list, mut room) = (List::default(), vec![0xee; len]);
            let mut taken = Vec::new();
            for packet in &packets {
                if let Some(place) = list.add(&mut room, packet.len()) {
                    place.copy_from_slice(packet);
                    taken.push(packet.as_slice());
                }
            }
            prop_assert_eq!(list.packets(), taken.len());
            if let [packet] = taken.as_slice() {
                prop_assert_eq!(&room[..list.len()], *packet);
            } else {
                if is_filled && !list.is_empty() {
                    list.fill(&mut room);
                }
                prop_assert_eq!(all(&room[..list.len()]).unwrap(), taken);
            }
        }

        #[test]
        fn whatever_comes_ends(payload: Vec<u8>) {
            let _packets = all(&payload);
        }
    }
}
