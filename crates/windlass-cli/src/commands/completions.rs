//! `windlass completions`: what a shell needs to complete commands and flags.

use std::io::Write;

use clap_complete::Shell;

use crate::args::command_of;
use crate::exit::{Exit, Outcome};

/// Print the completions of a shell
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass completions bash > ~/.local/share/bash-completion/completions/windlass
  windlass completions zsh > ~/.zfunc/_windlass
  windlass completions fish > ~/.config/fish/completions/windlass.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: &Args, program: &str) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command_of(program), program, &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(Exit::Ok)
}
