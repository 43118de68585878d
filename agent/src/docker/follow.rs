//! What containers say of themselves, followed while they run: their names, labels and services,
//! and whether they work.
//!
//! The engine says none of it in its calls, and may not be asked within most of them. So it is asked
//! after it has told that something happened, and of all containers once it tells again after a
//! pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::sleep;
use tracing::{debug, info, warn};

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

/// Follows what the engine tells of containers; it never ends.
pub(crate) async fn follow(agent: &dyn Agent) {
    let mut following = Following::default();
    loop {
        match following.until_it_ends(agent).await {
            Ok(()) => {}
            Err(DockerError::Absent(_)) => {}
            Err(error) => debug!(%error, "what Docker tells is not followed; it is asked again"),
        }
        sleep(PAUSE).await;
    }
}

#[derive(Debug, Default)]
struct Following {
    /// Containers that were told to end, and have not ended yet.
    stopping: BTreeSet<String>,
    /// What the log says of containers already.
    told: BTreeMap<String, String>,
}

impl Following {
    async fn until_it_ends(&mut self, agent: &dyn Agent) -> Result<(), DockerError> {
        let mut events = Events::open().await?;
        self.stopping.clear();
        if let Ok(node) = agent.node().await {
            for container in all(&*node).await? {
                self.look(&*node, &container).await?;
            }
        }
        while let Some(event) = events.next().await? {
            let Ok(node) = agent.node().await else { continue };
            self.handle(&*node, event).await?;
        }
        Ok(())
    }

    async fn handle(&mut self, node: &dyn Node, event: Event) -> Result<(), DockerError> {
        let Event { container, what } = event;
        match what {
            Happening::BegunOrEnded => drop(self.stopping.remove(&container)),
            Happening::Signalled(signal) => {
                let Some(said) = inspection(&container).await? else { return Ok(()) };
                if said.stop_signal == Some(signal) {
                    self.stopping.insert(container.clone());
                }
            }
            Happening::Changed => {}
        }
        self.look(node, &container).await
    }

    /// Brings the endpoints of a container in step with what it says.
    async fn look(&mut self, node: &dyn Node, container: &str) -> Result<(), DockerError> {
        let Some(said) = inspection(container).await? else {
            self.told.remove(container);
            return Ok(());
        };
        if let Err(error) = self.apply(node, container, &said).await {
            self.say(container, error.to_string());
        }
        Ok(())
    }

    async fn apply(
        &mut self,
        node: &dyn Node,
        container: &str,
        said: &Inspection,
    ) -> Result<(), ApiError> {
        let is_stopping = self.stopping.contains(container);
        for (endpoint, aliases) in &said.endpoints {
            let row: Option<EndpointRow> =
                node.store().get(Table::DockerEndpoints, endpoint).map_err(store_failed)?;
            let Some(row) = row else { continue };
            // One that is plugged in; `doctor --docker` names those that are not any more.
            let Some(id) = row.joined.filter(|id| node.endpoint(*id).is_some()) else { continue };
            if let Some(fault) = &said.fault {
                self.say(container, fault.clone());
            }
            node.tell_endpoint(id, said.works && !is_stopping);
            let other = said.name.as_ref().and_then(|name| name_on(name, &node.name()));
            let description = Description {
                names: said.name.clone().into_iter().chain(other).collect(),
                aliases: aliases.clone(),
                labels: said.labels.clone(),
            };
            match node.describe(id, description).await {
                Err(_) if node.endpoint(id).is_none() => continue,
                described => described?,
            }
            let network: Option<NetworkRow> =
                node.store().get(Table::DockerNetworks, &row.network).map_err(store_failed)?;
            let Some(network) = network else { continue };
            for service in &said.services {
                node.offer(network.id, service).await?;
            }
        }
        Ok(())
    }

    /// Says in the log what is wrong with a container, once.
    fn say(&mut self, container: &str, fault: String) {
        if self.told.get(container) != Some(&fault) {
            let id = container.get(..12).unwrap_or(container);
            warn!(container = id, fault, "a container is not in the mesh as it says");
            self.told.insert(container.to_owned(), fault);
        }
    }
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
    if !all.is_empty() {
        info!(containers = all.len(), "following containers of Docker");
    }
    Ok(all)
}

async fn inspection(container: &str) -> Result<Option<Inspection>, DockerError> {
    Ok(describe_container(container).await?.and_then(|body| Inspection::parse(&body)))
}
