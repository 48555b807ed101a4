//! `windlass config`: what the configuration is, where each value comes from, and what is wrong with it.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;
use windlass::config::{Exposure, KEYS, Origin, Preset};

use crate::args::Global;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::{Cell, Column, Listing, Row, Tone};
use crate::settings;

/// Show, check and begin the configuration
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass config show --origin
  windlass config check --config /etc/windlass/windlass.toml
  windlass config init")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Show every key and its value
    #[command(after_help = "\
EXAMPLES
  windlass config show
  windlass config show --origin
  windlass config show worker.slots -o id
  WINDLASS_WORKER__SLOTS=32 windlass config show --origin --json")]
    Show {
        /// Only these keys, or sections
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// Also say where each value comes from, and what the key means
        #[arg(long)]
        origin: bool,
    },
    /// Report every problem of the configuration at once
    #[command(after_help = "\
EXAMPLES
  windlass config check
  windlass config check --config staging.toml --profile staging")]
    Check,
    /// Write a configuration file with every key, its meaning and its default
    #[command(after_help = "\
EXAMPLES
  windlass config init
  windlass config init /etc/windlass/windlass.toml
  windlass config init -                          to standard output")]
    Init {
        /// Where; - is standard output
        #[arg(value_name = "FILE", default_value = "windlass.toml")]
        file: PathBuf,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Print the path of the configuration file that is used
    #[command(after_help = "\
EXAMPLES
  windlass config path
  windlass config path --config other.toml")]
    Path,
}

const COLUMNS: &[Column] = &[Column::new("KEY"), Column::new("VALUE").stretch()];
const COLUMNS_WITH_ORIGIN: &[Column] =
    &[Column::new("KEY"), Column::new("VALUE").stretch(), Column::new("FROM"), Column::new("MEANING").stretch()];

pub(crate) fn run(global: &Global, args: Args) -> Outcome {
    match args.command {
        Command::Show { keys, origin } => show(global, &keys, origin),
        Command::Check => check(global),
        Command::Init { file, force } => init(global, &file, force),
        Command::Path => path(global),
    }
}

fn show(global: &Global, keys: &[String], origin: bool) -> Outcome {
    let out = super::out(global)?;
    let loaded = settings::load(&settings::sources(global, []))?;
    let wanted = |name: &str| {
        keys.is_empty()
            || keys.iter().any(|key| name == key || name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    };
    let rows: Vec<Row> = loaded
        .origins()
        .iter()
        .filter(|setting| wanted(setting.info.name))
        .map(|setting| {
            let from = setting.origin.to_string();
            let value = match &setting.value {
                Some(value) => Cell::from(value.clone()),
                None => Cell::toned("-", Tone::Dim),
            };
            let tone = if setting.origin == Origin::BuiltIn { Tone::Dim } else { Tone::Good };
            let mut cells = vec![Cell::from(setting.info.name), value];
            if origin {
                cells.extend([Cell::toned(&from, tone), Cell::toned(setting.info.doc, Tone::Dim)]);
            }
            let mut json = json!({"key": setting.info.name, "value": setting.value});
            if origin {
                json["origin"] = from.into();
                json["doc"] = setting.info.doc.into();
                json["variable"] = setting.info.variable().into();
            }
            Row { id: setting.value.clone().unwrap_or_default(), cells, json }
        })
        .collect();
    if rows.is_empty() {
        let names = KEYS.iter().map(|key| key.info().name);
        let next = match crate::task_args::nearest(&keys[0], names) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "`windlass config show` lists all keys".to_owned(),
        };
        return Err(Problem::new(Exit::NotFound, format_args!("there is no key `{}`", keys.join("`, `")), next));
    }
    let columns = if origin { COLUMNS_WITH_ORIGIN } else { COLUMNS };
    out.listing(&Listing::whole("settings", columns, "", rows))
}

fn check(global: &Global) -> Outcome {
    let out = super::out(global)?;
    let sources = settings::sources(global, []);
    match sources.load() {
        Ok(mut loaded) => {
            settings::follow_bridge(&mut loaded)?;
            let set = loaded.origins().iter().filter(|setting| setting.origin != Origin::BuiltIn).count();
            let json = json!({"valid": true, "problems": []});
            out.object("valid", json, || format!("the configuration is valid; {set} keys are set\n"))
        }
        Err(errors) if out.is_json() => {
            let problems: Vec<_> = errors
                .problems()
                .iter()
                .map(|one| json!({"key": one.key, "origin": one.origin.to_string(), "message": one.message}))
                .collect();
            out.object("invalid", json!({"valid": false, "problems": problems}), String::new)?;
            Ok(Exit::Usage)
        }
        Err(_) => settings::load(&sources).map(|_| Exit::Ok),
    }
}

fn init(global: &Global, file: &std::path::Path, force: bool) -> Outcome {
    let out = super::out(global)?;
    let text = template();
    if file.as_os_str() == "-" {
        out.line(text.trim_end())?;
        return Ok(Exit::Ok);
    }
    let mut options = std::fs::OpenOptions::new();
    let options = if force { options.create(true).truncate(true) } else { options.create_new(true) };
    let shown = file.display();
    let written =
        options.write(true).open(file).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Problem::new(
                Exit::Conflict,
                format_args!("`{shown}` is there already"),
                "replace it with `--force`, or name another file",
            ));
        }
        Err(error) => {
            return Err(Problem::new(
                Exit::Failed,
                format_args!("`{shown}` cannot be written: {error}"),
                "name a file in a folder that is there and may be written, or `-` for standard output",
            ));
        }
    }
    out.say(format_args!("wrote {shown}; every key in it is a comment until you remove its #"));
    Ok(Exit::Ok)
}

/// A file with every key as a comment.
fn template() -> String {
    let mut text = String::from(
        "# The configuration of Windlass. Every key is at its default; remove the # to change one.\n\
         # ${VAR}, ${VAR:-default} and ${VAR:?message} stand for variables of the environment.\n",
    );
    let mut section = "";
    for key in KEYS {
        let info = key.info();
        let (of_key, name) = info.name.rsplit_once('.').unwrap_or(("", info.name));
        if of_key != section {
            section = of_key;
            // Writing to a string cannot fail.
            let _ = write!(text, "\n[{section}]\n");
        }
        let value = match info.preset {
            Preset::Unset => String::new(),
            Preset::Text(value) => value.to_owned(),
            Preset::Machine { text, .. } => text(),
        };
        let bare = value.parse::<u64>().is_ok() || value == "true" || value == "false";
        let value = if bare { value } else { serde_json::Value::from(value).to_string() };
        let secret = match info.exposure {
            Exposure::Plain => "",
            Exposure::Url => " May hold a password: use a variable.",
            Exposure::Secret => " A secret: use a variable, or a file with the suffix _file.",
        };
        let rule = match info.preset {
            Preset::Machine { rule, .. } => format!(" Default: {rule}."),
            Preset::Unset | Preset::Text(_) => String::new(),
        };
        let _ = write!(text, "\n# {}{rule}{secret}\n# {name} = {value}\n", info.doc);
    }
    text
}

fn path(global: &Global) -> Outcome {
    let out = super::out(global)?;
    let file = settings::file(global);
    match file {
        Some(shown) => {
            let json = json!({"path": shown});
            out.object(&shown, json, || format!("{shown}\n"))
        }
        None => Err(Problem::new(
            Exit::NotFound,
            "there is no configuration file: the defaults, `.env` and the environment are used",
            "begin one with `windlass config init`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass::config::Sources;

    #[test]
    fn the_file_that_init_writes_is_valid_with_and_without_its_marks() {
        let text = template();
        Sources::new().file("windlass.toml", &text).load().expect("comments only");
        // The node's name and the signing key have no default: an empty one is refused, as it should be.
        let filled: Vec<&str> = text
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") && !rest.ends_with("\"\"")).unwrap_or(line)
            })
            .collect();
        Sources::new().file("windlass.toml", filled.join("\n")).load().expect("the defaults are within their limits");
    }
}
