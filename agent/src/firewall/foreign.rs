//! What must be told to firewalls of others: two rules in each chain that would drop whatever is
//! forwarded.
//!
//! A packet must pass every chain at the forward hook, so an accepting rule in our own table saves
//! none from a chain of another that drops what it does not know (as Docker's, ufw's or firewalld's
//! do). There two rules, one for each way, stand directly in front of what says no, behind all
//! rules that are about something: these are somebody's word ([`super::last_word`]). Ours carry
//! [`COMMENT`], and are written the way that iptables(8) reads, too. Tables of iptables-legacy are
//! out of reach.

use std::{collections::BTreeSet, ffi::CStr, io};

use netlink_bindings::{
    nftables::{Chained, IterableRuleAttrs, OpGetchainDump, OpGetruleDump},
    traits::NetlinkRequest,
};
use nix::libc;

use super::{
    FirewallError, TABLE,
    last_word::{Ruled, Spot, spots, word},
    rule::{Rule, accept, input, output},
    socket::{Batch, Socket},
    table::{header, write_rule},
    user_data::comment,
};

/// The comment of these rules.
pub const COMMENT: &str = "vxmesh: to and from the uplinks of its networks";
/// How often others are waited for.
const TRIES: usize = 5;
/// `NF_DROP`.
const DROP: u32 = 0;
pub(super) const FAMILIES: [i32; 3] = [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6, libc::NFPROTO_INET];

/// A chain of another program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    pub(super) family: i32,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

impl ForeignChain {
    pub(super) fn new(family: i32, table: &CStr, chain: &CStr) -> Self {
        let text = |name: &CStr| name.to_string_lossy().into_owned();
        Self { family, table: text(table), chain: text(chain) }
    }

    /// Whether both are in one table.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        (self.family, &self.table) == (other.family, &other.table)
    }
}

impl std::fmt::Display for ForeignChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            libc::NFPROTO_IPV4 => "ip",
            libc::NFPROTO_IPV6 => "ip6",
            _ => "inet",
        };
        write!(f, "{family} {} {}", self.table, self.chain)
    }
}

/// Makes an exception for interfaces of this name wherever a chain at the forward hook says no to
/// what no rule is about, and nowhere else. Says which chains have it.
///
/// # Errors
/// The kernel refuses a change.
pub fn admit(interfaces: &str) -> Result<Vec<ForeignChain>, FirewallError> {
    in_step(|| admit_as_found(interfaces))
}

/// Makes a change of what was found. Whose chains these are may have written them anew since; then
/// they are looked at once more.
fn in_step<T>(change: impl Fn() -> Result<T, FirewallError>) -> Result<T, FirewallError> {
    let mut done = change();
    for _again in 1..TRIES {
        if !done.as_ref().is_err_and(FirewallError::is_overtaken) {
            break;
        }
        done = change();
    }
    done
}

fn admit_as_found(interfaces: &str) -> Result<Vec<ForeignChain>, FirewallError> {
    let failed = |error| FirewallError::new("add to", "chains of others", error);
    let found = rules()?;
    let chains = base_chains(libc::NF_INET_FORWARD)?;
    let spots = chains.iter().flat_map(|(chain, drops)| spots(chain, *drops, &found));
    let spots: BTreeSet<Spot> = spots.collect();
    let mut batch = Batch::new();
    let mut changed = false;
    for spot in spots.iter().filter(|spot| !is_excepted(spot, &found)) {
        remove_ours(&mut batch, found.iter().filter(|rule| rule.chain == spot.chain));
        for clause in [input(interfaces), output(interfaces)] {
            let mut request = batch.request().set_create();
            if spot.before.is_none() {
                request = request.set_append();
            }
            let mut request = request.op_newrule_do(&header(spot.chain.family));
            let mut place = request.encode().push_table_bytes(spot.chain.table.as_bytes());
            place = place.push_chain_bytes(spot.chain.chain.as_bytes());
            if let Some(handle) = spot.before {
                place = place.push_position(handle);
            }
            let rule = Rule::new(COMMENT).and(clause).and(accept());
            write_rule(place, &rule, &comment(&rule));
        }
        changed = true;
    }
    let is_idle = |rule: &&Ruled| rule.ours && !spots.iter().any(|spot| spot.chain == rule.chain);
    let idle: Vec<&Ruled> = found.iter().filter(is_idle).collect();
    changed |= !idle.is_empty();
    remove_ours(&mut batch, idle.into_iter());
    if changed {
        Socket::open().map_err(failed)?.change(batch).map_err(failed)?;
    }
    Ok(spots.into_iter().map(|spot| spot.chain).collect())
}

/// Whether both rules stand directly before what says no, and no other of ours in that chain.
fn is_excepted(spot: &Spot, found: &[Ruled]) -> bool {
    let own: Vec<&Ruled> = found.iter().filter(|rule| rule.chain == spot.chain).collect();
    let end = own.iter().position(|rule| Some(rule.handle) == spot.before).unwrap_or(own.len());
    let in_place = own.iter().take(end).rev().take_while(|rule| rule.ours).count();
    in_place == 2 && own.iter().filter(|rule| rule.ours).count() == 2
}

/// Takes the rules out of every chain.
///
/// # Errors
/// The kernel refuses a change.
pub fn withdraw() -> Result<(), FirewallError> {
    in_step(withdraw_as_found)
}

fn withdraw_as_found() -> Result<(), FirewallError> {
    let failed = |error| FirewallError::new("remove from", "chains of others", error);
    let found = rules()?;
    if !found.iter().any(|rule| rule.ours) {
        return Ok(());
    }
    let mut batch = Batch::new();
    remove_ours(&mut batch, found.iter());
    Socket::open().map_err(failed)?.change(batch).map_err(failed)
}

fn remove_ours<'a>(batch: &mut Batch, found: impl Iterator<Item = &'a Ruled>) {
    for rule in found.filter(|rule| rule.ours) {
        let mut request = batch.request().op_delrule_do(&header(rule.chain.family));
        let place = request.encode().push_table_bytes(rule.chain.table.as_bytes());
        drop(place.push_chain_bytes(rule.chain.chain.as_bytes()).push_handle(rule.handle));
    }
}

/// Filtering chains of others at a hook, and whether they drop by their policy.
pub(super) fn base_chains(hook: i32) -> Result<Vec<(ForeignChain, bool)>, FirewallError> {
    let failed = |error| FirewallError::new("list", "chains", error);
    let mut chains = Vec::new();
    for family in FAMILIES {
        let mut question = Chained::new(1);
        question.request().op_getchain_dump(&header(family));
        let answered = Socket::open().map_err(failed)?.ask(question, |part| {
            let (_, chain) = OpGetchainDump::decode_reply(part);
            let (Ok(table), Ok(name), Ok(base)) =
                (chain.get_table(), chain.get_name(), chain.get_hook())
            else {
                return;
            };
            let here = base.get_num().is_ok_and(|number| i32::try_from(number) == Ok(hook));
            // Those of iptables(8) that may change a packet's way have a type of their own.
            let kind = chain.get_type().map(CStr::to_bytes).unwrap_or_default();
            let filter = kind == b"filter" || kind == b"route";
            let drops = chain.get_policy().is_ok_and(|policy| policy == DROP);
            let this = ForeignChain::new(family, table, name);
            if here && filter && this.table != TABLE {
                chains.push((this, drops));
            }
        });
        absent_is_empty(answered).map_err(failed)?;
    }
    Ok(chains)
}

/// All rules of others' tables, and ours among them.
fn rules() -> Result<Vec<Ruled>, FirewallError> {
    let ours = comment(&Rule::new(COMMENT));
    let mut found = Vec::new();
    each_rule(|chain, rule| {
        let Ok(handle) = rule.get_handle() else { return };
        found.push(Ruled {
            chain,
            handle,
            ours: rule.get_userdata().is_ok_and(|data| data == ours),
            word: rule.get_expressions().ok().and_then(word),
        });
    })?;
    Ok(found)
}

/// Hands every rule of others' tables to `each`.
pub(super) fn each_rule(
    mut each: impl FnMut(ForeignChain, &IterableRuleAttrs<'_>),
) -> Result<(), FirewallError> {
    let failed = |error| FirewallError::new("list", "rules", error);
    for family in FAMILIES {
        let mut question = Chained::new(1);
        question.request().op_getrule_dump(&header(family));
        let answered = Socket::open().map_err(failed)?.ask(question, |part| {
            let (_, rule) = OpGetruleDump::decode_reply(part);
            if let (Ok(table), Ok(chain)) = (rule.get_table(), rule.get_chain())
                && table.to_bytes() != TABLE.as_bytes()
            {
                each(ForeignChain::new(family, table, chain), &rule);
            }
        });
        absent_is_empty(answered).map_err(failed)?;
    }
    Ok(())
}

/// A kernel without tables of a family says that it does not know it.
pub(super) fn absent_is_empty(answered: io::Result<()>) -> io::Result<()> {
    match answered {
        Err(error)
            if [Some(libc::ENOENT), Some(libc::EAFNOSUPPORT)].contains(&error.raw_os_error()) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_others_took_away_meanwhile_is_looked_at_again_and_nothing_else() {
        let fails = |times: usize, errno| {
            let asked = Cell::new(0);
            let done = in_step(|| {
                asked.set(asked.get() + 1);
                let fault =
                    || FirewallError::new("add to", "x", io::Error::from_raw_os_error(errno));
                if asked.get() > times { Ok(()) } else { Err(fault()) }
            });
            (done.is_ok(), asked.get())
        };
        assert_eq!(fails(0, libc::ENOENT), (true, 1));
        assert_eq!(fails(2, libc::ENOENT), (true, 3));
        assert_eq!(fails(9, libc::ENOENT), (false, TRIES));
        assert_eq!(fails(9, libc::EPERM), (false, 1));
    }
}
