//! Every relative link in a document leads somewhere, its anchor too.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::markdown::{Document, slug};
use crate::tree::{SourceFile, Tree};

/// Reports links to files, folders and headings that are not there.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_extension("md") {
        let document = Document::of(&file.text);
        for (line, text) in &document.prose {
            for target in targets(text) {
                if let Some((what, fix)) = find_break(tree, &file.path, target) {
                    findings.push(Finding::at(&file.path, *line, what, fix));
                }
            }
        }
    }
    findings
}

/// The targets of the links of one line: `[text](target)`, `![alt](target "title")`, `[name]: target`, `href="target"`.
fn targets(line: &str) -> Vec<&str> {
    let first_word = |text: &'_ str| -> usize { text.find(|char: char| char.is_whitespace()).unwrap_or(text.len()) };
    let mut targets = Vec::new();
    for (at, _) in line.match_indices("](") {
        let rest = &line[at + 2..];
        let rest = &rest[..rest.find(')').unwrap_or(rest.len())];
        targets.push(&rest[..first_word(rest)]);
    }
    for attribute in ["href=\"", "src=\""] {
        for (at, _) in line.match_indices(attribute) {
            let rest = &line[at + attribute.len()..];
            targets.push(&rest[..rest.find('"').unwrap_or(rest.len())]);
        }
    }
    if let Some((_, rest)) = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
        let rest = rest.trim();
        targets.push(&rest[..first_word(rest)]);
    }
    targets.into_iter().map(|target| target.trim_start_matches('<').trim_end_matches('>')).collect()
}

/// Why a target leads nowhere, or nothing.
fn find_break(tree: &Tree, from: &str, target: &str) -> Option<(String, String)> {
    if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path = path.replace("%20", " ");
    let Some(resolved) = resolve(from, &path) else {
        return Some((format!("the link `{target}` leaves the repository"), "link inside it".to_owned()));
    };
    if !tree.has(&resolved) {
        return Some((format!("the link `{target}` leads to no file"), format!("there is no `{resolved}`")));
    }
    let anchor = anchor?;
    let file = tree.file(&resolved).filter(|file| file.extension() == "md")?;
    if has_anchor(file, anchor) {
        return None;
    }
    Some((format!("the link `{target}` leads to no heading"), format!("`{resolved}` has {}", list_anchors(file))))
}

/// The path that `target` means in the file `from`; `None` when it climbs out of the repository.
fn resolve(from: &str, target: &str) -> Option<String> {
    if target.is_empty() {
        return Some(from.to_owned());
    }
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    // A leading slash means the root of the repository.
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.retain(|part| !part.is_empty());
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    parts.retain(|part| !part.is_empty());
    Some(parts.join("/"))
}

fn anchors(file: &SourceFile) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = Document::of(&file.text).headings;
    let slugs = headings.iter().map(|heading| {
        let slug = slug(heading);
        let times = seen.entry(slug.clone()).and_modify(|times| *times += 1).or_insert(0);
        if *times == 0 { slug } else { format!("{slug}-{times}") }
    });
    slugs.collect()
}

fn has_anchor(file: &SourceFile, anchor: &str) -> bool {
    let by_hand = [format!("id=\"{anchor}\""), format!("name=\"{anchor}\"")];
    anchors(file).iter().any(|known| known == anchor) || by_hand.iter().any(|mark| file.text.contains(mark.as_str()))
}

fn list_anchors(file: &SourceFile) -> String {
    let known: Vec<String> = anchors(file).iter().take(12).map(|anchor| format!("#{anchor}")).collect();
    if known.is_empty() { "no headings".to_owned() } else { known.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(readme: &str) -> Vec<String> {
        let guide = "# Guide\n## Set up\n## Set up\n<a id=\"by-hand\"></a>\n";
        let tree = Tree::of(&[
            ("README.md", readme),
            ("docs/guide.md", guide),
            ("docs/deep/a.md", "[up](../guide.md)"),
            ("LICENSE", ""),
        ]);
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_links_pass() {
        let readme = "# Top\n[a](docs/guide.md) [b](docs/guide.md#set-up-1 \"title\") [c](#top) [d](docs/) [e](./LICENSE)\n\
            [f](https://example.org/#x) [g](docs/guide.md#by-hand) `[h](nowhere.md)`\n[i]: docs/guide.md\n";
        assert_eq!(findings(readme), Vec::<String>::new());
    }

    #[test]
    fn a_missing_file_heading_or_reference_is_found() {
        assert!(findings("[a](docs/gone.md)")[0].starts_with("README.md:1: the link `docs/gone.md` leads to no file"));
        assert!(findings("\n[a](docs/guide.md#tear-down)")[0].starts_with("README.md:2: "));
        assert_eq!(findings("[a]: gone.md").len(), 1);
        assert_eq!(findings("<img src=\"gone.png\">").len(), 1);
        assert_eq!(findings("[a](../outside.md)").len(), 1);
    }
}
