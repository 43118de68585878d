//! What tables call things: names for ids where they are known, short ids, round figures.

use std::{collections::BTreeMap, time::Duration};

use vxmesh_proto::addr::{EndpointId, Name, NetworkId, NodeId};

use super::{client::Client, output::Output};
use crate::api::{Endpoint, MOST, Network, Node};

/// Characters of a shortened id.
const SHORT: usize = 12;

/// Names of nodes, networks and endpoints.
#[derive(Debug, Default)]
pub(super) struct Words {
    nodes: BTreeMap<NodeId, Name>,
    networks: BTreeMap<NetworkId, Name>,
    endpoints: BTreeMap<EndpointId, Name>,
}

impl Words {
    /// Asks the agent; what it does not tell is called by its short id. JSON has no use for names.
    pub(super) async fn learn(client: &Client, output: Output) -> Self {
        if output.is_json() {
            return Self::default();
        }
        let nodes: Vec<Node> = client.get("/v1/nodes").await.unwrap_or_default();
        let networks: Vec<Network> = client.get("/v1/networks").await.unwrap_or_default();
        let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await.unwrap_or_default();
        Self {
            endpoints: endpoints.into_iter().map(|it| (it.id, it.name)).collect(),
            nodes: nodes.into_iter().map(|node| (node.id, node.name)).collect(),
            networks: networks.into_iter().map(|network| (network.id, network.name)).collect(),
        }
    }

    pub(super) fn node(&self, id: &NodeId) -> String {
        self.nodes.get(id).map_or_else(|| short(id.as_str()), Name::to_string)
    }

    pub(super) fn network(&self, id: &NetworkId) -> String {
        self.networks.get(id).map_or_else(|| id.short(), Name::to_string)
    }

    pub(super) fn endpoint(&self, id: &EndpointId) -> String {
        self.endpoints.get(id).map_or_else(|| id.short(), Name::to_string)
    }
}

/// The beginning of an id.
pub(super) fn short(id: &str) -> String {
    id.chars().take(SHORT).collect()
}

/// What is there, or a dash.
pub(super) fn or_dash<T: ToString>(item: Option<&T>) -> String {
    item.map_or_else(|| "-".into(), T::to_string)
}

/// All of them, or a dash.
pub(super) fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".into();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// A size to two or three digits.
pub(super) fn bytes(count: u64) -> String {
    let mut tenths = u128::from(count) * 10;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if tenths < 10_000 {
            return match (unit, tenths < 100) {
                ("B", _) | (_, false) => format!("{} {unit}", tenths / 10),
                (_, true) => format!("{}.{} {unit}", tenths / 10, tenths % 10),
            };
        }
        tenths /= 1000;
    }
    format!("{} PB", tenths / 10)
}

/// A time to its two largest units; days are the largest, as months are not all alike.
pub(super) fn duration(time: Duration) -> String {
    let (s, ms) = (time.as_secs(), u64::from(time.subsec_millis()));
    let units =
        [(s / 86_400, "d"), (s / 3600 % 24, "h"), (s / 60 % 60, "m"), (s % 60, "s"), (ms, "ms")];
    let largest = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = units.iter().skip(largest).take(2).filter(|(count, _)| *count > 0);
    let text: Vec<_> = shown.map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".into() } else { text.join(" ") }
}

/// A number; one that the API cuts off has an end that nobody needs to read.
pub(super) fn count(number: u64) -> String {
    if number >= MOST { "2^53 or more".into() } else { number.to_string() }
}

/// A round trip in milliseconds.
pub(super) fn round_trip(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9990, "9.9 kB"),
            (12_345, "12 kB"),
            (999_999, "999 kB"),
            (1_000_000, "1.0 MB"),
            (u64::MAX, "18446 PB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (ms, text) in [
            (0, "0s"),
            (7, "7ms"),
            (1500, "1s 500ms"),
            (60_000, "1m"),
            (3_725_000, "1h 2m"),
            (3_605_000, "1h"),
            (365 * 86_400_000, "365d"),
            (31_622_400_000 + 7_200_000, "366d 2h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(
            (count(0), count(MOST - 1), count(MOST)),
            ("0".into(), "9007199254740990".into(), "2^53 or more".into())
        );
        assert_eq!(round_trip(1234), "1.234 ms");
        assert_eq!(short("abcdefghijklmnop"), "abcdefghijkl");
    }

    #[test]
    fn what_is_missing_is_a_dash() {
        assert_eq!(or_dash::<u8>(None), "-");
        assert_eq!(list::<u8>(&[]), "-");
        assert_eq!(list(&[1, 2]), "1, 2");
    }
}
