//! Every crate says what it is and takes versions, licence and lints from the root.

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::finding::Finding;
use crate::metadata::{Metadata, Package};
use crate::tree::Tree;

/// Crates whose own users need a newer compiler anyway, and why.
const NEEDS_NEWER_RUST: [(&str, &str); 1] = [("windlass-sqlx", "sqlx 0.9 needs 1.94")];

/// The tables of a manifest that name dependencies.
const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Reports crates that say nothing of themselves and versions outside the root.
///
/// # Errors
/// When a manifest is no TOML.
pub(super) fn check(tree: &Tree, metadata: &Metadata) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in metadata.members() {
        findings.extend(check_words(package));
        let Some(file) = tree.file(&package.manifest) else { continue };
        let manifest: Table = file.text.parse().with_context(|| format!("`{}` is no TOML", file.path))?;
        findings.extend(check_manifest(&package.manifest, &manifest));
    }
    Ok(findings)
}

fn check_words(package: &Package) -> Vec<Finding> {
    let fields = [("description", &package.description), ("license", &package.license)];
    let missing = fields.iter().filter(|(_, value)| value.as_ref().is_none_or(|text| text.trim().is_empty()));
    missing
        .map(|(field, _)| {
            let fix = format!("write `{field}` in [package], or `{field}.workspace = true`");
            Finding::whole(&package.manifest, format!("no {field}"), fix)
        })
        .collect()
}

fn check_manifest(path: &str, manifest: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !inherits(manifest.get("lints")) {
        findings.push(Finding::whole(
            path,
            "the lints of the workspace are off",
            "add `[lints]` with `workspace = true`",
        ));
    }
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(|name| name.as_str());
    for field in ["version", "edition", "rust-version"] {
        if field == "rust-version" && NEEDS_NEWER_RUST.iter().any(|(crate_name, _)| Some(*crate_name) == name) {
            continue;
        }
        if !inherits(manifest.get("package").and_then(|package| package.get(field))) {
            findings.push(Finding::whole(
                path,
                format!("`{field}` of its own"),
                format!("write `{field}.workspace = true`"),
            ));
        }
    }
    for (name, dependency) in dependencies(manifest) {
        if !inherits(Some(dependency)) {
            let fix = format!("put it in [workspace.dependencies] of the root and write `{name}.workspace = true`");
            findings.push(Finding::whole(path, format!("`{name}` has a version of its own"), fix));
        }
    }
    findings
}

/// Every dependency of a manifest, those for one platform too.
fn dependencies(manifest: &Table) -> Vec<(&str, &Value)> {
    let of_platforms = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = of_platforms.filter_map(Value::as_table).chain([manifest]);
    let named = tables.flat_map(|table| DEPENDENCY_TABLES.iter().filter_map(|name| table.get(*name)?.as_table()));
    named.flat_map(|table| table.iter().map(|(name, value)| (name.as_str(), value))).collect()
}

fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::samples::member;

    const GOOD: &str = "[package]\nversion.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
        [lints]\nworkspace = true\n[dependencies]\nserde = { workspace = true, features = [\"rc\"] }\n";

    fn findings(manifest: &str, package: Package) -> Vec<String> {
        let tree = Tree::of(&[("crates/a/Cargo.toml", manifest)]);
        let found = check(&tree, &Metadata { packages: vec![package] }).expect("TOML");
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_crate_that_inherits_everything_passes() {
        assert_eq!(findings(GOOD, member("a", &[], &[])), Vec::<String>::new());
    }

    #[test]
    fn a_version_of_its_own_is_found_in_every_table() {
        let own =
            format!("{GOOD}toml = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nlibc = {{ version = \"0.2\" }}\n");
        let findings = findings(&own, member("a", &[], &[]));
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn missing_lints_and_words_are_found() {
        let silent = Package { description: None, license: Some(String::new()), ..member("a", &[], &[]) };
        let findings = findings(&GOOD.replace("[lints]\nworkspace = true\n", ""), silent);
        assert_eq!(findings.len(), 3, "{findings:?}");
    }
}
