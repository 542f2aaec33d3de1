//! What may be asked over the connections of this machine, by whomever: a browser can be made to open one by any page.
//!
//! Three things keep other sites out. A request must name this machine as its `Host`: a name of another site that was made to
//! point here (DNS rebinding) is refused. A request that says which page it comes from must come from the dashboard itself. And what changes
//! something must be JSON, which a page of another site cannot send unasked. Answers say that they are for nobody else, and the page
//! that it may load nothing but its own files.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use client_lib::ErrorKind;

use super::refused;

/// What the page may do: use its own files and this API, nothing else, and be shown in no other page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Lets a request through that may be asked, and completes its answer.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let host = request.uri().host().map(|_| request.uri().authority().map_or("", |authority| authority.as_str()));
    let mut response = match refusal(request.method(), host, request.headers()) {
        None => next.run(request).await,
        Some((status, message)) => refused(status, ErrorKind::InvalidRequest, message),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Why a request is not let through, if so. `target` is the host in its first line, which counts before the header.
fn refusal(method: &Method, target: Option<&str>, headers: &HeaderMap) -> Option<(StatusCode, String)> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = target.or_else(|| text(header::HOST)).unwrap_or("");
    if !is_loopback(host) {
        let what = format!(
            "the admin API is for this machine only, and is reached as localhost or 127.0.0.1 (`ssh -L` does), not as {host:?}"
        );
        return Some((StatusCode::MISDIRECTED_REQUEST, what));
    }
    let same = format!("http://{host}");
    if let Some(origin) = text(header::ORIGIN).filter(|origin| !origin.eq_ignore_ascii_case(&same)) {
        return Some((StatusCode::FORBIDDEN, format!("a page of {origin} may not use the admin API")));
    }
    if *method == Method::GET || *method == Method::HEAD {
        return None;
    }
    let site = text(HeaderName::from_static("sec-fetch-site"));
    if let Some(site) = site.filter(|site| !["same-origin", "none"].contains(site)) {
        return Some((StatusCode::FORBIDDEN, format!("a page of another site may not change anything ({site})")));
    }
    let kind = text(header::CONTENT_TYPE).unwrap_or("").split(';').next().unwrap_or("").trim();
    // A page of another site can only send DELETE if it is allowed to when it asks before.
    if *method != Method::DELETE && !kind.eq_ignore_ascii_case("application/json") {
        let what = "what changes something is sent as JSON, with `Content-Type: application/json`".to_owned();
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    None
}

/// Whether a host, with its port or without, can only be this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => name,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.chars().all(|digit| digit.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_address || name.eq_ignore_ascii_case("localhost")
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.chars().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(method: Method, headers: &[(&'static str, &str)]) -> Option<StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("is a header"));
        }
        refusal(&method, None, &map).map(|(status, _)| status)
    }

    #[test]
    fn a_name_of_another_site_that_points_here_is_refused() {
        for host in ["localhost", "LOCALHOST:10830", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert_eq!(answered(Method::GET, &[("host", host)]), None, "{host}");
        }
        for host in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "192.0.2.1:10830",
            "localhost:80.example.com",
            "[::2]",
            "[::1",
            "",
            "user@localhost",
            "[::1]x",
            "0.0.0.0",
        ] {
            assert_eq!(answered(Method::GET, &[("host", host)]), Some(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        assert_eq!(answered(Method::GET, &[]), Some(StatusCode::MISDIRECTED_REQUEST), "without any");
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
        assert!(refusal(&Method::GET, Some("example.com"), &headers).is_some(), "the first line counts");
    }

    #[test]
    fn only_the_dashboard_itself_may_ask_from_a_browser() {
        let json = ("content-type", "application/json; charset=utf-8");
        let host = ("host", "localhost:4000");
        let own = ("origin", "http://localhost:4000");
        assert_eq!(answered(Method::POST, &[host, json, own]), None);
        assert_eq!(answered(Method::POST, &[host, json]), None, "no browser: the command line");
        assert_eq!(answered(Method::DELETE, &[host, own, ("sec-fetch-site", "same-origin")]), None);
        for origin in
            ["http://localhost:4001", "http://127.0.0.1:4000", "https://localhost:4000", "http://example.com", "null"]
        {
            for method in [Method::POST, Method::DELETE, Method::GET] {
                let refused = answered(method, &[host, json, ("origin", origin)]);
                assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{origin}");
            }
        }
        for site in ["cross-site", "same-site"] {
            let refused = answered(Method::POST, &[host, json, ("sec-fetch-site", site)]);
            assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{site}");
        }
    }

    #[test]
    fn what_changes_something_must_be_json() {
        let host = ("host", "localhost");
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"] {
            let refused = answered(Method::POST, &[host, ("content-type", kind)]);
            assert_eq!(refused, Some(StatusCode::UNSUPPORTED_MEDIA_TYPE), "{kind}");
        }
        assert_eq!(answered(Method::POST, &[host]), Some(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(answered(Method::PUT, &[host]), Some(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(answered(Method::DELETE, &[host]), None);
        assert_eq!(answered(Method::POST, &[host, ("content-type", "Application/JSON")]), None);
    }
}
