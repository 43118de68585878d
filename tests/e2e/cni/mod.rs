//! The plug-in of the Container Network Interface: called by hand in all its versions, and by real
//! runtimes.

mod led_in;
mod runtimes;
mod verbs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vxmesh::api::Endpoint;
use vxmesh_tests::lab::Lab;

/// The address of an endpoint.
fn address(lab: &Lab, host: &str, name: &str) -> Result<String> {
    let endpoints: Vec<Endpoint> = lab.get(host, "/v1/endpoints")?;
    let endpoint = endpoints.iter().find(|it| it.name.as_str() == name);
    let ip = endpoint.and_then(|it| it.ips.first()).context("no address")?;
    Ok(ip.addr().to_string())
}

/// A call by hand.
#[derive(Clone, Copy)]
struct Call<'a> {
    command: &'a str,
    container: &'a str,
    netns: &'a str,
    args: &'a str,
}

impl<'a> Call<'a> {
    const fn new(command: &'a str, container: &'a str, netns: &'a str) -> Self {
        Self { command, container, netns, args: "" }
    }
}

/// What the plug-in answers, and whether that is success.
fn try_call(lab: &Lab, host: &str, call: Call<'_>, conf: &Value) -> Result<(bool, Value)> {
    let Call { command, container, netns, args } = call;
    let script = format!(
        "mkdir -p /run/cni; ln -sf $(command -v vxmesh) /run/cni/vxmesh-cni; printf '%s' '{conf}' | \
         env CNI_COMMAND={command} CNI_CONTAINERID={container} CNI_NETNS={netns} CNI_IFNAME=eth0 \
         CNI_ARGS='{args}' CNI_PATH=/run/cni /run/cni/vxmesh-cni"
    );
    let output = lab.exec(host, &["sh", "-c", &script])?;
    let said = String::from_utf8(output.stdout)?;
    let said = said.trim();
    let answer = if said.is_empty() { Value::Null } else { serde_json::from_str(said)? };
    Ok((output.status.success(), answer))
}

fn call(lab: &Lab, host: &str, call: Call<'_>, conf: &Value) -> Result<Value> {
    let (done, answer) = try_call(lab, host, call, conf)?;
    ensure!(done, "{host}: {} {}: {answer}", call.command, call.container);
    Ok(answer)
}

/// An error with this code, which says each of these.
fn refused(
    lab: &Lab,
    host: &str,
    of: Call<'_>,
    conf: &Value,
    (code, words): (u64, &[&str]),
) -> Result<()> {
    let (done, answer) = try_call(lab, host, of, conf)?;
    ensure!(!done && answer["code"] == code, "{} of {}: {answer}", of.command, of.container);
    for word in words {
        ensure!(answer.to_string().contains(word), "no `{word}` in {answer}");
    }
    Ok(())
}
