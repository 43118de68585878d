//! Why a datagram or a frame was refused by the session layer: [`SessionDrop`]. Every refusal has exactly one of
//! these (I4); whoever refuses counts it.

use std::fmt;

use thiserror::Error;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why a datagram was not opened, or a frame not sealed.
        #[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum SessionDrop {
            $($(#[$doc])* $variant,)*
        }

        impl SessionDrop {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The reason as counters show it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// The datagram is too short, too long, or not of its type's length.
    BadLength = "bad_length",
    /// No message type that this side handles.
    BadType = "bad_type",
    /// A wire version that this side does not speak.
    BadVersion = "bad_version",
    /// The sender of a handshake message does not know whom it talks to.
    BadMac1 = "bad_mac1",
    /// A cookie that was never given.
    BadMac2 = "bad_mac2",
    /// A cookie reply although nothing was refused for want of one.
    UnsolicitedCookie = "unsolicited_cookie",
    /// No key has this receiver index.
    UnknownIndex = "unknown_index",
    /// The handshake is from a static key that belongs to no member.
    UnknownPeer = "unknown_peer",
    /// The mesh secret of this epoch is not, or no longer, known.
    UnknownEpoch = "unknown_epoch",
    /// The suite is not the one that the certified records of both nodes demand.
    BadSuite = "bad_suite",
    /// An initiation whose timestamp is not newer than the newest one of its sender.
    ReplayedHandshake = "replayed_handshake",
    /// More initiations of one peer than it has reason to send.
    HandshakeFlood = "handshake_flood",
    /// The AEAD tag is wrong.
    AuthFailed = "auth_failed",
    /// A key agreement gave zero: the other side sent a point of low order.
    ZeroDh = "zero_dh",
    /// The counter was accepted before, or lies behind the window.
    Replay = "replay",
    /// The key is too old or has carried too many packets.
    KeyExpired = "key_expired",
    /// The peer was removed.
    PeerRemoved = "peer_removed",
    /// Frames waited for a session that did not come, or too many of them did.
    NoSession = "no_session",
    /// The host gave no random bytes.
    NoEntropy = "no_entropy",
}

impl fmt::Display for SessionDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_snake_case() {
        let names: BTreeSet<_> = SessionDrop::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), SessionDrop::ALL.len());
        for name in names {
            assert!(
                name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'),
                "{name}"
            );
        }
    }
}
