//! What the host's kernel must do for packets to pass from an uplink to elsewhere, and how it is
//! put back.
//!
//! ```text
//! net/ipv4/ip_forward            1
//! net/ipv6/conf/all/forwarding   1, and accept_ra 2 where it was 1: a router else forgets the routers that it learned
//! ```
//!
//! Switching forwarding writes other settings too (`inet_forward_change` and
//! `addrconf_fixup_forwarding` of the kernel), so all that it touches is noted first. Nothing is
//! noted where a version forwards already: then it is somebody else's, and stays. The switch is set
//! to [`ON`], which means the same as 1 to the kernel: whoever needs forwarding later, too, writes
//! 1 (Docker does, and people), and by that it becomes theirs.

use std::{collections::BTreeSet, fs, io, path::Path};

use serde::{Deserialize, Serialize};

const ROOT: &str = "/proc/sys/net";
const IPV4: &str = "ipv4/ip_forward";
const IPV6: &str = "ipv6/conf/all/forwarding";
/// On, by this program.
const ON: &str = "2";

/// A setting as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Below /proc/sys/net.
    path: String,
    value: String,
}

/// What was found before it was changed, in the order in which it is put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found(Vec<Setting>);

impl Found {
    /// Whether there is nothing to put back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts back what differs, where the switch is still as this program set it: whoever needs
    /// forwarding by now wrote another value, and after a boot nothing is as it was noted. Settings
    /// of interfaces that are gone are gone with them.
    ///
    /// # Errors
    /// The kernel refuses a value; the others are put back.
    pub fn restore(&self) -> io::Result<()> {
        let ours = [(IPV4, "ipv4/"), (IPV6, "ipv6/")]
            .map(|(switch, family)| (family, read(switch).is_some_and(|value| value == ON)));
        let is_ours = |path: &str| ours.iter().any(|(family, is)| *is && path.starts_with(family));
        let mut done = Ok(());
        for Setting { path, value } in self.0.iter().filter(|setting| is_ours(&setting.path)) {
            if read(path).is_some_and(|now| now != *value) {
                let written = write(path, value);
                done = done.and(written);
            }
        }
        let [_, (_, ours6)] = ours;
        let later = if ours6 { self.restore_later() } else { Ok(()) };
        done.and(later)
    }

    /// Interfaces that came or got their name meanwhile took what was set for new ones.
    fn restore_later(&self) -> io::Result<()> {
        let accepts = |name: &str| format!("ipv6/conf/{name}/accept_ra");
        let noted = |path: &str| self.0.iter().find(|setting| setting.path == path);
        if noted(&accepts("default")).is_none_or(|setting| setting.value != "1") {
            return Ok(());
        }
        for path in interfaces("ipv6").iter().map(|name| accepts(name)) {
            if noted(&path).is_none() && read(&path).is_some_and(|value| value == "2") {
                write(&path, "1")?;
            }
        }
        Ok(())
    }

    /// Whether the host did not forward packets of an IP version.
    #[must_use]
    pub fn is_closed(&self, ipv4: bool) -> bool {
        let switch = if ipv4 { IPV4 } else { IPV6 };
        self.0.iter().any(|setting| setting.path == switch && setting.value == "0")
    }

    /// Interfaces by which packets came that were forwarded although the host as a whole did not:
    /// those that had the setting then and, for IPv6, those for which somebody says so now
    /// (`force_forwarding`, since Linux 6.17). What is true of new interfaces nobody can tell any
    /// more.
    #[must_use]
    pub fn open(&self, ipv4: bool) -> BTreeSet<String> {
        if !ipv4 {
            let forced = |name: &String| {
                read(&format!("ipv6/conf/{name}/force_forwarding")).is_some_and(|it| it == "1")
            };
            return interfaces("ipv6")
                .into_iter()
                .filter(forced)
                .filter(|name| is_one(name))
                .collect();
        }
        let forwarded = self.0.iter().filter(|setting| setting.value != "0");
        let named = forwarded.filter_map(|setting| {
            let name = setting.path.strip_prefix("ipv4/conf/")?.strip_suffix("/forwarding")?;
            Some(name.to_owned())
        });
        named.filter(|name| is_one(name)).collect()
    }

    fn note(&mut self, path: String) {
        if let Some(value) = read(&path)
            && !self.0.iter().any(|setting| setting.path == path)
        {
            self.0.push(Setting { path, value });
        }
    }
}

/// What must be noted before this host forwards: nothing if it does. `known` is what was noted
/// before and still holds.
#[must_use]
pub fn look(known: &Found) -> Found {
    let mut found = known.clone();
    // What was noted in an earlier life of the host is not as it is now.
    let off = |switch: &str| read(switch).is_some_and(|value| value == "0");
    for (switch, settings) in
        [(IPV4, ["forwarding", "accept_redirects"]), (IPV6, ["forwarding", "accept_ra"])]
    {
        let family = if switch == IPV4 { "ipv4" } else { "ipv6" };
        if read(switch).is_some_and(|value| value == ON) {
            continue;
        }
        found.0.retain(|setting| !setting.path.starts_with(family));
        if !off(switch) {
            continue;
        }
        found.note(switch.to_owned());
        for interface in interfaces(family) {
            for setting in settings {
                found.note(format!("{family}/conf/{interface}/{setting}"));
            }
        }
    }
    found
}

/// Has the host forward.
///
/// # Errors
/// The kernel refuses it.
pub fn forward() -> io::Result<()> {
    if read(IPV4).is_some_and(|value| value == "0") {
        write(IPV4, ON)?;
    }
    if read(IPV6).is_some_and(|value| value == "0") {
        for interface in interfaces("ipv6") {
            let path = format!("ipv6/conf/{interface}/accept_ra");
            if read(&path).is_some_and(|value| value == "1") {
                write(&path, "2")?;
            }
        }
        write(IPV6, ON)?;
    }
    Ok(())
}

/// The interfaces that have settings, `all` and `default` among them; those of uplinks have what
/// they need.
fn interfaces(family: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(family).join("conf"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !super::uplink::is_uplink(name)).collect();
    // Writing `all` writes the others.
    names.sort_by_key(|name| name != "all");
    names
}

/// Whether the name is an interface's; nothing comes by the loopback that would be forwarded.
fn is_one(name: &str) -> bool {
    !["all", "default", "lo"].contains(&name)
}

fn read(path: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new(ROOT).join(path)).ok()?;
    Some(value.trim().to_owned())
}

/// Writes a setting; an interface that goes meanwhile has none any more.
fn write(path: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new(ROOT).join(path), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("net/{path}: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_closed_is_known_without_any_interfaces_name() {
        let found = |settings: &[(&str, &str)]| {
            let setting = |(path, value): &(&str, &str)| Setting {
                path: (*path).to_owned(),
                value: (*value).to_owned(),
            };
            Found(settings.iter().map(setting).collect())
        };
        let host = found(&[
            (IPV4, "0"),
            ("ipv4/conf/all/forwarding", "0"),
            ("ipv4/conf/default/forwarding", "1"),
            ("ipv4/conf/lo/forwarding", "1"),
            ("ipv4/conf/eth0/forwarding", "0"),
            ("ipv4/conf/eth1/forwarding", "1"),
            ("ipv4/conf/eth1/accept_redirects", "1"),
        ]);
        assert!(host.is_closed(true) && !host.is_closed(false));
        assert_eq!(host.open(true), BTreeSet::from(["eth1".to_owned()]));
        // The switch of an interface means nothing to IPv6 but that it is a router's.
        let host = found(&[(IPV6, "0"), ("ipv6/conf/eth1/forwarding", "1")]);
        assert!(host.is_closed(false) && !host.is_closed(true));
        assert!(!host.open(false).contains("eth1"));
        assert!(!Found::default().is_closed(true), "it forwarded before");
    }
}
