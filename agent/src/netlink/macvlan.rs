//! Interfaces that share a link of the host, its parent: MAC-VLANs in sandboxes, and the 802.1Q
//! link below them.
//!
//! ```text
//! host: eth0 ── eth0.50 (made here if it is missing, and then marked) ── sandbox: eth0, kind macvlan, the endpoint's id as alias
//! ```
//!
//! Every step finds what is there, so a restarted agent adopts it (I9). The kernel takes an
//! interface away with its sandbox and with its parent.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    str::FromStr,
};

use nix::errno::Errno;
use rtnetlink::{LinkMacVlan, LinkVlan, packet_route::link::MacVlanMode};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vxmesh_proto::addr::EndpointId;

use super::{
    announce::announce,
    link::{Link, LinkError, Links},
    netns::Netns,
    overlay::{IFNAMES, LOOPBACK, OverlayError, Plug, is_ifname},
};

/// What a link of the host carries as its alias if the agent made it.
const MADE: &str = "made by vxmesh";
/// The highest number of a VLAN (IEEE 802.1Q section 9.6).
const MAX_VID: u16 = 4094;

/// Whom interfaces with one parent reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each other and the outside.
    #[default]
    Bridge,
    /// The outside only.
    Private,
    /// The outside, which sends back what is for others of them.
    Vepa,
    /// There is one, and it has the parent's own MAC.
    Passthru,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }

    const fn kernels(self) -> MacVlanMode {
        match self {
            Self::Bridge => MacVlanMode::Bridge,
            Self::Private => MacVlanMode::Private,
            Self::Vepa => MacVlanMode::Vepa,
            Self::Passthru => MacVlanMode::Passthrough,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| {
            format!("`{text}` is no macvlan_mode: use {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

/// A link of the host: `eth0`, or `eth0.50` for what has the tag 50 on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Parent {
    name: String,
    tagged: Option<(String, u16)>,
}

impl FromStr for Parent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_ifname(text) {
            return Err(format!("`{text}` is not a name for an interface"));
        }
        let is_number = |vid: &str| !vid.is_empty() && vid.bytes().all(|c| c.is_ascii_digit());
        let tagged = text.rsplit_once('.').filter(|(base, vid)| !base.is_empty() && is_number(vid));
        let tagged = match tagged {
            None => None,
            Some((base, vid)) => {
                let vid = vid.parse().ok().filter(|vid| (1..=MAX_VID).contains(vid));
                let vid = vid.ok_or_else(|| {
                    format!("`{text}`: the number of a VLAN is between 1 and {MAX_VID}")
                })?;
                Some((base.to_owned(), vid))
            }
        };
        Ok(Self { name: text.to_owned(), tagged })
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl TryFrom<String> for Parent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Parent> for String {
    fn from(parent: Parent) -> Self {
        parent.name
    }
}

/// Why an interface cannot be had.
#[derive(Debug, Error)]
pub enum MacvlanError {
    /// The host has no such link.
    #[error("this host has no interface {0}")]
    Missing(String),
    /// The parent is down.
    #[error("the interface {0} is down")]
    Down(String),
    /// The VLAN's link.
    #[error("{0}; does the kernel have 802.1Q (module 8021q)?")]
    Vlan(#[source] LinkError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] OverlayError),
}

impl From<LinkError> for MacvlanError {
    fn from(error: LinkError) -> Self {
        Self::Other(error.into())
    }
}

impl From<io::Error> for MacvlanError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.into())
    }
}

fn here() -> Result<Links, MacvlanError> {
    Ok(Links::open(&Netns::current().map_err(OverlayError::from)?)?)
}

impl Parent {
    /// The link, or the one below it while it is not made. Nothing is changed.
    ///
    /// # Errors
    /// There is none.
    pub async fn look(&self) -> Result<Link, MacvlanError> {
        let links = here()?;
        if let Some(link) = links.get(&self.name).await? {
            return Ok(link);
        }
        let base = self.tagged.as_ref().map_or(&self.name, |(base, _)| base);
        links.get(base).await?.ok_or_else(|| MacvlanError::Missing(base.clone()))
    }

    /// Whether the link itself is there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn exists(&self) -> Result<bool, MacvlanError> {
        Ok(here()?.get(&self.name).await?.is_some())
    }

    /// Makes the VLAN's link if it is missing, and gives the parent.
    ///
    /// # Errors
    /// There is no such link, or the kernel knows no VLANs.
    pub async fn ensure(&self) -> Result<Link, MacvlanError> {
        let links = here()?;
        let there = links.get(&self.name).await?;
        if let (None, Some((base, vid))) = (&there, &self.tagged) {
            let index = links.get(base).await?.map(|link| link.index);
            let index = index.ok_or_else(|| MacvlanError::Missing(base.clone()))?;
            let vlan = LinkVlan::new(&self.name, index, *vid).up().build();
            let made = links.handle.link().add(vlan).execute().await;
            links.done("make the VLAN", &self.name, made).map_err(MacvlanError::Vlan)?;
            if let Err(error) = links.set_alias(&self.name, MADE).await {
                // Without its mark it would be taken for somebody else's, and stay for good.
                links.delete(&self.name).await?;
                return Err(error.into());
            }
        }
        let link = links.get(&self.name).await?;
        link.ok_or_else(|| MacvlanError::Missing(self.name.clone()))
    }

    /// Removes the VLAN's link if it was made here.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn release(&self) -> Result<(), MacvlanError> {
        let links = here()?;
        if links.get(&self.name).await?.is_some_and(|link| link.alias.as_deref() == Some(MADE)) {
            links.delete(&self.name).await?;
        }
        Ok(())
    }

    /// Plugs an endpoint into a sandbox and says under which name. A failure leaves nothing behind;
    /// one that is plugged in already is mended and keeps its name.
    ///
    /// # Errors
    /// The parent is missing, the sandbox is not one, the name is taken, or the kernel refuses a
    /// step.
    pub async fn attach(
        &self,
        (mode, mtu): (Mode, u16),
        gateways: &[IpAddr],
        plug: &Plug,
    ) -> Result<String, MacvlanError> {
        if let Some(bad) = plug.ifname.as_ref().filter(|name| !is_ifname(name)) {
            return Err(OverlayError::Ifname(bad.clone()).into());
        }
        let (sandbox, path) = plug.open()?;
        if sandbox.is(&Netns::current().map_err(OverlayError::from)?) {
            return Err(OverlayError::NotASandbox(path).into());
        }
        let inside = Links::open(&sandbox)?;
        if let Some(there) = self.own(&inside, plug).await? {
            let alias = plug.id.to_string();
            if there.alias.as_ref() != Some(&alias) {
                inside.set_alias(&there.name, &alias).await?;
            }
            configure(&there.name, gateways, plug, (&sandbox, &inside)).await?;
            return Ok(there.name);
        }
        let parent = self.ensure().await?;
        if !parent.up {
            return Err(MacvlanError::Down(self.name.clone()));
        }
        let ifname = make((&parent, mode, mtu), plug, (&sandbox, &inside)).await?;
        match configure(&ifname, gateways, plug, (&sandbox, &inside)).await {
            Ok(()) => {
                announce(sandbox, &ifname, plug);
                Ok(ifname)
            }
            Err(error) => {
                // The first error is the one to tell.
                if let Err(undo) = inside.delete(&ifname).await {
                    tracing::debug!(%undo, "a half-made interface stays");
                }
                Err(error)
            }
        }
    }

    /// The endpoint's interface in its sandbox, if it is there.
    ///
    /// # Errors
    /// There is no such sandbox any more, or the kernel does not answer.
    pub async fn find(&self, plug: &Plug) -> Result<Option<Link>, MacvlanError> {
        let (sandbox, _path) = plug.open()?;
        self.own(&Links::open(&sandbox)?, plug).await
    }

    /// Unplugs an endpoint; one whose sandbox is gone is fine.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn detach(&self, plug: &Plug) -> Result<(), MacvlanError> {
        let (sandbox, _path) = match plug.open() {
            Err(error) if error.is_absence() => return Ok(()),
            sandbox => sandbox?,
        };
        let inside = Links::open(&sandbox)?;
        if let Some(there) = self.own(&inside, plug).await? {
            inside.delete(&there.name).await?;
        }
        Ok(())
    }

    /// By its alias, and by its MAC where the sandbox has changed that: both are the sandbox's to
    /// change, the parent is not.
    async fn own(&self, inside: &Links, plug: &Plug) -> Result<Option<Link>, MacvlanError> {
        let parent = here()?.get(&self.name).await?;
        let mut links = inside.list().await?;
        // A parent that is not there may have another name by now.
        links.retain(|link| {
            let upon = parent.as_ref().is_none_or(|parent| link.peer == Some(parent.index));
            link.is_macvlan && upon
        });
        let alias = plug.id.to_string();
        let marked = links.iter().position(|link| link.alias.as_deref() == Some(&alias));
        let same = |link: &Link| parent.is_some() && link.mac == Some(plug.mac);
        let at = marked.or_else(|| links.iter().position(same));
        Ok(at.map(|at| links.swap_remove(at)))
    }
}

/// Removes the interfaces in a sandbox that are marked as those of endpoints, of none of these.
///
/// # Errors
/// The kernel does not answer, or keeps one.
pub async fn sweep_sandbox(netns: &Path, known: &BTreeSet<EndpointId>) -> Result<(), MacvlanError> {
    let inside = Links::open(&Netns::open(netns).map_err(OverlayError::from)?)?;
    for link in inside.list().await?.into_iter().filter(|link| link.is_macvlan) {
        let of = link.alias.as_deref().and_then(|alias| alias.parse::<EndpointId>().ok());
        if of.is_some_and(|of| !known.contains(&of)) {
            inside.delete(&link.name).await?;
        }
    }
    Ok(())
}

/// Removes the links that were made here for other parents than these, and says which: what was
/// left when nobody could remove them.
///
/// # Errors
/// The kernel does not answer, or keeps one.
pub async fn sweep(parents: &[Parent]) -> Result<Vec<String>, MacvlanError> {
    let links = here()?;
    let mut swept = Vec::new();
    for link in links.list().await? {
        let used = parents.iter().any(|parent| parent.name == link.name);
        if link.alias.as_deref() == Some(MADE) && !used {
            links.delete(&link.name).await?;
            swept.push(link.name);
        }
    }
    Ok(swept)
}

async fn make(
    (parent, mode, mtu): (&Link, Mode, u16),
    plug: &Plug,
    (sandbox, inside): (&Netns, &Links),
) -> Result<String, MacvlanError> {
    let links = here()?;
    let tried = match &plug.ifname {
        Some(ifname) => vec![ifname.clone()],
        None => (0..IFNAMES).map(|n| format!("eth{n}")).collect(),
    };
    for ifname in tried {
        if inside.get(&ifname).await?.is_some() {
            continue;
        }
        let message = LinkMacVlan::new(&ifname, parent.index, mode.kernels())
            .address(plug.mac.0.to_vec())
            .mtu(mtu.into())
            .setns_by_fd(sandbox.as_fd().as_raw_fd())
            .build();
        let made = links.handle.link().add(message).execute().await;
        match links.done("make the interface", &ifname, made) {
            // Somebody took it in between.
            Err(error) if error.exists() => {}
            Err(error) if error.is(Errno::EBUSY) || error.is(Errno::EINVAL) => {
                let message =
                    format!("{error}: another program uses {} in its own way", parent.name);
                return Err(io::Error::other(message).into());
            }
            made => {
                made?;
                let marked = inside.set_alias(&ifname, &plug.id.to_string()).await;
                if marked.is_err() {
                    inside.delete(&ifname).await?;
                }
                return Ok(marked.map(|()| ifname)?);
            }
        }
    }
    Err(plug.ifname.clone().map_or(OverlayError::NoName, OverlayError::Taken).into())
}

async fn configure(
    ifname: &str,
    gateways: &[IpAddr],
    plug: &Plug,
    (sandbox, inside): (&Netns, &Links),
) -> Result<(), MacvlanError> {
    inside.bring_up(LOOPBACK).await?;
    // Others on the link are not ours, so it is asked about its link-local address, which may be
    // used meanwhile (RFC 4429).
    for setting in ["optimistic_dad", "use_optimistic"] {
        sandbox.ipv6_setting(ifname, setting, "1")?;
    }
    if plug.ips.iter().any(|ip| ip.addr().is_ipv6()) {
        sandbox.sysctl(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")?;
    }
    inside.bring_up(ifname).await?;
    for ip in &plug.ips {
        inside.add_address(ifname, *ip).await?;
    }
    for gateway in gateways.iter().filter(|_| plug.default_route) {
        if plug.ips.iter().any(|ip| ip.contains(gateway)) {
            inside.add_default_route(*gateway).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_a_link_or_a_vlan_on_one() {
        let tagged = |text: &str| text.parse::<Parent>().unwrap().tagged;
        assert_eq!(tagged("eth0"), None);
        assert_eq!(tagged("eth0.1"), Some(("eth0".into(), 1)));
        assert_eq!(tagged("eth0.4094"), Some(("eth0".into(), 4094)));
        assert_eq!(tagged("bond0.7.50"), Some(("bond0.7".into(), 50)));
        assert_eq!(tagged("wan.x"), None);
        for bad in
            ["", "eth0.0", "eth0.4095", "eth0.65536", "eth0.99999999", "a/b", "1234567890123456"]
        {
            assert!(bad.parse::<Parent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_the_kernels() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("source".parse::<Mode>().is_err_and(|why| why.contains("passthru")));
    }
}
