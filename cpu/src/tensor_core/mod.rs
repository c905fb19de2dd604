//! Steps of tensor cores over FP8, FP6 and FP4, and over F16, BF16 and TF32, in the CPU's multiply-adds: packing, and the microkernel.
//!
//! A tensor core truncates each product toward zero to units of 2^(e_max − F), where e_max is the largest exponent of
//! the step, and adds exactly. Both happen in one instruction: a fused multiply-add that rounds toward zero, into a sum
//! that begins at 1.5·2^23 units (2^52 in f64), whose last bit is one unit. There, toward zero is down. A positive
//! product is truncated as it should be. A negative one, made larger in magnitude by a trace (operands are packed as
//! x·(1 + 2^−23)), is rounded down to the unit below, exactly one unit too far whether it was a multiple of the unit
//! or not; so the number of negative products, a population count of sign bits, is added back. The trace never reaches
//! a unit by itself: it lies below the last bit of every product and below every unit. Instruction sets without rounding
//! modes of their own scale each product to units, truncate and add.
//!
//! e_max comes first: exponents are bytes, a saturating difference and a maximum for 64 products at a time. Then
//! comes one multiply-add for every register of products, and about twenty instructions a register of sums for
//! everything else of the step: 16 + 32 + 20 for 512 products. F up to 14 with L = 32 fits f32; F = 25 takes f64 and
//! twice the multiply-adds. What has more exponents than a byte, BF16, TF32 and MX, has an exponent a row beside the
//! bytes, which are then how far elements lie below it: 126 binades at most, and callers see to that. FP4 sums its groups of 16 exactly in f32, then joins them in f64.
//!
//! A step is a part of a promotion interval ([`IntervalPart`]), no longer than L.
//!
//! Lanes run over N, rows are blocked, and K is never split, so every lane is the scalar chain. [`pack`] is called once
//! a micropanel, [`multiply`] once a pair of them.

mod fields;
mod groups;
mod microkernel;
mod pack;
mod products;
mod terms;

pub use fields::{BELOW, Fields, LEVELS};
pub use microkernel::{Micropanels, ScaleRows, Sums, multiply};
pub use pack::{RowExponents, Source, pack};

use crate::gemm::IntervalPart;
use crate::simd::{Fused, FusedWork, Isa};

/// Registers of a micropanel of B: one for each byte of an exponent lane.
const B_REGISTERS: usize = 4;

/// Elements of a group of FP4 that share a scale.
pub const GROUP: usize = 16;

/// Elements of a word of signs.
pub const WORD: usize = 32;

/// How the terms of a step are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Products in f32.
    Narrow,
    /// Products in f64.
    Wide,
    /// The same in two sets by k mod 4: 0 and 1 first, then 2 and 3. Steps have at most 64 products.
    InTwo,
    /// Products in f64, with an exponent for each step and row of both operands that is added to those of its elements:
    /// what lies outside the exponents of FP8, be it by scales or by itself; and all of f16 results but those in two sets.
    Offset,
    /// Groups of [`GROUP`] products of E2M1, each with a scale for each row of both operands.
    Fp4,
}

/// The shape of a microtile and of what it is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// 32-bit lanes of a register, rows of a micropanel of A.
    pub lanes: usize,
    /// MR: rows of a microtile; the rows beyond the last multiple of it are microtiles of one row.
    pub mr: usize,
    /// NR: columns of a microtile, rows of a micropanel of B.
    pub nr: usize,
}

impl Kernel {
    /// The shapes on an instruction set.
    pub fn geometry(self, isa: Isa) -> Geometry {
        isa.run_fused(Shape(self))
    }

    /// Bytes of a packed value.
    pub fn value_bytes(self) -> usize {
        match self {
            Kernel::Narrow | Kernel::Fp4 => size_of::<f32>(),
            Kernel::Wide | Kernel::InTwo | Kernel::Offset => size_of::<f64>(),
        }
    }

    /// Words of 32 bits that hold one bit for each element of a step; each set has words of its own.
    pub fn words(self, step: &IntervalPart) -> usize {
        match self {
            Kernel::InTwo => 2,
            Kernel::Narrow | Kernel::Wide | Kernel::Offset | Kernel::Fp4 => step.k.len().div_ceil(WORD),
        }
    }
}

/// See [`Kernel::geometry`].
struct Shape(Kernel);

impl FusedWork for Shape {
    type Output = Geometry;

    #[inline(always)]
    fn run<S: Fused, const COUNTS: bool>(self, _: S) -> Geometry {
        let mr = if self.0 == Kernel::Narrow { S::NARROW_ROWS } else { S::WIDE_ROWS };
        Geometry { lanes: S::LANES, mr, nr: B_REGISTERS * S::LANES }
    }
}

/// Which operand, and so how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its micropanels have one register of rows.
    A,
    /// Its micropanels have four.
    B,
}

/// The tensor core's numbers. Exponents of f32 are fields here, biased by 127.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    /// F: terms are truncated to units of 2^(e_max − F).
    pub fraction_bits: u32,
    /// The bits of an f32 that the result keeps.
    pub result_mask: u32,
    /// The exponent of zero.
    pub zero: i32,
    /// Whether the accumulator is added after the step, in f32 or f16.
    pub late: bool,
    /// Whether accumulator and result are f16, the result to nearest even: [`Kernel::InTwo`] and [`Kernel::Offset`].
    pub half: bool,
}

/// Elements of the first of two sets of a step of `len`.
const fn first_set(len: usize) -> usize {
    let rest = len % 4;
    len / 4 * 2 + if rest < 2 { rest } else { 2 }
}

/// Groups of FP4 products of a step.
pub fn groups(step: &IntervalPart) -> usize {
    step.k.len().div_ceil(GROUP)
}

/// A micropanel: rows of an operand over a block of K, taken apart. All that is said of rows here is of rows one after
/// another, [`Geometry::lanes`] of A and [`Geometry::nr`] of B; rows that do not exist are zeros.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// For each k the values of all rows, a little larger in magnitude: f32, or f64 as two dwords.
    pub values: &'a [u32],
    /// For each k a register whose bytes, together with those of the other operand, give the field of the product's
    /// exponent as an f32 has it, less what `scales` add, 0 for a product that is zero. Byte v of lane i is that of row v·LANES + i; in A all
    /// four bytes are that of row i. Nothing for FP4.
    pub exponents: &'a [u32],
    /// For each word of 32 elements of a step, which are positive, then which are negative.
    pub signs: &'a [u32],
    /// Exponents that are added: for each step where products are [`Kernel::Offset`]; for each group of FP4, where those of B are fields of an f32.
    pub scales: &'a [u32],
    /// For each group of FP4 the values of scales, a little larger in magnitude.
    pub group_values: &'a [f64],
}

/// A micropanel as it is packed.
#[derive(Debug)]
pub struct PanelMut<'a> {
    /// See [`Panel::values`].
    pub values: &'a mut [u32],
    /// See [`Panel::exponents`].
    pub exponents: &'a mut [u32],
    /// See [`Panel::signs`].
    pub signs: &'a mut [u32],
}
