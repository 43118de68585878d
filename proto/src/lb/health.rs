//! Which local backends pass the checks of their services: [`Checks`]. Pure: it says what is to be
//! checked when, is told what came of it, and says what the others are to be told.
//!
//! ```text
//! unknown -passes-> healthy -fall failures in a row-> failed -rise successes in a row-> healthy
//!         -fails->  failed
//! ```
//!
//! A backend gets nothing before it has passed once. Somebody else's word (`service health`) stands
//! above the check for as long as it was given. Of one endpoint the others are told once a second
//! at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    addr::{EndpointId, ServiceId},
    limits::CLAIM_CHECKS,
    object::HealthCheck,
};

/// From one word about an endpoint to the next.
const TOLD: Duration = Duration::from_secs(1);

/// A backend of a service.
pub type Checked = (ServiceId, EndpointId);

/// How it stands with one.
#[derive(Debug)]
struct Standing {
    check: Option<HealthCheck>,
    due: Instant,
    is_running: bool,
    passes: Option<bool>,
    /// Results in a row that say otherwise.
    otherwise: u8,
    /// Somebody's word, and until when it stands.
    word: Option<(bool, Option<Instant>)>,
}

impl Standing {
    const fn new(now: Instant) -> Self {
        Self { check: None, due: now, is_running: false, passes: None, otherwise: 0, word: None }
    }

    fn health(&self) -> Option<bool> {
        self.word.map(|(word, _)| word).or(self.passes)
    }
}

/// All checks of this node.
#[derive(Debug, Default)]
pub struct Checks {
    all: BTreeMap<Checked, Standing>,
    told: BTreeMap<EndpointId, (BTreeMap<String, bool>, Instant)>,
}

impl Checks {
    /// Brings the checks in step with the services and with the endpoints that are here.
    pub fn follow(
        &mut self,
        now: Instant,
        wanted: &BTreeMap<Checked, HealthCheck>,
        is_here: impl Fn(&Checked) -> bool,
    ) {
        for (of, check) in wanted {
            let standing = self.all.entry(*of).or_insert_with(|| Standing::new(now));
            if standing.check.as_ref() != Some(check) {
                standing.check = Some(check.clone());
                standing.due = now;
            }
        }
        for (of, standing) in &mut self.all {
            if !wanted.contains_key(of) {
                (standing.check, standing.passes) = (None, None);
            }
            standing.word =
                standing.word.filter(|(_, until)| until.is_none_or(|until| now < until));
        }
        self.all.retain(|of, it| is_here(of) && (it.check.is_some() || it.word.is_some()));
    }

    /// What is to be checked now; [`handle_result`](Self::handle_result) is then due for each.
    pub fn poll(&mut self, now: Instant) -> Vec<(Checked, HealthCheck)> {
        let mut due = Vec::new();
        for (of, standing) in &mut self.all {
            if let Some(check) = &standing.check
                && !standing.is_running
                && standing.due <= now
            {
                standing.is_running = true;
                due.push((*of, check.clone()));
            }
        }
        due
    }

    /// When something is to be checked, told or forgotten next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let checks = self.all.values().filter(|it| it.check.is_some() && !it.is_running);
        let words = self.all.values().filter_map(|it| it.word?.1);
        let untold = self.endpoints().filter(|it| self.is_untold(*it)).map(|it| self.tells(it));
        checks.map(|it| it.due).chain(words).chain(untold.flatten()).min()
    }

    /// What came of a check.
    pub fn handle_result(&mut self, now: Instant, of: Checked, passed: bool) {
        let Some(standing) = self.all.get_mut(&of) else { return };
        let Some(check) = &standing.check else { return };
        standing.is_running = false;
        standing.due = now + Duration::from_millis(check.interval_ms);
        let Some(passes) = standing.passes.filter(|passes| *passes != passed) else {
            (standing.passes, standing.otherwise) = (Some(passed), 0);
            return;
        };
        standing.otherwise = standing.otherwise.saturating_add(1);
        let needed = if passes { check.fall } else { check.rise };
        if standing.otherwise >= needed {
            (standing.passes, standing.otherwise) = (Some(passed), 0);
        }
    }

    /// Somebody says whether a backend works.
    pub fn handle_word(&mut self, now: Instant, of: Checked, word: bool, until: Option<Instant>) {
        let standing = self.all.entry(of).or_insert_with(|| Standing::new(now));
        standing.word = Some((word, until));
    }

    /// What is to be told of endpoints, for the first time or anew.
    pub fn poll_told(&mut self, now: Instant) -> Vec<(EndpointId, BTreeMap<String, bool>)> {
        let endpoints: BTreeSet<EndpointId> = self.endpoints().collect();
        self.told.retain(|endpoint, (told, _)| endpoints.contains(endpoint) || !told.is_empty());
        let known = self.told.keys().copied();
        let due: Vec<EndpointId> = endpoints.iter().copied().chain(known).collect();
        let due: BTreeSet<EndpointId> = due
            .into_iter()
            .filter(|it| self.is_untold(*it) && self.tells(*it).is_none_or(|at| at <= now))
            .collect();
        let mut all = Vec::new();
        for endpoint in due {
            let health = self.health(endpoint);
            self.told.insert(endpoint, (health.clone(), now));
            all.push((endpoint, health));
        }
        all
    }

    /// What is known of an endpoint. Of more services than a record tells of, it is the first.
    #[must_use]
    pub fn health(&self, endpoint: EndpointId) -> BTreeMap<String, bool> {
        let its = self.all.iter().filter(|((_, of), _)| *of == endpoint);
        let health = its.filter_map(|((service, _), it)| Some((service.short(), it.health()?)));
        health.take(CLAIM_CHECKS).collect()
    }

    fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.all.keys().map(|(_, endpoint)| *endpoint)
    }

    fn is_untold(&self, endpoint: EndpointId) -> bool {
        let health = self.health(endpoint);
        self.told.get(&endpoint).map_or(!health.is_empty(), |(told, _)| *told != health)
    }

    /// When it may be told; nothing if it may be at once.
    fn tells(&self, endpoint: EndpointId) -> Option<Instant> {
        self.told.get(&endpoint).map(|(_, at)| *at + TOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn of(service: u8, endpoint: u8) -> Checked {
        (ServiceId::from_random([service; 16]), EndpointId::from_random([endpoint; 16]))
    }

    fn check() -> HealthCheck {
        HealthCheck { path: None, interval_ms: 2000, timeout_ms: 500, rise: 2, fall: 3 }
    }

    /// The results of checks of one backend, one each 2 s; what the others are told after each.
    fn run(results: &[bool]) -> Vec<Option<bool>> {
        let (mut checks, mut now, one) = (Checks::default(), Instant::now(), of(1, 1));
        checks.follow(now, &[(one, check())].into(), |_| true);
        let mut health = Vec::new();
        for result in results {
            assert_eq!(checks.poll(now), [(one, check())]);
            assert_eq!(checks.poll(now), [], "it is under way");
            checks.handle_result(now, one, *result);
            assert_eq!(checks.poll(now), []);
            health.push(checks.health(one.1).get(&one.0.short()).copied());
            now += 2 * SECOND;
            assert!(checks.poll_timeout().is_some_and(|at| at <= now));
        }
        health
    }

    #[test]
    fn a_backend_falls_and_rises_by_results_in_a_row() {
        let (up, down) = (Some(true), Some(false));
        assert_eq!(run(&[true]), [up]);
        assert_eq!(run(&[false, true, true]), [down, down, up]);
        let results = [true, false, false, true, false, false, false, true, false, true, true];
        let health = [up, up, up, up, up, up, down, down, down, down, up];
        assert_eq!(run(&results), health);
    }

    #[test]
    fn others_are_told_once_a_second_at_most() {
        let (mut checks, start, one, two) = (Checks::default(), Instant::now(), of(1, 1), of(2, 1));
        let wanted = [one, two].map(|of| (of, HealthCheck { rise: 1, fall: 1, ..check() }));
        checks.follow(start, &wanted.into(), |_| true);
        assert_eq!(checks.poll_told(start), []);
        checks.handle_result(start, one, true);
        assert_eq!(checks.poll_told(start), [(one.1, [(one.0.short(), true)].into())]);
        assert_eq!(checks.poll_told(start), []);
        checks.handle_result(start, two, false);
        checks.handle_result(start, one, false);
        assert_eq!(checks.poll_told(start + SECOND / 2), []);
        let both = [(one.0.short(), false), (two.0.short(), false)].into();
        assert_eq!(checks.poll_told(start + SECOND), [(one.1, both)]);
        // What is not checked any more is taken back.
        checks.follow(start, &BTreeMap::new(), |_| true);
        assert_eq!(checks.poll_told(start + 2 * SECOND), [(one.1, BTreeMap::new())]);
        assert_eq!(checks.poll_told(start + 4 * SECOND), []);
        assert_eq!(checks.poll_timeout(), None);
    }

    #[test]
    fn a_word_stands_above_the_check_for_its_time() {
        let (mut checks, start, one) = (Checks::default(), Instant::now(), of(1, 1));
        let wanted = [(one, check())].into();
        checks.follow(start, &wanted, |_| true);
        checks.handle_result(start, one, true);
        checks.handle_word(start, one, false, Some(start + 5 * SECOND));
        let health = |checks: &Checks| checks.health(one.1).get(&one.0.short()).copied();
        assert_eq!(health(&checks), Some(false));
        checks.follow(start + 4 * SECOND, &wanted, |_| true);
        assert_eq!(health(&checks), Some(false));
        checks.follow(start + 5 * SECOND, &wanted, |_| true);
        assert_eq!(health(&checks), Some(true));
        // Also of a service without a check, as long as the backend is here.
        let other = of(2, 1);
        checks.handle_word(start, other, false, None);
        checks.follow(start + 9 * SECOND, &wanted, |_| true);
        assert_eq!(checks.health(one.1).len(), 2);
        checks.follow(start + 9 * SECOND, &wanted, |of| *of != other);
        assert_eq!(checks.health(one.1).len(), 1);
    }
}
