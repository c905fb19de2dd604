//! The largest magnitudes of granules.

use half::{bf16, f16};

use super::MAX_LANES;
use super::code_word::MAGNITUDE;
use crate::elements::{Elements, Panel};
use crate::simd::{Convert, Isa, Lane, Work};

/// Memory that [`peaks`] works in.
#[derive(Debug, Default)]
pub struct PeakScratch(Vec<u32>);

/// Finds the bits of the largest magnitude in each granule of `width` columns over all rows of `x`, into `peaks`.
///
/// NaN and infinities are larger than [`ElementType::largest`](crate::elements::ElementType::largest).
pub fn peaks(isa: Isa, x: &Panel<'_>, width: usize, scratch: &mut PeakScratch, peaks: &mut Vec<u32>) {
    let count = x.cols.div_ceil(width);
    peaks.resize(count, 0);
    if width < MAX_LANES || x.rows > 1 {
        scratch.0.clear();
        scratch
            .0
            .resize(if width < MAX_LANES { x.cols.max(count * MAX_LANES) } else { count * MAX_LANES }, 0);
    }
    let (lanes, &Panel { data, rows, cols, stride }) = (&mut scratch.0, x);
    match data {
        Elements::F32(data) => {
            isa.run_without_vbmi(&mut Peaks::<f32> { data, rows, cols, stride, width, lanes, peaks })
        }
        Elements::Bf16(data) => {
            isa.run_without_vbmi(&mut Peaks::<bf16> { data, rows, cols, stride, width, lanes, peaks })
        }
        Elements::F16(data) => {
            isa.run_without_vbmi(&mut Peaks::<f16> { data, rows, cols, stride, width, lanes, peaks })
        }
    }
}

struct Peaks<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
    width: usize,
    /// Zeros: one a column, or [`MAX_LANES`] a granule; none where there is one row of wide granules.
    lanes: &'a mut [u32],
    peaks: &'a mut [u32],
}

impl<T: Lane> Work for &mut Peaks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let &mut Peaks { data, rows, cols, stride, width, ref mut lanes, ref mut peaks } = self;
        if width < S::LANES {
            // One maximum a column.
            let lanes = &mut lanes[..cols];
            for i in 0..rows {
                let row = &data[i * stride..][..cols];
                let (mut registers, mut columns) =
                    (row.chunks_exact(S::LANES), lanes.chunks_exact_mut(S::LANES));
                for (v, peak) in registers.by_ref().zip(columns.by_ref()) {
                    let larger = raise(s, v, s.load_u32(peak));
                    s.store_u32(larger, peak);
                }
                for (peak, &v) in columns.into_remainder().iter_mut().zip(registers.remainder()) {
                    *peak = (*peak).max(magnitude(v));
                }
            }
            for (peak, part) in peaks.iter_mut().zip(lanes.chunks(width)) {
                let mut largest = 0;
                for &v in part {
                    largest = v.max(largest);
                }
                *peak = largest;
            }
            return;
        }
        if rows == 1 {
            let mut parts = data[..cols].chunks(width);
            for peaks in peaks.chunks_mut(S::LANES) {
                let mut maxima = [s.splat_u32(0); MAX_LANES];
                for (part, maximum) in parts.by_ref().take(S::LANES).zip(&mut maxima) {
                    *maximum = raise(s, part, *maximum);
                }
                let maxima = s.largest_of_each(&maxima);
                if peaks.len() == S::LANES {
                    s.store_u32(maxima, peaks);
                } else {
                    let mut found = [0; MAX_LANES];
                    s.store_u32(maxima, &mut found);
                    peaks.copy_from_slice(&found[..peaks.len()]);
                }
            }
            return;
        }
        // One register of maxima a granule.
        for i in 0..rows {
            let parts = data[i * stride..][..cols].chunks(width);
            for (part, lanes) in parts.zip(lanes.chunks_exact_mut(MAX_LANES)) {
                let larger = raise(s, part, s.load_u32(lanes));
                s.store_u32(larger, lanes);
            }
        }
        for (peak, lanes) in peaks.iter_mut().zip(lanes.chunks_exact(MAX_LANES)) {
            *peak = s.largest(s.load_u32(lanes));
        }
    }
}

/// The larger of `peak` and the magnitudes of `x`.
#[inline(always)]
fn raise<S: Convert, T: Lane>(s: S, x: &[T], mut peak: S::U32) -> S::U32 {
    let mask = s.splat_u32(MAGNITUDE);
    if x.len() == 8 * S::LANES {
        // Most often on AVX-512, without the loop's questions.
        for i in 0..8 {
            peak = s.max(peak, s.and(s.bits(T::load(s, &x[i * S::LANES..])), mask));
        }
        return peak;
    }
    let registers = x.chunks_exact(S::LANES);
    let rest = registers.remainder();
    for v in registers {
        peak = s.max(peak, s.and(s.bits(T::load(s, v)), mask));
    }
    if rest.is_empty() {
        return peak;
    }
    let mut last = 0;
    for &v in rest {
        last = magnitude(v).max(last);
    }
    s.max(peak, s.splat_u32(last))
}

fn magnitude<T: Lane>(v: T) -> u32 {
    v.to_f32().to_bits() & MAGNITUDE
}
