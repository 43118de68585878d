//! The Internet checksum (RFC 1071), fast over long payloads.
//!
//! Words are added as they lie in memory: the sum of swapped words is the swapped sum (section
//! 2.B), so nothing is swapped but the few numbers that do not come from a packet.

/// A one's complement sum under way. Every piece but the last has an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// With these bytes.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Independent lanes, which the compiler makes vectors of. None overflows below 16 GiB.
        let mut lanes = [0u64; 8];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (pairs, last) = rest.as_chunks::<2>();
        let mut sum: u64 = lanes.iter().sum();
        sum += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
        if let [odd] = last {
            sum += u64::from(u16::from_ne_bytes([*odd, 0]));
        }
        Self(fold_to_32(self.0) + fold_to_32(sum))
    }

    /// With a number of the host.
    #[must_use]
    pub fn number(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// With what another one has.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(fold_to_32(self.0) + fold_to_32(other.0))
    }

    /// Without a number that was added before.
    #[must_use]
    pub fn without(self, number: u16) -> Self {
        self.number(!number)
    }

    /// The folded sum as it stands in a packet.
    #[must_use]
    pub fn folded(self) -> [u8; 2] {
        let mut sum = fold_to_32(self.0);
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(u16::MAX).to_ne_bytes()
    }

    /// The checksum as it stands in a packet.
    #[must_use]
    pub fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// Whether the summed bytes, their checksum among them, are whole.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.folded() == [0xff; 2]
    }
}

fn fold_to_32(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use etherparse::checksum::Sum16BitWords;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_an_independent_sum(first in prop::collection::vec(any::<u8>(), 0..80), rest in prop::collection::vec(any::<u8>(), 0..3000), number: u16) {
            let even = &first[..first.len() & !1];
            let sum = Sum::default().bytes(even).number(number).bytes(&rest);
            let theirs = Sum16BitWords::new().add_slice(even).add_2bytes(number.to_be_bytes()).add_slice(&rest);
            prop_assert_eq!(sum.checksum(), theirs.ones_complement().to_ne_bytes());
            let less = sum.without(number).checksum();
            let without = Sum16BitWords::new().add_slice(even).add_slice(&rest).ones_complement().to_ne_bytes();
            // One's complement has two zeros.
            prop_assert!(less == without || (less == [0xff; 2] && without == [0; 2]) || (less == [0; 2] && without == [0xff; 2]));
        }
    }

    #[test]
    fn the_largest_packet_does_not_overflow() {
        let bytes = vec![0xff; 65_534];
        let sum = Sum::default().bytes(&bytes).bytes(&bytes).number(0xffff);
        assert_eq!(sum.folded(), [0xff, 0xff]);
        assert!(Sum::default().bytes(&[0x12, 0x34]).bytes(&[0xed, 0xcb]).is_valid());
    }
}
