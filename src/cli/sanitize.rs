//! `finegrain sanitize`: what is wrong with a grouped layout, and whether a kernel lets padding into its results.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Dtype, Part, Tensor, TensorFile, write_tensors};
use crate::engine::Engine;
use crate::gemm::Arithmetic;
use crate::gemm::sanitize::{GroupedOperands, Groups, LayoutRules, Leak, Poison, Rule, Violation, sanitize};
use crate::matrix::Matrix;
use crate::scaled::layout::ScaleLayout;
use crate::scaled::{Codes, ScaleGrid, ScaledMatrix, ScaledRef};
use serde::Serialize;

use crate::cli::arithmetic::arithmetic;
use crate::cli::operand::OperandArgs;
use crate::cli::output::{Table, print, print_json};
use crate::cli::product::{Grouped, read_groups, sizes};
use crate::cli::{Failure, Outcome, notes};

const EXAMPLE: &str = "\
IN is a grouped problem as `finegrain gemm` reads it: a, b, groups and scales. Its layout is held to
the rules of grouped kernels, and each backend runs with NaN, the largest values and infinities in
all padding: not a bit of a valid row may change.

For a kernel of your own: --poison DIR writes clean.safetensors, nan.safetensors, huge.safetensors and
infinite.safetensors, which differ in their padding only (a_scale_inv.tma holds a's f32 scales MN-major,
the padding of the layout poisoned too). Run your kernel on each, write its d under the same name into
another folder, and let --results DIR compare.

Exit 1 if a rule is broken or a valid row changes.

Examples:
  finegrain sanitize problem.safetensors --align 128 --ue8m0 --allow empty-group
  finegrain sanitize problem.safetensors --poison poisoned
  finegrain sanitize problem.safetensors --results results";

/// Check a grouped GEMM: the rules of its layout, and that padding reaches no valid row
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file with a, b, groups and what belongs to them
    r#in: PathBuf,

    /// The form that 'groups' describes
    #[arg(long, value_enum, default_value_t = Grouped::Contiguous)]
    grouped: Grouped,

    /// Rows of a tile that groups are aligned to (elements of K for --grouped k)
    #[arg(long, value_name = "N", default_value_t = LayoutRules::default().align)]
    align: usize,

    /// Ask for scales that are powers of two, as UE8M0 stores them
    #[arg(long)]
    ue8m0: bool,

    /// A rule that may be broken; repeat for more: alignment, boundary-in-tile, split-group, empty-group ...
    #[arg(long, value_name = "RULE")]
    allow: Vec<Rule>,

    /// Accumulation of the backends: MODEL, MODEL/N, MODEL/none, as compare takes it
    #[arg(long, value_name = "MODEL", default_value = "f32", value_parser = arithmetic)]
    accumulate: Arithmetic,

    /// Backend to run; repeat for more [default: every one that computes the problem]
    #[arg(long, value_name = "NAME")]
    backend: Vec<String>,

    /// Write the problem with clean and with poisoned padding into this folder, and run nothing
    #[arg(long, value_name = "DIR", conflicts_with = "results")]
    poison: Option<PathBuf>,

    /// Compare the d that a kernel made of each file of --poison, and run nothing
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,

    #[command(flatten)]
    operands: OperandArgs,
}

/// One kernel and what reached its valid rows.
#[derive(Serialize)]
struct Run {
    kernel: String,
    poisons: usize,
    leaks: Vec<Leak>,
}

pub(crate) fn run(args: &Args, json: bool) -> Outcome {
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "sanitize")?;
    let operands = operands(args, &file)?;
    let rules = LayoutRules { align: args.align, power_of_two: args.ue8m0 };
    let mut violations = operands.violations(rules);
    violations.retain(|v| !args.allow.contains(&v.rule));
    let blame = |e: crate::Error| crate::Error::file(&args.r#in, e);
    let unusable = operands.problem().err().map(|e| e.to_string());
    let runs = match (&args.poison, &args.results) {
        (Some(folder), _) => {
            if !args.operands.is_row_major() {
                let message = "poisoned files are written of row-major scales only".to_owned();
                return Err(Failure::Failed(message));
            }
            write_poisoned(folder, &file, &operands)?;
            Vec::new()
        }
        (None, Some(folder)) => vec![results(folder, &operands)?],
        // The violations say why there is no problem to run.
        (None, None) if unusable.is_some() => Vec::new(),
        (None, None) => on_backends(args, &operands).map_err(blame)?,
    };
    let valid = operands.valid_rows();
    let count = valid.iter().filter(|v| **v).count();
    let leaking: usize = runs.iter().map(|r| r.leaks.len()).sum();
    if json {
        print_json(&serde_json::json!({
            "input": args.r#in.display().to_string(),
            "rows": valid.len(),
            "valid_rows": count,
            "violations": violations,
            "unusable": unusable,
            "kernels": runs,
        }))?;
    } else {
        print(&text(&violations, &runs, count, valid.len()))?;
    }
    let input = args.r#in.display();
    match (violations.len(), leaking, unusable) {
        (0, 0, None) => Ok(()),
        (0, _, Some(reason)) => Err(Failure::Failed(format!("{input}: {reason}"))),
        (n, 0, _) => Err(Failure::Failed(format!("{input}: rules of the layout are broken in {n} places"))),
        (n, leaks, _) => Err(Failure::Failed(format!(
            "{input}: padding reaches valid rows in {leaks} runs; rules of the layout are broken in {n} places"
        ))),
    }
}

fn operands(args: &Args, file: &Checkpoint) -> crate::Result<GroupedOperands> {
    let (a, b) = args.operands.read(file)?;
    let groups = read_groups(file, Some(args.grouped))?.unwrap_or_default();
    let owned = |all: Vec<ScaledRef<'_>>| all.iter().map(ScaledRef::to_matrix).collect::<Vec<_>>();
    let (a, b, groups) = match args.grouped {
        Grouped::Contiguous => (vec![a.whole()?.to_matrix()], owned(b.groups()?), Groups::Contiguous(groups)),
        Grouped::Masked => (owned(a.groups()?), owned(b.groups()?), Groups::Masked(sizes(&groups)?)),
        Grouped::K => {
            let sizes = sizes(&groups)?;
            (owned(a.k_groups(&sizes)?), owned(b.k_groups(&sizes)?), Groups::K)
        }
    };
    GroupedOperands::new(a, b, groups).map_err(|e| crate::Error::file(&args.r#in, e))
}

fn on_backends(args: &Args, operands: &GroupedOperands) -> crate::Result<Vec<Run>> {
    let problem = operands.problem()?.with_arithmetic(&args.accumulate)?;
    let named: Vec<_> = args.backend.iter().map(|n| Engine::by_name(n)).collect::<Result<_, _>>()?;
    let able = |name: &&str| -> Option<Engine<'static>> {
        let engine = Engine::by_name(name).ok()?;
        let able = engine.plan_gemm(&problem).is_ok();
        able.then_some(engine)
    };
    let all = if named.is_empty() { Engine::NAMES.iter().filter_map(able).collect() } else { named };
    let run = |engine: Engine<'static>| {
        let multiply =
            |operands: &GroupedOperands| engine.gemm(&operands.problem()?.with_arithmetic(&args.accumulate)?);
        let leaks = sanitize(operands, &multiply)?;
        let kernel = format!("{} {}", engine.name(), problem.accumulation());
        Ok(Run { kernel, poisons: Poison::ALL.len(), leaks })
    };
    all.into_iter().map(run).collect()
}

/// The name of a file of --poison and --results.
fn file_name(poison: Option<Poison>) -> &'static str {
    match poison {
        None => "clean.safetensors",
        Some(Poison::Nan) => "nan.safetensors",
        Some(Poison::Huge) => "huge.safetensors",
        Some(Poison::Infinite) => "infinite.safetensors",
    }
}

fn write_poisoned(folder: &Path, file: &Checkpoint, operands: &GroupedOperands) -> crate::Result<()> {
    if *operands.groups() == Groups::K {
        let message = "k-grouped problems have no padding to poison";
        return Err(crate::Error::Unsupported(message.to_owned()));
    }
    std::fs::create_dir_all(folder).map_err(|e| crate::Error::file(folder, e))?;
    for poison in [None].into_iter().chain(Poison::ALL.map(Some)) {
        let padded = operands.with_padding(poison);
        let mut tensors = Vec::new();
        for name in file.names() {
            let original = file.read(name)?;
            let data = match (name.as_str(), file.pairs().owner(name)) {
                ("a", _) => Some(codes(padded.a())),
                ("b", _) => Some(codes(padded.b())),
                ("a_scale_inv", _) | (_, Some(("a", Part::Block))) => Some(scales(padded.a())),
                ("b_scale_inv", _) | (_, Some(("b", Part::Block))) => Some(scales(padded.b())),
                _ => None,
            };
            let tensor = match data {
                Some(data) => Tensor::new(original.dtype(), original.shape().to_vec(), data)?,
                None => original,
            };
            tensors.push((name.clone(), tensor));
        }
        if let [a] = padded.a()
            && let Some(ScaleGrid::F32(grid)) = a.scales().map(|s| &s.grid)
        {
            let stored = ScaleLayout::MnMajorTma.store_padded(grid.view(), padded.padding_scale());
            let shape = vec![grid.cols(), stored.len() / grid.cols().max(1)];
            let data = stored.iter().flat_map(|s| s.to_le_bytes()).collect();
            tensors.push(("a_scale_inv.tma".to_owned(), Tensor::new(Dtype::F32, shape, data)?));
        }
        write_tensors(&folder.join(file_name(poison)), &tensors)?;
    }
    Ok(())
}

fn codes(all: &[ScaledMatrix]) -> Vec<u8> {
    let bytes = |m: &ScaledMatrix| match m.codes() {
        Codes::Bytes(m) => m.as_slice().to_vec(),
        Codes::Words(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
        Codes::Dwords(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
    };
    all.iter().flat_map(bytes).collect()
}

fn scales(all: &[ScaledMatrix]) -> Vec<u8> {
    let bytes = |m: &ScaledMatrix| match m.scales().map(|s| &s.grid) {
        Some(ScaleGrid::F32(m)) => m.as_slice().iter().flat_map(|s| s.to_le_bytes()).collect(),
        Some(ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m)) => m.as_slice().to_vec(),
        None => Vec::new(),
    };
    all.iter().flat_map(bytes).collect()
}

/// What a kernel made of the files of --poison.
fn results(folder: &Path, operands: &GroupedOperands) -> crate::Result<Run> {
    let rows = operands.valid_rows().len();
    let read = |poison| -> crate::Result<Matrix<f32>> {
        let file = TensorFile::open(folder.join(file_name(poison)))?;
        let d = file.read("d")?;
        let cols = d.shape().last().copied().unwrap_or(0);
        let expected = (rows, operands.b()[0].shape().0);
        if (d.elements() / cols.max(1), cols) != expected {
            let message = format!("shape {:?}, expected {} rows of {}", d.shape(), expected.0, expected.1);
            return Err(file.blame("d", message));
        }
        let values = d.to_f32().map_err(|e| file.blame("d", e))?;
        Matrix::from_vec(rows, cols, values)
    };
    let clean = read(None)?;
    let mut leaks = Vec::new();
    for poison in Poison::ALL {
        leaks.extend(operands.leak(poison, &clean, &read(Some(poison))?));
    }
    Ok(Run { kernel: folder.display().to_string(), poisons: Poison::ALL.len(), leaks })
}

fn text(violations: &[Violation], runs: &[Run], valid: usize, rows: usize) -> String {
    let mut text = String::new();
    if !violations.is_empty() {
        let mut table = Table::new(&["<rule", "<group", "<where"]);
        for v in violations {
            let group = v.group.map_or("-".to_owned(), |g| g.to_string());
            table.row([v.rule.name().to_owned(), group, v.message.clone()]);
        }
        text += &table.render();
        text += "\n";
    }
    for run in runs {
        if run.leaks.is_empty() {
            text += &format!(
                "{}: not a bit of {valid} valid rows of {rows} changes with {} poisons\n",
                run.kernel, run.poisons
            );
        }
        for leak in &run.leaks {
            let poison = format!("{:?}", leak.poison).to_lowercase();
            text += &format!(
                "{}: {poison} in the padding changes {} of {valid} valid rows, the first at ({}, {}): {:e} becomes {:e}\n",
                run.kernel, leak.rows, leak.first.0, leak.first.1, leak.clean, leak.poisoned
            );
        }
    }
    text
}
