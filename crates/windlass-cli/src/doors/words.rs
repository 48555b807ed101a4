//! What both doors say, and the values that both command lines know.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::args::Global;
use crate::exit::{Exit, Problem};
use crate::output::Out;
use crate::settings::{self, Override};

/// An option that is known and does nothing here: how it is written, and what is so instead.
pub(super) type Idle = (&'static str, &'static str);

/// The options that were given and do nothing.
pub(super) fn given(options: &[(bool, Idle)]) -> Vec<Idle> {
    options.iter().filter(|(given, _)| *given).map(|(_, idle)| *idle).collect()
}

/// Says once of each option that it does nothing.
pub(super) fn warn_of(out: &Out, idle: &[Idle]) {
    for (option, instead) in idle {
        out.warn(format_args!("{option} has no meaning here: {instead}"));
    }
}

/// The module that is named is not loaded; said when it does not look like this program.
pub(super) fn warn_of_module(out: &Out, option: &str, module: Option<&str>, program: &str) {
    let Some(module) = module else { return };
    let package = module.split(['.', ':']).next().unwrap_or(module);
    if package != program {
        out.warn(format_args!(
            "{option} {module}: no Python is loaded; the tasks are those of this program, `{program}`"
        ));
    }
}

/// A key of the configuration that an option sets.
pub(super) fn set(key: &'static str, flag: &'static str, value: impl fmt::Display) -> Override {
    Override { key, flag, value: value.to_string() }
}

/// A level by the name that Python's `logging` gives it, or by its number, as `log.level` takes it.
pub(super) fn level(text: &str) -> Result<String, String> {
    let word = match text.to_ascii_lowercase().as_str() {
        "debug" | "10" | "trace" | "5" => "debug",
        "info" | "20" => "info",
        "warning" | "warn" | "30" => "warn",
        "error" | "40" => "error",
        "critical" | "fatal" | "50" => "error",
        _ => return Err("it is DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL".to_owned()),
    };
    Ok(word.to_owned())
}

/// Seconds, as Python programs write lengths of time.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "it is a number of seconds from 0 on".to_owned())
}

/// A length of time as the configuration takes it.
pub(super) fn duration(length: Duration) -> String {
    format!("{}ms", length.as_millis())
}

/// Names with commas between them.
pub(super) fn names(text: Option<&str>) -> Vec<String> {
    let parts = text.unwrap_or_default().split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

/// The queues whose tasks a scheduler sends to the broker: those of the option, or of the configuration. None by itself: workers
/// of ours may be at the queue that producers use.
pub(super) fn relay(out: &Out, queues: Option<&str>, global: &Global) -> Result<Option<Override>, Problem> {
    let said = names(queues);
    if !said.is_empty() {
        return Ok(Some(set("relay", "--queues", said.join(","))));
    }
    if !settings::load(&settings::sources(global, []))?.is_set("relay") {
        out.warn(
            "schedules fire into the store, for the workers of this program: name the queues whose tasks are to be sent to the \
             broker with `-Q` or as `relay` in the configuration",
        );
    }
    Ok(None)
}

/// Where the command works, as `--workdir` says.
pub(super) fn go_to(folder: Option<&Path>) -> Result<(), Problem> {
    let Some(folder) = folder else { return Ok(()) };
    std::env::set_current_dir(folder).map_err(|error| {
        Problem::new(
            Exit::Usage,
            format_args!("the folder `{}` cannot be entered: {error}", folder.display()),
            "name one that is there",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_times_of_python_programs_are_read() {
        assert_eq!((level("WARNING").as_deref(), level("40").as_deref()), (Ok("warn"), Ok("error")));
        level("loud").unwrap_err();
        assert_eq!((seconds("1.5"), seconds("0")), (Ok(Duration::from_millis(1_500)), Ok(Duration::ZERO)));
        for wrong in ["-1", "soon", "nan", "inf"] {
            seconds(wrong).expect_err(wrong);
        }
        assert_eq!(duration(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(names(Some("a, b,,c")), ["a", "b", "c"]);
    }
}
