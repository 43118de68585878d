//! The rules that say in which table the kernel looks for a route (ip-rule(8)): those that every
//! new network namespace has ([`PolicyRule`]). Without them no route leads anywhere, whatever the
//! tables hold.

use nix::errno::Errno;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        route::{RouteHeader, RouteProtocol},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};

use super::link::{LinkError, Links, listed};

/// `RT_TABLE_DEFAULT` and `RT_TABLE_LOCAL` of linux/rtnetlink.h.
const TABLE_DEFAULT: u8 = 253;
const TABLE_LOCAL: u8 = 255;

/// What the kernel begins with: local, main and, of IPv4 only, default.
const BEGINNING: [PolicyRule; 5] = [
    PolicyRule { ipv4: true, priority: 0, table: TABLE_LOCAL },
    PolicyRule { ipv4: true, priority: 32_766, table: RouteHeader::RT_TABLE_MAIN },
    PolicyRule { ipv4: true, priority: 32_767, table: TABLE_DEFAULT },
    PolicyRule { ipv4: false, priority: 0, table: TABLE_LOCAL },
    PolicyRule { ipv4: false, priority: 32_766, table: RouteHeader::RT_TABLE_MAIN },
];

/// A rule that sends every packet of an IP version to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    ipv4: bool,
    priority: u32,
    table: u8,
}

impl std::fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = if self.ipv4 { 4 } else { 6 };
        write!(f, "the policy rule {} of IPv{version} (`ip rule`)", self.priority)
    }
}

impl PolicyRule {
    /// What a message says, if it is such a rule. What it says beside is not judged: newer kernels
    /// may say more.
    fn of(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let (mut priority, mut table) = (0, u32::from(header.table));
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(is) => priority = *is,
                RuleAttribute::Table(is) => table = *is,
                RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::FwMark(_) => return None,
                _ => {}
            }
        }
        let is_for_all = header.tos == 0 && !header.flags.contains(RuleFlags::Invert);
        let leads = header.action == RuleAction::ToTable;
        let ipv4 = header.family == AddressFamily::Inet;
        let table = u8::try_from(table).ok()?;
        (is_for_all && leads).then_some(Self { ipv4, priority, table })
    }
}

impl Links {
    /// Which rules the namespace began with and has no more.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn missing_policy_rules(&self) -> Result<Vec<PolicyRule>, LinkError> {
        let mut missing = Vec::new();
        for (version, ipv4) in [(IpVersion::V4, true), (IpVersion::V6, false)] {
            let dump = || self.handle.rule().get(version.clone()).execute();
            let found = match listed("the policy rules", dump).await {
                // A kernel without the IP version, or with no choice of tables.
                Err(error) if error.is(Errno::EAFNOSUPPORT) || error.is(Errno::EOPNOTSUPP) => {
                    continue;
                }
                found => found?,
            };
            let found: Vec<_> = found.iter().filter_map(PolicyRule::of).collect();
            let beginning = BEGINNING.into_iter().filter(|rule| rule.ipv4 == ipv4);
            missing.extend(beginning.filter(|rule| !found.contains(rule)));
        }
        Ok(missing)
    }

    /// Puts a rule back; one that is there already is fine.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub async fn add_policy_rule(&self, rule: PolicyRule) -> Result<(), LinkError> {
        let mut request = self
            .handle
            .rule()
            .add()
            .priority(rule.priority)
            .table_id(rule.table.into())
            .action(RuleAction::ToTable);
        let message = request.message_mut();
        message.header.family = if rule.ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
        match self.done("put back", &rule.to_string(), request.execute().await) {
            Err(error) if error.exists() => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::netlink::{
        netns::Netns,
        watch::{Change, Heard, Watch},
    };

    /// Needs root, as all tests with namespaces.
    #[test]
    fn what_is_taken_away_is_told_named_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        let netns = Netns::create(&path).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let links = Links::open(&netns).unwrap();
            assert_eq!(links.missing_policy_rules().await.unwrap(), []);
            let handle = tokio::runtime::Handle::current();
            let watch = netns.run(|| {
                let _context = handle.enter();
                Watch::open()
            });
            let watch = watch.unwrap();
            for version in [IpVersion::V4, IpVersion::V6] {
                let rules: Vec<RuleMessage> =
                    links.handle.rule().get(version).execute().try_collect().await.unwrap();
                for rule in rules {
                    links.handle.rule().del(rule).execute().await.unwrap();
                }
                let Heard::Events(events) = watch.hear(|_| true).await.unwrap() else { panic!() };
                assert!(events.iter().all(|event| event.change == Change::PolicyRules));
            }
            let missing = links.missing_policy_rules().await.unwrap();
            assert_eq!(missing, BEGINNING);
            assert!(missing[1].to_string().contains("32766 of IPv4"), "{}", missing[1]);
            for rule in missing.into_iter().chain([BEGINNING[0]]) {
                links.add_policy_rule(rule).await.unwrap();
            }
            assert_eq!(links.missing_policy_rules().await.unwrap(), []);
        });
        Netns::remove(&path).unwrap();
    }
}
