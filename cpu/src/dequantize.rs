//! From codes and scales to f32 and bf16.
//!
//! value = fl(fl(code · scale) · tensor scale), then one rounding to nearest even for bf16.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;

use crate::elements::{Codes, ElementsMut};
use crate::simd::{Bf16Table, Convert, Put, Widener, Work};
use crate::stores::Stores;

/// How many codes ahead are asked for.
const AHEAD: usize = 2048;
/// The most elements of four registers, and the codes of a register of 64 bytes.
pub const GROUP: usize = 64;

/// How the codes of a format become values.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// Decodes in registers.
    pub widener: &'a Widener,
    /// The values of codes of at most 8 bits.
    pub table: Option<&'a Bf16Table>,
    /// The scale of the tensor; finite and not zero.
    pub tensor: f32,
    /// Whether products of finite codes are normal numbers, infinite or zero.
    pub normal: bool,
}

/// Rows of codes that are dequantised.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The codes, `stride` from row to row.
    pub codes: Codes<'a>,
    /// Codes from row to row.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Their scales.
    pub scales: ScalesOf<'a>,
}

/// The scales of rows of codes, all finite.
#[derive(Clone, Copy, Debug)]
pub enum ScalesOf<'a> {
    /// One a row.
    Rows(&'a [f32]),
    /// One a column, and [`GROUP`] more.
    Columns(&'a [f32]),
}

/// Values of rows of codes, into rows of `out` that begin `out_stride` apart. Groups of codes with an infinity or NaN are
/// left to `singly`, which is given their row and columns, and memory for their values.
///
/// # Panics
/// If a row lies beyond its slice.
pub fn dequantize_rows(
    stores: &Stores,
    how: &Values<'_>,
    x: &Rows<'_>,
    out: ElementsMut<'_>,
    out_stride: usize,
    singly: &mut dyn FnMut(usize, Range<usize>, ElementsMut<'_>),
) {
    let (isa, past_cache) = (stores.isa(), stores.past_cache());
    match (x.codes, out) {
        (Codes::Bytes(codes), ElementsMut::F32(out)) => {
            isa.run(&mut Groups { how, x, codes, out, out_stride, past_cache, singly });
        }
        (Codes::Bytes(codes), ElementsMut::Bf16(out)) => {
            isa.run(&mut Groups { how, x, codes, out, out_stride, past_cache, singly });
        }
        // Nothing is looked up, and nothing converted.
        (Codes::Words(codes), ElementsMut::F32(out)) => {
            isa.run_without_vbmi(&mut Groups { how, x, codes, out, out_stride, past_cache, singly });
        }
        (Codes::Words(codes), ElementsMut::Bf16(out)) => {
            isa.run(&mut Groups { how, x, codes, out, out_stride, past_cache, singly });
        }
    }
}

/// What values are stored as.
pub(crate) trait Output: Pod {
    /// Four registers into the first of `out`; `normal` says that none is subnormal.
    fn store<S: Convert>(s: S, to: Put<S>, values: [S::F32; 4], normal: bool, out: &mut [Self]);

    fn typed(out: &mut [Self]) -> ElementsMut<'_>;
}

impl Output for f32 {
    #[inline(always)]
    fn store<S: Convert>(s: S, to: Put<S>, values: [S::F32; 4], _: bool, out: &mut [f32]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        for i in 0..4 {
            to.bytes(s.bits(values[i]), &mut bytes[4 * S::LANES * i..]);
        }
    }

    fn typed(out: &mut [f32]) -> ElementsMut<'_> {
        ElementsMut::F32(out)
    }
}

impl Output for bf16 {
    #[inline(always)]
    fn store<S: Convert>(s: S, to: Put<S>, [a, b, c, d]: [S::F32; 4], normal: bool, out: &mut [bf16]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        let halves = if normal {
            [s.bf16_of_normals([a, b]), s.bf16_of_normals([c, d])]
        } else {
            [s.bf16([a, b]), s.bf16([c, d])]
        };
        to.bytes(halves[0], bytes);
        to.bytes(halves[1], &mut bytes[4 * S::LANES..]);
    }

    fn typed(out: &mut [bf16]) -> ElementsMut<'_> {
        ElementsMut::Bf16(out)
    }
}

/// An integer that holds a code.
pub(crate) trait Code: Pod {
    /// A code a lane.
    fn load<S: Convert>(s: S, codes: &[Self]) -> S::U32;
    /// The values of `4 · LANES` finite codes; by `table` where they may be.
    fn values<S: Convert>(s: S, widener: &Widener, table: Option<&Bf16Table>, codes: &[Self]) -> [S::F32; 4];
    /// Whether some of `4 · LANES` codes are infinite or NaN.
    fn has_specials<S: Convert>(s: S, widener: &Widener, codes: &[Self]) -> bool;
}

impl Code for u8 {
    #[inline(always)]
    fn load<S: Convert>(s: S, codes: &[u8]) -> S::U32 {
        s.load_u8(codes)
    }

    #[inline(always)]
    fn values<S: Convert>(s: S, widener: &Widener, table: Option<&Bf16Table>, codes: &[u8]) -> [S::F32; 4] {
        match table {
            Some(table) if S::PAIR == 2 => s.look_up(table, s.load_bytes(codes)),
            _ => widen(s, widener, codes),
        }
    }

    #[inline(always)]
    fn has_specials<S: Convert>(s: S, widener: &Widener, codes: &[u8]) -> bool {
        widener.bytes_have_specials(s, s.load_bytes(codes))
    }
}

impl Code for u16 {
    #[inline(always)]
    fn load<S: Convert>(s: S, codes: &[u16]) -> S::U32 {
        s.load_u16(bytemuck::cast_slice(codes))
    }

    #[inline(always)]
    fn values<S: Convert>(s: S, widener: &Widener, _: Option<&Bf16Table>, codes: &[u16]) -> [S::F32; 4] {
        widen(s, widener, codes)
    }

    #[inline(always)]
    fn has_specials<S: Convert>(s: S, widener: &Widener, codes: &[u16]) -> bool {
        let mut found = false;
        for i in 0..4 {
            found |= widener.has_specials(s, Self::load(s, &codes[i * S::LANES..]));
        }
        found
    }
}

#[inline(always)]
fn widen<S: Convert, C: Code>(s: S, widener: &Widener, codes: &[C]) -> [S::F32; 4] {
    let mut values = [s.splat(0.0); 4];
    for (i, value) in values.iter_mut().enumerate() {
        *value = widener.values(s, C::load(s, &codes[i * S::LANES..]));
    }
    values
}

struct Groups<'a, 'b, C, T> {
    how: &'a Values<'a>,
    x: &'a Rows<'a>,
    codes: &'a [C],
    out: &'a mut [T],
    out_stride: usize,
    past_cache: bool,
    singly: &'a mut (dyn FnMut(usize, Range<usize>, ElementsMut<'_>) + 'b),
}

impl<C: Code, T: Output> Work for &mut Groups<'_, '_, C, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let &mut Groups { how, x, codes, ref mut out, out_stride, past_cache, ref mut singly } = self;
        let (group, put) = (4 * S::LANES, Put::new(s, past_cache));
        // Copies: what stores may reach is loaded again after each.
        let widener = *how.widener;
        let how = &Values { widener: &widener, ..*how };
        for i in 0..x.rows {
            let (codes, out) = (&codes[i * x.stride..][..x.cols], &mut out[i * out_stride..][..x.cols]);
            let head = to_aligned::<S, T>(out).min(x.cols);
            let whole = head + (x.cols - head) / group * group;
            for (at, end) in [(0, head), (whole, x.cols)] {
                if at < end {
                    let (codes, out) = (&codes[at..end], &mut out[at..end]);
                    if !edge(s, how, codes, x.scales.of_row(i, at), out) {
                        by_definition(singly, i, at..end, out);
                    }
                }
            }
            let groups = codes[head..whole].chunks_exact(group).zip(out[head..whole].chunks_exact_mut(group));
            match x.scales {
                ScalesOf::Columns(scales) => {
                    let groups = groups.zip(scales[head..].chunks_exact(group)).enumerate();
                    for (g, ((codes, out), scales)) in groups {
                        let mut registers = [s.splat(1.0); 4];
                        for (j, register) in registers.iter_mut().enumerate() {
                            *register = s.load(&scales[j * S::LANES..]);
                        }
                        if !values(s, how, put, codes, registers, out) {
                            by_definition(singly, i, head + g * group..head + (g + 1) * group, out);
                        }
                    }
                }
                ScalesOf::Rows(scales) => {
                    let registers = [s.splat(scales[i]); 4];
                    for (g, (codes, out)) in groups.enumerate() {
                        if !values(s, how, put, codes, registers, out) {
                            by_definition(singly, i, head + g * group..head + (g + 1) * group, out);
                        }
                    }
                }
            }
        }
    }
}

/// Values of a group; whether its codes are all finite, or else nothing was written.
#[inline(always)]
fn values<S: Convert, C: Code, T: Output>(
    s: S,
    how: &Values<'_>,
    put: Put<S>,
    codes: &[C],
    scales: [S::F32; 4],
    out: &mut [T],
) -> bool {
    s.prefetch(codes, AHEAD);
    if C::has_specials(s, how.widener, codes) {
        return false;
    }
    finite(s, how, put, codes, scales, out);
    true
}

impl<'a> ScalesOf<'a> {
    /// Those of row `i` from column `at` on.
    fn of_row(&self, i: usize, at: usize) -> ScalesOf<'a> {
        match self {
            ScalesOf::Rows(scales) => ScalesOf::Rows(&scales[i..=i]),
            ScalesOf::Columns(scales) => ScalesOf::Columns(&scales[at..]),
        }
    }
}

/// Fewer codes than a group; whether they are all finite, or else nothing was written.
#[inline(always)]
fn edge<S: Convert, C: Code, T: Output>(
    s: S,
    how: &Values<'_>,
    codes: &[C],
    scales: ScalesOf<'_>,
    out: &mut [T],
) -> bool {
    let (mut padded, mut values) = ([C::zeroed(); GROUP], [T::zeroed(); GROUP]);
    padded[..codes.len()].copy_from_slice(codes);
    let padded = &padded[..4 * S::LANES];
    if C::has_specials(s, how.widener, padded) {
        return false;
    }
    let mut registers = [s.splat(1.0); 4];
    for (j, register) in registers.iter_mut().enumerate() {
        *register = match scales {
            ScalesOf::Rows(scales) => s.splat(scales[0]),
            ScalesOf::Columns(scales) => s.load(&scales[j * S::LANES..]),
        };
    }
    finite(s, how, Put::cached(s), padded, registers, &mut values);
    out.copy_from_slice(&values[..out.len()]);
    true
}

#[cold]
#[inline(never)]
fn by_definition<T: Output>(
    singly: &mut dyn FnMut(usize, Range<usize>, ElementsMut<'_>),
    row: usize,
    columns: Range<usize>,
    values: &mut [T],
) {
    singly(row, columns, T::typed(values));
}

/// How many elements of `to` lie in front of an aligned one.
#[inline(always)]
fn to_aligned<S: Convert, T>(to: &[T]) -> usize {
    (to.as_ptr().addr().next_multiple_of(4 * S::LANES) - to.as_ptr().addr()) / size_of::<T>()
}

/// Values of a group of finite codes.
#[inline(always)]
pub(crate) fn finite<S: Convert, C: Code, T: Output>(
    s: S,
    how: &Values<'_>,
    put: Put<S>,
    codes: &[C],
    scales: [S::F32; 4],
    out: &mut [T],
) {
    let mut products = C::values(s, how.widener, how.table, codes);
    for i in 0..4 {
        products[i] = s.mul(products[i], scales[i]);
    }
    if how.tensor != 1.0 {
        for product in &mut products {
            *product = s.mul(*product, s.splat(how.tensor));
        }
    }
    T::store(s, put, products, how.normal, out);
}
