//! One key of the configuration: its name, what it means, its default, and how its text becomes a value.

use std::time::Duration;

use super::VALUE_BYTES_MAX;
use super::problem::quote;
use crate::redact;
use crate::time::{format_duration, parse_duration};

/// One row of a table of keys; `C` is the struct that the value is put into.
///
/// An application adds a table of its own: see [`Sources::load_with`](super::Sources::load_with).
/// ```
/// use windlass_core::config::{Key, Kind};
/// #[derive(Default)]
/// struct Courier { port: u16 }
/// let key = Key::<Courier>::new(
///     "courier.port",
///     "The port that mail is taken on.",
///     Kind::Count { min: 1, max: 65_535, set: |courier, port| courier.port = port as u16 },
/// )
/// .preset("2525");
/// assert_eq!(key.info().variable(), "WINDLASS_COURIER__PORT");
/// assert_eq!(key.shape(), "a whole number from 1 to 65535");
/// ```
pub struct Key<C: 'static> {
    info: KeyInfo,
    kind: Kind<C>,
}

impl<C> Key<C> {
    /// A key without a default; `name` is its sections and itself in lower case, joined by dots.
    pub const fn new(name: &'static str, doc: &'static str, kind: Kind<C>) -> Self {
        let info = KeyInfo { name, doc, preset: Preset::Unset, exposure: Exposure::Plain, aliases: &[] };
        Self { info, kind }
    }

    /// Its default, written as a user would write it.
    #[must_use]
    pub const fn preset(mut self, text: &'static str) -> Self {
        self.info.preset = Preset::Text(text);
        self
    }

    /// Its default where that depends on the machine: the rule in words, and what it gives here.
    #[must_use]
    pub const fn preset_of_machine(mut self, rule: &'static str, text: fn() -> String) -> Self {
        self.info.preset = Preset::Machine { rule, text };
        self
    }

    /// It is a URL that may hold a password: that part is never shown, and it may be given as the path of a file.
    #[must_use]
    pub const fn url(mut self) -> Self {
        self.info.exposure = Exposure::Url;
        self
    }

    /// It is never shown, and it may be given as the path of a file.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.info.exposure = Exposure::Secret;
        self
    }

    /// Other names it goes by; an earlier one wins over a later one, its own name over all.
    #[must_use]
    pub const fn aliases(mut self, aliases: &'static [Alias]) -> Self {
        self.info.aliases = aliases;
        self
    }

    /// What documentation and listings say about it.
    pub fn info(&self) -> &KeyInfo {
        &self.info
    }

    /// What may be written, in words: `true or false`, `a duration from 3s to 1d, such as 30s, 5m or 1h30m`.
    pub fn shape(&self) -> String {
        self.kind.shape()
    }

    /// Puts the value into `config`; or says what is wrong and what to write instead.
    pub(super) fn apply(&self, config: &mut C, value: &Value) -> Result<(), String> {
        self.kind.apply(config, value).map_err(|wrong| {
            let shape = self.kind.shape();
            match (wrong, self.info.exposure) {
                (Wrong::Empty, _) => format!("is empty: write {shape}"),
                (Wrong::TooLong, _) => format!("is longer than {} KiB: write {shape}", VALUE_BYTES_MAX / 1024),
                // Neither the value nor a message made from it.
                (_, Exposure::Secret) => format!("the value does not fit: write {shape}"),
                (Wrong::Shape, _) => format!("{} does not fit: write {shape}", value.quoted()),
                (Wrong::Range, _) => format!("{} is out of range: write {shape}", value.quoted()),
                (Wrong::NoUnit, _) => format!("{} has no unit: write {shape}", value.quoted()),
                (Wrong::NotText, _) => format!("{} is no text: put it in quotes; write {shape}", value.quoted()),
                (Wrong::Because(reason), _) => format!("{reason}; write {shape}"),
            }
        })
    }
}

/// What documentation and listings say about a key.
#[derive(Debug, Clone, Copy)]
pub struct KeyInfo {
    /// Its sections and itself, joined by dots: `worker.lease`.
    pub name: &'static str,
    /// One or two sentences.
    pub doc: &'static str,
    /// What it is when nobody sets it.
    pub preset: Preset,
    /// How much of its value is shown.
    pub exposure: Exposure,
    /// Other names it goes by.
    pub aliases: &'static [Alias],
}

impl KeyInfo {
    /// The environment variable that sets it: `WINDLASS_WORKER__LEASE` for `worker.lease`.
    pub fn variable(&self) -> String {
        variable_of(self.name)
    }

    /// Whether it may be given as the path of a file: by `NAME_FILE` in the environment, `name_file` in the file.
    pub fn may_be_in_a_file(&self) -> bool {
        match self.exposure {
            Exposure::Plain => false,
            Exposure::Url | Exposure::Secret => true,
        }
    }

    /// A value of this key as it may be shown.
    pub(super) fn shown(&self, value: &Value) -> String {
        match self.exposure {
            Exposure::Plain => value.to_text(),
            Exposure::Url => redact::url(&value.to_text()),
            Exposure::Secret => redact::MASK.to_owned(),
        }
    }
}

/// The environment variable of a key.
pub(super) fn variable_of(name: &str) -> String {
    format!("{}{}", super::VARIABLE_PREFIX, name.to_ascii_uppercase().replace('.', "__"))
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    /// Nothing.
    Unset,
    /// The same everywhere.
    Text(&'static str),
    /// It depends on the machine.
    Machine {
        /// In words: `8 for each core, at least 16`.
        rule: &'static str,
        /// What the rule gives on this machine.
        text: fn() -> String,
    },
}

/// How much of a value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// All of it.
    Plain,
    /// All but the user part of the URL.
    Url,
    /// Nothing.
    Secret,
}

/// Another name of a key, and why it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alias {
    /// A name in the file, and the variable made from it.
    Key {
        /// With its section, as in `worker.concurrency`.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A variable of the environment or `.env`.
    Variable {
        /// The whole name.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
}

/// What a value is, its limits, and where it goes.
pub enum Kind<C: 'static> {
    /// Text that is not empty and holds no control characters.
    Text {
        /// In words: `a URL or a path`.
        shape: &'static str,
        /// Keeps it.
        set: fn(&mut C, String),
    },
    /// `true` or `false`; outside of the file also yes, no, on, off, 1 and 0.
    Flag {
        /// Keeps it.
        set: fn(&mut C, bool),
    },
    /// A whole number.
    Count {
        /// The smallest that is accepted.
        min: u64,
        /// The largest that is accepted.
        max: u64,
        /// Keeps it.
        set: fn(&mut C, u64),
    },
    /// How long.
    Duration {
        /// The shortest that is accepted.
        min: Duration,
        /// The longest that is accepted.
        max: Duration,
        /// Keeps it.
        set: fn(&mut C, Duration),
    },
    /// How many bytes: `512KiB`, `1MiB`, or a bare number.
    Bytes {
        /// The fewest that are accepted.
        min: u64,
        /// The most that are accepted.
        max: u64,
        /// Keeps them.
        set: fn(&mut C, u64),
    },
    /// One of a few words, each with what it does.
    Choice(&'static [Word<C>]),
    /// Text with a rule of its own.
    Parsed {
        /// The rule in words: `1 to 255 visible ASCII characters`.
        shape: &'static str,
        /// Keeps it, or says why not.
        set: fn(&mut C, &str) -> Result<(), String>,
    },
    /// Several texts: a list, a table of `name = value`, or one text with commas.
    List {
        /// What is listed, in words.
        shape: &'static str,
        /// Keeps them, or says why not. Never called with an empty list.
        set: fn(&mut C, &[String]) -> Result<(), String>,
    },
}

/// A word and what it sets.
pub type Word<C> = (&'static str, fn(&mut C));

/// Why a value is refused.
enum Wrong {
    Empty,
    TooLong,
    Shape,
    Range,
    NoUnit,
    NotText,
    Because(String),
}

impl<C> Kind<C> {
    fn shape(&self) -> String {
        match self {
            Self::Text { shape, .. } | Self::Parsed { shape, .. } | Self::List { shape, .. } => (*shape).to_owned(),
            Self::Flag { .. } => "true or false".to_owned(),
            Self::Count { min, max, .. } => format!("a whole number from {min} to {max}"),
            Self::Duration { min, max, .. } => {
                let (min, max) = (format_duration(*min), format_duration(*max));
                format!("a duration from {min} to {max}, such as 30s, 5m or 1h30m")
            }
            Self::Bytes { min, max, .. } => {
                format!("a size from {} to {}, such as 512KiB or 1MiB", format_bytes(*min), format_bytes(*max))
            }
            Self::Choice(words) => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                format!("one of {}", words.join(", "))
            }
        }
    }

    fn apply(&self, config: &mut C, value: &Value) -> Result<(), Wrong> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(Wrong::TooLong);
        }
        match self {
            Self::Text { set, .. } => {
                let text = value.text()?;
                if text.chars().any(char::is_control) {
                    return Err(Wrong::Shape);
                }
                set(config, text.to_owned());
            }
            Self::Flag { set } => set(config, value.flag()?),
            Self::Count { min, max, set } => set(config, within(whole_number(value.digits()?)?, *min, *max)?),
            Self::Duration { min, max, set } => set(config, within(value.duration()?, *min, *max)?),
            Self::Bytes { min, max, set } => set(config, within(parse_bytes(value.digits()?)?, *min, *max)?),
            Self::Choice(words) => {
                let text = value.text()?;
                let (_, set) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).ok_or(Wrong::Shape)?;
                set(config);
            }
            Self::Parsed { set, .. } => set(config, value.text()?).map_err(Wrong::Because)?,
            Self::List { set, .. } => set(config, &value.list()?).map_err(Wrong::Because)?,
        }
        Ok(())
    }
}

/// A value before it is typed: as TOML tells the kinds apart. All other layers know only text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// A bare number, in decimal where it is a whole one.
    Number(String),
    Flag(bool),
    List(Vec<String>),
    /// What no key takes, in words: `a date`.
    Odd(&'static str),
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Number(text) => text.len(),
            Self::List(items) => items.iter().map(|item| item.len() + 1).sum(),
            Self::Flag(_) | Self::Odd(_) => 0,
        }
    }

    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Text(text) | Self::Number(text) => text.clone(),
            Self::Flag(flag) => flag.to_string(),
            Self::List(items) => items.join(","),
            Self::Odd(what) => (*what).to_owned(),
        }
    }

    fn quoted(&self) -> String {
        match self {
            Self::Odd(what) => (*what).to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Text(_) | Self::Number(_) | Self::Flag(_) => quote(&self.to_text()),
        }
    }

    fn text(&self) -> Result<&str, Wrong> {
        match self {
            Self::Text(text) if text.trim().is_empty() => Err(Wrong::Empty),
            Self::Text(text) => Ok(text.trim()),
            Self::Number(_) | Self::Flag(_) => Err(Wrong::NotText),
            Self::List(_) | Self::Odd(_) => Err(Wrong::Shape),
        }
    }

    /// What should be a number: bare, or text because a variable was put in.
    fn digits(&self) -> Result<&str, Wrong> {
        match self {
            Self::Number(text) => Ok(text),
            Self::Flag(_) => Err(Wrong::Shape),
            Self::Text(_) | Self::List(_) | Self::Odd(_) => self.text(),
        }
    }

    fn flag(&self) -> Result<bool, Wrong> {
        match self {
            Self::Flag(flag) => Ok(*flag),
            Self::Number(_) => Err(Wrong::Shape),
            Self::Text(_) | Self::List(_) | Self::Odd(_) => match self.text()?.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(true),
                "false" | "no" | "off" | "0" => Ok(false),
                _ => Err(Wrong::Shape),
            },
        }
    }

    fn duration(&self) -> Result<Duration, Wrong> {
        let text = self.digits()?;
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Wrong::NoUnit);
        }
        parse_duration(text).map_err(|_| Wrong::Shape)
    }

    fn list(&self) -> Result<Vec<String>, Wrong> {
        let items: Vec<String> = match self {
            Self::List(items) => items.iter().map(|item| item.trim().to_owned()).collect(),
            Self::Text(_) | Self::Number(_) | Self::Flag(_) | Self::Odd(_) => {
                self.text()?.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
            }
        };
        if items.is_empty() { Err(Wrong::Empty) } else { Ok(items) }
    }
}

fn within<T: PartialOrd>(value: T, min: T, max: T) -> Result<T, Wrong> {
    if value < min || value > max { Err(Wrong::Range) } else { Ok(value) }
}

fn whole_number(text: &str) -> Result<u64, Wrong> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Wrong::Shape);
    }
    // Negative, or more than 64 bits hold: a number, but not one of ours.
    text.parse().map_err(|_| Wrong::Range)
}

const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

fn parse_bytes(text: &str) -> Result<u64, Wrong> {
    let digits_end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = (&text[..digits_end], text[digits_end..].trim());
    if unit.is_empty() || digits.is_empty() {
        return whole_number(text);
    }
    let (_, size) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(Wrong::Shape)?;
    whole_number(digits)?.checked_mul(*size).ok_or(Wrong::Range)
}

fn format_bytes(bytes: u64) -> String {
    match UNITS[..3].iter().rev().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => format!("{bytes}B"),
    }
}
