//! Lays the sources over each other and reads the winner of each key.
//!
//! 1. every source becomes a layer: key -> text and origin   2. the highest layer that sets a key wins
//! 3. the winner's variables are put in, or its file is read   4. it is typed, checked and kept
//!
//! Pure: whoever calls hands in the texts, the variables and the flags. Only `disk.rs` reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::dotenv::{self, Assignment};
use super::file::{self, FileLayers, Found, Layer};
use super::key::{Key, KeyInfo, Preset, Value};
use super::keys::KEYS;
use super::problem::{ConfigErrors, Origin, Problem, quote};
use super::spelling::{Content, Spellings};
use super::{Config, FILE_BYTES_MAX, Loaded, PROFILE_VARIABLE, Setting, interpolate};

/// What makes up the configuration: a file, a `.env` file, the environment and flags, each of them optional.
///
/// ```
/// use windlass_core::config::Sources;
/// let loaded = Sources::new()
///     .file("windlass.toml", "[worker]\nqueues = [\"email\", \"default\"]\nslots = 4\n")
///     .environment([("WINDLASS_WORKER__SLOTS", "32")])
///     .flag("worker.grace", "--grace", "5s")
///     .load()
///     .unwrap();
/// assert_eq!(loaded.config.worker.slots, 32);
/// assert_eq!(loaded.config.worker.queues.len(), 2);
/// assert_eq!(loaded.config.worker.grace.as_secs(), 5);
/// ```
#[derive(Default)]
pub struct Sources {
    file: Option<Text>,
    /// There is one, but its content could not be had.
    file_is_unreadable: bool,
    dotenv: Option<Text>,
    environment: BTreeMap<String, String>,
    flags: Vec<Flag>,
    profile: Option<String>,
    read_secret: Option<ReadSecret>,
    rules: Vec<(&'static str, Rule)>,
    /// What went wrong while the sources were collected; reported with everything else.
    problems: Vec<Problem>,
}

struct Text {
    name: String,
    text: String,
}

struct Flag {
    key: String,
    written: String,
    value: String,
}

/// What is wrong with a value.
type Rule = fn(&str) -> Result<(), String>;

type ReadSecret = Box<dyn Fn(&Path) -> std::io::Result<Vec<u8>> + Send + Sync>;

impl Sources {
    /// Nothing yet: the built-in defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The configuration file, in TOML. One that is no UTF-8 or larger than 1 MiB is reported by [`Sources::load`].
    #[must_use]
    pub fn file(mut self, name: impl Into<String>, content: impl AsRef<[u8]>) -> Self {
        self.file = self.checked(name.into(), content.as_ref());
        self.file_is_unreadable = self.file.is_none();
        self
    }

    /// The name of the configuration file, when there is one.
    pub fn file_name(&self) -> Option<&str> {
        self.file.as_ref().map(|file| file.name.as_str())
    }

    /// The `.env` file. One that is no UTF-8 or larger than 1 MiB is reported by [`Sources::load`].
    #[must_use]
    pub fn dotenv(mut self, name: impl Into<String>, content: impl AsRef<[u8]>) -> Self {
        self.dotenv = self.checked(name.into(), content.as_ref());
        self
    }

    /// The variables of the environment; a later one wins over an earlier one of the same name.
    #[must_use]
    pub fn environment<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// A flag of the command line: the key it sets, how it is written, its value. The last one of a key wins.
    #[must_use]
    pub fn flag(mut self, key: impl Into<String>, flag: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push(Flag { key: key.into(), written: flag.into(), value: value.into() });
        self
    }

    /// The profile that the flag `--profile` chose; it wins over `WINDLASS_PROFILE`.
    #[must_use]
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// How files that hold a secret are read; without it they are refused.
    #[must_use]
    pub fn secrets(mut self, read: impl Fn(&Path) -> std::io::Result<Vec<u8>> + Send + Sync + 'static) -> Self {
        self.read_secret = Some(Box::new(read));
        self
    }

    /// A rule for the value of a key that only the caller knows; what it says is wrong is reported with everything else, and
    /// must not hold a secret.
    #[must_use]
    pub fn rule(mut self, key: &'static str, rule: fn(&str) -> Result<(), String>) -> Self {
        self.rules.push((key, rule));
        self
    }

    /// There is a configuration file, and its content could not be had.
    pub(super) fn unreadable_file(mut self, problem: Problem) -> Self {
        self.file_is_unreadable = true;
        self.report(problem);
        self
    }

    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn checked(&mut self, name: String, content: &[u8]) -> Option<Text> {
        match checked_text(content) {
            Ok(text) => Some(Text { name, text: text.to_owned() }),
            Err(message) => {
                self.report(Problem::new("", Origin::WholeFile(name), message));
                None
            }
        }
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`ConfigErrors`] with every problem of every source.
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        self.load_with((), &[]).map(|(loaded, ())| loaded)
    }

    /// The configuration together with that of an application, from the same sources and by the same rules.
    ///
    /// Every key of `keys` that has a value is put into `app`.
    /// # Errors
    /// [`ConfigErrors`] with every problem of every source, of both tables.
    /// # Panics
    /// When a key goes by the same name as another.
    /// # Example
    /// ```
    /// use windlass_core::config::{Key, Kind, Sources};
    /// #[derive(Default)]
    /// struct Courier { port: u16 }
    /// let keys = [Key::<Courier>::new(
    ///     "courier.port",
    ///     "The port that mail is taken on.",
    ///     Kind::Count { min: 1, max: 65_535, set: |courier, port| courier.port = port as u16 },
    /// )
    /// .preset("2525")];
    /// let sources = Sources::new().file("courier.toml", "store = \"courier.db\"\n[courier]\nport = 25\n");
    /// let (loaded, courier) = sources.load_with(Courier::default(), &keys).unwrap();
    /// assert_eq!((courier.port, loaded.config.store.as_str()), (25, "courier.db"));
    /// ```
    pub fn load_with<A>(&self, mut app: A, keys: &[Key<A>]) -> Result<(Loaded, A), ConfigErrors> {
        let infos: Vec<&KeyInfo> = KEYS.iter().map(Key::info).chain(keys.iter().map(Key::info)).collect();
        let mut resolver = self.resolve(&infos);
        let mut config = Config::blank();
        for key in KEYS {
            resolver.take(key, &mut config);
        }
        for key in keys {
            resolver.take(key, &mut app);
        }
        let Resolver { settings, problems, .. } = resolver;
        if problems.is_empty() {
            Ok((Loaded { config, origins: settings }, app))
        } else {
            Err(ConfigErrors::new(problems))
        }
    }

    /// Lays the layers over each other.
    fn resolve(&self, infos: &[&KeyInfo]) -> Resolver<'_> {
        let spellings = Spellings::of(infos);
        let mut problems = self.problems.clone();
        let (assignments, bad_lines) = self.dotenv.as_ref().map(|file| dotenv::parse(&file.text)).unwrap_or_default();
        let dotenv_name = self.dotenv.as_ref().map_or("", |file| file.name.as_str());
        let dotenv_values: BTreeMap<String, Assignment> =
            assignments.into_iter().map(|one| (one.name.clone(), one)).collect();

        let mut file =
            self.file.as_ref().map(|file| file::read(&file.name, &file.text, &spellings)).unwrap_or_default();
        problems.append(&mut file.problems);
        let profile = self.take_profile(&mut file, &dotenv_values, dotenv_name, &mut problems);

        problems.extend(bad_lines.into_iter().map(|bad| {
            let origin = Origin::File { name: dotenv_name.to_owned(), line: bad.line };
            Problem::new("", origin, bad.message)
        }));
        let from_dotenv = dotenv_values.values().map(|one| {
            let origin = Origin::DotEnv { name: dotenv_name.to_owned(), line: one.line, variable: one.name.clone() };
            (one.name.as_str(), one.value.as_str(), origin)
        });
        let dotenv = variables_layer(from_dotenv, &spellings, &mut problems);
        let from_environment = self
            .environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str(), Origin::Environment(name.clone())));
        let environment = variables_layer(from_environment, &spellings, &mut problems);
        let flags = self.flags_layer(&spellings, &mut problems);

        let mut winners = file.base;
        for layer in [profile, dotenv, environment, flags] {
            winners.extend(layer);
        }
        Resolver { sources: self, dotenv: dotenv_values, winners, index: 0, settings: Vec::new(), problems }
    }

    /// The layer of the chosen profile; nothing when none is chosen.
    fn take_profile(
        &self,
        file: &mut FileLayers,
        dotenv: &BTreeMap<String, Assignment>,
        dotenv_name: &str,
        problems: &mut Vec<Problem>,
    ) -> Layer {
        let of_flag = self.profile.as_ref().map(|name| (name.as_str(), Origin::Flag("--profile".to_owned())));
        let of_environment = || {
            let name = self.environment.get(PROFILE_VARIABLE)?;
            Some((name.as_str(), Origin::Environment(PROFILE_VARIABLE.to_owned())))
        };
        let of_dotenv = || {
            let Assignment { name, value, line } = dotenv.get(PROFILE_VARIABLE)?;
            let origin = Origin::DotEnv { name: dotenv_name.to_owned(), line: *line, variable: name.clone() };
            Some((value.as_str(), origin))
        };
        let is_set = |(name, _): &(&str, Origin)| !name.is_empty();
        let chosen = of_flag.or_else(|| of_environment().filter(is_set)).or_else(|| of_dotenv().filter(is_set));
        let Some((name, origin)) = chosen else { return Layer::new() };
        if let Some(layer) = file.profiles.remove(name) {
            return layer;
        }
        if self.file_is_unreadable || file.is_broken {
            // That is reported already; the profile may well be in it.
            return Layer::new();
        }
        let message = match &self.file {
            None => format!("there is no profile {}: no configuration file was found", quote(name)),
            Some(text) if file.profiles.is_empty() => {
                format!("there is no profile {}: write [profile.NAME] in {}", quote(name), text.name)
            }
            Some(text) => {
                let known: Vec<_> = file.profiles.keys().map(|name| quote(name)).collect();
                format!("there is no profile {}: {} has {}", quote(name), text.name, known.join(", "))
            }
        };
        problems.push(Problem::new("", origin, message));
        Layer::new()
    }

    fn flags_layer(&self, spellings: &Spellings, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::new();
        for Flag { key, written, value } in &self.flags {
            let origin = Origin::Flag(written.clone());
            match spellings.keys.get(key) {
                Some(target) => {
                    let value = Value::Text(value.clone());
                    layer.insert(target.index, Found { value, content: target.content, origin, rank: target.rank });
                }
                None => problems.push(Problem::new(key.clone(), origin, spellings.advise_key(key))),
            }
        }
        layer
    }
}

impl fmt::Debug for Sources {
    /// Without the content: any of it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|file| &file.name))
            .field("dotenv", &self.dotenv.as_ref().map(|file| &file.name))
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

/// The layer of `.env` or the environment. Only what begins like ours must be known; a variable that is empty is not set:
/// that is what a compose file makes of one that is missing.
fn variables_layer<'v>(
    variables: impl Iterator<Item = (&'v str, &'v str, Origin)>,
    spellings: &Spellings,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::new();
    for (name, value, origin) in variables {
        let Some(target) = spellings.variables.get(name) else {
            if !Spellings::is_foreign(name, value) {
                problems.push(Problem::new("", origin, spellings.advise_variable(name)));
            }
            continue;
        };
        if value.trim().is_empty() {
            continue;
        }
        let value = Value::Text(value.to_owned());
        let found = Found { value, content: target.content, origin, rank: target.rank };
        match layer.get(&target.index) {
            Some(other) if other.rank < found.rank => {}
            Some(other) if other.rank == found.rank => {
                problems.push(Problem::new("", found.origin, format!("contradicts {}: keep one", other.origin)));
            }
            Some(_) | None => {
                layer.insert(target.index, found);
            }
        }
    }
    layer
}

/// Reads the winners one key after the other, in the order of the tables.
struct Resolver<'s> {
    sources: &'s Sources,
    dotenv: BTreeMap<String, Assignment>,
    winners: Layer,
    index: usize,
    settings: Vec<Setting>,
    problems: Vec<Problem>,
}

impl Resolver<'_> {
    /// The next key of the tables.
    fn take<C>(&mut self, key: &Key<C>, config: &mut C) {
        let info = key.info();
        let found = self.winners.remove(&self.index).or_else(|| preset(info));
        self.index += 1;
        let Some(found) = found else {
            self.settings.push(Setting { info: *info, value: None, origin: Origin::BuiltIn });
            return;
        };
        let outcome = self.finish(&found).and_then(|value| {
            key.apply(config, &value)?;
            for (_, rule) in self.sources.rules.iter().filter(|(name, _)| *name == info.name) {
                rule(&value.to_text())?;
            }
            Ok(info.shown(&value))
        });
        match outcome {
            Ok(shown) => {
                self.settings.push(Setting { info: *info, value: Some(shown), origin: found.origin });
            }
            Err(message) => self.problems.push(Problem::new(info.name, found.origin, message)),
        }
    }

    /// Puts variables in, then reads the file that holds a secret.
    fn finish(&self, found: &Found) -> Result<Value, String> {
        let lookup = |name: &str| {
            let of_dotenv = || self.dotenv.get(name).map(|one| one.value.as_str());
            self.sources.environment.get(name).map(String::as_str).or_else(of_dotenv)
        };
        let put_in = |text: &str| interpolate::interpolate(text, &lookup);
        let value = match (&found.origin, &found.value) {
            (Origin::File { .. } | Origin::Profile { .. }, Value::Text(text)) => Value::Text(put_in(text)?),
            (Origin::File { .. } | Origin::Profile { .. }, Value::List(items)) => {
                Value::List(items.iter().map(|item| put_in(item)).collect::<Result<_, _>>()?)
            }
            // The shell has put in what it wanted to; a password with a dollar sign passes as it is.
            (_, value) => value.clone(),
        };
        match (found.content, value) {
            (Content::Value, value) => Ok(value),
            (Content::Path, Value::Text(path)) => self.read_secret(path.trim()).map(Value::Text),
            (Content::Path, _) => Err("is no path: write the path of a file, in quotes".to_owned()),
        }
    }

    fn read_secret(&self, path: &str) -> Result<String, String> {
        let Some(read) = &self.sources.read_secret else {
            return Err("files that hold a secret are not read here: give the value itself".to_owned());
        };
        let content = read(Path::new(path)).map_err(|error| format!("failed to read {}: {error}", quote(path)))?;
        let text = checked_text(&content).map_err(|message| format!("{} {message}", quote(path)))?;
        match text.trim() {
            "" => Err(format!("{} is empty: write the value into it", quote(path))),
            secret => Ok(secret.to_owned()),
        }
    }
}

fn preset(info: &KeyInfo) -> Option<Found> {
    let text = match info.preset {
        Preset::Unset => return None,
        Preset::Text(text) => text.to_owned(),
        Preset::Machine { text, .. } => text(),
    };
    Some(Found { value: Value::Text(text), content: Content::Value, origin: Origin::BuiltIn, rank: 0 })
}

/// The content of a file as text; or what is wrong with it, to be read after its name.
fn checked_text(content: &[u8]) -> Result<&str, String> {
    if content.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB: that is no configuration", FILE_BYTES_MAX >> 20));
    }
    std::str::from_utf8(content).map_err(|error| {
        let line = content[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        format!("is no UTF-8 text, from line {line} on: save it as UTF-8")
    })
}
