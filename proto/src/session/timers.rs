//! The wishes and deadlines of [`Sessions`].
//!
//! Workers leave times in [`Peer`](super::Peer) and tell nobody. That is enough: whatever they
//! leave after a look falls due no sooner than [`KEEPALIVE`] after it, so a look at each
//! established peer that often misses nothing.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    ERASE_AFTER, KEEPALIVE, MAX_TRIES, PROBE_AGAIN, REJECT_AFTER, REKEY_TIMEOUT,
    entry::{Attempt, Entry},
    sessions::{SessionEvent, Sessions},
    wire::TLV_ECHO,
};
use crate::{addr::NodeId, reason::DropReason};

/// What a peer is sent, to see whether packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// What it need not answer.
    Keepalive,
    /// What it answers at once by a keepalive, unless its version is older.
    Echo,
    /// A handshake, which every version answers.
    Handshake,
}

impl Sessions {
    /// A worker found no usable key, or one that is due to be replaced.
    pub fn handle_wanted(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.peer.hear_want();
        self.promote(now, id);
        self.flush(now, id);
        self.begin_if_wanted(now, id);
        self.reschedule(now, id);
    }

    /// Sends a peer something that it can tell to be ours, whether or not anybody has frames for
    /// it. Where there is no key that is an initiation, in the place of one that has waited for
    /// [`PROBE_AGAIN`]. Nothing is sent to a peer without an address.
    pub fn handle_probe(&mut self, now: Instant, id: NodeId, probe: Probe) {
        self.promote(now, id);
        let Some(entry) = self.entries.get(&id) else { return };
        let waits = |attempt: &Attempt| now.saturating_duration_since(attempt.begun) < PROBE_AGAIN;
        let has_key = entry.peer.sender(now).is_some();
        let is_free = entry.peer.addr().is_some() && !entry.attempt.as_ref().is_some_and(waits);
        match probe {
            Probe::Keepalive if has_key => self.keepalive(now, id, &[]),
            Probe::Echo if has_key => self.keepalive(now, id, &[TLV_ECHO, 0]),
            _ if is_free => self.begin(now, id),
            _ => {}
        }
        self.reschedule(now, id);
    }

    /// A data message came from here under a key that this node does not have: who sends it does
    /// not know yet that this node was started anew, and would only ask after 15 seconds without an
    /// answer. A handshake begins, unless there is a key for it.
    pub fn handle_unknown_index(&mut self, now: Instant, from: SocketAddr) {
        let is_there = |entry: &Entry| entry.peer.addr() == Some(from);
        let found = self.entries.iter().find(|(_, entry)| is_there(entry)).map(|(id, _)| *id);
        let Some(id) = found else { return };
        let has_key = |entry: &Entry| entry.peer.sender(now).is_some() || entry.next.is_some();
        if !self.entries.get(&id).is_some_and(has_key) {
            self.begin_if_wanted(now, id);
            self.reschedule(now, id);
        }
    }

    /// A worker opened the first packet of a key ([`Opened::confirms`](super::Opened)).
    pub fn handle_confirmed(&mut self, now: Instant, index: u32) {
        let Some(key) = self.table.get(index) else { return };
        let id = key.peer().id();
        self.promote(now, id);
        self.reschedule(now, id);
    }

    /// This node is elsewhere, or others may take another for it: begins a handshake with every
    /// peer that there is a session with, so that they send here.
    pub fn handle_moved(&mut self, now: Instant) {
        let met: Vec<NodeId> = self
            .entries
            .iter()
            .filter(|(_id, entry)| entry.peer.current().is_some() && entry.peer.addr().is_some())
            .map(|(id, _entry)| *id)
            .collect();
        for id in met {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.heard();
            }
            self.begin(now, id);
            self.reschedule(now, id);
        }
    }

    /// This host stood still, or goes on from an image of its memory, and its wall clock shows this
    /// time since 1970 now. No key is used any more, for its counters may have been used after the
    /// image was made (I6). Handshakes begin as after a start: by what was sent since they look
    /// old.
    pub fn handle_restored(&mut self, now: Instant, wall: Duration) {
        self.stamper.catch_up(now, wall);
        let mut boot_id = self.config.boot_id;
        if self.entropy.fill(&mut boot_id).is_ok() {
            self.config.boot_id = boot_id;
        }
        let all: Vec<NodeId> = self.entries.keys().copied().collect();
        for id in all {
            let is_met =
                |entry: &Entry| entry.peer.current().is_some() && entry.peer.addr().is_some();
            let met = self.entries.get(&id).is_some_and(is_met);
            self.end_session(id);
            if met {
                self.begin(now, id);
            }
            self.reschedule(now, id);
        }
    }

    /// The moment that [`poll_timeout`](Self::poll_timeout) gave has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((deadline, id)) = self.timers.first().copied()
            && deadline <= now
        {
            self.timers.pop_first();
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.deadline = None;
            }
            self.look_at(now, id);
            self.reschedule(now, id);
        }
    }

    /// Begins a handshake unless there is a good key, one under way, or a reason to wait.
    fn begin_if_wanted(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let good = entry.peer.sender(now).is_some_and(|key| !key.wants_rekey(now));
        if good || entry.attempt.is_some() || entry.hold_until.is_some_and(|until| now < until) {
            return;
        }
        // The peer was quicker; its first packet on the key that we answered with is on its way.
        let answered = entry.next.as_ref().map(|next| next.key.created() + REKEY_TIMEOUT);
        if let Some(until) = answered.filter(|until| now < *until) {
            entry.hold_until = Some(until);
            return;
        }
        if entry.peer.addr().is_some() {
            self.begin(now, id);
        }
    }

    fn look_at(&mut self, now: Instant, id: NodeId) {
        self.promote(now, id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.expire(now, &self.table);
        let overdue = entry.attempt.as_ref().is_some_and(|attempt| attempt.retry_at <= now);
        let held = entry.hold_until.take_if(|until| *until <= now).is_some();
        let unanswered = due(unanswered_due(entry), now);
        let unacknowledged = due(unacknowledged_due(entry), now);
        if unanswered {
            entry.peer.forget_unanswered();
        }
        if unacknowledged {
            entry.peer.forget_unacknowledged();
        }
        if overdue {
            self.retry(now, id);
        } else if unanswered {
            self.begin_unanswered(now, id);
        } else if held && self.still_wanted(now, id) {
            self.begin_if_wanted(now, id);
        }
        if unacknowledged {
            self.keepalive(now, id, &[]);
        }
    }

    /// No response came.
    fn retry(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.tries < MAX_TRIES {
            let late = entry.peer.expire_staged();
            self.report_dropped(id, DropReason::NoSession, late);
            self.begin(now, id);
            return;
        }
        entry.back_off(now);
        let lost = entry.peer.take_staged().len();
        self.abandon(id);
        self.report_dropped(id, DropReason::NoSession, lost);
        self.report(SessionEvent::Unreachable { peer: id });
    }

    /// Data went out and nothing came back: the key may be good for nothing although it is young.
    fn begin_unanswered(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get(&id) else { return };
        if entry.attempt.is_none() && entry.hold_until.is_none() && entry.peer.addr().is_some() {
            self.begin(now, id);
        }
    }

    fn still_wanted(&self, now: Instant, id: NodeId) -> bool {
        self.entries.get(&id).is_some_and(|entry| {
            entry.peer.has_staged()
                || entry.peer.sender(now).is_some_and(|key| key.wants_rekey(now))
        })
    }

    /// Puts the peer's next deadline into the timers.
    pub(super) fn reschedule(&mut self, now: Instant, id: NodeId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let next = next_deadline(entry, now);
        if next == entry.deadline {
            return;
        }
        if let Some(old) = std::mem::replace(&mut entry.deadline, next) {
            self.timers.remove(&(old, id));
        }
        if let Some(next) = next {
            self.timers.insert((next, id));
        }
    }
}

fn next_deadline(entry: &Entry, now: Instant) -> Option<Instant> {
    let retry = entry.attempt.as_ref().map(|attempt| attempt.retry_at);
    let next = entry.next.as_ref().map(|next| next.key.created() + REJECT_AFTER);
    let retired = entry.retired.iter().map(|key| key.created() + REJECT_AFTER).min();
    let erase = entry.peer.current().map(|key| key.created() + ERASE_AFTER);
    let look = entry.peer.sender(now).map(|_| {
        let armed = [unanswered_due(entry), unacknowledged_due(entry)];
        armed.into_iter().flatten().chain([now + KEEPALIVE]).min().unwrap_or(now)
    });
    [retry, entry.hold_until, next, retired, erase, look].into_iter().flatten().min()
}

fn unanswered_due(entry: &Entry) -> Option<Instant> {
    entry.peer.unanswered_since().map(|since| since + KEEPALIVE + REKEY_TIMEOUT)
}

fn unacknowledged_due(entry: &Entry) -> Option<Instant> {
    entry.peer.unacknowledged_since().map(|since| since + KEEPALIVE)
}

fn due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}
