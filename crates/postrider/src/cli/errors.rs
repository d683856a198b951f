//! `errors`: what the codes of the API mean.

use super::Failure;
use super::screen::{Screen, Style};
use crate::api::errors_page::{Explained, explained};
use crate::api::wording::nearest;
use serde_json::json;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  postrider errors invalid_field\n  postrider errors > errors.md")]
pub struct Args {
    /// The code of a refusal or a warning; left out, all of them as a page of Markdown.
    code: Option<String>,
}

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let Some(code) = args.code else {
        super::document(screen, crate::api::error::markdown());
        return Ok(());
    };
    let Some(Explained { code, status, sentence, remedy }) = explained().find(|e| e.code == code) else {
        let known: Vec<_> = explained().map(|e| e.code).collect();
        let near = nearest(&code, &known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        return Err(Failure::Usage(format!("there is no code `{code}`{near}")));
    };
    if screen.json {
        screen.value(&json!({ "code": code, "status": status, "sentence": sentence, "remedy": remedy }));
        return Ok(());
    }
    let kind = status.map_or("warning".to_owned(), |status| status.to_string());
    screen.line(format!("{} ({kind})", screen.style(Style::Bold, code)));
    screen.line(sentence);
    screen.line(remedy);
    Ok(())
}
