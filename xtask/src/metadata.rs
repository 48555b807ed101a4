//! The workspace as `cargo metadata` describes it, reduced to what the checks ask.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

/// How one crate uses another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DependencyKind {
    /// Linked into everything that uses the crate.
    Normal,
    /// Tests, examples and benches only.
    Dev,
    /// Build scripts only.
    Build,
}

/// One line of a crate's dependency tables.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    /// The package's name, whatever it is renamed to.
    pub(crate) name: String,
    /// Where it is used.
    pub(crate) kind: DependencyKind,
    /// The features asked for.
    pub(crate) features: Vec<String>,
}

/// One crate.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Its licence as an SPDX expression.
    pub(crate) license: Option<String>,
    /// What it says of itself.
    pub(crate) description: Option<String>,
    /// Where its Cargo.toml is, from the root of the workspace; absolute for a crate from a registry.
    pub(crate) manifest: String,
    /// Whether it is one of ours.
    pub(crate) member: bool,
    /// Whether it comes from a registry; a member or a path does not, and a git source is refused by name.
    pub(crate) source: Option<String>,
    /// What it depends on.
    pub(crate) dependencies: Vec<Dependency>,
    /// The names of its examples.
    pub(crate) examples: Vec<String>,
}

/// The workspace and everything it depends on, on every platform.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    /// Every crate.
    pub(crate) packages: Vec<Package>,
}

impl Metadata {
    /// Asks cargo about the workspace at `root`.
    ///
    /// # Errors
    /// When `Cargo.lock` does not fit the manifests, or a dependency cannot be fetched.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let output = process::cargo()
            .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
            .current_dir(root)
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "`cargo metadata --locked` failed: when Cargo.lock is stale run `cargo check` and commit it\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let value = serde_json::from_slice(&output.stdout).context("`cargo metadata` printed no JSON")?;
        Self::parse(&value)
    }

    /// Reads the JSON of `cargo metadata`.
    ///
    /// # Errors
    /// When a field is missing that every cargo since 1.60 prints.
    pub(crate) fn parse(value: &Value) -> Result<Self> {
        let root = text(value, "workspace_root")?;
        let members = list(value, "workspace_members");
        let packages = list(value, "packages").iter().map(|package| parse_package(package, &root, members));
        Ok(Self { packages: packages.collect::<Result<_>>()? })
    }

    /// The crates of this workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.member)
    }
}

/// Where cargo puts what it builds, whoever has said so: the environment, a configuration, or nobody.
///
/// # Errors
/// When cargo cannot be asked.
pub(crate) fn target_folder(root: &Path) -> Result<PathBuf> {
    let output = process::cargo()
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cannot run cargo")?;
    let value: Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` printed no JSON")?;
    text(&value, "target_directory").map(PathBuf::from)
}

fn parse_package(package: &Value, root: &str, members: &[Value]) -> Result<Package> {
    let manifest = text(package, "manifest_path")?;
    let targets = list(package, "targets").iter();
    let examples = targets.filter(|target| list(target, "kind").iter().any(|kind| kind == "example"));
    Ok(Package {
        name: text(package, "name")?,
        version: text(package, "version")?,
        license: optional(package, "license"),
        description: optional(package, "description"),
        manifest: manifest.strip_prefix(root).map_or(manifest.as_str(), |rest| rest.trim_start_matches('/')).to_owned(),
        member: members.contains(&package["id"]),
        source: optional(package, "source"),
        dependencies: list(package, "dependencies").iter().map(parse_dependency).collect::<Result<_>>()?,
        examples: examples.map(|target| text(target, "name")).collect::<Result<_>>()?,
    })
}

fn parse_dependency(dependency: &Value) -> Result<Dependency> {
    let kind = match dependency["kind"].as_str() {
        None => DependencyKind::Normal,
        Some("dev") => DependencyKind::Dev,
        Some("build") => DependencyKind::Build,
        Some(other) => bail!("`cargo metadata` names an unknown kind of dependency: {other}"),
    };
    let features = list(dependency, "features").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Dependency { name: text(dependency, "name")?, kind, features })
}

fn text(value: &Value, field: &str) -> Result<String> {
    optional(value, field).with_context(|| format!("`cargo metadata` printed no `{field}`"))
}

fn optional(value: &Value, field: &str) -> Option<String> {
    value[field].as_str().map(str::to_owned)
}

fn list<'value>(value: &'value Value, field: &str) -> &'value [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// Crates for the tests of the checks.
#[cfg(test)]
pub(crate) mod samples {
    use super::{Dependency, DependencyKind, Package};

    /// A crate of this workspace.
    pub(crate) fn member(name: &str, normal: &[&str], dev: &[&str]) -> Package {
        let of_kind = |names: &[&str], kind| -> Vec<Dependency> {
            names.iter().map(|name| Dependency { name: (*name).to_owned(), kind, features: Vec::new() }).collect()
        };
        let mut dependencies = of_kind(normal, DependencyKind::Normal);
        dependencies.extend(of_kind(dev, DependencyKind::Dev));
        Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            license: Some("MIT OR Apache-2.0".to_owned()),
            description: Some("says what it is".to_owned()),
            manifest: format!("crates/{name}/Cargo.toml"),
            member: true,
            source: None,
            dependencies,
            examples: Vec::new(),
        }
    }

    /// A crate from a registry.
    pub(crate) fn foreign(name: &str, version: &str, license: Option<&str>) -> Package {
        Package {
            version: version.to_owned(),
            license: license.map(str::to_owned),
            member: false,
            source: Some("registry+elsewhere".to_owned()),
            ..member(name, &[], &[])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_dependencies_and_examples_are_read() {
        let value = serde_json::json!({
            "workspace_root": "/w",
            "workspace_members": ["a-id"],
            "packages": [{
                "id": "a-id", "name": "a", "version": "1.0.0", "license": null, "description": "d",
                "manifest_path": "/w/crates/a/Cargo.toml", "source": null,
                "dependencies": [{"name": "tokio", "kind": "dev", "features": ["net"]}],
                "targets": [{"kind": ["example"], "name": "hello"}, {"kind": ["lib"], "name": "a"}],
            }],
        });
        let metadata = Metadata::parse(&value).expect("complete");
        let package = metadata.members().next().expect("one member");
        assert_eq!(package.manifest, "crates/a/Cargo.toml");
        assert_eq!(package.examples, ["hello"]);
        assert_eq!(package.dependencies[0].kind, DependencyKind::Dev);
        assert_eq!(package.dependencies[0].features, ["net"]);
    }
}
