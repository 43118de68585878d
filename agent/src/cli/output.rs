//! The one place that prints: results on stdout, everything else on stderr.
//!
//! A reader that goes away (`| head`) ends the output quietly.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use comfy_table::Table;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{args::Format, words::Words};
use crate::api::{ApiError, ErrorBody, ErrorCode};

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
            table.add_row(item.cells(words));
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
        let width = fields.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
        let line = |(key, value): &(String, Value)| {
            format!("{:width$}  {}", format!("{key}:"), plain(value)).trim_end().to_owned()
        };
        print(&fields.iter().map(line).collect::<Vec<_>>().join("\n"))
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

    /// Why the command failed.
    pub(super) fn error(self, error: &ApiError) {
        let body = ErrorBody { error: error.clone() };
        match serde_json::to_string(&body) {
            Ok(text) if self.is_json() => complain(&text),
            _ => complain(&format!("error: {}\nhint: {}", error.message, error.hint)),
        }
    }

    /// Text that is a result by itself, such as help.
    pub(super) fn text(self, text: &str) -> Result<(), ApiError> {
        print(text)
    }
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

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields.values().map(plain).collect::<Vec<_>>().join(" "),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn json(item: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string_pretty(item).map_err(|why| cannot(&why))
}

fn print(text: &str) -> Result<(), ApiError> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
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
        let read: Vec<_> =
            fields.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
        assert_eq!(read, ["z=-", "a=1, x", "m=-", "b=10.0.0.0/24 10.0.0.1", "c=true"]);
        assert!(serde_json::from_str::<Fields>("[1]").is_err());
    }
}
