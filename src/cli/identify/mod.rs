//! `finegrain identify`: which named arithmetic gave a result.
#![forbid(unsafe_code)]

mod product;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::cli::Outcome;
use crate::cli::operand::OperandArgs;
use crate::cli::product::Grouped;

const EXAMPLE: &str = "\
IN holds a problem as gemm takes it (a, b, their scales, c, groups) and its result d in F32,
BF16 or F16, from anywhere: a GPU, a library, another program. What is printed are the
arithmetics that give every bit of d, simplest first, as options for gemm; or the nearest, where
they differ, and what that usually means. NaN of any payload is NaN.

Beyond 10^11 multiply-adds at least 65,536 elements are compared, spread over rows, columns and
the edges of tiles; --all compares every one.

Exit 0 if one is exact, 3 if none is.

Examples:
  finegrain identify problem.safetensors
  finegrain identify problem.safetensors --granule-a 1x128 --granule-b 128x128 --all";

/// Find the named arithmetic that gave a result, bit for bit
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file with a, b, what belongs to them, and d
    r#in: PathBuf,

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
}

pub(crate) fn run(args: &Args, json: bool) -> Outcome {
    product::run(args, json)
}
