//! From who answers for each service to what the data path has of them. Pure.

use std::sync::Arc;

use vxmesh_proto::{
    lb::{Flows, Service, ServiceSpec, Services, ejection::Ejections},
    tables::{NetworkTable, TableUpdate},
};

/// What brings the services of a network's snapshot in step with these, if anything. They are
/// settled once all members were heard after the start; backends on this host get something where
/// their answers are steered here. `next` gives the number of another snapshot, and the flows.
pub fn updated<P>(
    table: &NetworkTable<P>,
    specs: Vec<ServiceSpec>,
    (is_settled, steers): (bool, bool),
    ejections: &Ejections,
    next: impl FnOnce() -> Option<(u64, Arc<Flows>)>,
) -> Option<TableUpdate<P>> {
    let before = table.services();
    // After the last service its clients are told that it is gone, so the snapshot stays.
    if specs.is_empty() && before.is_none() {
        return None;
    }
    let old = |spec: &ServiceSpec| before?.iter().find(|old| old.spec().id == spec.id);
    let service = |spec: ServiceSpec| match old(&spec) {
        Some(old) => {
            let new = Service::new(spec, Some(old));
            if new.spec() == old.spec() { Arc::clone(old) } else { Arc::new(new) }
        }
        None => Arc::new(Service::new(spec, None)),
    };
    let network = table.spec().id;
    let with_out = |spec: ServiceSpec| {
        let out = ejections.out(network, &spec);
        ServiceSpec { out, ..spec }
    };
    let services: Vec<_> = specs.into_iter().map(with_out).map(service).collect();
    let is_same = |before: &Services| {
        let same = |(old, new): (&Arc<Service>, &Arc<Service>)| Arc::ptr_eq(old, new);
        (before.is_settled(), before.steers_local()) == (is_settled, steers)
            && before.iter().count() == services.len()
            && before.iter().zip(&services).all(same)
    };
    if before.is_some_and(is_same) {
        return None;
    }
    let (version, flows) = next()?;
    let services = Services::new(flows, (version, is_settled), services).steering_local(steers);
    services.count_new(network);
    Some(TableUpdate::Services(Some(Arc::new(services))))
}
