//! From codes and scales to floats: the definition, and the same in registers.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use super::look_up::{AHEAD, GROUP, LookUp, Products};
use super::{CodesRef, ScaledMatrix, ScaledRef};
use crate::error::{Error, Result};
use crate::matrix::{MatMut, Matrix};
use crate::simd::{Bf16Table, Convert, Isa, Put, Stores, Widener, Work};

/// Columns whose scales are spread out at once: as many as most matrices have, since whole rows follow each other in
/// memory.
const COLUMNS: usize = 16384;
/// Elements of a task: some hundred microseconds.
const TASK: usize = 1 << 17;
/// Rows of a block from which on all codes are multiplied by its scale beforehand.
const TABULATED: usize = 8;
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
    /// Whether a value is a word, which registers look up.
    const WORDS: bool;

    /// Into the first of `out`; `normal` says that none is subnormal.
    fn store<S: Convert>(s: S, to: Put<S>, values: [S::F32; 4], normal: bool, out: &mut [Self]);
}

impl Output for f32 {
    const WORDS: bool = false;

    #[inline(always)]
    fn store<S: Convert>(s: S, to: Put<S>, values: [S::F32; 4], _: bool, out: &mut [f32]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        for i in 0..4 {
            to.bytes(s.bits(values[i]), &mut bytes[4 * S::LANES * i..]);
        }
    }
}

impl Output for bf16 {
    const WORDS: bool = true;

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
        match Isa::active().map_err(Error::from).and_then(|isa| self.dequantize_into(out.view_mut(), isa)) {
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
        self.dequantize_typed(T::typed(data), stride, isa);
        Ok(())
    }

    /// Not generic, so that it is compiled once and not by every caller.
    fn dequantize_typed(&self, data: TypedMut<'_>, stride: usize, isa: Isa) {
        match data {
            TypedMut::F32(data) => self.dequantize_rows(data, stride, isa),
            TypedMut::Bf16(data) => self.dequantize_rows(data, stride, isa),
        }
    }

    fn dequantize_rows<T: Output>(&self, out: &mut [T], stride: usize, isa: Isa) {
        let (rows, cols) = self.shape();
        if rows == 0 || cols == 0 {
            return;
        }
        let past_cache = (size_of::<T>() + 1) * rows * cols > PAST_CACHE;
        // As high as blocks where there is work for all threads, since something is made for every block.
        let share = rows.div_ceil(4 * rayon::current_num_threads());
        let block = self.scales.map_or(1, |scales| scales.granule.rows());
        let height = (TASK / cols).max(block.min(share));
        let tasks = out.par_chunks_mut(height * stride).take(rows.div_ceil(height)).enumerate();
        tasks.for_each(|(i, out)| {
            let rows = i * height..((i + 1) * height).min(rows);
            let scratch = &mut Scratch::default();
            isa.run(Part { x: self, rows, cols: 0..cols, out, stride, past_cache, scratch });
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
        scratch: &mut Scratch,
    ) {
        let stride = cols.len();
        s.vectorize(Part { x: self, rows, cols, out, stride, past_cache: false, scratch });
    }
}

/// Some rows and columns, into `out` row after row.
struct Part<'a, T> {
    x: &'a ScaledRef<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &'a mut [T],
    stride: usize,
    past_cache: bool,
    scratch: &'a mut Scratch,
}

/// How the values of some columns are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Care {
    /// Products of finite codes are normal numbers, infinite or zero.
    Normal,
    /// They are no NaN.
    Number,
    /// As the definition does it.
    Singly,
}

impl Care {
    fn of(scale: f32, tensor: f32, smallest: f32) -> Care {
        if !scale.is_finite() || !tensor.is_finite() || tensor == 0.0 {
            Care::Singly
        } else if tensor == 1.0 && (scale == 0.0 || scale.abs() * smallest >= f32::MIN_POSITIVE) {
            Care::Normal
        } else {
            Care::Number
        }
    }
}

/// What is known of some columns in one row of granules.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The scales, each as often as it has columns, and a group behind them.
    scales: Vec<f32>,
    /// For each granule, where its rows are worth it.
    products: Vec<Products>,
}

/// Codes 0 … 127.
const CODES: [u8; 2 * GROUP] = {
    let (mut codes, mut i) = ([0; 2 * GROUP], 0);
    while i < codes.len() {
        codes[i] = i as u8;
        i += 1;
    }
    codes
};

impl Scratch {
    /// Spreads the scales of a row of granules.
    fn spread(&mut self, x: &ScaledRef<'_>, row: usize, columns: Range<usize>) -> Care {
        let (tensor, smallest) = (x.tensor_scale(), x.format.spec().min_subnormal() as f32);
        let spread = &mut self.scales;
        spread.resize(columns.len() + GROUP, 1.0);
        spread[columns.len()..].fill(1.0);
        let Some(scales) = x.scales else {
            spread.fill(1.0);
            return Care::of(1.0, tensor, smallest);
        };
        let (width, grid_row) = (scales.granule.cols(), (row + x.row_offset) / scales.granule.rows());
        let (mut column, mut care) = (columns.start, Care::Normal);
        while column < columns.end {
            let end = (column / width + 1).saturating_mul(width).min(columns.end);
            let scale = scales.grid.at(grid_row, column / width);
            spread[column - columns.start..end - columns.start].fill(scale);
            care = care.max(Care::of(scale, tensor, smallest));
            column = end;
        }
        care
    }
}

impl<T: Output> Work for Part<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Part { x, rows, cols, out, stride, past_cache, scratch } = self;
        let widener =
            crate::simd::widener(x.format).expect("element formats are signed and have at most 16 bits");
        let table = crate::simd::bf16_table(x.format);
        let stores = Stores::new(s, past_cache);
        let height = x.scales.map_or(usize::MAX, |s| s.granule.rows());
        let mut top = rows.start;
        while top < rows.end {
            let left_in_granule = height - (top + x.row_offset) % height;
            let stripe = top..top.saturating_add(left_in_granule).min(rows.end);
            for left in cols.clone().step_by(COLUMNS) {
                let columns = left..(left + COLUMNS).min(cols.end);
                let care = scratch.spread(x, top, columns.clone());
                let (table, tensor) = (table.as_ref(), x.tensor_scale());
                let row = Row { s, x, widener, table, tensor, scales: &scratch.scales, care };
                scratch.products.clear();
                let tabulated = S::PAIR == 2 && T::WORDS && table.is_some() && care != Care::Singly;
                let width = row.width(&columns).filter(|_| tabulated && stripe.len() >= TABULATED);
                if let Some(width) = width {
                    row.tabulate::<T>(columns.clone(), width, &mut scratch.products);
                }
                let place = |i: usize| (i - rows.start) * stride + left - cols.start;
                // Rows without gaps are one: what goes past the cache is best not interrupted.
                let gapless = stride == columns.len() && columns.len().is_multiple_of(GROUP);
                if let (CodesRef::Bytes(m), Some(width)) = (x.codes, width)
                    && gapless
                    && m.stride() == stride
                {
                    let count = stripe.len() * stride;
                    let codes = &m.row_range(stripe.start, stripe.end).strided()[..count];
                    let out = &mut out[place(stripe.start)..][..count];
                    row.look_up(&stores, &scratch.products, width, codes, out);
                    continue;
                }
                for i in stripe.clone() {
                    let out = &mut out[place(i)..][..columns.len()];
                    match x.codes {
                        CodesRef::Bytes(m) => {
                            let codes = &m.row(i)[columns.clone()];
                            match width {
                                Some(width) => row.look_up(&stores, &scratch.products, width, codes, out),
                                None => row.groups(&stores, codes, out),
                            }
                        }
                        CodesRef::Words(m) => row.groups(&stores, &m.row(i)[columns.clone()], out),
                    }
                }
            }
            top = stripe.end;
        }
    }
}

/// An integer that holds a code.
trait Code: Pod + Into<u16> {
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

/// What makes values of some columns of a row.
#[derive(Clone, Copy)]
struct Row<'a, S: Convert> {
    s: S,
    x: &'a ScaledRef<'a>,
    widener: Widener,
    table: Option<&'a Bf16Table>,
    tensor: f32,
    scales: &'a [f32],
    care: Care,
}

impl<S: Convert> Row<'_, S> {
    /// Group by group from where `out` is aligned on.
    #[inline(always)]
    fn groups<C: Code, T: Output>(self, stores: &Stores<S>, codes: &[C], out: &mut [T]) {
        if self.care == Care::Singly {
            return singly(self.x, codes, self.scales, out);
        }
        let (group, head) = (4 * S::LANES, Stores::<S>::to_aligned(out).min(out.len()));
        let whole = (out.len() - head) / group * group;
        self.rest(0, &codes[..head], &mut out[..head]);
        let put = stores.put(&out[head..]).expect("they are aligned there");
        let groups = codes[head..].chunks_exact(group).zip(out[head..].chunks_exact_mut(group));
        for ((codes, out), scales) in groups.zip(self.scales[head..].chunks_exact(group)) {
            self.group(put, codes, scales, out);
        }
        self.rest(head + whole, &codes[head + whole..], &mut out[head + whole..]);
    }

    /// Fewer codes than a group, from `at` on.
    #[inline(always)]
    fn rest<C: Code, T: Output>(self, at: usize, codes: &[C], out: &mut [T]) {
        if !codes.is_empty() {
            let (mut padded, mut values) = ([C::zeroed(); GROUP], [T::zeroed(); GROUP]);
            padded[..codes.len()].copy_from_slice(codes);
            self.group(Put::cached(self.s), &padded[..4 * S::LANES], &self.scales[at..], &mut values);
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    #[inline(always)]
    fn group<C: Code, T: Output>(self, put: Put<S>, codes: &[C], scales: &[f32], out: &mut [T]) {
        let s = self.s;
        s.prefetch(codes, AHEAD);
        if C::has_specials(s, &self.widener, codes) {
            return singly(self.x, codes, scales, out);
        }
        self.finite(put, codes, scales, out);
    }

    /// The same of codes that are finite.
    #[inline(always)]
    fn finite<C: Code, T: Output>(self, put: Put<S>, codes: &[C], scales: &[f32], out: &mut [T]) {
        let s = self.s;
        let mut products = C::values(s, &self.widener, self.table, codes);
        for (i, product) in products.iter_mut().enumerate() {
            *product = s.mul(*product, s.load(&scales[i * S::LANES..]));
        }
        if self.tensor != 1.0 {
            for product in &mut products {
                *product = s.mul(*product, s.splat(self.tensor));
            }
        }
        T::store(s, put, products, self.care == Care::Normal, out);
    }
}

impl<S: Convert> Row<'_, S> {
    /// How far granules reach over `columns`, up to the next group; `None` if they end within groups.
    fn width(self, columns: &Range<usize>) -> Option<usize> {
        let width = self.x.scales.map_or(usize::MAX, |scales| scales.granule.cols());
        if width >= self.x.shape().1 {
            return Some(columns.len().next_multiple_of(GROUP));
        }
        (width.is_multiple_of(GROUP) && columns.start.is_multiple_of(width)).then_some(width)
    }

    /// Multiplies all codes by the scale of every granule, `width` columns each.
    #[inline(always)]
    fn tabulate<T: Output>(self, columns: Range<usize>, width: usize, products: &mut Vec<Products>) {
        let s = self.s;
        for left in (0..columns.len()).step_by(width) {
            let (mut values, mut table) = ([T::zeroed(); 2 * GROUP], Products([[0; GROUP]; 4]));
            // Infinities and NaN are looked at when they occur: what they give here is not used.
            for (codes, values) in CODES.chunks_exact(GROUP).zip(values.chunks_exact_mut(GROUP)) {
                self.finite(Put::cached(s), codes, &self.scales[left..], values);
            }
            let words: &[u8] = bytemuck::cast_slice(&values);
            for i in 0..2 {
                let half = &words[2 * GROUP * i..];
                let [low, high] = s.split_words([s.load_bytes(half), s.load_bytes(&half[GROUP..])]);
                s.store_bytes(low, &mut table.0[2 * i]);
                s.store_bytes(high, &mut table.0[2 * i + 1]);
            }
            products.push(table);
        }
    }

    /// As [`Row::groups`], of one row or of rows of whole groups without gaps, by the products of granules.
    #[inline(always)]
    fn look_up<T: Output>(
        self,
        stores: &Stores<S>,
        products: &[Products],
        width: usize,
        codes: &[u8],
        out: &mut [T],
    ) {
        let (s, widener, past_cache) = (self.s, &self.widener, stores.past_cache());
        let cols = self.scales.len() - GROUP;
        let whole = codes.len() / GROUP * GROUP;
        let mut at = 0;
        while at < whole {
            let column = at % cols;
            let bytes = bytemuck::cast_slice_mut(&mut out[at..whole]);
            at += s.vectorize(LookUp {
                widener,
                products,
                width,
                cols,
                column,
                codes: &codes[at..whole],
                out: bytes,
                past_cache,
            });
            if at < whole {
                let scales = &self.scales[at % cols..];
                singly(self.x, &codes[at..at + GROUP], scales, &mut out[at..at + GROUP]);
                at += GROUP;
            }
        }
        self.rest(whole, &codes[whole..], &mut out[whole..]);
    }
}

/// The definition, for codes or scales that are infinite or NaN.
#[cold]
#[inline(never)]
fn singly<C: Code, T: Output>(x: &ScaledRef<'_>, codes: &[C], scales: &[f32], values: &mut [T]) {
    for ((&code, &scale), value) in codes.iter().zip(scales).zip(values) {
        *value = T::of(x.value(code.into(), scale));
    }
}
