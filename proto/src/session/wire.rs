//! The bytes of the data port: four message types, little endian, as `docs/protocol.md` lays them
//! out.
//!
//! ```text
//! init   : 1 | version | suite | psk epoch u16 | sender index u32 | Noise message 1 (116) | mac1 16 | mac2 16
//! resp   : 2 | version | sender index u32 | receiver index u32 | Noise message 2 (48) | mac1 16 | mac2 16
//! cookie : 3 | version | receiver index u32 | nonce 24 | sealed cookie 32
//! data   : 4 | version | flags u16 | receiver index u32 | counter u64 | sealed payload | tag 16
//! ```
//!
//! Parsing refuses wrong lengths and versions; it copies nothing and decides nothing else.

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{FixedOutput, KeyInit, Update, consts::U16},
};
use subtle::ConstantTimeEq;

use crate::reason::DropReason;

/// The version of everything on the data port.
pub const WIRE_VERSION: u8 = 1;
/// Length of a data message's header, all of which is authenticated.
pub const HEADER_LEN: usize = 16;
/// Length of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Bytes that sealing adds to a payload.
pub const SEAL_OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// Data flag: the payload is a list of TLVs between the agents; an empty one is a keepalive.
pub const FLAG_CONTROL: u16 = 1;
/// TLV (type u8, length u8, value): its sender asks for a keepalive, at once. It has no value.
pub const TLV_ECHO: u8 = 1;
/// Data flag: the payload is a list of packets ([`crate::wire::aggregate`]), not one.
pub const FLAG_AGGREGATE: u16 = 2;
/// Data flag: the frame is one of a flow that sends little, which may overtake others. A hint: a
/// receiver may ignore it.
pub const FLAG_SPARSE: u16 = 4;

const MAC_LEN: usize = 16;
const MACS_LEN: usize = 2 * MAC_LEN;
const INIT_HEADER: usize = 9;
const RESPONSE_HEADER: usize = 10;
/// Timestamp 12, boot id 8.
pub(super) const INIT_PAYLOAD: usize = 20;
/// Ephemeral key 32, static key 32 + 16, payload + 16.
pub(super) const NOISE_1: usize = 32 + 48 + INIT_PAYLOAD + TAG_LEN;
/// Ephemeral key 32, empty payload + 16.
pub(super) const NOISE_2: usize = 32 + TAG_LEN;
/// Length of an initiation.
pub const INIT_LEN: usize = INIT_HEADER + NOISE_1 + MACS_LEN;
/// Length of a response; smaller than what causes it, so nobody can be flooded with them.
pub const RESPONSE_LEN: usize = RESPONSE_HEADER + NOISE_2 + MACS_LEN;
/// Length of a cookie reply; smaller than both messages that may cause it.
pub const COOKIE_LEN: usize = 6 + 24 + 16 + TAG_LEN;

const _: () = assert!(RESPONSE_LEN <= INIT_LEN && COOKIE_LEN <= RESPONSE_LEN);

/// Whether a control payload asks for an answer. TLVs of other types are left out; after one that
/// is cut off there is nothing.
#[must_use]
pub fn asks_for_echo(mut payload: &[u8]) -> bool {
    while let [kind, len, rest @ ..] = payload
        && let Some(next) = rest.get(usize::from(*len)..)
    {
        if *kind == TLV_ECHO {
            return true;
        }
        payload = next;
    }
    false
}

/// What a datagram claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Type 1.
    Init,
    /// Type 2.
    Response,
    /// Type 3.
    Cookie,
    /// Type 4: for the workers.
    Data,
}

impl Kind {
    /// The first byte of the datagram.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Init => 1,
            Self::Response => 2,
            Self::Cookie => 3,
            Self::Data => 4,
        }
    }

    /// What `datagram` claims to be, after its type, version and length.
    ///
    /// # Errors
    /// Why it is none of ours.
    pub fn of(datagram: &[u8]) -> Result<Self, DropReason> {
        let (&[number, version], _) = datagram.split_first_chunk().ok_or(DropReason::BadLength)?;
        let (kind, fits) = match number {
            1 => (Self::Init, datagram.len() == INIT_LEN),
            2 => (Self::Response, datagram.len() == RESPONSE_LEN),
            3 => (Self::Cookie, datagram.len() == COOKIE_LEN),
            4 => (Self::Data, datagram.len() >= SEAL_OVERHEAD),
            _ => return Err(DropReason::BadType),
        };
        if version != WIRE_VERSION {
            return Err(DropReason::BadVersion);
        }
        if fits { Ok(kind) } else { Err(DropReason::BadLength) }
    }
}

/// The header of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// `FLAG_*`.
    pub flags: u16,
    /// Which key of the receiver.
    pub receiver: u32,
    /// Which packet under this key.
    pub counter: u64,
}

impl DataHeader {
    /// The header of a data message.
    ///
    /// # Errors
    /// If `datagram` is no data message.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        if Kind::of(datagram)? != Kind::Data {
            return Err(DropReason::BadType);
        }
        let mut rest = Reader(datagram.get(2..).unwrap_or_default());
        Ok(Self {
            flags: u16::from_le_bytes(*rest.take()?),
            receiver: u32::from_le_bytes(*rest.take()?),
            counter: u64::from_le_bytes(*rest.take()?),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [f0, f1] = self.flags.to_le_bytes();
        let [r0, r1, r2, r3] = self.receiver.to_le_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.to_le_bytes();
        let kind = Kind::Data.number();
        [kind, WIRE_VERSION, f0, f1, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// An initiation whose mac1 was right.
pub(super) struct Init<'a> {
    pub(super) suite: u8,
    pub(super) epoch: u16,
    pub(super) sender: u32,
    pub(super) noise: &'a [u8; NOISE_1],
}

impl<'a> Init<'a> {
    pub(super) fn parse(datagram: &'a [u8], own: &MacKey) -> Result<Self, DropReason> {
        let mut rest = Reader(own.check(datagram)?);
        rest.take::<2>()?;
        let [suite] = *rest.take()?;
        let epoch = u16::from_le_bytes(*rest.take()?);
        let sender = u32::from_le_bytes(*rest.take()?);
        Ok(Self { suite, epoch, sender, noise: rest.take()? })
    }

    pub(super) fn write(&self, peer: &MacKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(INIT_LEN);
        out.extend([Kind::Init.number(), WIRE_VERSION, self.suite]);
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.sender.to_le_bytes());
        out.extend(self.noise);
        peer.append(out)
    }
}

/// A response whose mac1 was right.
pub(super) struct Response<'a> {
    pub(super) sender: u32,
    pub(super) receiver: u32,
    pub(super) noise: &'a [u8; NOISE_2],
}

impl<'a> Response<'a> {
    pub(super) fn parse(datagram: &'a [u8], own: &MacKey) -> Result<Self, DropReason> {
        let mut rest = Reader(own.check(datagram)?);
        rest.take::<2>()?;
        let sender = u32::from_le_bytes(*rest.take()?);
        let receiver = u32::from_le_bytes(*rest.take()?);
        Ok(Self { sender, receiver, noise: rest.take()? })
    }

    pub(super) fn write(&self, peer: &MacKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(RESPONSE_LEN);
        out.extend([Kind::Response.number(), WIRE_VERSION]);
        out.extend(self.sender.to_le_bytes());
        out.extend(self.receiver.to_le_bytes());
        out.extend(self.noise);
        peer.append(out)
    }
}

/// Keys mac1 for messages to one node: BLAKE2s("mac1----" || its static public key). It shows that
/// the sender knows whom it talks to, so that strangers cost one hash and get no answer; it
/// authenticates nothing.
#[derive(Clone)]
pub(super) struct MacKey([u8; 32]);

impl MacKey {
    pub(super) fn of(static_public: &[u8; 32]) -> Self {
        Self(
            Blake2s256::new()
                .chain_update(b"mac1----")
                .chain_update(static_public)
                .finalize()
                .into(),
        )
    }

    fn mac1(&self, message: &[u8]) -> Result<[u8; MAC_LEN], DropReason> {
        let mac =
            Blake2sMac::<U16>::new_from_slice(&self.0).map_err(|_length| DropReason::BadMac1)?;
        Ok(mac.chain(message).finalize_fixed().into())
    }

    /// The message before its macs, if they are right.
    fn check<'a>(&self, datagram: &'a [u8]) -> Result<&'a [u8], DropReason> {
        let (rest, mac2) = datagram.split_last_chunk::<MAC_LEN>().ok_or(DropReason::BadLength)?;
        let (message, mac1) = rest.split_last_chunk::<MAC_LEN>().ok_or(DropReason::BadLength)?;
        if !bool::from(self.mac1(message)?.ct_eq(mac1)) {
            return Err(DropReason::BadMac1);
        }
        if *mac2 != [0; MAC_LEN] {
            return Err(DropReason::BadMac2);
        }
        Ok(message)
    }

    fn append(&self, mut message: Vec<u8>) -> Vec<u8> {
        // A mac of zeroes is refused by the other side; the key's length is constant, so it does
        // not come to that.
        let mac1 = self.mac1(&message).unwrap_or_default();
        message.extend(mac1);
        message.extend([0; MAC_LEN]);
        message
    }
}

/// Makes mac1 right again after a change.
#[cfg(test)]
pub(super) fn remac(message: &mut Vec<u8>, receiver_public: &[u8; 32]) {
    message.truncate(message.len() - MACS_LEN);
    *message = MacKey::of(receiver_public).append(std::mem::take(message));
}

/// Takes fixed-size fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], DropReason> {
        let (field, rest) = self.0.split_first_chunk().ok_or(DropReason::BadLength)?;
        self.0 = rest;
        Ok(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_those_of_the_document() {
        assert_eq!((INIT_LEN, RESPONSE_LEN, COOKIE_LEN, SEAL_OVERHEAD), (157, 90, 62, 32));
    }

    #[test]
    fn an_echo_is_found_behind_what_is_not_known() {
        for (payload, asks) in [
            (&[][..], false),
            (&[TLV_ECHO, 0], true),
            (&[TLV_ECHO, 1, 0], true),
            (&[9, 2, 1, 0, TLV_ECHO, 0], true),
            (&[9, 2, TLV_ECHO, 0], false),
            (&[9, 3, TLV_ECHO, 0], false),
            (&[TLV_ECHO], false),
            (&[TLV_ECHO, 1], false),
        ] {
            assert_eq!(asks_for_echo(payload), asks, "{payload:?}");
        }
    }

    #[test]
    fn kinds_and_their_lengths() {
        let message = |number: u8, version: u8, len: usize| {
            let mut bytes = vec![0; len];
            bytes[0] = number;
            bytes[1] = version;
            bytes
        };
        let cases = [
            (message(1, 1, INIT_LEN), Ok(Kind::Init)),
            (message(1, 1, INIT_LEN + 1), Err(DropReason::BadLength)),
            (message(2, 1, RESPONSE_LEN), Ok(Kind::Response)),
            (message(2, 1, RESPONSE_LEN - 1), Err(DropReason::BadLength)),
            (message(3, 1, COOKIE_LEN), Ok(Kind::Cookie)),
            (message(4, 1, SEAL_OVERHEAD), Ok(Kind::Data)),
            (message(4, 1, SEAL_OVERHEAD - 1), Err(DropReason::BadLength)),
            (message(4, 2, SEAL_OVERHEAD), Err(DropReason::BadVersion)),
            (message(0, 1, 100), Err(DropReason::BadType)),
            (message(5, 1, 100), Err(DropReason::BadType)),
            (vec![4], Err(DropReason::BadLength)),
            (vec![], Err(DropReason::BadLength)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Kind::of(&bytes), expected, "{:?}", bytes.get(..2));
        }
    }

    #[test]
    fn data_header_bytes() {
        let header =
            DataHeader { flags: 0x0201, receiver: 0x0605_0403, counter: 0x0e0d_0c0b_0a09_0807 };
        assert_eq!(header.to_bytes(), [4, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn macs_are_checked_first() {
        let key = MacKey::of(&[7; 32]);
        let init = Init { suite: 2, epoch: 0x1234, sender: 9, noise: &[3; NOISE_1] };
        let bytes = init.write(&key);
        assert_eq!(bytes.len(), INIT_LEN);
        let parsed = Init::parse(&bytes, &key).unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!((parsed.suite, parsed.epoch, parsed.sender), (2, 0x1234, 9));
        assert!(matches!(Init::parse(&bytes, &MacKey::of(&[8; 32])), Err(DropReason::BadMac1)));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let expected =
                if at < INIT_LEN - 16 { DropReason::BadMac1 } else { DropReason::BadMac2 };
            assert!(matches!(Init::parse(&bad, &key), Err(reason) if reason == expected), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = MacKey::of(&[7; 32]);
            if let Ok(header) = DataHeader::parse(&bytes) {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..HEADER_LEN]);
            }
            prop_assert!(Init::parse(&bytes, &key).is_err());
            prop_assert!(Response::parse(&bytes, &key).is_err());
        }
    }
}
