//! What a run says: Markdown for the page between two marks, and bars as SVG.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::table::Table;

const BEGIN: &str = "<!-- make bench writes from here -->";
const END: &str = "<!-- to here -->";
/// What is drawn of a table: metric, and whether less is better.
const DRAWN: [(&str, bool); 6] = [
    ("TCP 1", false),
    ("TCP 4", false),
    ("UDP 64 B", false),
    ("RTT p50", true),
    ("RTT p99 beside TCP", true),
    ("agents", true),
];
const WIDTH: usize = 860;
const LABELS: usize = 130;
const NUMBERS: usize = 90;
/// Characters of a name that fit beside its bar.
const NAME: usize = 18;
const ROW: usize = 18;
const TITLE: usize = 30;
/// Columns of panels.
const COLUMNS: usize = 2;

/// Puts the text between the marks of `performance.md` and the pictures into `img`, both below this
/// directory.
pub(crate) fn write(docs: &Path, text: &str, tables: &[(String, Table)]) -> Result<()> {
    let page = docs.join("performance.md");
    let old = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let mut text = text.to_owned();
    fs::create_dir_all(docs.join("img"))?;
    for (name, table) in tables {
        let file = format!("img/bench-{name}.svg");
        fs::write(docs.join(&file), draw(table))?;
        write!(text, "\n![The medians of the {name} underlay as bars]({file})\n")?;
    }
    fs::write(&page, replaced(&old, &text)?)?;
    Ok(())
}

/// The page with other text between the marks.
fn replaced(page: &str, text: &str) -> Result<String> {
    let marks = "the page has not both marks of what `make bench` writes";
    let (before, rest) = page.split_once(BEGIN).context(marks)?;
    let (_, after) = rest.split_once(END).context(marks)?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

/// One panel of bars for each metric that is drawn.
fn draw(table: &Table) -> String {
    let panels: Vec<_> =
        DRAWN.iter().filter_map(|(metric, less)| Some((drawn(table, metric)?, *less))).collect();
    let height = TITLE + ROW * panels.iter().map(|((_, bars), _)| bars.len()).max().unwrap_or(0);
    let rows = panels.len().div_ceil(COLUMNS);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        rows * (height + ROW)
    );
    for (at, ((title, bars), less)) in panels.iter().enumerate() {
        let left = at % COLUMNS * (WIDTH / COLUMNS);
        let top = at / COLUMNS * (height + ROW);
        let better = if *less { "less is better" } else { "more is better" };
        svg.push_str(&panel((left, top), &format!("{title} ({better})"), bars));
    }
    svg + "</svg>\n"
}

/// The bars of a metric. Who has nothing of it, as the kernel has no agents, has none.
fn drawn(table: &Table, metric: &str) -> Option<(String, Vec<(String, f64)>)> {
    let (title, mut bars) = table.medians(metric)?;
    bars.retain(|(_, value)| *value > 0.0);
    (!bars.is_empty()).then_some((title, bars))
}

/// A name as it can stand in an SVG; of a long one its end, which tells builds apart.
fn fitted(name: &str) -> String {
    let skipped = name.chars().count().saturating_sub(NAME);
    let dots = if skipped > 0 { "..." } else { "" };
    let kept: String =
        name.chars().skip(if skipped > 0 { skipped + dots.len() } else { 0 }).collect();
    format!("{dots}{kept}").replace('&', "&amp;").replace('<', "&lt;")
}

fn panel((left, top): (usize, usize), title: &str, bars: &[(String, f64)]) -> String {
    let longest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let room = u16::try_from(WIDTH / COLUMNS - LABELS - NUMBERS).map_or(0.0, f64::from);
    let mut svg = format!(
        "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>\n",
        left + 8,
        top + ROW
    );
    for (at, (name, value)) in bars.iter().enumerate() {
        let y = top + TITLE + at * ROW;
        let (text, begin) = (y + 12, left + LABELS);
        let len = value / longest * room;
        let fill = if name == "tunnel" { "#c2410c" } else { "#64748b" };
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{begin}\" y=\"{}\" width=\"{len:.1}\" height=\"13\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{}</text>\n",
            begin - 6,
            fitted(name),
            y + 1,
            f64::from(u32::try_from(begin).unwrap_or_default()) + len + 5.0,
            crate::table::short(*value),
        ));
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Metric;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = replaced(&page, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("no marks", "new").is_err());
    }

    #[test]
    fn the_page_shows_the_pictures_that_are_written() {
        let docs = tempfile::tempdir().unwrap();
        let page = docs.path().join("performance.md");
        fs::write(&page, format!("before\n{BEGIN}\nold\n{END}\n")).unwrap();
        let mut table = Table::new("kernel");
        table.add("tunnel", Metric { name: "TCP 1", unit: "Gbit/s" }, 5.0);
        write(docs.path(), "figures\n", &[("wire".to_owned(), table)]).unwrap();
        let page = fs::read_to_string(page).unwrap();
        assert!(page.contains("figures\n") && !page.contains("old"), "{page}");
        assert!(page.contains("](img/bench-wire.svg)\n"), "{page}");
        let svg = fs::read_to_string(docs.path().join("img/bench-wire.svg")).unwrap();
        assert!(svg.contains("TCP 1"), "{svg}");
    }

    #[test]
    fn the_longest_bar_fills_the_room() {
        let metric = Metric { name: "TCP 1", unit: "Gbit/s" };
        let mut table = Table::new("kernel");
        table.add("kernel", metric, 10.0);
        table.add("tunnel", metric, 5.0);
        let svg = draw(&table);
        assert!(svg.contains("TCP 1, Gbit/s (more is better)"), "{svg}");
        assert!(svg.contains("width=\"210.0\"") && svg.contains("width=\"105.0\""), "{svg}");
        assert!(svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn names_fit_their_column() {
        assert_eq!(fitted("wireguard-go"), "wireguard-go");
        assert_eq!(fitted(&"n".repeat(NAME)), "n".repeat(NAME));
        assert_eq!(
            fitted(&("n".repeat(NAME) + "after")),
            format!("...{}after", "n".repeat(NAME - 8))
        );
        assert_eq!(fitted("a<b&c"), "a&lt;b&amp;c");
    }

    #[test]
    fn who_has_none_has_no_bar() {
        let metric = Metric { name: "agents", unit: "CPU s/GB" };
        let mut table = Table::new("kernel");
        table.add("kernel", metric, 0.0);
        assert!(!draw(&table).contains("agents"), "a panel without bars");
        table.add("tunnel", metric, 3.0);
        let svg = draw(&table);
        assert!(svg.contains(">tunnel<") && !svg.contains(">kernel<"), "{svg}");
    }
}
