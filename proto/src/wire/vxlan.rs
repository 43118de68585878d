//! The VXLAN header (RFC 7348 section 5), 8 bytes:
//!
//! ```text
//! flags 1 (R R R R I R R R) | reserved 3 | VNI 3 | reserved 1
//! ```
//!
//! The I flag must be set. Reserved bits are sent as zero and ignored on receipt, as the RFC asks,
//! so that extensions (GPE, group policy) of a foreign VTEP that are only hints do no harm.

use super::array;
use crate::addr::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The VNI is valid.
const FLAG_I: u8 = 0x08;

/// Why bytes are not VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotVxlan {
    /// Less than a header.
    Short,
    /// The I flag is not set.
    NoVni,
    /// The VNI is 0 or all ones, which no network has.
    BadVni,
}

/// The header of a frame of this network.
#[must_use]
pub fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.get().to_be_bytes();
    [FLAG_I, 0, 0, 0, a, b, c, 0]
}

/// Whose frame this is, and the frame.
///
/// # Errors
///
/// [`NotVxlan`] says what is wrong with the header.
pub fn decap(packet: &mut [u8]) -> Result<(Vni, &mut [u8]), NotVxlan> {
    let [flags, _, _, _, a, b, c, _] = array::<HEADER_LEN>(packet, 0).ok_or(NotVxlan::Short)?;
    if flags & FLAG_I == 0 {
        return Err(NotVxlan::NoVni);
    }
    let vni = Vni::new(u32::from_be_bytes([0, a, b, c])).ok_or(NotVxlan::BadVni)?;
    let frame = packet.get_mut(HEADER_LEN..).ok_or(NotVxlan::Short)?;
    Ok((vni, frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserved_bits_are_ignored_and_sent_as_zero() {
        let vni = Vni::new(0x00ab_cdef).unwrap();
        assert_eq!(header(vni), [0x08, 0, 0, 0, 0xab, 0xcd, 0xef, 0]);
        let mut noisy = [0xff, 1, 2, 3, 0xab, 0xcd, 0xef, 9, 42];
        assert_eq!(decap(&mut noisy), Ok((vni, &mut [42u8][..])));
    }

    #[test]
    fn bad_headers() {
        for (mut packet, why) in [
            (vec![0x08, 0, 0, 0, 0, 0, 1], NotVxlan::Short),
            (vec![], NotVxlan::Short),
            (vec![0xf7, 0, 0, 0, 0, 0, 1, 0], NotVxlan::NoVni),
            (vec![0x08, 0, 0, 0, 0, 0, 0, 0], NotVxlan::BadVni),
            (vec![0x08, 0, 0, 0, 0xff, 0xff, 0xff, 0], NotVxlan::BadVni),
        ] {
            assert_eq!(decap(&mut packet), Err(why));
        }
    }

    proptest! {
        #[test]
        fn round_trip(number in 1..=Vni::MAX.get(), frame: Vec<u8>) {
            let vni = Vni::new(number).unwrap();
            let mut packet = [&header(vni)[..], &frame].concat();
            let (read, rest) = decap(&mut packet).unwrap();
            prop_assert_eq!(read, vni);
            prop_assert_eq!(rest, &frame[..]);
        }
    }
}
