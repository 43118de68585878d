//! A question as it is sent on, and what is taken for its answer (RFC 5452).
//!
//! The question goes out anew: another id, nothing of the asker but the question and whether it
//! knows DNSSEC. An answer is believed if id and question are those that were sent; who sent it is
//! the socket's to say.
//!
//! Some servers refuse or ignore questions with EDNS (RFC 6891 section 7): they are asked without,
//! as libc asks them. Of an answer that is cut the rest comes over TCP; where there is no TCP, what
//! came is better than nothing.

use std::time::Duration;

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{RData, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};

use super::{Query, Transport};
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
    Cut(UpstreamAnswer),
    /// The upstream does not know EDNS: ask without.
    Plain,
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

    /// The question for an upstream; with EDNS (RFC 6891) unless it does not know that.
    #[must_use]
    pub fn to_upstream(&self, id: u16, edns: bool) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.metadata.authentic_data = self.message.metadata.authentic_data;
        message.add_query(self.question.clone());
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(DNS_UDP_LEN);
            edns.set_dnssec_ok(self.wants_dnssec());
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// What an upstream's bytes are to the question with this id.
    #[must_use]
    pub fn hear(&self, id: u16, bytes: &[u8]) -> Heard {
        let Ok(message) = Message::from_vec(bytes) else { return self.hear_header(id, bytes) };
        if !is_response(id, &message.metadata) {
            return Heard::Foreign;
        }
        let code = message.metadata.response_code;
        let refuses_edns = is_edns_refusal(code);
        if message.queries.as_slice() != std::slice::from_ref(&self.question) {
            // Old servers send the header of what they could not read, and nothing more. It leads
            // to another question, not to an answer.
            let bare = message.queries.is_empty() && message.answers.is_empty();
            return if bare && refuses_edns { Heard::Plain } else { Heard::Foreign };
        }
        let answer = |ttl| UpstreamAnswer { ttl, len: bytes.len(), message: message.clone() };
        match code {
            _ if message.metadata.truncation => Heard::Cut(answer(Duration::ZERO)),
            _ if refuses_edns => Heard::Plain,
            ResponseCode::NoError if is_lame(&message) => Heard::Failed,
            ResponseCode::NoError | ResponseCode::NXDomain => Heard::Answer(answer(kept(&message))),
            _ => Heard::Failed,
        }
    }

    /// What of a message can be said of which only the header can be read: some servers cut in the
    /// middle of a record.
    fn hear_header(&self, id: u16, bytes: &[u8]) -> Heard {
        let header = Header::read(&mut BinDecoder::new(bytes));
        match header {
            Ok(header) if is_response(id, &header.metadata) && header.metadata.truncation => {
                let mut message = self.bare(header.metadata.response_code);
                message.metadata.truncation = true;
                Heard::Cut(UpstreamAnswer { ttl: Duration::ZERO, len: bytes.len(), message })
            }
            Ok(_) | Err(_) => Heard::Foreign,
        }
    }

    /// Whether the asker checks signatures, which do not come without EDNS.
    #[must_use]
    pub fn wants_dnssec(&self) -> bool {
        self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }
}

impl UpstreamAnswer {
    /// Whether there is what was asked for.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        !self.message.answers.is_empty()
    }

    /// Whether its server knows EDNS.
    #[must_use]
    pub const fn has_edns(&self) -> bool {
        self.message.edns.is_some()
    }

    /// The reply to an asker, this long after the upstream gave it.
    #[must_use]
    pub fn reply(&self, query: &Query, age: Duration) -> Vec<u8> {
        let theirs = &self.message;
        let mut reply = query.bare(theirs.metadata.response_code);
        reply.metadata.authentic_data = theirs.metadata.authentic_data;
        // Over TCP there is no more to be had.
        reply.metadata.truncation =
            theirs.metadata.truncation && query.transport() == Transport::Udp;
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

fn is_response(id: u16, metadata: &Metadata) -> bool {
    metadata.id == id
        && metadata.message_type == MessageType::Response
        && metadata.op_code == OpCode::Query
}

/// What servers say that do not know EDNS (RFC 6891 section 7), or not this version of it.
const fn is_edns_refusal(code: ResponseCode) -> bool {
    // BADVERS and BADSIG share a number.
    matches!(
        code,
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS | ResponseCode::BADSIG
    )
}

/// Whether a server only says that others know, which libc takes for no answer, too.
fn is_lame(message: &Message) -> bool {
    let metadata = &message.metadata;
    message.answers.is_empty()
        && message.additionals.is_empty()
        && !metadata.authoritative
        && !metadata.recursion_available
}

/// How long an answer is kept: as its shortest-lived record says, and a refusal as RFC 2308 section
/// 5 says.
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
