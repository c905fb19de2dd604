//! The quantiser in registers: the reference's bits at the speed of memory.
//!
//! Granule by granule: the maximum of the magnitudes' bits, [`Recipe::granule_scale`] of it, then payloads and codes four
//! registers at a time. What only NaN or infinity can bring about is left to the reference's own functions, for the
//! group of elements where it happens.
//!
//! Where granules are taller than what stays in the cache, their maxima are taken first, over all rows in parallel.
#![forbid(unsafe_code)]

mod cast;
mod code;
mod elements;
mod granules;
mod plain;
mod rows;
mod scales;
mod transposed;

use half::{bf16, f16};
use rayon::prelude::*;

pub(super) use self::code::CodeWord;
pub(super) use self::elements::CastTask;
use self::granules::{Decided, MAGNITUDE, Peaks, ScalesMut, amax_of, decide};
use self::rows::RowTask;
use self::transposed::{COLUMNS, ColumnTask, ROWS, Source};
use super::derive::{Payload, TensorScale};
use super::element::{Element, Typed};
use super::recipe::{ElementCast, Recipe, ScaleFormat};
use super::stats::QuantStats;
use crate::error::Result;
use crate::formats::e5m6::E5m6Rounding;
use crate::formats::{Format, Overflow, Rounding};
use crate::matrix::MatRef;
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef};
use crate::simd::{Encoder, Isa, Lane};

/// Elements of a task: some hundred microseconds, many tasks a thread.
const TASK: usize = 1 << 17;
/// Granules of more rows are decided before anything is cast.
const TALL: usize = 512;
/// From this size on, results go past the cache: matrices of this many bytes are not read again from there.
pub(super) const PAST_CACHE: usize = 1 << 25;

/// What every task of one matrix needs.
struct Plan<'a> {
    recipe: &'a Recipe,
    /// In the matrix that is read.
    granule: Granule,
    tensor: TensorScale,
    encoder: Encoder,
    /// Whether payloads are quotients.
    divides: bool,
    positive_zero: bool,
    tile_kernels: bool,
    past_cache: bool,
    isa: Isa,
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
    match recipe.scale_format() {
        ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32 => Format::F32,
        ScaleFormat::E8M0 => Format::E8M0,
        ScaleFormat::E4M3 => Format::E4M3,
    }
}

/// A matrix of zeros with the shape of the result.
pub(super) fn blank(recipe: &Recipe, rows: usize, cols: usize, granule: Granule) -> ScaledMatrix {
    ScaledMatrix::zeros(recipe.element, rows, cols, granule, scale_format(recipe))
}

/// A matrix to be quantised. What works on it is not generic, so that it is compiled once and not by every caller.
pub(super) enum Input<'a> {
    F32(MatRef<'a, f32>),
    Bf16(MatRef<'a, bf16>),
    F16(MatRef<'a, f16>),
}

impl<'a> Input<'a> {
    pub(super) fn of<T: Element>(x: MatRef<'a, T>) -> Result<Self> {
        let ((rows, cols), stride) = (x.shape(), x.stride());
        Ok(match T::typed(x.strided()) {
            Typed::F32(data) => Input::F32(MatRef::with_stride(data, rows, cols, stride)?),
            Typed::Bf16(data) => Input::Bf16(MatRef::with_stride(data, rows, cols, stride)?),
            Typed::F16(data) => Input::F16(MatRef::with_stride(data, rows, cols, stride)?),
        })
    }
}

/// Quantises `x`, which has elements, into a matrix as [`blank`] gives it.
pub(super) fn quantize(
    x: Input<'_>,
    recipe: &Recipe,
    order: Order,
    isa: Isa,
    out: &mut ScaledMatrix,
) -> QuantStats {
    match x {
        Input::F32(x) => typed(x, recipe, order, isa, out),
        Input::Bf16(x) => typed(x, recipe, order, isa, out),
        Input::F16(x) => typed(x, recipe, order, isa, out),
    }
}

fn typed<T: Lane>(
    x: MatRef<'_, T>,
    recipe: &Recipe,
    order: Order,
    isa: Isa,
    out: &mut ScaledMatrix,
) -> QuantStats {
    let tensor = if recipe.needs_tensor_amax() {
        recipe.tensor_scale(tensor_amax(x, recipe, isa))
    } else {
        TensorScale::ONE
    };
    let plan = plan(recipe, order, tensor, size_of::<T>() * x.rows() * x.cols(), isa, out);
    let (codes, scales) = parts(out, tensor);
    match (codes, order) {
        (Codes::Bytes(codes), Order::Same) => in_rows(&plan, x, codes.as_mut_slice(), scales),
        (Codes::Words(codes), Order::Same) => in_rows(&plan, x, codes.as_mut_slice(), scales),
        (Codes::Bytes(codes), Order::Transposed) => in_columns(&plan, &x, codes.as_mut_slice(), scales),
        (Codes::Words(codes), Order::Transposed) => in_columns(&plan, &x, codes.as_mut_slice(), scales),
    }
}

/// Whether [`requantize_transposed`] works tile by tile: nothing is to be known of the whole matrix.
pub(super) fn requantizes_by_tiles(recipe: &Recipe) -> bool {
    let granule = recipe.activation.transposed();
    !recipe.needs_tensor_amax() && granule.rows() <= ROWS && granule.cols() <= COLUMNS
}

/// Dequantises tile by tile and quantises the transpose, into a matrix as [`blank`] gives it.
pub(super) fn requantize_transposed(
    x: &ScaledRef<'_>,
    recipe: &Recipe,
    isa: Isa,
    out: &mut ScaledMatrix,
) -> QuantStats {
    let (rows, cols) = x.shape();
    let plan = plan(recipe, Order::Transposed, TensorScale::ONE, rows * cols, isa, out);
    match parts(out, TensorScale::ONE) {
        (Codes::Bytes(codes), scales) => in_columns(&plan, x, codes.as_mut_slice(), scales),
        (Codes::Words(codes), scales) => in_columns(&plan, x, codes.as_mut_slice(), scales),
    }
}

/// What the tasks need, for an input of `bytes`.
fn plan<'a>(
    recipe: &'a Recipe,
    order: Order,
    tensor: TensorScale,
    bytes: usize,
    isa: Isa,
    out: &ScaledMatrix,
) -> Plan<'a> {
    let granule = out.scales().expect("blank has scales").granule;
    let (rows, cols) = out.shape();
    Plan {
        recipe,
        granule: if order == Order::Same { granule } else { granule.transposed() },
        tensor,
        encoder: encoder(recipe).expect("supports was asked"),
        divides: matches!(recipe.granule_scale(1.0, tensor).payload, Payload::Divide(_)),
        positive_zero: recipe.cast == ElementCast::PositiveZero,
        tile_kernels: recipe.cast == ElementCast::E5m6(E5m6Rounding::TileKernels),
        past_cache: bytes + rows * cols > PAST_CACHE,
        isa,
    }
}

/// Codes and scales of the result, to be written.
fn parts(out: &mut ScaledMatrix, tensor: TensorScale) -> (&mut Codes, ScalesMut<'_>) {
    let (codes, scales) = out.parts_mut();
    let scales = scales.expect("blank has scales");
    scales.tensor = tensor.scale;
    let grid = match &mut scales.grid {
        ScaleGrid::F32(grid) => ScalesMut::F32(grid.as_mut_slice()),
        ScaleGrid::E8M0(grid) | ScaleGrid::E4M3(grid) => ScalesMut::Bytes(grid.as_mut_slice()),
    };
    (codes, grid)
}

/// The largest magnitude in each granule of `width` columns over all rows, which are shared out among threads.
fn tall_peaks<T: Lane>(x: MatRef<'_, T>, width: usize, isa: Isa) -> Vec<u32> {
    let height = (TASK / x.cols()).max(1);
    let parts = x.rows().div_ceil(height);
    let part = |i: usize| {
        let rows = Granule::span(x.rows(), height, i);
        let (x, mut lanes, mut peaks) = (x.row_range(rows.start, rows.end), Vec::new(), Vec::new());
        isa.run(Peaks { x, width, lanes: &mut lanes, peaks: &mut peaks });
        peaks
    };
    let larger = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = b.max(*a));
        a
    };
    (0..parts).into_par_iter().map(part).reduce_with(larger).unwrap_or_default()
}

fn tensor_amax<T: Lane>(x: MatRef<'_, T>, recipe: &Recipe, isa: Isa) -> f32 {
    match tall_peaks(x, x.cols(), isa)[0] & MAGNITUDE {
        peak if peak <= T::LARGEST => f32::from_bits(peak),
        _ => amax_of(recipe, x),
    }
}

/// Decides over all granules, a row of them after the other, and stores the scales by `place(row, column)`.
fn decide_all<T: Lane>(
    plan: &Plan<'_>,
    x: MatRef<'_, T>,
    mut scales: ScalesMut<'_>,
    place: impl Fn(usize, usize) -> usize,
) -> (Vec<Decided>, QuantStats) {
    let (rows, cols) = x.shape();
    let (grid_rows, _) = plan.granule.grid(rows, cols);
    let (mut all, mut stats) = (Vec::new(), QuantStats::default());
    for row in 0..grid_rows {
        let span = Granule::span(rows, plan.granule.rows(), row);
        let stripe = x.row_range(span.start, span.end);
        for (column, peak) in
            tall_peaks(stripe, plan.granule.cols().min(cols), plan.isa).into_iter().enumerate()
        {
            let width = plan.granule.cols();
            let (scale, decided) = decide(plan, stripe, (width, column), peak, &mut stats);
            scales.set(place(row, column), scale);
            all.push(decided);
        }
    }
    (all, stats)
}

fn in_rows<T: Lane, C: CodeWord>(
    plan: &Plan<'_>,
    x: MatRef<'_, T>,
    codes: &mut [C],
    scales: ScalesMut<'_>,
) -> QuantStats {
    let (rows, cols) = x.shape();
    let (_, grid_cols) = plan.granule.grid(rows, cols);
    let height = plan.granule.rows().min(rows);
    let run = |first: usize, codes: &mut [C], granules: rows::Granules<'_>| {
        let x = x.row_range(first, first + codes.len() / cols);
        plan.isa.run(RowTask { plan, x, granules, codes })
    };
    let run = &run;
    if height > TALL {
        let (decided, stats) = decide_all(plan, x, scales, |row, column| row * grid_cols + column);
        let task = (TASK / cols).clamp(1, height);
        let stripes = codes.par_chunks_mut(height * cols).zip(decided.par_chunks(grid_cols)).enumerate();
        let cast = stripes.flat_map(|(stripe, (codes, decided))| {
            let parts = codes.par_chunks_mut(task * cols).enumerate();
            parts.map(move |(part, codes)| {
                run(stripe * height + part * task, codes, rows::Granules::Given(decided))
            })
        });
        return stats + cast.sum();
    }
    let granules = (TASK / (height * cols)).max(1);
    let tasks = codes.par_chunks_mut(granules * height * cols).zip(scales.chunks(granules * grid_cols));
    let one = |(i, (codes, scales)): (usize, (&mut [C], ScalesMut<'_>))| {
        run(i * granules * height, codes, rows::Granules::Found(scales))
    };
    tasks.enumerate().map(one).sum()
}

fn in_columns<X: Source, C: CodeWord>(
    plan: &Plan<'_>,
    x: &X,
    codes: &mut [C],
    scales: ScalesMut<'_>,
) -> QuantStats {
    let (rows, cols) = x.shape();
    let (height, width) = (plan.granule.rows().min(rows), plan.granule.cols().min(cols));
    let (grid_rows, _) = plan.granule.grid(rows, cols);
    let run = |first: usize, codes: &mut [C], granules: transposed::Granules<'_>| {
        let columns = first..first + codes.len() / rows;
        plan.isa.run(ColumnTask { plan, x, columns, granules, codes })
    };
    if height > ROWS || width > COLUMNS {
        let whole = x.whole().expect("what is dequantised has granules within a tile");
        let (decided, stats) = decide_all(plan, whole, scales, |row, column| column * grid_rows + row);
        let tasks = codes.par_chunks_mut(COLUMNS * rows).enumerate();
        let cast =
            |(i, codes): (usize, &mut [C])| run(i * COLUMNS, codes, transposed::Granules::Given(&decided));
        return stats + tasks.map(cast).sum();
    }
    let columns = COLUMNS / width * width;
    let tasks = codes.par_chunks_mut(columns * rows).zip(scales.chunks(columns / width * grid_rows));
    let one = |(i, (codes, scales)): (usize, (&mut [C], ScalesMut<'_>))| {
        run(i * columns, codes, transposed::Granules::Found(scales))
    };
    tasks.enumerate().map(one).sum()
}
