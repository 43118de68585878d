//! Whether firewalls of others let in, and out, what the agents send each other: [`closed`].
//!
//! What a chain does with a packet cannot be told without asking the kernel with one. So this only
//! finds chains at a hook whose last word is no, by their policy or by a rule without a condition,
//! in tables where no rule accepts the ports by number. Rules are read as nft(8) writes them and as
//! iptables(8) does (`match udp`, `match multiport`).

use netlink_bindings::nftables::{
    CmpOps, ExprOps, IterableExprListAttrs, MetaKeys, PayloadBase, VerdictCode,
};

use super::{
    FirewallError,
    foreign::{ForeignChain, base_chains, each_rule},
    rule::Protocol,
    table::Hook,
};

/// `XT_MULTIPORT_SOURCE`.
const SOURCE: u8 = 0;

/// What of a rule matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    accepts: bool,
    drops: bool,
    /// Whether it is true for some packets only.
    conditional: bool,
    /// Whether it is for another protocol than UDP.
    foreign: bool,
    /// Whether it is for certain destination ports; a set of them is not looked at.
    named: bool,
    first: u16,
    last: u16,
    /// Ranges of which one must hold; none is all.
    any: Vec<(u16, u16)>,
}

impl Seen {
    const fn new() -> Self {
        Self {
            accepts: false,
            drops: false,
            conditional: false,
            foreign: false,
            named: false,
            first: 0,
            last: u16::MAX,
            any: Vec::new(),
        }
    }

    fn narrow(&mut self, first: u16, last: u16) {
        self.named = true;
        self.first = self.first.max(first);
        self.last = self.last.min(last);
    }

    fn admits(&self, port: u16) -> bool {
        let in_any = self.any.iter().any(|(first, last)| (*first..=*last).contains(&port));
        self.accepts
            && !self.foreign
            && self.named
            && (self.first..=self.last).contains(&port)
            && (self.any.is_empty() || in_any)
    }
}

/// A chain that lets in nothing that it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The chain.
    pub chain: ForeignChain,
    /// Those of the ports that no rule of its table accepts.
    pub ports: Vec<u16>,
    /// What to type.
    pub remedy: String,
}

/// Chains at a hook that do not let UDP to these ports pass.
///
/// # Errors
/// The kernel does not answer.
pub fn closed(hook: Hook, ports: &[u16]) -> Result<Vec<Closed>, FirewallError> {
    let mut rules = Vec::new();
    each_rule(|chain, rule| {
        if let Ok(exprs) = rule.get_expressions() {
            rules.push((chain, seen(exprs)));
        }
    })?;
    let chains = base_chains(hook.number())?;
    Ok(chains.into_iter().filter_map(|chain| shut(chain, &rules, ports)).collect())
}

fn shut(
    (chain, policy_drops): (ForeignChain, bool),
    rules: &[(ForeignChain, Seen)],
    ports: &[u16],
) -> Option<Closed> {
    let mut own = rules.iter().filter(|(place, _)| *place == chain);
    let says_no = policy_drops || own.any(|(_, rule)| rule.drops && !rule.conditional);
    let table = || rules.iter().filter(|(place, _)| place.is_beside(&chain));
    let is_missing = |port: &u16| !table().any(|(_, rule)| rule.admits(*port));
    let ports: Vec<u16> = ports.iter().copied().filter(is_missing).collect();
    if !says_no || ports.is_empty() {
        return None;
    }
    let places: Vec<ForeignChain> = table().map(|(place, _)| place.clone()).collect();
    let remedy = remedy(&chain, &places, &ports);
    Some(Closed { chain, ports, remedy })
}

/// What was loaded last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Port,
    Protocol,
    Other,
}

fn seen(exprs: IterableExprListAttrs<'_>) -> Seen {
    let mut seen = Seen::new();
    let mut loaded = Loaded::Other;
    for expr in exprs.get_elem() {
        let Ok(data) = expr.get_data() else {
            seen.conditional = true;
            continue;
        };
        match data {
            ExprOps::Counter(_) | ExprOps::Log(_) => {}
            ExprOps::Reject(_) => seen.drops = true,
            ExprOps::Immediate(immediate) => {
                let verdict = immediate.get_data().and_then(|data| data.get_verdict());
                let code = verdict.and_then(|verdict| verdict.get_code()).ok();
                seen.accepts = code == Some(VerdictCode::Accept as u32);
                seen.drops = code == Some(VerdictCode::Drop as u32);
            }
            condition => {
                seen.conditional = true;
                loaded = look(&condition, loaded, &mut seen);
            }
        }
    }
    seen
}

fn look(condition: &ExprOps<'_>, loaded: Loaded, seen: &mut Seen) -> Loaded {
    match condition {
        ExprOps::Meta(meta) if meta.get_key().is_ok_and(|key| key == MetaKeys::L4Proto as u32) => {
            return Loaded::Protocol;
        }
        ExprOps::Payload(payload) => {
            let transport = PayloadBase::TransportHeader as u32;
            let is_port = payload.get_base().is_ok_and(|base| base == transport)
                && payload.get_offset().is_ok_and(|offset| offset == 2)
                && payload.get_len().is_ok_and(|len| len == 2);
            return if is_port { Loaded::Port } else { Loaded::Other };
        }
        ExprOps::Cmp(cmp) => {
            let value = cmp.get_data().and_then(|data| data.get_value()).unwrap_or_default();
            let op = cmp.get_op().ok().and_then(|op| CmpOps::from_value(op.into()));
            match (loaded, value, op) {
                (Loaded::Protocol, [number], Some(CmpOps::Eq)) => {
                    seen.foreign = *number != Protocol::Udp.number();
                }
                (Loaded::Port, [a, b], Some(op)) => {
                    let port = u16::from_be_bytes([*a, *b]);
                    match op {
                        CmpOps::Eq => seen.narrow(port, port),
                        CmpOps::Gte => seen.narrow(port, u16::MAX),
                        CmpOps::Lte => seen.narrow(0, port),
                        CmpOps::Neq | CmpOps::Lt | CmpOps::Gt => {}
                    }
                }
                _ => {}
            }
        }
        ExprOps::Range(range) if loaded == Loaded::Port => {
            let from = range.get_from_data().and_then(|data| data.get_value());
            let to = range.get_to_data().and_then(|data| data.get_value());
            if let (Ok([a, b]), Ok([c, d])) = (from, to) {
                seen.narrow(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            }
        }
        ExprOps::Lookup(_) if loaded == Loaded::Port => seen.named = true,
        ExprOps::Match(compat) => {
            let name = compat.get_name().map(std::ffi::CStr::to_bytes).unwrap_or_default();
            read_match(name, compat.get_info().unwrap_or_default(), seen);
        }
        _ => {}
    }
    loaded
}

/// `struct xt_udp` and `struct xt_multiport_v1`, in the host's byte order.
fn read_match(name: &[u8], info: &[u8], seen: &mut Seen) {
    let port = |at: usize| {
        let bytes = info.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u16::from_ne_bytes(*bytes))
    };
    match (name, info) {
        (b"udp", _) if (port(4), port(6)) != (0, u16::MAX) => seen.narrow(port(4), port(6)),
        (b"multiport", [flags, count, ..]) if *flags != SOURCE => {
            seen.named = true;
            let mut at = 0;
            while at < usize::from(*count) {
                let is_range = info.get(32 + at).is_some_and(|flag| *flag != 0);
                let last = at + usize::from(is_range);
                seen.any.push((port(2 + 2 * at), port(2 + 2 * last)));
                at = last + 1;
            }
        }
        _ => {}
    }
}

/// What has such a chain accept UDP ports, as the program to which it belongs takes it.
fn remedy(chain: &ForeignChain, all: &[ForeignChain], ports: &[u16]) -> String {
    let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let ufw = all.iter().any(|other| other.is_beside(chain) && other.chain.starts_with("ufw"));
    if ufw {
        let each = list.iter().map(|port| format!("ufw allow {port}/udp"));
        return each.collect::<Vec<_>>().join(" && ");
    }
    if chain.table == "firewalld" {
        let each: Vec<String> = list.iter().map(|port| format!("--add-port={port}/udp")).collect();
        return format!("firewall-cmd --permanent {} && firewall-cmd --reload", each.join(" "));
    }
    format!("nft insert rule {chain} udp dport '{{ {} }}' accept", list.join(", "))
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn ports_of_matches() {
        let mut udp = Seen::new();
        udp.accepts = true;
        let words: [u16; 5] = [0, u16::MAX, 7760, 7761, 0];
        let info: Vec<u8> = words.into_iter().flat_map(u16::to_ne_bytes).collect();
        read_match(b"udp", &info, &mut udp);
        assert!(udp.admits(7760) && udp.admits(7761) && !udp.admits(7762));

        let mut several = Seen::new();
        several.accepts = true;
        let mut info = vec![1, 3];
        let ports: [u16; 15] = [53, 7760, 7762, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        info.extend(ports.into_iter().flat_map(u16::to_ne_bytes));
        info.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        read_match(b"multiport", &info, &mut several);
        assert_eq!(
            [53, 54, 7761, 7763].map(|port| several.admits(port)),
            [true, false, true, false]
        );

        let mut any = Seen::new();
        any.accepts = true;
        read_match(b"udp", &[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0], &mut any);
        assert!(!any.admits(7760), "a rule for all ports has other conditions");
    }

    #[test]
    fn what_to_type() {
        let chain = |family, table: &str, chain: &str| ForeignChain {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
        };
        let input = chain(libc::NFPROTO_IPV4, "filter", "INPUT");
        let plain = remedy(&input, &[], &[7760]);
        assert_eq!(plain, "nft insert rule ip filter INPUT udp dport '{ 7760 }' accept");
        let ufw =
            remedy(&input, &[chain(libc::NFPROTO_IPV4, "filter", "ufw-user-input")], &[7760, 7761]);
        assert_eq!(ufw, "ufw allow 7760/udp && ufw allow 7761/udp");
        let firewalld = chain(libc::NFPROTO_INET, "firewalld", "filter_INPUT");
        assert!(
            remedy(&firewalld, &[], &[7760])
                .starts_with("firewall-cmd --permanent --add-port=7760/udp &&")
        );
    }
}
