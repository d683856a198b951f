//! `GET /docs/errors`: what each code means, as a page of the running server; the field `docs` of a refusal points into it.

use super::error::Code;
use super::start;
use super::warnings::WarningCode;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::fmt::Write as _;
use std::sync::LazyLock;

/// Where the page is.
pub const PATH: &str = "/docs/errors";

/// What a code means and what to do about it.
#[derive(Debug)]
pub struct Explained {
    pub code: &'static str,
    /// None: a warning.
    pub status: Option<u16>,
    pub sentence: &'static str,
    pub remedy: &'static str,
}

/// Every code of a refusal or a warning.
pub fn explained() -> impl Iterator<Item = Explained> {
    let refusals = Code::ALL.iter().map(|code| {
        let (code, status, sentence, remedy) = code.row();
        Explained { code, status: Some(status), sentence, remedy }
    });
    let warnings = WarningCode::ALL.iter().map(|warning| {
        let (code, sentence, remedy) = warning.row();
        Explained { code, status: None, sentence, remedy }
    });
    refusals.chain(warnings)
}

pub async fn serve() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(page);
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(start::POLICY)),
    ];
    (headers, PAGE.as_str()).into_response()
}

fn page() -> String {
    let mut page = start::head("Errors of the HTTP API");
    page.push_str("<h1>Errors of the HTTP API</h1>\n");
    for Explained { code, status, sentence, remedy } in explained() {
        let status = status.map_or("A warning.".to_owned(), |status| format!("{status}."));
        let (sentence, remedy) = (html(sentence), html(remedy));
        _ = writeln!(
            page,
            "<h2 id=\"{code}\">{code}</h2>\n<p><b>{status}</b> {sentence}</p>\n<p>{remedy}</p>"
        );
    }
    page
}

/// Backticks become code.
fn html(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let parts = escaped.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_code_and_refusals_point_to_it() {
        let page = page();
        for code in Code::ALL {
            let docs = serde_json::to_value(super::super::error::ApiError::from(*code).problem()).unwrap();
            let docs = docs["error"]["docs"].as_str().unwrap().to_owned();
            let (path, anchor) = docs.split_once('#').unwrap();
            assert_eq!(path, PATH);
            assert!(page.contains(&format!("id=\"{anchor}\"")), "{docs}");
        }
        assert_eq!(page.matches("<h2").count(), Code::ALL.len() + WarningCode::ALL.len());
        assert_eq!(html("`a < b` & c"), "<code>a &lt; b</code> &amp; c");
    }
}
