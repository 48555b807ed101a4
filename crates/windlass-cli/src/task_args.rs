//! The arguments of a task from the command line, checked against its definition before anything is stored.

mod schema;

use std::io::Read;

use serde_json::{Map, Value};
use windlass::args::ARGS_BYTES_MAX;
use windlass::task::{Definition, Field, Presence};
use windlass::{Args, Feed, TaskName};

use crate::exit::{Exit, Problem};
use crate::program::{Known, Program};

/// Names that differ in more than this are not meant.
const DISTANCE_MAX: usize = 3;

/// How arguments are given.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ArgsFlags {
    /// Arguments as JSON: an object by name or an array by position; @FILE or - reads them from there
    #[arg(long, value_name = "JSON", help_heading = "Arguments")]
    pub(crate) args: Option<String>,

    /// One argument by name: text, or JSON where the task does not take text; NAME:=JSON is always JSON
    #[arg(short, long = "arg", value_name = "NAME=VALUE", conflicts_with = "args", help_heading = "Arguments")]
    pub(crate) arg: Vec<String>,
}

/// What is known of a task that was named on the command line.
///
/// # Errors
/// [`Exit::NotFound`] with a suggestion when the application has no task of this name.
pub(crate) fn task_of(program: &Program, name: &TaskName) -> Result<Known, Problem> {
    program.task(name).ok_or_else(|| {
        let names = || program.definitions().map(|definition| definition.name.as_str());
        let next = match nearest(name.as_str(), names()) {
            Some(nearest) => format!("did you mean `{nearest}`? `windlass task definitions` lists all tasks"),
            None => {
                "`windlass task definitions` lists all tasks; --unregistered enqueues for a worker of another program"
                    .to_owned()
            }
        };
        Problem::new(Exit::NotFound, format_args!("there is no task `{name}` in this program"), next)
    })
}

/// The name that is nearly the same.
pub(crate) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .min()
        .filter(|(distance, known)| *distance <= DISTANCE_MAX.min(known.len() / 2))
        .map(|(_, known)| known)
}

impl ArgsFlags {
    /// Whether any argument is given.
    pub(crate) fn is_given(&self) -> bool {
        self.args.is_some() || !self.arg.is_empty()
    }

    /// The arguments, checked when the task is known.
    pub(crate) fn read(&self, task: Option<Known>) -> Result<Args, Problem> {
        let args = match &self.args {
            Some(text) => parse(&self.text_of(text)?)?,
            None => self.by_name(task.map(|task| task.definition))?,
        };
        if let Some(task) = task {
            check(task, &args).map_err(|wrong| wrong_arguments(task.definition, &wrong))?;
        }
        Ok(args)
    }

    #[expect(clippy::unused_self, reason = "belongs to the flag")]
    fn text_of(&self, text: &str) -> Result<String, Problem> {
        // One byte more than the limit, so that what is too large is noticed and not read.
        let limit = ARGS_BYTES_MAX as u64 + 1;
        let mut bytes = Vec::new();
        if text == "-" {
            std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
        } else if let Some(path) = text.strip_prefix('@') {
            let file = std::fs::File::open(path).map_err(|error| {
                Problem::usage(format_args!("--args: cannot read `{path}`: {error}"), "name a file that is there")
            })?;
            file.take(limit).read_to_end(&mut bytes)?;
        } else {
            return Ok(text.to_owned());
        }
        if bytes.len() > ARGS_BYTES_MAX {
            return Err(Problem::usage(
                format_args!("arguments take more than {ARGS_BYTES_MAX} bytes"),
                "store the data elsewhere and send a reference",
            ));
        }
        String::from_utf8(bytes).map_err(|error| {
            Problem::usage(
                format_args!("arguments are not UTF-8: byte {} is not text", error.utf8_error().valid_up_to()),
                "write them as UTF-8",
            )
        })
    }

    fn by_name(&self, definition: Option<&Definition>) -> Result<Args, Problem> {
        let mut object = Map::new();
        for text in &self.arg {
            let (name, value) = read_pair(text, definition)?;
            if object.insert(name.clone(), value).is_some() {
                return Err(Problem::usage(
                    format_args!("argument `{name}` is given twice"),
                    "give it once; a list is written as JSON: `--arg 'items:=[1,2]'`",
                ));
            }
        }
        if object.is_empty() {
            return Ok(Args::none());
        }
        Args::parse(&Value::Object(object).to_string()).map_err(|error| Problem::usage(error, SEE_DEFINITION))
    }
}

const SEE_DEFINITION: &str = "`windlass task definitions NAME` says what a task takes";

/// Arguments from JSON text.
pub(crate) fn parse(text: &str) -> Result<Args, Problem> {
    Args::parse(text).map_err(|error| {
        Problem::usage(error, r#"write JSON such as `--args '{"url": "https://example.org"}'`, or use `--arg url=…`"#)
    })
}

/// One `NAME=VALUE` or `NAME:=JSON`.
fn read_pair(text: &str, definition: Option<&Definition>) -> Result<(String, Value), Problem> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !matches!(*name, "" | ":")) else {
        return Err(Problem::usage(
            format_args!("`{}` is not an argument", crate::output::cut(text, 60)),
            "write it as `--arg NAME=VALUE`, or `--arg NAME:=JSON`",
        ));
    };
    if let Some(name) = name.strip_suffix(':') {
        let value = serde_json::from_str(value).map_err(|error| {
            Problem::usage(format_args!("argument `{name}` is not JSON: {error}"), "write `NAME=VALUE` for plain text")
        })?;
        return Ok((name.to_owned(), value));
    }
    let field = definition
        .and_then(|definition| definition.fields.named())
        .and_then(|fields| fields.iter().find(|field| field.answers_to(name)));
    let value = match field {
        // A text that looks like a number stays a text where the task takes text.
        Some(field) if schema::takes_text(&field.schema) => Value::from(value),
        _ => serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)),
    };
    Ok((name.to_owned(), value))
}

/// Arguments that do not fit, as the command line says it.
fn wrong_arguments(definition: &Definition, wrong: &str) -> Problem {
    Problem::usage(
        format_args!("`{}`: {wrong}", definition.name),
        format_args!("nothing was enqueued; `windlass task definitions {}` says what it takes", definition.name),
    )
}

/// Whether the arguments fit the task; or what is wrong, in words that name the argument.
pub(crate) fn check(task: Known, args: &Args) -> Result<(), String> {
    if let Some(fields) = task.definition.fields.named() {
        check_fields(fields, args)?;
    }
    // What the schema cannot say: the forms of durations, addresses and the like.
    (task.check)(args).map_err(|error| error.to_string())
}

/// Finds what the schema can say, because it names the argument and the decoder does not.
fn check_fields(fields: &[Field], args: &Args) -> Result<(), String> {
    let given: Map<String, Value> =
        args.decode(Some(fields), &Feed::Nothing, None).map_err(|error| error.to_string())?;
    let missing: Vec<String> = fields
        .iter()
        .filter(|field| field.presence == Presence::Required && !given.keys().any(|name| field.answers_to(name)))
        .map(|field| format!("`{}`", field.name))
        .collect();
    if !missing.is_empty() {
        let noun = if missing.len() == 1 { "argument" } else { "arguments" };
        return Err(format!("missing {noun} {}", missing.join(", ")));
    }
    for (name, value) in &given {
        if let Some(field) = fields.iter().find(|field| field.answers_to(name)) {
            schema::check(&field.schema, value).map_err(|wrong| format!("argument `{name}`{wrong}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use windlass::Task;

    /// Mails somebody.
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "mail")]
    struct Mail {
        to: String,
        copies: u8,
        #[serde(default)]
        subject: Option<String>,
    }

    async fn mail(_: Mail, _: windlass::Cx) -> Result<(), windlass::TaskError> {
        Ok(())
    }

    fn read(flags: &[&str]) -> Result<Args, Problem> {
        let arg = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let program = Program::of(windlass::App::new("test").task(mail));
        ArgsFlags { args: None, arg }.read(program.task(&TaskName::known("mail")))
    }

    #[test]
    fn values_are_text_where_the_task_takes_text() {
        let args = read(&["to=12", "copies=3"]).unwrap();
        let keyword: Value = args.keyword().unwrap().to().unwrap();
        assert_eq!(keyword, serde_json::json!({"to": "12", "copies": 3}));
        let args = read(&["to=x", "copies:=3", "subject=true"]).unwrap();
        assert!(args.keyword().unwrap().as_str().contains(r#""subject":"true""#));
    }

    #[test]
    fn arguments_that_do_not_fit_are_named() {
        for (flags, text) in [
            (&["to=x"][..], "missing argument `copies`"),
            (&[], "missing arguments `to`, `copies`"),
            (&["to=x", "copies=300"], "argument `copies`: 300 is more than 255"),
            (&["to=x", "copies=many"], "argument `copies`: a whole number is expected, not the text \"many\""),
            (&["to:=5", "copies=1"], "argument `to`: text is expected, not the number 5"),
            (&["to=x", "copies=1", "subjct=y"], "unknown argument `subjct` (did you mean `subject`?)"),
            (&["to=x", "to=y"], "argument `to` is given twice"),
            (&["=x"], "`=x` is not an argument"),
            (&["to:=x"], "argument `to` is not JSON"),
        ] {
            let problem = read(flags).unwrap_err();
            assert!(problem.text().contains(text), "{flags:?}: {problem}");
            assert_eq!(problem.exit_code(), Exit::Usage, "{flags:?}");
        }
    }

    #[test]
    fn a_name_that_is_nearly_right_is_suggested() {
        let names = ["http.request", "noop", "sleep"];
        assert_eq!(nearest("htp.request", names.into_iter()), Some("http.request"));
        assert_eq!(nearest("no", names.into_iter()), Some("noop"));
        assert_eq!(nearest("x", names.into_iter()), None);
    }
}
