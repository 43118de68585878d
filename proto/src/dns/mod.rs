//! Names: what a sandbox's question is answered with (RFC 1035, 3596, 6891). Pure.
//!
//! ```text
//! question -> message (is it one?) -> answer (whose name is it?) -> reply: shuffled, TTL 5, cut to what fits
//!                                          | not ours
//!                                          +-> upstream (the question as it is sent on; is this its answer?)
//! ```
//!
//! | question | answer |
//! |---|---|
//! | `NAME`, `ALIAS` (which may have dots), the 12 digits of an id, each alone or with `.NETWORK` | addresses of every such endpoint |
//! | the same, of a type that they do not have | no data |
//! | the reverse name of an endpoint's address | `NAME.NETWORK` |
//! | `NETWORK` | no data |
//! | any other single label, or name below any network of the mesh, or address of the sandbox's networks | no such name |
//! | `localhost` and what is below it | the loopback addresses (RFC 6761 section 6.3) |
//! | anything else | goes to the upstreams, or there is no such name where networks have no way out |
//!
//! Answers have no SOA record, so nobody keeps a refusal (RFC 2308 section 5): a name is there as soon as its endpoint
//! is. This file's children open no socket, read no clock and draw no random number.

mod answer;
mod message;
mod table;
mod upstream;

pub use answer::{Found, View};
pub use message::{Fault, Query, RecordKind, Transport};
pub use table::{NamedEndpoint, NamesTable};
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
    /// Send this back, if there is something: the bytes are no question.
    Refuse(Fault),
}

/// Judges bytes that came to a server of names. `seed` orders the answers.
#[must_use]
pub fn step(view: &View, bytes: &[u8], transport: Transport, seed: u64) -> Step {
    let query = match Query::parse(bytes, transport) {
        Ok(query) => query,
        Err(fault) => return Step::Refuse(fault),
    };
    match view.find(&query) {
        Found::Elsewhere if view.forwards && query.wants_recursion() => {
            Step::Forward(Box::new(query))
        }
        found => Step::Reply(query.reply(&found, seed)),
    }
}
