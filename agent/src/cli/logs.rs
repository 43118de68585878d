//! `sandbox logs`: the last output of a command in the background, read where its supervisor writes
//! it.

use std::path::Path;

use super::output::Output;
use crate::{
    api::{ApiError, ErrorCode, Sandbox},
    records::{Log, Records},
};

/// Prints the output as it was written, or its last lines.
pub(super) fn print(
    output: Output,
    sandbox: &Sandbox,
    tail: Option<usize>,
) -> Result<(), ApiError> {
    let named = sandbox.detached.as_ref().and_then(|detached| detached.log.as_deref());
    let kept = sandbox.records.as_ref().map(|records| Records::at(Path::new(records)).output());
    let path = named.map(Into::into).or(kept).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Conflict,
            format!("sandbox `{}` has the output of who ran it", sandbox.name),
            "only the output of `run -d` is kept",
        )
    })?;
    let text = Log::read(&path).map_err(|why| {
        ApiError::new(
            ErrorCode::Failed,
            format!("cannot read {}: {why}", path.display()),
            "this needs root, and the sandbox must be on this host",
        )
    })?;
    output.raw(last_lines(&text, tail.unwrap_or(usize::MAX)))
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    // The end of the last line begins none.
    let begin =
        ends.map(|(at, _)| at + 1).filter(|at| *at < text.len()).nth(lines.saturating_sub(1));
    match lines {
        0 => &[],
        _ => text.get(begin.unwrap_or(0)..).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole() {
        for (text, lines, last) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(last_lines(text.as_bytes(), lines), last.as_bytes(), "{text:?} {lines}");
        }
    }
}
