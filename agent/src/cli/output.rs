//! The one place that prints: results on stdout, everything else on stderr.
//!
//! A reader that goes away (`| head`) ends the output quietly.

use std::{
    fmt,
    io::{self, ErrorKind, IsTerminal, Write},
    time::Duration,
};

use comfy_table::Table;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{
    args::Format,
    words::{self, Words},
};
use crate::{
    api::{ApiError, ErrorBody, ErrorCode},
    identity::date,
};

/// Prints in one format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: Format,
}

/// An object as a row of a table.
pub(super) trait Row: Serialize {
    /// The columns.
    const HEAD: &'static [&'static str];
    /// The cells, with short ids and names.
    fn cells(&self, words: &Words) -> Vec<String>;
}

impl Output {
    pub(super) const fn new(format: Format) -> Self {
        Self { format }
    }

    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Several objects: a table, or one array.
    pub(super) fn list<T: Row>(self, items: &[T], words: &Words) -> Result<(), ApiError> {
        if self.is_json() {
            return print(&json(&items)?);
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(T::HEAD);
        for item in items {
            table.add_row(item.cells(words).iter().map(|cell| one_line(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        print(&table.trim_fmt())
    }

    /// One object: its fields line by line, or as it is.
    pub(super) fn object(self, item: &impl Serialize) -> Result<(), ApiError> {
        let text = json(item)?;
        if self.is_json() {
            return print(&text);
        }
        let Fields(fields) = serde_json::from_str(&text).map_err(|why| cannot(&why))?;
        print(&described(&fields))
    }

    /// What a command did: one line, or the object that it was done to.
    pub(super) fn done(self, item: &impl Serialize, line: &str) -> Result<(), ApiError> {
        if self.is_json() { print(&json(item)?) } else { print(line) }
    }

    /// A word to a person who watches; programs do not get it.
    pub(super) fn note(self, text: &str) {
        if !self.is_json() {
            complain(text);
        }
    }

    /// What went wrong beside the command's own work, which is done.
    pub(super) fn warn(self, text: &str) {
        if self.is_json() {
            complain(&serde_json::json!({ "warning": { "message": text } }).to_string());
        } else {
            complain(&format!("warning: {text}"));
        }
    }

    /// Whether there is a person to ask.
    pub(super) fn may_ask(self) -> bool {
        !self.is_json() && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Whether that person says yes.
    pub(super) fn confirm(self, question: &str) -> bool {
        let mut err = io::stderr().lock();
        let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
        let mut answer = String::new();
        asked.is_ok()
            && io::stdin().read_line(&mut answer).is_ok()
            && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
    }

    /// Why the command failed.
    pub(super) fn error(self, error: &ApiError) {
        let body = ErrorBody { error: error.clone() };
        match serde_json::to_string(&body) {
            Ok(text) if self.is_json() => complain(&text),
            _ => complain(&format!("error: {}\nhint: {}", error.message, error.hint)),
        }
    }

    /// Bytes that are a result by themselves, such as a program's output.
    pub(super) fn raw(self, bytes: &[u8]) -> Result<(), ApiError> {
        let mut out = io::stdout().lock();
        told(out.write_all(bytes).and_then(|()| out.flush()))
    }

    /// Text that is a result by itself, such as help.
    pub(super) fn text(self, text: &str) -> Result<(), ApiError> {
        print(text)
    }
}

/// A cell without line breaks and what else moves the cursor: a command may have them.
fn one_line(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The fields of a JSON object in their own order, which `serde_json::Map` does not keep.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

/// Fields line by line, with the units of their values. Several objects in one field have a line
/// each.
fn described(fields: &[(String, Value)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(key, value)| field(key, value)).collect();
    let width = fields.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    let mut lines = Vec::new();
    for (key, values) in fields {
        let mut key = format!("{key}:");
        for value in values {
            lines.push(format!("{key:width$}  {value}").trim_end().to_owned());
            key.clear();
        }
    }
    lines.join("\n")
}

/// The name of a field without its unit, and its lines.
fn field(key: &str, value: &Value) -> (String, Vec<String>) {
    let number = value.as_u64();
    let measured = |suffix: &str, text: fn(u64) -> String| {
        Some((key.strip_suffix(suffix)?.to_owned(), vec![text(number?)]))
    };
    measured("_ms", |ms| words::duration(Duration::from_millis(ms)))
        .or_else(|| measured("_us", words::round_trip))
        .or_else(|| measured("_s", |s| words::duration(Duration::from_secs(s))))
        .or_else(|| {
            // Unix seconds.
            let unix = number.filter(|_| key.ends_with("_at"))?;
            Some((key.to_owned(), vec![date(unix)]))
        })
        .or_else(|| {
            let key = key.strip_suffix("_bytes")?;
            let direction = if key == "rx" { "received" } else { "sent" };
            Some((direction.to_owned(), vec![words::bytes(number?)]))
        })
        .unwrap_or_else(|| {
            let key = ["_ms", "_us", "_s"]
                .iter()
                .find_map(|unit| key.strip_suffix(unit).filter(|_| value.is_null()))
                .unwrap_or(key);
            (key.to_owned(), lines(key, value))
        })
}

fn lines(key: &str, value: &Value) -> Vec<String> {
    match value {
        // The words of a command line.
        Value::Array(words) if key == "command" => {
            vec![words.iter().map(word).collect::<Vec<_>>().join(" ")]
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().map(plain).collect()
        }
        value => vec![plain(value)],
    }
}

/// A word of a command line as a shell takes it.
fn word(value: &Value) -> String {
    let text = plain(value);
    let is_simple = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_simple) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn plain(value: &Value) -> String {
    let or_dash = |text: String| if text.is_empty() { "-".into() } else { text };
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => or_dash(items.iter().map(plain).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| {
                let (key, lines) = field(key, value);
                // An object in an object is told apart from what follows it.
                let nested = matches!(value, Value::Object(_) | Value::Array(_));
                let text = lines.join("; ");
                if nested { format!("{key}=[{text}]") } else { format!("{key}={text}") }
            });
            or_dash(fields.collect::<Vec<_>>().join(" "))
        }
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), words::count),
        Value::Bool(_) => value.to_string(),
    }
}

fn json(item: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string_pretty(item).map_err(|why| cannot(&why))
}

fn print(text: &str) -> Result<(), ApiError> {
    let mut out = io::stdout().lock();
    told(writeln!(out, "{text}").and_then(|()| out.flush()))
}

fn told(written: io::Result<()>) -> Result<(), ApiError> {
    match written {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => Err(cannot(&why)),
        _ => Ok(()),
    }
}

fn complain(text: &str) {
    // Where stderr is gone there is nobody left to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

fn cannot(why: &impl fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::Failed,
        format!("cannot write the result: {why}"),
        "mind where stdout goes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_read_plainly() {
        let text = r#"{"z":null,"a":[1,"x"],"m":[],"b":{"cidr":"10.0.0.0/24","gateway":"10.0.0.1"},"c":true}"#;
        let Fields(fields) = serde_json::from_str(text).unwrap();
        let read = described(&fields);
        let expected = "z:  -\na:  1, x\nm:  -\nb:  cidr=10.0.0.0/24 gateway=10.0.0.1\nc:  true";
        assert_eq!(read, expected);
        assert!(serde_json::from_str::<Fields>("[1]").is_err());
    }
    #[test]
    fn what_is_inside_keeps_its_keys_and_numbers_have_units() {
        let text = r#"{"uptime_s":3725,"rtt_us":1234,"key_age_s":null,"rx_bytes":12345,"ended_at":1796072827,"begun_at":null,"free":9007199254740991,
            "labels":{"tier":"web"},"none":{},
            "pools":[{"cidr":"10.0.0.0/24","owners":[{"name":"h1","free":3},{"name":"h2","free":4}]},{"cidr":"fd00::/64","owners":[]}]}"#;
        let Fields(fields) = serde_json::from_str(text).unwrap();
        let expected = [
            "uptime:    1h 2m",
            "rtt:       1.234 ms",
            "key_age:   -",
            "received:  12 kB",
            "ended_at:  2026-11-30T21:07:07Z",
            "begun_at:  -",
            "free:      2^53 or more",
            "labels:    tier=web",
            "none:      -",
            "pools:     cidr=10.0.0.0/24 owners=[free=3 name=h1; free=4 name=h2]",
            "           cidr=fd00::/64 owners=[-]",
        ];
        assert_eq!(described(&fields).lines().collect::<Vec<_>>(), expected);
    }
}
