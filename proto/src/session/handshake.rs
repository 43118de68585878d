//! The handshake messages of [`Sessions`]: begin, answer, finish, and what a new key sets going.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    INIT_INTERVAL, REKEY_JITTER, REKEY_TIMEOUT,
    entry::Attempt,
    keypair::{Agreed, Keypair},
    noise::{Initiation, Opened, Suite, Terms, TransportKeys},
    sessions::{SessionEvent, Sessions},
    wire::{FLAG_CONTROL, HEADER_LEN, Init, Response, SEAL_OVERHEAD, TAG_LEN},
};
use crate::{addr::NodeId, reason::DropReason};

impl Sessions {
    /// Sends an initiation, in the place of one that is under way.
    pub(super) fn begin(&mut self, now: Instant, id: NodeId) {
        let Err(reason) = self.try_begin(now, id) else { return };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.hold_until = Some(now + REKEY_TIMEOUT);
        }
        self.report(SessionEvent::Failed { peer: id, reason });
    }

    fn try_begin(&mut self, now: Instant, id: NodeId) -> Result<(), DropReason> {
        self.abandon(id);
        let local = self.fresh_index()?;
        let retry_at = now + REKEY_TIMEOUT + self.jitter()?;
        let stamp = self.stamper.next(now);
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        let Some(to) = entry.peer.addr() else { return Ok(()) };
        let suite = Suite::of(self.config.aes, entry.config.aes);
        // The peer may not have heard of a new epoch yet: every other try uses the old one while it
        // is accepted.
        let psk = match &self.config.previous_psk {
            Some(previous) if entry.tries % 2 == 1 => previous,
            _ => &self.config.psk,
        };
        let terms = Terms {
            mesh: self.config.mesh,
            suite,
            psk,
            static_private: &self.config.static_private,
        };
        let mut payload = [0; 20];
        let (first, second) = payload.split_at_mut(stamp.len());
        first.copy_from_slice(&stamp);
        second.copy_from_slice(&self.config.boot_id);
        let (state, noise) =
            Initiation::begin(&terms, &entry.config.noise_public, &payload, self.entropy.as_mut())?;
        let init = Init { suite: suite.number(), epoch: psk.epoch, sender: local, noise: &noise };
        let bytes = init.write(&entry.mac);
        entry.tries = entry.tries.saturating_add(1);
        entry.hold_until = None;
        entry.attempt = Some(Attempt { state, suite, local, begun: now, retry_at });
        entry.peer.set_shaking(true);
        self.pending.insert(local, id);
        self.transmit(to, bytes);
        Ok(())
    }

    /// Forgets an initiation that is under way.
    pub(super) fn abandon(&mut self, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let attempt = entry.attempt.take().map(|attempt| attempt.local);
        for local in attempt.into_iter().chain(entry.overtaken.take()) {
            self.pending.remove(&local);
        }
        entry.peer.set_shaking(false);
    }

    /// Erases the keys of a peer and forgets its handshakes.
    pub(super) fn end_session(&mut self, id: NodeId) {
        self.abandon(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.close_keys(&self.table);
            entry.heard();
            entry.boot_id = None;
        }
    }

    /// Answers an initiation. Cheap checks first; a stranger costs two key agreements and leaves
    /// nothing behind.
    pub(super) fn handle_init(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let init = Init::parse(datagram, &self.mac)?;
        let suite = Suite::from_number(init.suite).ok_or(DropReason::BadSuite)?;
        let psk = self.config.psk(init.epoch).ok_or(DropReason::UnknownEpoch)?;
        let terms = Terms {
            mesh: self.config.mesh,
            suite,
            psk,
            static_private: &self.config.static_private,
        };
        let opened = Opened::open(&terms, init.noise, self.entropy.as_mut())?;
        let id = *self.by_static.get(&opened.remote).ok_or(DropReason::UnknownPeer)?;
        if let Err(reason) = self.admit_init(now, id, suite, &opened) {
            if reason == DropReason::ReplayedHandshake {
                self.begin_instead(now, id, &opened);
            }
            return Err(reason);
        }
        let local = self.fresh_index()?;
        let (keys, noise) = opened.respond()?;
        let key = self.keypair(now, id, suite, (false, local, init.sender), &keys)?;
        let Some(entry) = self.entries.get_mut(&id) else { return Err(DropReason::UnknownPeer) };
        entry.set_next(key, from, &self.table);
        entry.peer.note_shaken(now);
        entry.heard();
        let response = Response { sender: local, receiver: init.sender, noise: &noise };
        let bytes = response.write(&entry.mac);
        self.transmit(from, bytes);
        self.reschedule(now, id);
        Ok(())
    }

    /// Whether a peer may have this initiation answered; notes it, and whether the peer was started
    /// anew.
    fn admit_init(
        &mut self,
        now: Instant,
        id: NodeId,
        suite: Suite,
        opened: &Opened,
    ) -> Result<(), DropReason> {
        let entry = self.entries.get_mut(&id).ok_or(DropReason::UnknownPeer)?;
        if suite != Suite::of(self.config.aes, entry.config.aes) {
            return Err(DropReason::BadSuite);
        }
        let (stamp, boot_id) = opened.payload.split_first_chunk().ok_or(DropReason::BadLength)?;
        let boot_id: [u8; 8] = boot_id.try_into().map_err(|_length| DropReason::BadLength)?;
        if entry.greatest.is_some_and(|greatest| *stamp <= greatest) {
            return Err(DropReason::ReplayedHandshake);
        }
        if entry.last_init.is_some_and(|last| now.saturating_duration_since(last) < INIT_INTERVAL) {
            return Err(DropReason::HandshakeFlood);
        }
        entry.greatest = Some(*stamp);
        entry.last_init = Some(now);
        if entry.boot_id.replace(boot_id).is_some_and(|known| known != boot_id) {
            entry.close_keys(&self.table);
            self.report(SessionEvent::Restarted { peer: id });
        }
        Ok(())
    }

    /// The peer's initiation looks old. If it is of another life than the one we know, it was
    /// replayed, or the peer was started anew with a clock that is behind. An initiation of ours
    /// gets through in the second case and changes nothing in the first.
    fn begin_instead(&mut self, now: Instant, id: NodeId, opened: &Opened) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let same_life = entry.boot_id.is_none_or(|known| opened.payload.ends_with(&known));
        let lately = |at: Instant| now.saturating_duration_since(at) < REKEY_TIMEOUT;
        if same_life || entry.attempt.is_some() || entry.begun_instead.is_some_and(lately) {
            return;
        }
        entry.begun_instead = Some(now);
        self.begin(now, id);
        self.reschedule(now, id);
    }

    /// Finishes a handshake of ours. A response that does not fit leaves it waiting for the one
    /// that does.
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let response = Response::parse(datagram, &self.mac)?;
        let id = *self.pending.get(&response.receiver).ok_or(DropReason::UnknownIndex)?;
        let entry = self.entries.get_mut(&id).ok_or(DropReason::UnknownIndex)?;
        // It comes once; what comes after it is a replay.
        if entry.overtaken.take_if(|local| *local == response.receiver).is_some() {
            self.pending.remove(&response.receiver);
            return Ok(());
        }
        let attempt = entry.attempt.as_mut().ok_or(DropReason::UnknownIndex)?;
        let keys = attempt.state.finish(response.noise)?;
        let (suite, local, begun) = (attempt.suite, attempt.local, attempt.begun);
        let key = self.keypair(now, id, suite, (true, local, response.sender), &keys)?;
        self.abandon(id);
        let Some(entry) = self.entries.get_mut(&id) else { return Err(DropReason::UnknownIndex) };
        let wins = self.public < entry.config.noise_public;
        entry.finish_own(key, begun, wins, &self.table);
        entry.peer.roam(from);
        entry.peer.note_shaken(now);
        entry.peer.add_rtt(now.saturating_duration_since(begun));
        self.established(id);
        // The responder may send only after it has received on the key.
        if !self.flush(now, id) {
            self.keepalive(now, id, &[]);
        }
        self.reschedule(now, id);
        Ok(())
    }

    /// The peer may have used the key that we answered it with.
    pub(super) fn promote(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let wins = self.public < entry.config.noise_public;
        let Some(next) = entry.promote(wins, &self.table) else { return };
        entry.peer.roam(next.from);
        // The first packet is sent as soon as the answer is there. One behind it may be sent any
        // time later, so where the first was lost, this says nothing of the way.
        if next.key.is_proven_by_first() {
            entry.peer.add_rtt(next.key.age(now));
        }
        let overtaken = entry.attempt.take().map(|attempt| attempt.local);
        self.abandon(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.overtaken = overtaken;
        }
        self.established(id);
        self.flush(now, id);
    }

    fn established(&mut self, id: NodeId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.heard();
            entry.peer.forget_unanswered();
        }
        self.report(SessionEvent::Established { peer: id });
    }

    /// Seals what waited for a key. False if nothing did.
    pub(super) fn flush(&mut self, now: Instant, id: NodeId) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let peer = Arc::clone(&entry.peer);
        let Some(key) = peer.sender(now) else { return false };
        let staged = peer.take_staged();
        let mut lost = 0;
        let some = !staged.is_empty();
        for payload in staged {
            if self.send(now, &key, 0, &payload).is_err() {
                lost += 1;
            }
        }
        self.report_dropped(id, DropReason::NoSession, lost);
        some
    }

    /// Tells the peer that we are there and hold the key.
    pub(super) fn keepalive(&mut self, now: Instant, id: NodeId, tlvs: &[u8]) {
        let Some(key) = self.entries.get(&id).and_then(|entry| entry.peer.sender(now)) else {
            return;
        };
        if let Err(reason) = self.send(now, &key, FLAG_CONTROL, tlvs) {
            self.report_dropped(id, reason, 1);
        }
    }

    fn send(
        &mut self,
        now: Instant,
        key: &Keypair,
        flags: u16,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let to = key.peer().addr().ok_or(DropReason::NoSession)?;
        let mut datagram = Vec::with_capacity(payload.len() + SEAL_OVERHEAD);
        datagram.extend([0; HEADER_LEN]);
        datagram.extend(payload);
        datagram.extend([0; TAG_LEN]);
        key.reserve(1)?.seal(flags, &mut datagram)?;
        let bytes = datagram.len() as u64;
        if !self.transmit(to, datagram) {
            return Err(DropReason::NoSession);
        }
        key.peer().note_sent(now, bytes, flags & FLAG_CONTROL == 0);
        Ok(())
    }

    fn keypair(
        &self,
        now: Instant,
        id: NodeId,
        suite: Suite,
        (initiator, local, remote): (bool, u32, u32),
        keys: &TransportKeys,
    ) -> Result<Arc<Keypair>, DropReason> {
        let peer = self.peer(id).ok_or(DropReason::UnknownPeer)?;
        let limits = self.config.limits(suite);
        let agreed = Agreed { suite, limits, initiator, local, remote, created: now };
        Keypair::new(peer, &agreed, keys).map(Arc::new)
    }

    fn jitter(&mut self) -> Result<Duration, DropReason> {
        let mut bytes = [0; 4];
        self.entropy.fill(&mut bytes)?;
        let share = u64::from(u32::from_le_bytes(bytes));
        let span = u64::try_from(REKEY_JITTER.as_micros()).unwrap_or(0);
        Ok(Duration::from_micros((share * span) >> 32))
    }
}
