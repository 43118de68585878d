//! Several peers at once against one, and what a flood of datagrams leaves to others, on a lab of
//! five hosts.

use anyhow::Result;

use crate::{
    Args, Load,
    bulk::Way,
    eprint_step,
    lab::{self, Lab},
    load::Metric,
    star::{Carrier, Star, Total},
    table::Table,
};

const HOSTS: u8 = 5;
const OTHERS: [u8; 4] = [2, 3, 4, 5];
/// Bytes of UDP payload in each datagram of a flood.
const LEN: usize = 64;

/// What takes its turn: the networks of one carrier.
#[derive(Debug)]
struct Subject<'l> {
    label: String,
    one: Star<'l>,
    /// Only where a flood in another network is measured.
    another: Option<Star<'l>>,
}

/// A flood and a TCP stream that meet.
struct Meeting {
    flood: (u8, u8),
    /// Whether the stream is in another network than the flood.
    apart: bool,
    tcp: (u8, Way),
    alone: Metric,
    beside: Metric,
    left: Metric,
    flooded: Metric,
}

const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit }
}

const MEETINGS: [Meeting; 4] = [
    Meeting {
        flood: (1, 2),
        apart: false,
        tcp: (3, Way::Out),
        alone: metric("h1 floods h2: TCP h1 to h3, alone", "Gbit/s"),
        beside: metric("h1 floods h2: TCP h1 to h3, beside it", "Gbit/s"),
        left: metric("h1 floods h2: left of it", "%"),
        flooded: metric("h1 floods h2: the flood", "kpps"),
    },
    Meeting {
        flood: (1, 2),
        apart: true,
        tcp: (2, Way::Out),
        alone: metric("h1 floods h2 in another network: TCP h1 to h2, alone", "Gbit/s"),
        beside: metric("h1 floods h2 in another network: TCP h1 to h2, beside it", "Gbit/s"),
        left: metric("h1 floods h2 in another network: left of it", "%"),
        flooded: metric("h1 floods h2 in another network: the flood", "kpps"),
    },
    Meeting {
        flood: (2, 1),
        apart: false,
        tcp: (3, Way::In),
        alone: metric("h2 floods h1: TCP h3 to h1, alone", "Gbit/s"),
        beside: metric("h2 floods h1: TCP h3 to h1, beside it", "Gbit/s"),
        left: metric("h2 floods h1: left of it", "%"),
        flooded: metric("h2 floods h1: the flood", "kpps"),
    },
    Meeting {
        flood: (2, 1),
        apart: true,
        tcp: (3, Way::In),
        alone: metric("h2 floods h1 in another network: TCP h3 to h1, alone", "Gbit/s"),
        beside: metric("h2 floods h1 in another network: TCP h3 to h1, beside it", "Gbit/s"),
        left: metric("h2 floods h1 in another network: left of it", "%"),
        flooded: metric("h2 floods h1 in another network: the flood", "kpps"),
    },
];

/// The tables of all underlays as text.
pub(crate) fn measure(args: &Args, loads: &[Load]) -> Result<String> {
    let overload = loads.contains(&Load::Overload);
    let labs = [&args.vxmesh].into_iter().chain(&args.against);
    let labs = labs.map(|binary| Lab::up(binary, HOSTS)).collect::<Result<Vec<_>>>()?;
    let mut subjects = Vec::new();
    for (at, (lab, label)) in labs.iter().zip(lab::labels(&labs)).enumerate() {
        let carriers = [("kernel".to_owned(), Carrier::Kernel), (label, Carrier::Agents)];
        for (label, carrier) in carriers.into_iter().skip(at.min(1)) {
            eprint_step(&format!("{label}: brought up on {HOSTS} hosts"));
            let another = overload.then(|| Star::up(lab, carrier, 1)).transpose()?;
            subjects.push(Subject { label, one: Star::up(lab, carrier, 0)?, another });
        }
    }

    let mut text = String::new();
    for underlay in args.underlays() {
        for lab in &labs {
            lab.set_underlay(*underlay)?;
        }
        let name = underlay.name();
        let (mut many, mut flooded) = (Table::new("kernel"), Table::new("kernel"));
        for round in 1..=args.rounds {
            for subject in &subjects {
                eprint_step(&format!("{name}, {HOSTS} hosts, round {round}, {}", subject.label));
                if loads.contains(&Load::Many) {
                    subject.many(args.seconds, &mut many)?;
                }
                subject.overload(args.seconds, &mut flooded)?;
            }
        }
        for (what, table) in [("several peers at once", many), ("under overload", flooded)] {
            if !table.is_empty() {
                text.push_str(&format!("\nUnderlay {name}, {HOSTS} hosts, {what}:\n\n{table}"));
            }
        }
    }
    Ok(text)
}

impl Subject<'_> {
    /// One peer, then all at once to it, then all at once from it.
    fn many(&self, seconds: u32, table: &mut Table) -> Result<()> {
        let mut add = |name, unit, value| table.add(&self.label, Metric { name, unit }, value);
        let one = self.one.tcp(&[2], Way::In, seconds)?;
        add("TCP of one peer", "Gbit/s", one.gigabits);
        let Total { gigabits, agents_per_gigabyte } = self.one.tcp(&OTHERS, Way::In, seconds)?;
        add("four peers to one, total", "Gbit/s", gigabits);
        add("four peers to one", "times that of one peer", gigabits / one.gigabits);
        add("four peers to one, agents", "CPU s/GB", agents_per_gigabyte);
        let Total { gigabits, agents_per_gigabyte } = self.one.tcp(&OTHERS, Way::Out, seconds)?;
        add("one to four peers, total", "Gbit/s", gigabits);
        add("one to four peers", "times that of one peer", gigabits / one.gigabits);
        add("one to four peers, agents", "CPU s/GB", agents_per_gigabyte);
        Ok(())
    }

    /// TCP alone and beside a flood.
    fn overload(&self, seconds: u32, table: &mut Table) -> Result<()> {
        let Some(another) = &self.another else { return Ok(()) };
        for meeting in &MEETINGS {
            let (peer, way) = meeting.tcp;
            let alone = self.one.tcp(&[peer], way, seconds)?.gigabits;
            let (from, to) = meeting.flood;
            let flood = if meeting.apart { another } else { &self.one }.flood(from, to, LEN)?;
            let beside = self.one.tcp(&[peer], way, seconds);
            let flooded = flood.stop()?;
            let beside = beside.map_or_else(
                |error| {
                    eprint_step(&format!("{}: {}: {error:#}", self.label, meeting.beside.name));
                    0.0
                },
                |total| total.gigabits,
            );
            table.add(&self.label, meeting.alone, alone);
            table.add(&self.label, meeting.beside, beside);
            table.add(&self.label, meeting.left, beside / alone * 100.0);
            table.add(&self.label, meeting.flooded, flooded);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_meeting_has_rows_of_its_own() {
        let rows = MEETINGS
            .iter()
            .flat_map(|meeting| [meeting.alone, meeting.beside, meeting.left, meeting.flooded]);
        let mut rows: Vec<Metric> = rows.collect();
        let all = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), all);
    }

    #[test]
    fn everybody_who_meets_is_there() {
        for meeting in &MEETINGS {
            let (from, to) = meeting.flood;
            for host in [from, to, meeting.tcp.0] {
                assert!((1..=HOSTS).contains(&host), "h{host}");
            }
            assert_ne!(from, to);
            assert_ne!(meeting.tcp.0, 1, "h1 is the other end");
        }
        assert!(OTHERS.iter().all(|host| (2..=HOSTS).contains(host)));
    }
}
