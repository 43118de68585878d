//! Bytes in text files: lines `# …` say what they are, `# key: value` what is expected, the rest is
//! hexadecimal.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use data_encoding::HEXLOWER;

/// One file.
#[derive(Debug)]
pub struct HexFile {
    /// The first line.
    pub description: String,
    /// Lines of the form `# key: value`.
    pub fields: BTreeMap<String, String>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Reads a file.
///
/// # Errors
///
/// If it cannot be read, has no description, or is not hexadecimal.
pub fn read(path: &Path) -> anyhow::Result<HexFile> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("parse {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<HexFile> {
    let mut comments = text.lines().filter_map(|line| line.strip_prefix("# "));
    let description = comments.next().context("the first line describes the bytes: `# …`")?.into();
    let fields = comments
        .filter_map(|line| line.split_once(": "))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let bytes = HEXLOWER.decode(digits.trim().as_bytes())?;
    Ok(HexFile { description, fields, bytes })
}
