//! The microkernel: a few rows of D by one panel of B, over a block of K.

use super::super::accumulation::Promotion;
use super::pack::{B_REGISTERS, Panel};
use super::plan::{Block, Core, Step};
use super::terms::{Packing, Terms};
use crate::simd::Fused;

/// What a tile is computed from: the steps of a block, and both operands packed over it.
pub(super) struct Inputs<'a, V> {
    pub(super) core: Core,
    pub(super) block: &'a Block,
    pub(super) steps: &'a [Step],
    /// A panel of A, and the tile's first row in it.
    pub(super) a: Panel<'a, V>,
    pub(super) row: usize,
    pub(super) b: Panel<'a, V>,
    pub(super) promotion: Promotion,
    /// The scales of promotion, of the tile's rows and of the panel's columns: for each promotion of the block those of
    /// one after another, so far apart.
    pub(super) scales_a: &'a [f32],
    pub(super) scales_b: &'a [f32],
    pub(super) strides: (usize, usize),
}

/// A tile's chains and promoted sums: rows of a block of D, `stride` elements apart. `acc` is empty where nothing is
/// promoted.
pub(super) struct Outputs<'a> {
    pub(super) chains: &'a mut [f32],
    pub(super) acc: &'a mut [f32],
    pub(super) stride: usize,
}

/// How a step is summed.
pub(super) trait StepKernel<S: Fused>: Packing<S> {
    /// The most rows that a tile may have: as many sums as there is room for in registers.
    const ROWS: usize;

    /// The next accumulators. `at` is where the step begins in the panels.
    fn step<const MR: usize, const COUNTS: bool>(
        s: S,
        inputs: &Inputs<'_, Self::Value>,
        step: &Step,
        at: Place,
        c: [[S::F32; B_REGISTERS]; MR],
    ) -> [[S::F32; B_REGISTERS]; MR];
}

/// Where a step begins in packed panels.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) step: usize,
    pub(super) k: usize,
    pub(super) word: usize,
    pub(super) group: usize,
}

/// Runs `MR` rows over the block.
#[inline(always)]
pub(super) fn multiply<S: Fused, K: StepKernel<S>, const MR: usize, const COUNTS: bool>(
    s: S,
    inputs: &Inputs<'_, K::Value>,
    out: &mut Outputs<'_>,
) {
    let mut c = [[s.splat(0.0); B_REGISTERS]; MR];
    let mut place = Place::default();
    let mut promotions = 0;
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            // −0 as an addend is +0 from the first step on.
            c[i][v] = s.add(s.load(&out.chains[i * out.stride + v * S::LANES..]), s.splat(0.0));
        }
    }
    for step in &inputs.steps[inputs.block.steps.clone()] {
        if step.starts {
            c = [[s.splat(0.0); B_REGISTERS]; MR];
        }
        c = K::step::<MR, COUNTS>(s, inputs, step, place, c);
        place.step += 1;
        place.k += step.k.len();
        place.word += step.words();
        place.group += step.groups();
        if step.ends {
            let scales_a = &inputs.scales_a[promotions * inputs.strides.0..][..MR];
            let scales_b = &inputs.scales_b[promotions * inputs.strides.1..];
            for i in 0..MR {
                for v in 0..B_REGISTERS {
                    let acc = &mut out.acc[i * out.stride + v * S::LANES..];
                    let scale_b = s.load(&scales_b[v * S::LANES..]);
                    let promoted =
                        promote(s, inputs.promotion, s.load(acc), c[i][v], s.splat(scales_a[i]), scale_b);
                    s.store(promoted, acc);
                }
            }
            promotions += 1;
        }
    }
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            s.store(c[i][v], &mut out.chains[i * out.stride + v * S::LANES..]);
        }
    }
}

/// [`Promotion::promote`] in lanes.
#[inline(always)]
fn promote<S: Fused>(
    s: S,
    promotion: Promotion,
    acc: S::F32,
    partial: S::F32,
    a: S::F32,
    b: S::F32,
) -> S::F32 {
    match promotion {
        Promotion::ScalesFirst => s.mul_add(s.mul(a, b), partial, acc),
        Promotion::PartialFirst => s.mul_add(s.mul(partial, a), b, acc),
        Promotion::Unfused => s.add(acc, s.mul(s.mul(partial, a), b)),
    }
}

/// Products aligned one by one: all tensor cores but those of FP4.
#[derive(Clone, Copy)]
pub(super) struct Products<T, const SCALED: bool>(std::marker::PhantomData<T>);

impl<S: Fused, T: Terms<S>, const SCALED: bool> Packing<S> for Products<T, SCALED> {
    type Value = T::Value;

    const FACTOR: f32 = T::FACTOR;

    #[inline(always)]
    fn store(s: S, x: S::F32, out: &mut [T::Value]) {
        T::store(s, x, out);
    }
}

impl<S: Fused, T: Terms<S>, const SCALED: bool> StepKernel<S> for Products<T, SCALED> {
    const ROWS: usize = match (S::REGISTERS, size_of::<T::Value>()) {
        (32, 4) => 4,
        (32, _) => 2,
        _ => 1,
    };

    #[inline(always)]
    fn step<const MR: usize, const COUNTS: bool>(
        s: S,
        inputs: &Inputs<'_, T::Value>,
        step: &Step,
        at: Place,
        c: [[S::F32; B_REGISTERS]; MR],
    ) -> [[S::F32; B_REGISTERS]; MR] {
        if inputs.core.late {
            aligned::<S, T, MR, COUNTS, SCALED, true>(s, inputs, step, at, c)
        } else {
            aligned::<S, T, MR, COUNTS, SCALED, false>(s, inputs, step, at, c)
        }
    }
}

/// Registers of a tile.
type Tile<R, const MR: usize> = [[R; B_REGISTERS]; MR];

/// A step of products.
///
/// Loops over the tile are written so that the compiler unrolls them: what they index lives in registers.
#[inline(always)]
fn aligned<
    S: Fused,
    T: Terms<S>,
    const MR: usize,
    const COUNTS: bool,
    const SCALED: bool,
    const LATE: bool,
>(
    s: S,
    inputs: &Inputs<'_, T::Value>,
    step: &Step,
    at: Place,
    mut c: Tile<S::F32, MR>,
) -> Tile<S::F32, MR> {
    let (core, a, b, row) = (inputs.core, inputs.a, inputs.b, inputs.row);
    let (lanes, width, len) = (S::LANES, B_REGISTERS * S::LANES, step.k.len());
    let zero = s.splat_u32(0);

    let largest = largest_exponents::<S, T::Value, MR>(s, inputs, at.k, len);
    let negative = negative_products::<S, T::Value, MR, COUNTS>(s, inputs, at.word, step.words());
    let (mut opened, mut sums) = ([[T::nothing(s); B_REGISTERS]; MR], [[T::zero(s); B_REGISTERS]; MR]);
    let mut scales = [[zero; B_REGISTERS]; MR];
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            let byte = s.and(s.shr(largest[i], 8 * v as u32), s.splat_u32(0xFF));
            let mut e = byte;
            if SCALED {
                let b = s.load_u32(&b.scales[at.step * width + v * lanes..]);
                scales[i][v] = s.add_u32(s.splat_u32(a.scales[at.step * lanes + row + i]), b);
                let none = s.splat_u32(core.zero.cast_unsigned());
                e = s.select_at_least(byte, 1, s.add_u32(byte, scales[i][v]), none);
            }
            (opened[i][v], sums[i][v]) =
                T::open::<LATE>(core, s, e, scales[i][v], negative[i][v], c[i][v]);
        }
    }

    let (a, b) = (&a.values[at.k * lanes..][..len * lanes], &b.values[at.k * width..][..len * width]);
    for k in 0..len {
        let (a, b) = (&a[k * lanes + row..][..MR], &b[k * width..][..width]);
        let mut columns = [T::load(s, b); B_REGISTERS];
        for v in 1..B_REGISTERS {
            columns[v] = T::load(s, &b[v * lanes..]);
        }
        for i in 0..MR {
            let a = T::splat(s, a[i]);
            for v in 0..B_REGISTERS {
                sums[i][v] = T::add(s, opened[i][v], sums[i][v], a, columns[v]);
            }
        }
    }

    for i in 0..MR {
        for v in 0..B_REGISTERS {
            c[i][v] = T::close::<LATE>(core, s, opened[i][v], scales[i][v], zero, sums[i][v], c[i][v]);
        }
    }
    c
}

/// The exponent bytes of the largest products over `len` elements from `k`, for each row of the tile.
#[inline(always)]
fn largest_exponents<S: Fused, V, const MR: usize>(
    s: S,
    inputs: &Inputs<'_, V>,
    k: usize,
    len: usize,
) -> [S::U32; MR] {
    let a = &inputs.a.exponents[k * S::LANES..][..len * S::LANES];
    let b = &inputs.b.exponents[k * S::LANES..][..len * S::LANES];
    let mut largest = [s.splat_u32(0); MR];
    for k in 0..len {
        let (a, b) = (&a[k * S::LANES + inputs.row..][..MR], s.load_u32(&b[k * S::LANES..]));
        for i in 0..MR {
            largest[i] = s.max_bytes(largest[i], s.sub_bytes(b, s.splat_u32(a[i])));
        }
    }
    largest
}

/// How many products are negative, over `words` words of signs from `word`.
#[inline(always)]
fn negative_products<S: Fused, V, const MR: usize, const COUNTS: bool>(
    s: S,
    inputs: &Inputs<'_, V>,
    word: usize,
    words: usize,
) -> Tile<S::U32, MR> {
    let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
    let mut negative = [[s.splat_u32(0); B_REGISTERS]; MR];
    for word in word..word + words {
        let (plus_a, minus_a) = inputs.a.signs[2 * word * lanes..][..2 * lanes].split_at(lanes);
        let (plus_b, minus_b) = inputs.b.signs[2 * word * width..][..2 * width].split_at(width);
        let (plus_a, minus_a) = (&plus_a[inputs.row..][..MR], &minus_a[inputs.row..][..MR]);
        for v in 0..B_REGISTERS {
            let (plus_b, minus_b) = (s.load_u32(&plus_b[v * lanes..]), s.load_u32(&minus_b[v * lanes..]));
            for i in 0..MR {
                let bits = s.and_or(s.splat_u32(plus_a[i]), minus_b, s.splat_u32(minus_a[i]), plus_b);
                negative[i][v] = s.add_u32(negative[i][v], s.count_ones::<COUNTS>(bits));
            }
        }
    }
    negative
}
