//! Dequantising a part of a matrix: block by block, by what is known of the scales there.

use std::ops::Range;

use finegrain_cpu::Stores;
use finegrain_cpu::dequantize::{GROUP, Rows, ScalesOf, Values, dequantize_rows};
use finegrain_cpu::look_up::{Lookup, Products, has_tables, look_up, tabulate};
use finegrain_cpu::quantize::spread;

use super::{CodesRef, ScaleGridRef, ScaledRef, ue4m3_to_f32};
use crate::element::{Codes, ElementsMut};
use crate::formats::e8m0;

/// Columns whose scales are spread out at once: as many as most matrices have, since whole rows follow each other in
/// memory.
const COLUMNS: usize = 16384;
/// Rows of a block from which on all codes are multiplied by its scale beforehand.
const TABULATED: usize = 8;

/// Some rows and columns, into `out` row after row, `stride` elements apart.
pub(super) struct Part<'a> {
    pub(super) x: &'a ScaledRef<'a>,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    pub(super) out: ElementsMut<'a>,
    pub(super) stride: usize,
}

/// Memory that a part is worked on in.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The scales of granules, side by side or one below the other.
    granules: Vec<f32>,
    /// Those of columns, and a group behind them.
    columns: Vec<f32>,
    /// For each granule, where its rows are worth it.
    products: Vec<Products>,
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
    fn of(scales: &[f32], x: &ScaledRef<'_>) -> Care {
        let (tensor, smallest) = (x.tensor_scale(), x.format.spec().min_subnormal() as f32);
        let one = |&scale: &f32| {
            if !scale.is_finite() || !tensor.is_finite() || tensor == 0.0 {
                Care::Singly
            } else if tensor == 1.0 && (scale == 0.0 || scale.abs() * smallest >= f32::MIN_POSITIVE) {
                Care::Normal
            } else {
                Care::Number
            }
        };
        scales.iter().map(one).fold(Care::Normal, Care::max)
    }
}

impl ScaledRef<'_> {
    /// Some rows and columns in f32 or bf16, into `out` row after row, `stride` elements apart.
    pub(crate) fn dequantize_part(
        &self,
        stores: &Stores,
        rows: Range<usize>,
        cols: Range<usize>,
        out: ElementsMut<'_>,
        stride: usize,
        scratch: &mut Scratch,
    ) {
        Part { x: self, rows, cols, out, stride }.run(stores, scratch);
    }

    /// The scales of granules `columns` in the row of granules that row `i` lies in.
    fn granule_scales(&self, i: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        match self.scales {
            Some(s) => {
                let row = (i + self.row_offset) / s.granule.rows();
                match s.grid {
                    ScaleGridRef::F32(m) => out.extend_from_slice(&m.row(row)[columns]),
                    ScaleGridRef::E8M0(m) => out.extend(m.row(row)[columns].iter().map(|&x| e8m0::to_f32(x))),
                    ScaleGridRef::E4M3(m) => out.extend(m.row(row)[columns].iter().map(|&x| ue4m3_to_f32(x))),
                }
            }
            None => out.resize(columns.len(), 1.0),
        }
    }

    /// The scales of all `rows` at column `j`.
    fn row_scales(&self, rows: Range<usize>, j: usize, out: &mut Vec<f32>) {
        out.resize(rows.len(), 1.0);
        self.scales_at(rows, j, out);
    }

    /// Some rows and columns of codes, from the first to the last, and the codes from row to row.
    fn codes_part(&self, rows: Range<usize>, cols: Range<usize>) -> (Codes<'_>, usize) {
        match self.codes() {
            CodesRef::Bytes(m) => {
                let m = m.row_range(rows.start, rows.end).col_range(cols.start, cols.end);
                (Codes::Bytes(m.strided()), m.stride())
            }
            CodesRef::Words(m) => {
                let m = m.row_range(rows.start, rows.end).col_range(cols.start, cols.end);
                (Codes::Words(m.strided()), m.stride())
            }
            CodesRef::Dwords(_) => unreachable!("F32 is dequantised by its definition"),
        }
    }
}

impl Part<'_> {
    /// Dequantises it.
    pub(super) fn run(mut self, stores: &Stores, scratch: &mut Scratch) {
        let x = self.x;
        let widener =
            &crate::simd::widener(x.format).expect("element formats are signed and have at most 16 bits");
        let table = crate::simd::bf16_table(x.format);
        let (height, width) =
            x.scales.map_or((usize::MAX, usize::MAX), |s| (s.granule.rows(), s.granule.cols()));
        let one_column = self.cols.start / width == (self.cols.end - 1) / width;
        let mut top = self.rows.start;
        while top < self.rows.end {
            let left_in_granule = height - (top + x.row_offset) % height;
            let mut rows = top..top.saturating_add(left_in_granule).min(self.rows.end);
            // Where each row has one scale, as many rows as there are.
            let a_row = one_column && rows.len() < TABULATED;
            if a_row {
                rows.end = self.rows.end;
            }
            top = rows.end;
            for left in self.cols.clone().step_by(COLUMNS) {
                let cols = left..(left + COLUMNS).min(self.cols.end);
                if a_row {
                    x.row_scales(rows.clone(), left, &mut scratch.granules);
                } else {
                    x.granule_scales(
                        top - 1,
                        left / width..(cols.end - 1) / width + 1,
                        &mut scratch.granules,
                    );
                }
                let at = (rows.start - self.rows.start) * self.stride + left - self.cols.start;
                let len = (rows.len() - 1) * self.stride + cols.len();
                let (codes, codes_stride) = x.codes_part(rows.clone(), cols.clone());
                let block = Block {
                    x,
                    rows: rows.len(),
                    cols: cols.len(),
                    codes,
                    codes_stride,
                    width,
                    first: left % width,
                    a_row,
                    care: Care::of(&scratch.granules, x),
                };
                let how = Values {
                    widener,
                    table: table.as_ref(),
                    tensor: x.tensor_scale(),
                    normal: block.care == Care::Normal,
                };
                block.run(&how, stores, scratch, self.out.slice(at..at + len), self.stride);
            }
        }
    }
}

/// Rows and columns of a part that are dequantised together.
struct Block<'a> {
    x: &'a ScaledRef<'a>,
    rows: usize,
    cols: usize,
    codes: Codes<'a>,
    codes_stride: usize,
    /// Columns of a granule, and of the first one those before the block.
    width: usize,
    first: usize,
    /// Whether there is one scale a row, and not a row of granules.
    a_row: bool,
    care: Care,
}

impl Block<'_> {
    fn run(
        &self,
        how: &Values<'_>,
        stores: &Stores,
        scratch: &mut Scratch,
        mut out: ElementsMut<'_>,
        stride: usize,
    ) {
        let Scratch { granules, columns, products } = scratch;
        let scales = if self.a_row {
            ScalesOf::Rows(granules)
        } else {
            columns.resize(self.cols + GROUP, 1.0);
            columns[self.cols..].fill(1.0);
            spread(stores.isa(), granules, self.first, self.width, &mut columns[..self.cols]);
            ScalesOf::Columns(columns)
        };
        if self.care == Care::Singly {
            for i in 0..self.rows {
                self.singly(scales, i, 0..self.cols, out.slice(i * stride..i * stride + self.cols));
            }
            return;
        }
        let mut looked_up = 0;
        if let (ElementsMut::Bf16(out), Codes::Bytes(codes), Some(width)) =
            (&mut out, self.codes, self.tabulated(how, stores))
        {
            tabulate(stores.isa(), how, granules, products);
            looked_up = self.cols / GROUP * GROUP;
            let mut lookup =
                Lookup { widener: how.widener, products, width, cols: self.cols, column: 0, codes: &[] };
            // Rows without gaps are one: what goes past the cache is best not interrupted.
            let gapless = looked_up == self.cols && stride == self.cols && self.codes_stride == self.cols;
            let (runs, len) = if gapless { (1, self.rows * self.cols) } else { (self.rows, looked_up) };
            for i in 0..runs {
                let codes = &codes[i * self.codes_stride..][..len];
                let out = &mut out[i * stride..][..len];
                let mut at = 0;
                while at < len {
                    (lookup.column, lookup.codes) = (at % self.cols, &codes[at..]);
                    at += look_up(stores, &lookup, &mut out[at..]);
                    if at < len {
                        let (row, column) = (i + at / self.cols, at % self.cols);
                        let group = ElementsMut::Bf16(&mut out[at..at + GROUP]);
                        self.singly(scales, row, column..column + GROUP, group);
                        at += GROUP;
                    }
                }
            }
        }
        if looked_up == self.cols {
            return;
        }
        let scales_left = match scales {
            ScalesOf::Rows(_) => scales,
            ScalesOf::Columns(columns) => ScalesOf::Columns(&columns[looked_up..]),
        };
        let rows = Rows {
            codes: self.codes.from(looked_up),
            stride: self.codes_stride,
            rows: self.rows,
            cols: self.cols - looked_up,
            scales: scales_left,
        };
        let mut singly = |i: usize, columns: Range<usize>, out: ElementsMut<'_>| {
            self.singly(scales, i, looked_up + columns.start..looked_up + columns.end, out);
        };
        let len = out.len();
        dequantize_rows(stores, how, &rows, out.slice(looked_up..len), stride, &mut singly);
    }

    /// How far granules reach, up to the next group, where codes are worth being multiplied by all scales beforehand.
    fn tabulated(&self, how: &Values<'_>, stores: &Stores) -> Option<usize> {
        let worth = has_tables(stores.isa()) && how.table.is_some() && !self.a_row && self.rows >= TABULATED;
        let whole = self.width >= self.x.shape().1;
        let width = if whole { self.cols.next_multiple_of(GROUP) } else { self.width };
        let aligned = whole || width.is_multiple_of(GROUP) && self.first == 0;
        (worth && aligned).then_some(width)
    }

    /// The definition, for codes or scales that are infinite or NaN.
    #[cold]
    fn singly(&self, scales: ScalesOf<'_>, i: usize, columns: Range<usize>, mut out: ElementsMut<'_>) {
        for (to, j) in columns.enumerate() {
            let scale = match scales {
                ScalesOf::Rows(scales) => scales[i],
                ScalesOf::Columns(scales) => scales[j],
            };
            out.set(to, self.x.value(u32::from(self.codes.at(i * self.codes_stride + j)), scale));
        }
    }
}
