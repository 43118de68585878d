//! Which object a reference means: a full id, else a unique name, else a unique prefix of an id.
//!
//! Of several of one name that were made at the same time the oldest has the name; the others are
//! meant by their ids.
//!
//! A name goes before a prefix, so that creating an object can never change what an existing name
//! means. A sandbox has nothing but its name, which is written in full.

use crate::api::{ApiError, Endpoint, ErrorCode, Network, Node, Peer, Sandbox, Service, Token};

/// Candidates that an ambiguous reference's hint shows.
const CANDIDATES: usize = 5;

/// Something that a user refers to by id or name.
pub trait Referable {
    /// The word for it, which is also its command.
    const KIND: &'static str;
    /// Whether the beginning of its id will do.
    const ABBREVIATED: bool = true;
    /// Its full id.
    fn id(&self) -> String;
    /// Its name, if it has one beside its id.
    fn name(&self) -> Option<&str>;
    /// Whether the name is its own, and not that of an older one.
    fn owns_name(&self) -> bool {
        true
    }
}

/// The one object that `reference` means.
pub fn one<'a, T: Referable>(items: &'a [T], reference: &str) -> Result<&'a T, ApiError> {
    if let Some(item) = items.iter().find(|item| item.id() == reference) {
        return Ok(item);
    }
    let named: Vec<&T> = items.iter().filter(|item| item.name() == Some(reference)).collect();
    let owners: Vec<&T> = named.iter().copied().filter(|item| item.owns_name()).collect();
    if !owners.is_empty() {
        return only(&owners, reference);
    }
    if !named.is_empty() {
        return only(&named, reference);
    }
    if reference.is_empty() || !T::ABBREVIATED {
        return Err(not_found::<T>(reference));
    }
    let prefixed: Vec<&T> = items.iter().filter(|item| item.id().starts_with(reference)).collect();
    only(&prefixed, reference)
}

/// The session with the node that `reference` means.
pub fn peer<'a>(nodes: &[Node], peers: &'a [Peer], reference: &str) -> Result<&'a Peer, ApiError> {
    let node = one(nodes, reference)?;
    peers.iter().find(|peer| peer.node_id == node.id).ok_or_else(|| {
        let (message, hint) = if node.is_self {
            (format!("`{reference}` is this node, which is not its own peer"), "vxmesh status")
        } else {
            (format!("there is no session with node `{reference}`"), "vxmesh peer ls")
        };
        ApiError::new(ErrorCode::NotFound, message, format!("see `{hint}`"))
    })
}

fn only<'a, T: Referable>(found: &[&'a T], reference: &str) -> Result<&'a T, ApiError> {
    match found {
        [] => Err(not_found::<T>(reference)),
        [item] => Ok(item),
        several => Err(ambiguous(several, reference)),
    }
}

fn not_found<T: Referable>(reference: &str) -> ApiError {
    let hint = format!("see `vxmesh {} ls`", T::KIND);
    // The other kinds are the same on every node.
    let hint = if T::KIND == "sandbox" { hint + ", here and on the other nodes" } else { hint };
    let message = format!("no {} has the id or name `{reference}`", T::KIND);
    ApiError::new(ErrorCode::NotFound, message, hint)
}

fn ambiguous<T: Referable>(several: &[&T], reference: &str) -> ApiError {
    let shown = several.iter().take(CANDIDATES).map(|item| match item.name() {
        Some(name) => format!("{} ({name})", item.id()),
        None => item.id(),
    });
    let mut hint = format!("use one of the ids {}", shown.collect::<Vec<_>>().join(", "));
    if several.len() > CANDIDATES {
        hint.push_str(", ...");
    }
    ApiError::new(
        ErrorCode::Conflict,
        format!("`{reference}` means {} {}s", several.len(), T::KIND),
        hint,
    )
}

macro_rules! referable {
    ($($type:ty, $kind:literal, $abbreviated:literal, $id:ident, $name:expr, $owns:expr;)*) => {$(
        impl Referable for $type {
            const KIND: &'static str = $kind;
            const ABBREVIATED: bool = $abbreviated;

            fn id(&self) -> String {
                self.$id.to_string()
            }

            fn name(&self) -> Option<&str> {
                let name: fn(&Self) -> Option<&str> = $name;
                name(self)
            }

            fn owns_name(&self) -> bool {
                let owns: fn(&Self) -> bool = $owns;
                owns(self)
            }
        }
    )*};
}

referable! {
    // Who is gone gave the name up: the host may be back as another node.
    Node, "node", true, id, |node| (!node.is_gone()).then_some(node.name.as_str()), |_| true;
    Network, "network", true, id, |network| Some(network.name.as_str()), |network| network.state != "conflict";
    Service, "service", true, id, |service| Some(service.name.as_str()), |service| service.state != "conflict";
    Endpoint, "endpoint", true, id, |endpoint| Some(endpoint.name.as_str()), |endpoint| endpoint.conflict.is_none();
    Sandbox, "sandbox", false, name, |_| None, |_| true;
    Token, "token", true, id, |_| None, |_| true;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(&'static str, Option<&'static str>);

    impl Referable for Thing {
        const KIND: &'static str = "thing";

        fn id(&self) -> String {
            self.0.into()
        }

        fn name(&self) -> Option<&str> {
            self.1
        }

        fn owns_name(&self) -> bool {
            self.0 != "ee77"
        }
    }

    const THINGS: [Thing; 8] = [
        Thing("aa11", Some("web")),
        Thing("aa22", Some("db")),
        Thing("bb33", Some("aa")),
        Thing("cc44", Some("twin")),
        Thing("cc55", Some("twin")),
        Thing("dd66", None),
        Thing("ee77", Some("dup")),
        Thing("ee88", Some("dup")),
    ];

    #[test]
    fn references_mean_id_then_name_then_prefix() {
        for (reference, id) in [
            ("aa11", "aa11"),
            ("web", "aa11"),
            ("aa2", "aa22"),
            ("aa", "bb33"),
            ("d", "dd66"),
            ("dup", "ee88"),
            ("ee77", "ee77"),
        ] {
            assert_eq!(one(&THINGS, reference).unwrap().0, id, "{reference}");
        }
    }

    #[test]
    fn unknown_references_are_not_found() {
        for reference in ["", "nothing", "aa111", "WEB", "we"] {
            let error = one(&THINGS, reference).err().unwrap();
            assert_eq!(error.code, ErrorCode::NotFound, "{reference}");
            assert!(error.message.contains(&format!("`{reference}`")), "{error}");
            assert_eq!(error.hint, "see `vxmesh thing ls`");
        }
        assert_eq!(one::<Thing>(&[], "a").err().unwrap().code, ErrorCode::NotFound);
    }

    #[test]
    fn ambiguous_references_name_the_candidates() {
        let twin = one(&THINGS, "twin").err().unwrap();
        assert_eq!(twin.code, ErrorCode::Conflict);
        assert_eq!(twin.message, "`twin` means 2 things");
        assert_eq!(twin.hint, "use one of the ids cc44 (twin), cc55 (twin)");

        let prefix = one(&THINGS, "a").err().unwrap();
        assert_eq!(prefix.code, ErrorCode::Conflict);
        assert!(prefix.hint.contains("aa11 (web)") && prefix.hint.contains("aa22 (db)"));
    }

    #[test]
    fn a_sandbox_is_named_in_full() {
        let sandbox = Sandbox {
            name: "web-1".parse().unwrap(),
            netns: "/run/netns/x".into(),
            pid: None,
            state: "created".into(),
            command: Vec::new(),
            published: Vec::new(),
            incarnation: 1,
            endpoints: Vec::new(),
            networks: Vec::new(),
            etc: None,
            mode: None,
            warnings: Vec::new(),
            exit_status: None,
            ended_at: None,
            hostname: None,
            labels: Default::default(),
            detached: None,
            records: None,
            restarts: 0,
        };
        let sandboxes = [sandbox];
        assert!(one(&sandboxes, "web-1").is_ok());
        assert_eq!(one(&sandboxes, "web").err().unwrap().code, ErrorCode::NotFound);
    }

    #[test]
    fn long_lists_of_candidates_are_cut() {
        let things: Vec<Thing> =
            ["e1", "e2", "e3", "e4", "e5", "e6"].into_iter().map(|id| Thing(id, None)).collect();
        let error = one(&things, "e").err().unwrap();
        assert!(error.hint.ends_with("e5, ..."), "{}", error.hint);
    }
}
