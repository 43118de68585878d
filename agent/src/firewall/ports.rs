//! Published ports on the host's side: who reaches them, and who is refused at once. Rules look at
//! where a packet comes from, not only where it is meant to go.
//!
//! ```text
//! published on             reached from elsewhere                  from this host
//! 127.0.0.0/8              no                                      yes
//! 169.254.0.0/16           by the interface that has the address   yes
//! another address          while this host has it                  yes
//! all of an IP version     by addresses above and below            by these and 127.0.0.0/8
//! ```
//!
//! IPv6 is never routed from or to a link-local address, and nothing from ::1 to another interface.
//! So connections to those are left to the host itself, and refused there: the port is held by a
//! socket that nobody reads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    clients::Clients,
    flows::Flow,
    rule::{
        Clause, Protocol, Rule, begins, destination, destination_is_inputs, destination_is_local,
        destination_not, destination_port, is_ip, redirect_to, refuse, source_not,
    },
};

/// A port of the host that leads to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address on which it is published; all of the host's otherwise, or of one IP version if
    /// it is unspecified.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// The uplink's address and port, one of each IP version at most.
    pub to: Vec<SocketAddr>,
    /// Who is led there. The others are refused.
    pub clients: Clients,
}

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Elsewhere,
    ThisHost,
}

pub(super) fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

fn link_local6() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10))
}

impl Port {
    /// Whether a flow is meant for it.
    pub(super) fn takes(&self, flow: &Flow) -> bool {
        let ip = flow.to.ip();
        flow.protocol == Some(self.protocol)
            && flow.to.port() == self.port
            && self.own().is_none_or(|own| own == ip)
            && self.clients.have(flow.from.ip())
            && self.to.iter().any(|to| to.is_ipv4() == ip.is_ipv4())
    }

    /// The one address on which it is published.
    #[must_use]
    pub fn own(&self) -> Option<IpAddr> {
        self.ip.filter(|ip| !ip.is_unspecified())
    }

    fn rule(&self, rest: &str) -> Rule {
        let at = self.ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
        Rule::new(format!("{} {at} {} {rest}", self.protocol.as_str(), self.port))
    }

    /// What leads to networks.
    pub(super) fn redirects(&self, from: From) -> Vec<Rule> {
        let redirects = |to: &SocketAddr| {
            let reached = self.reached(from, to.is_ipv4())?;
            let clients = self.clients.clauses(to.is_ipv4()).into_iter();
            let rules = clients.map(|clients| {
                let rule = self.rule(&format!("to {to}")).and(is_ip(to.is_ipv4()));
                let rule = rule.and(reached.clone()).and(clients);
                let rule = rule.and(destination_port(self.protocol, self.port));
                rule.and(redirect_to(to.ip(), to.port()))
            });
            Some(rules.collect::<Vec<_>>())
        };
        self.to.iter().filter_map(redirects).flatten().collect()
    }

    /// Which of the host's addresses lead there; nothing if none does.
    fn reached(&self, from: From, ipv4: bool) -> Option<Clause> {
        let own = self.own();
        if own.is_some_and(|ip| ip.is_loopback()) && from == From::Elsewhere {
            return None;
        }
        let mut all = own.map(|ip| vec![destination(ip.into())]).unwrap_or_default();
        let of_link = own.is_some_and(|ip| matches!(ip, IpAddr::V4(v4) if v4.is_link_local()));
        all.push(if of_link && from == From::Elsewhere {
            destination_is_inputs()
        } else {
            destination_is_local()
        });
        if ipv4 {
            // Whoever routes these to the host would be let in before the kernel calls them
            // martians.
            all.extend(
                (own.is_none() && from == From::Elsewhere).then(|| destination_not(loopback())),
            );
        } else {
            let one = IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
            all.extend(own.is_none().then(|| destination_not(one)));
            all.extend(own.is_none().then(|| destination_not(link_local6())));
            all.push(source_not(link_local6()));
        }
        Some(all.into_iter().fold(Clause::default(), Clause::and))
    }

    /// What refuses connections that lead nowhere, and would otherwise be left without an answer.
    pub(super) fn refusals(&self) -> Vec<Rule> {
        let refusal = |rest: &str, bind: Clause| {
            let rule = self.rule(rest).and(bind).and(destination_port(self.protocol, self.port));
            rule.and(begins(self.protocol)).and(refuse(self.protocol))
        };
        let rest = "leads nowhere from there";
        let any = destination_is_local;
        // Of those the kernel says that they are another interface's, when the host calls itself.
        let of_links = || refusal(rest, destination(link_local6()));
        match self.ip {
            None => vec![refusal(rest, any()), of_links()],
            Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => {
                vec![refusal(rest, is_ip(false).and(any())), of_links()]
            }
            Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => vec![refusal(rest, is_ip(true).and(any()))],
            Some(ip) => vec![refusal(rest, destination(ip.into()))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: Option<&str>) -> Port {
        let to = ["169.254.96.1:80", "[fd00::1]:80"].map(|to| to.parse().unwrap());
        let ip: Option<IpAddr> = ip.map(|ip| ip.parse().unwrap());
        let to = to
            .into_iter()
            .filter(|to: &SocketAddr| ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4()));
        Port {
            protocol: Protocol::Tcp,
            ip,
            port: 8080,
            to: to.collect(),
            clients: Clients::default(),
        }
    }

    fn says(rules: &[Rule], clause: &Clause) -> usize {
        let has = |rule: &&Rule| rule.exprs.windows(clause.0.len()).any(|part| part == clause.0);
        rules.iter().filter(has).count()
    }

    #[test]
    fn the_hosts_loopback_is_reached_from_the_host_alone() {
        for ip in ["127.0.0.1", "127.1.2.3"] {
            assert_eq!(port(Some(ip)).redirects(From::Elsewhere), []);
            assert_eq!(port(Some(ip)).redirects(From::ThisHost).len(), 1);
        }
        for (ip, count) in [(None, 2), (Some("0.0.0.0"), 1)] {
            let [elsewhere, here] =
                [From::Elsewhere, From::ThisHost].map(|from| port(ip).redirects(from));
            assert_eq!((elsewhere.len(), here.len()), (count, count));
            assert_eq!(says(&elsewhere, &destination_not(loopback())), 1);
            assert_eq!(says(&here, &destination_not(loopback())), 0);
        }
    }

    #[test]
    fn an_address_that_is_another_hosts_by_now_leads_nowhere() {
        for ip in ["10.0.0.1", "fd13::1"] {
            for from in [From::Elsewhere, From::ThisHost] {
                assert_eq!(says(&port(Some(ip)).redirects(from), &destination_is_local()), 1);
            }
        }
        let of_link = port(Some("169.254.7.7"));
        assert_eq!(says(&of_link.redirects(From::Elsewhere), &destination_is_inputs()), 1);
        assert_eq!(says(&of_link.redirects(From::ThisHost), &destination_is_local()), 1);
    }

    #[test]
    fn what_ipv6_does_not_route_is_not_redirected() {
        for from in [From::Elsewhere, From::ThisHost] {
            for (ip, wild) in [(None, 1), (Some("fd13::1"), 0)] {
                let rules = port(ip).redirects(from);
                assert_eq!(says(&rules, &source_not(link_local6())), 1);
                assert_eq!(says(&rules, &destination_not(link_local6())), wild);
            }
        }
    }

    #[test]
    fn only_what_begins_is_refused() {
        for (protocol, counted) in [(Protocol::Tcp, 1), (Protocol::Udp, 0)] {
            let rules = Port { protocol, ..port(None) }.refusals();
            assert_eq!(says(&rules, &begins(Protocol::Tcp)), 2 * counted);
            assert_eq!(says(&rules, &refuse(protocol)), 2);
        }
    }
}
