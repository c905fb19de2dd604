//! Where the error of a quantised product comes from, in parts that add up.
//!
//! The way from the exact product D₀ = A·Bᵀ to the computed D is walked in stages, each of which changes one thing:
//!
//! | stage | before → after |
//! |---|---|
//! | quantise A | A·Bᵀ → Â·Bᵀ, Â quantised with scales of full precision |
//! | round A's scales | Â → Ã, scales as the recipe stores them (powers of two, E4M3) |
//! | quantise B | Ã·Bᵀ → Ã·B̂ᵀ |
//! | round B's scales | B̂ → B̃ |
//! | accumulate | Ã·B̃ᵀ exact → as the accumulation sums it |
//! | round the output | f32 → bf16, where asked for |
//!
//! With Dₖ the product after stage k, the squared error so far is eₖ² = ‖Dₖ − D₀‖². The share of a stage is what it
//! adds to that, (eₖ² − eₖ₋₁²) / e², with e the error of the result: shares add up to 1. A stage that cancels what others
//! did has a negative share; what it changes by itself is `relative` = ‖Dₖ − Dₖ₋₁‖ / ‖D₀‖. Quantising B before A would
//! move a second-order term between the two.
//!
//! The same sums over one tile of the output give the tile's shares. They add up both ways: over stages to the tile's
//! part of e², over tiles to the stage's share. What quantisation does to the operands by itself, before any product,
//! is kept by tile too.

use serde::Serialize;

use crate::matrix::{MatRef, Matrix};

/// Side of the tiles of the output that errors are collected in.
pub const TILE: usize = 128;

/// What changes from one stage to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Codes of A, with scales of full precision.
    #[serde(rename = "quantise_a")]
    QuantizeA,
    /// Scales of A as stored.
    RoundScalesA,
    /// Codes of B, with scales of full precision.
    #[serde(rename = "quantise_b")]
    QuantizeB,
    /// Scales of B as stored.
    RoundScalesB,
    /// The sums.
    Accumulate,
    /// The store in bf16.
    RoundOutput,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Stage; 6] = [
        Stage::QuantizeA,
        Stage::RoundScalesA,
        Stage::QuantizeB,
        Stage::RoundScalesB,
        Stage::Accumulate,
        Stage::RoundOutput,
    ];
}

/// One stage of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageError {
    /// What changed.
    pub stage: Stage,
    /// ‖Dₖ − Dₖ₋₁‖ / ‖D₀‖.
    pub relative: f64,
    /// (eₖ² − eₖ₋₁²) / e²; 0 if there is no error at all.
    pub share: f64,
}

/// The error in one tile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TileError {
    /// First row of the tile.
    pub row: usize,
    /// First column of the tile.
    pub col: usize,
    /// ‖D − D₀‖ / ‖D₀‖ in the tile; infinite where the exact tile is zero and the computed one is not.
    pub relative: f64,
    /// The tile's part of e².
    pub share: f64,
    /// What each stage of the budget adds to `share`, in the same order; empty for an operand.
    pub stages: Vec<f64>,
}

/// What quantisation does to one operand.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperandError {
    /// The operand as the GEMM reads it, such as `x` or `dy^T`.
    pub name: &'static str,
    /// (rows, columns).
    pub shape: (usize, usize),
    /// ‖Ã − A‖ / ‖A‖.
    pub relative: f64,
    /// The operand's tiles, worst share of ‖Ã − A‖² first.
    pub tiles: Vec<TileError>,
}

impl OperandError {
    /// The error of `quantized` against the original.
    ///
    /// # Panics
    /// If they differ in shape.
    pub(super) fn of(name: &'static str, original: &Matrix<f64>, quantized: &Matrix<f64>) -> OperandError {
        assert_eq!(original.shape(), quantized.shape(), "an operand keeps its shape");
        let (error2, original2) = (distance2(quantized, original), square(original.view()));
        let tiles = tiles(original, quantized, &[], error2);
        OperandError { name, shape: original.shape(), relative: relative(error2, original2), tiles }
    }
}

/// The error of a product by stage and by tile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// e / ‖D₀‖.
    pub total: f64,
    /// The stages that took place, in order; their shares add up to 1.
    pub stages: Vec<StageError>,
    /// (rows, columns) of the output.
    pub shape: (usize, usize),
    /// The tiles of the output, worst share first.
    pub tiles: Vec<TileError>,
    /// A and B.
    pub operands: [OperandError; 2],
}

impl Budget {
    /// A budget from the products on the way: the exact one, then one after each stage.
    ///
    /// # Panics
    /// If the products differ in shape.
    pub(super) fn of(
        exact: &Matrix<f64>,
        after: &[(Stage, &Matrix<f64>)],
        operands: [OperandError; 2],
    ) -> Budget {
        let shape = exact.shape();
        assert!(
            after.iter().all(|(_, d)| d.shape() == shape),
            "all products have the shape of the exact one"
        );
        let last = after.last().map_or(exact, |(_, d)| d);
        let (error2, exact2) = (distance2(last, exact), square(exact.view()));
        let mut stages = Vec::new();
        let (mut before, mut so_far2) = (exact, 0.0);
        for &(stage, product) in after {
            let reached2 = distance2(product, exact);
            let share = part(reached2 - so_far2, error2);
            stages.push(StageError { stage, relative: relative(distance2(product, before), exact2), share });
            (before, so_far2) = (product, reached2);
        }
        let products: Vec<&Matrix<f64>> = after.iter().map(|(_, d)| *d).collect();
        let tiles = tiles(exact, last, &products, error2);
        Budget { total: relative(error2, exact2), stages, shape, tiles, operands }
    }

    /// The share of a stage; `None` if it did not take place.
    pub fn share(&self, stage: Stage) -> Option<f64> {
        self.stages.iter().find(|s| s.stage == stage).map(|s| s.share)
    }
}

fn square(m: MatRef<'_, f64>) -> f64 {
    m.iter_rows().flatten().map(|v| v * v).sum()
}

fn distance2(x: &Matrix<f64>, y: &Matrix<f64>) -> f64 {
    x.as_slice().iter().zip(y.as_slice()).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn relative(part2: f64, whole2: f64) -> f64 {
    part(part2, whole2).sqrt()
}

/// a / b, with 0 / 0 = 0.
fn part(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// The tiles of `last` with their part of `error2`; `stages` are the products that led there.
fn tiles(exact: &Matrix<f64>, last: &Matrix<f64>, stages: &[&Matrix<f64>], error2: f64) -> Vec<TileError> {
    let (rows, cols) = exact.shape();
    let places = (0..rows).step_by(TILE).flat_map(|row| (0..cols).step_by(TILE).map(move |col| (row, col)));
    let tile = |(row, col)| {
        let tile_of = |m: &Matrix<f64>| {
            m.view().row_range(row, (row + TILE).min(rows)).col_range(col, (col + TILE).min(cols)).to_matrix()
        };
        let exact = tile_of(exact);
        let own2 = distance2(&tile_of(last), &exact);
        let mut so_far2 = 0.0;
        let stage = |product: &&Matrix<f64>| {
            let reached2 = distance2(&tile_of(product), &exact);
            let added2 = reached2 - so_far2;
            so_far2 = reached2;
            part(added2, error2)
        };
        let stages = stages.iter().map(stage).collect();
        TileError {
            row,
            col,
            relative: relative(own2, square(exact.view())),
            share: part(own2, error2),
            stages,
        }
    };
    let mut tiles: Vec<TileError> = places.map(tile).collect();
    tiles.sort_by(|a, b| b.share.total_cmp(&a.share));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn shares_add_up_whatever_the_stages_do() {
        let exact = Matrix::from_fn(130, 5, |i, j| (i as f64 - 60.0) * (j as f64 + 0.5));
        let noise = |m: &Matrix<f64>, f: f64| m.map(|v| v + (v * f).sin());
        let a = noise(&exact, 3.1);
        let b = noise(&a, 7.7);
        let c = b.map(|v| v * 1.001);
        let stages = [(Stage::QuantizeA, &a), (Stage::QuantizeB, &b), (Stage::Accumulate, &c)];
        let operands = ["x", "w"].map(|name| OperandError::of(name, &exact, &noise(&exact, 1.7)));
        let budget = Budget::of(&exact, &stages, operands);
        assert_relative_eq!(budget.stages.iter().map(|s| s.share).sum::<f64>(), 1.0, max_relative = 1e-12);
        assert_relative_eq!(budget.tiles.iter().map(|t| t.share).sum::<f64>(), 1.0, max_relative = 1e-12);
        assert_eq!(budget.tiles.len(), 2);
        for (s, stage) in budget.stages.iter().enumerate() {
            let tiles: f64 = budget.tiles.iter().map(|t| t.stages[s]).sum();
            assert_relative_eq!(tiles, stage.share, epsilon = 1e-12);
        }
        for tile in budget.tiles.iter().chain(&budget.operands[0].tiles) {
            assert!(tile.stages.is_empty() || (tile.stages.iter().sum::<f64>() - tile.share).abs() < 1e-12);
        }
        let x = &budget.operands[0];
        assert_relative_eq!(x.tiles.iter().map(|t| t.share).sum::<f64>(), 1.0, max_relative = 1e-12);
        assert!(x.tiles.len() == 2 && x.relative > 0.0);
        assert_eq!(budget.share(Stage::RoundOutput), None);
        assert!(budget.tiles[0].share >= budget.tiles[1].share);
    }

    #[test]
    fn no_error_has_no_shares() {
        let exact = Matrix::filled(2, 2, 1.0);
        let operands = ["x", "w"].map(|name| OperandError::of(name, &exact, &exact));
        let budget = Budget::of(&exact, &[(Stage::QuantizeA, &exact)], operands);
        assert_eq!(
            (budget.total, budget.share(Stage::QuantizeA), budget.tiles[0].share),
            (0.0, Some(0.0), 0.0)
        );
    }
}
