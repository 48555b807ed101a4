//! Reads the configuration file: which key is written on which line, and what should not be there.
//!
//! Nothing is typed here and no variable is put in: only the layer that wins is read further.

use std::collections::BTreeMap;

use toml::de::{DeInteger, DeTable, DeValue};

use super::key::Value;
use super::problem::{Origin, Problem, quote};
use super::spelling::{Content, Spellings, Target};

/// The section that holds the profiles.
const PROFILES: &str = "profile";

/// What one layer says about one key.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) value: Value,
    pub(super) content: Content,
    pub(super) origin: Origin,
    pub(super) rank: usize,
}

/// What one layer says, by the place of the key in the table.
pub(super) type Layer = BTreeMap<usize, Found>;

/// What the file says.
#[derive(Default)]
pub(super) struct FileLayers {
    /// Outside of the profiles.
    pub(super) base: Layer,
    /// By profile.
    pub(super) profiles: BTreeMap<String, Layer>,
    /// Whether it is no TOML at all, so that nothing can be said about what is missing.
    pub(super) is_broken: bool,
    /// In the order of the lines.
    pub(super) problems: Vec<Problem>,
}

/// Reads the text of a file.
pub(super) fn read(name: &str, text: &str, spellings: &Spellings) -> FileLayers {
    let mut reader = Reader { name, lines: Lines::of(text), spellings, problems: Vec::new() };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What could be saved of a broken file is not looked at: a `[section` that is never closed would make
        // every key after it look misplaced.
        let problems = errors.iter().map(|error| {
            let line = reader.lines.line_at(error.span().map_or(0, |span| span.start));
            (line, Problem::new("", reader.origin(line, None), format!("is no TOML: {}", error.message())))
        });
        let mut problems: Vec<_> = problems.collect();
        problems.sort_by_key(|(line, _)| *line);
        problems.dedup_by_key(|(line, _)| *line);
        return FileLayers {
            problems: problems.into_iter().map(|(_, problem)| problem).collect(),
            is_broken: true,
            ..FileLayers::default()
        };
    }
    let mut layers = FileLayers::default();
    for (key, value) in table.get_ref() {
        if key.get_ref() != PROFILES {
            continue;
        }
        let line = reader.lines.line_at(key.span().start);
        let Some(profiles) = value.get_ref().as_table() else {
            let advice = "is a section: write [profile.NAME], and choose one by WINDLASS_PROFILE";
            reader.report(line, PROFILES, None, advice);
            continue;
        };
        for (profile, value) in profiles {
            let line = reader.lines.line_at(profile.span().start);
            let layer = layers.profiles.entry(profile.get_ref().to_string()).or_default();
            if let Some(table) = value.get_ref().as_table() {
                reader.walk(table, "", Some(profile.get_ref()), layer);
            } else {
                let name = format!("{PROFILES}.{}", profile.get_ref());
                reader.report(line, &name, None, "is a section, not a value");
            }
        }
    }
    reader.walk(table.get_ref(), "", None, &mut layers.base);
    reader.problems.sort_by_key(|(line, _)| *line);
    layers.problems = reader.problems.into_iter().map(|(_, problem)| problem).collect();
    layers
}

struct Reader<'r> {
    name: &'r str,
    lines: Lines,
    spellings: &'r Spellings,
    /// With their lines.
    problems: Vec<(usize, Problem)>,
}

impl Reader<'_> {
    /// Reads a section. Goes only into sections that are known, so never deeper than the longest key.
    fn walk(&mut self, table: &DeTable<'_>, section: &str, profile: Option<&str>, layer: &mut Layer) {
        for (key, value) in table {
            if section.is_empty() && profile.is_none() && key.get_ref() == PROFILES {
                continue;
            }
            let line = self.lines.line_at(key.span().start);
            let name =
                if section.is_empty() { key.get_ref().to_string() } else { format!("{section}.{}", key.get_ref()) };
            if let Some(target) = self.spellings.keys.get(&name) {
                self.keep(*target, &name, line, profile, raw(value.get_ref()), layer);
            } else if self.spellings.sections.contains(&name) {
                match value.get_ref().as_table() {
                    Some(table) => self.walk(table, &name, profile, layer),
                    None => self.report(line, &name, profile, format!("is a section: write [{name}] above its keys")),
                }
            } else {
                let advice = self.spellings.advise_key(&name);
                self.report(line, &name, profile, advice);
            }
        }
    }

    fn keep(
        &mut self,
        target: Target,
        name: &str,
        line: usize,
        profile: Option<&str>,
        value: Value,
        layer: &mut Layer,
    ) {
        let origin = self.origin(line, profile);
        let found = Found { value, content: target.content, origin, rank: target.rank };
        if let Some(other) = layer.get(&target.index) {
            let advice = format!("is also set at {}: keep one", other.origin);
            self.report(line, name, profile, advice);
        } else {
            layer.insert(target.index, found);
        }
    }

    fn report(&mut self, line: usize, key: &str, profile: Option<&str>, message: impl Into<String>) {
        // The name of a key may be as hostile as a value.
        let key = quote(key).trim_matches('`').to_owned();
        self.problems.push((line, Problem::new(key, self.origin(line, profile), message)));
    }

    fn origin(&self, line: usize, profile: Option<&str>) -> Origin {
        let name = self.name.to_owned();
        match profile {
            None => Origin::File { name, line },
            Some(profile) => Origin::Profile { profile: profile.to_owned(), name, line },
        }
    }
}

/// A value as the kinds of keys know it.
fn raw(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Number(decimal(number)),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(_) => Value::Odd("a date"),
        DeValue::Array(items) => items
            .iter()
            .map(|item| scalar(item.get_ref()))
            .collect::<Option<_>>()
            .map_or(Value::Odd("a list of something other than texts and numbers"), Value::List),
        // `queues = { email = 3 }` is a list whose items have a number each.
        DeValue::Table(table) => table
            .iter()
            .map(|(name, value)| scalar(value.get_ref()).map(|value| format!("{}={value}", name.get_ref())))
            .collect::<Option<_>>()
            .map_or(Value::Odd("a section"), Value::List),
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(decimal(number)),
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// `0x10` is 16. More than 128 bits stay as they are: no key takes them.
fn decimal(number: &DeInteger<'_>) -> String {
    match number.radix() {
        10 => number.as_str().to_owned(),
        radix => i128::from_str_radix(number.as_str(), radix).map_or_else(|_| number.to_string(), |n| n.to_string()),
    }
}

/// Where lines begin, so that a file with many keys is not searched from its start for each.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line of a byte, counted from 1.
    fn line_at(&self, byte: usize) -> usize {
        self.0.partition_point(|newline| *newline < byte) + 1
    }
}
