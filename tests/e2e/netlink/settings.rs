//! Settings of the host's kernel: noted, switched, and put back only while they are ours.

use std::fs;

use anyhow::{Context, Result, ensure};
use vxmesh::gateway::sysctl::{self, Found};
use vxmesh::netlink::netns::Netns;
use vxmesh_tests::topology::Topology;

const SWITCHES: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
/// What switching writes as well, at each interface.
const BESIDE: [&str; 2] = ["ipv4/conf/lo/accept_redirects", "ipv6/conf/lo/accept_ra"];

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}"));
    Ok(text.with_context(|| path.to_owned())?.trim().to_owned())
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/net/{path}"), value).with_context(|| path.to_owned())
}

/// Does something in the settings of a host that forwards nothing, and says what they are
/// afterwards.
fn settings_after(
    host: &Netns,
    act: impl FnOnce(Found) -> Result<()> + Send,
) -> Result<Vec<String>> {
    let done = host.run(|| {
        Ok((|| -> Result<Vec<String>> {
            for path in SWITCHES {
                write(path, "0")?;
            }
            for path in BESIDE {
                write(path, "1")?;
            }
            let noted = sysctl::look(&Found::default());
            sysctl::forward()?;
            ensure!(read(SWITCHES[0])? == "2" && read(SWITCHES[1])? == "2", "it does not forward");
            act(noted)?;
            SWITCHES.iter().chain(&BESIDE).map(|path| read(path)).collect()
        })())
    });
    done?
}

#[test]
fn settings_are_put_back_only_while_they_are_as_this_program_made_them() -> Result<()> {
    let topology = Topology::new()?;
    let host = Netns::create(&topology.path().join("host"))?;
    let as_before = settings_after(&host, |noted| Ok(noted.restore()?))?;
    ensure!(as_before == ["0", "0", "1", "1"], "{as_before:?}");

    // After a boot: nothing forwards, and the administrator has new wishes.
    let after_boot = settings_after(&host, |noted| {
        SWITCHES.iter().try_for_each(|path| write(path, "0"))?;
        BESIDE.iter().try_for_each(|path| write(path, "0"))?;
        Ok(noted.restore()?)
    })?;
    ensure!(after_boot == ["0", "0", "0", "0"], "{after_boot:?}");

    // Somebody else needs forwarding by now.
    let theirs = settings_after(&host, |noted| {
        SWITCHES.iter().try_for_each(|path| write(path, "1"))?;
        BESIDE.iter().try_for_each(|path| write(path, "0"))?;
        Ok(noted.restore()?)
    })?;
    ensure!(theirs == ["1", "1", "0", "0"], "{theirs:?}");
    Netns::remove(&topology.path().join("host"))?;
    Ok(())
}
