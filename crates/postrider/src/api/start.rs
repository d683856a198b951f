//! The page at `/`: that the server runs, which version it is, and where to go from here.

use super::Api;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// What every page of the server's own begins with, up to its body. Light or dark, as the reader has it.
pub fn head(title: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.6 system-ui, sans-serif }}
  body {{ max-width: 38rem; margin: 12vh auto; padding: 0 1.5rem }}
  h1 {{ margin: 0; font-size: 1.75rem }}
  h2 {{ margin: 2rem 0 0; font-size: 1.1rem }}
  p {{ margin: .25rem 0 }}
  small {{ font-size: 1rem; font-weight: normal; opacity: .65 }}
  li {{ margin: .5rem 0 }}
  code {{ font-size: .9em }}
</style>
"#
    )
}

/// A page with styles of its own and nothing from elsewhere.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

const DEMO: &str = "<li><a href=\"/demo\">Demonstration</a>: make this browser a device, and send yourself a push · 演示页面";

/// `GET /`.
pub async fn page(State(api): State<Api>) -> Response {
    let demo = if api.limits.demo { DEMO } else { "" };
    let version = env!("CARGO_PKG_VERSION");
    let html = format!(
        "{}<h1>postrider <small>{version}</small></h1>
<p>This server runs. It pushes messages to devices, and knows what became of each.<br>
服务器正在运行：把消息推送给设备，并知道每一条消息的下落。
<ul>
{demo}
<li><a href=\"/openapi.json\">HTTP API</a>, as an OpenAPI document · HTTP 接口文档
<li><a href=\"/docs/errors\">Errors</a>: what each refusal means · 错误码
<li><a href=\"/sdk/postrider.js\">Browser SDK</a>, with its <a href=\"/sdk/postrider.d.ts\">types</a> · 浏览器 SDK
<li>Command line · 命令行: <code>postrider --help</code>
</ul>
</html>
",
        head("postrider")
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, html).into_response()
}
