//! Which named arithmetic gave a result, bit for bit: of a product [`identify`], of a quantiser [`identify_recipe`].
//!
//! A product's operands and what somebody computed of them (a GPU, a library, another program) are all that is needed:
//! [`identify`] computes elements of D in every [`Accumulation`] that the operands allow and keeps
//! those whose bits are the ones given, first on a few elements, then on more, at last on all.
//!
//! ```
//! use finegrain::Engine;
//! use finegrain::accuracy::identify::{Computed, Extent, identify};
//! use finegrain::gemm::{Accumulation, GemmProblem};
//! use finegrain::matrix::Matrix;
//! use finegrain::quant::{Quantizer, Recipe};
//! let value = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 97.0 - 5.0;
//! let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
//! let a = quantizer.activation(Matrix::from_fn(8, 512, value).view())?;
//! let b = quantizer.weight(Matrix::from_fn(16, 512, |i, j| value(j, i)).view())?;
//! let problem = GemmProblem::nt(a.view(), b.view())?;
//! let d = problem.with_accumulation(Accumulation::HOPPER.promoted::<128>())?.run()?; // or what a GPU gave
//! let found = identify(&problem, Computed::F32(d.view()), Extent::Sampled, &Engine::cpu())?;
//! assert!(found.is_exact());
//! assert_eq!(found.matches[0].accumulation.to_string(), "hopper/128");
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

mod candidates;
mod computed;
mod hints;
mod places;
mod recipes;
mod search;
mod tiles;

pub use self::computed::Computed;
pub use self::places::{Difference, difference};
pub use self::recipes::{RecipeIdentification, RecipeMatch, identify_recipe};

use self::search::Search;
use crate::engine::{Engine, Product};
use crate::error::Result;
use crate::gemm::Accumulation;

/// How many of the nearest are listed where nothing is exact.
const NEAREST: usize = 5;
/// How many of the exact ones are listed.
const EXACT: usize = 20;

/// How much of D is compared at last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it up to 10^11 multiply-adds of all arithmetics that are left, the simplest first; those that only the
    /// reference computes count 500 each. Beyond that at least 65,536 elements of the simplest, spread over rows, columns and
    /// the edges of tiles.
    #[default]
    Sampled,
    /// All of it.
    All,
}

/// An arithmetic and how many bits of D it does not give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// The arithmetic.
    pub accumulation: Accumulation,
    /// Elements whose bits differ; NaN of any payload is NaN.
    pub differ: usize,
    /// Elements that were compared.
    pub of: usize,
    /// The largest distance of an element, in units of the last place of D's format; infinite counts as one beyond the
    /// largest, and NaN against a number as [`u32::MAX`].
    pub max_ulps: u32,
    /// The mean over all elements of log2(1 + their distance), by which the nearest are ordered.
    pub lost_bits: f64,
}

/// One element that differs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// Its row in D.
    pub row: usize,
    /// Its column.
    pub col: usize,
    /// What D has.
    pub given: f32,
    /// What the arithmetic gives.
    pub expected: f32,
    /// Their distance, see [`Match::max_ulps`].
    pub ulps: u32,
}

/// Where a result differs from an arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct Differences {
    /// Rows with a difference, and rows that were compared.
    pub rows: [usize; 2],
    /// Columns likewise.
    pub cols: [usize; 2],
    /// Tiles of 128×128 likewise.
    pub tiles: [usize; 2],
    /// The first of them, by rows.
    pub first: Vec<Element>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Identification {
    /// The exact ones, simplest first; where there are none the nearest, nearest first.
    pub matches: Vec<Match>,
    /// How many arithmetics were tried.
    pub tried: usize,
    /// How many are exact, listed or not.
    pub exact: usize,
    /// Where several are exact: what would tell them apart.
    pub undecided: Option<String>,
    /// Where none is: where the nearest differs.
    pub differences: Option<Differences>,
    /// Where none is: what that usually means.
    pub hints: Vec<String>,
    /// Elements of rows that belong to no group and are not +0: other libraries leave what they find there.
    pub padding: usize,
}

impl Identification {
    /// Whether some arithmetic gives every bit that was compared.
    pub fn is_exact(&self) -> bool {
        self.exact > 0
    }
}

/// Which arithmetic gave `d`: model, promotion interval and order, split-K. That of `product` itself does not matter; its
/// addend is part of it.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `d` has another shape than the product's output;
/// [`Error::Invalid`](crate::Error::Invalid) if it has no element that a group computes, or all are NaN;
/// [`Error::Unsupported`](crate::Error::Unsupported) if no arithmetic takes the operands;
/// [`Error::Cancelled`](crate::Error::Cancelled).
pub fn identify<'p>(
    product: impl Into<Product<'p>>,
    d: Computed<'_>,
    extent: Extent,
    engine: &Engine<'_>,
) -> Result<Identification> {
    Search::new(product.into(), d, extent, engine)?.run()
}
