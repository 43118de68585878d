//! Runs each example as a visitor would, and looks at what it says.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn noise_udp() {
    let said = run("noise_udp");
    for line in ["bob got: hello bob", "alice got: hello alice", "cipher "] {
        assert!(said.contains(line), "no `{line}` in:\n{said}");
    }
}

#[test]
fn two_nodes() {
    let said = run("two_nodes");
    for line in [
        "bob joined it as ",
        "bob knows alice by gossip",
        "alice knows bob by gossip",
        "web has [10.0.0.5]",
    ] {
        assert!(said.contains(line), "no `{line}` in:\n{said}");
    }
}

#[expect(clippy::disallowed_methods, reason = "an example is a program")]
fn run(name: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--package", "vxmesh-examples", "--example", name])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}
