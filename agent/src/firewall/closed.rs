//! What stays closed while the host forwards for its networks, though it forwarded nothing before:
//! [`Closed`].
//!
//! ```text
//! uplink -> anywhere            is judged elsewhere
//! bridge -> the same bridge     passes, if it is not meant for the host: with br_netfilter switched frames come to this hook, too
//! anything else                 dropped, whatever the interface is called and whenever it came; but by those that forwarded before
//! ```

use std::collections::BTreeSet;

use vxmesh_proto::addr::MacAddr;

use super::{
    frame::{DESTINATION, is_none_of},
    rule::{Rule, accept, drop, goto, input, input_not, is_ip, within_a_bridge},
    table::{Chain, Set},
};

/// What an IP version of the host was before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Whether the host did not forward it.
    pub ipv4: Option<Open>,
    /// Whether the host did not forward it.
    pub ipv6: Option<Open>,
    /// The MACs by which neighbours call the host, where frames that bridges switch come to these
    /// rules, too.
    pub own: Option<BTreeSet<MacAddr>>,
}

/// Interfaces by which packets were forwarded all the same.
pub type Open = BTreeSet<String>;

const CHAINS: [&str; 2] = ["closed4", "closed6"];
const BRIDGES: &str = "bridges";
const OWN: &str = "own_macs";
/// nft(8)'s numbers of types: ifname twice, six bits each; ether_addr.
const TWO_NAMES: (u32, u32) = (41 << 6 | 41, 32);
const MAC: (u32, u32) = (9, 6);

impl Closed {
    fn versions(&self) -> impl Iterator<Item = (bool, &'static str, &Open)> {
        let [v4, v6] = CHAINS;
        let all = [(true, v4, &self.ipv4), (false, v6, &self.ipv6)];
        all.into_iter().filter_map(|(ipv4, chain, open)| Some((ipv4, chain, open.as_ref()?)))
    }

    /// The host's MACs where a rule asks for them. An empty set would let everything pass as
    /// switched.
    fn switched(&self) -> Option<&BTreeSet<MacAddr>> {
        self.own.as_ref().filter(|own| !own.is_empty() && self.versions().next().is_some())
    }

    /// The sets that its rules use.
    pub(super) fn sets(&self) -> Vec<Set> {
        let Some(own) = self.switched() else { return Vec::new() };
        let keys = own.iter().map(|mac| mac.0.to_vec()).collect();
        let set = |name, (key_type, key_len), keys, by_rules| Set {
            by_rules,
            name,
            key_type,
            key_len,
            size: None,
            stays: false,
            keys,
        };
        vec![set(BRIDGES, TWO_NAMES, BTreeSet::new(), true), set(OWN, MAC, keys, false)]
    }

    /// The chains that decide, one for each IP version.
    pub(super) fn chains(&self) -> Vec<Chain> {
        let chain = |(_ipv4, name, open): (bool, &'static str, &Open)| {
            let passes = |ifname: &String| {
                Rule::new(format!("{ifname} forwarded before")).and(input(ifname)).and(accept())
            };
            let mut rules: Vec<Rule> = open.iter().map(passes).collect();
            rules.push(Rule::new("the host is no router for others").and(drop()));
            Chain { name, base: None, rules }
        };
        self.versions().map(chain).collect()
    }

    /// What leads there, of all that is forwarded; `uplinks` are the interfaces of networks.
    pub(super) fn rules(&self, uplinks: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.switched().is_some() {
            let [note, switched] = within_a_bridge(BRIDGES);
            rules.push(Rule::new("a bridge").and(note));
            rules.push(
                Rule::new("switched by a bridge")
                    .and(switched)
                    .and(is_none_of(DESTINATION, OWN))
                    .and(accept()),
            );
        }
        rules.extend(self.versions().map(|(ipv4, chain, _open)| {
            let version = if ipv4 { 4 } else { 6 };
            Rule::new(format!("IP version {version} was not forwarded"))
                .and(input_not(uplinks))
                .and(is_ip(ipv4))
                .and(goto(chain))
        }));
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_depends_on_what_interfaces_there_are() {
        let closed = Closed { ipv4: Some(Open::new()), ..Closed::default() };
        let rules = closed.rules("vxm*");
        let [last] = &*rules else { panic!("{rules:?}") };
        let exprs = [input_not("vxm*").0, is_ip(true).0, goto("closed4").0].concat();
        assert_eq!(last.exprs, exprs);
        let chains = closed.chains();
        let [Chain { rules, .. }] = &*chains else { panic!("{chains:?}") };
        assert_eq!(rules.iter().map(|rule| &rule.exprs).collect::<Vec<_>>(), [&drop().0]);
    }

    #[test]
    fn what_forwarded_before_goes_on() {
        let open = Open::from(["eth1".to_owned()]);
        let closed = Closed { ipv4: Some(open), ..Closed::default() };
        let chains = closed.chains();
        let [Chain { rules, .. }] = &*chains else { panic!("{chains:?}") };
        assert_eq!(rules[0].exprs, [input("eth1").0, accept().0].concat());
        let open = Closed::default();
        assert!(
            open.rules("vxm*").is_empty() && open.chains().is_empty() && open.sets().is_empty()
        );
    }

    #[test]
    fn what_a_bridge_switches_passes_before_anything_is_closed() {
        let own = BTreeSet::from([MacAddr([2, 0, 0, 0, 0, 1])]);
        let closed = Closed { ipv6: Some(Open::new()), own: Some(own), ..Closed::default() };
        let rules = closed.rules("vxm*");
        let [_note, switched, closed_rule] = &*rules else { panic!("{rules:?}") };
        let not_the_hosts = is_none_of(DESTINATION, OWN).0;
        assert!(switched.exprs.windows(not_the_hosts.len()).any(|part| part == not_the_hosts));
        assert!(
            switched.exprs.ends_with(&accept().0)
                && closed_rule.exprs.ends_with(&goto("closed6").0)
        );
        let sets = closed.sets();
        assert!(sets[0].by_rules && sets[1].keys == BTreeSet::from([vec![2, 0, 0, 0, 0, 1]]));
    }

    #[test]
    fn nothing_passes_as_switched_where_the_hosts_macs_are_not_known() {
        for own in [None, Some(BTreeSet::new())] {
            let closed = Closed { ipv4: Some(Open::new()), own, ..Closed::default() };
            let rules = closed.rules("vxm*");
            assert!(rules.iter().all(|rule| !rule.exprs.ends_with(&accept().0)), "{rules:?}");
            assert!(closed.sets().is_empty());
        }
    }
}
