//! Rules of this repository that no compiler checks.

use crate::steps::root;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Who may depend on whom among our crates; whatever is not here is forbidden.
const EDGES: [(&str, &[&str]); 8] = [
    ("postrider-proto", &[]),
    ("postrider-core", &[]),
    ("postrider-store", &["postrider-core"]),
    ("postrider-outbound", &["postrider-proto", "postrider-core"]),
    ("postrider", &["postrider-proto", "postrider-core", "postrider-store", "postrider-outbound"]),
    ("postrider-sim", &["postrider-proto", "postrider-core", "postrider-store"]),
    ("postrider-fuzz", &["postrider-proto"]),
    ("xtask", &[]),
];

/// Crates that proto and core must not reach for: sockets, clocks, chance, SQL, HTTP.
const IMPURE: [&str; 9] =
    ["tokio", "mio", "socket2", "rand", "getrandom", "hyper", "axum", "rusqlite", "reqwest"];

/// Names that say nothing.
const VAGUE: [&str; 5] = ["util", "utils", "helper", "helpers", "common"];

pub fn check() -> Result<String, String> {
    let mut faults = Vec::new();
    let sources = sources();
    edges(&mut faults)?;
    for path in &sources {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        lengths(path, &text, &mut faults);
        names(path, &mut faults);
        commands(path, &text, &mut faults);
    }
    doc_paths(&mut faults);
    if faults.is_empty() {
        return Ok(format!("tidy: {} files are in order", sources.len()));
    }
    Err(format!("{} things are not in order:\n  {}", faults.len(), faults.join("\n  ")))
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["crates", "xtask"] {
        collect(&root().join(folder), &mut found);
    }
    found.sort();
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn edges(faults: &mut Vec<String>) -> Result<(), String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(root())
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(n, _)| *n == name) else {
            faults.push(format!("crate {name} has no place in xtask/src/tidy.rs, EDGES"));
            continue;
        };
        let pure = matches!(name, "postrider-proto" | "postrider-core");
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|d| d["kind"].is_null()) {
            let on = dependency["name"].as_str().unwrap_or_default();
            if on.starts_with("postrider") && !allowed.contains(&on) {
                faults.push(format!("{name} must not depend on {on}"));
            }
            if pure && IMPURE.contains(&on) {
                faults.push(format!("{name} is pure and must not depend on {on}"));
            }
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn lengths(path: &Path, text: &str, faults: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX {
        faults.push(format!("{} has {} lines, at most {FILE_LINES_MAX}", shown(path), lines.len()));
    }
    for (start, line) in lines.iter().enumerate().filter(|(_, l)| begins_function(l)) {
        // Formatted code closes a function with a brace at the depth at which it began.
        let opens = lines[start..]
            .iter()
            .find_map(|l| l.trim_end().chars().last().filter(|c| matches!(c, '{' | ';' | '}')));
        if opens != Some('{') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[start..].iter().position(|l| **l == closing) else { continue };
        if length > FUNCTION_LINES_MAX
            && !lines[..start].iter().rev().take(3).any(|l| l.contains("tidy: table"))
        {
            faults.push(format!(
                "{}:{}: a function of {length} lines, at most {FUNCTION_LINES_MAX}",
                shown(path),
                start + 1
            ));
        }
    }
}

fn begins_function(line: &str) -> bool {
    let words = line.trim_start();
    let words =
        words.strip_prefix("pub").map_or(words, |rest| rest.split_once(' ').map_or("", |(_, rest)| rest));
    let words = words.strip_prefix("async ").unwrap_or(words);
    let words = words.strip_prefix("const ").unwrap_or(words);
    words.starts_with("fn ")
}

fn names(path: &Path, faults: &mut Vec<String>) {
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if VAGUE.contains(&stem) {
        faults.push(format!("{}: a file should be named after what is in it", shown(path)));
    }
}

/// Every path in backticks in these documents must exist.
/// Only the engine makes commands: an adapter that makes one decides something. The first keys are
/// made before there is an engine.
fn commands(path: &Path, text: &str, faults: &mut Vec<String>) {
    let shown = shown(path);
    let is_adapter =
        ["api", "gateway"].iter().any(|m| shown.starts_with(&format!("crates/postrider/src/{m}/")));
    if is_adapter && !shown.contains("/tests") && makes_commands(text) {
        faults.push(format!("{shown} makes a command: that is a verb of the engine"));
    }
}

fn makes_commands(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let is_comment = line.starts_with("//");
        !is_comment && (line.contains("store.submit(") || line.contains(" Command::"))
    })
}

fn doc_paths(faults: &mut Vec<String>) {
    for document in ["ARCHITECTURE.md", "README.md", "README.zh-CN.md", "CONTRIBUTING.md"] {
        let Ok(text) = fs::read_to_string(root().join(document)) else {
            faults.push(format!("{document} is missing"));
            continue;
        };
        let quoted = text.split('`').skip(1).step_by(2);
        for path in quoted.filter(|q| is_path(q)) {
            if !root().join(path.trim_end_matches('/')).exists() {
                faults.push(format!("{document} names `{path}`, which does not exist"));
            }
        }
    }
}

fn is_path(quoted: &str) -> bool {
    const FOLDERS: [&str; 9] =
        ["crates/", "docs/", "xtask/", "bench/", "conformance/", "fuzz/", "profiles/", ".ci/", "changes/"];
    FOLDERS.iter().any(|f| quoted.starts_with(f)) && !quoted.contains([' ', '*', '{', '<', '…'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_functions_are_found_and_short_ones_are_not() {
        let body = "    x;\n".repeat(FUNCTION_LINES_MAX + 1);
        let mut faults = Vec::new();
        lengths(
            Path::new("a.rs"),
            &format!(
                "pub(crate) async fn long() {{\n{body}}}\nfn short() {{\n}}\nfn of_a_trait(\n    &self,\n);\n"
            ),
            &mut faults,
        );
        assert_eq!(faults.len(), 1, "{faults:?}");
    }

    #[test]
    fn a_command_that_an_adapter_makes_is_found() {
        assert!(makes_commands("    let command = Command::Cancel { app };"));
        assert!(makes_commands("    ask(|done| api.engine.store.submit(all, done))"));
        assert!(!makes_commands("    // As Command::Cancel does.\n    engine.cancel(app, message, done);"));
    }

    #[test]
    fn only_paths_of_this_repository_are_taken_for_paths() {
        assert!(is_path("crates/postrider-core/src/lib.rs") && is_path(".ci/run"));
        assert!(!is_path("GET /v1/messages") && !is_path("docs/{name}.md") && !is_path("Engine::accept"));
    }
}
