//! Clients that send datagrams to services and never pause.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use vxmesh_proto::{
    addr::{EndpointId, MacAddr},
    tables::RowKey,
};

use super::{
    clients::Call,
    known::{Known, Standing},
    segment::{Flag, Segment},
};
use crate::world::{Fate, World};

/// How often each sends.
const BEAT: Duration = Duration::from_millis(200);
/// For so long a flow of datagrams is surely kept that nobody uses: three minutes, in whole
/// seconds.
const KEPT: Duration = Duration::from_secs(3 * 60 - 1);

/// A client, as it sees its service.
#[derive(Clone, Debug)]
struct Sender {
    call: Call,
    /// Where the last datagram went that went anywhere; nothing if the flow has ended since.
    to: Option<EndpointId>,
    /// When that was; nothing if one was lost since, and the flow may have ended.
    used: Option<Instant>,
    /// Whose answer it heard last, and when.
    heard: Option<(MacAddr, Instant)>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Senders {
    all: BTreeMap<u64, Sender>,
    next: u64,
    beat: Option<Instant>,
}

impl super::Clients {
    pub(super) fn senders(&self) -> Vec<u64> {
        self.senders.all.keys().copied().collect()
    }

    /// When the next datagrams are sent.
    pub(crate) fn next_beat(&self) -> Option<Instant> {
        self.senders.beat
    }

    pub(super) fn heard(&self, id: u64) -> Option<(MacAddr, Instant)> {
        self.senders.all.get(&id)?.heard
    }
}

impl World {
    /// A client begins to send.
    pub(super) fn send_on(&mut self, call: Call) -> u64 {
        let senders = &mut self.clients.senders;
        senders.next += 1;
        let id = senders.next;
        senders.all.insert(id, Sender { call, to: None, used: None, heard: None });
        senders.beat.get_or_insert(self.now);
        id
    }

    pub(super) fn pause(&mut self, id: u64) {
        self.clients.senders.all.remove(&id);
    }

    /// All clients send.
    pub(crate) fn beat(&mut self) {
        let endpoints = &self.endpoints;
        let senders = &mut self.clients.senders;
        senders.all.retain(|_, it| endpoints.contains_key(&it.call.client));
        senders.beat = (!senders.all.is_empty()).then(|| self.now + BEAT);
        for id in self.clients.senders() {
            self.send_datagram(id);
        }
    }

    fn send_datagram(&mut self, id: u64) {
        let sender = self.clients.senders.all[&id].clone();
        let call = sender.call;
        let Some(known) = self.known_of(&call) else { return };
        let Some((fate, to)) = self.say(&call, Flag::Datagram) else { return };
        self.clients.counts.datagrams += 1;
        let is_kept = sender.used.is_some_and(|at| self.now < at + KEPT);
        let is_shut_out = call.is_shut_out(&known);
        let (mut flow, mut used) = (sender.to, None);
        if let Fate::Dropped(reason, answer) = &fate {
            let healthy = known.healthy();
            // Those of which nothing is known yet may be back.
            let may_wait = !known.is_settled && answer.is_empty();
            assert!(
                healthy.is_empty() || may_wait || is_shut_out,
                "refused ({reason:?}) while {healthy:?} were known: {sender:?}"
            );
            let keeps = is_kept && sender.to.is_some_and(|before| known.has(before));
            assert!(
                !keeps || is_shut_out,
                "lost ({reason:?}), but its backend is there: {sender:?}"
            );
            // What is refused has ended. What is not published at this moment may be again.
            flow = flow.filter(|_| answer.is_empty() || is_shut_out);
        } else if let Some(to) = to {
            assert!(!is_shut_out, "to what is not published: {sender:?}");
            self.check_way(&sender, is_kept, &known, to);
            (flow, used) = (Some(to), Some(self.now));
        }
        if let Some(sender) = self.clients.senders.all.get_mut(&id) {
            (sender.to, sender.used) = (flow, used);
        }
        self.pass(call.client, fate);
    }

    /// A flow stays with its backend, also with one that gets no new ones, and leaves it for one
    /// that gets new ones when it is gone or out.
    fn check_way(&mut self, sender: &Sender, is_kept: bool, known: &Known, to: EndpointId) {
        let call = &sender.call;
        let Some(before) = sender.to else {
            return self.check_chosen(call, (None, false), known, to);
        };
        if to == before {
            assert!(known.has(to), "{to} is not there any more: {sender:?}");
            let is_other = |(key, standing): &&(RowKey, Standing)| {
                *standing == Standing::Healthy && !self.is_out(call, *key)
            };
            let leaves = known.is_settled && !known.keeps(to);
            let other = known.backends.values().find(is_other).filter(|_| leaves);
            assert!(other.is_none(), "{to} drains, and {other:?} does not: {sender:?}");
            return;
        }
        let key = known.backends.get(&before).map(|(key, _)| *key);
        let is_well = known.keeps(before) && key.is_some_and(|key| !self.is_out(call, key));
        assert!(!is_well || !is_kept, "moved to {to} without need: {sender:?}");
        self.check_chosen(call, (None, false), known, to);
        self.clients.counts.moved += 1;
    }

    /// A client takes a datagram.
    pub(super) fn hear_datagram(&mut self, client: EndpointId, segment: &Segment) {
        let (now, by) = (self.now, self.sent[&segment.id].source);
        let all = self.clients.senders.all.values_mut();
        let mut own = all.filter(|it| {
            (it.call.client, it.call.vip, it.call.own) == (client, segment.from.ip(), segment.to)
        });
        if let Some(sender) = own.next() {
            sender.heard = Some((by, now));
        }
    }
}
