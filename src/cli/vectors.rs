//! `finegrain vectors`: conformance vectors, written and checked.

use std::path::PathBuf;

use crate::vectors::{Check, FILES, NanRule, check, generate};
use clap::Subcommand;

use crate::cli::output::{Table, print, print_json};
use crate::cli::{Failure, Outcome};

const EXAMPLE: &str = "\
DIR gets one safetensors file for each kind of operation and index.json, which says of every
tensor whether it is an input or an output, its operation, operands and parameters. To check
another implementation, replace the output tensors by its own and run check, which exits 1
where anything differs.

Examples:
  finegrain vectors generate vectors
  finegrain vectors check vectors";

/// Conformance vectors: inputs and expected bits of casts, recipes, layouts and GEMMs
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write the vectors and their index
    #[command(after_help = "Example:\n  finegrain vectors generate vectors --only casts")]
    Generate {
        /// Folder, created if need be
        dir: PathBuf,

        /// Only this file; may be given several times
        #[arg(long, value_name = "FILE", value_parser = FILES)]
        only: Vec<String>,
    },
    /// Compute the vectors anew and list the tensors that differ
    #[command(after_help = "Example:\n  finegrain vectors check vectors --any-nan")]
    Check {
        /// Folder with an index.json
        dir: PathBuf,

        /// Take any NaN of the tensor's format for another
        #[arg(long)]
        any_nan: bool,
    },
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    match args.action {
        Action::Generate { dir, only } => {
            let names: Vec<&str> =
                FILES.into_iter().filter(|f| only.is_empty() || only.iter().any(|o| o == f)).collect();
            let index = generate(&dir, &names)?;
            if json {
                return print_json(&index);
            }
            let mut table = Table::new(&["<file", "tensors", "<description"]);
            for f in index.files {
                table.row([f.file, f.tensors.len().to_string(), f.description]);
            }
            print(&table.render())
        }
        Action::Check { dir, any_nan } => {
            let found = check(&dir, if any_nan { NanRule::Class } else { NanRule::Bits })?;
            report(&found, json)?;
            match found.differences.len() {
                0 => Ok(()),
                n => Err(Failure::Failed(format!("{n} of {} tensors differ", found.tensors))),
            }
        }
    }
}

fn report(found: &Check, json: bool) -> Outcome {
    if json {
        return print_json(found);
    }
    let mut text = format!("{} tensors, {} elements compared\n", found.tensors, found.elements);
    if !found.differences.is_empty() {
        let mut table = Table::new(&["<file", "<tensor", "differ", "<first at", "<expected", "<found"]);
        for d in &found.differences {
            let index = format!("{:?}", d.index);
            let row = [d.file.clone(), d.tensor.clone(), d.elements.to_string(), index];
            table.row(row.into_iter().chain([d.expected.clone(), d.found.clone()]));
        }
        text.push_str(&table.render());
    }
    print(&text)
}
