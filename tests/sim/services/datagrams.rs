//! Clients that send datagrams to services and never pause.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use vxmesh_proto::addr::{EndpointId, MacAddr};

use super::{
    clients::Call,
    known::Standing,
    segment::{Flag, Segment},
};
use crate::world::{Fate, World};

/// How often each sends.
const BEAT: Duration = Duration::from_millis(200);

/// A client, as it sees its service.
#[derive(Clone, Debug)]
struct Sender {
    call: Call,
    /// Where its last datagram went.
    to: Option<EndpointId>,
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
        senders.all.insert(id, Sender { call, to: None, heard: None });
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
        if let Fate::Dropped(reason, answer) = &fate {
            let healthy = known.healthy();
            // Those of which nothing is known yet may be back.
            let may_wait = !known.is_settled && answer.is_empty();
            assert!(
                healthy.is_empty() || may_wait || call.is_shut_out(&known),
                "refused ({reason:?}) while {healthy:?} were known: {sender:?}"
            );
        } else if let (Some(to), Some(before)) = (to, sender.to) {
            assert!(!call.is_shut_out(&known), "to what is not published: {sender:?}");
            if to == before {
                assert!(known.has(to), "{to} is not there any more: {sender:?}");
            } else {
                let (key, standing) = known.backends.get(&before).copied().unzip();
                let is_well = standing == Some(Standing::Healthy)
                    && key.is_some_and(|key| !self.is_out(&call, key));
                assert!(!is_well, "moved to {to} without need: {sender:?}");
                self.check_chosen(&call, (None, false), &known, to);
                self.clients.counts.moved += 1;
            }
        } else if let Some(to) = to {
            self.check_chosen(&call, (None, false), &known, to);
        }
        if let Some(sender) = self.clients.senders.all.get_mut(&id) {
            sender.to = to;
        }
        self.pass(call.client, fate);
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
