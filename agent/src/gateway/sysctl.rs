//! What the host's kernel must do for packets to pass from an uplink to elsewhere, and how it is put back.
//!
//! ```text
//! net/ipv4/ip_forward            1
//! net/ipv6/conf/all/forwarding   1, and accept_ra 2 where it was 1: a router else forgets the routers that it learned
//! ```
//!
//! Switching forwarding writes other settings too (`inet_forward_change` and `addrconf_fixup_forwarding` of the
//! kernel), so all that it touches is noted first. Nothing is noted where a version forwards already: then it is somebody
//! else's, and stays. The switch is set to [`ON`], which means the same as 1 to the kernel: whoever needs forwarding later,
//! too, writes 1 (Docker does, and people), and by that it becomes theirs.

use std::{fs, io, path::Path};

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

    /// Puts back what differs, unless somebody else needs it by now. Settings of interfaces that are gone are gone with them.
    ///
    /// # Errors
    /// The kernel refuses a value.
    pub fn restore(&self) -> io::Result<()> {
        let theirs = [(IPV4, "ipv4/"), (IPV6, "ipv6/")].map(|(switch, family)| {
            let value = read(switch);
            (family, value.is_some_and(|value| value != ON && value != "0"))
        });
        for Setting { path, value } in &self.0 {
            if theirs.iter().any(|(family, theirs)| *theirs && path.starts_with(family)) {
                continue;
            }
            match read(path) {
                Some(now) if now != *value => write(path, value)?,
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Interfaces that did not forward packets of an IP version, as far as they had settings then.
    pub fn unrouted(&self) -> impl Iterator<Item = (String, bool)> {
        self.0.iter().filter(|setting| setting.value == "0").filter_map(|setting| {
            let mut parts = setting.path.split('/');
            let ipv4 = parts.next()? == "ipv4";
            let interface = parts.nth(1)?;
            let named = !["all", "default", "lo"].contains(&interface);
            (named && parts.next() == Some("forwarding")).then(|| (interface.to_owned(), ipv4))
        })
    }

    fn note(&mut self, path: String) {
        if let Some(value) = read(&path)
            && !self.0.iter().any(|setting| setting.path == path)
        {
            self.0.push(Setting { path, value });
        }
    }
}

/// What must be noted before this host forwards: nothing if it does. `known` is what was noted before and still holds.
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

/// The interfaces that have settings, `all` and `default` among them; those of uplinks have what they need.
fn interfaces(family: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(family).join("conf"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !super::uplink::is_uplink(name)).collect();
    // Writing `all` writes the others.
    names.sort_by_key(|name| name != "all");
    names
}

fn read(path: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new(ROOT).join(path)).ok()?;
    Some(value.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(path), value)
        .map_err(|error| io::Error::new(error.kind(), format!("net/{path}: {error}")))
}
