//! `finegrain man`: manual pages, from the same definitions as the help.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use crate::checkpoint::write_atomically;
use crate::cli::output::{print, print_json};
use crate::cli::{Cli, Outcome};

const EXAMPLE: &str = "\
Example:
  finegrain man ~/.local/share/man/man1";

/// Write the manual pages: finegrain.1 and one for each subcommand
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// Folder, created if need be
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, json: bool) -> Outcome {
    std::fs::create_dir_all(&args.dir).map_err(|e| crate::Error::file(&args.dir, e))?;
    let mut root = Cli::command().disable_help_subcommand(true);
    // Names as they are typed and global options reach the subcommands only here.
    root.build();
    let mut files = Vec::new();
    write(root, &args.dir, &mut files)?;
    if json {
        return print_json(&serde_json::json!({ "pages": files }));
    }
    print(&format!("{}: {} pages\n", args.dir.display(), files.len()))
}

/// The page of a command, then those of its subcommands.
fn write(command: clap::Command, dir: &Path, files: &mut Vec<String>) -> crate::Result<()> {
    let subcommands: Vec<clap::Command> = command.get_subcommands().cloned().collect();
    let page = Man::new(command);
    let file = page.get_filename();
    write_atomically(&dir.join(&file), |out| page.render(out))?;
    files.push(file);
    subcommands.into_iter().try_for_each(|subcommand| write(subcommand, dir, files))
}
