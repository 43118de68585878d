//! What a host's resolv.conf says (resolv.conf(5)), read as glibc reads it: what resolves on the
//! host shall resolve in its sandboxes.
//!
//! | line | glibc | here |
//! |---|---|---|
//! | `nameserver` | the first three that are addresses, in any form of inet_aton(3), or IPv6 with a zone | the same |
//! | `search`, `domain` | the last such line; without one, what follows the first dot of the host's name | the same |
//! | `options` | all such lines; numbers are cut to their range | those of [`HostOptions`]; the others are about libc's own sockets |
//! | `sortlist` | sorts what the long obsolete gethostbyname(3) returns | not followed |
//!
//! A word counts only at the very beginning of its line, so `#`, `;` and white space before it make
//! a comment of the line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use crate::special_names::inet_aton;

/// The port of name servers.
const PORT: u16 = 53;
/// Name servers that are asked (MAXNS of resolv.h).
pub(super) const SERVERS: usize = 3;
/// Domains that are kept; a list that somebody writes by hand is shorter.
const DOMAINS: usize = 32;

/// What a resolv.conf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// The domains in which names are looked for that have few dots.
    pub search: Vec<String>,
    /// The rest.
    pub options: HostOptions,
}

/// The options of a resolv.conf that matter to what resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// Names with so many dots are looked up as they are first.
    pub ndots: u8,
    /// Seconds that a server has for its answer.
    pub timeout: u8,
    /// How often all servers are asked.
    pub attempts: u8,
    /// No server goes before another.
    pub rotate: bool,
    /// Servers are asked over TCP only.
    pub use_vc: bool,
    /// They are believed that an answer is authentic.
    pub trust_ad: bool,
    /// libc asks with EDNS.
    pub edns0: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            ndots: 1,
            timeout: 5,
            attempts: 2,
            rotate: false,
            use_vc: false,
            trust_ad: false,
            edns0: false,
        }
    }
}

/// How much earlier a failure is told than libc gives up.
const EARLIER: Duration = Duration::from_millis(250);
/// The patience of libc in all where no option says otherwise.
const USUAL: Duration = Duration::from_secs(5);

impl HostOptions {
    /// How long a question waits for its upstreams in all: nearly as long as libc, which then asks
    /// once more or gives up.
    #[must_use]
    pub fn patience(self) -> Duration {
        let once = Duration::from_secs(self.timeout.into());
        let in_all = once * u32::from(self.attempts);
        once.max(in_all.min(USUAL)).saturating_sub(EARLIER)
    }

    fn follow(&mut self, word: &str) {
        let number = |text: &str, most: u8| {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let number = text.get(..digits).unwrap_or_default().parse::<u32>();
            number.map_or(most, |number| u8::try_from(number).unwrap_or(most).min(most))
        };
        match word.split_once(':') {
            Some(("ndots", text)) => self.ndots = number(text, 15),
            Some(("timeout", text)) => self.timeout = number(text, 30).max(1),
            Some(("attempts", text)) => self.attempts = number(text, 5).max(1),
            Some(_) => {}
            None => match word {
                "rotate" => self.rotate = true,
                "use-vc" => self.use_vc = true,
                "trust-ad" => self.trust_ad = true,
                "edns0" => self.edns0 = true,
                _ => {}
            },
        }
    }
}

impl ResolvConf {
    /// What this text says on a host of this name; `zone` is the number of an interface. Without a
    /// server, the host itself is asked.
    #[must_use]
    pub fn parse(text: &str, host: &str, zone: impl Fn(&str) -> Option<u32>) -> Self {
        let domain = host.split_once('.').map(|(_host, domain)| domain);
        let mut conf = Self {
            servers: Vec::new(),
            search: domain.and_then(domain_of).into_iter().collect(),
            options: HostOptions::default(),
        };
        for line in text.lines() {
            let Some((word, rest)) = line.split_once([' ', '\t']) else { continue };
            let mut words = rest.split_ascii_whitespace();
            match word {
                "nameserver" if conf.servers.len() < SERVERS => {
                    conf.servers.extend(words.next().and_then(|text| server(text, &zone)));
                }
                "domain" => conf.search = words.next().and_then(domain_of).into_iter().collect(),
                "search" => conf.search = words.filter_map(domain_of).take(DOMAINS).collect(),
                "options" => words.for_each(|word| conf.options.follow(word)),
                _ => {}
            }
        }
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        conf
    }
}

fn server(text: &str, zone: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some(ip) = inet_aton(text) {
        return Some((ip, PORT).into());
    }
    match text.split_once('%') {
        Some((ip, interface)) => {
            let scope = zone(interface).or_else(|| interface.parse().ok())?;
            Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope).into())
        }
        None => Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT)),
    }
}

/// A domain as it may stand in another resolv.conf; the root says nothing.
fn domain_of(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let good = !text.is_empty() && text.len() < 254 && text.bytes().all(plain);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolvConf {
        ResolvConf::parse(text, "h1", |name| (name == "lo").then_some(1))
    }

    #[test]
    fn servers_are_those_that_libc_asks() {
        let text = "# nameserver 9.9.9.9\n;nameserver 9.9.9.9\n nameserver 9.9.9.9\nnameserver\n\
            nameservers 9.9.9.9\nnameserver 192.0.2.1\nnameserver\tfd00::1 # x\nnameserver nonsense\n\
            nameserver 127.1\nnameserver 192.0.2.3";
        let wanted = ["192.0.2.1:53", "[fd00::1]:53", "127.0.0.1:53"];
        assert_eq!(parse(text).servers, wanted.map(|text| text.parse().unwrap()));
        assert_eq!(parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
        for (text, scope) in [("fe80::1%lo", 1), ("fe80::1%7", 7)] {
            let servers = parse(&format!("nameserver {text}")).servers;
            assert!(matches!(servers[..], [SocketAddr::V6(v6)] if v6.scope_id() == scope));
        }
    }

    #[test]
    fn the_last_search_or_domain_counts_and_the_hosts_own_domain_else() {
        for (text, host, wanted) in [
            ("", "h1", [].as_slice()),
            ("", "h1.corp.example", &["corp.example"]),
            ("search a.b. c\t_d.e", "h1.corp.example", &["a.b", "c", "_d.e"]),
            ("search a\ndomain b c", "h1", &["b"]),
            ("domain b\nsearch a", "h1", &["a"]),
            ("search .", "h1.corp.example", &[]),
            (" search a", "h1", &[]),
            ("search a\"b c", "h1", &["c"]),
        ] {
            assert_eq!(ResolvConf::parse(text, host, |_| None).search, wanted, "{text:?} {host}");
        }
    }

    #[test]
    fn options_add_up_and_keep_their_range() {
        let usual = HostOptions::default();
        assert_eq!(parse("").options, usual);
        let text = "options ndots:99 timeout:0 rotate\noptions attempts:3 use-vc trust-ad edns0 single-request x:y";
        let wanted = HostOptions {
            ndots: 15,
            timeout: 1,
            attempts: 3,
            rotate: true,
            use_vc: true,
            trust_ad: true,
            edns0: true,
        };
        assert_eq!(parse(text).options, wanted);
    }

    #[test]
    fn a_failure_is_told_before_libc_gives_up() {
        for (timeout, attempts, millis) in
            [(5, 2, 4750), (1, 2, 1750), (1, 1, 750), (2, 5, 4750), (30, 1, 29_750)]
        {
            let options = HostOptions { timeout, attempts, ..HostOptions::default() };
            assert_eq!(options.patience().as_millis(), millis, "{timeout} {attempts}");
        }
    }
}
