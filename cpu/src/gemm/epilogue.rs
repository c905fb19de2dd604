//! The epilogue: from accumulators to D.

use half::bf16;

use super::LINE;
use super::promote::{SumScaling, scale_sum};
use crate::simd::{Convert, Isa, Simd, Work};

/// The rest of the contract for some rows of D: D = fl(fl(ts · s(acc)) + c), where s applies scales that follow the sum,
/// NaN canonical, stored as f32 or rounded once to BF16, to nearest even.
#[derive(Debug)]
pub struct Epilogue<'a> {
    /// The accumulators of row i from \[i · `stride`\] on.
    pub acc: &'a [f32],
    /// See there.
    pub stride: usize,
    /// Scales that follow the sum, where there are any.
    pub scales: Option<SumScales<'a>>,
    /// The second level of scales, where there is one.
    pub tensor_scale: Option<f32>,
    /// The addend of row i from \[i · stride\] on, with its stride, where there is one.
    pub addend: Option<(&'a [f32], usize)>,
    /// The pattern that NaN has in f32.
    pub nan: f32,
}

/// Scales of whole sums.
#[derive(Clone, Copy, Debug)]
pub struct SumScales<'a> {
    /// How they meet it.
    pub scaling: SumScaling,
    /// Those of the rows.
    pub rows: &'a [f32],
    /// Those of the columns, from the first that is computed on, with room for a whole register at the end.
    pub cols: &'a [f32],
}

/// Rows of D, or parts of them, all of one length.
#[derive(Debug)]
pub enum RowsMut<'a, 'd> {
    /// Stored as computed.
    F32(&'a mut [&'d mut [f32]]),
    /// Rounded once, to nearest even.
    Bf16(&'a mut [&'d mut [bf16]]),
}

/// Computes columns `first..first + width`, or as many as there are, of rows of D.
///
/// # Panics
/// If there are fewer accumulators or addends.
pub fn epilogue(isa: Isa, x: &Epilogue<'_>, out: RowsMut<'_, '_>, first: usize, width: usize) {
    match out {
        RowsMut::F32(rows) => isa.run(Store { x, rows, first, width }),
        RowsMut::Bf16(rows) => isa.run(Store { x, rows, first, width }),
    }
}

struct Store<'x, 'd, T> {
    x: &'x Epilogue<'x>,
    rows: &'x mut [&'d mut [T]],
    first: usize,
    width: usize,
}

impl<T: Element> Work for Store<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let x = self.x;
        for (i, row) in self.rows.iter_mut().enumerate() {
            let row = &mut row[self.first..];
            let width = row.len().min(self.width);
            let addend = x.addend.map(|(c, stride)| &c[i * stride..][..width]);
            for (v, part) in row[..width].chunks_mut(S::LANES).enumerate() {
                let mut d = s.load(&x.acc[i * x.stride + v * S::LANES..]);
                if let Some(scales) = x.scales {
                    let (sa, sb) = (s.splat(scales.rows[i]), s.load(&scales.cols[v * S::LANES..]));
                    d = scale_sum(s, scales.scaling, d, sa, sb);
                }
                if let Some(tensor) = x.tensor_scale {
                    d = s.mul(d, s.splat(tensor));
                }
                if let Some(c) = addend {
                    let mut lanes = [0.0; LINE];
                    lanes[..part.len()].copy_from_slice(&c[v * S::LANES..][..part.len()]);
                    d = s.add(d, s.load(&lanes));
                }
                T::store(s, s.with_nan(d, x.nan), part);
            }
        }
    }
}

/// What D is stored as.
trait Element: Sized {
    /// Into all of `out`, which holds one register or less.
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [f32]) {
        if out.len() == S::LANES {
            return s.store(x, out);
        }
        let mut lanes = [0.0; LINE];
        s.store(x, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

impl Element for bf16 {
    /// To nearest even: half of the last place but the least, plus the last bit that stays, carries where it must. NaN
    /// is 7FC0.
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F32, out: &mut [bf16]) {
        let bits = s.bits(s.with_nan(x, f32::from_bits(0x7FC0_0000)));
        let odd = s.and(s.shr(bits, 16), s.splat_u32(1));
        let rounded = s.shr(s.add_u32(bits, s.add_u32(odd, s.splat_u32(0x7FFF))), 16);
        let out = bytemuck::cast_slice_mut(out);
        if out.len() == S::LANES {
            return s.store_u16(rounded, out);
        }
        let mut lanes = [0; LINE];
        s.store_u16(rounded, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}
