//! The one HTTP client of a worker, and the way of a request: prepare, send, follow redirects, judge.

use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, Request, Response, StatusCode, Url, redirect};
use tokio::time::Instant;
use windlass::config::HttpConfig;
use windlass::worker::SLOTS_MAX;
use windlass::{Secret, TaskError, TaskId, Timestamp, redact};

use super::answer::{Body, HttpAnswer, KEPT_BYTES_MAX};
use super::guard::{Reach, Resolver, check_url};
use super::judge::{forbidden, judge, of_network, retry_after};
use super::{HttpRequest, sign};

/// A task cannot ask for more time.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// A receiver that does not even accept a connection in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than the time after which common servers close a connection, so that it is not used as they do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Redirects that are followed when the task does not say, and at most.
const REDIRECTS: u8 = 5;
const REDIRECTS_MAX: u8 = 10;
/// Headers that frame a message: the client writes them, and a second opinion would be request smuggling.
const FRAMING: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
];

/// Sends the requests of a worker; connections are kept and used again.
#[derive(Debug)]
pub(crate) struct HttpClient {
    client: Client,
    reach: Reach,
    timeout: Duration,
    kept_bytes_max: usize,
    signing_key: Option<Secret<String>>,
}

/// Which attempt of which task sends.
pub(super) struct Sender {
    pub(super) id: TaskId,
    pub(super) attempt: u32,
    pub(super) now: Timestamp,
}

/// A request that is about to be sent, or sent on.
struct Hop {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Arc<[u8]>,
}

impl HttpClient {
    /// A client with this configuration.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(config: &HttpConfig) -> Result<Self, reqwest::Error> {
        let reach = if config.allow_private { Reach::Anywhere } else { Reach::Public };
        Self::resolving_by(Resolver::of_the_system(reach), reach, config)
    }

    pub(super) fn resolving_by(resolver: Resolver, reach: Reach, config: &HttpConfig) -> Result<Self, reqwest::Error> {
        install_crypto_once();
        let resolver = Arc::new(resolver);
        let builder = || {
            Client::builder()
                .dns_resolver(Arc::clone(&resolver))
                // Every hop is checked here, so the client follows none by itself.
                .redirect(redirect::Policy::none())
                // A proxy would resolve names for us, and reach what the guard keeps back.
                .no_proxy()
                .referer(false)
                .user_agent(&config.user_agent)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(IDLE_TIMEOUT)
                // No more requests than slots are ever under way, so every connection may come back.
                .pool_max_idle_per_host(SLOTS_MAX)
                .tcp_nodelay(true)
                // A request is sent again by the task's policy, which counts, and not behind its back.
                .retry(reqwest::retry::never())
        };
        // The roots of the system; a container without any gets those of Mozilla.
        let client = builder().build().or_else(|error| {
            tracing::info!(error = %error, "this system has no root certificates: the built-in ones are used");
            builder().tls_certs_only(mozilla_roots()?).build()
        })?;
        Ok(Self {
            client,
            reach,
            timeout: config.timeout,
            kept_bytes_max: config.max_response_bytes.min(KEPT_BYTES_MAX),
            signing_key: config.signing_key.clone(),
        })
    }

    /// Sends a request and judges the answer.
    pub(super) async fn send(&self, task: &HttpRequest, sender: &Sender) -> Result<HttpAnswer, TaskError> {
        let hop = self.prepare(task, sender)?;
        let redirects_max = task.follow_redirects.unwrap_or(REDIRECTS);
        if redirects_max > REDIRECTS_MAX {
            return Err(bad_request(format_args!("`follow_redirects` is 0 to {REDIRECTS_MAX}")));
        }
        let limit = task.timeout.map_or(self.timeout, |timeout| timeout.0).min(TIMEOUT_MAX);
        // One limit for everything: a receiver that drips one byte a second must not hold the slot.
        let exchange = tokio::time::timeout(limit, self.exchange(task, hop, redirects_max, sender.now));
        exchange.await.unwrap_or_else(|_| {
            let limit = windlass::format_duration(limit);
            Err(TaskError::failed(format_args!("no whole answer within {limit}")).class("timeout"))
        })
    }

    fn prepare(&self, task: &HttpRequest, sender: &Sender) -> Result<Hop, TaskError> {
        let url = Url::parse(&task.url).map_err(|error| bad_request(format_args!("`url` cannot be read: {error}")))?;
        let body = match (&task.body, &task.json) {
            (Some(_), Some(_)) => return Err(bad_request("`body` and `json` are both given: write one of them")),
            (Some(text), None) => Some((text.clone().into_bytes(), "text/plain; charset=utf-8")),
            (None, Some(json)) => Some((json.to_string().into_bytes(), "application/json")),
            (None, None) => None,
        };
        let method = match &task.method {
            Some(method) => Method::from_bytes(method.as_bytes())
                .map_err(|_| bad_request("`method` is a word such as GET, POST or PURGE"))?,
            None if body.is_some() => Method::POST,
            None => Method::GET,
        };
        if method == Method::CONNECT {
            return Err(bad_request("`method` CONNECT opens a tunnel, which is not a request"));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &task.headers {
            let (name, value) = header(name, value)?;
            headers.append(name, value);
        }
        let (body, content_type) = body.unzip();
        let body = body.unwrap_or_default();
        if let Some(content_type) = content_type {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(content_type));
        }
        if task.sign {
            let Some(key) = &self.signing_key else {
                return Err(bad_request("`sign` needs a key: set `tasks.http.signing_key` for the workers"));
            };
            let (name, value) = header(sign::HEADER, &sign::signature(key.expose(), sender.now, &body))?;
            headers.insert(name, value);
        }
        // A producer may bring a key of its own, for receivers that know one already.
        let (name, value) = header("idempotency-key", &sender.id.to_string())?;
        headers.entry(name).or_insert(value);
        headers.insert(HeaderName::from_static("windlass-attempt"), HeaderValue::from(sender.attempt));
        Ok(Hop { method, url, headers, body: body.into() })
    }

    async fn exchange(
        &self,
        task: &HttpRequest,
        mut hop: Hop,
        redirects_max: u8,
        now: Timestamp,
    ) -> Result<HttpAnswer, TaskError> {
        let started = Instant::now();
        let mut redirects_left = redirects_max;
        loop {
            check_url(&hop.url, self.reach).map_err(|refused| forbidden(&refused))?;
            let response = self.client.execute(hop.to_request()).await.map_err(of_network)?;
            match hop.redirected(&response) {
                Some(_) if task.expect.contains(&response.status().as_u16()) || redirects_max == 0 => {}
                Some(_) if redirects_left == 0 => {
                    let text = format!("more than {redirects_max} redirects, the last one from {}", shown(&hop.url));
                    return Err(TaskError::fatal(text).class("redirects"));
                }
                Some(next) => {
                    redirects_left -= 1;
                    hop = next?;
                    continue;
                }
                None => {}
            }
            return self.judged(task, &hop, response, started, now).await;
        }
    }

    async fn judged(
        &self,
        task: &HttpRequest,
        hop: &Hop,
        mut response: Response,
        started: Instant,
        now: Timestamp,
    ) -> Result<HttpAnswer, TaskError> {
        let status = response.status();
        let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let judgement = judge(status, &task.expect, after.and_then(|value| retry_after(value, now)));
        let headers = response.headers().clone();
        let body = Body::read(&mut response, self.kept_bytes_max).await.map_err(of_network)?;
        judgement.into_result(Answered { hop, status, body: &body })?;
        Ok(HttpAnswer::of(status.as_u16(), &headers, body, started.elapsed()))
    }
}

impl Hop {
    fn to_request(&self) -> Request {
        let mut request = Request::new(self.method.clone(), self.url.clone());
        request.headers_mut().extend(self.headers.clone());
        if !self.body.is_empty() {
            *request.body_mut() = Some(self.body.to_vec().into());
        }
        request
    }

    /// Where the answer sends the request on to; `None` when it does not.
    fn redirected(&self, response: &Response) -> Option<Result<Self, TaskError>> {
        let keeps_method = match response.status() {
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => false,
            _ => return None,
        };
        let location = response.headers().get(header::LOCATION)?;
        Some(self.sent_on(location, keeps_method))
    }

    fn sent_on(&self, location: &HeaderValue, keeps_method: bool) -> Result<Self, TaskError> {
        let refused = |what: &str| TaskError::fatal(format_args!("{} {what}", shown(&self.url))).class("redirects");
        let url = location.to_str().ok().and_then(|location| self.url.join(location).ok());
        let url = url.ok_or_else(|| refused("redirects to what is not a URL"))?;
        if self.url.scheme() == "https" && url.scheme() == "http" {
            return Err(refused("redirects from https to http"));
        }
        let mut headers = self.headers.clone();
        if self.url.origin() != url.origin() {
            // What was meant for one receiver is no business of another.
            let secret: Vec<HeaderName> =
                headers.keys().filter(|name| redact::is_secret(name.as_str())).cloned().collect();
            for name in secret {
                headers.remove(name);
            }
        }
        if keeps_method || matches!(self.method, Method::GET | Method::HEAD) {
            return Ok(Self { method: self.method.clone(), url, headers, body: Arc::clone(&self.body) });
        }
        headers.remove(header::CONTENT_TYPE);
        headers.remove(sign::HEADER);
        Ok(Self { method: Method::GET, url, headers, body: Arc::from([]) })
    }
}

/// What was asked and answered, in one line.
struct Answered<'a> {
    hop: &'a Hop,
    status: StatusCode,
    body: &'a Body,
}

impl std::fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hop, status, body } = self;
        write!(f, "{} {} answered {status}", hop.method, shown(&hop.url))?;
        match body.quote() {
            quote if quote.is_empty() => Ok(()),
            quote => write!(f, ": {quote}"),
        }
    }
}

/// A URL without its query, which may hold a secret.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path: String = url.path().chars().take(200).collect();
    format!("{}://{host}{port}{path}", url.scheme())
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), TaskError> {
    let shown: String = name.chars().take(60).flat_map(char::escape_debug).collect();
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| bad_request(format_args!("`{shown}` is not the name of a header")))?;
    if FRAMING.contains(&name) {
        return Err(bad_request(format_args!("the header `{name}` is set by the client: leave it out")));
    }
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| bad_request(format_args!("the value of the header `{name}` holds a character that it cannot")))?;
    value.set_sensitive(redact::is_secret(name.as_str()));
    Ok((name, value))
}

/// Arguments that can never be sent.
fn bad_request(what: impl std::fmt::Display) -> TaskError {
    TaskError::fatal(what).class("bad_request")
}

fn install_crypto_once() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An application that has chosen a provider of its own keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn mozilla_roots() -> Result<Vec<Certificate>, reqwest::Error> {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|root| Certificate::from_der(root)).collect()
}
