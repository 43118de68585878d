//! Labels of a container: which of them its endpoints have, and the services that it names with
//! `vxmesh.service=NAME:80[:8080][/udp]`, several with commas between ([`ServiceLabel`]).

use std::collections::BTreeMap;

use vxmesh_proto::addr::Name;

use crate::api::ServicePort;

/// Where a container says of which services it is a backend.
const SERVICE: &str = "vxmesh.service";
/// What Compose says of itself and a user may ask for.
const COMPOSE: [&str; 2] = ["com.docker.compose.project", "com.docker.compose.service"];
/// What engines and images say of themselves.
const FOREIGN: [&str; 4] = ["com.docker.", "desktop.docker.", "org.opencontainers.", "io.podman."];
/// Services that one container may name: each has an address, and a network has place for 256.
const SERVICES: usize = 4;
/// A record has place for so many bytes of labels beside names and addresses.
const LABELS_LEN: usize = 320;

/// A service that a container names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceLabel {
    pub(crate) name: Name,
    pub(crate) ports: Vec<ServicePort>,
}

impl ServiceLabel {
    /// The label of endpoints by which the service chooses its backends.
    pub(crate) fn selector(&self) -> (String, String) {
        (format!("{SERVICE}.{}", self.name), "docker".to_owned())
    }
}

/// The services that labels name, and why some that they name are none.
pub(super) fn services(labels: &BTreeMap<String, String>) -> (Vec<ServiceLabel>, Option<String>) {
    let (mut all, mut fault): (Vec<ServiceLabel>, _) = (Vec::new(), None);
    let Some(text) = labels.get(SERVICE) else { return (all, fault) };
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        match parse(one) {
            Ok((name, port)) => {
                let is_full = all.len() == SERVICES;
                match all.iter_mut().find(|it| it.name == name) {
                    Some(known) => known.ports.push(port),
                    None if is_full => {
                        fault = Some(format!("label {SERVICE} names over {SERVICES} services"));
                    }
                    None => all.push(ServiceLabel { name, ports: vec![port] }),
                }
            }
            Err(why) => fault = Some(format!("label {SERVICE}={one}: {why}")),
        }
    }
    (all, fault)
}

fn parse(text: &str) -> Result<(Name, ServicePort), String> {
    let (name, port) =
        text.split_once(':').ok_or_else(|| "write NAME:80 or NAME:80:8080".to_owned())?;
    Ok((name.parse().map_err(|why| format!("`{name}`: {why}"))?, port.parse()?))
}

/// The labels that endpoints of a container have: those of its services, then its own as far as
/// there is place.
pub(super) fn labels(
    said: &BTreeMap<String, String>,
    services: &[ServiceLabel],
) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<_, _> = services.iter().map(ServiceLabel::selector).collect();
    let is_own = |key: &str| {
        COMPOSE.contains(&key)
            || (key != SERVICE && !FOREIGN.iter().any(|prefix| key.starts_with(prefix)))
    };
    let mut len: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    for (key, value) in said.iter().filter(|(key, _)| is_own(key)) {
        len += key.len() + value.len();
        if len > LABELS_LEN {
            break;
        }
        labels.insert(key.clone(), value.clone());
    }
    labels
}

/// Whether a service chooses its backends by such a label.
pub(crate) fn is_selector(selector: &BTreeMap<String, String>) -> bool {
    let is_own = |key: &String| key.strip_prefix(SERVICE).is_some_and(|it| it.starts_with('.'));
    selector.len() == 1 && selector.keys().all(is_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_label_names_services_and_their_ports() {
        let (all, fault) = services(&of(&[(SERVICE, "web:80:8080, web:443, dns:53/udp")]));
        assert_eq!(fault, None);
        let ports = |at: usize| -> Vec<(u16, u16)> {
            all[at].ports.iter().map(|port| (port.port, port.backend_port)).collect()
        };
        assert_eq!(all[0].name.as_str(), "web");
        assert_eq!((ports(0), ports(1)), (vec![(80, 8080), (443, 443)], vec![(53, 53)]));
        assert!(is_selector(&[all[0].selector()].into()));
        let (all, fault) = services(&of(&[(SERVICE, "a:1,b:2,c:3,d:4,e:5,a:6")]));
        assert_eq!((all.len(), all[0].ports.len()), (SERVICES, 2));
        assert!(fault.is_some_and(|fault| fault.contains("over 4")));
        for odd in ["web", "web:x", "We b:80", "web:80/sctp", "web:0"] {
            let (none, fault) = services(&of(&[(SERVICE, odd)]));
            assert!(none.is_empty() && fault.is_some_and(|fault| fault.contains(odd)), "{odd}");
        }
    }

    #[test]
    fn endpoints_have_the_labels_that_a_user_gave() {
        let said = of(&[
            ("com.docker.compose.config-hash", "0123456789abcdef"),
            ("com.docker.compose.service", "web"),
            ("org.opencontainers.image.title", "nginx"),
            ("tier", "front"),
            (SERVICE, "web:80"),
        ]);
        let (all, _) = services(&said);
        let labels = labels(&said, &all);
        let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
        assert_eq!(keys, ["com.docker.compose.service", "tier", "vxmesh.service.web"]);
        let long = of(&[("a", &"x".repeat(LABELS_LEN)), ("b", "")]);
        assert!(super::labels(&long, &[]).is_empty());
    }
}
