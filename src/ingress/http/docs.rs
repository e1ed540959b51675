//! `/openapi.json`, and `/docs`: the same for people, as one page without scripts and without anything from elsewhere.
//! `/problems/<slug>`: what a refusal means.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::answer::{Answer, Refusal};
use super::routes;
use crate::api::Slug;

/// The parts that do not change while the process runs: written when they are first asked for.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(super::openapi()));
static PAGE: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(render(&document())));

const STYLE: &str = include_str!("docs.css");

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(DOCUMENT.clone())).into_response()
}

/// `GET /docs`
pub(super) async fn page() -> Response {
    let mut response = Body::from(PAGE.clone()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let style = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// `GET /problems/{slug}`: the page that the `type` of a problem names.
pub(super) async fn problem(Path(slug): Path<String>) -> Answer {
    let slug: Slug = slug.parse().map_err(|_| Refusal::new(Slug::NotFound, "no such slug: /docs lists them"))?;
    let headers = [(header::CONTENT_TYPE, "text/markdown; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, slug.explanation()).into_response())
}

fn document() -> Value {
    serde_json::to_value(routes::described()).unwrap_or_default()
}

/// The document as a page.
fn render(api: &Value) -> String {
    let mut html = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>relay: HTTP API</title>";
    write(&mut html, format_args!("<style>{STYLE}</style></head><body><header><h1>relay: HTTP API</h1>"));
    write(
        &mut html,
        format_args!("<p>Version {}. {}</p>", inline(&api["info"]["version"]), inline(&api["info"]["description"])),
    );
    html += "<p>The same for programs: <a href=\"openapi.json\">openapi.json</a> (OpenAPI 3.1). Callers send ";
    html += "<code>Authorization: Bearer &lt;key id&gt;.&lt;secret&gt;</code>; a development relay asks for nothing.</p></header>";
    contents(&mut html, api);
    html += "<main>";
    for tag in list(&api["tags"]) {
        write(
            &mut html,
            format_args!("<h2 id=\"{0}\">{0}</h2><p>{1}</p>", inline(&tag["name"]), inline(&tag["description"])),
        );
        for (path, method, operation) in operations(api, &tag["name"]) {
            self::operation(&mut html, api, (path, method), operation);
        }
    }
    problems(&mut html);
    schemas(&mut html, api);
    html + "</main></body></html>"
}

fn contents(html: &mut String, api: &Value) {
    *html += "<nav><ul>";
    for tag in list(&api["tags"]) {
        for (path, method, operation) in operations(api, &tag["name"]) {
            write(
                html,
                format_args!(
                    "<li><a href=\"#{}\"><b class=\"{method}\">{method}</b> {}</a> {}</li>",
                    inline(&operation["operationId"]),
                    escaped(path),
                    inline(&operation["summary"])
                ),
            );
        }
    }
    *html += "<li><a href=\"#problems\">Problems</a></li><li><a href=\"#schemas\">Schemas</a></li></ul></nav>";
}

/// Path, method and description of each call under a tag.
fn operations<'a>(api: &'a Value, tag: &'a Value) -> impl Iterator<Item = (&'a str, &'a str, &'a Value)> {
    let calls = map(&api["paths"]).flat_map(|(path, item)| map(item).map(move |(method, call)| (path, method, call)));
    calls.filter(move |(_, _, call)| list(&call["tags"]).any(|found| found == tag))
}

fn operation(html: &mut String, api: &Value, (path, method): (&str, &str), operation: &Value) {
    write(
        html,
        format_args!(
            "<section id=\"{}\"><h3><b class=\"{method}\">{method}</b> {}</h3><p><strong>{}.</strong> {}</p>",
            inline(&operation["operationId"]),
            escaped(path),
            inline(&operation["summary"]),
            inline(&operation["description"])
        ),
    );
    let parameters = list(&operation["parameters"]).map(|parameter| {
        let required = if parameter["required"] == true { " (required)" } else { "" };
        [
            format!("<code>{}</code>{required}", inline(&parameter["name"])),
            inline(&parameter["in"]),
            kind(&parameter["schema"]),
            inline(&parameter["description"]),
        ]
    });
    table(html, ["Parameter", "In", "Type", ""], parameters);
    let body = &operation["requestBody"];
    if body.is_object() {
        write(
            html,
            format_args!("<p><strong>Body:</strong> {} {}</p>", contents_of(body), inline(&body["description"])),
        );
    }
    let answers = map(&operation["responses"]).map(|(status, response)| {
        let named = response["$ref"].as_str().and_then(|name| name.strip_prefix('#'));
        let response = named.and_then(|name| api.pointer(name)).unwrap_or(response);
        let headers: Vec<String> =
            map(&response["headers"]).map(|(name, _)| format!("<code>{}</code>", escaped(name))).collect();
        let headers = if headers.is_empty() { String::new() } else { format!(" Headers: {}.", headers.join(", ")) };
        [escaped(status), contents_of(response), format!("{}{headers}", inline(&response["description"]))]
    });
    table(html, ["Answer", "Body", ""], answers);
    *html += "</section>";
}

/// A table, if it has rows; the last column needs no heading. Where there is no room for columns, each value shows its own.
fn table<const N: usize>(html: &mut String, headings: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    let heads: String = headings.iter().map(|heading| format!("<th>{heading}")).collect();
    write(html, format_args!("<table><thead><tr>{heads}</tr></thead>"));
    for row in rows {
        *html += "<tr>";
        for (heading, cell) in headings.iter().zip(row) {
            match *heading {
                "" => write(html, format_args!("<td>{cell}")),
                heading => write(html, format_args!("<td data-of={heading}>{cell}")),
            }
        }
        *html += "</tr>";
    }
    *html += "</table>";
}

/// Content types and their schemas.
fn contents_of(body: &Value) -> String {
    let kinds = map(&body["content"])
        .map(|(name, content)| format!("<code>{}</code> {}", escaped(name), kind(&content["schema"])));
    kinds.collect::<Vec<_>>().join("<br>")
}

fn problems(html: &mut String) {
    *html += "<h2 id=\"problems\">Problems</h2><p>Every refusal is <code>application/problem+json</code> with one of these slugs. Its page says what to do.</p>";
    let slugs = Slug::ALL.iter().map(|slug| {
        let name = format!("<a href=\"problems/{slug}\"><code>{slug}</code></a>");
        [name, slug.status().to_string(), slug.retry().as_str().to_owned(), slug.title().to_owned()]
    });
    table(html, ["Slug", "Status", "Retry", ""], slugs);
}

fn schemas(html: &mut String, api: &Value) {
    *html += "<h2 id=\"schemas\">Schemas</h2>";
    for (name, schema) in map(&api["components"]["schemas"]) {
        write(
            html,
            format_args!(
                "<section id=\"schema-{0}\"><h3>{0}</h3><p>{1}</p>",
                escaped(name),
                inline(&schema["description"])
            ),
        );
        let parts = list(&schema["allOf"]).chain(std::iter::once(schema));
        for part in parts {
            if let Some(reference) = part["$ref"].as_str() {
                write(html, format_args!("<p>All of {}, and:</p>", link(reference)));
            }
            properties(html, part);
        }
        if let Some(words) = schema["enum"].as_array() {
            let words: Vec<String> = words.iter().map(|word| format!("<code>{}</code>", inline(word))).collect();
            write(html, format_args!("<p>One of {}.</p>", words.join(", ")));
        } else if !schema["pattern"].is_null() {
            write(html, format_args!("<p>Text that matches <code>{}</code>.</p>", inline(&schema["pattern"])));
        }
        for one in list(&schema["oneOf"]) {
            properties(html, one);
        }
        *html += "</section>";
    }
}

fn properties(html: &mut String, schema: &Value) {
    let fields = map(&schema["properties"]).map(|(name, property)| {
        let required = list(&schema["required"]).any(|required| required == name);
        let optional = if required { "" } else { " (may be missing)" };
        let name = format!("<code>{}</code>{optional}", escaped(name));
        [name, kind(property), inline(&property["description"])]
    });
    table(html, ["Field", "Type", ""], fields);
}

/// The type that a schema describes, in a few words.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return link(reference);
    }
    let of: Vec<String> = ["oneOf", "anyOf", "allOf"].iter().flat_map(|key| list(&schema[*key])).map(kind).collect();
    if !of.is_empty() {
        return of.join(" or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", self::kind(&schema["items"])),
        Value::String(kind) => escaped(kind),
        Value::Array(kinds) => kinds.iter().map(inline).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn link(reference: &str) -> String {
    let name = escaped(reference.rsplit('/').next().unwrap_or_default());
    format!("<a href=\"#schema-{name}\">{name}</a>")
}

fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn map(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}

fn write(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a `String` can't fail.
    html.write_fmt(text).ok();
}

/// Text with `code` in it.
fn inline(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let parts = text.split('`').enumerate();
    parts
        .map(|(at, part)| if at % 2 == 0 { escaped(part) } else { format!("<code>{}</code>", escaped(part)) })
        .collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
