//! What the errors of a server mean for the caller, each with the next step in its text.

use std::fmt::Display;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use windlass_core::{StoreError, redact};

/// The port's error for what the client library or the server said. `at` is the server, without secrets.
pub(crate) fn store_error(error: &RedisError, at: &str) -> StoreError {
    let said = redact::text(&error.to_string());
    if said.contains("OOM command not allowed") || error.code() == Some("OOM") {
        return StoreError::NoSpace(format!(
            "{at} has reached its `maxmemory`; raise it, or let workers empty the queues and retention remove what has ended"
        ));
    }
    match error.kind() {
        ErrorKind::Server(kind) => of_server(kind, error, &said, at),
        ErrorKind::AuthenticationFailed => wrong_password(at),
        ErrorKind::Extension => of_code(error.code().unwrap_or_default(), &said, at),
        ErrorKind::InvalidClientConfig => StoreError::Broken(format!("the URL of {at} cannot be used: {said}")),
        _ => of_connection(error, &said, at),
    }
}

fn of_server(kind: ServerErrorKind, error: &RedisError, said: &str, at: &str) -> StoreError {
    match kind {
        ServerErrorKind::BusyLoading => {
            StoreError::Busy(format!("{at} is loading its data from disk; it answers when that is done"))
        }
        ServerErrorKind::ReadOnly => StoreError::Busy(format!(
            "{at} is a read-only replica now; give the URL of the primary, or use redis+sentinel:// so that it is found"
        )),
        ServerErrorKind::Moved
        | ServerErrorKind::Ask
        | ServerErrorKind::TryAgain
        | ServerErrorKind::ClusterDown
        | ServerErrorKind::MasterDown => {
            let advice = if kind == ServerErrorKind::Moved { "; write redis+cluster:// for a cluster" } else { "" };
            StoreError::Busy(format!("the cluster of {at} does not serve these keys at the moment{advice} ({said})"))
        }
        ServerErrorKind::NoPerm => StoreError::Denied(format!(
            "{at} does not allow this user what Windlass needs ({}); give it `~{{NAMESPACE}}:* &{{NAMESPACE}}:* +@all -@admin +info`",
            error.detail().unwrap_or("no details")
        )),
        ServerErrorKind::ExecAbort
        | ServerErrorKind::ResponseError
        | ServerErrorKind::NoScript
        | ServerErrorKind::CrossSlot
        | ServerErrorKind::NotBusy
        | ServerErrorKind::NoSub => of_code(error.code().unwrap_or_default(), said, at),
        _ => of_code(error.code().unwrap_or_default(), said, at),
    }
}

fn of_code(code: &str, said: &str, at: &str) -> StoreError {
    match code {
        "BUSY" => StoreError::Busy(format!(
            "{at} has been running one script for too long; look with `redis-cli` which client does that"
        )),
        "NOAUTH" => {
            StoreError::Denied(format!("{at} wants a password; write it into the URL as redis://:PASSWORD@HOST"))
        }
        "WRONGPASS" => wrong_password(at),
        "NOREPLICAS" => StoreError::Busy(format!("{at} has fewer replicas than `min-replicas-to-write` demands")),
        "MISCONF" if said.contains("No space") => {
            StoreError::NoSpace(format!("the disk of {at} is full; free some space, the work goes on by itself"))
        }
        "MISCONF" => StoreError::Busy(format!("{at} cannot write to its disk ({said}); look at its log")),
        "NOPROTO" => too_old(at, "one that does not speak RESP3"),
        _ if said.contains("max number of clients") => {
            StoreError::Busy(format!("{at} has reached its `maxclients`; raise it or close connections"))
        }
        _ if said.contains("unknown command") && said.contains("HELLO") => {
            too_old(at, "one that does not know `HELLO`")
        }
        _ => StoreError::Broken(format!("{at} refused the request ({said}); look at its log and at `windlass doctor`")),
    }
}

fn wrong_password(at: &str) -> StoreError {
    StoreError::Denied(format!("{at} refused the user name or the password; correct them in the URL"))
}

/// A server that lacks what we need.
pub(crate) fn too_old(at: &str, found: &str) -> StoreError {
    StoreError::Broken(format!("{at} is {found}; Windlass needs Redis 6.2 or newer, or Valkey: upgrade the server"))
}

fn of_connection(error: &RedisError, said: &str, at: &str) -> StoreError {
    let unreachable = |text: String| StoreError::Unreachable(text.into());
    if is_about_tls(said) {
        return StoreError::Broken(format!(
            "the TLS handshake with {at} failed ({said}); is it a TLS port? `?ca=FILE` names a private authority, redis:// is \
             without TLS"
        ));
    }
    if error.is_timeout() {
        // A port without TLS waits for the end of a line that never comes.
        let tls = if at.starts_with("`rediss") { ", and whether this is its TLS port" } else { "" };
        return unreachable(format!("{at} does not answer; look whether it is stopped or behind a firewall{tls}"));
    }
    if error.is_connection_refusal() {
        return unreachable(format!("nothing listens at {at} ({said}); start the server or correct the URL"));
    }
    if said.contains("lookup") || said.contains("resolve") {
        return unreachable(format!("the host of {at} is not known ({said}); correct the URL"));
    }
    unreachable(format!("the connection to {at} broke ({said})"))
}

fn is_about_tls(said: &str) -> bool {
    ["corrupt message", "certificate", "InvalidContentType", "HandshakeFailure", "UnknownIssuer", "TLS"]
        .iter()
        .any(|word| said.contains(word))
}

/// A value in the store that no version of ours wrote.
pub(crate) fn damaged(what: &str, detail: impl Display) -> StoreError {
    StoreError::Broken(format!(
        "the store holds a damaged {what}: {detail}; does something else write to keys of this namespace?"
    ))
}
