//! Which crate may know which: the walls of the house.
//!
//! The two tables below are the rule; everything else is a walk over `cargo metadata`.

use crate::finding::Finding;
use crate::metadata::{Dependency, DependencyKind, Metadata, Package};

/// What a crate is for. The role decides what it may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `derive(Task)`.
    Macros,
    /// The engine.
    Core,
    /// A store or a transport: one protocol.
    Driver,
    /// Foreign formats as pure codecs.
    Wire,
    /// Transports and formats together: what bridges ask.
    Bridges,
    /// What users depend on; the only place that knows every driver.
    Facade,
    /// The HTTP API and the dashboard.
    Web,
    /// The command line.
    Cli,
    /// Stores that fail, simulation, conformance: for tests.
    Testkit,
    /// What two or more applications share.
    Kit,
    /// Fakes of outside services: for tests and demos.
    Fakes,
    /// Real servers on free ports: for tests.
    Servers,
    /// An application.
    App,
    /// Tests of the whole: interop, chaos, browser.
    Proof,
    /// This crate.
    Tooling,
}

use Role::{App, Bridges, Cli, Core, Driver, Facade, Fakes, Kit, Macros, Proof, Servers, Testkit, Tooling, Web, Wire};

/// Every crate of the house by name. Applications and proofs are known by their folder instead.
const HOUSE: [(&str, Role); 18] = [
    ("windlass", Facade),
    ("windlass-core", Core),
    ("windlass-macros", Macros),
    ("windlass-memory", Driver),
    ("windlass-sqlite", Driver),
    ("windlass-postgres", Driver),
    ("windlass-redis", Driver),
    ("windlass-sqlx", Driver),
    ("windlass-amqp", Driver),
    ("windlass-wire", Wire),
    ("windlass-bridges", Bridges),
    ("windlass-web", Web),
    ("windlass-cli", Cli),
    ("windlass-testkit", Testkit),
    ("windlass-kit", Kit),
    ("windlass-fakes", Fakes),
    ("windlass-servers", Servers),
    ("xtask", Tooling),
];

impl Role {
    /// What a crate of this role may link into production.
    fn may_link(self) -> &'static [Role] {
        match self {
            Macros | Fakes | Servers => &[],
            // It starts the servers that the tests of all others need.
            Tooling => &[Servers],
            Core => &[Macros],
            Driver | Wire | Web | Testkit => &[Core],
            Bridges => &[Core, Driver, Wire],
            Facade => &[Core, Macros, Driver, Wire, Bridges],
            Cli => &[Facade, Core, Web],
            Kit => &[Facade],
            App => &[Facade, Cli, Kit],
            Proof => &[Facade, Core, Driver, Wire, Bridges, Web, Cli, Testkit, Kit, Fakes, Servers, App],
        }
    }

    /// What its tests may use on top of that.
    fn may_test_with(self) -> &'static [Role] {
        match self {
            // The derive is tested through the crate that its output names.
            Macros => &[Core, Facade],
            _ => &[Testkit, Fakes, Servers],
        }
    }
}

/// One dependency between crates of the house that the roles do not allow, and why it is right all the same.
struct Exception {
    from: &'static str,
    to: &'static str,
    #[expect(dead_code, reason = "for the reader: an exception without a reason is not one")]
    because: &'static str,
}

const EXCEPTIONS: [Exception; 2] = [
    Exception {
        from: "windlass-testkit",
        to: "windlass-memory",
        because: "the faulty store and the simulator are built on the memory store",
    },
    Exception {
        from: "windlass-sqlx",
        to: "windlass-postgres",
        because: "its tests enqueue into the schema that the store makes, and look with the store",
    },
];

/// The store that any crate may use in its tests: it needs no server and no file.
const STORE_FOR_TESTS: &str = "windlass-memory";

/// Heavy foreign crates and the only crates of the house that may link them: one crate, one heavy dependency.
const OWNED: [(&str, &[&str]); 9] = [
    // The command line measures what the stores themselves allow beside its own benchmark.
    ("rusqlite", &["windlass-sqlite", "windlass-cli"]),
    ("tokio-postgres", &["windlass-postgres", "windlass-cli"]),
    ("deadpool-postgres", &["windlass-postgres"]),
    ("redis", &["windlass-redis", "windlass-cli"]),
    ("lapin", &["windlass-amqp"]),
    ("axum", &["windlass-web", "windlass-kit", "windlass-fakes"]),
    ("askama", &["windlass-web"]),
    ("clap", &["windlass-cli", "xtask"]),
    ("syn", &["windlass-macros"]),
];

/// What the engine must be free of: drivers, sockets, HTTP, TLS.
const NOT_IN_CORE: [&str; 10] =
    ["rusqlite", "tokio-postgres", "redis", "lapin", "axum", "hyper", "reqwest", "rustls", "tower-http", "socket2"];

/// What pure codecs must be free of: a runtime.
const NOT_IN_WIRE: [&str; 5] = ["tokio", "tokio-util", "async-std", "smol", "futures-executor"];

/// Walks the crates of the workspace and reports every dependency that crosses a wall.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata.members() {
        let Some(role) = role_of(package) else {
            findings.push(Finding::whole(
                &package.manifest,
                format!("`{}` has no role in the house", package.name),
                "add it to HOUSE in xtask/src/tidy/imports.rs",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let to = metadata.members().find(|other| other.name == dependency.name);
            let breach = match to.map(|to| role_of(to).map(|role| (to, role))) {
                Some(Some((to, to_role))) => crosses_a_wall(package, role, dependency, to, to_role),
                // A member without a role has its own finding.
                Some(None) => None,
                None => crosses_with_a_foreign_crate(package, role, dependency),
            };
            findings.extend(breach.map(|(what, fix)| Finding::whole(&package.manifest, what, fix)));
        }
    }
    findings
}

fn role_of(package: &Package) -> Option<Role> {
    let named = HOUSE.iter().find(|(name, _)| *name == package.name).map(|(_, role)| *role);
    named.or_else(|| match package.manifest.split('/').next() {
        Some("apps") => Some(App),
        Some("tests") => Some(Proof),
        _ => None,
    })
}

fn crosses_a_wall(
    from: &Package,
    role: Role,
    dependency: &Dependency,
    to: &Package,
    to_role: Role,
) -> Option<(String, String)> {
    let excepted = EXCEPTIONS.iter().any(|known| known.from == from.name && known.to == to.name);
    let for_tests = role.may_test_with().contains(&to_role) || to.name == STORE_FOR_TESTS;
    let tested = dependency.kind == DependencyKind::Dev && for_tests;
    if from.name == to.name || role.may_link().contains(&to_role) || excepted || tested {
        return None;
    }
    let what = format!("`{}` ({role:?}) depends on `{}` ({to_role:?})", from.name, to.name);
    let allowed = role.may_link();
    let fix = if matches!(to_role, Testkit | Fakes) {
        "move it to [dev-dependencies]: test code is never linked into production".to_owned()
    } else if allowed.is_empty() {
        "it may know no crate of the house".to_owned()
    } else {
        format!(
            "it may know only {allowed:?}; where it must, add an exception with its reason in xtask/src/tidy/imports.rs"
        )
    };
    Some((what, fix))
}

fn crosses_with_a_foreign_crate(from: &Package, role: Role, dependency: &Dependency) -> Option<(String, String)> {
    let name = dependency.name.as_str();
    if role == Core && NOT_IN_CORE.contains(&name) {
        return Some((format!("the engine depends on `{name}`"), "move what needs it into a driver".to_owned()));
    }
    if role == Core
        && name == "tokio"
        && dependency.features.iter().any(|feature| matches!(feature.as_str(), "net" | "full"))
    {
        return Some(("the engine asks tokio for sockets".to_owned(), "drop the features `net` and `full`".to_owned()));
    }
    if role == Wire && dependency.kind != DependencyKind::Dev && NOT_IN_WIRE.contains(&name) {
        return Some((
            format!("the codecs depend on the runtime `{name}`"),
            "keep them pure: bytes in, envelope out".to_owned(),
        ));
    }
    let (_, owners) = OWNED.iter().find(|(owned, _)| *owned == name)?;
    let free =
        dependency.kind == DependencyKind::Dev || matches!(role, App | Proof) || owners.contains(&from.name.as_str());
    (!free).then(|| (format!("`{}` depends on `{name}`", from.name), format!("only {owners:?} may link it")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::samples::{foreign, member};

    fn check_all(packages: Vec<Package>) -> Vec<String> {
        check(&Metadata { packages }).iter().map(ToString::to_string).collect()
    }

    fn house() -> Vec<Package> {
        vec![
            member("windlass-macros", &[], &[]),
            member("windlass-core", &["windlass-macros"], &["windlass-testkit"]),
            member("windlass-memory", &["windlass-core"], &[]),
            member("windlass-sqlite", &["windlass-core", "rusqlite"], &["windlass-testkit"]),
            member("windlass-testkit", &["windlass-core", "windlass-memory"], &[]),
            member("windlass", &["windlass-core", "windlass-memory", "windlass-sqlite"], &["windlass-testkit"]),
            member("windlass-cli", &["windlass", "windlass-core"], &[]),
            foreign("rusqlite", "0.41.0", Some("MIT")),
        ]
    }

    fn house_with(changed: Package) -> Vec<String> {
        let mut packages = house();
        packages.retain(|package| package.name != changed.name);
        packages.push(changed);
        check_all(packages)
    }

    #[test]
    fn the_house_as_it_is_drawn_passes() {
        assert_eq!(check_all(house()), Vec::<String>::new());
    }

    #[test]
    fn a_driver_may_not_know_another_driver() {
        let findings = house_with(member("windlass-sqlite", &["windlass-core", "windlass-memory"], &[]));
        assert!(
            findings[0].contains("`windlass-sqlite` (Driver) depends on `windlass-memory` (Driver)"),
            "{findings:?}"
        );
    }

    #[test]
    fn the_test_kit_may_not_be_linked_into_production() {
        let findings = house_with(member("windlass", &["windlass-core", "windlass-testkit"], &[]));
        assert!(findings[0].contains("[dev-dependencies]"), "{findings:?}");
    }

    #[test]
    fn any_crate_may_use_the_memory_store_in_its_tests_only() {
        assert_eq!(
            house_with(member("windlass-sqlite", &["windlass-core"], &["windlass-memory"])),
            Vec::<String>::new()
        );
        assert_eq!(house_with(member("windlass-core", &["windlass-memory"], &[])).len(), 1);
    }

    #[test]
    fn the_command_line_may_not_know_a_driver() {
        assert_eq!(house_with(member("windlass-cli", &["windlass", "windlass-sqlite"], &[])).len(), 1);
    }

    #[test]
    fn the_engine_may_not_know_a_database_a_socket_or_a_driver() {
        assert_eq!(house_with(member("windlass-core", &["rusqlite", "windlass-memory"], &[])).len(), 2);
        let mut core = member("windlass-core", &["tokio"], &[]);
        core.dependencies[0].features.push("net".to_owned());
        assert_eq!(house_with(core).len(), 1);
    }

    #[test]
    fn codecs_may_not_know_a_runtime() {
        assert_eq!(house_with(member("windlass-wire", &["windlass-core", "tokio"], &[])).len(), 1);
    }

    #[test]
    fn a_heavy_dependency_has_one_owner() {
        assert_eq!(house_with(member("windlass", &["windlass-core", "rusqlite"], &[])).len(), 1);
        assert_eq!(house_with(member("windlass", &["windlass-core"], &["rusqlite"])).len(), 0);
    }

    #[test]
    fn a_crate_without_a_role_is_reported() {
        assert!(house_with(member("windlass-extras", &[], &[]))[0].contains("no role"));
    }

    #[test]
    fn applications_are_known_by_their_folder() {
        let mut app = member("courier", &["windlass", "windlass-cli", "windlass-core"], &[]);
        app.manifest = "apps/courier/Cargo.toml".to_owned();
        let findings = house_with(app);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("`courier` (App) depends on `windlass-core`"));
    }
}
