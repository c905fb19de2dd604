//! The reference quantiser: one granule after the other, one element after the other.

use super::derive::{StoredScale, TensorScale};
use super::recipe::{Recipe, ScaleFormat};
use super::stats::QuantStats;
use crate::error::Result;
use crate::formats::{Events, Format, Unpacked};
use crate::matrix::{MatRef, Matrix};
use crate::parallel::{self, Watch};
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

/// The rows of one row of granules, quantised.
struct Stripe {
    codes: Vec<u16>,
    scales: Vec<StoredScale>,
    stats: QuantStats,
}

/// Quantises `x` in granules of `granule`: the definition every faster path is held to.
///
/// Each granule: amax over its existing elements (edge granules are not padded); [`Recipe::granule_scale`]; then every
/// element's payload is cast. Rows of granules are independent and run in parallel; the result does not depend on it.
pub(super) fn quantize(
    x: MatRef<'_, f32>,
    recipe: &Recipe,
    granule: Granule,
    watch: &Watch<'_>,
) -> Result<(ScaledMatrix, QuantStats)> {
    let (rows, cols) = x.shape();
    let (grid_rows, grid_cols) = granule.grid(rows, cols);
    let tensor = if recipe.needs_tensor_amax() {
        recipe.tensor_scale(recipe.amax(x.iter_rows().flatten().copied()))
    } else {
        TensorScale::ONE
    };
    // Rows without columns have no granules to visit, however many rows there are.
    let stripe_count = if grid_cols == 0 { 0 } else { grid_rows };
    let stripes = parallel::map(watch, stripe_count, &|g| {
        let span = Granule::span(rows, granule.rows(), g);
        quantize_stripe(x.row_range(span.start, span.end), recipe, granule, grid_cols, tensor)
    })?;

    let stats = stripes.iter().map(|s| s.stats).sum();
    let codes = stripes.iter().flat_map(|s| s.codes.iter().copied());
    let codes = if recipe.element.spec().bits() <= 8 {
        Codes::Bytes(Matrix::from_vec(rows, cols, codes.map(|c| c as u8).collect())?)
    } else {
        Codes::Words(Matrix::from_vec(rows, cols, codes.collect())?)
    };
    let scales = stripes.iter().flat_map(|s| s.scales.iter().copied());
    let bytes = |scales: &mut dyn Iterator<Item = StoredScale>| {
        let byte = |s| if let StoredScale::Byte(b) = s { b } else { unreachable!("the recipe stores bytes") };
        Matrix::from_vec(grid_rows, grid_cols, scales.map(byte).collect())
    };
    let mut scales = scales;
    let grid = match recipe.scale_format() {
        ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32 => {
            let float =
                |s| if let StoredScale::F32(v) = s { v } else { unreachable!("the recipe stores f32") };
            ScaleGrid::F32(Matrix::from_vec(grid_rows, grid_cols, scales.map(float).collect())?)
        }
        ScaleFormat::E8M0 => ScaleGrid::E8M0(bytes(&mut scales)?),
        ScaleFormat::E4M3 => ScaleGrid::E4M3(bytes(&mut scales)?),
    };
    let scales = Scales { granule, grid, tensor: tensor.scale };
    Ok((ScaledMatrix::new(recipe.element, codes, Some(scales))?, stats))
}

fn quantize_stripe(
    x: MatRef<'_, f32>,
    recipe: &Recipe,
    granule: Granule,
    grid_cols: usize,
    tensor: TensorScale,
) -> Stripe {
    let (rows, cols) = x.shape();
    let mut codes = vec![0; rows * cols];
    let mut scales = Vec::with_capacity(grid_cols);
    let mut stats = QuantStats::default();
    for g in 0..grid_cols {
        let span = Granule::span(cols, granule.cols(), g);
        let part = x.col_range(span.start, span.end);
        let elements = || part.iter_rows().flatten().copied();
        let amax = recipe.amax(elements());
        let scale = recipe.granule_scale(amax, tensor);
        scales.push(scale.stored);

        stats.granules += 1;
        stats.zero_granules += u64::from(elements().all(|v| v == 0.0));
        stats.floored_granules += u64::from(amax > 0.0 && amax < recipe.amax.floor);
        stats.nonfinite_granules += u64::from(elements().any(|v| !v.is_finite()));
        for (i, row) in part.iter_rows().enumerate() {
            for (j, &v) in row.iter().enumerate() {
                let cast = recipe.encode(scale.payload.of(v));
                count(&mut stats, recipe.element, v, cast.code, cast.events);
                codes[i * cols + span.start + j] = cast.code as u16;
            }
        }
    }
    Stripe { codes, scales, stats }
}

/// Counts what happened to one element.
pub(super) fn count(stats: &mut QuantStats, element: Format, x: f32, code: u64, events: Events) {
    stats.elements += 1;
    if x.is_nan() {
        stats.nan += 1;
    } else if x.is_infinite() {
        stats.infinite += 1;
    } else {
        let value = element.spec().decode(code);
        // A payload can overflow f32 itself before the cast sees it.
        let beyond = events.contains(Events::OVERFLOW) || events.contains(Events::INFINITE);
        stats.saturated += u64::from(beyond);
        stats.flushed +=
            u64::from(x != 0.0 && matches!(value, Unpacked::Zero { .. }) && !events.contains(Events::NAN));
        let lost =
            events.contains(Events::NAN) || matches!(value, Unpacked::Nan { .. } | Unpacked::Infinite { .. });
        stats.lost += u64::from(lost);
    }
}
