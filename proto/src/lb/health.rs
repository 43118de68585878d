//! Which local backends pass the checks of their services: [`Checks`]. Pure: it says what is to be
//! checked when, is told what came of it, and says what the others are to be told.
//!
//! ```text
//! unknown -passes-> healthy -fall failures in a row-> failed -rise successes in a row-> healthy
//!         -fall failures in a row-> failed
//! ```
//!
//! A backend gets nothing before it has passed once. That it has not started yet is told to nobody,
//! so that it passes is not kept back as a second word. Somebody else's word (`service health`)
//! stands above the check for as long as it was given. Who runs an endpoint, such as a container
//! engine, may say that it works for no service. Of one endpoint the others are told once a second
//! at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    addr::{EndpointId, ServiceId},
    limits::CLAIM_CHECKS,
    object::HealthCheck,
    record::EVERY_SERVICE,
};

/// From one word about an endpoint to the next.
const TOLD: Duration = Duration::from_secs(1);

/// A service of an endpoint.
pub type Checked = (EndpointId, ServiceId);

/// How it stands with one.
#[derive(Debug)]
struct CheckState {
    check: Option<HealthCheck>,
    due: Instant,
    is_running: bool,
    passes: Option<bool>,
    /// Results in a row that say otherwise.
    otherwise: u8,
    /// Somebody's word, and until when it stands.
    word: Option<(bool, Option<Instant>)>,
}

impl CheckState {
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
    all: BTreeMap<Checked, CheckState>,
    /// Endpoints that work for no service, by the word of who runs them.
    failing: BTreeSet<EndpointId>,
    told: BTreeMap<EndpointId, (BTreeMap<String, bool>, Instant)>,
    /// What was told in the agent's last life, until all is checked again.
    remembered: BTreeMap<EndpointId, BTreeMap<String, bool>>,
}

impl Checks {
    /// Those of an agent that begins a new life: what it told in the last one stands until it knows
    /// better.
    #[must_use]
    pub fn after(remembered: BTreeMap<EndpointId, BTreeMap<String, bool>>) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Forgets what was told in the last life. For when all services and endpoints are known.
    pub fn forget_last_life(&mut self) {
        self.remembered.clear();
    }

    /// All that is told of endpoints, for the next life.
    #[must_use]
    pub fn to_remember(&self) -> BTreeMap<EndpointId, BTreeMap<String, bool>> {
        let endpoints = self.endpoints().into_iter().chain(self.remembered.keys().copied());
        endpoints.map(|endpoint| (endpoint, self.health(endpoint))).collect()
    }

    /// Brings the checks in step with the services and with the endpoints that are here.
    pub fn follow(
        &mut self,
        now: Instant,
        wanted: &BTreeMap<Checked, HealthCheck>,
        is_here: impl Fn(&Checked) -> bool,
    ) {
        for (of, check) in wanted {
            let (endpoint, service) = of;
            let last = self.remembered.get(endpoint).and_then(|it| it.get(&service.short()));
            let new = || CheckState { passes: last.copied(), ..CheckState::new(now) };
            let standing = self.all.entry(*of).or_insert_with(new);
            if standing.check.as_ref() != Some(check) {
                standing.check = Some(check.clone());
                // What another check found in a row says nothing of this one.
                (standing.due, standing.otherwise) = (now, 0);
            }
        }
        for (_, standing) in self.all.iter_mut().filter(|(of, _)| !wanted.contains_key(of)) {
            (standing.check, standing.passes, standing.otherwise) = (None, None, 0);
        }
        self.expire(now);
        self.all.retain(|of, it| is_here(of) && (it.check.is_some() || it.word.is_some()));
    }

    /// Forgets words whose time is over.
    fn expire(&mut self, now: Instant) {
        for standing in self.all.values_mut() {
            standing.word =
                standing.word.filter(|(_, until)| until.is_none_or(|until| now < until));
        }
    }

    /// What is to be checked now, so many at most; [`handle_result`](Self::handle_result) is then
    /// due for each.
    pub fn poll(&mut self, now: Instant, most: usize) -> Vec<(Checked, HealthCheck)> {
        self.expire(now);
        let is_due = |it: &CheckState| it.check.is_some() && !it.is_running && it.due <= now;
        let mut due: Vec<_> = self.all.iter_mut().filter(|(_, it)| is_due(it)).collect();
        // Those that have waited longest.
        due.sort_by_key(|(_, standing)| standing.due);
        let due = due.into_iter().take(most);
        due.filter_map(|(of, standing)| {
            standing.is_running = true;
            Some((*of, standing.check.clone()?))
        })
        .collect()
    }

    /// When something is to be checked, told or forgotten next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let checks = self.all.values().filter(|it| it.check.is_some() && !it.is_running);
        let words = self.all.values().filter_map(|it| it.word?.1);
        let endpoints = self.endpoints().into_iter();
        let untold = endpoints.filter(|it| self.untold(*it).is_some());
        let told = untold.filter_map(|it| self.tells(it));
        checks.map(|it| it.due).chain(words).chain(told).min()
    }

    /// What came of a check.
    pub fn handle_result(&mut self, now: Instant, of: Checked, passed: bool) {
        let Some(standing) = self.all.get_mut(&of) else { return };
        standing.is_running = false;
        let Some(check) = &standing.check else { return };
        standing.due = now + Duration::from_millis(check.interval_ms);
        let needed = match standing.passes {
            Some(passes) if passes == passed => {
                standing.otherwise = 0;
                return;
            }
            None if passed => 1,
            Some(false) => check.rise,
            None | Some(true) => check.fall,
        };
        standing.otherwise = standing.otherwise.saturating_add(1);
        if standing.otherwise >= needed {
            (standing.passes, standing.otherwise) = (Some(passed), 0);
        }
    }

    /// Somebody says whether a backend works, or has nothing to say any more.
    pub fn handle_word(
        &mut self,
        now: Instant,
        of: Checked,
        word: Option<bool>,
        until: Option<Instant>,
    ) {
        let standing = self.all.entry(of).or_insert_with(|| CheckState::new(now));
        standing.word = word.map(|word| (word, until));
    }

    /// Who runs an endpoint says whether it works at all. Nothing is remembered of those that are
    /// not here any more.
    pub fn handle_endpoint(
        &mut self,
        endpoint: EndpointId,
        works: bool,
        is_here: impl Fn(&EndpointId) -> bool,
    ) {
        self.failing.retain(is_here);
        if let Some(last_life) = self.remembered.get_mut(&endpoint) {
            last_life.remove(EVERY_SERVICE);
        }
        if works {
            self.failing.remove(&endpoint);
        } else {
            self.failing.insert(endpoint);
        }
    }

    /// What is to be told of endpoints, for the first time or anew.
    pub fn poll_told(&mut self, now: Instant) -> Vec<(EndpointId, BTreeMap<String, bool>)> {
        let mut endpoints = self.endpoints();
        self.told.retain(|endpoint, (told, _)| endpoints.contains(endpoint) || !told.is_empty());
        endpoints.extend(self.told.keys());
        let mut all = Vec::new();
        for endpoint in endpoints {
            if self.tells(endpoint).is_some_and(|at| now < at) {
                continue;
            }
            if let Some(health) = self.untold(endpoint) {
                self.told.insert(endpoint, (health.clone(), now));
                all.push((endpoint, health));
            }
        }
        all
    }

    /// What is known of an endpoint. Of more services than a record tells of, these are first those
    /// that it told of before.
    #[must_use]
    pub fn health(&self, endpoint: EndpointId) -> BTreeMap<String, bool> {
        let mut health = self.remembered.get(&endpoint).cloned().unwrap_or_default();
        for ((_, service), standing) in self.of(endpoint) {
            match standing.health() {
                Some(is) => drop(health.insert(service.short(), is)),
                None => drop(health.remove(&service.short())),
            }
        }
        let is_failing = self.failing.contains(&endpoint);
        let room = CLAIM_CHECKS - usize::from(is_failing);
        if health.len() > room {
            let told = self.told.get(&endpoint).map(|(told, _)| told);
            let was_told = |short: &String| told.is_some_and(|told| told.contains_key(short));
            let (before, new): (BTreeMap<_, _>, BTreeMap<_, _>) =
                health.into_iter().partition(|(short, _)| was_told(short));
            health = before.into_iter().chain(new).take(room).collect();
        }
        if is_failing {
            health.insert(EVERY_SERVICE.to_owned(), false);
        }
        health
    }

    fn of(&self, endpoint: EndpointId) -> impl Iterator<Item = (&Checked, &CheckState)> {
        let first = (endpoint, ServiceId::from_random([0; 16]));
        self.all.range(first..).take_while(move |((of, _), _)| *of == endpoint)
    }

    fn endpoints(&self) -> BTreeSet<EndpointId> {
        let checked = self.all.keys().map(|(endpoint, _)| *endpoint);
        checked.chain(self.failing.iter().copied()).collect()
    }

    /// What is known of an endpoint, if that is not what was told.
    fn untold(&self, endpoint: EndpointId) -> Option<BTreeMap<String, bool>> {
        let health = self.health(endpoint);
        let is_new =
            self.told.get(&endpoint).map_or(!health.is_empty(), |(told, _)| *told != health);
        is_new.then_some(health)
    }

    /// When it may be told; nothing if it may be at once.
    fn tells(&self, endpoint: EndpointId) -> Option<Instant> {
        self.told.get(&endpoint).map(|(_, at)| *at + TOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::now;

    const SECOND: Duration = Duration::from_secs(1);

    fn of(service: u8, endpoint: u8) -> Checked {
        (EndpointId::from_random([endpoint; 16]), ServiceId::from_random([service; 16]))
    }

    fn check() -> HealthCheck {
        HealthCheck { path: None, interval_ms: 2000, timeout_ms: 500, rise: 2, fall: 3 }
    }

    /// The results of checks of one backend, one each 2 s; what the others are told after each.
    fn run(results: &[bool]) -> Vec<Option<bool>> {
        let (mut checks, mut now, one) = (Checks::default(), now(), of(1, 1));
        checks.follow(now, &[(one, check())].into(), |_| true);
        let mut health = Vec::new();
        for result in results {
            assert_eq!(checks.poll(now, 9), [(one, check())]);
            assert_eq!(checks.poll(now, 9), [], "it is under way");
            checks.handle_result(now, one, *result);
            assert_eq!(checks.poll(now, 9), []);
            health.push(checks.health(one.0).get(&one.1.short()).copied());
            now += 2 * SECOND;
            assert!(checks.poll_timeout().is_some_and(|at| at <= now));
        }
        health
    }

    #[test]
    fn a_backend_falls_and_rises_by_results_in_a_row() {
        let (up, down) = (Some(true), Some(false));
        assert_eq!(run(&[true]), [up]);
        assert_eq!(run(&[false, false, true]), [None, None, up], "it has just started");
        assert_eq!(run(&[false, false, false, true, true]), [None, None, down, down, up]);
        let results = [true, false, false, true, false, false, false, true, false, true, true];
        let health = [up, up, up, up, up, up, down, down, down, down, up];
        assert_eq!(run(&results), health);
    }

    /// A service lost its check for a moment while somebody's word kept the state, or has another
    /// check.
    #[test]
    fn failures_before_a_check_was_wanted_anew_do_not_count() {
        let other = HealthCheck { timeout_ms: 400, ..check() };
        for (between, after) in [(None, check()), (Some(other.clone()), other)] {
            let (mut checks, now, one) = (Checks::default(), now(), of(1, 1));
            let wanted =
                |check: Option<HealthCheck>| check.map(|it| (one, it)).into_iter().collect();
            checks.follow(now, &wanted(Some(check())), |_| true);
            checks.handle_result(now, one, false);
            checks.handle_result(now, one, false);
            checks.handle_word(now, one, Some(true), None);
            checks.follow(now, &wanted(between), |_| true);
            checks.follow(now, &wanted(Some(after)), |_| true);
            checks.handle_word(now, one, None, None);
            checks.handle_result(now, one, false);
            assert_eq!(checks.health(one.0), BTreeMap::new(), "this is the first of three");
            checks.handle_result(now, one, false);
            checks.handle_result(now, one, false);
            assert_eq!(checks.health(one.0), [(one.1.short(), false)].into());
        }
    }

    /// Whoever looks when it is due finds it gone: else it looks again and again until then.
    #[test]
    fn a_word_ends_when_it_is_due() {
        let (mut checks, start, one) = (Checks::default(), now(), of(1, 1));
        checks.handle_word(start, one, Some(false), Some(start + 5 * SECOND));
        checks.poll_told(start);
        assert_eq!(checks.poll_timeout(), Some(start + 5 * SECOND));
        assert_eq!(checks.poll(start + 5 * SECOND, 9), []);
        assert_eq!(checks.poll_told(start + 5 * SECOND), [(one.0, BTreeMap::new())]);
        assert_eq!(checks.poll_timeout(), None);
    }

    #[test]
    fn others_are_told_once_a_second_at_most() {
        let (mut checks, start, one, two) = (Checks::default(), now(), of(1, 1), of(2, 1));
        let wanted = [one, two].map(|of| (of, HealthCheck { rise: 1, fall: 1, ..check() }));
        checks.follow(start, &wanted.into(), |_| true);
        assert_eq!(checks.poll_told(start), []);
        checks.handle_result(start, one, true);
        assert_eq!(checks.poll_told(start), [(one.0, [(one.1.short(), true)].into())]);
        assert_eq!(checks.poll_told(start), []);
        checks.handle_result(start, two, false);
        checks.handle_result(start, one, false);
        assert_eq!(checks.poll_told(start + SECOND / 2), []);
        let both = [(one.1.short(), false), (two.1.short(), false)].into();
        assert_eq!(checks.poll_told(start + SECOND), [(one.0, both)]);
        // What is not checked any more is taken back.
        checks.follow(start, &BTreeMap::new(), |_| true);
        assert_eq!(checks.poll_told(start + 2 * SECOND), [(one.0, BTreeMap::new())]);
        assert_eq!(checks.poll_told(start + 4 * SECOND), []);
        assert_eq!(checks.poll_timeout(), None);
    }

    #[test]
    fn a_word_stands_above_the_check_for_its_time() {
        let (mut checks, start, one) = (Checks::default(), now(), of(1, 1));
        let wanted = [(one, check())].into();
        checks.follow(start, &wanted, |_| true);
        checks.handle_result(start, one, true);
        checks.handle_word(start, one, Some(false), Some(start + 5 * SECOND));
        let health = |checks: &Checks| checks.health(one.0).get(&one.1.short()).copied();
        assert_eq!(health(&checks), Some(false));
        checks.follow(start + 4 * SECOND, &wanted, |_| true);
        assert_eq!(health(&checks), Some(false));
        checks.follow(start + 5 * SECOND, &wanted, |_| true);
        assert_eq!(health(&checks), Some(true));
        // Also of a service without a check, as long as the backend is here.
        let other = of(2, 1);
        checks.handle_word(start, other, Some(false), None);
        checks.follow(start + 9 * SECOND, &wanted, |_| true);
        assert_eq!(checks.health(one.0).len(), 2);
        checks.follow(start + 9 * SECOND, &wanted, |of| *of != other);
        assert_eq!(checks.health(one.0).len(), 1);
    }

    #[test]
    fn a_word_is_withdrawn_and_a_check_goes_on_after_it() {
        let (mut checks, start, one) = (Checks::default(), now(), of(1, 1));
        let wanted = [(one, check())].into();
        checks.follow(start, &wanted, |_| true);
        assert_eq!(checks.poll(start, 9).len(), 1);
        checks.handle_word(start, one, Some(false), None);
        // The service has no check any more, and then one again.
        checks.follow(start, &BTreeMap::new(), |_| true);
        checks.handle_result(start, one, true);
        checks.follow(start, &wanted, |_| true);
        assert_eq!(checks.poll(start, 9).len(), 1);
        checks.handle_result(start, one, true);
        let health = |checks: &Checks| checks.health(one.0).get(&one.1.short()).copied();
        assert_eq!(health(&checks), Some(false));
        checks.handle_word(start, one, None, None);
        assert_eq!(health(&checks), Some(true));
    }

    #[test]
    fn what_was_told_in_the_last_life_stands_until_more_is_known() {
        let (start, one, two) = (now(), of(1, 1), of(2, 1));
        let last = [(one.0, [(one.1.short(), true), (two.1.short(), false)].into())];
        let mut checks = Checks::after(last.into());
        assert_eq!(checks.health(one.0).len(), 2);
        checks.follow(start, &[(one, check())].into(), |_| true);
        assert_eq!(checks.health(one.0).get(&one.1.short()), Some(&true));
        checks.forget_last_life();
        assert_eq!(checks.health(one.0), [(one.1.short(), true)].into());
        assert_eq!(checks.to_remember(), [(one.0, [(one.1.short(), true)].into())].into());
    }

    #[test]
    fn of_more_services_than_a_record_tells_of_those_stay_that_it_told_of() {
        let (mut checks, start) = (Checks::default(), now());
        let few: Vec<_> = (100..100 + u8::try_from(CLAIM_CHECKS).unwrap()).collect();
        let up = |checks: &mut Checks, service| {
            checks.handle_word(start, of(service, 1), Some(true), None);
        };
        few.iter().for_each(|service| up(&mut checks, *service));
        let told = checks.poll_told(start);
        assert_eq!(told[0].1.len(), CLAIM_CHECKS);
        up(&mut checks, 1);
        assert_eq!(checks.health(told[0].0), told[0].1);
    }

    #[test]
    fn an_endpoint_that_does_not_work_is_told_until_it_does() {
        let (start, one) = (now(), of(1, 1));
        let health = |checks: &Checks| checks.health(one.0).get(EVERY_SERVICE).copied();
        let mut checks = Checks::default();
        checks.handle_endpoint(one.0, true, |_| true);
        assert!(checks.poll_told(start).is_empty(), "that it works is nothing new");
        checks.handle_endpoint(one.0, false, |_| true);
        assert_eq!(checks.poll_told(start).len(), 1);
        // It stands in the next life, until who runs it says otherwise.
        let mut next = Checks::after(checks.to_remember());
        assert_eq!(health(&next), Some(false));
        next.handle_endpoint(one.0, true, |_| true);
        assert_eq!(health(&next), None);
        // Another one's word, when this one has gone.
        checks.handle_endpoint(of(1, 2).0, true, |it| *it != one.0);
        assert_eq!(checks.poll_told(start + TOLD), [(one.0, BTreeMap::new())]);
    }
}
