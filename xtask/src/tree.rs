//! The files of the repository as the checks see them: path and text.
//!
//! Checks take a [`Tree`], never the disk, so their tests are a few lines of text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// One text file.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    /// Its whole text.
    pub(crate) text: String,
}

impl SourceFile {
    /// The end of the name after the last dot, or nothing.
    pub(crate) fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, end)| end)
    }

    /// The name without folders and extension.
    pub(crate) fn stem(&self) -> &str {
        let name = self.path.rsplit_once('/').map_or(self.path.as_str(), |(_, name)| name);
        name.split_once('.').map_or(name, |(stem, _)| stem)
    }
}

/// Every file that git tracks or would track, text files with their text.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// The text files, sorted by path.
    pub(crate) files: Vec<SourceFile>,
    /// Every path, binary files and folders too: what a link may point at.
    paths: BTreeSet<String>,
}

impl Tree {
    /// Reads the repository at `root`: tracked files and new ones that are not ignored.
    ///
    /// # Errors
    /// When git is not there or `root` is not a checkout.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("cannot run git: install it (`apt-get install git`)")?;
        if !listed.status.success() {
            bail!("git does not list the files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        let listed = String::from_utf8(listed.stdout).context("a file name is not UTF-8: rename it")?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            // A file deleted on disk and still in the index is gone for our purpose.
            let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
            files.push((path.to_owned(), bytes));
        }
        Ok(Self::of_bytes(files))
    }

    /// A tree out of paths and texts.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        Self::of_bytes(files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect())
    }

    fn of_bytes(files: Vec<(String, Vec<u8>)>) -> Self {
        let mut tree = Self::default();
        for (path, bytes) in files {
            let mut folder = Path::new(&path).parent();
            while let Some(above) = folder {
                tree.paths.insert(above.to_string_lossy().into_owned());
                folder = above.parent();
            }
            tree.paths.insert(path.clone());
            // A file that is not text has nothing for us to read; links may still point at it.
            if let Ok(text) = String::from_utf8(bytes)
                && !text.contains('\0')
            {
                tree.files.push(SourceFile { path, text });
            }
        }
        tree.files.sort_by(|one, other| one.path.cmp(&other.path));
        tree
    }

    /// Whether a file or folder has this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// The text file with this path.
    pub(crate) fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The files with this extension.
    pub(crate) fn with_extension<'tree>(&'tree self, extension: &'tree str) -> impl Iterator<Item = &'tree SourceFile> {
        self.files.iter().filter(move |file| file.extension() == extension)
    }
}

/// The root of the checkout that the current folder is in.
///
/// # Errors
/// When the current folder is in none.
pub(crate) fn find_root() -> Result<PathBuf> {
    let here = std::env::current_dir().context("the current folder is gone: change into the repository")?;
    let found = here.ancestors().find(|folder| folder.join("xtask/Cargo.toml").is_file());
    found.map(Path::to_path_buf).context("run `cargo xtask` inside the repository")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_files_are_paths_too() {
        let tree = Tree::of(&[("docs/guide/start.md", "")]);
        assert!(tree.has("docs/guide"));
        assert!(tree.has("docs/guide/start.md"));
        assert!(!tree.has("docs/gui"));
    }

    #[test]
    fn a_binary_file_is_a_path_without_a_text() {
        let tree = Tree::of_bytes(vec![("logo.png".to_owned(), vec![0x89, 0, 0xff])]);
        assert!(tree.has("logo.png"));
        assert!(tree.file("logo.png").is_none());
    }
}
