//! What a device's kernels take: each answer is compared with the library, then timed. It runs on any driver; on the
//! interpreter the times mean nothing, and the tests use it to see that the benchmark works.

use std::ops::Range;
use std::sync::Mutex;

use finegrain::cuda::kernels::{Config, Kernel};
use finegrain::cuda::roofline::{DeviceSpec, Work, cast, product};
use finegrain::cuda::{Arch, Arg, Cuda, Driver};
use finegrain::error::Result;
use finegrain::formats::Format::E4M3;
use finegrain::gemm::{Accumulation, GemmBackend, GemmProblem, GroupedProblem, Model};
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe, Role, swiglu};
use finegrain::scaled::{Granule, ScaledMatrix};
use half::bf16;

use crate::common::operands::{Random, scaled};

/// Rows of D that are compared with the library: the first ones and the last ones.
const COMPARED: usize = 4;

/// A driver that runs each launch once, then as often again as it is told, timed. What a launch writes does not depend on
/// what it wrote before: outputs are no inputs, but for the counters of quantisers, which are not looked at here.
struct Timed<D> {
    inner: D,
    runs: u32,
    /// The last kernel and its seconds.
    last: Mutex<Option<(&'static str, f64)>>,
}

impl<D: Driver> Driver for Timed<D> {
    type Memory = D::Memory;

    fn arch(&self) -> Arch {
        self.inner.arch()
    }

    fn upload(&self, bytes: &[u8]) -> Result<D::Memory> {
        self.inner.upload(bytes)
    }

    fn allocate(&self, bytes: usize) -> Result<D::Memory> {
        self.inner.allocate(bytes)
    }

    fn zeros(&self, bytes: usize) -> Result<D::Memory> {
        self.inner.zeros(bytes)
    }

    fn address(&self, memory: &D::Memory) -> u64 {
        self.inner.address(memory)
    }

    fn download_part(&self, memory: &D::Memory, bytes: Range<usize>) -> Result<Vec<u8>> {
        self.inner.download_part(memory, bytes)
    }

    fn download(&self, memory: &D::Memory) -> Result<Vec<u8>> {
        self.inner.download(memory)
    }

    fn allow_shared(&self, kernel: &'static Kernel, bytes: u32) -> Result<()> {
        self.inner.allow_shared(kernel, bytes)
    }

    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.inner.seconds(work)
    }

    unsafe fn launch(&self, kernel: &'static Kernel, config: Config, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller vouches for the arguments, each time anew.
        let once = || unsafe { self.inner.launch(kernel, config, args) };
        once()?;
        let seconds = self.inner.seconds(&mut || (0..self.runs).try_for_each(|_| once()))?;
        *self.last.lock().unwrap() = Some((kernel.name, seconds / f64::from(self.runs)));
        Ok(())
    }
}

/// What is timed.
pub struct Sizes {
    /// Timed launches of each kernel.
    pub runs: u32,
    /// Rows and columns of what is cast.
    pub matrix: (usize, usize),
    /// M, N and K of dense products.
    pub products: Vec<(usize, usize, usize)>,
    /// Rows of each of four groups, N and K.
    pub groups: (usize, usize, usize),
}

/// Activations: few of them become zero, which the quantisers would look at again.
fn ordinary(rows: usize, cols: usize) -> Matrix<f32> {
    let mut random = Random(3);
    Matrix::from_fn(rows, cols, |_, _| random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0)
}

struct Bench<D> {
    gpu: Cuda<Timed<D>>,
    device: Option<&'static DeviceSpec>,
    lines: Vec<String>,
}

impl<D: Driver> Bench<D> {
    /// A line for the last launch.
    fn line(&mut self, problem: &str, work: Work) {
        let (kernel, seconds) =
            self.gpu.driver().last.lock().unwrap().take().expect("something was launched");
        let (rate, unit, peak) = if work.tensor > 0.0 {
            (work.tensor / seconds / 1e12, "TFLOP/s", self.device.map(|d| d.fp8))
        } else {
            (work.bytes / seconds / 1e9, "GB/s", self.device.map(|d| d.memory))
        };
        let share =
            peak.map_or(String::new(), |p| format!(", {:.0} % of the published peak", 100.0 * rate / p));
        self.lines.push(format!("{kernel} {problem}: {:.1} µs, {rate:.1} {unit}{share}", seconds * 1e6));
    }

    fn casts(&mut self, (rows, cols): (usize, usize)) -> Result<()> {
        let (elements, problem) = (rows * cols, format!("{rows}×{cols}"));
        let (x, recipe) = (ordinary(rows, cols), &Recipe::DEEPSEEK_V3);
        let narrow = x.map(|&v| bf16::from_f32(v));
        let quantizer = Quantizer::new(*recipe);
        for role in [Role::Activation, Role::Weight, Role::Transposed] {
            let want = quantizer.quantize(x.view(), role)?.matrix;
            assert_eq!(self.gpu.quantize(x.view(), recipe, role)?.matrix, want, "{role:?}");
            self.line(&problem, cast(elements, 5, 2));
            let want = quantizer.quantize(narrow.view(), role)?.matrix;
            assert_eq!(self.gpu.quantize(narrow.view(), recipe, role)?.matrix, want, "{role:?} in bf16");
            self.line(&problem, cast(elements, 3, 2));
        }
        let want = quantizer.activation(swiglu(narrow.view(), narrow.view())?.view())?.matrix;
        let got = self.gpu.swiglu_quantize(narrow.view(), narrow.view(), recipe)?.matrix;
        assert_eq!(got, want, "SwiGLU");
        self.line(&problem, cast(elements, 5, 25));
        let tiles = quantizer.activation(x.view())?.matrix;
        let want = quantizer.requantize_transposed(tiles.view())?.matrix;
        assert_eq!(
            self.gpu.requantize_transposed(tiles.view(), recipe)?.matrix,
            want,
            "requantise-transpose"
        );
        self.line(&problem, cast(elements, 2, 3));
        assert_eq!(self.gpu.dequantize(tiles.view())?, tiles.dequantize().unwrap(), "dequantise");
        self.line(&problem, cast(elements, 5, 1));
        Ok(())
    }

    fn product(&mut self, (m, n, k): (usize, usize, usize), accumulation: Accumulation) -> Result<()> {
        let (a, b) =
            (scaled(E4M3, m, k, Granule::TILE_1X128, 1), scaled(E4M3, n, k, Granule::BLOCK_128X128, 2));
        let problem = GemmProblem::nt(a.view(), b.view())?.with_accumulation(accumulation)?;
        let got = self.gpu.gemm(&problem)?;
        for rows in [0..m.min(COMPARED), m.saturating_sub(COMPARED)..m] {
            let part = GemmProblem::nt(a.view().row_range(rows.start, rows.end), b.view())?;
            let want = part.with_accumulation(accumulation)?.run()?;
            same(&got, rows.start, &want);
        }
        self.line(&format!("{m}×{n}×{k}"), product(m, n, k, true));
        Ok(())
    }

    fn groups(&mut self, (rows, n, k): (usize, usize, usize), accumulation: Accumulation) -> Result<()> {
        const GROUPS: usize = 4;
        let several = |rows, k, granule, seed: u64| -> Vec<ScaledMatrix> {
            (0..GROUPS).map(|g| scaled(E4M3, rows, k, granule, seed + g as u64)).collect()
        };
        let (tile, block) = (Granule::TILE_1X128, Granule::BLOCK_128X128);
        let all = scaled(E4M3, GROUPS * rows, k, tile, 1);
        let (a, b, wide) = (several(rows, k, tile, 1), several(n, k, block, 20), several(n, k, tile, 40));
        let [a, b, wide] = [&a, &b, &wide].map(|x| x.iter().map(ScaledMatrix::view).collect::<Vec<_>>());
        let owners: Vec<i32> = (0..GROUPS * rows).map(|i| (i / rows) as i32).collect();
        let contiguous = GroupedProblem::contiguous(all.view(), &owners, &b)?;
        let masked = GroupedProblem::masked(&a, &[rows; GROUPS], &b)?;
        let k_grouped = GroupedProblem::k_grouped(&a, &wide)?;
        for problem in [contiguous, masked, k_grouped] {
            let problem = problem.with_accumulation(accumulation)?;
            let got = self.gpu.grouped_gemm(&problem)?;
            for part in problem.parts() {
                let dense = part.problem();
                let first = GemmProblem::nt(dense.a().row_range(0, COMPARED.min(dense.m())), *dense.b())?;
                same(&got, part.rows().start, &first.with_accumulation(accumulation)?.run()?);
            }
            let (each, count) = (product(rows, n, k, true), GROUPS as f64);
            let work = Work { bytes: each.bytes * count, tensor: each.tensor * count, f32: each.f32 * count };
            self.line(&format!("{GROUPS} groups of {rows}×{n}×{k}"), work);
        }
        Ok(())
    }
}

fn same(got: &Matrix<f32>, first: usize, want: &Matrix<f32>) {
    for i in 0..want.rows() {
        let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(got.row(first + i)), bits(want.row(i)), "row {}", first + i);
    }
}

/// Compares and times; gives a line for each launch. Peaks are those of `device`, where it is known.
///
/// # Panics
/// If an answer is not the library's.
pub fn run<D: Driver>(driver: D, device: Option<&'static DeviceSpec>, sizes: &Sizes) -> Result<Vec<String>> {
    let gpu = Cuda::new(Timed { inner: driver, runs: sizes.runs, last: Mutex::default() });
    let mut bench = Bench { gpu, device, lines: Vec::new() };
    bench.casts(sizes.matrix)?;
    for model in bench.gpu.models().into_iter().filter(|m| matches!(m, Model::TensorCore(_))) {
        let accumulation = Accumulation::new(model).promote_every(128)?;
        for &shape in &sizes.products {
            bench.product(shape, accumulation)?;
        }
        bench.groups(sizes.groups, accumulation)?;
    }
    Ok(bench.lines)
}
