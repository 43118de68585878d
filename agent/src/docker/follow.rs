//! What containers say of themselves, followed while they run: their names, labels and services,
//! and whether they work.
//!
//! The engine says none of it in its calls, and may not be asked within most of them. So it is
//! asked after it has told that something happened, and of all containers once it tells again after
//! a pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use vxmesh_proto::addr::{EndpointId, NetworkId};

use super::{
    Agent, Description, Node,
    driver::store_failed,
    engine::{DockerError, describe_container, describe_network},
    events::{Event, Events, Happening},
    inspect::Inspection,
    names::{containers_of, name_on},
    rows::{EndpointRow, NetworkRow},
};
use crate::{api::ApiError, store::Table};

/// Until the engine is asked again that has ended or is not there.
const PAUSE: Duration = Duration::from_secs(2);
/// Until a container is looked at again whose endpoints are not as it says.
const AGAIN: Duration = Duration::from_secs(10);
/// A container that was told to end and still runs after this time goes on.
const ENDS: Duration = Duration::from_secs(600);

/// Follows what the engine tells of containers; it never ends.
pub(crate) async fn follow(agent: &dyn Agent) {
    let mut following = Following::default();
    loop {
        match following.until_it_ends(agent).await {
            Ok(()) | Err(DockerError::Absent(_)) => {}
            Err(error) => debug!(%error, "what Docker tells is not followed; it is asked again"),
        }
        sleep(PAUSE).await;
    }
}

#[derive(Debug, Default)]
struct Following {
    /// Containers that were told to end and have not ended yet, since when.
    stopping: BTreeMap<String, Instant>,
    /// Containers that are to be looked at again.
    owed: BTreeSet<String>,
    /// Whether all are, once the mesh is there.
    owes_all: bool,
    /// What the log says of containers already.
    told: BTreeMap<String, String>,
}

impl Following {
    async fn until_it_ends(&mut self, agent: &dyn Agent) -> Result<(), DockerError> {
        let mut events = Events::open().await?;
        self.owes_all = true;
        let mut again = Instant::now();
        loop {
            let event = timeout(again.saturating_duration_since(Instant::now()), events.next());
            let event = match event.await {
                Ok(told) => match told? {
                    Some(event) => Some(event),
                    None => return Ok(()),
                },
                Err(_elapsed) => None,
            };
            let Ok(node) = agent.node().await else {
                self.owes_all = true;
                again = Instant::now() + PAUSE;
                continue;
            };
            match event {
                Some(event) => self.handle(&*node, event).await,
                None => {
                    again = Instant::now() + AGAIN;
                    self.look_again(&*node).await?;
                }
            }
        }
    }

    async fn handle(&mut self, node: &dyn Node, event: Event) {
        let Event { container, what } = event;
        match what {
            Happening::BegunOrEnded => drop(self.stopping.remove(&container)),
            Happening::Signalled(signal) => {
                if let Ok(Some(said)) = inspection(&container).await
                    && said.stop_signal == Some(signal)
                {
                    self.stopping.insert(container.clone(), Instant::now());
                    self.owed.insert(container.clone());
                }
            }
            Happening::Changed => {}
        }
        self.look(node, &container).await;
    }

    async fn look_again(&mut self, node: &dyn Node) -> Result<(), DockerError> {
        if self.owes_all {
            let all = all(node).await?;
            self.owes_all = false;
            self.told.retain(|container, _| all.contains(container));
            self.stopping.retain(|container, _| all.contains(container));
            self.owed = all;
        }
        self.stopping.retain(|_, since| since.elapsed() < ENDS);
        for container in std::mem::take(&mut self.owed) {
            if self.stopping.contains_key(&container) {
                self.owed.insert(container.clone());
            }
            self.look(node, &container).await;
        }
        Ok(())
    }

    /// Brings the endpoints of a container in step with what it says.
    async fn look(&mut self, node: &dyn Node, container: &str) {
        let faults = match inspection(container).await {
            Ok(Some(said)) => {
                let works = said.works && !self.stopping.contains_key(container);
                let faults = apply(node, &said, works).await;
                if !faults.is_empty() {
                    self.owed.insert(container.to_owned());
                }
                said.fault.into_iter().chain(faults).collect()
            }
            Ok(None) => {
                self.owed.remove(container);
                Vec::new()
            }
            Err(error) => {
                self.owed.insert(container.to_owned());
                vec![error.to_string()]
            }
        };
        self.say(container, &faults.join("; "));
    }

    /// Says in the log what is wrong with a container, once.
    fn say(&mut self, container: &str, fault: &str) {
        if fault.is_empty() {
            self.told.remove(container);
        } else if self.told.get(container).is_none_or(|told| told != fault) {
            let id = container.get(..12).unwrap_or(container);
            warn!(container = id, fault, "a container is not in the mesh as it says");
            self.told.insert(container.to_owned(), fault.to_owned());
        }
    }
}

/// Says what a container says to the mesh, and why some of it cannot be.
async fn apply(node: &dyn Node, said: &Inspection, works: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (endpoint, aliases) in &said.endpoints {
        let rows = endpoint_and_network(node, endpoint);
        let (id, network) = match rows {
            Ok(Some(rows)) => rows,
            Ok(None) => continue,
            Err(error) => {
                faults.push(error.to_string());
                continue;
            }
        };
        node.tell_endpoint(id, works);
        let other = said.name.as_ref().and_then(|name| name_on(name, &node.name()));
        let description = Description {
            names: said.name.clone().into_iter().chain(other).collect(),
            aliases: aliases.clone(),
            labels: said.labels.clone(),
        };
        let mut done = vec![node.describe(id, description).await];
        for service in &said.services {
            done.push(node.offer(network, service).await);
        }
        // Of one that has just gone nothing is owed.
        if node.endpoint(id).is_some() {
            faults.extend(done.into_iter().filter_map(Result::err).map(|error| error.to_string()));
        }
    }
    faults
}

/// The endpoint of the mesh that one of the engine is, and its network; nothing if it is not
/// plugged in, which `doctor --docker` tells of.
fn endpoint_and_network(
    node: &dyn Node,
    endpoint: &str,
) -> Result<Option<(EndpointId, NetworkId)>, ApiError> {
    let row: Option<EndpointRow> =
        node.store().get(Table::DockerEndpoints, endpoint).map_err(store_failed)?;
    let Some(row) = row else { return Ok(None) };
    let network: Option<NetworkRow> =
        node.store().get(Table::DockerNetworks, &row.network).map_err(store_failed)?;
    let id = row.joined.filter(|id| node.endpoint(*id).is_some());
    Ok(id.zip(network.map(|network| network.id)))
}

/// All containers that run in networks of the mesh.
async fn all(node: &dyn Node) -> Result<BTreeSet<String>, DockerError> {
    let networks: Vec<(String, NetworkRow)> =
        node.store().list(Table::DockerNetworks).unwrap_or_default();
    let mut all = BTreeSet::new();
    for (id, _) in networks {
        if let Some(network) = describe_network(&id).await? {
            all.extend(containers_of(&network));
        }
    }
    Ok(all)
}

async fn inspection(container: &str) -> Result<Option<Inspection>, DockerError> {
    Ok(describe_container(container).await?.and_then(|body| Inspection::parse(&body)))
}
