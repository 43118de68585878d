//! A certificate of another CA opens no agent's control port, and nothing of the caller is learned.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use vxmesh::{
    api::{Network, Node, Peer, Status},
    identity::Credentials,
};
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{MemberInfo, Request, Response},
};
use vxmesh_tests::{
    caller::{Shown, ask},
    lab::{Allowed, Lab, wait_until},
};

/// Where keys and certificates of a host are.
const DATA_DIR: &str = "/var/lib/vxmesh";
const H1: &str = "10.213.0.1:7760";
const NOT_OURS: &str = "the certificate was not signed by this mesh's CA";

/// What a host has from its `init` or `join`.
pub(super) fn credentials(lab: &Lab, host: &str) -> Result<Credentials> {
    Credentials::load(&lab.path(host, DATA_DIR)?)?.context("no member of a mesh")
}

/// What the host's agent shows to others.
pub(super) fn shown(credentials: &Credentials) -> Shown {
    let membership = &credentials.membership;
    Shown {
        chain: [membership.certificate.clone(), membership.ca.clone()],
        pkcs8: credentials.identity.pkcs8().to_vec(),
    }
}

/// Lines of a host's log with all of these words.
pub(super) fn told(lab: &Lab, host: &str, words: &[&str]) -> Result<Vec<String>> {
    let log = lab.log(host)?;
    let lines = log.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    Ok(lines.map(ToOwned::to_owned).collect())
}

/// A request that fails because of the caller's certificate; the host's log says who called and why
/// not.
pub(super) fn refused(lab: &Lab, shown: &Shown, request: &Request, why: &str) -> Result<()> {
    let words = ["INFO", "refused a certificate", "from=10.213.0.2:", why];
    let before = told(lab, "h1", &words)?.len();
    let answer = ask(&lab.host("h2")?, H1.parse()?, shown, request);
    ensure!(answer.is_err(), "{request:?} was answered: {answer:?}");
    wait_until("the log tells of it", || Ok(told(lab, "h1", &words)?.len() == before + 1))
}

/// Nodes and networks as h1 lists them, and with whom it has sessions.
fn learned(lab: &Lab) -> Result<(BTreeSet<NodeId>, usize, BTreeSet<NodeId>)> {
    let nodes: Vec<Node> = lab.get("h1", "/v1/nodes")?;
    let networks: Vec<Network> = lab.get("h1", "/v1/networks")?;
    let peers: Vec<Peer> = lab.get("h1", "/v1/peers")?;
    let peers = peers.iter().map(|peer| peer.node_id).collect();
    Ok((nodes.iter().map(|node| node.id).collect(), networks.len(), peers))
}

/// h1 and h3 are one mesh, h2 is another.
fn two_meshes() -> Result<Lab> {
    let lab = Lab::up(3)?;
    lab.vxmesh("h2", &["leave"])?;
    wait_until("h2 left", || {
        let nodes: Vec<Node> = lab.get("h1", "/v1/nodes")?;
        Ok(nodes.iter().any(|node| node.state == "left"))
    })?;
    lab.vxmesh("h2", &["init"])?;
    Ok(lab)
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_name() -> Result<()> {
    let lab = two_meshes()?;
    let (ours, member, foreign) =
        (credentials(&lab, "h1")?, credentials(&lab, "h3")?, credentials(&lab, "h2")?);
    let before = learned(&lab)?;

    let record: Name = "stranger".parse()?;
    let requests = [
        Request::Ping,
        Request::Map,
        Request::ObjectsPush { objects: vec![record.to_string()] },
        Request::Leave,
    ];
    let mut pretended = shown(&foreign);
    pretended.chain[1] = ours.membership.ca;
    for shown in [shown(&foreign), pretended] {
        for request in &requests {
            refused(&lab, &shown, request, NOT_OURS)?;
        }
    }
    let counts = told(&lab, "h1", &[NOT_OURS, "so_far=8"])?;
    ensure!(counts.len() == 1, "all were counted: {counts:?}");
    // The same caller with a member's certificate is heard: it is the certificate that makes the
    // difference.
    lab.lab(&["kill", "h3"])?;
    let answer = ask(&lab.host("h2")?, H1.parse()?, &shown(&member), &Request::Ping)?;
    ensure!(answer == Response::Pong, "{answer:?}");
    ensure!(learned(&lab)? == before, "h1 learned something: {:?}", learned(&lab)?);
    lab.finish(Allowed::default())
}

#[test]
fn an_agent_that_is_pointed_at_another_mesh_stays_alone() -> Result<()> {
    let lab = two_meshes()?;
    let before = learned(&lab)?;
    let (ours, foreign): (Status, Status) =
        (lab.get("h1", "/v1/status")?, lab.get("h2", "/v1/status")?);
    let h1: SocketAddr = H1.parse()?;
    lab.lab(&["kill", "h2"])?;
    let target = MemberInfo {
        node: ours.node_id.context("no id")?,
        certificate: credentials(&lab, "h1")?.membership.certificate.as_slice().into(),
        addrs: vec![h1],
    };
    let file = lab.path("h2", &format!("{DATA_DIR}/identity/peers.json"))?;
    fs::write(file, serde_json::to_vec(&[target])?)?;
    lab.lab(&["start", "h2"])?;
    wait_until("it is refused by the agent that it dials", || {
        let words = ["INFO", "cannot connect", "addr=10.213.0.1:7760", NOT_OURS];
        Ok(!told(&lab, "h2", &words)?.is_empty())
    })?;
    ensure!(learned(&lab)? == before, "h1 learned something: {:?}", learned(&lab)?);
    let alone: Vec<Node> = lab.get("h2", "/v1/nodes")?;
    ensure!(alone.iter().all(|node| Some(node.id) == foreign.node_id), "{alone:?}");

    // A joiner with a token of the one mesh does not believe a server of the other.
    let token: serde_json::Value = lab.json("h1", &["token", "create"])?;
    let token = token["token"].as_str().context("no token")?;
    lab.lab(&["kill", "h3"])?;
    let join = ["--socket", "/run/none.sock", "join", "--data-dir", "/var/lib/fresh"];
    let join = [join.as_slice(), &["--token", token, "10.213.0.2"]].concat();
    let output = lab.try_vxmesh("h3", &join)?;
    super::judge(
        &join,
        &output,
        1,
        &[
            "10.213.0.2:7760 does not belong to the mesh of this token",
            "hint: check host and token",
        ],
    )?;
    ensure!(lab.sh("h3", "find /var/lib/fresh -type f 2>/dev/null || true")?.is_empty(), "files");
    lab.finish(Allowed::default())
}
