//! The sources together: who wins, what is refused, and that everything is reported at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::time::{duration, format_duration};

fn problems(sources: &Sources) -> Vec<String> {
    match sources.load() {
        Ok(loaded) => panic!("this configuration should not load: {:?}", loaded.config),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn only_problem(sources: &Sources) -> String {
    let mut all = problems(sources);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

fn file(text: &str) -> Sources {
    Sources::new().file("windlass.toml", text)
}

pub(super) fn setting(loaded: &Loaded, key: &str) -> (Option<String>, String) {
    let setting = loaded.origins().iter().find(|setting| setting.info.name == key).expect("a key of the table");
    (setting.value.clone(), setting.origin.to_string())
}

/// A value other than the default that the key accepts.
fn example(key: &Key<Config>) -> &'static str {
    match key.info().name {
        "store" | "bridge" => "postgres://user:hunter2@db/app",
        "relay" => "reports,mail",
        "worker.queues" => "email=3,default",
        "worker.node" => "web-1",
        "worker.listen" => "127.0.0.1:9100",
        "log.level" => "warn,windlass_core=debug",
        "log.format" => "json",
        "tasks.http.user_agent" => "courier/2 (mail)",
        "tasks.http.signing_key" => "hunter2",
        "tasks.http.max_response_bytes" => "2MiB",
        "worker.recycle_memory" | "worker.memory_max" => "400MiB",
        "worker.slots" | "worker.threads" | "worker.processes" | "worker.recycle_tasks" | "retention.finished_max" => {
            "77"
        }
        _ if key.shape() == "true or false" => "true",
        _ => "1m17s",
    }
}

#[test]
fn without_any_source_there_are_the_defaults() {
    let config = Config::default();
    assert_eq!(config.store, "sqlite:windlass.db");
    assert_eq!(config.worker.queues, [QueueName::default()]);
    assert!(config.worker.weights.is_empty());
    assert!((16..=1000).contains(&config.worker.slots));
    assert!(config.worker.threads >= 1);
    assert_eq!(config.worker.lease, duration("30s"));
    assert_eq!(config.worker.grace, duration("25s"));
    assert_eq!(config.worker.cancel_grace, duration("10s"));
    assert_eq!(config.worker.node, None);
    assert!(!config.worker.schedules);
    assert_eq!(config.worker.listen, None);
    assert_eq!((config.worker.processes, config.worker.recycle_tasks), (0, 0));
    assert_eq!((config.worker.recycle_memory, config.worker.memory_max), (None, None));
    assert_eq!(config.client.deadline, duration("5s"));
    assert_eq!(config.retention, Retention::default());
    assert_eq!(config.log, LogConfig { level: "info".to_owned(), format: LogFormat::Auto });
    assert!(!config.tasks.shell && !config.tasks.http.allow_private);
    assert_eq!(config.tasks.http.timeout, duration("30s"));
    assert_eq!(config.tasks.http.max_response_bytes, 1024 * 1024);
    assert_eq!(config.tasks.http.signing_key, None);
    assert_eq!(config.sqlite, FileStoreConfig { busy_timeout: duration("5s"), allow_network_fs: false });
}

#[test]
fn every_key_is_set_by_every_layer_and_says_where_it_came_from() {
    let defaults = Sources::new().load().unwrap();
    for key in KEYS {
        let (name, variable, value) = (key.info().name, key.info().variable(), example(key));
        let line = format!("{name} = \"{value}\"");
        for (sources, origin) in [
            (file(&line), "windlass.toml:1".to_owned()),
            (file(&format!("[profile.prod]\n{line}")).profile("prod"), "windlass.toml:2 (profile prod)".to_owned()),
            (Sources::new().dotenv(".env", format!("\n{variable}='{value}'")), format!(".env:2 {variable}")),
            (Sources::new().environment([(&variable, value)]), format!("environment {variable}")),
            (Sources::new().flag(name, "--this", value), "flag --this".to_owned()),
        ] {
            let loaded = sources.load().unwrap_or_else(|errors| panic!("{name}: {errors}"));
            assert_ne!(loaded.config, defaults.config, "{name} from {origin} changes nothing");
            let shown = match key.info().exposure {
                Exposure::Plain => value,
                Exposure::Url => "postgres://***@db/app",
                Exposure::Secret => "***",
            };
            assert_eq!(setting(&loaded, name), (Some(shown.to_owned()), origin));
            assert!(!format!("{loaded:?} {sources:?}").contains("hunter2"), "{name} is shown");
        }
        assert_eq!(setting(&defaults, name).1, "built-in default");
    }
}

#[test]
fn every_key_is_documented_and_its_default_is_within_its_limits() {
    for key in KEYS {
        let info = key.info();
        assert!(info.doc.ends_with('.') && info.doc.len() > 20, "{}", info.name);
        assert_eq!(info.name, info.name.to_ascii_lowercase());
    }
    let loaded = Sources::new().load().unwrap();
    let names: Vec<_> = loaded.origins().iter().map(|setting| setting.info.name).collect();
    assert_eq!(names, KEYS.iter().map(|key| key.info().name).collect::<Vec<_>>());
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
}

#[test]
fn the_documentation_lists_every_key() {
    let row = |key: &Key<Config>| {
        let info = key.info();
        let default = match info.preset {
            Preset::Unset => "not set".to_owned(),
            Preset::Text(text) => format!("`{text}`"),
            Preset::Machine { rule, .. } => rule.to_owned(),
        };
        format!("| `{}` | {default} | {} | {} |\n", info.name, key.shape(), info.doc)
    };
    let table: String = KEYS.iter().map(row).collect();
    let documentation = include_str!("../../../../docs/configuration.md");
    assert!(documentation.contains(&table), "docs/configuration.md should hold these rows:\n{table}");
}

proptest! {
    #[test]
    fn the_highest_layer_that_sets_a_key_wins(set in proptest::array::uniform5(any::<bool>())) {
        let [in_file, in_profile, in_dotenv, in_environment, in_flag] = set;
        let line = |set: bool, text: &str| if set { format!("{text}\n") } else { String::new() };
        let toml = format!(
            "[worker]\n{}[profile.p.worker]\n{}",
            line(in_file, "slots = 1"),
            line(in_profile, "slots = 2"),
        );
        let mut sources = file(&toml).profile("p").dotenv(".env", line(in_dotenv, "WINDLASS_WORKER__SLOTS=3"));
        if in_environment {
            sources = sources.environment([("WINDLASS_WORKER__SLOTS", "4")]);
        }
        if in_flag {
            sources = sources.flag("worker.slots", "--slots", "5");
        }
        let expected = set.iter().rposition(|set| *set).map_or(Config::default().worker.slots, |layer| layer + 1);
        prop_assert_eq!(sources.load().unwrap().config.worker.slots, expected);
    }

    #[test]
    fn no_file_makes_it_panic(content in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]a-z.=\"'${}\n#0-9,: -]{0,120}") {
        let _ = Sources::new().file("a.toml", &content).dotenv(".env", &content).load();
        let _ = file(&text).dotenv(".env", &text).environment([("WINDLASS_STORE", &text)]).load();
        let _ = file(&format!("store = '''{text}'''")).load();
    }

    #[test]
    fn a_duration_set_in_the_file_is_the_one_that_is_used(millis in 3_000_u64..86_400_000) {
        let lease = Duration::from_millis(millis);
        let loaded = file(&format!("[worker]\nlease = \"{}\"", format_duration(lease))).load().unwrap();
        prop_assert_eq!(loaded.config.worker.lease, lease);
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let toml = r#"
store = 5
colour = "red"
[worker]
slots = 0
lease = 30
queues = ["two words", "default"]
[worker.nested]
deep = 1
[log]
level = "loud"
format = "xml"
[tasks]
shell = "maybe"
http = 3
[client]
deadline = "${DEADLINE:?ask the network team}"
[retention]
dead = 2026-11-24
[workers]
slots = 4
"#;
    let sources = file(toml)
        .dotenv(".env", "WINDLASS_LOG_LEVEL=debug\nnonsense\n")
        .environment([("WINDLASS_WORKER__THREADS", "many"), ("WINDLASS_SLOTS", "8")])
        .flag("worker.grace", "--grace", "48h")
        .flag("worker.gras", "--set", "1s")
        .profile("prod");
    let expected = [
        "windlass.toml:3: colour: is unknown: remove it, or see `windlass config show` for all keys",
        "windlass.toml:8: worker.nested: is unknown: remove it, or see `windlass config show` for all keys",
        "windlass.toml:15: tasks.http: is a section: write [tasks.http] above its keys",
        "windlass.toml:20: workers: is unknown: did you mean `worker`?",
        "flag --profile: there is no profile `prod`: write [profile.NAME] in windlass.toml",
        ".env:2: has no `=`: write NAME=value, or # in front of a comment",
        ".env:1 WINDLASS_LOG_LEVEL: is unknown: did you mean WINDLASS_LOG__LEVEL?",
        "environment WINDLASS_SLOTS: is unknown: did you mean WINDLASS_WORKER__SLOTS?",
        "flag --set: worker.gras: is unknown: did you mean `worker.grace`?",
        "windlass.toml:2: store: `5` is no text: put it in quotes; write the URL of a store, or the path of a file",
        "windlass.toml:7: worker.queues: invalid queue name `two words`: 1 to 255 visible ASCII characters without spaces; \
         write names of queues, each with `=WEIGHT` (1 to 100) if you like",
        "windlass.toml:5: worker.slots: `0` is out of range: write a whole number from 1 to 1000",
        "environment WINDLASS_WORKER__THREADS: worker.threads: `many` does not fit: write a whole number from 1 to 512",
        "windlass.toml:6: worker.lease: `30` has no unit: write a duration from 3s to 1d, such as 30s, 5m or 1h30m",
        "flag --grace: worker.grace: `48h` is out of range: write a duration from 0s to 1d, such as 30s, 5m or 1h30m",
        "windlass.toml:17: client.deadline: variable DEADLINE is required: ask the network team",
        "windlass.toml:19: retention.dead: a date does not fit: write a duration from 0s to 3650d, such as 30s, 5m or \
         1h30m",
        "windlass.toml:11: log.level: `loud` is no level; write trace, debug, info, warn, error or off, or part=level \
         with commas",
        "windlass.toml:12: log.format: `xml` does not fit: write one of auto, pretty, json",
        "windlass.toml:14: tasks.shell: `maybe` does not fit: write true or false",
    ];
    assert_eq!(sources.load().unwrap_err().to_string(), expected.join("\n"));
}

#[test]
fn a_file_that_is_no_toml_is_reported_line_by_line_and_nothing_else_of_it() {
    let sources =
        file("store = \nslot = 4\nlease = 3 3\n[worker\nslots = 1\n").environment([("WINDLASS_CLIENT__DEADLINE", "5")]);
    let all = problems(&sources);
    let origins: Vec<_> = all.iter().map(|problem| problem.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(
        origins,
        ["windlass.toml:1", "windlass.toml:3", "windlass.toml:4", "environment WINDLASS_CLIENT__DEADLINE"],
        "{all:#?}"
    );
}

#[test]
fn a_profile_of_a_broken_file_is_not_reported_missing() {
    assert!(only_problem(&file("store = ").profile("prod")).contains("is no TOML"));
    assert!(only_problem(&Sources::new().file("a.toml", b"\xff").profile("prod")).contains("is no UTF-8"));
}

#[test]
fn values_are_typed_as_people_write_them() {
    type Check = fn(&Config) -> bool;
    let cases: [(&str, &str, Check); 21] = [
        ("worker.slots", "\"12\"", |config| config.worker.slots == 12),
        ("worker.slots", "1_000", |config| config.worker.slots == 1000),
        ("worker.slots", "0x10", |config| config.worker.slots == 16),
        ("worker.concurrency", "9", |config| config.worker.slots == 9),
        ("worker.schedules", "true", |config| config.worker.schedules),
        ("worker.schedules", "\"Yes\"", |config| config.worker.schedules),
        ("worker.schedules", "\"0\"", |config| !config.worker.schedules),
        ("worker.lease", "\"1h30m\"", |config| config.worker.lease == duration("90m")),
        ("worker.grace", "\"0s\"", |config| config.worker.grace.is_zero()),
        ("tasks.http.max_response_bytes", "4096", |config| config.tasks.http.max_response_bytes == 4096),
        ("tasks.http.max_response_bytes", "\"2 mib\"", |config| config.tasks.http.max_response_bytes == 2 << 20),
        ("tasks.http.max_response_bytes", "\"64kB\"", |config| config.tasks.http.max_response_bytes == 64_000),
        ("log.level", "\"WARNING\"", |config| config.log.level == "warn"),
        ("log.level", "\"info, a::b=Trace\"", |config| config.log.level == "info,a::b=trace"),
        ("log.format", "\"JSON\"", |config| config.log.format == LogFormat::Json),
        ("worker.queues", "\"a, b ,\"", |config| config.worker.queues.len() == 2),
        ("worker.queues", "[\"a\", \"b,c\"]", |config| config.worker.queues[1].as_str() == "b,c"),
        ("worker.queues", "[\"a=3\", \"b\"]", |config| config.worker.weights[&QueueName::known("a")] == 3),
        ("worker.queues", "{ a = 3, b = 1 }", |config| config.worker.weights.len() == 2),
        ("worker.queues", "\"a=b\"", |config| config.worker.queues[0].as_str() == "a=b"),
        ("store", "\"  tasks.db \"", |config| config.store == "tasks.db"),
    ];
    for (key, value, holds) in cases {
        let loaded = file(&format!("{key} = {value}")).load().unwrap_or_else(|errors| panic!("{errors}"));
        assert!(holds(&loaded.config), "{key} = {value}: {:?}", loaded.config);
    }
}

#[test]
fn values_that_do_not_fit_are_refused_in_plain_words() {
    for (key, value, part) in [
        ("worker.slots", "1001", "`1001` is out of range"),
        ("worker.slots", "-1", "`-1` is out of range"),
        ("worker.slots", "1.5", "`1.5` does not fit"),
        ("worker.slots", "99999999999999999999999999999999999999999999", "is out of range"),
        ("worker.slots", "0xffffffffffffffffffffffffffffffffffff", "does not fit"),
        ("worker.slots", "true", "`true` does not fit"),
        ("worker.slots", "[1]", "a list does not fit"),
        ("worker.slots", "\"\"", "is empty: write a whole number"),
        ("worker.lease", "\"2s\"", "`2s` is out of range: write a duration from 3s to 1d"),
        ("worker.lease", "\"25h\"", "`25h` is out of range"),
        ("worker.lease", "\"half an hour\"", "`half an hour` does not fit"),
        ("worker.lease", "\"99999999999999999999d\"", "does not fit"),
        ("worker.schedules", "1", "`1` does not fit: write true or false"),
        ("worker.node", "\"two words\"", "invalid node name `two words`"),
        ("worker.queues", "[]", "is empty: write names of queues"),
        ("worker.queues", "\" , \"", "is empty: write names of queues"),
        ("worker.queues", "[[\"a\"]]", "a list of something other than texts and numbers does not fit"),
        ("worker.queues", "\"a,b,a\"", "queue `a` is named twice"),
        ("relay", "\"a,b,a\"", "queue `a` is named twice"),
        ("relay", "\"a=3\"", "what is relayed has no weight"),
        ("worker.queues", "\"a=0\"", "a weight is out of range"),
        ("worker.queues", "\"a=101\"", "a weight is out of range"),
        ("worker.queues", "{ a = { b = 1 } }", "a section does not fit"),
        ("log.level", "\"info,=debug\"", "`` is no part of a program"),
        ("tasks.http.max_response_bytes", "\"1TiB\"", "`1TiB` does not fit: write a size from 1KiB to 64MiB"),
        ("tasks.http.max_response_bytes", "\"99999999999GiB\"", "is out of range"),
        ("tasks.http.user_agent", "\"gr\u{fc}n\"", "a header cannot carry"),
        ("store", "\"a\\nb\"", "`a\\nb` does not fit"),
        ("store", "[\"a\"]", "a list does not fit: write the URL"),
        ("worker", "5", "is a section: write [worker] above its keys"),
        ("profile", "\"prod\"", "is a section: write [profile.NAME]"),
    ] {
        let problem = only_problem(&file(&format!("\n{key} = {value}")));
        assert!(problem.starts_with(&format!("windlass.toml:2: {key}: ")) && problem.contains(part), "{problem}");
    }
}

#[test]
fn variables_are_put_in_before_typing_and_only_in_the_file() {
    let sources =
        file("store = \"redis://${HOST}:${PORT:-6379}/0\"\n[worker]\nslots = \"${SLOTS}\"\nqueues = [\"${Q}\"]\n")
            .dotenv(".env", "HOST=from-dotenv\nSLOTS=12")
            .environment([
                ("HOST", "from-environment"),
                ("Q", "mail"),
                ("WINDLASS_TASKS__HTTP__USER_AGENT", "a ${HOST} $$"),
            ]);
    let config = sources.load().unwrap().config;
    assert_eq!(config.store, "redis://from-environment:6379/0");
    assert_eq!(config.worker.slots, 12);
    assert_eq!(config.worker.queues, [QueueName::known("mail")]);
    assert_eq!(config.tasks.http.user_agent, "a ${HOST} $$");

    assert_eq!(
        only_problem(&file("[worker]\nslots = \"${SLOTS}\"")),
        "windlass.toml:2: worker.slots: variable SLOTS is not set: set it, or write ${SLOTS:-default}"
    );
}

#[test]
fn a_layer_that_loses_is_not_read() {
    let sources = file("store = \"${MISSING}\"\n[profile.dev]\nstore = \"dev.db\"").profile("dev");
    assert_eq!(sources.load().unwrap().config.store, "dev.db");
}

#[test]
fn a_profile_is_chosen_by_flag_then_environment_then_dotenv() {
    let toml = "store = \"base\"\n[profile.a]\nstore = \"a\"\n[profile.b]\nstore = \"b\"\n[profile.c]\nstore = \"c\"\n";
    let store = |sources: Sources| sources.load().unwrap().config.store;
    let in_dotenv = || file(toml).dotenv(".env", "WINDLASS_PROFILE=c");
    assert_eq!(store(file(toml)), "base");
    assert_eq!(store(in_dotenv()), "c");
    assert_eq!(store(in_dotenv().environment([("WINDLASS_PROFILE", "")])), "c");
    assert_eq!(store(in_dotenv().environment([("WINDLASS_PROFILE", "b")])), "b");
    assert_eq!(store(in_dotenv().environment([("WINDLASS_PROFILE", "b")]).profile("a")), "a");
    assert_eq!(
        only_problem(&file(toml).environment([("WINDLASS_PROFILE", "d")])),
        "environment WINDLASS_PROFILE: there is no profile `d`: windlass.toml has `a`, `b`, `c`"
    );
    assert_eq!(
        only_problem(&Sources::new().profile("d")),
        "flag --profile: there is no profile `d`: no configuration file was found"
    );
}

#[test]
fn profiles_that_are_not_chosen_are_checked_for_unknown_keys_too() {
    assert_eq!(
        only_problem(&file("[profile.prod.worker]\nslot = 4")),
        "windlass.toml:2 (profile prod): worker.slot: is unknown: did you mean `worker.slots`?"
    );
    assert_eq!(only_problem(&file("[profile]\nprod = 1")), "windlass.toml:2: profile.prod: is a section, not a value");
}

#[test]
fn an_alias_gives_way_to_the_own_name() {
    let level = |variables: &[(&str, &str)]| {
        Sources::new().environment(variables.iter().copied()).load().unwrap().config.log.level
    };
    assert_eq!(level(&[("LOG_LEVEL", "ERROR")]), "error");
    assert_eq!(level(&[("LOG_LEVEL", "error"), ("WINDLASS_LOG__LEVEL", "debug")]), "debug");
    assert_eq!(
        only_problem(&file("[worker]\nconcurrency = 4\nslots = 5")),
        "windlass.toml:3: worker.slots: is also set at windlass.toml:2: keep one"
    );
}

#[test]
fn an_empty_variable_is_not_set() {
    let loaded = Sources::new().environment([("WINDLASS_STORE", ""), ("WINDLASS_WORKER__NODE", " ")]).load().unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(setting(&loaded, "worker.node"), (None, "built-in default".to_owned()));
}

#[test]
fn a_secret_is_read_from_the_file_that_is_named() {
    let with_secrets = |sources: Sources| {
        sources.secrets(|path: &Path| match path.to_str() {
            Some("/run/secrets/key") => Ok(b"  hunter2\n".to_vec()),
            Some("/run/secrets/url") => Ok(b"redis://u:hunter2@h/0".to_vec()),
            Some("/empty") => Ok(b" \n".to_vec()),
            Some("/binary") => Ok(vec![b'\n', 0xff]),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
    };
    let key = "tasks.http.signing_key";
    for (sources, origin) in [
        (file("tasks.http.signing_key_file = \"${DIR:-/run}/secrets/key\""), "windlass.toml:1"),
        (
            Sources::new().environment([("WINDLASS_TASKS__HTTP__SIGNING_KEY_FILE", "/run/secrets/key")]),
            "environment WINDLASS_TASKS__HTTP__SIGNING_KEY_FILE",
        ),
    ] {
        let loaded = with_secrets(sources).load().unwrap();
        assert_eq!(loaded.config.tasks.http.signing_key, Some(Secret::new("hunter2".to_owned())));
        assert_eq!(setting(&loaded, key), (Some("***".to_owned()), origin.to_owned()));
    }
    let loaded =
        with_secrets(Sources::new().environment([("WINDLASS_STORE_FILE", "/run/secrets/url")])).load().unwrap();
    assert_eq!(loaded.config.store, "redis://u:hunter2@h/0");
    assert_eq!(setting(&loaded, "store").0.as_deref(), Some("redis://***@h/0"));

    for (line, part) in [
        ("signing_key_file = \"/gone\"", "failed to read `/gone`: "),
        ("signing_key_file = \"/empty\"", "`/empty` is empty: write the value into it"),
        ("signing_key_file = \"/binary\"", "`/binary` is no UTF-8 text, from line 2 on"),
        ("signing_key_file = 5", "is no path"),
        ("signing_key = 5", "the value does not fit: write text"),
        (
            "signing_key = \"hunter2\"\nsigning_key_file = \"/run/secrets/key\"",
            "is also set at windlass.toml:2: keep one",
        ),
    ] {
        let problem = only_problem(&with_secrets(file(&format!("[tasks.http]\n{line}"))));
        assert!(problem.contains(part) && !problem.contains("hunter2"), "{problem}");
    }
    let both = [("WINDLASS_STORE", "a.db"), ("WINDLASS_STORE_FILE", "/run/secrets/url")];
    assert_eq!(
        only_problem(&with_secrets(Sources::new().environment(both))),
        "environment WINDLASS_STORE_FILE: contradicts environment WINDLASS_STORE: keep one"
    );
    assert!(only_problem(&file("store_file = \"/etc/passwd\"")).contains("are not read here"));
}

#[test]
fn a_problem_never_shows_a_secret() {
    let control = "hunter2\u{1}";
    for sources in [
        Sources::new().environment([("WINDLASS_TASKS__HTTP__SIGNING_KEY", control)]),
        Sources::new().environment([("WINDLASS_STORE", format!("redis://user:{control}@host/0"))]),
        Sources::new().dotenv(".env", "hunter2"),
        Sources::new().dotenv(".env", "WINDLASS_STORE='hunter2"),
    ] {
        let problem = only_problem(&sources);
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}

#[test]
fn hostile_files_are_refused_in_words() {
    let large = " ".repeat(10 * 1024 * 1024);
    assert_eq!(only_problem(&file(&large)), "windlass.toml: is larger than 1 MiB: that is no configuration");
    assert!(file(&" ".repeat(FILE_BYTES_MAX)).load().is_ok());
    assert_eq!(
        only_problem(&Sources::new().file("windlass.toml", b"store = 'a'\n# \xff")),
        "windlass.toml: is no UTF-8 text, from line 2 on: save it as UTF-8"
    );
    assert!(
        only_problem(&file(&format!("store = \"{}\"", "x".repeat(VALUE_BYTES_MAX + 1)))).contains("longer than 64 KiB")
    );
    for deep in [
        format!("store = {}", "[".repeat(100_000)),
        format!("{} = 1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["worker"; 100_000].join(".")),
        "[a]\n".repeat(10_000),
        "x = ${\n".repeat(50_000),
    ] {
        let errors = file(&deep).load().unwrap_err();
        assert!(errors.to_string().len() < 20_000, "{} bytes", errors.to_string().len());
    }
    let many = (0..60).map(|at| format!("colour{at} = 1")).collect::<Vec<_>>().join("\n");
    assert!(file(&many).load().unwrap_err().to_string().ends_with("\nand 10 more"));
    let long_name = only_problem(&file(&format!("\"{}\\u001b\" = 1", "x".repeat(100_000))));
    assert!(long_name.len() < 300, "{long_name}");
}

#[test]
fn an_application_adds_a_table_of_its_own() {
    #[derive(Debug, Default)]
    struct Courier {
        port: u16,
        relay: String,
    }
    let keys = [
        Key::<Courier>::new(
            "courier.port",
            "The port that mail is taken on.",
            Kind::Count { min: 1, max: 65_535, set: |courier, port| courier.port = port as u16 },
        )
        .preset("2525")
        .aliases(&[Alias::Variable { name: "SMTP_PORT", reason: "what its predecessor called it" }]),
        Key::<Courier>::new(
            "courier.relay",
            "Where mail is handed on to.",
            Kind::Text { shape: "the name of a host", set: |courier, relay| courier.relay = relay },
        ),
    ];
    let sources = file("[courier]\nrelay = \"mx.example\"\n[worker]\nslots = 3").environment([("SMTP_PORT", "26")]);
    let (loaded, courier) = sources.load_with(Courier::default(), &keys).unwrap();
    assert_eq!((courier.port, courier.relay.as_str(), loaded.config.worker.slots), (26, "mx.example", 3));
    assert_eq!(setting(&loaded, "courier.port"), (Some("26".to_owned()), "environment SMTP_PORT".to_owned()));

    let errors = file("[courier]\nrelays = 1\nport = 0").load_with(Courier::default(), &keys).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "windlass.toml:2: courier.relays: is unknown: did you mean `courier.relay`?\n\
         windlass.toml:3: courier.port: `0` is out of range: write a whole number from 1 to 65535"
    );
}

#[test]
fn a_rule_of_the_caller_is_reported_with_everything_else() {
    let sources = file("bridge = \"nowhere\"\n[worker]\nlease = 30")
        .rule("bridge", |url| if url.contains("://") { Ok(()) } else { Err(format!("`{url}` leads nowhere")) });
    let errors = sources.load().unwrap_err().to_string();
    assert!(errors.contains("windlass.toml:1: bridge: `nowhere` leads nowhere"), "{errors}");
    assert!(errors.contains("worker.lease"), "{errors}");
}

#[test]
fn what_follows_from_another_key_gives_way_to_whoever_sets_it() {
    let mut loaded = Sources::new().load().unwrap();
    loaded.store_follows("bridge", "redis://:hunter2@host");
    loaded.queue_follows("bridge", QueueName::known("mail"));
    assert_eq!(setting(&loaded, "store"), (Some("redis://***@host".to_owned()), "follows from bridge".to_owned()));
    assert_eq!(
        (loaded.config.store.as_str(), &loaded.config.worker.queues[..]),
        ("redis://:hunter2@host", &[QueueName::known("mail")][..])
    );

    let mut loaded = file("store = \"own.db\"\n[worker]\nqueues = \"own\"").load().unwrap();
    loaded.store_follows("bridge", "redis://host");
    loaded.queue_follows("bridge", QueueName::known("mail"));
    assert_eq!(
        (loaded.config.store.as_str(), &loaded.config.worker.queues[..]),
        ("own.db", &[QueueName::known("own")][..])
    );
    assert!(loaded.is_set("store") && !loaded.is_set("bridge"));
}
