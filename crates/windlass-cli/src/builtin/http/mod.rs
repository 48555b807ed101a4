//! `http.request`: sends a request and judges the answer.
//!
//! | file | what it owns |
//! |---|---|
//! | `mod.rs` | the task: its arguments and the limits on them |
//! | `client.rs` | the one client of a worker, the way of a request through its redirects |
//! | `guard.rs` | where requests may go |
//! | `judge.rs` | what an answer means for the task |
//! | `answer.rs` | what is kept of an answer |
//! | `sign.rs` | the signature |

mod answer;
mod client;
mod guard;
mod judge;
mod sign;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windlass::{Cx, Task, TaskError};

pub use answer::{BodyForm, HttpAnswer};
pub(super) use client::HttpClient;

use super::Services;
use super::duration::DurationText;
use client::Sender;

/// Sends an HTTP request.
///
/// 2xx is a success (or what `expect` says). 408, 425, 429, 5xx and network errors are tried again, after `Retry-After`
/// when the receiver says so; a 429 that does spends no attempt. Any other status is a dead letter of class `http_4xx` or
/// `http_3xx`.
///
/// Every attempt carries `idempotency-key: <task id>`, the same for all attempts, and `windlass-attempt: <number>`.
/// Only public addresses are called, also after a redirect, unless `tasks.http.allow_private` is set.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "http.request", retries = 10, backoff = "2s * 2^n up to 1h", hard_limit = "70m")]
#[task(output = HttpAnswer, input = "json")]
pub struct HttpRequest {
    /// Where to: an http or https URL without user and password.
    pub url: String,
    /// Any method; GET without it, POST when there is a body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Headers by name. Those that frame the message are set by the client and refused here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body as any JSON value, instead of `body`. In a workflow: the result of the step before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<serde_json::Value>,
    /// How long the whole exchange may take, with redirects and the body of the answer; up to an hour. Without it,
    /// `tasks.http.timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Signs the request with the key `tasks.http.signing_key`: `windlass-signature: t=<seconds since 1970>,v1=<hex of
    /// HMAC-SHA256 of "t.body">`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sign: bool,
    /// The statuses that are a success; 2xx when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<u16>,
    /// How many redirects are followed, 0 to 10; 5 without it. Each is checked like the first URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_redirects: Option<u8>,
}

impl HttpRequest {
    /// A GET of this URL; the fields say the rest.
    pub fn to(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            method: None,
            headers: BTreeMap::new(),
            body: None,
            json: None,
            timeout: None,
            sign: false,
            expect: Vec::new(),
            follow_redirects: None,
        }
    }
}

pub(super) async fn request(task: HttpRequest, cx: Cx<Services>) -> Result<HttpAnswer, TaskError> {
    let sender = Sender { id: cx.id().clone(), attempt: cx.attempt, now: cx.now() };
    tokio::select! {
        answer = cx.state().http.send(&task, &sender) => answer,
        reason = cx.stopped() => Err(TaskError::failed(format_args!("broken off: {reason}")).class("stopped")),
    }
}
