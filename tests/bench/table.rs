//! Medians, ranges, and ratios to a reference subject taken round by round.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::Result;

use crate::load::Metric;

/// Characters of an error that a table tells.
const LONGEST: usize = 200;

/// What was measured: subject and metric -> one value per round.
#[derive(Debug)]
pub(crate) struct Table {
    reference: &'static str,
    subjects: Vec<String>,
    metrics: Vec<Metric>,
    values: BTreeMap<(String, Metric), Vec<f64>>,
}

impl Table {
    pub(crate) const fn new(reference: &'static str) -> Self {
        Self { reference, subjects: Vec::new(), metrics: Vec::new(), values: BTreeMap::new() }
    }

    /// Whether nothing was measured.
    pub(crate) const fn is_empty(&self) -> bool {
        self.metrics.is_empty()
    }

    /// Adds the value of the next round.
    pub(crate) fn add(&mut self, subject: &str, metric: Metric, value: f64) {
        if !self.subjects.iter().any(|known| known == subject) {
            self.subjects.push(subject.to_owned());
        }
        if !self.metrics.contains(&metric) {
            self.metrics.push(metric);
        }
        self.values.entry((subject.to_owned(), metric)).or_default().push(value);
    }

    fn cell(&self, subject: &str, metric: Metric) -> String {
        let values = self.of(subject, metric);
        let Some((low, middle, high)) = spread(values) else { return "-".to_owned() };
        let ratios: Vec<f64> = values
            .iter()
            .zip(self.of(self.reference, metric))
            .filter(|(_, reference)| **reference > 0.0)
            .map(|(value, reference)| value / reference)
            .collect();
        let ratio = spread(&ratios).map_or(String::new(), |(_, ratio, _)| format!(" x{ratio:.2}"));
        format!("{} ({}-{}){ratio}", short(middle), short(low), short(high))
    }

    /// The medians of a metric with its name and unit, if anything was measured.
    pub(crate) fn medians(&self, name: &str) -> Option<(String, Vec<(String, f64)>)> {
        let metric = *self.metrics.iter().find(|metric| metric.name == name)?;
        let median = |subject: &String| {
            spread(self.of(subject, metric)).map(|(_, middle, _)| (subject.clone(), middle))
        };
        let bars = self.subjects.iter().filter_map(median).collect();
        Some((format!("{name}, {}", metric.unit), bars))
    }

    fn of(&self, subject: &str, metric: Metric) -> &[f64] {
        self.values.get(&(subject.to_owned(), metric)).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| |")?;
        for subject in &self.subjects {
            write!(f, " {subject} |")?;
        }
        write!(f, "\n|---|{}", "---|".repeat(self.subjects.len()))?;
        for metric in &self.metrics {
            write!(f, "\n| {}, {} |", metric.name, metric.unit)?;
            for subject in &self.subjects {
                write!(f, " {} |", self.cell(subject, *metric))?;
            }
        }
        writeln!(
            f,
            "\n\nmedian (lowest-highest) x median over the rounds of the ratio to {} in the same round",
            self.reference
        )
    }
}

/// Lowest, median, highest.
fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some((low, f64::midpoint(lower, upper), high))
}

/// Three digits that count.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 => format!("{value:.2}"),
        _ => "0".to_owned(),
    }
}

/// Text that was written for a screen as part of a table: in one line, and not too long.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ").replace('|', "/");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// The machine in one line.
pub(crate) fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    Ok(format!(
        "{count} x {}, Linux {}, load {load} before the run",
        model.unwrap_or("unknown CPU"),
        kernel.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[2.0]), Some((2.0, 2.0, 2.0)));
        assert_eq!(spread(&[3.0, 1.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some((1.0, 2.0, 9.0)));
    }

    #[test]
    fn an_error_fits_a_cell() {
        assert_eq!(one_line(" no\n  way | out "), "no way / out");
        assert_eq!(one_line(&"\u{e4}".repeat(LONGEST)), "\u{e4}".repeat(LONGEST));
        assert_eq!(one_line(&"\u{e4}".repeat(LONGEST + 1)), "\u{e4}".repeat(LONGEST) + "...");
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let metric = Metric { name: "TCP", unit: "Gbit/s" };
        let mut table = Table::new("kernel");
        for (kernel, tunnel) in [(10.0, 5.0), (2.0, 1.0), (100.0, 50.0)] {
            table.add("kernel", metric, kernel);
            table.add("tunnel", metric, tunnel);
        }
        table.add("agents", metric, 0.0);
        assert_eq!(table.cell("tunnel", metric), "5.00 (1.00-50.0) x0.50");
        assert_eq!(table.cell("nobody", metric), "-");
        let text = table.to_string();
        assert!(text.starts_with("| | kernel | tunnel | agents |\n|---|---|---|---|\n"), "{text}");
        assert!(text.contains("| TCP, Gbit/s | 10.0 (2.00-100) x1.00 |"), "{text}");
    }
}
