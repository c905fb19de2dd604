//! From codes and scales to floats: the definition, and the same in registers.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use super::{CodesRef, ScaledMatrix, ScaledRef};
use crate::error::{Error, Result};
use crate::matrix::{MatMut, Matrix};
use crate::simd::{Convert, Isa, Stores, Widener, Work};

/// Columns whose scales are spread out at once: as many as most matrices have, since whole rows follow each other in
/// memory.
const COLUMNS: usize = 16384;
/// Columns whose values are written at once.
const PIECE: usize = 2048;
/// How many codes ahead are asked for.
const AHEAD: usize = 2048;
/// The most elements of `4 · LANES`.
const GROUP: usize = 64;
/// Elements of a task: some hundred microseconds.
const TASK: usize = 1 << 17;
/// From this size on, values go past the cache.
const PAST_CACHE: usize = 1 << 25;

/// What codes are dequantised to: f32 or bf16.
pub trait Dequantized: Pod + Send + Sync {
    /// A value, rounded to nearest even.
    fn of(value: f32) -> Self;

    /// The same elements by their type.
    #[doc(hidden)]
    fn typed(out: &mut [Self]) -> TypedMut<'_>;
}

/// Elements by type.
#[doc(hidden)]
#[derive(Debug)]
pub enum TypedMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl Dequantized for f32 {
    fn of(value: f32) -> f32 {
        value
    }

    fn typed(out: &mut [f32]) -> TypedMut<'_> {
        TypedMut::F32(out)
    }
}

impl Dequantized for bf16 {
    fn of(value: f32) -> bf16 {
        bf16::from_f32(value)
    }

    fn typed(out: &mut [bf16]) -> TypedMut<'_> {
        TypedMut::Bf16(out)
    }
}

/// Values of four registers, stored.
pub(crate) trait Output: Dequantized {
    fn store<S: Convert>(s: S, values: [S::F32; 4], out: &mut [Self]);
}

impl Output for f32 {
    #[inline(always)]
    fn store<S: Convert>(s: S, values: [S::F32; 4], out: &mut [f32]) {
        for i in 0..4 {
            s.store(values[i], &mut out[i * S::LANES..]);
        }
    }
}

impl Output for bf16 {
    /// To nearest even on the bits, which are those of no NaN. Instructions that convert would flush subnormals.
    #[inline(always)]
    fn store<S: Convert>(s: S, values: [S::F32; 4], out: &mut [bf16]) {
        let (one, half) = (s.splat_u32(1), s.splat_u32(0x7FFF));
        let mut words = [one; 4];
        for i in 0..4 {
            let bits = s.bits(values[i]);
            let odd = s.and(s.shr(bits, 16), one);
            words[i] = s.shr(s.add_u32(bits, s.add_u32(odd, half)), 16);
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        s.store_bytes(s.pack_words([words[0], words[1]]), &mut bytes[..4 * S::LANES]);
        s.store_bytes(s.pack_words([words[2], words[3]]), &mut bytes[4 * S::LANES..]);
    }
}

impl ScaledMatrix {
    /// As [`ScaledRef::dequantize`].
    pub fn dequantize(&self) -> Matrix<f32> {
        self.view().dequantize()
    }
}

impl ScaledRef<'_> {
    /// The value of a code under a scale: fl(code · scale), then times the tensor scale where there is one. NaN is the
    /// canonical one.
    fn value(&self, code: u16, scale: f32) -> f32 {
        let mut value = self.format.decode_f32(code);
        if self.scales.is_some() {
            value *= scale;
        }
        if self.tensor_scale() != 1.0 {
            value *= self.tensor_scale();
        }
        if value.is_nan() { f32::NAN } else { value }
    }

    /// All values, one after the other: fl(code · scale), then times the tensor scale where there is one, all in f32;
    /// then one rounding to nearest even for bf16. The definition that [`ScaledRef::dequantize_into`] is held to.
    pub fn dequantize_reference<T: Dequantized>(&self) -> Matrix<T> {
        let (rows, cols) = self.shape();
        let rows = if cols == 0 { 0 } else { rows };
        let at = |i, j| T::of(self.value(self.codes.at(i, j), self.scale_at(i, j)));
        let data = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
        Matrix::from_vec(self.shape().0, cols, data).expect("one value each code")
    }

    /// All values in f32, the bits of [`ScaledRef::dequantize_reference`], by the active instruction set. Where
    /// `FINEGRAIN_ISA` names one that this CPU lacks, by the reference; [`ScaledRef::dequantize_into`] makes that an
    /// error.
    pub fn dequantize(&self) -> Matrix<f32> {
        let (rows, cols) = self.shape();
        let mut out = Matrix::filled(rows, cols, 0.0);
        match Isa::active().and_then(|isa| self.dequantize_into(out.view_mut(), isa)) {
            Ok(()) => out,
            Err(_) => self.dequantize_reference(),
        }
    }

    /// All values in f32 or bf16 into memory of the caller, by an instruction set: [`Isa::active`] unless there is a
    /// reason. The bits are those of [`ScaledRef::dequantize_reference`].
    ///
    /// ```
    /// use finegrain::matrix::Matrix;
    /// use finegrain::quant::{Quantizer, Recipe};
    /// use finegrain::simd::Isa;
    /// use half::bf16;
    /// let w = Matrix::from_fn(200, 300, |i, j| (i * j) as f32);
    /// let q = Quantizer::new(Recipe::DEEPSEEK_V3).weight(w.view())?;
    /// let mut values = Matrix::filled(200, 300, bf16::ZERO);
    /// q.view().dequantize_into(values.view_mut(), Isa::active()?)?;
    /// assert_eq!(values, q.view().dequantize_reference());
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` has another shape; [`Error::Unsupported`] if the CPU lacks the instruction set.
    pub fn dequantize_into<T: Dequantized>(&self, out: MatMut<'_, T>, isa: Isa) -> Result<()> {
        let (rows, cols) = self.shape();
        if out.shape() != (rows, cols) {
            let (r, c) = out.shape();
            return Err(Error::Shape(format!("{r}×{c} values are to hold codes of {rows}×{cols}")));
        }
        let isa = isa.checked()?;
        let (data, stride) = out.into_strided();
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        match T::typed(data) {
            TypedMut::F32(data) => self.dequantize_rows(data, stride, isa),
            TypedMut::Bf16(data) => self.dequantize_rows(data, stride, isa),
        }
        Ok(())
    }

    fn dequantize_rows<T: Output>(&self, out: &mut [T], stride: usize, isa: Isa) {
        let (rows, cols) = self.shape();
        let past_cache = (size_of::<T>() + 1) * rows * cols > PAST_CACHE;
        let height = (TASK / cols).max(1);
        let tasks = out.par_chunks_mut(height * stride).take(rows.div_ceil(height)).enumerate();
        tasks.for_each(|(i, out)| {
            let rows = i * height..((i + 1) * height).min(rows);
            isa.run(Part { x: self, rows, out, stride, past_cache });
        });
    }

    /// Some rows and columns, into `out` row after row.
    #[inline(always)]
    pub(crate) fn dequantize_tile<S: Convert>(
        &self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch<f32>,
    ) {
        let width = cols.len();
        part(s, self, rows, cols, out, width, false, scratch);
    }
}

/// Rows that one task dequantises.
struct Part<'a, T> {
    x: &'a ScaledRef<'a>,
    rows: Range<usize>,
    out: &'a mut [T],
    stride: usize,
    past_cache: bool,
}

impl<T: Output> Work for Part<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let cols = 0..self.x.shape().1;
        let mut scratch = Scratch::default();
        part(s, self.x, self.rows, cols, self.out, self.stride, self.past_cache, &mut scratch);
    }
}

/// Memory that a task works in.
pub(crate) struct Scratch<T> {
    /// The scales of some columns in one row of granules, each as often as it has columns, padded to whole groups.
    scales: Vec<f32>,
    /// Whether all scales of a group are finite, so that no product with a finite code is NaN.
    finite: Vec<bool>,
    /// Values on their way out.
    values: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { scales: Vec::new(), finite: Vec::new(), values: Vec::new() }
    }
}

impl<T: Output> Scratch<T> {
    /// Spreads the scales of a row of granules.
    fn spread(&mut self, x: &ScaledRef<'_>, row: usize, columns: Range<usize>, group: usize) {
        let groups = columns.len().div_ceil(group);
        let finite = x.tensor_scale().is_finite() && x.tensor_scale() != 0.0;
        self.finite.clear();
        self.finite.resize(groups, finite);
        self.scales.clear();
        self.scales.resize(groups * group, 1.0);
        self.values.resize(PIECE.min(groups * group), T::zeroed());
        let Some(scales) = x.scales else { return };
        let width = scales.granule.cols();
        let grid_row = (row + x.row_offset) / scales.granule.rows();
        let mut column = columns.start;
        while column < columns.end {
            let end = (column / width + 1).saturating_mul(width).min(columns.end);
            let scale = scales.grid.at(grid_row, column / width);
            let span = column - columns.start..end - columns.start;
            if !scale.is_finite() {
                self.finite[span.start / group..=(span.end - 1) / group].fill(false);
            }
            self.scales[span].fill(scale);
            column = end;
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn part<S: Convert, T: Output>(
    s: S,
    x: &ScaledRef<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [T],
    stride: usize,
    past_cache: bool,
    scratch: &mut Scratch<T>,
) {
    let widener = Widener::new(x.format).expect("element formats are signed and have at most 16 bits");
    let stores = Stores::new(s, past_cache);
    let height = x.scales.map_or(usize::MAX, |s| s.granule.rows());
    let mut top = rows.start;
    while top < rows.end {
        let left_in_granule = height - (top + x.row_offset) % height;
        let stripe = top..top.saturating_add(left_in_granule).min(rows.end);
        for left in cols.clone().step_by(COLUMNS) {
            let columns = left..(left + COLUMNS).min(cols.end);
            scratch.spread(x, top, columns.clone(), 4 * S::LANES);
            for i in stripe.clone() {
                let at = (i - rows.start) * stride + left - cols.start;
                let out = &mut out[at..at + columns.len()];
                match x.codes {
                    CodesRef::Bytes(m) => {
                        row(s, x, &widener, &m.row(i)[columns.clone()], scratch, &stores, out);
                    }
                    CodesRef::Words(m) => {
                        row(s, x, &widener, &m.row(i)[columns.clone()], scratch, &stores, out);
                    }
                }
            }
        }
        top = stripe.end;
    }
}

/// An integer that holds a code.
trait Code: Pod + Into<u16> {
    /// A code a lane.
    fn load<S: Convert>(s: S, codes: &[Self]) -> S::U32;
    /// Whether some of `4 · LANES` codes are infinite or NaN.
    fn has_specials<S: Convert>(s: S, widener: &Widener, codes: &[Self]) -> bool;
}

impl Code for u8 {
    #[inline(always)]
    fn load<S: Convert>(s: S, codes: &[u8]) -> S::U32 {
        s.load_u8(codes)
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
    fn has_specials<S: Convert>(s: S, widener: &Widener, codes: &[u16]) -> bool {
        let mut found = false;
        for i in 0..4 {
            found |= widener.has_specials(s, Self::load(s, &codes[i * S::LANES..]));
        }
        found
    }
}

/// Some columns of a row, under the scales that were spread over them.
#[inline(always)]
fn row<S: Convert, C: Code, T: Output>(
    s: S,
    x: &ScaledRef<'_>,
    widener: &Widener,
    codes: &[C],
    scratch: &mut Scratch<T>,
    stores: &Stores<S>,
    out: &mut [T],
) {
    let group = 4 * S::LANES;
    let tensor = x.tensor_scale();
    let Scratch { scales, finite, values } = scratch;
    let pieces = codes.chunks(PIECE).zip(out.chunks_mut(PIECE));
    let pieces = pieces.zip(scales.chunks(PIECE)).zip(finite.chunks(PIECE / group));
    for (((codes, out), scales), finite) in pieces {
        for (g, &finite) in finite.iter().enumerate() {
            let at = g * group;
            let padded;
            let codes = match codes.get(at..at + group) {
                Some(codes) => codes,
                None => {
                    padded = padded_group(&codes[at..]);
                    &padded[..group]
                }
            };
            let (scales, values) = (&scales[at..at + group], &mut values[at..at + group]);
            s.prefetch(codes, AHEAD);
            if !finite || C::has_specials(s, widener, codes) {
                singly(x, codes, scales, values);
                continue;
            }
            let mut products = [s.splat(0.0); 4];
            for i in 0..4 {
                let value = widener.values(s, C::load(s, &codes[i * S::LANES..]));
                products[i] = s.mul(value, s.load(&scales[i * S::LANES..]));
            }
            if tensor != 1.0 {
                for product in &mut products {
                    *product = s.mul(*product, s.splat(tensor));
                }
            }
            T::store(s, products, values);
        }
        stores.copy(&values[..out.len()], out);
    }
}

/// The last codes of a row, with zeros behind them.
#[inline(never)]
fn padded_group<C: Code>(codes: &[C]) -> [C; GROUP] {
    let mut padded = [C::zeroed(); GROUP];
    padded[..codes.len()].copy_from_slice(codes);
    padded
}

/// The definition, for groups that have an infinity or NaN.
#[cold]
#[inline(never)]
fn singly<C: Code, T: Output>(x: &ScaledRef<'_>, codes: &[C], scales: &[f32], values: &mut [T]) {
    for ((&code, &scale), value) in codes.iter().zip(scales).zip(values) {
        *value = T::of(x.value(code.into(), scale));
    }
}
