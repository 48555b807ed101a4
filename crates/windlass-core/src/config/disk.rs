//! Reads what [`Sources`] is made of: the file, `.env` and the environment of this process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::problem::{Origin, Problem};
use super::{CONFIG_VARIABLE, FILE_BYTES_MAX, Sources, VARIABLE_PREFIX, dotenv};

/// The name of the configuration file.
const FILE_NAME: &str = "windlass.toml";
/// The name of the file with more variables.
const DOTENV_NAME: &str = ".env";

impl Sources {
    /// What this process finds: the environment, `.env` in the working directory and the configuration file.
    ///
    /// The file is `config` (from the flag `--config`), else the one that `WINDLASS_CONFIG` names, else the first of
    /// `windlass.toml` in the working directory, in the user's configuration directory (`windlass/windlass.toml` below
    /// `$XDG_CONFIG_HOME`, `~/.config` or `%APPDATA%`) and `/etc/windlass/windlass.toml`. A file that was named must
    /// exist; none at all is fine. What cannot be read is reported by [`Sources::load`].
    pub fn from_disk(config: Option<&Path>) -> Self {
        Self::from_directory(Path::new(""), std::env::vars_os(), config)
    }

    /// The same for another working directory and environment.
    pub(super) fn from_directory(
        directory: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        config: Option<&Path>,
    ) -> Self {
        let mut sources = Self::new().secrets({
            let directory = directory.to_owned();
            move |path| read_limited(&directory.join(path))
        });
        let mut environment = Vec::new();
        for (name, value) in variables {
            // Names of other programs may hold anything.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => environment.push((name, value)),
                Err(_) if name.starts_with(VARIABLE_PREFIX) => {
                    sources.report(Problem::new("", Origin::Environment(name), "is no UTF-8 text: set it again"));
                }
                Err(_) => {}
            }
        }
        let mut of_dotenv = Vec::new();
        match read_limited(&directory.join(DOTENV_NAME)) {
            Ok(content) => {
                if let Ok(text) = std::str::from_utf8(&content) {
                    of_dotenv = dotenv::parse(text).0;
                }
                sources = sources.dotenv(DOTENV_NAME, content);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => sources.report(unreadable(Path::new(DOTENV_NAME), &error)),
        }
        let variable = |wanted: &str| {
            let of_environment = environment.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
            let of_dotenv = || of_dotenv.iter().rfind(|one| one.name == wanted).map(|one| one.value.as_str());
            let is_set = |value: &&str| !value.is_empty();
            of_environment.filter(is_set).or_else(|| of_dotenv().filter(is_set))
        };
        let named = config.map(Path::to_owned).or_else(|| variable(CONFIG_VARIABLE).map(PathBuf::from));
        let (candidates, must_exist) = match named {
            Some(path) => (vec![path], true),
            None => (usual_places(&variable), false),
        };
        for path in candidates {
            match read_limited(&directory.join(&path)) {
                Ok(content) => {
                    sources = sources.file(path.display().to_string(), content);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
                Err(error) => {
                    sources = sources.unreadable_file(unreadable(&path, &error));
                    break;
                }
            }
        }
        sources.environment(environment)
    }
}

/// Where the configuration file is looked for when none was named, the first one wins.
fn usual_places<'v>(variable: &dyn Fn(&str) -> Option<&'v str>) -> Vec<PathBuf> {
    let of_user = if cfg!(windows) {
        variable("APPDATA").map(PathBuf::from)
    } else {
        variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| Path::new(home).join(".config")))
    };
    let mut places = vec![PathBuf::from(FILE_NAME)];
    // A relative directory would make the file depend on where the program was started; the XDG rules say to ignore it.
    places.extend(of_user.filter(|path| path.is_absolute()).map(|path| path.join("windlass").join(FILE_NAME)));
    if cfg!(unix) {
        places.push(Path::new("/etc/windlass").join(FILE_NAME));
    }
    places
}

/// At most one byte more than the limit, so that a file that never ends is noticed and not read.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let origin = Origin::WholeFile(path.display().to_string());
    Problem::new("", origin, format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{only_problem, setting};

    /// A directory that is removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("windlass-config-{}-{name}", std::process::id()));
            for (file, content) in files {
                let file = path.join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, content).unwrap();
            }
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn sources(&self, variables: &[(&str, &str)], config: Option<&str>) -> Sources {
            let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
            Sources::from_directory(&self.0, variables, config.map(Path::new))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_file_is_the_one_that_was_named_or_the_first_in_the_usual_places() {
        let here = Directory::new(
            "places",
            &[
                ("windlass.toml", "store = 'here'"),
                ("flag.toml", "store = 'flag'"),
                ("variable.toml", "store = 'variable'"),
                ("home/.config/windlass/windlass.toml", "store = 'home'"),
                ("xdg/windlass/windlass.toml", "store = 'xdg'"),
            ],
        );
        let store = |sources: Sources| sources.load().unwrap().config.store;
        let named = [("WINDLASS_CONFIG", "variable.toml")];
        assert_eq!(store(here.sources(&named, Some("flag.toml"))), "flag");
        assert_eq!(store(here.sources(&named, None)), "variable");
        assert_eq!(store(here.sources(&[], None)), "here");
        std::fs::remove_file(here.0.join("windlass.toml")).unwrap();
        let (home, xdg) = (here.0.join("home").display().to_string(), here.0.join("xdg").display().to_string());
        if cfg!(unix) {
            assert_eq!(store(here.sources(&[("HOME", &home), ("XDG_CONFIG_HOME", &xdg)], None)), "xdg");
            assert_eq!(store(here.sources(&[("HOME", &home)], None)), "home");
        }
        let problem = only_problem(&here.sources(&[], Some("gone.toml")));
        assert!(problem.starts_with("gone.toml: cannot be read: "), "{problem}");
        let problem = only_problem(&here.sources(&[("WINDLASS_CONFIG", "home")], None));
        assert!(problem.starts_with("home: cannot be read: "), "{problem}");
    }

    #[test]
    fn the_dotenv_file_names_the_file_and_its_secrets_are_read_from_disk() {
        let here = Directory::new(
            "dotenv",
            &[
                (".env", "WINDLASS_CONFIG=other.toml\nWINDLASS_STORE_FILE=secret\n"),
                ("other.toml", "[worker]\nslots = 3"),
                ("secret", "redis://h/1\n"),
            ],
        );
        let loaded = here.sources(&[], None).load().unwrap();
        assert_eq!((loaded.config.worker.slots, loaded.config.store.as_str()), (3, "redis://h/1"));
        assert_eq!(setting(&loaded, "store").1, ".env:2 WINDLASS_STORE_FILE");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_of_ours_that_is_no_text_is_reported_and_others_are_not() {
        use std::os::unix::ffi::OsStringExt;
        let here = Directory::new("bytes", &[]);
        let bytes = || OsString::from_vec(vec![0xff]);
        let variables = [("WINDLASS_STORE".into(), bytes()), ("OTHER".into(), bytes()), (bytes(), "x".into())];
        assert_eq!(
            only_problem(&Sources::from_directory(&here.0, variables, None)),
            "environment WINDLASS_STORE: is no UTF-8 text: set it again"
        );
    }
}
