//! `finegrain completions`: what a shell reads to complete words, from the same definitions as the help.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::output::{print, print_json};
use crate::cli::{Cli, Failure, Outcome};

const EXAMPLE: &str = "\
Examples:
  finegrain completions bash > ~/.local/share/bash-completion/completions/finegrain
  finegrain completions zsh > ~/.zfunc/_finegrain
  finegrain completions fish > ~/.config/fish/completions/finegrain.fish";

/// Print the completions of a shell
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args, json: bool) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "finegrain", &mut script);
    let script = String::from_utf8(script).map_err(|e| Failure::Failed(e.to_string()))?;
    if json {
        return print_json(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }));
    }
    print(&script)
}
