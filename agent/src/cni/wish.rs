//! What `ADD` asks for, out of the configuration and what the runtime adds to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::Value;
use vxmesh_proto::addr::{Alias, MacAddr, Name};

use super::{
    args::Environment,
    config::{Config, address},
    error::{CniError, Code},
};
use crate::{
    api::{AttachmentKey, AttachmentSpec},
    docker::{alias_of, name_of},
};

/// How much of a container's id is its name where it has no other, and the id is one that nobody
/// chose.
const SHORT: usize = 12;

/// Capabilities that cannot be had, and what to do instead.
const MISSING: &[(&str, &str)] = &[
    (
        "portMappings",
        "put the plug-in `portmap` behind this one in the list, and the capability there",
    ),
    (
        "bandwidth",
        "remove the capability: limits of single containers are not to be had, those of a network are (`vxmesh network update -o`)",
    ),
    (
        "ipRanges",
        "remove the capability: the network's own ranges hold (`vxmesh network create --ip-range`)",
    ),
];

/// Reads what is asked for.
pub(super) fn wish(
    env: &Environment,
    config: &Config,
    key: AttachmentKey,
) -> Result<AttachmentSpec, CniError> {
    config.check()?;
    for (capability, instead) in MISSING {
        if config.runtime::<Value>(capability)?.is_some() {
            return Err(CniError::new(
                Code::Unsupported,
                format!("vxmesh does not do `{capability}`, and the runtime asks for it"),
                *instead,
            ));
        }
    }
    let (names, own) = names(env, &key.container);
    let mut aliases = aliases(config)?;
    aliases.extend(own);
    aliases.retain(|alias| names.first().is_none_or(|name| name.as_str() != alias.as_str()));
    aliases.sort();
    aliases.dedup();
    Ok(AttachmentSpec {
        network: config.network()?.to_owned(),
        netns: env.said("CNI_NETNS", &env.netns)?.to_owned(),
        names,
        aliases,
        ips: ips(env, config)?,
        mac: mac(env, config)?,
        key,
    })
}

/// What the endpoint is called: as the pod, which podman's containers are to a plug-in, else by the
/// container's id. A name that is none of DNS is an alias beside.
fn names(env: &Environment, container: &str) -> (Vec<Name>, Option<Alias>) {
    let pod = env.arg("K8S_POD_NAME");
    let name = pod.and_then(name_of);
    let own = pod.zip(name.as_ref()).and_then(|(pod, name)| alias_of(pod, name));
    let is_chosen = !container.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = container.get(..SHORT).filter(|_| !is_chosen).unwrap_or(container);
    (name.into_iter().chain(name_of(id)).collect(), own)
}

/// The aliases in this network; podman says those of all networks, by their names.
fn aliases(config: &Config) -> Result<Vec<Alias>, CniError> {
    let all: Option<BTreeMap<String, Vec<String>>> = config.runtime("aliases")?;
    let own = all.unwrap_or_default().remove(config.name()?).unwrap_or_default();
    let alias = |text: String| {
        text.parse().map_err(|why| {
            CniError::new(Code::Config, format!("alias `{text}`: {why}"), "give another alias")
        })
    };
    own.into_iter().map(alias).collect()
}

/// The wanted addresses, said in the one way or the other.
fn ips(env: &Environment, config: &Config) -> Result<Vec<IpAddr>, CniError> {
    let said: Option<Vec<String>> = config.runtime("ips")?;
    // podman says one twice where it makes the network of a container anew.
    let ips: BTreeSet<IpAddr> = match said {
        Some(said) => said.iter().map(|ip| address(ip)).collect::<Result<_, _>>()?,
        None => env.ips()?.into_iter().collect(),
    };
    Ok(ips.into_iter().collect())
}

fn mac(env: &Environment, config: &Config) -> Result<Option<MacAddr>, CniError> {
    let said: Option<String> = config.runtime("mac")?;
    match said {
        Some(said) => said.parse().map(Some).map_err(|why| {
            CniError::new(Code::Config, format!("mac `{said}`: {why}"), "give another MAC")
        }),
        None => env.mac(),
    }
}
