//! A sandbox may have a native XDP program at its interface.

use anyhow::{Context, Result};
use vxmesh_proto::limits::DEFAULT_MTU;
use vxmesh_tests::{
    lab::Allowed,
    outside::{call_tcp, call_udp},
    stream, xdp,
};

use super::{lab, pair};

#[test]
fn a_native_xdp_program_can_be_attached_in_a_sandbox() -> Result<()> {
    let lab = lab(1500, "v4")?;
    let (a, b) = pair(&lab, DEFAULT_MTU)?;
    let beside = lab.sandbox("h1", "blue", "beside")?;
    lab.all_know(&[&a.endpoint, &b.endpoint, &beside.endpoint])?;
    let _program = xdp::attach(&a.netns, "eth0").context("in a sandbox")?;
    for other in [&b, &beside] {
        for (from, to) in [(&a, other), (other, &a)] {
            for ip in &to.endpoint.ips {
                let at = |port| (ip.addr(), port).into();
                call_tcp(&from.netns, at(80), &to.netns, 80)?;
                call_udp(&from.netns, at(81), &to.netns, 81)?;
                stream::tcp(&from.netns, &to.netns, ip.addr(), 1 << 20)?;
            }
        }
    }
    lab.finish(Allowed::default())
}
