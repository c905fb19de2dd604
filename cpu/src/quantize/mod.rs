//! Kernels of quantisers: from elements to the largest magnitudes of granules, from those to scales, and from elements
//! and factors to codes.
//!
//! A row or tile of elements x becomes codes of payloads fl(x / factor) or fl(x · factor). What only NaN or infinity can
//! bring about is left to the caller, for the group of elements where it happens.

mod code_word;
mod peaks;
mod plain;
mod rows;
mod scales;
mod spread;
mod tile;

pub(crate) use code_word::{CodeWord, GROUP, MAGNITUDE};
pub use peaks::{PeakScratch, peaks};
pub use plain::{Factors, PlainRows, cast_plain};
pub use rows::{Row, cast_row};
pub use scales::{
    Arithmetic, FactorForm, MultiplierQuotient, PowerOfTwo, ScaleQuotient, ScaleRule, ScalesOut,
    ordinary_scales,
};
pub use spread::spread;
pub use tile::{CastSingly, TILE_COLUMNS, Tile, TileFactors, cast_tile, gather, transpose};

use crate::simd::Encoder;

/// The most lanes of a register.
pub const MAX_LANES: usize = 16;

/// How elements become payloads and payloads codes.
#[derive(Clone, Copy, Debug)]
pub struct CastRule {
    /// From payloads to codes.
    pub encoder: Encoder,
    /// Whether payloads are quotients; else they are products.
    pub divides: bool,
    /// Whether a payload of −0 becomes +0.
    pub positive_zero: bool,
    /// Payloads that are smaller than this, but not zero, or saturated, are left to the caller.
    pub normal_from: Option<f32>,
}

impl CastRule {
    /// Whether casts are plain where none clips: nothing is beyond the largest code and there is no rule but the rounding.
    pub fn is_plain(&self) -> bool {
        self.encoder.is_plain() && !self.positive_zero && self.normal_from.is_none()
    }
}

/// What happened to elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Payloads beyond the largest code.
    pub saturated: u64,
    /// Elements that became zero without being it.
    pub flushed: u64,
    /// Elements whose codes are infinite or NaN.
    pub lost: u64,
}
