//! Log lines: for people on a terminal, JSON elsewhere; and what is said when the program itself is at fault.
//!
//! A JSON line is flat: `timestamp`, `level` (lower case), `event`, `message`, then the fields of the event, then
//! `worker_id`, `service` and `version`. Arguments and results are never in it.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use windlass::config::{LogConfig, LogFormat};
use windlass::{Clock, SystemClock};

use crate::args::Global;
use crate::output::{Tone, colors, one_line};

/// What `-v` shows: more of the application and of the engine, not of what HTTP is made of.
const DEBUG: &str = "debug,hyper=info,hyper_util=info,reqwest=info,rustls=info";

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output: of a worker, whose log is its data.
    Stdout,
    /// Standard error: of commands that print something else.
    Stderr,
}

/// What every line of this process carries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Labels {
    /// The node, of a worker.
    pub(crate) worker: Option<String>,
    /// The application.
    pub(crate) service: String,
}

/// Starts to write log lines.
pub(crate) fn start(global: &Global, config: &LogConfig, stream: Stream, labels: Labels) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => config.level.as_str(),
        (false, 1) => DEBUG,
        (false, _) => "trace",
    };
    let terminal = match stream {
        Stream::Stdout => io::stdout().is_terminal(),
        Stream::Stderr => io::stderr().is_terminal(),
    };
    let pretty = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let lines = Lines { pretty, colors: colors(global.color, terminal), labels };
    // The level was checked with the configuration.
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    // The library that speaks AMQP calls an error what is a question here: whether a queue is there. What matters our own
    // lines say.
    let filter = match "lapin=off".parse() {
        Ok(silent) if global.verbose == 0 => filter.add_directive(silent),
        _ => filter,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).event_format(lines);
    // Only the first call counts: a test may run several commands in one process.
    let _ = match stream {
        Stream::Stdout => builder.with_writer(|| Quietly(io::stdout())).try_init(),
        Stream::Stderr => builder.with_writer(|| Quietly(io::stderr())).try_init(),
    };
}

/// A stream whose reader may leave: a worker must not stop because nobody reads its log any more.
struct Quietly<W>(W);

impl<W: Write> Write for Quietly<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            answer => answer,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            answer => answer,
        }
    }
}

/// How lines look.
struct Lines {
    pretty: bool,
    colors: bool,
    labels: Labels,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let timestamp = SystemClock.now().to_string();
        if self.pretty {
            writeln!(writer, "{}", self.pretty_line(&timestamp, *event.metadata().level(), &seen))
        } else {
            let line = self.json_line(timestamp, *event.metadata().level(), event.metadata().target(), seen);
            writeln!(writer, "{}", Value::Object(line))
        }
    }
}

impl Lines {
    fn pretty_line(&self, timestamp: &str, level: Level, seen: &Seen) -> String {
        let (name, tone) = match level {
            Level::ERROR => ("ERROR", Tone::Bad),
            Level::WARN => ("WARN ", Tone::Warn),
            Level::INFO => ("INFO ", Tone::Good),
            Level::DEBUG => ("DEBUG", Tone::Active),
            Level::TRACE => ("TRACE", Tone::Dim),
        };
        let paint = |text: &str, tone: Tone| if self.colors { tone.paint(text) } else { text.to_owned() };
        // The day is not what one looks for while watching.
        let clock = timestamp.get(11..23).unwrap_or(timestamp);
        let mut line = format!("{} {} {}", paint(clock, Tone::Dim), paint(name, tone), one_line(&seen.message));
        for (name, value) in seen.fields.iter().filter(|(name, _)| *name != "event") {
            let value = match value {
                // Where a value with spaces ends must be seen.
                Value::String(text) if text.is_empty() || text.contains(' ') => format!("{text:?}"),
                Value::String(text) => one_line(text),
                other => other.to_string(),
            };
            line.extend(["  ", &paint(&format!("{name}="), Tone::Dim), &value]);
        }
        line
    }

    fn json_line(&self, timestamp: String, level: Level, target: &str, seen: Seen) -> Map<String, Value> {
        let mut line = Map::new();
        let mut put = |name: &str, value: Value| {
            line.insert(name.to_owned(), value);
        };
        put("timestamp", timestamp.into());
        put("level", level.as_str().to_ascii_lowercase().into());
        let event = seen.fields.iter().find(|(name, _)| *name == "event").map(|(_, value)| value.clone());
        put("event", event.unwrap_or_else(|| target.into()));
        put("message", seen.message.into());
        for (name, value) in seen.fields.into_iter().filter(|(name, _)| *name != "event") {
            put(name, value);
        }
        if let Some(worker) = &self.labels.worker {
            put("worker_id", worker.as_str().into());
        }
        put("service", self.labels.service.as_str().into());
        put("version", env!("CARGO_PKG_VERSION").into());
        line
    }
}

/// The fields of an event, in their order.
#[derive(Default)]
struct Seen {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Seen {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

/// Panics of the program and of handlers become log lines: a user sees what happened and never a backtrace, unless
/// `WINDLASS_BACKTRACE=1` asks for it.
pub(crate) fn hook_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let owned = || payload.downcast_ref::<String>().map(String::as_str);
        let text = payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no text");
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        if tracing::dispatcher::has_been_set() {
            tracing::error!(event = "panic", place, "panic: {text}");
        } else {
            let _ = writeln!(io::stderr(), "panic: {} ({place})", one_line(text));
        }
        if wants_backtrace() {
            let _ = writeln!(io::stderr(), "{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// Whether the user asked to see where errors come from.
pub(crate) fn wants_backtrace() -> bool {
    std::env::var_os("WINDLASS_BACKTRACE").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        let fields = vec![("event", "task_dead".into()), ("task_id", "a".into()), ("attempt", 3.into())];
        Seen { message: "task gave up".to_owned(), fields }
    }

    fn lines(pretty: bool) -> Lines {
        let labels = Labels { worker: Some("w1".to_owned()), service: "mail".to_owned() };
        Lines { pretty, colors: false, labels }
    }

    #[test]
    fn a_json_line_has_the_documented_fields() {
        let line = lines(false).json_line("2026-01-02T03:04:05.678Z".to_owned(), Level::ERROR, "x", seen());
        let names: Vec<&String> = line.keys().collect();
        for name in ["timestamp", "level", "event", "message", "task_id", "attempt", "worker_id", "service", "version"]
        {
            assert!(line.contains_key(name), "{name} is not in {names:?}");
        }
        assert_eq!(
            (&line["level"], &line["event"], &line["attempt"]),
            (&"error".into(), &"task_dead".into(), &3.into())
        );
    }

    #[test]
    fn a_line_for_people_is_one_line() {
        let mut seen = seen();
        seen.message = "two\nlines".to_owned();
        let line = lines(true).pretty_line("2026-01-02T03:04:05.678Z", Level::WARN, &seen);
        assert_eq!(line, "03:04:05.678 WARN  two lines  task_id=a  attempt=3");
        seen.fields = vec![("error", "no\u{1b}[2J such host".into())];
        let line = lines(true).pretty_line("2026-01-02T03:04:05.678Z", Level::WARN, &seen);
        assert_eq!(line, "03:04:05.678 WARN  two lines  error=\"no\\u{1b}[2J such host\"");
    }
}
