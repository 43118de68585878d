//! Rules of others that keep packets of networks from passing, and that nothing of ours stands
//! against: [`obstacles`].
//!
//! Only the chains at the forward hook are told about us ([`super::foreign`]). What a packet meets
//! before and behind that can be seen, if not always understood: a rule that takes packets out of
//! the kernel's tracking, a chain whose last word is no, a rule that names our interfaces.

use std::collections::{BTreeMap, BTreeSet};

use netlink_bindings::nftables::{ExprOps, IterableExprListAttrs, VerdictCode};
use nix::libc;

use super::{
    FirewallError,
    foreign::{ForeignChain, base_chains, each_rule},
    last_word::{Ruled, spots, word},
};

/// `XT_CT_NOTRACK`.
const NOTRACK: u16 = 1;

/// What is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A chain's rules have packets not tracked; what is not tracked is not rewritten.
    Untracked(ForeignChain),
    /// A chain drops what it does not know.
    Closed(ForeignChain),
    /// A chain drops by rules that name our interfaces.
    Named(ForeignChain),
    /// A chain drops by rules of other conditions, so many packets up to now.
    Drops(ForeignChain, u64),
}

/// What of a rule matters here.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    untracks: bool,
    drops: bool,
    ours: bool,
    packets: u64,
}

/// What is in the way of packets from and to interfaces whose names begin so.
///
/// # Errors
/// The kernel does not answer.
pub fn obstacles(prefix: &str) -> Result<Vec<Obstacle>, FirewallError> {
    let mut ruled = Vec::new();
    let mut seen: BTreeMap<ForeignChain, Vec<Seen>> = BTreeMap::new();
    each_rule(|chain, rule| {
        let (Ok(handle), Ok(exprs)) = (rule.get_handle(), rule.get_expressions()) else { return };
        seen.entry(chain.clone()).or_default().push(look(exprs, prefix.as_bytes()));
        ruled.push(Ruled { chain, handle, ours: false, word: word(exprs) });
    })?;
    let mut all = Vec::new();
    let untracks = |chain: &ForeignChain| any(&seen, chain, |rule| rule.untracks);
    all.extend(seen.keys().filter(|chain| untracks(chain)).cloned().map(Obstacle::Untracked));
    let mut others: BTreeSet<ForeignChain> = BTreeSet::new();
    for hook in [libc::NF_INET_PRE_ROUTING, libc::NF_INET_POST_ROUTING] {
        for (chain, drops) in base_chains(hook)? {
            let closed = spots(&chain, drops, &ruled);
            all.extend(closed.into_iter().map(|spot| Obstacle::Closed(spot.chain)));
            others.insert(chain);
        }
    }
    let named = |chain: &ForeignChain| any(&seen, chain, |rule| rule.drops && rule.ours);
    all.extend(seen.keys().filter(|chain| named(chain)).cloned().map(Obstacle::Named));
    for chain in others {
        let rules = seen.get(&chain).into_iter().flatten();
        let packets = rules.filter(|rule| rule.drops).map(|rule| rule.packets).sum();
        if packets > 0 {
            all.push(Obstacle::Drops(chain, packets));
        }
    }
    Ok(all)
}

fn any(
    seen: &BTreeMap<ForeignChain, Vec<Seen>>,
    chain: &ForeignChain,
    is: fn(&Seen) -> bool,
) -> bool {
    seen.get(chain).is_some_and(|rules| rules.iter().any(is))
}

fn look(exprs: IterableExprListAttrs<'_>, prefix: &[u8]) -> Seen {
    let mut seen = Seen::default();
    for expr in exprs.get_elem() {
        seen.untracks |= expr.get_name().is_ok_and(|name| name.to_bytes() == b"notrack");
        match expr.get_data() {
            Ok(ExprOps::Reject(_)) => seen.drops = true,
            Ok(ExprOps::Target(target)) => {
                let name = target.get_name().map(std::ffi::CStr::to_bytes).unwrap_or_default();
                seen.drops |= name == b"REJECT";
                let flags = target.get_info().unwrap_or_default().first_chunk();
                let flags = flags.map_or(0, |flags| u16::from_ne_bytes(*flags));
                seen.untracks |= name == b"NOTRACK" || (name == b"CT" && flags & NOTRACK != 0);
            }
            Ok(ExprOps::Immediate(immediate)) => {
                let verdict = immediate.get_data().and_then(|data| data.get_verdict());
                let code = verdict.and_then(|verdict| verdict.get_code());
                seen.drops |= code.is_ok_and(|code| code == VerdictCode::Drop as u32);
            }
            Ok(ExprOps::Cmp(cmp)) => {
                let value = cmp.get_data().and_then(|data| data.get_value()).unwrap_or_default();
                seen.ours |= value.starts_with(prefix);
            }
            Ok(ExprOps::Counter(counter)) => {
                seen.packets = counter.get_packets().unwrap_or_default();
            }
            Ok(_) | Err(_) => {}
        }
    }
    seen
}
