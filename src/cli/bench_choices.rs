//! `finegrain bench choices`: the automatic choice of instructions against the best that is forced.

use std::time::Instant;

use half::bf16;
use serde::Serialize;

use crate::cli::bench::sample;
use crate::cli::output::{Table, measured, print, print_json};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Outcome};
use crate::engine::Engine;
use crate::formats::{Format, Overflow, Rounding, TensorRounding};
use crate::gemm::{Accumulation, GemmProblem, GroupedProblem, Output};
use crate::matrix::Matrix;
use crate::quant::{Caster, Quantizer, Recipe, Role};
use crate::scaled::{ScaledMatrix, ScaledRef};
use crate::simd::Isa;

/// Rows of A that are tried with weights of [`SIZE`] × [`SIZE`].
const ROWS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 1024];
/// N and K of those, and rows and columns of what is quantised, dequantised and cast.
const SIZE: usize = 4096;
/// A square product.
const SQUARE: usize = 2048;
/// Groups of the grouped product, and rows, N and K of each.
const GROUPED: (usize, usize, usize, usize) = (4, 256, 3072, 2048);
/// M, N and K of the emulated product.
const EMULATED: (usize, usize, usize) = (128, 1024, 2048);

/// Seconds for a row, and turns at least.
const SECONDS: f64 = 3.0;
const TURNS: usize = 7;

/// One operation: the time of each contestant, the least of its runs.
#[derive(Serialize)]
struct Row {
    op: &'static str,
    m: usize,
    n: usize,
    k: usize,
    /// Seconds as it runs by itself.
    automatic: f64,
    /// Seconds on the fastest set that is forced.
    best: f64,
    /// best / automatic.
    ratio: f64,
    /// What it runs on by itself.
    chosen: String,
    /// Seconds on each set.
    forced: Vec<Forced>,
}

#[derive(Clone, Serialize)]
struct Forced {
    isa: &'static str,
    seconds: f64,
}

/// All engines of a contest: the automatic one, then one for each set.
struct Contest<'p> {
    automatic: Engine<'static>,
    forced: Vec<(Isa, Engine<'static>)>,
    progress: &'p Progress,
}

impl Contest<'_> {
    /// Runs `work` on each engine in turn, after one run each that does not count.
    fn run(
        &self,
        (op, m, n, k): (&'static str, usize, usize, usize),
        chosen: Option<Isa>,
        mut work: impl FnMut(&Engine<'static>) -> crate::Result<()>,
    ) -> Result<Row, Failure> {
        self.progress.on(&format!("{op} {m}x{n}x{k}"));
        let engines: Vec<&Engine<'static>> =
            std::iter::once(&self.automatic).chain(self.forced.iter().map(|(_, engine)| engine)).collect();
        for engine in &engines {
            work(engine)?;
        }
        let mut least = vec![f64::INFINITY; engines.len()];
        let (begin, mut turns) = (Instant::now(), 0);
        while turns < TURNS || begin.elapsed().as_secs_f64() < SECONDS {
            // Nobody is always the one after the slowest.
            for i in 0..engines.len() {
                let i = (i + turns) % engines.len();
                let start = Instant::now();
                work(engines[i])?;
                least[i] = least[i].min(start.elapsed().as_secs_f64());
            }
            turns += 1;
        }
        self.progress.advance(1);
        let (automatic, rest) = (least[0], &least[1..]);
        let best = rest.iter().copied().fold(f64::INFINITY, f64::min);
        let forced = self.forced.iter().zip(rest);
        Ok(Row {
            op,
            m,
            n,
            k,
            automatic,
            best,
            ratio: best / automatic,
            chosen: chosen.map_or_else(|| "reference".to_owned(), |isa| isa.to_string()),
            forced: forced.map(|((isa, _), &seconds)| Forced { isa: isa.name(), seconds }).collect(),
        })
    }

    fn product(&self, op: &'static str, problem: &GemmProblem<'_>) -> Result<Row, Failure> {
        let (m, n, k) = (problem.m(), problem.n(), problem.k());
        let mut d = Matrix::filled(m, n, 0.0);
        let chosen = self.automatic.plan_gemm(problem)?.isa();
        self.run((op, m, n, k), chosen, |engine| engine.gemm_into(problem, Output::F32(d.view_mut())))
    }

    fn products(&self) -> Result<Vec<Row>, Failure> {
        let weights = quantized(SIZE, SIZE, Role::Weight, 2)?;
        let mut rows = Vec::new();
        for m in ROWS {
            let a = quantized(m, SIZE, Role::Activation, 1)?;
            rows.push(self.product("gemm", &GemmProblem::nt(a.view(), weights.view())?)?);
        }
        let (a, b) =
            (quantized(SQUARE, SQUARE, Role::Activation, 1)?, quantized(SQUARE, SQUARE, Role::Weight, 2)?);
        rows.push(self.product("gemm", &GemmProblem::nt(a.view(), b.view())?)?);

        let (groups, m, n, k) = GROUPED;
        let a = quantized(groups * m, k, Role::Activation, 1)?;
        let experts = (0..groups)
            .map(|g| quantized(n, k, Role::Weight, 2 + g as u64))
            .collect::<Result<Vec<_>, _>>()?;
        let experts: Vec<ScaledRef<'_>> = experts.iter().map(ScaledMatrix::view).collect();
        let index: Vec<i32> = (0..groups * m).map(|row| (row / m) as i32).collect();
        let problem = GroupedProblem::contiguous(a.view(), &index, &experts)?;
        let mut d = Matrix::filled(groups * m, n, 0.0);
        let chosen = self.automatic.plan_gemm(&problem)?.isa();
        rows.push(self.run(("grouped", groups * m, n, k), chosen, |engine| {
            engine.gemm_into(&problem, Output::F32(d.view_mut()))
        })?);

        let (m, n, k) = EMULATED;
        let (a, b) = (quantized(m, k, Role::Activation, 1)?, quantized(n, k, Role::Weight, 2)?);
        let hopper = Accumulation::HOPPER.promote_every(128)?;
        rows.push(self.product("emulate", &GemmProblem::nt(a.view(), b.view())?.with_accumulation(hopper)?)?);
        Ok(rows)
    }

    fn elements(&self) -> Result<Vec<Row>, Failure> {
        use crate::simd::OpClass;
        let x = sample(SIZE, SIZE, 1);
        let recipe = &Recipe::DEEPSEEK_V3;
        let mut rows = Vec::new();
        for (op, role, class) in [
            ("quantize activation", Role::Activation, OpClass::Quantize),
            ("quantize weight", Role::Weight, OpClass::Quantize),
            ("quantize transposed", Role::Transposed, OpClass::QuantizeTransposed),
        ] {
            let mut out = self.automatic.quantize(x.view(), recipe, role)?.matrix;
            let chosen = self.automatic.isa_for(class)?;
            rows.push(self.run((op, SIZE, 1, SIZE), chosen, |engine| {
                engine.quantize_into(x.view(), recipe, role, &mut out).map(drop)
            })?);
        }
        let w = quantized(SIZE, SIZE, Role::Weight, 2)?;
        let mut values = Matrix::filled(SIZE, SIZE, bf16::ZERO);
        let chosen = self.automatic.isa_for(OpClass::Dequantize)?;
        rows.push(self.run(("dequantize bf16", SIZE, 1, SIZE), chosen, |engine| {
            engine.dequantize_into(w.view(), values.view_mut())
        })?);
        let narrow = x.map(|&v| bf16::from_f32(v));
        let mut codes = vec![0u8; SIZE * SIZE];
        let chosen = self.automatic.isa_for(OpClass::Cast)?;
        let nearest = TensorRounding::Fixed(Rounding::NearestEven);
        let caster = |format| Caster::new(format, nearest, Overflow::Saturate);
        rows.push(self.run(("cast f32 e4m3", SIZE, 1, SIZE), chosen, |engine| {
            engine.cast_bytes(&caster(Format::E4M3), x.as_slice(), &mut codes).map(drop)
        })?);
        rows.push(self.run(("cast bf16 e5m2", SIZE, 1, SIZE), chosen, |engine| {
            engine.cast_bytes(&caster(Format::E5M2), narrow.as_slice(), &mut codes).map(drop)
        })?);
        Ok(rows)
    }
}

fn quantized(rows: usize, cols: usize, role: Role, seed: u64) -> Result<ScaledMatrix, Failure> {
    Ok(Quantizer::new(Recipe::DEEPSEEK_V3).quantize(sample(rows, cols, seed).view(), role)?.matrix)
}

/// Rows that [`Contest::products`] and [`Contest::elements`] give.
const STEPS: u64 = ROWS.len() as u64 + 3 + 6;

/// Measures every operation on `engine` and on every set of this CPU but the scalar one, and prints best over automatic.
pub(crate) fn run(engine: &Engine<'static>, json: bool) -> Outcome {
    let progress = Progress::steps(STEPS);
    let available = Isa::ALL.iter().copied().filter(|&isa| isa != Isa::Scalar && isa.is_available());
    let forced =
        available.map(|isa| Ok((isa, engine.clone().on(isa)?))).collect::<crate::Result<Vec<_>>>()?;
    if forced.is_empty() {
        return Err(Failure::Failed(
            "this CPU has no instruction set but scalar: there is no choice".to_owned(),
        ));
    }
    let contest = Contest { automatic: engine.clone(), forced, progress: &progress };
    let rows = engine.install(|| -> Result<Vec<Row>, Failure> {
        let mut rows = contest.products()?;
        rows.extend(contest.elements()?);
        Ok(rows)
    })?;
    drop(contest);
    drop(progress);
    if json {
        return print_json(&serde_json::json!({ "threads": engine.threads(), "rows": rows }));
    }
    print(&table(&rows))
}

fn table(rows: &[Row]) -> String {
    let sets = rows.first().map_or(&[][..], |row| &row.forced);
    let mut titles: Vec<String> = ["<op", "m", "n", "k"].map(str::to_owned).to_vec();
    titles.extend(sets.iter().map(|set| format!("{} ms", set.isa)));
    titles.extend(["automatic ms", "best/automatic", "<chosen"].map(str::to_owned));
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for row in rows {
        let mut cells = vec![row.op.to_owned(), row.m.to_string(), row.n.to_string(), row.k.to_string()];
        cells.extend(row.forced.iter().map(|set| measured(1e3 * set.seconds)));
        cells.extend([measured(1e3 * row.automatic), format!("{:.3}", row.ratio), row.chosen.clone()]);
        table.row(cells);
    }
    table.render()
}
