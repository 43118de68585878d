//! `vxmesh lab demo`: what a visitor sees first.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// What the README promises, for a debug build on a busy machine too.
const MINUTE: Duration = Duration::from_secs(60);

#[test]
#[expect(clippy::disallowed_methods, reason = "tests start programs")]
fn the_demo_shows_all_and_leaves_nothing() -> Result<()> {
    let own = env::current_exe()?;
    let program = own.ancestors().nth(2).context("no target directory")?.join("vxmesh");
    let lab = format!("demo{}", std::process::id());
    let start = Instant::now();
    let output = Command::new(program)
        .args(["--format", "table", "lab", "--name", &lab, "demo"])
        .stdin(Stdio::null())
        .output()?;
    let took = start.elapsed();
    let said = String::from_utf8(output.stdout)?;
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("the demo took {:.1} s", took.as_secs_f64());
    ensure!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    for line in [
        "h2$ vxmesh network create blue --subnet 10.71.0.0/16 --subnet fd71::/64",
        "3 packets transmitted, 3 received, 0% packet loss",
        "every sandbox reaches every other: 12 of 12 pairs, IPv4 and IPv6",
        "TCP over IPv4 between hosts: ",
        "TCP over IPv6 between hosts: ",
        "aes-256-gcm",
        "nobody on the wire may read this",
        "the wire shows none of it: in 0 of ",
        "the others see that h3 is dead: after ",
        "its sandbox answers again: ",
        "What was measured",
    ] {
        ensure!(said.contains(line) || is_no_aes(line, &said), "{line:?} is missing:\n{said}");
    }
    ensure!(!said.contains("FAILED"), "{said}");
    ensure!(
        !said.contains('\u{1b}') && !complained.contains('\u{1b}'),
        "colours in a pipe: {said}"
    );
    let widest = said.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    ensure!(widest <= 100, "a line has {widest} characters:\n{said}");
    ensure!(took < 10 * MINUTE, "the demo took {took:?}");
    assert_nothing_left(&lab)
}

/// A processor without AES gets the other cipher.
fn is_no_aes(line: &str, said: &str) -> bool {
    line == "aes-256-gcm" && said.contains("chacha20-poly1305")
}

fn assert_nothing_left(lab: &str) -> Result<()> {
    ensure!(!Path::new("/run/vxmesh-lab").join(lab).exists(), "files are left");
    if let Ok(entries) = fs::read_dir("/run/netns") {
        for entry in entries {
            let name = entry?.file_name();
            ensure!(!name.to_string_lossy().starts_with(lab), "namespace {name:?} is left");
        }
    }
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(lab), "mounts are left");
    for pid in fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
    {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ensure!(!line.contains(lab), "process {pid} is left: {line:?}");
    }
    Ok(())
}
