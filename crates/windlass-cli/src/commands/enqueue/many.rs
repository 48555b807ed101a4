//! `enqueue --from`: one task for each line, as fast as the store takes them or not faster than asked.
//!
//! 1. a thread reads and checks lines, at most a few ahead   2. what is ready is pushed in one step
//! 3. the ids are printed, the bar moves   4. lines that do not fit are reported, the rest goes on

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use windlass::backend::Pushed;
use windlass::{Args, Client, Clock, Envelope, SystemClock, TaskId, TaskName};

use super::lines::Lines;
use super::rate::Rate;
use super::{TaskOptions, envelope};
use crate::args::Format;
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::plural;
use crate::program::Known;
use crate::task_args::check;

/// Tasks in one push: enough to be fast, few enough for a bar that moves.
const BATCH: usize = 500;
/// Lines that are read ahead: two pushes.
const AHEAD: usize = 2 * BATCH;
/// Lines with large arguments fill a push before it has many of them.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Wrong lines that are reported one by one.
const REPORTED_MAX: u64 = 50;

/// What every line becomes a task of.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) name: TaskName,
    pub(super) task: Option<Known>,
    pub(super) options: TaskOptions,
    pub(super) rate: Option<Rate>,
    pub(super) form: LinesForm,
}

/// How lines are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LinesForm {
    /// An object with `args` and nothing but options beside it is a task with options, anything else its arguments; a
    /// task that takes an argument `args` is always given its arguments.
    Auto,
    /// Every line is the arguments.
    Args,
    /// Every line is an object with `args` and options.
    Options,
}

/// A line with options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WithOptions {
    args: Option<Box<serde_json::value::RawValue>>,
    id: Option<TaskId>,
    delay: Option<String>,
    at: Option<windlass::Timestamp>,
    priority: Option<windlass::Priority>,
    queue: Option<windlass::QueueName>,
    key: Option<windlass::Key>,
    unique: Option<String>,
    expires: Option<String>,
    headers: std::collections::BTreeMap<String, String>,
    retries: Option<u32>,
}

impl Source {
    /// The task of a line, checked; or what is wrong with it.
    fn task_of(&self, text: &str) -> Result<Envelope, String> {
        let now = SystemClock.now();
        // Depth and syntax first: what follows may recurse.
        let plain = Args::parse(text);
        let with_options = match (self.form, &plain) {
            (LinesForm::Args, _) | (_, Err(_)) => None,
            // Read as an array, the fields would be taken by their position.
            (LinesForm::Options, _) if !text.starts_with('{') => {
                return Err("it is not an object with `args` and options".to_owned());
            }
            (LinesForm::Options, _) => {
                Some(serde_json::from_str::<WithOptions>(text).map_err(|error| error.to_string())?)
            }
            (LinesForm::Auto, _) if self.takes_args() || !text.starts_with('{') => None,
            (LinesForm::Auto, _) => serde_json::from_str::<WithOptions>(text).ok().filter(|line| line.args.is_some()),
        };
        let mut options = self.options.clone();
        let (args, id) = match with_options {
            None => (plain.map_err(|error| error.to_string())?, None),
            Some(line) => {
                let args = line.args.as_ref().map_or(Ok(Args::none()), |raw| Args::parse(raw.get()));
                let id = line.id.clone();
                line.apply(&mut options)?;
                (args.map_err(|error| error.to_string())?, id)
            }
        };
        if let Some(task) = self.task {
            check(task, &args)?;
        }
        let mut envelope = envelope(&self.name, self.task, args, now);
        options.apply(&mut envelope, now).map_err(|problem| problem.text().to_owned())?;
        if let Some(id) = id {
            envelope.id = id;
        }
        envelope.check(now).map_err(|error| error.to_string())?;
        Ok(envelope)
    }

    fn takes_args(&self) -> bool {
        let fields = self.task.and_then(|task| task.definition.fields.named());
        fields.is_some_and(|fields| fields.iter().any(|field| field.answers_to("args")))
    }
}

impl WithOptions {
    /// Over the flags, which are the defaults.
    fn apply(self, options: &mut TaskOptions) -> Result<(), String> {
        let duration = |text: Option<String>| {
            text.map(|text| windlass::parse_duration(&text)).transpose().map_err(|error| error.to_string())
        };
        if let Some(delay) = duration(self.delay)? {
            (options.delay, options.at) = (Some(delay), None);
        }
        if let Some(at) = self.at {
            (options.delay, options.at) = (None, Some(at));
        }
        options.priority = self.priority.or(options.priority);
        options.queue = self.queue.or(options.queue.take());
        options.key = self.key.or(options.key.take());
        options.unique = self.unique.or(options.unique.take());
        options.expires = duration(self.expires)?.or(options.expires);
        options.retries = self.retries.or(options.retries);
        options.headers.extend(self.headers);
        Ok(())
    }
}

/// A line that was read: its number, its end in the file, and its task or what is wrong with it.
struct Checked {
    number: u64,
    bytes: u64,
    task: Result<Envelope, String>,
}

/// What has become of the lines so far.
#[derive(Debug, Default)]
struct Tally {
    enqueued: u64,
    existing: u64,
    wrong: u64,
    /// Every line up to this one is dealt with.
    last_line: u64,
}

/// How the reading of lines ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Every line is dealt with.
    AllRead,
    /// By Ctrl-C.
    Interrupted,
}

impl Tally {
    fn in_words(&self) -> String {
        let mut words = vec![format!("enqueued {}", plural(self.enqueued, "task"))];
        if self.existing > 0 {
            words.push(format!("{} were there already", self.existing));
        }
        if self.wrong > 0 {
            words.push(format!("{} refused", plural(self.wrong, "line")));
        }
        words.join(", ")
    }
}

pub(super) async fn run(context: &Context, source: Source, from: &str) -> Outcome {
    let (input, size): (Box<dyn Read + Send>, Option<u64>) = if from == "-" {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(from).map_err(|error| {
            Problem::usage(format_args!("cannot read `{from}`: {error}"), "name a file that is there, or `-`")
        })?;
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
        (Box::new(file), size)
    };
    let backend = context.store_or_new().await?;
    let client = context.client(&backend);
    let rate = source.rate;
    let (send, receive) = mpsc::channel(AHEAD);
    std::thread::Builder::new().name("lines".to_owned()).spawn(move || read(&source, input, &send))?;
    let mut run = Run { context, client, bar: bar(context, size), tally: Tally::default(), first: true };
    run.open()?;
    let ended = run.push_all(receive, rate).await;
    run.bar.finish_and_clear();
    let closed = run.close();
    let ended = ended.and_then(|end| closed.map(|()| end));
    let tally = &run.tally;
    context.out.say(tally.in_words());
    let go_on =
        format!("lines up to {} are dealt with: go on with `tail -n +{}`", tally.last_line, tally.last_line + 1);
    match ended {
        Ok(End::Interrupted) => {
            context.out.say(format_args!("interrupted; {go_on}"));
            Ok(Exit::Interrupted)
        }
        Ok(End::AllRead) if tally.wrong == 0 => Ok(Exit::Ok),
        Ok(End::AllRead) if tally.enqueued + tally.existing == 0 => Ok(Exit::Failed),
        Ok(End::AllRead) => Ok(Exit::Partial),
        // Nobody reads the ids any more: what is left must not go unsaid.
        Err(problem) if problem.is_silent() => {
            Err(Problem::new(Exit::Failed, "standard output was closed: the other lines are not enqueued", go_on))
        }
        Err(problem) if tally.enqueued > 0 => Err(problem.next(go_on)),
        Err(problem) => Err(problem),
    }
}

/// Reads and checks lines until the end, or until nobody takes them any more.
fn read(source: &Source, input: Box<dyn Read + Send>, send: &mpsc::Sender<io::Result<Checked>>) {
    let mut lines = Lines::of(BufReader::with_capacity(256 * 1024, input));
    loop {
        let line = match lines.next() {
            Ok(Some((number, text))) => {
                let bytes = text.as_ref().map_or(0, |text| text.len() as u64 + 1);
                Ok(Checked { number, bytes, task: text.and_then(|text| source.task_of(&text)) })
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = line.is_err();
        if send.blocking_send(line).is_err() || failed {
            return;
        }
    }
}

fn bar(context: &Context, size: Option<u64>) -> ProgressBar {
    if !context.out.shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:32} {percent:>3}%  {msg}  {elapsed}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    // The template is a constant of ours.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

struct Run<'c> {
    context: &'c Context,
    client: Client,
    bar: ProgressBar,
    tally: Tally,
    first: bool,
}

impl Run<'_> {
    async fn push_all(
        &mut self,
        mut lines: mpsc::Receiver<io::Result<Checked>>,
        rate: Option<Rate>,
    ) -> Result<End, Problem> {
        let started = Instant::now();
        let mut read = Vec::new();
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        loop {
            let sent = self.tally.enqueued + self.tally.existing;
            let room = match rate {
                None => BATCH,
                Some(rate) => {
                    let opens = started + rate.opens(sent);
                    if sent > 0 && opens > Instant::now() {
                        tokio::select! {
                            Ok(()) = &mut interrupt => return Ok(End::Interrupted),
                            () = tokio::time::sleep_until(opens.into()) => {}
                        }
                    }
                    usize::try_from(rate.allowed(started.elapsed()) - sent).unwrap_or(BATCH).clamp(1, BATCH)
                }
            };
            // Only waiting is interrupted: a push that was dropped half-way may have stored its tasks.
            let count = tokio::select! {
                biased;
                Ok(()) = &mut interrupt => return Ok(End::Interrupted),
                count = lines.recv_many(&mut read, room) => count,
            };
            if count == 0 {
                return Ok(End::AllRead);
            }
            self.push(read.drain(..)).await?;
        }
    }

    /// Pushes what is right of these lines and reports what is not.
    async fn push(&mut self, lines: impl Iterator<Item = io::Result<Checked>>) -> Result<(), Problem> {
        let (mut envelopes, mut numbers, mut size) = (Vec::new(), Vec::new(), 0);
        for line in lines {
            let line = line.map_err(|error| {
                let text = format!("the lines after {} cannot be read: {error}", self.tally.last_line);
                Problem::new(Exit::Failed, text, "see that the file or pipe is whole")
            })?;
            self.bar.inc(line.bytes);
            match line.task {
                Ok(envelope) => {
                    size += envelope.args.size();
                    envelopes.push(envelope);
                    numbers.push(line.number);
                }
                Err(wrong) => self.refuse(line.number, &wrong),
            }
            if size > BATCH_BYTES {
                self.send(std::mem::take(&mut envelopes), &std::mem::take(&mut numbers)).await?;
                size = 0;
            }
            if envelopes.is_empty() {
                self.tally.last_line = line.number;
            }
        }
        self.send(envelopes, &numbers).await
    }

    async fn send(&mut self, envelopes: Vec<Envelope>, numbers: &[u64]) -> Result<(), Problem> {
        if envelopes.is_empty() {
            return Ok(());
        }
        let pushed = self.client.push(envelopes).await?;
        let mut text = Vec::new();
        for ((own, pushed), number) in pushed.into_iter().zip(numbers) {
            let (id, fresh) = match pushed {
                Pushed::Stored => (own, true),
                Pushed::Exists(other) | Pushed::Replaced(other) => (other, false),
                Pushed::Full { limit } => return Err(full(limit, *number)),
            };
            if fresh {
                self.tally.enqueued += 1;
            } else {
                self.tally.existing += 1;
            }
            self.tally.last_line = *number;
            self.write_id(&mut text, &id, *number, fresh)?;
        }
        // The bar is on the same terminal as often as not.
        self.bar.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&text)?;
            stdout.flush()
        })?;
        let elapsed = self.bar.elapsed().max(Duration::from_millis(1));
        let speed = self.tally.enqueued as f64 / elapsed.as_secs_f64();
        self.bar.set_message(format!("{} tasks, {speed:.0}/s", self.tally.enqueued));
        self.bar.tick();
        Ok(())
    }

    fn write_id(&mut self, text: &mut Vec<u8>, id: &TaskId, number: u64, fresh: bool) -> io::Result<()> {
        let object = || json!({"id": id, "line": number, "fresh": fresh});
        match self.context.out.format() {
            Format::Table | Format::Wide | Format::Id => writeln!(text, "{id}"),
            Format::Ndjson => writeln!(text, "{}", crate::output::versioned(object())),
            Format::Json => {
                let comma = if std::mem::take(&mut self.first) { "\n    " } else { ",\n    " };
                write!(text, "{comma}{}", object())
            }
        }
    }

    /// One JSON object is written piece by piece: millions of ids need not fit into memory.
    fn open(&self) -> Result<(), Problem> {
        if self.context.out.format() == Format::Json {
            write!(io::stdout(), "{{\n  \"schema_version\": {},\n  \"tasks\": [", crate::output::SCHEMA_VERSION)?;
        }
        Ok(())
    }

    fn close(&self) -> Result<(), Problem> {
        if self.context.out.format() == Format::Json {
            let Tally { enqueued, existing, wrong, .. } = &self.tally;
            let rest = format!("\"enqueued\": {enqueued},\n  \"existing\": {existing},\n  \"refused\": {wrong}");
            writeln!(io::stdout(), "\n  ],\n  {rest}\n}}")?;
        }
        Ok(())
    }

    fn refuse(&mut self, number: u64, wrong: &str) {
        self.tally.wrong += 1;
        let text = crate::output::cut(&crate::output::one_line(wrong), 300);
        if self.tally.wrong <= REPORTED_MAX {
            self.bar.suspend(|| self.context.out.warn(format_args!("line {number}: {text}")));
        } else if self.tally.wrong == REPORTED_MAX + 1 {
            self.bar.suspend(|| self.context.out.warn("more lines are refused: they are counted at the end"));
        }
    }
}

/// The queue of a line has no room; the lines before are enqueued.
fn full(limit: u64, line: u64) -> Problem {
    Problem::new(
        Exit::Conflict,
        format_args!("line {line}: its queue is full, {limit} tasks wait in it"),
        format_args!("the lines before are enqueued: go on from this line when there is room"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass::envelope::Due;

    fn source(form: LinesForm) -> Source {
        let options = TaskOptions { retries: Some(2), ..TaskOptions::default() };
        Source { name: TaskName::known("mail"), task: None, options, rate: None, form }
    }

    #[test]
    fn a_line_is_arguments_or_arguments_with_options() {
        let read = |text: &str| source(LinesForm::Auto).task_of(text).unwrap();
        assert_eq!(read(r#"{"to": "x"}"#).args.keyword().unwrap().as_str(), r#"{"to": "x"}"#);
        assert_eq!(read(r#"["x"]"#).args.positional().unwrap().as_str(), r#"["x"]"#);
        assert_eq!(read("[1, 2]").args.positional().unwrap().as_str(), "[1, 2]");
        let task = read(r#"{"args": {"to": "x"}, "id": "a", "delay": "5m", "priority": 9, "retries": 0}"#);
        assert_eq!((task.id.to_string().as_str(), task.due), ("a", Due::After(Duration::from_secs(300))));
        assert_eq!((task.priority.level(), task.retries), (9, Some(0)));
        // Not only options beside it: these are arguments.
        assert!(read(r#"{"args": ["-l"], "command": "ls"}"#).args.keyword().is_some());
        assert_eq!(read(r#"{"to": "x"}"#).retries, Some(2), "flags are the defaults of every line");
    }

    #[test]
    fn the_form_can_be_said() {
        let error = source(LinesForm::Options).task_of(r#"{"to": "x"}"#).unwrap_err();
        assert!(error.contains("unknown field `to`"), "{error}");
        let task = source(LinesForm::Args).task_of(r#"{"args": {"to": "x"}}"#).unwrap();
        assert!(task.args.keyword().unwrap().as_str().contains("args"));
    }

    #[test]
    fn a_line_that_does_not_fit_says_why() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        for (line, text) in [
            ("nonsense", "not valid JSON"),
            ("7", "must be a JSON object"),
            (deep.as_str(), "not valid JSON"),
            (r#"{"args": {}, "retries": 100000}"#, "retries"),
            (r#"{"args": 7}"#, "must be a JSON object"),
        ] {
            let error = source(LinesForm::Auto).task_of(line).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
