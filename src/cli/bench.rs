//! `finegrain bench`: how fast, after the answer was checked.

use std::num::NonZeroUsize;
use std::time::Instant;

use crate::engine::{Engine, Resident};
use crate::formats::{Format, Overflow};
use crate::gemm::{Accumulation, Arithmetic, BlockScales, GemmProblem, GroupedProblem, Model, Output};
use crate::matrix::Matrix;
use crate::quant::{Quantized, Quantizer, Recipe, Role};
use crate::scaled::{Codes, ScaledMatrix, ScaledRef};
use crate::simd::{Isa, OpClass};
use clap::ValueEnum;
use half::bf16;
use serde::Serialize;

use crate::cli::arithmetic::arithmetic;
use crate::cli::bench_elements::{ElementOp, Elements, Timed};
use crate::cli::output::{print, print_json};
use crate::cli::{Failure, Outcome, bench_choices};

const EXAMPLE: &str = "\
A product is checked against the reference before the clock starts: all of it, or rows at
the beginning, the middle and the end where that would take minutes. Then runs for at least
--seconds; the median counts. Codes lie in memory in plain row-major form: decoding and
packing are inside the measured time. Quantisers, dequantisers and casts write into memory
that is there already, and alternate with copies of as many bytes by all threads.

Examples:
  finegrain bench gemm --m 1024 --n 4096 --k 4096
  finegrain bench emulate --accumulate blackwell-mx --m 64
  finegrain bench quantize --m 8192 --k 8192 --as transposed --from bf16
  finegrain bench dequantize --m 8192 --k 8192 --json
  finegrain bench choices";

/// Measure the speed of the library on this machine, against what the machine can do
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum)]
    op: Op,

    /// Rows of A and D; of each group for grouped; of the matrix for quantize, dequantize and cast
    #[arg(long, default_value = "1024")]
    m: NonZeroUsize,

    /// Rows of B, columns of D
    #[arg(long, default_value = "4096")]
    n: NonZeroUsize,

    /// Elements summed; columns of the matrix
    #[arg(long, default_value = "4096")]
    k: NonZeroUsize,

    /// Groups of a grouped problem
    #[arg(long, default_value = "4")]
    groups: NonZeroUsize,

    /// Put B of gemm, emulate and grouped where the engine works before the clock starts, packed or on the device
    #[arg(long)]
    resident: bool,

    /// Recipe of the operands [default: deepseek-v3, or one with the block scales that the model applies]
    #[arg(long, value_name = "NAME")]
    recipe: Option<Recipe>,

    /// Accumulation model or arithmetic, as compare takes it [default: f32; hopper for emulate]
    #[arg(long, value_name = "MODEL", value_parser = arithmetic)]
    accumulate: Option<Arithmetic>,

    /// Format of D
    #[arg(long, value_enum, default_value_t = Out::F32)]
    out: Out,

    /// Role of the quantised matrix: activation 1x128, weight 128x128, transposed 128x1
    #[arg(long = "as", value_enum)]
    role: Option<Role>,

    /// Format that quantize and cast read: f32, bf16, f16 [default: f32]
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,

    /// Format that cast [default: e4m3] and dequantize [default: bf16] write
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,

    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Instruction set: scalar, avx2, avx512, avx512-bf16 [default: the fastest here, or FINEGRAIN_ISA]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,

    /// Least time to measure, in seconds
    #[arg(long, default_value = "1.0", value_parser = seconds)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    Gemm,
    Grouped,
    Emulate,
    Quantize,
    Dequantize,
    Cast,
    /// A fixed list of operations, by themselves and on each instruction set
    Choices,
}

impl Op {
    /// What works on the elements of one matrix, without multiply-adds.
    fn by_element(self) -> Option<ElementOp> {
        match self {
            Op::Quantize => Some(ElementOp::Quantize),
            Op::Dequantize => Some(ElementOp::Dequantize),
            Op::Cast => Some(ElementOp::Cast),
            Op::Gemm | Op::Grouped | Op::Emulate | Op::Choices => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Out {
    F32,
    Bf16,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=3600.0).contains(&s) => Ok(s),
        _ => Err("expected seconds from 0 to 3600".to_owned()),
    }
}

/// What was measured.
#[derive(Serialize)]
struct Measured {
    op: String,
    m: usize,
    n: usize,
    k: usize,
    recipe: String,
    accumulation: String,
    threads: usize,
    isa: &'static str,
    backend: &'static str,
    runs: usize,
    /// Median, least and largest of the runs.
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    gflops: f64,
    /// Bytes of codes, scales and results, each counted once, a second.
    gbytes_per_s: f64,
    /// Peak of the instruction set's multiply-adds, and of reading memory, measured just before.
    peak_gflops: f64,
    peak_gbytes_per_s: f64,
    /// Of copies of as many bytes, read and written, in turn with the work; without multiply-adds only.
    copy_gbytes_per_s: Option<f64>,
}

/// Runs `work` for as long as asked, after one run that does not count; the times, sorted.
fn times(least: f64, mut work: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    work()?;
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < 3 || begin.elapsed().as_secs_f64() < least {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Values of both signs over several binades, the same on every machine.
pub(crate) fn sample(rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let value = |i: u64, j: u64| {
        let mut x = (i << 32 ^ j).wrapping_add(seed << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let unit = (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        unit * [0.25, 1.0, 1.0, 4.0][(x & 3) as usize]
    };
    Matrix::from_fn(rows, cols, |i, j| value(i as u64, j as u64))
}

/// Bytes of an operand: codes and scales.
pub(crate) fn bytes(x: &ScaledRef<'_>) -> usize {
    let (rows, cols) = x.shape();
    let scales = x
        .scales()
        .map_or(0, |s| s.grid.shape().0 * s.grid.shape().1 * s.grid.format().spec().bits() as usize / 8);
    rows * cols * (x.format().spec().bits() as usize).div_ceil(8) + scales
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let mut engine = Engine::cpu();
    if let Some(isa) = args.isa {
        engine = engine.on(isa)?;
    }
    if let Some(threads) = args.threads {
        engine = engine.with_threads(threads)?;
    }
    if args.op == Op::Choices {
        return bench_choices::run(&engine, json);
    }
    // The peaks are measured on the same threads.
    let measured = engine.install(|| measure(&args, &engine))?;
    if json {
        return print_json(&measured);
    }
    if let Some(copy) = measured.copy_gbytes_per_s {
        return print(&format!(
            "{} {}x{} {}: {:.3} ms ({} runs, {:.3} to {:.3}), {:.1} GB/s ({:.0} % of a copy of as many bytes, {:.1} GB/s)\n\
             instruction set {}, {} threads; reads {:.1} GB/s\n",
            measured.op,
            measured.m,
            measured.k,
            measured.recipe,
            measured.seconds * 1e3,
            measured.runs,
            measured.seconds_min * 1e3,
            measured.seconds_max * 1e3,
            measured.gbytes_per_s,
            100.0 * measured.gbytes_per_s / copy,
            copy,
            measured.isa,
            measured.threads,
            measured.peak_gbytes_per_s,
        ));
    }
    print(&format!(
        "{} {}x{}x{} {} {}: {:.3} ms ({} runs, {:.3} to {:.3}), {:.1} GFLOP/s ({:.0} % of peak), {:.1} GB/s ({:.0} % of reading)\n\
         backend {}, instruction set {}, {} threads; peak {:.1} GFLOP/s, reads {:.1} GB/s\n",
        measured.op,
        measured.m,
        measured.n,
        measured.k,
        measured.recipe,
        measured.accumulation,
        measured.seconds * 1e3,
        measured.runs,
        measured.seconds_min * 1e3,
        measured.seconds_max * 1e3,
        measured.gflops,
        100.0 * measured.gflops / measured.peak_gflops,
        measured.gbytes_per_s,
        100.0 * measured.gbytes_per_s / measured.peak_gbytes_per_s,
        measured.backend,
        measured.isa,
        measured.threads,
        measured.peak_gflops,
        measured.peak_gbytes_per_s,
    ))
}

/// What an operation did: times, multiply-adds and bytes of one run, and how.
struct Work {
    times: Vec<f64>,
    /// Of copies of as many bytes.
    copies: Vec<f64>,
    macs: usize,
    bytes: usize,
    accumulation: String,
    isa: Isa,
    backend: &'static str,
}

fn measure(args: &Args, engine: &Engine<'static>) -> Result<Measured, Failure> {
    let (m, n, k) = (args.m.get(), args.n.get(), args.k.get());
    let work = match args.op {
        Op::Gemm | Op::Emulate => dense(args, engine)?,
        Op::Grouped => grouped(args, engine)?,
        Op::Quantize | Op::Dequantize | Op::Cast => elements(args, engine)?,
        Op::Choices => unreachable!("choices are measured on their own"),
    };
    let middle = |times: &[f64]| times.get(times.len() / 2).copied();
    let median = middle(&work.times).expect("an operation ran");
    let rate = |seconds| work.bytes as f64 / seconds / 1e9;
    Ok(Measured {
        op: args.op.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()),
        m,
        n: if args.op.by_element().is_some() { 1 } else { n },
        k,
        recipe: args.recipe()?.to_string(),
        accumulation: work.accumulation,
        threads: rayon::current_num_threads(),
        isa: work.isa.name(),
        backend: work.backend,
        runs: work.times.len(),
        seconds: median,
        seconds_min: work.times[0],
        seconds_max: work.times[work.times.len() - 1],
        gflops: 2.0 * work.macs as f64 / median / 1e9,
        gbytes_per_s: rate(median),
        peak_gflops: crate::simd::peak_flops(work.isa) / 1e9,
        peak_gbytes_per_s: crate::simd::read_bandwidth(work.isa) / 1e9,
        copy_gbytes_per_s: middle(&work.copies).map(rate),
    })
}

fn quantized(args: &Args, role: Role, rows: usize, seed: u64) -> Result<ScaledMatrix, Failure> {
    let x = sample(rows, args.k.get(), seed);
    if let (Model::TensorCore(core), None) = (args.arithmetic().model(), args.recipe) {
        let format = core.operands()[0];
        if format != Format::E4M3 && core.scales() == BlockScales::None {
            // No recipe is for these.
            let code = |&x: &f32| format.cast_f32(x, Overflow::Saturate).code as u32;
            return Ok(ScaledMatrix::new(format, Codes::new(format, &x.map(code)), None)?);
        }
    }
    let Quantized { matrix, .. } = Quantizer::new(args.recipe()?).quantize(x.view(), role)?;
    Ok(matrix)
}

impl Args {
    fn arithmetic(&self) -> Arithmetic {
        let model = if self.op == Op::Emulate { Accumulation::HOPPER.model() } else { Model::F32 };
        self.accumulate.unwrap_or(Arithmetic::Fitting(model))
    }

    /// The recipe asked for, or one with the block scales that the model applies.
    fn recipe(&self) -> crate::Result<Recipe> {
        let scales = match self.arithmetic().model() {
            Model::TensorCore(core) => core.scales(),
            _ => BlockScales::None,
        };
        let fitting = match scales {
            BlockScales::None => "deepseek-v3",
            BlockScales::Mx => "mxfp8-rceil",
            BlockScales::Fp4 => "nvfp4",
        };
        self.recipe.map_or_else(|| fitting.parse(), Ok)
    }
}

/// Compares up to three stripes of rows with the reference.
fn check(
    problem: &GemmProblem<'_>,
    a: ScaledRef<'_>,
    b: ScaledRef<'_>,
    d: &Matrix<f32>,
    first: usize,
) -> Result<(), Failure> {
    /// Multiply-adds that the reference does in about a second.
    const CHECKED: usize = 500_000_000;
    let m = a.shape().0;
    let stripe = (CHECKED / 3 / (b.shape().0 * b.shape().1)).clamp(1, m);
    for start in [0, (m - stripe) / 2, m - stripe] {
        let rows = a.row_range(start, start + stripe);
        let part = GemmProblem::nt(rows, b)?.with_accumulation(problem.accumulation())?;
        let expected = Engine::reference().gemm(&part)?;
        for i in 0..stripe {
            let got = d.row(first + start + i);
            if let Some(j) = (0..got.len()).find(|&j| got[j].to_bits() != expected.row(i)[j].to_bits()) {
                return Err(Failure::Failed(format!(
                    "D[{}, {j}] is {:08x}, the reference says {:08x}: nothing was timed",
                    first + start + i,
                    got[j].to_bits(),
                    expected.row(i)[j].to_bits()
                )));
            }
        }
    }
    Ok(())
}

fn dense(args: &Args, engine: &Engine<'_>) -> Result<Work, Failure> {
    let (m, n, k) = (args.m.get(), args.n.get(), args.k.get());
    let a = quantized(args, Role::Activation, m, 1)?;
    let b = quantized(args, Role::Weight, n, 2)?;
    let kept = if args.resident { Some(engine.upload(b.view())?) } else { None };
    let on = kept.as_ref().map_or(b.view(), Resident::view);
    let problem = GemmProblem::nt(a.view(), on)?.with_arithmetic(&args.arithmetic())?;
    let plan = engine.plan_gemm(&problem)?;
    let mut d = Matrix::filled(m, n, 0.0);
    plan.run_into(Output::F32(d.view_mut()))?;
    check(&problem, a.view(), b.view(), &d, 0)?;
    let mut narrow = Matrix::filled(m, n, bf16::ZERO);
    let times = times(args.seconds, || {
        let out = match args.out {
            Out::F32 => Output::F32(d.view_mut()),
            Out::Bf16 => Output::Bf16(narrow.view_mut()),
        };
        Ok(engine.gemm_into(&problem, out)?)
    })?;
    let element = if args.out == Out::F32 { 4 } else { 2 };
    let bytes = bytes(problem.a()) + bytes(problem.b()) + m * n * element;
    let accumulation = problem.accumulation().to_string();
    let (isa, backend) = (plan.isa().unwrap_or(Isa::Scalar), plan.backend());
    Ok(Work { times, copies: Vec::new(), macs: m * n * k, bytes, accumulation, isa, backend })
}

fn grouped(args: &Args, engine: &Engine<'_>) -> Result<Work, Failure> {
    let (m, n, k, groups) = (args.m.get(), args.n.get(), args.k.get(), args.groups.get());
    let a = quantized(args, Role::Activation, groups * m, 1)?;
    let experts =
        (0..groups).map(|g| quantized(args, Role::Weight, n, 2 + g as u64)).collect::<Result<Vec<_>, _>>()?;
    let experts: Vec<ScaledRef<'_>> = experts.iter().map(ScaledMatrix::view).collect();
    let kept = if args.resident { Some(engine.upload_group(&experts)?) } else { None };
    let on = kept.as_ref().map_or(experts.clone(), |kept| kept.iter().map(Resident::view).collect());
    let index: Vec<i32> = (0..groups * m).map(|i| (i / m) as i32).collect();
    let problem = GroupedProblem::contiguous(a.view(), &index, &on)?.with_arithmetic(&args.arithmetic())?;
    let first = problem.parts()[0].problem();
    let plan = engine.plan_gemm(&problem)?;
    let mut d = Matrix::filled(groups * m, n, 0.0);
    plan.run_into(Output::F32(d.view_mut()))?;
    for (g, &expert) in experts.iter().enumerate() {
        check(first, a.view().row_range(g * m, (g + 1) * m), expert, &d, g * m)?;
    }
    let times = times(args.seconds, || Ok(engine.gemm_into(&problem, Output::F32(d.view_mut()))?))?;
    let operands: usize = experts.iter().map(bytes).sum::<usize>() + bytes(&a.view());
    Ok(Work {
        times,
        copies: Vec::new(),
        macs: groups * m * n * k,
        bytes: operands + groups * m * n * 4,
        accumulation: problem.accumulation().to_string(),
        isa: plan.isa().unwrap_or(Isa::Scalar),
        backend: plan.backend(),
    })
}

/// Quantise, dequantise, cast: by element, without multiply-adds.
fn elements(args: &Args, engine: &Engine<'static>) -> Result<Work, Failure> {
    let op = args.op.by_element().expect("an operation by element");
    let (role, to) = match op {
        ElementOp::Dequantize => (Role::Weight, Format::Bf16),
        _ => (Role::Activation, Format::E4M3),
    };
    let class = match (op, args.role) {
        (ElementOp::Quantize, Some(Role::Transposed)) => OpClass::QuantizeTransposed,
        (ElementOp::Quantize, _) => OpClass::Quantize,
        (ElementOp::Dequantize, _) => OpClass::Dequantize,
        (ElementOp::Cast, _) => OpClass::Cast,
    };
    let isa = engine.isa_for(class)?.unwrap_or(Isa::Scalar);
    let measured = Elements {
        engine: engine.clone(),
        op,
        rows: args.m.get(),
        cols: args.k.get(),
        recipe: args.recipe()?,
        role: args.role.map_or(role, Role::from),
        from: args.from.unwrap_or(Format::F32),
        to: args.to.unwrap_or(to),
        least: args.seconds,
    };
    let Timed { times, copies, bytes } = measured.run()?;
    Ok(Work { times, copies, macs: 0, bytes, accumulation: "none".to_owned(), isa, backend: "registers" })
}
