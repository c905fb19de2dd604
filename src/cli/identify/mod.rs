//! `finegrain identify`: which named arithmetic gave a result, a product's or a quantiser's.
#![forbid(unsafe_code)]

mod against;
mod blocks;
mod pairs;
mod product;
mod source;
mod tally;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use regex::Regex;

use crate::accuracy::identify::Extent;
use crate::cli::operand::OperandArgs;
use crate::cli::product::Grouped;
use crate::cli::reading::ReadingArgs;
use crate::cli::{Failure, Outcome};
use crate::engine::Engine;

const EXAMPLE: &str = "\
IN holds a problem as gemm takes it (a, b, their scales, c, groups) and its result d in F32,
BF16 or F16, from anywhere: a GPU, a library, another program. What is printed are the
arithmetics that give every bit of d, simplest first, as options for gemm; or the nearest, where
they differ, and what that usually means. NaN of any payload is NaN.

Beyond 10^11 multiply-adds at least 65,536 elements are compared, spread over rows, columns and
the edges of tiles; --all compares every one.

With --source, IN holds codes and scales, and FILE the floats that they were made of, under the same
names: what is printed are the recipes that give every code and scale, in whichever role, or the
nearest, and which rule makes them differ. With --against, FILE holds the same tensors quantised by
somebody else (a trainer and a rollout engine, say): what is printed is how much differs, by which
rule, in which blocks, and with --x by how much Y = X W^T (of rows of X that are spread evenly;
--all takes every row). Files or folders, sharded or not.

Exit 0 if one is exact (with --against: if nothing differs), else 3.

Examples:
  finegrain identify problem.safetensors
  finegrain identify problem.safetensors --granule-a 1x128 --granule-b 128x128 --all
  finegrain identify q.safetensors --source bf16.safetensors --tensor experts
  finegrain identify trainer.safetensors --against rollout.safetensors --x acts.safetensors:layers.3.x";

/// Find the named arithmetic that gave a result, or codes and scales, bit for bit
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file with a, b, what belongs to them, and d; with --source or --against, with codes and scales
    r#in: PathBuf,

    /// What IN's codes and scales were made of: find the recipe
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "grouped", "OperandArgs"])]
    source: Option<PathBuf>,

    /// The same tensors, quantised by somebody else: find what differs
    #[arg(long, value_name = "FILE", conflicts_with_all = ["grouped", "OperandArgs"])]
    against: Option<PathBuf>,

    /// An activation: what the difference does to its product with each tensor that has as many columns
    #[arg(long, value_name = "FILE:NAME", requires = "against", conflicts_with = "source")]
    x: Option<String>,

    /// Only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    tensor: Option<Regex>,

    /// Compare every element, however long that takes
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    operands: OperandArgs,

    /// The form of a grouped problem, which IN's tensor 'groups' describes [default: contiguous]
    #[arg(long, value_enum)]
    grouped: Option<Grouped>,

    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten, next_help_heading = "Codes and scales, with --source or --against")]
    reading: ReadingArgs,
}

pub(crate) fn run(args: &Args, json: bool) -> Outcome {
    match (&args.source, &args.against) {
        (Some(source), _) => source::run(args, source, json),
        (None, Some(other)) => against::run(args, other, json),
        (None, None) if args.tensor.is_some() || args.reading != ReadingArgs::default() => {
            Err(Failure::Usage(
                "--tensor and what says how codes and scales are read go with --source or --against"
                    .to_owned(),
            ))
        }
        (None, None) => product::run(args, json),
    }
}

impl Args {
    /// Where the work is done.
    fn engine(&self) -> crate::Result<Engine<'static>> {
        let engine = Engine::cpu();
        self.threads.map_or(Ok(engine.clone()), |threads| engine.with_threads(threads))
    }

    fn extent(&self) -> Extent {
        if self.all { Extent::All } else { Extent::Sampled }
    }
}
