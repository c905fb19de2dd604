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

/// Registers of a tile.
pub(super) type Tile<R, const MR: usize> = [[R; B_REGISTERS]; MR];

/// How a step is summed.
pub(super) trait StepKernel<S: Fused>: Packing<S> {
    /// The most rows that a tile may have: as many sums as there is room for in registers.
    const ROWS: usize;

    /// The next accumulators.
    fn step<const MR: usize, const COUNTS: bool>(
        s: S,
        inputs: &Inputs<'_, Self::Value>,
        step: Place,
        c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR>;
}

/// Where a step begins in packed panels, and how long it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) step: usize,
    pub(super) k: usize,
    pub(super) word: usize,
    pub(super) group: usize,
    pub(super) len: usize,
    pub(super) words: usize,
    pub(super) groups: usize,
}

/// Runs `MR` rows over the block.
#[inline(always)]
pub(super) fn multiply<S: Fused, K: StepKernel<S>, const MR: usize, const COUNTS: bool>(
    s: S,
    inputs: &Inputs<'_, K::Value>,
    out: &mut Outputs<'_>,
) {
    let steps = &inputs.steps[inputs.block.steps.clone()];
    let (width, mut place, mut promotions) = (B_REGISTERS * S::LANES, Place::default(), 0);
    let mut c = [[s.splat(0.0); B_REGISTERS]; MR];
    if !steps[0].starts {
        for (i, c) in c.iter_mut().enumerate() {
            *c = load(s, &out.chains[i * out.stride..][..width]);
        }
    }
    for step in steps {
        if step.starts {
            c = [[s.splat(0.0); B_REGISTERS]; MR];
        }
        (place.len, place.words, place.groups) = (step.k.len(), step.words(), step.groups());
        c = K::step::<MR, COUNTS>(s, inputs, place, c);
        place.step += 1;
        place.k += place.len;
        place.word += place.words;
        place.group += place.groups;
        if step.ends {
            let scales_a = &inputs.scales_a[promotions * inputs.strides.0..][..MR];
            let scales_b = load(s, &inputs.scales_b[promotions * inputs.strides.1..][..width]);
            for i in 0..MR {
                let acc = &mut out.acc[i * out.stride..][..width];
                let promoted =
                    promote(s, inputs.promotion, load(s, acc), c[i], s.splat(scales_a[i]), scales_b);
                store(s, promoted, acc);
            }
            promotions += 1;
        }
    }
    // A chain that was promoted is not read again.
    if !steps[steps.len() - 1].ends {
        for (i, &c) in c.iter().enumerate() {
            store(s, c, &mut out.chains[i * out.stride..][..width]);
        }
    }
}

/// A row of a tile.
#[inline(always)]
fn load<S: Fused>(s: S, x: &[f32]) -> [S::F32; B_REGISTERS] {
    let mut row = [s.splat(0.0); B_REGISTERS];
    for v in 0..B_REGISTERS {
        row[v] = s.load(&x[v * S::LANES..]);
    }
    row
}

/// See [`load`].
#[inline(always)]
fn store<S: Fused>(s: S, row: [S::F32; B_REGISTERS], out: &mut [f32]) {
    for v in 0..B_REGISTERS {
        s.store(row[v], &mut out[v * S::LANES..]);
    }
}

/// [`Promotion::promote`] of a row of a tile.
#[inline(always)]
fn promote<S: Fused>(
    s: S,
    promotion: Promotion,
    mut acc: [S::F32; B_REGISTERS],
    partial: [S::F32; B_REGISTERS],
    a: S::F32,
    b: [S::F32; B_REGISTERS],
) -> [S::F32; B_REGISTERS] {
    for v in 0..B_REGISTERS {
        acc[v] = match promotion {
            Promotion::ScalesFirst => s.mul_add(s.mul(a, b[v]), partial[v], acc[v]),
            Promotion::PartialFirst => s.mul_add(s.mul(partial[v], a), b[v], acc[v]),
            Promotion::Unfused => s.add(acc[v], s.mul(s.mul(partial[v], a), b[v])),
        };
    }
    acc
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
        step: Place,
        c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR> {
        if inputs.core.late {
            aligned::<S, T, MR, COUNTS, SCALED, true>(s, inputs, step, c)
        } else {
            aligned::<S, T, MR, COUNTS, SCALED, false>(s, inputs, step, c)
        }
    }
}

/// A step of products.
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
    step: Place,
    mut c: Tile<S::F32, MR>,
) -> Tile<S::F32, MR> {
    let (core, a, b, row) = (inputs.core, inputs.a, inputs.b, inputs.row);
    let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
    let zero = s.splat_u32(0);
    let largest = largest_exponents::<S, T::Value, MR>(s, inputs, step.k, step.len);
    let negative = negative_products::<S, T::Value, MR, COUNTS>(s, inputs, step.word, step.words);
    let (mut opened, mut sums) = ([[T::nothing(s); B_REGISTERS]; MR], [[T::zero(s); B_REGISTERS]; MR]);
    let mut scales = [[zero; B_REGISTERS]; MR];
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            let byte = s.and(s.shr(largest[i], 8 * v as u32), s.splat_u32(0xFF));
            let mut e = byte;
            if SCALED {
                let b = s.load_u32(&b.scales[step.step * width + v * lanes..]);
                scales[i][v] = s.add_u32(s.splat_u32(a.scales[step.step * lanes + row + i]), b);
                let none = s.splat_u32(core.zero.cast_unsigned());
                e = s.select_at_least(byte, 1, s.add_u32(byte, scales[i][v]), none);
            }
            (opened[i][v], sums[i][v]) = T::open::<LATE>(core, s, e, scales[i][v], negative[i][v], c[i][v]);
        }
    }
    sums = add_products::<S, T, MR>(s, inputs, step.k, step.len, opened, sums);
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            c[i][v] = T::close::<LATE>(core, s, opened[i][v], scales[i][v], zero, sums[i][v], c[i][v]);
        }
    }
    c
}

/// Adds the products of `len` elements from `k`.
///
/// Sums are copied in and out, one by one: what callers index is in memory, these are in registers.
#[inline(always)]
fn add_products<S: Fused, T: Terms<S>, const MR: usize>(
    s: S,
    inputs: &Inputs<'_, T::Value>,
    k: usize,
    len: usize,
    opened: Tile<T::Open, MR>,
    from: Tile<T::Lanes, MR>,
) -> Tile<T::Lanes, MR> {
    let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
    let mut a = inputs.a.values[k * lanes..][..len * lanes].chunks_exact(lanes);
    let mut b = inputs.b.values[k * width..][..len * width].chunks_exact(width);
    let (mut sums, mut to) = ([[T::zero(s); B_REGISTERS]; MR], [[T::zero(s); B_REGISTERS]; MR]);
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            sums[i][v] = from[i][v];
        }
    }
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let a = &a[inputs.row..][..MR];
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
            to[i][v] = sums[i][v];
        }
    }
    to
}

/// The exponent bytes of the largest products of `len` elements from `k`, for each row of the tile.
#[inline(always)]
fn largest_exponents<S: Fused, V, const MR: usize>(
    s: S,
    inputs: &Inputs<'_, V>,
    k: usize,
    len: usize,
) -> [S::U32; MR] {
    let mut a = inputs.a.exponents[k * S::LANES..][..len * S::LANES].chunks_exact(S::LANES);
    let mut b = inputs.b.exponents[k * S::LANES..][..len * S::LANES].chunks_exact(S::LANES);
    let mut largest = [s.splat_u32(0); MR];
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let (a, b) = (&a[inputs.row..][..MR], s.load_u32(b));
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
