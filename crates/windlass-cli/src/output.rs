//! What commands print: data on standard output as a table, JSON or ids; messages on standard error.
//!
//! A table is for people and may change; JSON has a schema with a version. Nothing is coloured that is not a terminal.

mod table;
mod text;

use std::io::{self, IsTerminal, Write};

use serde_json::{Map, Value};
use windlass::schedule::Zone;
use windlass::{Clock, SystemClock, Timestamp};

use crate::args::{Color, Format, Global};
use crate::exit::{Exit, Outcome, Problem};
use crate::program::as_typed;

pub(crate) use table::{Cell, Column, Listing, Row, Tone};
pub(crate) use text::{ago, bytes, cut, one_line, plural, roughly};

/// The version of every JSON object that commands print. Fields may be added; anything else raises it.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// How this run prints.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    format: Format,
    colors: bool,
    error_colors: bool,
    /// The width of the terminal; none when the output goes elsewhere.
    width: Option<usize>,
    times: Times,
    now: Timestamp,
    quiet: bool,
}

/// How people see times.
#[derive(Debug, Clone)]
enum Times {
    /// `3m ago`.
    Relative,
    /// On the wall clock of a zone.
    In(Zone),
}

impl Out {
    /// How the flags of the command line ask for it.
    pub(crate) fn of(global: &Global) -> Result<Self, Problem> {
        let terminal = io::stdout().is_terminal();
        let zone = match &global.tz {
            Some(zone) => Some(zone.parse::<Zone>().map_err(|error| {
                Problem::usage(format_args!("--tz: {error}"), "write an IANA name such as `--tz Europe/Berlin`")
            })?),
            None => (global.utc || !terminal).then(Zone::utc),
        };
        Ok(Self {
            format: if global.json { Format::Json } else { global.output.unwrap_or(Format::Table) },
            colors: colors(global.color, terminal),
            error_colors: colors(global.color, io::stderr().is_terminal()),
            width: terminal_size::terminal_size().filter(|_| terminal).map(|(width, _)| usize::from(width.0)),
            times: zone.map_or(Times::Relative, Times::In),
            now: SystemClock.now(),
            quiet: global.quiet,
        })
    }

    /// Whether JSON is asked for, in one piece or in lines.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self.format, Format::Json | Format::Ndjson)
    }

    /// The format that is asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// When this run began.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Whether progress may be shown.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// A time for people.
    pub(crate) fn when(&self, at: Timestamp) -> String {
        match &self.times {
            Times::Relative => ago(at, self.now),
            Times::In(zone) => self.exactly_in(at, zone),
        }
    }

    /// A time for people, never relative.
    pub(crate) fn exactly(&self, at: Timestamp) -> String {
        match &self.times {
            Times::Relative => at.to_string(),
            Times::In(zone) => self.exactly_in(at, zone),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the other two")]
    fn exactly_in(&self, at: Timestamp, zone: &Zone) -> String {
        if *zone == Zone::utc() {
            return at.to_string();
        }
        match at.to_jiff().in_tz(zone.name()) {
            Ok(zoned) => zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            Err(_) => at.to_string(),
        }
    }

    /// An optional time for people.
    pub(crate) fn when_any(&self, at: Option<Timestamp>) -> String {
        at.map_or_else(|| "-".to_owned(), |at| self.when(at))
    }

    /// Prints a listing in the format that is asked for.
    pub(crate) fn listing(&self, listing: &Listing) -> Outcome {
        let mut stdout = io::stdout().lock();
        match self.format {
            Format::Table | Format::Wide => {
                stdout.write_all(self.table(listing).as_bytes())?;
                stdout.flush()?;
                if listing.rows.is_empty() {
                    self.say(listing.empty);
                }
                if let Some(next) = &listing.next {
                    self.say(format_args!("there is more: --after {next}"));
                }
            }
            Format::Json => {
                let rows: Vec<Value> = listing.rows.iter().map(|row| row.json.clone()).collect();
                let mut object = Map::from_iter([(listing.name.to_owned(), Value::from(rows))]);
                if listing.pages {
                    object.insert("next".to_owned(), listing.next.clone().map_or(Value::Null, Value::from));
                }
                object.extend(listing.extra.clone());
                write_json(&mut stdout, &versioned(Value::Object(object)))?;
            }
            Format::Ndjson => {
                for row in &listing.rows {
                    writeln!(stdout, "{}", versioned(row.json.clone()))?;
                }
                if let Some(next) = &listing.next {
                    self.say(format_args!("there is more: --after {next}"));
                }
            }
            Format::Id => {
                for row in &listing.rows {
                    writeln!(stdout, "{}", row.id)?;
                }
            }
        }
        Ok(Exit::Ok)
    }

    /// A listing as the table for people.
    pub(crate) fn table(&self, listing: &Listing) -> String {
        listing.render(self.format == Format::Wide, self.width, self.colors)
    }

    /// Prints one object: JSON when that is asked for, else the text for people, or its id.
    pub(crate) fn object(&self, id: &str, json: Value, people: impl FnOnce() -> String) -> Outcome {
        let mut stdout = io::stdout().lock();
        match self.format {
            Format::Json => write_json(&mut stdout, &versioned(json))?,
            Format::Ndjson => writeln!(stdout, "{}", versioned(json))?,
            Format::Id => writeln!(stdout, "{id}")?,
            Format::Table | Format::Wide => {
                stdout.write_all(people().as_bytes())?;
                stdout.flush()?;
            }
        }
        Ok(Exit::Ok)
    }

    /// Prints a line of data as it is.
    #[expect(clippy::unused_self, reason = "everything that is printed goes through here")]
    pub(crate) fn line(&self, text: impl std::fmt::Display) -> Result<(), Problem> {
        writeln!(io::stdout().lock(), "{text}")?;
        Ok(())
    }

    /// Tells people something on standard error; nobody listening is no problem.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "{}", as_typed(&text.to_string()));
        }
    }

    /// Warns on standard error.
    pub(crate) fn warn(&self, text: impl std::fmt::Display) {
        let text = text.to_string();
        let _ = writeln!(io::stderr().lock(), "{} {}", self.on_error("warning:", Tone::Warn), as_typed(&text));
    }

    /// Text in a colour, where standard output has colours.
    pub(crate) fn tone(&self, text: &str, tone: Tone) -> String {
        if self.colors { tone.paint(text) } else { text.to_owned() }
    }

    /// Text in a colour, where standard error has colours.
    pub(crate) fn on_error(&self, text: &str, tone: Tone) -> String {
        if self.error_colors { tone.paint(text) } else { text.to_owned() }
    }

    /// `label  value` lines, aligned; empty values are left out.
    pub(crate) fn fields(&self, fields: &[(&str, String)]) -> String {
        let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (label, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            let label = self.tone(&format!("{label:width$}"), Tone::Dim);
            // Values of several lines stay below each other.
            let value = value.replace('\n', &format!("\n{:width$}  ", ""));
            text.extend([&label, "  ", &value, "\n"]);
        }
        text
    }
}

/// Whether a stream is coloured.
pub(crate) fn colors(wanted: Color, terminal: bool) -> bool {
    let refused = || {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
    };
    match wanted {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && !refused(),
    }
}

/// With the version of its schema in front.
pub(crate) fn versioned(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut object = Map::from_iter([("schema_version".to_owned(), Value::from(SCHEMA_VERSION))]);
            object.extend(fields);
            Value::Object(object)
        }
        other => other,
    }
}

fn write_json(out: &mut impl Write, value: &Value) -> Result<(), Problem> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
