//! A question as it is sent on, and what is taken for its answer (RFC 5452).
//!
//! The question goes out anew: another id, nothing of the asker but the question and whether it knows DNSSEC. An answer is believed
//! if id and question are those that were sent; who sent it is the socket's to say.

use std::time::Duration;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{RData, RecordType},
};

use super::Query;
use crate::limits::{DNS_CACHED, DNS_CACHED_NEGATIVE, DNS_UDP_LEN};

/// Questions with one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    name: String,
    kind: u16,
    dnssec: bool,
    unchecked: bool,
}

/// What an upstream's bytes are.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The answer.
    Answer(UpstreamAnswer),
    /// The beginning of it: ask over TCP.
    Cut,
    /// The upstream cannot answer.
    Failed,
    /// Not an answer to this question.
    Foreign,
}

/// An upstream's answer.
#[derive(Clone, Debug)]
pub struct UpstreamAnswer {
    message: Message,
    /// How long it may be given to others.
    pub ttl: Duration,
    /// How many bytes it came in.
    pub len: usize,
}

impl Query {
    /// What others ask for when they ask the same.
    #[must_use]
    pub fn cache_key(&self) -> CacheKey {
        CacheKey {
            name: self.question.name().to_ascii().to_ascii_lowercase(),
            kind: u16::from(self.question.query_type()),
            dnssec: self.wants_dnssec(),
            unchecked: self.message.metadata.checking_disabled,
        }
    }

    /// The question for an upstream.
    #[must_use]
    pub fn to_upstream(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.metadata.authentic_data = self.message.metadata.authentic_data;
        message.add_query(self.question.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(DNS_UDP_LEN);
        edns.set_dnssec_ok(self.wants_dnssec());
        message.set_edns(edns);
        message.to_vec().ok()
    }

    /// What an upstream's bytes are to the question with this id.
    #[must_use]
    pub fn hear(&self, id: u16, bytes: &[u8]) -> Heard {
        let Ok(message) = Message::from_vec(bytes) else { return Heard::Foreign };
        let metadata = &message.metadata;
        let ours = metadata.id == id
            && metadata.message_type == MessageType::Response
            && metadata.op_code == OpCode::Query
            && message.queries.as_slice() == std::slice::from_ref(&self.question);
        if !ours {
            return Heard::Foreign;
        }
        match metadata.response_code {
            _ if metadata.truncation => Heard::Cut,
            ResponseCode::NoError | ResponseCode::NXDomain => {
                Heard::Answer(UpstreamAnswer { ttl: kept(&message), len: bytes.len(), message })
            }
            _ => Heard::Failed,
        }
    }

    fn wants_dnssec(&self) -> bool {
        self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }
}

impl UpstreamAnswer {
    /// Whether there is what was asked for.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        !self.message.answers.is_empty()
    }

    /// The reply to an asker, this long after the upstream gave it.
    #[must_use]
    pub fn reply(&self, query: &Query, age: Duration) -> Vec<u8> {
        let theirs = &self.message;
        let mut reply = query.bare(theirs.metadata.response_code);
        reply.metadata.authentic_data = theirs.metadata.authentic_data;
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        reply.answers.clone_from(&theirs.answers);
        reply.authorities.clone_from(&theirs.authorities);
        reply.additionals.clone_from(&theirs.additionals);
        let sections = [&mut reply.answers, &mut reply.authorities, &mut reply.additionals];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(age);
        }
        query.encode(reply).unwrap_or_else(|| query.failure())
    }
}

/// How long an answer is kept: as its shortest-lived record says, and a refusal as RFC 2308 section 5 says.
fn kept(message: &Message) -> Duration {
    let shortest = message.answers.iter().map(|record| record.ttl).min();
    let seconds = match shortest {
        Some(ttl) if message.metadata.response_code == ResponseCode::NoError => ttl.min(DNS_CACHED),
        Some(_) | None => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) if record.record_type() == RecordType::SOA => {
                    Some(record.ttl.min(soa.minimum))
                }
                _ => None,
            });
            // Without the record nobody said how long.
            soa.unwrap_or(0).min(DNS_CACHED_NEGATIVE)
        }
    };
    Duration::from_secs(u64::from(seconds))
}
