//! From a payload in a buffer to a sealed datagram on the underlay.

use std::{sync::Arc, time::Instant};

use vxmesh_proto::session::{
    Peer, SessionDrop,
    wire::{HEADER_LEN, SEAL_OVERHEAD},
};

use super::{Shared, drops::DropKey, sessions::SessionInput};

/// Seals the payload that begins at [`HEADER_LEN`] and has `len` bytes, and sends it. Without a key the payload waits at
/// the peer and the session thread is asked for one. `buffer` has room for the tag.
pub(super) fn seal_and_send(
    shared: &Shared,
    peer: &Arc<Peer>,
    buffer: &mut [u8],
    len: usize,
    now: Instant,
) {
    if let Err(reason) = try_send(shared, peer, buffer, len, now) {
        shared
            .drops
            .add(DropKey { reason: reason.as_str(), network: None, peer: Some(peer.id()) }, 1);
    }
}

fn try_send(
    shared: &Shared,
    peer: &Arc<Peer>,
    buffer: &mut [u8],
    len: usize,
    now: Instant,
) -> Result<(), SessionDrop> {
    let Some(keypair) = peer.sender(now) else {
        let payload = buffer.get(HEADER_LEN..HEADER_LEN + len).unwrap_or_default();
        let staged = peer.stage(payload.to_vec());
        want(shared, peer);
        return staged;
    };
    let datagram = buffer.get_mut(..len + SEAL_OVERHEAD).ok_or(SessionDrop::BadLength)?;
    keypair.reserve(1)?.seal(0, datagram)?;
    let to = peer.addr().ok_or(SessionDrop::NoSession)?;
    // Noted first: an answer must not find that nothing was sent.
    peer.note_sent(now, u64::try_from(datagram.len()).unwrap_or(u64::MAX), true);
    shared.send(to, datagram, Some(peer.id()));
    if keypair.wants_rekey(now) {
        want(shared, peer);
    }
    Ok(())
}

/// Asks the session thread for a key, once until it has heard.
pub(super) fn want(shared: &Shared, peer: &Peer) {
    if peer.want() {
        shared.to_sessions(SessionInput::Wanted(peer.id()));
    }
}
