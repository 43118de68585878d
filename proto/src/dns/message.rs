//! One question and its reply on the wire (RFC 1035 section 4, EDNS: RFC 6891).
//!
//! A question that cannot be asked here is refused with the code that says why; bytes that might
//! make two servers answer each other, or that nobody can be answered for, get nothing. No reply is
//! longer than what the asker can take, nor than what crosses any path whole (1232 bytes,
//! dnsflagday.net/2020): what does not fit is left out and marked, and comes over TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{
        DNSClass, Name as DomainName, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SRV},
    },
    serialize::binary::{BinDecodable, BinDecoder},
};
use ipnet::IpNet;

use super::{Found, Lead, Target};
use crate::{
    limits::{DNS_QUERY_LEN, DNS_TTL, DNS_UDP_LEN},
    reason::DropReason,
};

/// What a reply without EDNS has room for over UDP (RFC 1035 section 4.2.1).
const PLAIN_LEN: u16 = 512;
/// Id, flags and four counts.
const HEADER_LEN: usize = 12;
/// NS, SOA, DS, RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM, CDS, CDNSKEY, CSYNC, ZONEMD.
const ZONE_TYPES: [u16; 12] = [2, 6, 43, 46, 47, 48, 50, 51, 59, 60, 62, 63];
/// What a record takes at least: a pointer to its name, type, class, time to live and length.
const RECORD_LEN: usize = 12;

/// How a question came, and how its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// One message of a stream (RFC 1035 section 4.2.2).
    Tcp,
}

/// Why bytes are no question, and what the asker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The reason.
    pub reason: DropReason,
    /// The reply, if the asker may have one.
    pub reply: Option<Vec<u8>>,
}

/// Which kind of record is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// Where a port of a service is.
    Srv,
    /// All that there are.
    Any,
    /// One that only zones have: endpoints have none, top-level domains do.
    Zone,
    /// One that endpoints never have.
    Other,
}

impl RecordKind {
    /// Whether a reverse name has such a record.
    #[must_use]
    pub const fn is_pointer(self) -> bool {
        matches!(self, Self::Ptr | Self::Any)
    }

    /// Whether a port of a service has such a record.
    #[must_use]
    pub const fn is_service(self) -> bool {
        matches!(self, Self::Srv | Self::Any)
    }

    /// Whether an address is of this kind.
    #[must_use]
    pub const fn is_address(self, ip: &IpAddr) -> bool {
        match self {
            Self::A => ip.is_ipv4(),
            Self::Aaaa => ip.is_ipv6(),
            Self::Any => true,
            Self::Ptr | Self::Srv | Self::Zone | Self::Other => false,
        }
    }
}

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Query {
    pub(super) message: Message,
    pub(super) question: Question,
    transport: Transport,
}

impl Query {
    /// The question in these bytes.
    ///
    /// # Errors
    /// There is none that can be answered here.
    pub fn parse(bytes: &[u8], transport: Transport) -> Result<Self, Fault> {
        let silent = |reason| Fault { reason, reply: None };
        // The counts are looked at first: they say how much memory the rest would take.
        let header = Header::read(&mut BinDecoder::new(bytes))
            .map_err(|_short| silent(DropReason::DnsMalformed))?;
        if header.metadata.message_type == MessageType::Response {
            return Err(silent(DropReason::DnsNotAQuery));
        }
        let refuse = |reason, code| Fault { reason, reply: error_reply(&header, code) };
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(DropReason::DnsNotAQuery, ResponseCode::NotImp));
        }
        let counts = &header.counts;
        let only_a_question = counts.queries == 1 && counts.answers == 0 && counts.authorities == 0;
        if !only_a_question || counts.additionals > 2 || bytes.len() > DNS_QUERY_LEN {
            return Err(refuse(DropReason::DnsMalformed, ResponseCode::FormErr));
        }
        // A name that points elsewhere would come back longer than it came, and there is nothing
        // before it to point to.
        if !is_plain(bytes) {
            return Err(refuse(DropReason::DnsMalformed, ResponseCode::FormErr));
        }
        let mut message = Message::from_vec(bytes)
            .map_err(|_fault| refuse(DropReason::DnsMalformed, ResponseCode::FormErr))?;
        message.additionals.clear();
        message.signature = None;
        let question = message
            .queries
            .first()
            .cloned()
            .ok_or_else(|| refuse(DropReason::DnsMalformed, ResponseCode::FormErr))?;
        let query = Self { message, question, transport };
        match query.unanswerable() {
            Some(code) => {
                Err(Fault { reason: DropReason::DnsRefused, reply: query.encode(query.bare(code)) })
            }
            None => Ok(query),
        }
    }

    fn unanswerable(&self) -> Option<ResponseCode> {
        if self.message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Some(ResponseCode::BADVERS);
        }
        let transfer = matches!(self.question.query_type(), RecordType::AXFR | RecordType::IXFR);
        (transfer || self.question.query_class() != DNSClass::IN).then_some(ResponseCode::Refused)
    }

    /// The name that is asked for, in lower case and without a dot at its end; nothing for the
    /// root. What no name of ours has in it, a dot inside a label too, becomes a question mark,
    /// which none has either.
    #[must_use]
    pub fn host_name(&self) -> Option<String> {
        let plain = |c: &u8| match c.to_ascii_lowercase() {
            c @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => char::from(c),
            _ => '?',
        };
        let mut name = String::with_capacity(self.question.name().len());
        for label in self.question.name().iter() {
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(plain));
        }
        (!name.is_empty()).then_some(name)
    }

    /// The addresses that the name is the reverse of (RFC 1035 section 3.5, RFC 3596 section 2.5).
    #[must_use]
    pub fn reverse(&self) -> Option<IpNet> {
        self.question.name().parse_arpa_name().ok()
    }

    /// Which kind of record is asked for.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match self.question.query_type() {
            RecordType::A => RecordKind::A,
            RecordType::AAAA => RecordKind::Aaaa,
            RecordType::PTR => RecordKind::Ptr,
            RecordType::SRV => RecordKind::Srv,
            RecordType::ANY => RecordKind::Any,
            kind if ZONE_TYPES.contains(&u16::from(kind)) => RecordKind::Zone,
            _ => RecordKind::Other,
        }
    }

    /// Whether the asker wants the upstreams to be asked.
    #[must_use]
    pub fn wants_recursion(&self) -> bool {
        self.message.metadata.recursion_desired
    }

    /// The reply. `turn` says whose turn it is where several have the name.
    #[must_use]
    pub fn reply(&self, found: &Found<'_>, turn: impl FnOnce(&Self) -> u64) -> Vec<u8> {
        let kind = self.kind();
        let addresses = |lead: &Lead<'_>| lead.of_kind(kind).map(address).collect::<Vec<_>>();
        let mut additionals = Vec::new();
        let records: Vec<RData> = match found {
            Found::OneOf(_, leads) => {
                let leads: Vec<_> =
                    leads.iter().filter(|it| it.of_kind(kind).next().is_some()).collect();
                let chosen = match leads.as_slice() {
                    [] => None,
                    [only] => Some(*only),
                    several => turned(several, turn(self)).copied(),
                };
                chosen.into_iter().flat_map(addresses).collect()
            }
            Found::Each(_, leads) => leads.iter().flat_map(addresses).collect(),
            Found::Targets(table, targets) if kind.is_service() => {
                let located = |target| located(target, table.domain().as_str());
                let located: Vec<_> = targets.iter().filter_map(located).collect();
                additionals =
                    located.iter().flat_map(|(target, _)| target_addresses(target)).collect();
                located.into_iter().map(|(_, record)| record).collect()
            }
            Found::Pointer(table, endpoint) => {
                let labels = [endpoint.name.as_str(), table.domain().as_str()];
                labels_to_pointer(&labels).into_iter().collect()
            }
            Found::Loopback if self.reverse().is_some() => {
                labels_to_pointer(&["localhost"]).into_iter().collect()
            }
            Found::Loopback => {
                let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                both.into_iter().filter(|ip| kind.is_address(ip)).map(address).collect()
            }
            Found::Targets(..)
            | Found::Empty
            | Found::Nothing
            | Found::Unsettled
            | Found::Elsewhere => Vec::new(),
        };
        let code = match found {
            Found::Nothing | Found::Elsewhere => ResponseCode::NXDomain,
            Found::Unsettled => ResponseCode::ServFail,
            _ => ResponseCode::NoError,
        };
        let mut reply = self.bare(code);
        reply.metadata.authoritative = !matches!(found, Found::Elsewhere | Found::Unsettled);
        let name = self.question.name();
        reply.answers = records
            .into_iter()
            .map(|data| Record::from_rdata(name.clone(), DNS_TTL, data))
            .collect();
        reply.additionals = additionals;
        self.encode(reply).unwrap_or_default()
    }

    /// The reply to a question that cannot be answered: the asker may try again.
    #[must_use]
    pub fn failure(&self) -> Vec<u8> {
        self.encode(self.bare(ResponseCode::ServFail)).unwrap_or_default()
    }

    /// The reply to whoever asks for a name of others and wants nobody to be asked.
    pub(super) fn refusal(&self) -> Fault {
        Fault {
            reason: DropReason::DnsRefused,
            reply: self.encode(self.bare(ResponseCode::Refused)),
        }
    }

    /// How its reply goes.
    pub(super) const fn transport(&self) -> Transport {
        self.transport
    }

    /// A reply without records.
    pub(super) fn bare(&self, code: ResponseCode) -> Message {
        let mut reply = reply_to(&self.message, code);
        reply.queries = vec![self.question.clone()];
        reply.metadata.recursion_available = true;
        reply.edns = self.message.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(DNS_UDP_LEN);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        reply
    }

    /// The bytes of a reply, without the records that the asker has no room for.
    pub(super) fn encode(&self, mut reply: Message) -> Option<Vec<u8>> {
        let room = match (self.transport, &self.message.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_LEN,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_LEN, DNS_UDP_LEN),
        };
        let fit =
            |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(room));
        // More cannot fit, and need not be tried.
        let most = usize::from(room) / RECORD_LEN;
        if reply.answers.len() <= most {
            // What is only helpful is left out without a mark (RFC 2181 section 9): all addresses
            // of a target, or none.
            let additionals = std::mem::take(&mut reply.additionals);
            let whole = largest(additionals.len().min(most), |count| {
                let (first, rest) = additionals.split_at_checked(count)?;
                let cut = rest.first().map(|record| &record.name);
                let is_whole = |record: &&Record| Some(&record.name) != cut;
                reply.additionals = first.iter().filter(is_whole).cloned().collect();
                fit(&reply)
            });
            if whole.is_some() {
                return whole;
            }
        }
        reply.metadata.truncation = true;
        reply.authorities.clear();
        reply.additionals.clear();
        let answers = std::mem::take(&mut reply.answers);
        // Some records are more than none to an asker that knows no TCP: the largest number that
        // fits.
        largest(answers.len().min(most), |count| {
            reply.answers = answers.iter().take(count).cloned().collect();
            fit(&reply)
        })
    }
}

/// What comes of the largest number up to `most` of which something comes; of smaller ones
/// something comes, too.
fn largest<T>(most: usize, mut of: impl FnMut(usize) -> Option<T>) -> Option<T> {
    let (mut best, mut low, mut high) = (of(most), 0, most);
    if best.is_some() {
        return best;
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        match of(middle) {
            Some(found) => (best, low) = (Some(found), middle + 1),
            None => high = middle,
        }
    }
    best
}

/// Whether the first name of a message is written out, label by label.
fn is_plain(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(HEADER_LEN..).unwrap_or_default();
    while let Some((&len, after)) = rest.split_first() {
        match after.split_at_checked(usize::from(len)) {
            Some(_) if len == 0 => return true,
            // The two highest bits mark a pointer.
            Some((_label, next)) if len < 64 => rest = next,
            Some(_) | None => return false,
        }
    }
    false
}

fn reply_to(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.metadata.response_code = code;
    reply
}

/// A reply to something of which only the header could be read.
fn error_reply(header: &Header, code: ResponseCode) -> Option<Vec<u8>> {
    let asked = &header.metadata;
    let mut reply = Message::response(asked.id, asked.op_code);
    reply.metadata.recursion_desired = asked.recursion_desired;
    reply.metadata.response_code = code;
    reply.to_vec().ok()
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn labels_to_pointer(labels: &[&str]) -> Option<RData> {
    Some(RData::PTR(PTR(labels_to_name(labels)?)))
}

fn labels_to_name(labels: &[&str]) -> Option<DomainName> {
    let mut name = DomainName::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The one whose turn it is.
fn turned<T>(items: &[T], turn: u64) -> Option<&T> {
    let count = u64::try_from(items.len()).ok()?;
    items.get(usize::try_from(turn.checked_rem(count)?).ok()?)
}

/// A target with its name in full, and its record.
type Located<'t> = ((&'t Target<'t>, DomainName), RData);

fn located<'t>(target: &'t Target<'_>, domain: &str) -> Option<Located<'t>> {
    let name = labels_to_name(&[&target.name, domain])?;
    let record = RData::SRV(SRV::new(0, target.weight, target.port, name.clone()));
    Some(((target, name), record))
}

fn target_addresses((target, name): &(&Target<'_>, DomainName)) -> Vec<Record> {
    let record = |ip: &IpAddr| Record::from_rdata(name.clone(), DNS_TTL, address(*ip));
    target.lead.ips.iter().map(record).collect()
}
