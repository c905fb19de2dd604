//! The command line as a function, so that other packages can carry it. One file per subcommand; all arithmetic is the
//! library's, through its public API.
#![forbid(unsafe_code)]

mod arithmetic;
mod bench;
mod bench_choices;
mod bench_elements;
mod cast;
mod compare;
mod completions;
mod dequantize;
mod formats;
mod gemm;
mod identify;
mod inspect;
mod interrupt;
mod man;
mod notes;
mod operand;
mod output;
mod plot;
mod product;
mod progress;
mod quantize;
mod reading;
mod recipe;
mod sanitize;
mod values;
mod vectors;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// FP8 with named arithmetic: fine-grained quantisation and GEMM whose bits do not depend on the path.
#[derive(Parser)]
#[command(version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print one JSON document instead of the table
    #[arg(long, global = true)]
    json: bool,
}

/// The subcommands: a line here and in `run`, and a file with `Args` and `run`.
#[derive(Subcommand)]
enum Command {
    Formats(formats::Args),
    Cast(cast::Args),
    Quantize(quantize::Args),
    Dequantize(dequantize::Args),
    Gemm(gemm::Args),
    Compare(compare::Args),
    Identify(identify::Args),
    Inspect(inspect::Args),
    Recipe(recipe::Args),
    Sanitize(sanitize::Args),
    Bench(bench::Args),
    Vectors(vectors::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Why a subcommand did not do its work.
enum Failure {
    /// The arguments do not go together: exit 2, as for those that clap refuses.
    Usage(String),
    /// Anything else: exit 1.
    Failed(String),
    /// The work is done, and its output is that something is wrong: exit 3.
    Findings,
}

impl From<crate::Error> for Failure {
    fn from(e: crate::Error) -> Self {
        Failure::Failed(e.to_string())
    }
}

impl From<crate::simd::IsaError> for Failure {
    fn from(e: crate::simd::IsaError) -> Self {
        crate::Error::from(e).into()
    }
}

/// The exit status of findings.
const FINDINGS: u8 = 3;

/// What a subcommand gives: nothing, its output has been printed.
type Outcome = Result<(), Failure>;

/// Runs the command line `args`, the program's name first, and gives its exit status: 0 done, 1 failed (one line on
/// stderr), 2 wrong usage, 3 findings. On SIGINT and SIGTERM, which it handles from then on, temporary files are removed
/// and the process ends with status 130 or 143.
///
/// ```
/// assert_eq!(finegrain::cli::run(["finegrain", "formats", "e4m3"]), std::process::ExitCode::SUCCESS);
/// ```
pub fn run<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> ExitCode {
    let Cli { command, json } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(refused) => return output::usage(&refused),
    };
    interrupt::install();
    let outcome = match command {
        Command::Formats(args) => formats::run(args, json),
        Command::Cast(args) => cast::run(args, json),
        Command::Quantize(args) => quantize::run(args, json),
        Command::Dequantize(args) => dequantize::run(args, json),
        Command::Gemm(args) => gemm::run(args, json),
        Command::Compare(args) => compare::run(args, json),
        Command::Identify(args) => identify::run(&args, json),
        Command::Inspect(args) => inspect::run(args, json),
        Command::Recipe(args) => recipe::run(args, json),
        Command::Sanitize(args) => sanitize::run(&args, json),
        Command::Bench(args) => bench::run(args, json),
        Command::Vectors(args) => vectors::run(args, json),
        Command::Completions(args) => completions::run(&args, json),
        Command::Man(args) => man::run(&args, json),
    };
    if interrupt::came() {
        interrupt::wait();
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            let kind = clap::error::ErrorKind::ArgumentConflict;
            output::usage(&Cli::command().error(kind, output::printable(&message)))
        }
        Err(Failure::Findings) => ExitCode::from(FINDINGS),
        Err(Failure::Failed(message)) => {
            output::error(&message);
            ExitCode::FAILURE
        }
    }
}
