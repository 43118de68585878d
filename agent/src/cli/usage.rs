//! What clap has to say about the words: help and version are results, everything else is a usage
//! error.

use std::ffi::OsString;

use clap::error::{Error, ErrorKind};

use super::{args::Format, output::Output};
use crate::api::{ApiError, ErrorCode};

/// Prints clap's answer and gives the exit status.
pub(super) fn answer(refused: &Error, words: &[OsString]) -> u8 {
    let output = Output::new(wanted_format(words));
    let text = refused.render().to_string();
    let error = match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match output.text(text.trim_end()) {
            Ok(()) => return 0,
            Err(error) => error,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => incomplete(&text),
        _ => usage_error(&text),
    };
    output.error(&error);
    error.code.exit_status()
}

/// The words could not be understood, so that this one is looked for by hand.
fn wanted_format(words: &[OsString]) -> Format {
    let own: Vec<&str> =
        words.iter().take_while(|word| *word != "--").filter_map(|word| word.to_str()).collect();
    let split = own.windows(2).any(|pair| pair == ["--format", "json"]);
    if split || own.contains(&"--format=json") { Format::Json } else { Format::Table }
}

/// Clap answers with the whole help where a command is missing.
fn incomplete(help: &str) -> ApiError {
    let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ApiError::new(
        ErrorCode::Usage,
        "a command is missing",
        format!("write `{usage}` with one of {}; --help says more", names.join(", ")),
    )
}

/// Clap's paragraphs are: what is wrong, tips, the usage, where help is.
fn usage_error(text: &str) -> ApiError {
    let mut message = String::from("the command line is wrong");
    let mut hints = Vec::new();
    for paragraph in text.split("\n\n") {
        let paragraph = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(wrong) = paragraph.strip_prefix("error: ") {
            message = wrong.to_owned();
        } else if let Some(tip) = paragraph.strip_prefix("tip: ") {
            hints.push(tip.to_owned());
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            hints.push(format!("write `{usage}`"));
        }
    }
    hints.push("--help says more".into());
    ApiError::new(ErrorCode::Usage, message, hints.join("; "))
}
