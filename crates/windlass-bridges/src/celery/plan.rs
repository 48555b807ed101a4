//! What is to be said and sent when something has happened to a task: Celery's own order of things. Pure.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;
use windlass_core::bridge::{Answer, News};
use windlass_core::state::DeadReason;
use windlass_core::{Failure, Json, Timestamp, Verdict};
use windlass_wire::celery::event::{Announced, Failed, Kind};
use windlass_wire::celery::follow::{self, Follow, Outgoing, Publisher, Stranded};
use windlass_wire::celery::result::{ChordPart, Exception, ResultDocument};
use windlass_wire::celery::{Request, Sending, Signature, repr};
use windlass_wire::{Frame, Malformed};

use super::arrival::NOT_REGISTERED;

/// What the whole of a node's answers has in common.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    /// The name of the node.
    pub(super) hostname: String,
    pub(super) pid: u32,
    /// Where follow-ups go that name no queue.
    pub(super) default_queue: String,
    pub(super) track_started: bool,
    pub(super) ignore_results: bool,
    pub(super) extended: bool,
}

/// What is to be done, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Counters of chords that begin: group and size.
    pub(super) chords: Vec<(String, usize)>,
    /// Messages of one task, published once however often they are asked for.
    pub(super) letters: Vec<Letter>,
    pub(super) documents: Vec<Document>,
    pub(super) parts: Vec<Part>,
    pub(super) events: Vec<Kind>,
    /// Tasks whose canvas cannot be read, and why: nothing follows them.
    pub(super) unreadable: Vec<(String, Malformed)>,
}

impl Plan {
    /// What follows a task; nothing when that cannot be read, which must not keep its end from being told.
    fn readable(&mut self, request: &Request, follow: Result<Follow, Malformed>) -> Follow {
        follow.unwrap_or_else(|reason| {
            self.unreadable.push((request.id.clone(), reason));
            Follow::default()
        })
    }
}

/// Messages that are published together, once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Letter {
    /// What makes them known when they are asked for again.
    pub(super) once: String,
    pub(super) frames: Vec<Frame>,
}

/// A result to be stored or sent.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) document: ResultDocument,
    /// Where it is sent with the result backend `rpc://`.
    pub(super) reply_to: Option<String>,
    pub(super) over: Over,
    /// What monitors hear when it is written.
    pub(super) event: Option<Kind>,
}

/// What a document is written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// Anything but a stored success.
    AllButSuccess,
    /// Nothing that is ready: somebody may have said how the task ended.
    Unready,
}

/// A part of a chord that has ended.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) request: Box<Request>,
    pub(super) group: String,
    pub(super) index: Option<i64>,
    pub(super) body: Box<Signature>,
    pub(super) part: ChordPart,
}

/// Why a task was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Revoked,
    Terminated,
    Expired,
}

impl Why {
    fn word(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Terminated => "terminated",
            Self::Expired => "expired",
        }
    }
}

impl Teller {
    /// Adds what follows from an answer to the plan. A canvas that cannot be read is an error: nothing of it is done.
    pub(super) fn plan(&self, answer: &Answer, now: Timestamp, plan: &mut Plan) -> Result<(), Malformed> {
        let Some(mut request) = Request::of(&answer.envelope)? else { return Ok(()) };
        request.retries = request.retries.saturating_add(answer.attempt.saturating_sub(1));
        let (verdict, over) = match &answer.news {
            News::Started(_) => {
                if answer.attempt > 1 {
                    // Celery sends a message for each run, and monitors hear of each.
                    plan.events.push(Kind::Received(Announced::of(&request)));
                }
                plan.events.push(Kind::Started { uuid: request.id.clone() });
                if self.track_started {
                    let document = ResultDocument::started(&request, &self.hostname, self.pid);
                    self.document(plan, &request, answer, document, Over::AllButSuccess, None);
                }
                return Ok(());
            }
            News::Settled(verdict) => (verdict, Over::AllButSuccess),
            News::Ended(verdict) => (verdict, Over::Unready),
        };
        match verdict {
            Verdict::Succeeded { result, .. } => self.success(plan, request, answer, result, now),
            Verdict::Again { failure: Some(failure), .. } => {
                let error = exception(None, failure, &request, answer);
                let traceback = traceback(&request, &error);
                let event = Kind::Retried(failed(&request, &error, &traceback));
                let document = ResultDocument::retry(&request, &error, Some(&traceback));
                self.document(plan, &request, answer, document, over, Some(event));
            }
            Verdict::Dead { reason, failure } => {
                let error = exception(Some(*reason), failure, &request, answer);
                self.failure(plan, request, answer, &error, over, now);
            }
            Verdict::Cancelled => {
                let ran = answer.attempt > 0 && over == Over::AllButSuccess;
                let why = if ran { Why::Terminated } else { Why::Revoked };
                self.revoked(plan, request, answer, why, over, now);
            }
            Verdict::Expired => self.revoked(plan, request, answer, Why::Expired, over, now),
            // It runs again as it was: nothing has happened that its producer knows of.
            Verdict::Again { failure: None, .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => {}
        }
        Ok(())
    }

    fn success(&self, plan: &mut Plan, request: Request, answer: &Answer, result: &Json, now: Timestamp) {
        let follow = self.follow(&request, now, |publisher| follow::success(&request, result, publisher));
        let follow = plan.readable(&request, follow);
        let children = follow.children.clone();
        self.publish(plan, &request, follow, now);
        let document = ResultDocument::success(&request, result.clone(), children, now);
        let event = Kind::Succeeded {
            uuid: request.id.clone(),
            result: repr::value(result),
            runtime: answer.ran.as_secs_f64(),
        };
        self.document(plan, &request, answer, document.clone(), Over::AllButSuccess, Some(event));
        part(plan, request, &document);
    }

    fn failure(
        &self,
        plan: &mut Plan,
        request: Request,
        answer: &Answer,
        error: &Exception,
        over: Over,
        now: Timestamp,
    ) {
        let follow = self.follow(&request, now, |publisher| follow::failure(&request, publisher));
        let mut follow = plan.readable(&request, follow);
        let stranded = std::mem::take(&mut follow.stranded);
        let traceback = traceback(&request, error);
        let event = Kind::Failed(failed(&request, error, &traceback));
        let document = ResultDocument::failure(&request, error, Some(&traceback), now);
        self.document(plan, &request, answer, document.clone(), over, Some(event));
        strand(plan, &request, stranded, error, &traceback, now);
        self.publish(plan, &request, follow, now);
        part(plan, request, &document);
    }

    fn revoked(&self, plan: &mut Plan, request: Request, answer: &Answer, why: Why, over: Over, now: Timestamp) {
        let document = ResultDocument::revoked(&request, why.word(), now);
        let event = Kind::Revoked {
            uuid: request.id.clone(),
            terminated: why == Why::Terminated,
            signum: (why == Why::Terminated).then(|| Value::from("SIGTERM")),
            expired: why == Why::Expired,
        };
        self.document(plan, &request, answer, document.clone(), over, Some(event));
        part(plan, request, &document);
    }

    /// What one of Celery's rules says of this task, with ids that are the same each time.
    pub(super) fn follow(
        &self,
        request: &Request,
        now: Timestamp,
        rule: impl FnOnce(&mut Publisher<'_>) -> Result<Follow, Malformed>,
    ) -> Result<Follow, Malformed> {
        let (seed, mut count) = (once(request, "child"), 0_u32);
        let mut new_id = || {
            count += 1;
            named(&format!("{seed}:{count}"))
        };
        rule(&mut Publisher { new_id: &mut new_id, now, origin: &format!("gen{}@{}", self.pid, self.hostname) })
    }

    /// Adds the messages of one task.
    pub(super) fn publish(&self, plan: &mut Plan, request: &Request, follow: Follow, now: Timestamp) {
        plan.chords.extend(follow.chords.into_iter().map(|chord| (chord.group, chord.size)));
        if follow.publish.is_empty() {
            return;
        }
        let once = once(request, "sent");
        let frames = follow.publish.iter().enumerate();
        let frames = frames.map(|(place, outgoing)| self.frame(outgoing, &named(&format!("{once}:{place}")), now));
        plan.letters.push(Letter { frames: frames.collect(), once });
    }

    fn frame(&self, outgoing: &Outgoing, delivery_tag: &str, now: Timestamp) -> Frame {
        let Outgoing { message, queue, exchange, routing_key } = outgoing;
        let queue = queue.as_deref().or(routing_key.as_deref()).unwrap_or(&self.default_queue);
        // A queue is reached through the default exchange by its name, whatever exchange it is bound to.
        let (exchange, routing_key) = match (outgoing.queue.is_some(), exchange) {
            (false, Some(exchange)) => (exchange.as_str(), routing_key.as_deref().unwrap_or_default()),
            (true, _) | (false, None) => ("", queue),
        };
        message.frame(&Sending { exchange, routing_key, delivery_tag: Some(delivery_tag), now })
    }

    fn document(
        &self,
        plan: &mut Plan,
        request: &Request,
        answer: &Answer,
        mut document: ResultDocument,
        over: Over,
        event: Option<Kind>,
    ) {
        if request.ignore_result.unwrap_or(self.ignore_results) {
            plan.events.extend(event);
            return;
        }
        if self.extended {
            let envelope = &answer.envelope;
            document.name = Some(request.task.clone());
            document.args = envelope.args.positional().cloned();
            document.kwargs = envelope.args.keyword().cloned();
            document.worker = Some(self.hostname.clone());
            document.retries = Some(request.retries);
            document.queue = Some(envelope.queue.to_string());
        }
        plan.documents.push(Document { document, reply_to: request.reply_to.clone(), over, event });
    }
}

/// Tasks that will never run are answered with the failure of the one before them, and count for their chords.
pub(super) fn strand(
    plan: &mut Plan,
    request: &Request,
    stranded: Vec<Stranded>,
    error: &Exception,
    traceback: &str,
    now: Timestamp,
) {
    for Stranded { id, chord, group, group_index } in stranded {
        let mut never = Request::new("", id);
        never.reply_to.clone_from(&request.reply_to);
        (never.group, never.group_index, never.canvas.chord) = (group, group_index, chord);
        let document = ResultDocument::failure(&never, error, Some(traceback), now);
        let reply_to = never.reply_to.clone();
        plan.documents.push(Document { document: document.clone(), reply_to, over: Over::AllButSuccess, event: None });
        part(plan, never, &document);
    }
}

/// A task that is part of a chord counts there, whatever became of it.
fn part(plan: &mut Plan, request: Request, document: &ResultDocument) {
    let (Some(body), Some(group)) = (request.canvas.chord.clone(), request.group.clone()) else { return };
    let (index, part) = (request.group_index, ChordPart::of(document));
    plan.parts.push(Part { request: Box::new(request), group, index, body, part });
}

/// What a run of a task is known by: its message, and the runs before it.
fn once(request: &Request, what: &str) -> String {
    let tag = request.delivery_tag.as_deref().unwrap_or_default();
    named(&format!("{what}:{}:{tag}:{}", request.id, request.group.as_deref().unwrap_or_default()))
}

/// An id that is the same for the same name.
pub(super) fn named(name: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
}

/// A failure as the exception that Python sees.
fn exception(reason: Option<DeadReason>, failure: &Failure, request: &Request, answer: &Answer) -> Exception {
    match (reason, failure.class.as_str()) {
        (Some(DeadReason::Malformed), NOT_REGISTERED) => Exception::not_registered(&request.task),
        // A part of it: the message is the name.
        (_, NOT_REGISTERED) => Exception::not_registered(&failure.message),
        (_, "timeout") => Exception::hard_limit(answer.envelope.hard_limit.unwrap_or(Duration::ZERO)),
        (_, "soft_limit") => Exception::soft_limit(),
        (Some(DeadReason::Poison), _) => Exception::worker_lost(&failure.message),
        (Some(DeadReason::Malformed), _) => Exception::new("builtins", "TypeError", failure.message.as_str()),
        (
            Some(
                DeadReason::AttemptsUsedUp
                | DeadReason::Fatal
                | DeadReason::Unknown
                | DeadReason::TooOld
                | DeadReason::Upstream,
            )
            | None,
            _,
        ) => Exception::of(failure),
    }
}

/// There is no Python stack to show: the place is the task.
fn traceback(request: &Request, error: &Exception) -> String {
    format!("Traceback (most recent call last):\n  Windlass, in {}\n{}", request.task, one_line(error))
}

/// As the last line of a traceback: `ValueError: boom`.
fn one_line(error: &Exception) -> String {
    match error.exc_message.as_slice() {
        [] => error.exc_type.clone(),
        [Value::String(text)] => format!("{}: {text}", error.exc_type),
        arguments => format!("{}: {}", error.exc_type, Value::Array(arguments.to_vec())),
    }
}

fn failed(request: &Request, error: &Exception, traceback: &str) -> Failed {
    Failed { uuid: request.id.clone(), exception: error.to_string(), traceback: Some(traceback.to_owned()) }
}
