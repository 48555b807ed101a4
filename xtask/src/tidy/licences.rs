//! The licences and bans of `deny.toml`, checked without cargo-deny, which most machines do not have.
//!
//! Reads `[licenses] allow` and `exceptions`, `[bans] deny` and the sources. Where cargo-deny is installed it reads the
//! same file; what it finds counts too.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::finding::Finding;
use crate::metadata::{Metadata, Package};
use crate::process;
use crate::tree::Tree;

/// Where the rules are.
const RULES: &str = "deny.toml";

/// What `deny.toml` says, as far as this check knows it.
#[derive(Debug, Default)]
struct Rules {
    allowed: Vec<String>,
    /// Crates with licences of their own beside the allowed ones.
    exceptions: Vec<(String, Vec<String>)>,
    banned: Vec<String>,
    once: Vec<String>,
}

/// Reports dependencies with a licence, a name or a source that `deny.toml` does not allow.
///
/// # Errors
/// When `deny.toml` is missing or is no TOML.
pub(super) fn check(root: &Path, tree: &Tree, metadata: &Metadata) -> Result<Vec<Finding>> {
    let text = &tree.file(RULES).context("there is no deny.toml: it says which licences are allowed")?.text;
    let rules = Rules::parse(&text.parse().context("deny.toml is no TOML")?);
    let mut findings = check_rules(&rules, metadata);
    findings.extend(ask_cargo_deny(root)?);
    Ok(findings)
}

impl Rules {
    fn parse(table: &Table) -> Self {
        let strings = |value: Option<&Value>| -> Vec<String> {
            let list = value.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let tables = |section: &str, list: &str| -> Vec<Value> {
            table.get(section).and_then(|section| section.get(list)?.as_array().cloned()).unwrap_or_default()
        };
        let name_of = |value: &Value| -> Option<String> {
            let name = value.get("name").or_else(|| value.get("crate")).unwrap_or(value);
            name.as_str().map(str::to_owned)
        };
        let mut rules = Self {
            allowed: strings(table.get("licenses").and_then(|licenses| licenses.get("allow"))),
            ..Self::default()
        };
        for exception in tables("licenses", "exceptions") {
            rules.exceptions.extend(name_of(&exception).map(|name| (name, strings(exception.get("allow")))));
        }
        for ban in tables("bans", "deny") {
            let once = ban.get("deny-multiple-versions").and_then(Value::as_bool) == Some(true);
            let list = if once { &mut rules.once } else { &mut rules.banned };
            list.extend(name_of(&ban));
        }
        rules
    }

    fn allows(&self, package: &Package, license: &str) -> bool {
        let own = self.exceptions.iter().filter(|(name, _)| *name == package.name).flat_map(|(_, allowed)| allowed);
        self.allowed.iter().chain(own).any(|allowed| allowed == license)
    }
}

fn check_rules(rules: &Rules, metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let place = format!("{} {}", package.name, package.version);
        match package.license.as_deref() {
            None => findings.push(Finding::whole(
                &place,
                "no licence",
                "read its files, then take another crate or add an exception to deny.toml",
            )),
            Some(license) if !satisfied(license, &|one| rules.allows(package, one)) => {
                let fix = "take another crate, or add the licence to deny.toml with its reason";
                findings.push(Finding::whole(&place, format!("licence `{license}` is not allowed"), fix));
            }
            Some(_) => {}
        }
        if rules.banned.contains(&package.name) {
            findings.push(Finding::whole(
                &place,
                "banned by deny.toml",
                format!("find who wants it: `cargo tree -i {}`", package.name),
            ));
        }
        if package.source.as_deref().is_some_and(|source| !source.starts_with("registry+")) {
            findings.push(Finding::whole(&place, "does not come from a registry", "depend on a published version"));
        }
    }
    for name in &rules.once {
        let versions: Vec<&str> = metadata
            .packages
            .iter()
            .filter(|package| package.name == *name)
            .map(|package| package.version.as_str())
            .collect();
        if versions.len() > 1 {
            let what = format!("{} versions: {}", versions.len(), versions.join(", "));
            findings.push(Finding::whole(
                name,
                what,
                format!("find who wants the old one: `cargo tree -i {name}@{}`", versions[0]),
            ));
        }
    }
    findings
}

/// Whether an SPDX expression can be satisfied: `AND` needs both, `OR` and the old `/` one; `AND` binds tighter.
fn satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = either(&tokens, &mut at, allows);
    // Something left over means that the expression is malformed: nobody may call that allowed.
    value && at == tokens.len()
}

fn either(tokens: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut value = both(tokens, at, allows);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        value |= both(tokens, at, allows);
    }
    value
}

fn both(tokens: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut value = one(tokens, at, allows);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        value &= one(tokens, at, allows);
    }
    value
}

fn one(tokens: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let value = either(tokens, at, allows);
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return value && closed;
    }
    if tokens.get(*at) == Some(&"WITH") {
        let exception = tokens.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        // A licence that is allowed stays allowed when an exception gives more rights.
        return allows(token) || allows(&format!("{token} WITH {exception}"));
    }
    allows(token)
}

/// Runs cargo-deny where it is installed. Advisories need a download, so they are not asked for here.
fn ask_cargo_deny(root: &Path) -> Result<Option<Finding>> {
    let installed = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        return Ok(None);
    }
    let arguments = ["deny", "--offline", "--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    let output = process::cargo().args(arguments).current_dir(root).output().context("cannot run cargo-deny")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Some(Finding::whole(RULES, format!("cargo-deny refuses the dependencies:\n{said}"), "mend what it names")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::samples::foreign;

    fn rules() -> Rules {
        let text = "[licenses]\nallow = [\"MIT\", \"ISC\"]\nexceptions = [{ crate = \"special\", allow = [\"MPL-2.0\"] }]\n\
            [bans]\ndeny = [{ name = \"openssl\" }, { name = \"rustls\", deny-multiple-versions = true }]\n";
        Rules::parse(&text.parse().expect("TOML"))
    }

    fn findings(packages: Vec<Package>) -> usize {
        check_rules(&rules(), &Metadata { packages }).len()
    }

    #[test]
    fn expressions_are_read_as_spdx_says() {
        let allows = |license: &str| matches!(license, "MIT" | "ISC" | "Apache-2.0 WITH LLVM-exception");
        for good in
            ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND ISC", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(satisfied(good, &allows), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "MIT AND", "", "(MIT", "MIT ISC", "GPL-3.0 OR ISC AND MPL-2.0"] {
            assert!(!satisfied(bad, &allows), "{bad}");
        }
    }

    #[test]
    fn a_licence_off_the_list_and_a_missing_one_are_found() {
        assert_eq!(findings(vec![foreign("a", "1.0.0", Some("MIT"))]), 0);
        assert_eq!(findings(vec![foreign("a", "1.0.0", Some("AGPL-3.0"))]), 1);
        assert_eq!(findings(vec![foreign("a", "1.0.0", None)]), 1);
    }

    #[test]
    fn an_exception_is_for_one_crate() {
        assert_eq!(findings(vec![foreign("special", "1.0.0", Some("MPL-2.0"))]), 0);
        assert_eq!(findings(vec![foreign("other", "1.0.0", Some("MPL-2.0"))]), 1);
    }

    #[test]
    fn bans_second_versions_and_foreign_sources_are_found() {
        assert_eq!(findings(vec![foreign("openssl", "1.0.0", Some("MIT"))]), 1);
        let rustls = |version| foreign("rustls", version, Some("MIT"));
        assert_eq!(findings(vec![rustls("0.23.0")]), 0);
        assert_eq!(findings(vec![rustls("0.22.0"), rustls("0.23.0")]), 1);
        assert_eq!(
            findings(vec![Package { source: Some("git+x".to_owned()), ..foreign("a", "1.0.0", Some("MIT")) }]),
            1
        );
    }
}
