//! The quantiser in registers: the reference's bits at the speed of memory.
//!
//! Granule by granule: the maximum of the magnitudes' bits, [`Recipe::granule_scale`] of it, then payloads and codes four
//! registers at a time. What only NaN or infinity can bring about is left to the reference's own functions, for the
//! group of elements where it happens.
//!
//! Where granules are taller than what stays in the cache, their maxima are taken first, over all rows in parallel.
#![forbid(unsafe_code)]

mod columns;
mod granules;
mod rows;

use finegrain_cpu::quantize::{CastRule, Counts, PeakScratch, ScaleRule, peaks};

use self::columns::{COLUMNS, ColumnTask, ROWS, Source};
use self::granules::{Decisions, GranuleRow, ScalesMut, amax_of, scale_rule};
use self::rows::RowTask;
use super::derive::{Payload, TensorScale};
use super::recipe::{ElementCast, Recipe};
use super::reference::count;
use super::stats::QuantStats;
use crate::element::{CodesMut, Panel};
use crate::error::Result;
use crate::formats::e5m6::E5m6Rounding;
use crate::formats::{Format, Overflow, Rounding};
use crate::parallel::{self, Watch};
use crate::scaled::{CodesSliceMut, Granule, ScaleSliceMut, ScaledMatrix, ScaledMut, ScaledRef};
use crate::simd::{Encoder, Isa};

/// Elements of a task: some hundred microseconds, many tasks a thread.
const TASK: usize = 1 << 17;
/// Granules of more rows are decided before anything is cast.
const TALL: usize = 512;
/// From this size on, results go past the cache: matrices of this many bytes are not read again from there.
pub(super) const PAST_CACHE: usize = 1 << 25;
/// All but the sign of an f32.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// Below this TileKernels' rounding to E5M6 is not nearest even.
const TILE_KERNELS_NORMAL: f32 = 1.0 / 16384.0;

/// What every task of one matrix needs.
struct Plan<'a> {
    recipe: &'a Recipe,
    /// In the matrix that is read.
    granule: Granule,
    tensor: TensorScale,
    rule: CastRule,
    scale_rule: Option<ScaleRule>,
    past_cache: bool,
    isa: Isa,
}

impl Plan<'_> {
    /// The code of one element, as the reference casts and counts it.
    fn cast_one(&self, x: f32, payload: Payload, stats: &mut QuantStats) -> u64 {
        let cast = self.recipe.encode(payload.of(x));
        count(stats, self.recipe.element, x, cast.code, cast.events);
        cast.code
    }
}

impl QuantStats {
    /// What a kernel counted.
    fn add(&mut self, counts: &Counts) {
        self.saturated += counts.saturated;
        self.flushed += counts.flushed;
        self.lost += counts.lost;
    }
}

/// How the result lies against what is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The same.
    Same,
    /// Transposed.
    Transposed,
}

/// Whether registers can encode what a recipe asks for.
pub(super) fn supports(recipe: &Recipe) -> bool {
    encoder(recipe).is_some()
}

fn encoder(recipe: &Recipe) -> Option<Encoder> {
    let overflow = match recipe.cast {
        ElementCast::Plain(overflow) => overflow,
        ElementCast::PositiveZero => Overflow::Saturate,
        ElementCast::E5m6(_) if recipe.element == Format::E5M6 => Overflow::Saturate,
        ElementCast::E5m6(_) => return None,
    };
    crate::simd::encoder(recipe.element, Rounding::NearestEven, overflow)
}

/// The format of the scales as stored.
pub(super) fn scale_format(recipe: &Recipe) -> Format {
    recipe.scale_format().stored()
}

/// A matrix of zeros with the shape of the result.
pub(super) fn blank(recipe: &Recipe, rows: usize, cols: usize, granule: Granule) -> ScaledMatrix {
    ScaledMatrix::zeros(recipe.element, rows, cols, granule, scale_format(recipe))
}

/// Quantises `x`, which has elements, into a matrix like that which [`blank`] gives; with the scale of the tensor.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled).
pub(super) fn quantize(
    x: Panel<'_>,
    recipe: &Recipe,
    order: Order,
    isa: Isa,
    out: ScaledMut<'_>,
    watch: &Watch<'_>,
) -> Result<(QuantStats, f32)> {
    let tensor = if recipe.needs_tensor_amax() {
        recipe.tensor_scale(tensor_amax(x, recipe, isa, watch)?)
    } else {
        TensorScale::ONE
    };
    let plan = plan(recipe, order, tensor, Source::Matrix(x), isa, &out);
    let (codes, scales) = parts(out);
    let stats = match order {
        Order::Same => in_rows(&plan, x, codes, scales, watch),
        Order::Transposed => in_columns(&plan, Source::Matrix(x), codes, scales, watch),
    }?;
    Ok((stats, tensor.scale))
}

/// Whether [`requantize_transposed`] works tile by tile: nothing is to be known of the whole matrix.
pub(super) fn requantizes_by_tiles(recipe: &Recipe) -> bool {
    let granule = recipe.activation.transposed();
    !recipe.needs_tensor_amax() && granule.rows() <= ROWS && granule.cols() <= COLUMNS
}

/// Dequantises tile by tile and quantises the transpose, into a matrix like that which [`blank`] gives.
///
/// # Errors
/// As [`quantize`].
pub(super) fn requantize_transposed(
    x: &ScaledRef<'_>,
    recipe: &Recipe,
    isa: Isa,
    out: ScaledMut<'_>,
    watch: &Watch<'_>,
) -> Result<QuantStats> {
    let plan = plan(recipe, Order::Transposed, TensorScale::ONE, Source::Scaled(x), isa, &out);
    let (codes, scales) = parts(out);
    in_columns(&plan, Source::Scaled(x), codes, scales, watch)
}

/// What the tasks need.
fn plan<'a>(
    recipe: &'a Recipe,
    order: Order,
    tensor: TensorScale,
    x: Source<'_>,
    isa: Isa,
    out: &ScaledMut<'_>,
) -> Plan<'a> {
    let granule = out.granule();
    let (rows, cols) = out.shape();
    let divides = matches!(recipe.granule_scale(1.0, tensor).payload, Payload::Divide(_));
    let encoder = encoder(recipe).expect("supports was asked");
    let tile_kernels = recipe.cast == ElementCast::E5m6(E5m6Rounding::TileKernels);
    Plan {
        recipe,
        granule: if order == Order::Same { granule } else { granule.transposed() },
        tensor,
        rule: CastRule {
            encoder,
            divides,
            positive_zero: recipe.cast == ElementCast::PositiveZero,
            normal_from: tile_kernels.then_some(TILE_KERNELS_NORMAL),
        },
        scale_rule: scale_rule(recipe, x.kind().largest(), encoder.limit(), divides),
        past_cache: x.bytes() + rows * cols > PAST_CACHE,
        isa,
    }
}

/// Codes and scales of the result, to be written.
fn parts(out: ScaledMut<'_>) -> (CodesMut<'_>, ScalesMut<'_>) {
    let (codes, scales) = out.into_slices();
    let scales = match scales {
        ScaleSliceMut::F32(grid) => ScalesMut::F32(grid),
        ScaleSliceMut::E8M0(grid) | ScaleSliceMut::E4M3(grid) => ScalesMut::Bytes(grid),
    };
    let codes = match codes {
        CodesSliceMut::Bytes(codes) => CodesMut::Bytes(codes),
        CodesSliceMut::Words(codes) => CodesMut::Words(codes),
    };
    (codes, scales)
}

/// The largest magnitude in each granule of `width` columns over all rows, which are shared out among threads.
fn tall_peaks(x: Panel<'_>, width: usize, isa: Isa, watch: &Watch<'_>) -> Result<Vec<u32>> {
    let height = (TASK / x.cols).max(1);
    let parts = parallel::map(watch, x.rows.div_ceil(height), &|i| {
        let (mut scratch, mut found) = (PeakScratch::default(), Vec::new());
        let part = x.part(Granule::span(x.rows, height, i), 0..x.cols);
        peaks(isa, &part, width, &mut scratch, &mut found);
        found
    })?;
    let larger = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = b.max(*a));
        a
    };
    Ok(parts.into_iter().reduce(larger).unwrap_or_default())
}

fn tensor_amax(x: Panel<'_>, recipe: &Recipe, isa: Isa, watch: &Watch<'_>) -> Result<f32> {
    Ok(match tall_peaks(x, x.cols, isa, watch)?[0] & MAGNITUDE {
        peak if peak <= x.data.kind().largest() => f32::from_bits(peak),
        _ => amax_of(recipe, x),
    })
}

/// Decides over all granules, a row of them after the other, and stores the scales, the grid transposed as `order` says.
fn decide_all(
    plan: &Plan<'_>,
    x: Panel<'_>,
    mut scales: ScalesMut<'_>,
    order: Order,
    watch: &Watch<'_>,
) -> Result<(Decisions, QuantStats)> {
    let (grid_rows, grid_cols) = plan.granule.grid(x.rows, x.cols);
    let width = plan.granule.cols().min(x.cols);
    let (mut all, mut stats) = (Decisions::default(), QuantStats::default());
    for row in 0..grid_rows {
        let stripe = x.part(Granule::span(x.rows, plan.granule.rows(), row), 0..x.cols);
        let peaks = tall_peaks(stripe, width, plan.isa, watch)?;
        GranuleRow { x: &stripe, width, peaks: &peaks }.decide(plan, &mut all, row * grid_cols, &mut stats);
        let (at, step) = match order {
            Order::Same => (row * grid_cols, 1),
            Order::Transposed => (row, grid_rows),
        };
        scales.store(at, step, &all, row * grid_cols..(row + 1) * grid_cols);
    }
    Ok((all, stats))
}

/// Runs tasks over parts of the codes, with what each needs of the scales, and joins what they counted.
fn run_tasks<G: Send>(
    parts: Vec<(CodesMut<'_>, G)>,
    watch: &Watch<'_>,
    task: &(dyn Fn(usize, CodesMut<'_>, G) -> QuantStats + Sync),
) -> Result<QuantStats> {
    let mut stats = vec![QuantStats::default(); parts.len()];
    let parts = parts.into_iter().zip(&mut stats).collect();
    parallel::for_each_part(watch, parts, &|i, ((codes, granules), stats)| {
        *stats = task(i, codes, granules);
        watch.report(stats.elements);
    })?;
    Ok(stats.into_iter().sum())
}

fn in_rows(
    plan: &Plan<'_>,
    x: Panel<'_>,
    codes: CodesMut<'_>,
    scales: ScalesMut<'_>,
    watch: &Watch<'_>,
) -> Result<QuantStats> {
    let (_, grid_cols) = plan.granule.grid(x.rows, x.cols);
    let height = plan.granule.rows().min(x.rows);
    if height == 1 && x.stride == x.cols && x.cols.is_multiple_of(plan.granule.cols()) && x.rows > 1 {
        // Rows without gaps, in whole granules: one row, of which as much is worked on at once as is best.
        let cols = x.rows * x.cols;
        let one = Panel { data: x.data, rows: 1, cols, stride: cols };
        return in_one_row(plan, one, codes, scales, watch);
    }
    if height > TALL {
        let (decided, stats) = decide_all(plan, x, scales, Order::Same, watch)?;
        let task = (TASK / x.cols).clamp(1, height);
        let mut parts = Vec::new();
        for (stripe, codes) in codes.into_chunks(height * x.cols).into_iter().enumerate() {
            let tasks = codes.into_chunks(task * x.cols).into_iter().enumerate();
            parts.extend(tasks.map(|(part, codes)| (codes, (stripe, stripe * height + part * task))));
        }
        let cast = run_tasks(parts, watch, &|_, codes, (stripe, first)| {
            let x = x.part(first..first + codes.len() / x.cols, 0..x.cols);
            let granules = rows::Granules::Given(&decided, stripe * grid_cols);
            RowTask { plan, x, granules, codes }.run()
        })?;
        return Ok(stats + cast);
    }
    let granules = (TASK / (height * x.cols)).max(1);
    let codes = codes.into_chunks(granules * height * x.cols).into_iter();
    let parts = codes.zip(scales.chunks(granules * grid_cols)).collect();
    run_tasks(parts, watch, &|i, codes, scales| {
        let first = i * granules * height;
        let x = x.part(first..first + codes.len() / x.cols, 0..x.cols);
        RowTask { plan, x, granules: rows::Granules::Found(scales), codes }.run()
    })
}

/// Codes of one row in whole granules, cut wherever one begins.
fn in_one_row(
    plan: &Plan<'_>,
    x: Panel<'_>,
    codes: CodesMut<'_>,
    scales: ScalesMut<'_>,
    watch: &Watch<'_>,
) -> Result<QuantStats> {
    let width = plan.granule.cols();
    let granules = (TASK / width).max(1);
    let codes = codes.into_chunks(granules * width).into_iter();
    let parts = codes.zip(scales.chunks(granules)).collect();
    run_tasks(parts, watch, &|i, codes, scales| {
        let first = i * granules * width;
        let x = x.part(0..1, first..first + codes.len());
        RowTask { plan, x, granules: rows::Granules::Found(scales), codes }.run()
    })
}

fn in_columns(
    plan: &Plan<'_>,
    x: Source<'_>,
    codes: CodesMut<'_>,
    scales: ScalesMut<'_>,
    watch: &Watch<'_>,
) -> Result<QuantStats> {
    let (rows, cols) = x.shape();
    let (height, width) = (plan.granule.rows().min(rows), plan.granule.cols().min(cols));
    let (grid_rows, _) = plan.granule.grid(rows, cols);
    if height > ROWS || width > COLUMNS {
        let whole = x.whole().expect("what is dequantised has granules within a tile");
        let (decided, stats) = decide_all(plan, whole, scales, Order::Transposed, watch)?;
        let parts = codes.into_chunks(COLUMNS * rows).into_iter().map(|codes| (codes, ())).collect();
        let cast = run_tasks(parts, watch, &|i, codes, ()| {
            let columns = i * COLUMNS..i * COLUMNS + codes.len() / rows;
            ColumnTask { plan, x, columns, granules: columns::Granules::Given(&decided), codes }.run()
        })?;
        return Ok(stats + cast);
    }
    let step = COLUMNS / width * width;
    let codes = codes.into_chunks(step * rows).into_iter();
    let parts = codes.zip(scales.chunks(step / width * grid_rows)).collect();
    run_tasks(parts, watch, &|i, codes, scales| {
        let columns = i * step..i * step + codes.len() / rows;
        ColumnTask { plan, x, columns, granules: columns::Granules::Found(scales), codes }.run()
    })
}
