//! Which packets belong together, for the outer source port (RFC 7348 section 5): routers between
//! hosts spread flows over paths by it, and packets of one flow stay in order.

use std::hash::BuildHasher;

use crate::{frame::Headers, tables::Seeded};

/// A number that the packets of one flow share.
#[must_use]
pub fn flow_hash(seed: u64, headers: Option<&Headers>) -> u64 {
    let hash = headers.map(|headers| Seeded(seed).hash_one(headers.flow()));
    // The multiplication mixes upwards.
    hash.unwrap_or_default() >> 32
}
