//! What Kubernetes does around pods: the kubelet's probes come from the host, and kube-proxy leads
//! clients to pods with rules of its own.

use anyhow::Result;
use serde_json::json;
use vxmesh_tests::lab::{Allowed, Lab, UNDERWAY, wait_until};

use super::{Call, address, call};

/// As kube-proxy leads an address of its own to a pod: for pods, the host and clients beside it.
const PROXY: &str =
    "sysctl -qw net.ipv4.ip_forward=1; ip route replace 10.96.0.0/12 dev eth0; nft -f - <<'EOF'
table ip proxy {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 10.96.0.10 tcp dport 80 dnat to POD:8080
        ip daddr 10.213.0.1 tcp dport 30080 dnat to POD:8080
    }
    chain output {
        type nat hook output priority -100; policy accept;
        ip daddr 10.96.0.10 tcp dport 80 dnat to POD:8080
    }
}
EOF";

#[test]
fn pods_are_reached_from_hosts_and_by_rules_of_others() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.vxmesh("h1", &["network", "create", "app", "--subnet", "10.77.0.0/24"])?;
    let conf = json!({ "cniVersion": "1.1.0", "name": "app", "type": "vxmesh-cni" });
    for (host, name) in [("h1", "here"), ("h2", "there")] {
        lab.sh(host, &format!("ip netns add {name}"))?;
        call(&lab, host, Call::new("ADD", name, &format!("/run/netns/{name}")), &conf)?;
        let serve = format!(
            "ip netns exec {name} setsid -f busybox nc -ll -p 8080 -e busybox echo {name} \
             </dev/null >/dev/null 2>&1"
        );
        lab.sh(host, &serve)?;
    }
    lab.named("h1", &["here", "there"])?;
    let answers = |host: &str, prefix: &str, at: &str, expected: &str| {
        let ask = format!("{prefix} curl -s -m 3 --http0.9 http://{at}");
        wait_until(&format!("{host}: {prefix} {at} is {expected}"), || {
            Ok(lab.sh(host, &ask).is_ok_and(|said| said.trim() == expected))
        })
    };
    let inside = "ip netns exec here";
    // As the kubelet asks whether a pod is well.
    answers("h1", "", &format!("{}:8080", address(&lab, "h1", "here")?), "here")?;
    answers("h1", "", &format!("{}:8080", address(&lab, "h1", "there")?), "there")?;
    for name in ["here", "there"] {
        let rules = PROXY.replace("POD", &address(&lab, "h1", name)?);
        lab.sh("h1", &rules)?;
        answers("h1", "", "10.96.0.10", name)?;
        answers("h2", "", "10.213.0.1:30080", name)?;
        answers("h1", inside, "10.96.0.10", name)?;
        lab.sh("h1", "nft delete table ip proxy")?;
    }
    lab.sh("h1", "ip netns del here")?;
    lab.sh("h2", "ip netns del there")?;
    lab.named("h1", &[])?;
    lab.finish(Allowed { drops: UNDERWAY, ..Allowed::default() })
}
