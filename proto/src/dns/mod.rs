//! Names: what a sandbox's question is answered with (RFC 1035, 3596, 6891). Pure.
//!
//! ```text
//! question -> message (is it one?) -> answer (whose name is it?) -> reply: TTL 5, cut to what fits
//!                                          | not ours
//!                                          +-> upstream (the question as it is sent on; is this its answer?)
//! ```
//!
//! | question | answer |
//! |---|---|
//! | `NAME`, `ALIAS` (which may have dots), the 12 digits of an id, each alone or with `.NETWORK` | addresses of such an endpoint; where several have it, of one in turn |
//! | `SERVICE` | its addresses; if it has none, those of one of its backends in turn |
//! | `tasks.SERVICE`, `all.SERVICE` | addresses of all its healthy backends, or of all, in the order of their ids |
//! | `_PORT._tcp.SERVICE`, `_PORT._udp.SERVICE` | SRV: the port at each healthy backend, and their addresses |
//! | `tasks.ALIAS`, `all.ALIAS` | addresses of every such endpoint |
//! | the same, of a type that they do not have | no data |
//! | the reverse name of an endpoint's address | `NAME.NETWORK` |
//! | `NETWORK` | no data |
//! | any other single label, or name below any network of the mesh, or address of the sandbox's networks | no such name; while that is not known yet, the question waits |
//! | a single label asked for what only zones have (DS, DNSKEY, NS, SOA ...), as validators do of top-level domains | goes to the upstreams |
//! | `localhost` and what is below it | the loopback addresses (RFC 6761 section 6.3) |
//! | anything else | goes to the upstreams, or there is no such name where networks have no way out |
//!
//! Answers have no SOA record, so those who keep RFC 2308 (section 5) keep no refusal: dnsmasq,
//! BIND and libc ask again at once. Others keep it as they like: OpenJDK ten seconds, unbound five.
//! So nobody is told that there is no such name before it is known. SERVFAIL and REFUSED are dear,
//! too: musl takes five seconds over each. This file's children open no socket, read no clock and
//! draw no random number.

mod answer;
mod message;
mod resolv_conf;
mod services;
mod table;
mod turns;
mod upstream;

pub use answer::{Found, View};
pub use message::{Fault, Query, RecordKind, Transport};
pub use resolv_conf::{HostOptions, ResolvConf};
pub use services::{Lead, NamedBackend, NamedService, Target};
pub use table::{NamedEndpoint, NamesTable, Rival, has_name};
pub use turns::Turns;
pub use upstream::{CacheKey, Heard, UpstreamAnswer};

#[cfg(test)]
mod tests;

/// What is to be done with bytes that came to a server.
#[derive(Debug)]
pub enum Step {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the upstreams.
    Forward(Box<Query>),
    /// It is too early to say: ask [`decide`] again when more is known.
    Wait(Box<Query>),
    /// Send this back, if there is something: the bytes are no question.
    Refuse(Fault),
}

/// Judges bytes that came to a server of names. `turn` says whose turn it is, if several have the
/// name: the first one's for 0, the next one's for 1.
#[must_use]
pub fn step(
    view: &View,
    bytes: &[u8],
    transport: Transport,
    turn: impl FnOnce(&Query) -> u64,
) -> Step {
    let query = match Query::parse(bytes, transport) {
        Ok(query) => query,
        Err(fault) => return Step::Refuse(fault),
    };
    decide(view, query, turn)
}

/// What is to be done with a question, by what is known now.
#[must_use]
pub fn decide(view: &View, query: Query, turn: impl FnOnce(&Query) -> u64) -> Step {
    match view.find(&query) {
        Found::Unsettled => Step::Wait(Box::new(query)),
        Found::Elsewhere if view.forwards && query.wants_recursion() => {
            Step::Forward(Box::new(query))
        }
        Found::Elsewhere if view.forwards => Step::Refuse(query.refusal()),
        found => Step::Reply(query.reply(&found, turn)),
    }
}
