//! What must be told to firewalls of others: two rules in each chain that would drop what is forwarded.
//!
//! A packet must pass every chain at the forward hook, so an accepting rule in our own table saves none from a chain of
//! another that drops (as Docker's, ufw's or firewalld's do). Such a chain gets two rules in front, one for each way,
//! which carry [`COMMENT`]. They are written the way that iptables(8) reads, too. Tables of iptables-legacy are out of reach.

use std::{collections::BTreeSet, ffi::CStr, io};

use netlink_bindings::{
    nftables::{Chained, ExprOps, OpGetchainDump, OpGetruleDump, VerdictCode},
    traits::NetlinkRequest,
};
use nix::libc;

use super::{
    FirewallError, TABLE,
    rule::{Rule, accept, input, output},
    socket::{Batch, Socket},
    table::{header, write_rule},
    user_data::comment,
};

/// The comment of these rules.
pub const COMMENT: &str = "vxmesh: to and from the uplinks of its networks";
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

/// A rule that was found.
struct Found {
    chain: ForeignChain,
    handle: u64,
    ours: bool,
    drops: bool,
}

/// Puts the rules in front of each chain that drops what is forwarded, for interfaces of this name; those in other places go.
/// Says which chains have them.
///
/// # Errors
/// The kernel refuses a change.
pub fn admit(interfaces: &str) -> Result<Vec<ForeignChain>, FirewallError> {
    let failed = |error| FirewallError::new("add to", "chains of others", error);
    let found = rules()?;
    let hostile = hostile(&found)?;
    let mut batch = Batch::new();
    let mut changed = false;
    for chain in &hostile {
        let mut here = found.iter().filter(|rule| rule.chain == *chain);
        let in_front = here.clone().take(2).filter(|rule| rule.ours).count();
        if in_front == 2 && here.clone().filter(|rule| rule.ours).count() == 2 {
            continue;
        }
        remove_ours(&mut batch, here.by_ref());
        for clause in [output(interfaces), input(interfaces)] {
            // Without NLM_F_APPEND a rule is put in front.
            let mut request = batch.request().set_create().op_newrule_do(&header(chain.family));
            let place = request.encode().push_table_bytes(chain.table.as_bytes());
            let rule = Rule::new(COMMENT).and(clause).and(accept());
            write_rule(place.push_chain_bytes(chain.chain.as_bytes()), &rule, &comment(&rule));
        }
        changed = true;
    }
    let idle: Vec<&Found> =
        found.iter().filter(|rule| rule.ours && !hostile.contains(&rule.chain)).collect();
    changed |= !idle.is_empty();
    remove_ours(&mut batch, idle.into_iter());
    if changed {
        Socket::open().map_err(failed)?.change(batch).map_err(failed)?;
    }
    Ok(hostile.into_iter().collect())
}

/// Takes the rules out of every chain.
///
/// # Errors
/// The kernel refuses a change.
pub fn withdraw() -> Result<(), FirewallError> {
    let failed = |error| FirewallError::new("remove from", "chains of others", error);
    let found = rules()?;
    if !found.iter().any(|rule| rule.ours) {
        return Ok(());
    }
    let mut batch = Batch::new();
    remove_ours(&mut batch, found.iter());
    Socket::open().map_err(failed)?.change(batch).map_err(failed)
}

fn remove_ours<'a>(batch: &mut Batch, found: impl Iterator<Item = &'a Found>) {
    for rule in found.filter(|rule| rule.ours) {
        let mut request = batch.request().op_delrule_do(&header(rule.chain.family));
        let place = request.encode().push_table_bytes(rule.chain.table.as_bytes());
        drop(place.push_chain_bytes(rule.chain.chain.as_bytes()).push_handle(rule.handle));
    }
}

/// Chains at the forward hook that drop: by their policy, or because a rule of their table does.
fn hostile(found: &[Found]) -> Result<BTreeSet<ForeignChain>, FirewallError> {
    let mut chains = base_chains(libc::NF_INET_FORWARD)?;
    chains.retain(|(chain, policy_drops)| {
        *policy_drops || found.iter().any(|rule| rule.drops && rule.chain.is_beside(chain))
    });
    Ok(chains.into_iter().map(|(chain, _)| chain).collect())
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
            let filter = chain.get_type().is_ok_and(|kind| kind.to_bytes() == b"filter");
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
fn rules() -> Result<Vec<Found>, FirewallError> {
    let failed = |error| FirewallError::new("list", "rules", error);
    let ours = comment(&Rule::new(COMMENT));
    let mut found = Vec::new();
    for family in FAMILIES {
        let mut question = Chained::new(1);
        question.request().op_getrule_dump(&header(family));
        let answered = Socket::open().map_err(failed)?.ask(question, |part| {
            let (_, rule) = OpGetruleDump::decode_reply(part);
            let (Ok(table), Ok(chain), Ok(handle)) =
                (rule.get_table(), rule.get_chain(), rule.get_handle())
            else {
                return;
            };
            let drops = rule.get_expressions().is_ok_and(|exprs| {
                exprs.get_elem().any(|expr| match expr.get_data() {
                    Ok(ExprOps::Reject(_)) => true,
                    Ok(ExprOps::Immediate(immediate)) => immediate
                        .get_data()
                        .and_then(|data| data.get_verdict())
                        .and_then(|verdict| verdict.get_code())
                        .is_ok_and(|code| code == VerdictCode::Drop as u32),
                    _ => false,
                })
            });
            found.push(Found {
                chain: ForeignChain::new(family, table, chain),
                handle,
                ours: rule.get_userdata().is_ok_and(|data| data == ours),
                drops,
            });
        });
        absent_is_empty(answered).map_err(failed)?;
    }
    found.retain(|rule| rule.chain.table != TABLE);
    Ok(found)
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
