//! The Noise handshake between two nodes: `Noise_IKpsk2_25519_{AESGCM,ChaChaPoly}_BLAKE2s` (Noise
//! revision 34) by snow over ring's ciphers, with two rules of our own: a key agreement that gives
//! zero is refused, and the only random bytes are those that were handed in.
//!
//! ```text
//! <- s
//! -> e, es, s, ss      payload: TAI64N timestamp 12, boot id 8
//! <- e, ee, se, psk
//! prologue: "vxmesh-data/1" || mesh id 26 || suite u8 || psk epoch u16 le
//! ```
//!
//! It hands out the two transport keys and nothing else; snow's own transport takes no associated
//! data.

use std::fmt;

use ring::aead::{AES_256_GCM, Algorithm, CHACHA20_POLY1305};
use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::wire::{INIT_PAYLOAD, NOISE_1, NOISE_2};
use crate::{addr::NodeId, reason::DropReason};

/// Where random bytes come from.
pub trait Entropy: Send {
    /// Fills `out` with unpredictable bytes.
    ///
    /// # Errors
    /// If there are none; nothing of `out` is used then.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy>;
}

/// The host gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEntropy;

impl From<NoEntropy> for DropReason {
    fn from(NoEntropy: NoEntropy) -> Self {
        Self::NoEntropy
    }
}

/// Which AEAD two nodes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// AES-256-GCM: where both nodes have AES in hardware.
    AesGcm,
    /// ChaCha20-Poly1305: everywhere.
    ChaChaPoly,
}

impl Suite {
    /// The suite that the certified records of two nodes demand: whether each has AES in hardware.
    #[must_use]
    pub const fn of(aes: bool, peer_aes: bool) -> Self {
        if aes && peer_aes { Self::AesGcm } else { Self::ChaChaPoly }
    }

    /// The suite with this number on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::AesGcm),
            2 => Some(Self::ChaChaPoly),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::AesGcm => 1,
            Self::ChaChaPoly => 2,
        }
    }

    /// The name that `peer ls` shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-256-gcm",
            Self::ChaChaPoly => "chacha20-poly1305",
        }
    }

    const fn pattern(self) -> &'static str {
        match self {
            Self::AesGcm => "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
            Self::ChaChaPoly => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        }
    }

    pub(super) fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::AesGcm => &AES_256_GCM,
            Self::ChaChaPoly => &CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A secret that all members share, of one epoch.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Psk {
    /// Its number on the wire.
    pub epoch: u16,
    /// The secret.
    pub key: [u8; 32],
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Psk").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The X25519 public key of a private key (RFC 7748).
#[must_use]
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    let Some(mut dh) = DefaultResolver.resolve_dh(&DHChoice::Curve25519) else { return [0; 32] };
    dh.set(private);
    dh.pubkey().try_into().unwrap_or_default()
}

/// Whether a key agreement with this public key gives zero whatever the private key: a point of low
/// order.
pub(super) fn is_weak(public: &[u8; 32]) -> bool {
    let Some(mut dh) = DefaultResolver.resolve_dh(&DHChoice::Curve25519) else { return true };
    dh.set(&[0x55; 32]);
    let mut out = [0; 32];
    dh.dh(public, &mut out).is_err() || bool::from(out.ct_eq(&[0; 32]))
}

/// What both sides know before a handshake.
pub(super) struct Terms<'a> {
    pub(super) mesh: NodeId,
    pub(super) suite: Suite,
    pub(super) psk: &'a Psk,
    pub(super) static_private: &'a [u8; 32],
}

impl Terms<'_> {
    fn prologue(&self) -> Vec<u8> {
        let mut prologue = b"vxmesh-data/1".to_vec();
        prologue.extend(self.mesh.as_str().as_bytes());
        prologue.push(self.suite.number());
        prologue.extend(self.psk.epoch.to_le_bytes());
        prologue
    }

    fn build(
        &self,
        remote: Option<&[u8; 32]>,
        entropy: &mut dyn Entropy,
    ) -> Result<HandshakeState, DropReason> {
        let mut ephemeral = Zeroizing::new([0; 32]);
        entropy.fill(ephemeral.as_mut())?;
        let prologue = self.prologue();
        let params = self.suite.pattern().parse().map_err(reason)?;
        let builder = Builder::with_resolver(params, Box::new(Resolver::new(&ephemeral)))
            .local_private_key(self.static_private)
            .and_then(|builder| builder.psk(2, &self.psk.key))
            .and_then(|builder| builder.prologue(&prologue))
            .map_err(reason)?;
        match remote {
            Some(remote) => {
                builder.remote_public_key(remote).and_then(Builder::build_initiator).map_err(reason)
            }
            None => builder.build_responder().map_err(reason),
        }
    }
}

/// The two keys of a finished handshake.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct TransportKeys {
    pub(super) send: [u8; 32],
    pub(super) receive: [u8; 32],
}

/// A handshake that this node began and that waits for its response.
pub(super) struct Initiation(HandshakeState);

impl Initiation {
    pub(super) fn begin(
        terms: &Terms<'_>,
        remote: &[u8; 32],
        payload: &[u8; INIT_PAYLOAD],
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; NOISE_1]), DropReason> {
        let mut state = terms.build(Some(remote), entropy)?;
        let mut message = [0; NOISE_1];
        state.write_message(payload, &mut message).map_err(reason)?;
        Ok((Self(state), message))
    }

    /// A forged response leaves the state as it was, so that the genuine one still finds it.
    pub(super) fn finish(&mut self, message: &[u8; NOISE_2]) -> Result<TransportKeys, DropReason> {
        self.0.read_message(message, &mut []).map_err(reason)?;
        let (mut send, mut receive) = self.0.dangerously_get_raw_split();
        let keys = TransportKeys { send, receive };
        send.zeroize();
        receive.zeroize();
        Ok(keys)
    }
}

/// An initiation of another node that was opened: who it says it is, proven by key agreement.
pub(super) struct Opened {
    state: HandshakeState,
    pub(super) remote: [u8; 32],
    pub(super) payload: [u8; INIT_PAYLOAD],
}

impl Opened {
    pub(super) fn open(
        terms: &Terms<'_>,
        message: &[u8; NOISE_1],
        entropy: &mut dyn Entropy,
    ) -> Result<Self, DropReason> {
        let mut state = terms.build(None, entropy)?;
        let mut payload = [0; INIT_PAYLOAD];
        state.read_message(message, &mut payload).map_err(reason)?;
        let remote = state
            .get_remote_static()
            .and_then(|remote| remote.try_into().ok())
            .ok_or(DropReason::AuthFailed)?;
        Ok(Self { state, remote, payload })
    }

    pub(super) fn respond(mut self) -> Result<(TransportKeys, [u8; NOISE_2]), DropReason> {
        let mut message = [0; NOISE_2];
        self.state.write_message(&[], &mut message).map_err(reason)?;
        let (mut receive, mut send) = self.state.dangerously_get_raw_split();
        let keys = TransportKeys { send, receive };
        send.zeroize();
        receive.zeroize();
        Ok((keys, message))
    }
}

fn reason(error: snow::Error) -> DropReason {
    match error {
        snow::Error::Dh => DropReason::ZeroDh,
        snow::Error::Rng => DropReason::NoEntropy,
        _ => DropReason::AuthFailed,
    }
}

/// snow's primitives as this mesh wants them: ciphers by ring, BLAKE2s and X25519 by RustCrypto and
/// dalek, zero results refused, and one ephemeral key's worth of randomness.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Resolver {
    ephemeral: [u8; 32],
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// For one handshake, whose ephemeral private key is made of these random bytes.
    #[must_use]
    pub fn new(ephemeral: &[u8; 32]) -> Self {
        Self { ephemeral: *ephemeral }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneDraw(Some(Zeroizing::new(self.ephemeral)))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(NonZeroDh(DefaultResolver.resolve_dh(choice)?)))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// The bytes of one ephemeral key, once.
struct OneDraw(Option<Zeroizing<[u8; 32]>>);

impl Random for OneDraw {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        let bytes =
            self.0.take().filter(|bytes| bytes.len() == out.len()).ok_or(snow::Error::Rng)?;
        out.copy_from_slice(bytes.as_ref());
        Ok(())
    }
}

/// X25519 that refuses an all-zero result (RFC 7748 section 6.1), in constant time.
struct NonZeroDh(Box<dyn Dh>);

impl Dh for NonZeroDh {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn pub_len(&self) -> usize {
        self.0.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.0.priv_len()
    }

    fn set(&mut self, private: &[u8]) {
        self.0.set(private);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        self.0.generate(rng)
    }

    fn pubkey(&self) -> &[u8] {
        self.0.pubkey()
    }

    fn privkey(&self) -> &[u8] {
        self.0.privkey()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        self.0.dh(public, out)?;
        let shared = out.get(..self.0.dh_len()).ok_or(snow::Error::Dh)?;
        if bool::from(shared.ct_eq(&vec![0; shared.len()])) { Err(snow::Error::Dh) } else { Ok(()) }
    }
}
