//! What handlers have done, in files of their own: every run of a task adds its number to the file of its process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// The variable that tells a worker the folder of the ledger.
pub const LEDGER: &str = "CHAOS_LEDGER";

/// The page of one process.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// A new page in this folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(folder: &Path) -> Result<Self> {
        let page = folder.join(format!("{}-{:08x}.ledger", std::process::id(), fastrand::u32(..)));
        let file = OpenOptions::new().create_new(true).append(true).open(&page);
        Ok(Self(file.with_context(|| format!("cannot write {}", page.display()))?))
    }

    /// A task has run. One write, so a process that is killed leaves a whole entry or none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ran(&self, number: u32) -> std::io::Result<()> {
        (&self.0).write_all(&number.to_le_bytes())
    }
}

/// How often each task has run, from all pages of a folder.
#[derive(Debug, Default)]
pub struct Runs(BTreeMap<u32, u32>);

impl Runs {
    /// Reads every page.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut runs = Self::default();
        for page in std::fs::read_dir(folder)? {
            let bytes = std::fs::read(page?.path())?;
            for entry in bytes.chunks_exact(4) {
                let number = entry.try_into().map(u32::from_le_bytes).context("an entry has four bytes")?;
                *runs.0.entry(number).or_default() += 1;
            }
        }
        Ok(runs)
    }

    /// Tasks of these numbers that never ran.
    pub fn missing(&self, tasks: u32) -> Vec<u32> {
        (0..tasks).filter(|number| !self.0.contains_key(number)).collect()
    }

    /// Runs beyond the first of each task.
    pub fn repeats(&self) -> u64 {
        self.0.values().map(|runs| u64::from(*runs) - 1).sum()
    }

    /// How often this task ran.
    pub fn of(&self, number: u32) -> u32 {
        self.0.get(&number).copied().unwrap_or(0)
    }
}
