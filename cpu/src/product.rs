//! Products in f64, which errors are measured against.

use crate::simd::{Convert, Isa, Work};

/// Partial sums of an element that run side by side.
const LANES: usize = 16;

/// One row of A · Bᵀ: out\[j\] = Σ_k a\[k\] · b\[j\]\[k\], the row j of B starting at j · `stride`.
///
/// Sum l of 16 takes the products of k ≡ l (mod 16) of the whole sixteens, ascending, each rounded before it is added; then
/// the sums are added, ascending, and last the sum of the products that are left. So all instruction sets give the same
/// bits.
///
/// # Panics
/// If `b` is shorter than its rows, or the CPU lacks the instruction set.
pub fn row_f64(isa: Isa, a: &[f64], b: &[f64], stride: usize, out: &mut [f64]) {
    isa.run(Row { a, b, stride, out });
}

struct Row<'a> {
    a: &'a [f64],
    b: &'a [f64],
    stride: usize,
    out: &'a mut [f64],
}

impl Work for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, _: S) {
        let Row { a, b, stride, out } = self;
        for (j, out) in out.iter_mut().enumerate() {
            *out = dot(a, &b[j * stride..][..a.len()]);
        }
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for l in 0..LANES {
            sums[l] += x[l] * y[l];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sets_give_the_same_bits() {
        let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f64 * 1.1e-3 - 500.0;
        for (n, k) in [(1, 0), (1, 15), (2, 16), (3, 77), (5, 160)] {
            let stride = k + 3;
            let a: Vec<f64> = (0..k).map(value).collect();
            let b: Vec<f64> = (0..n * stride).map(|i| value(i + 7)).collect();
            let product = |isa| {
                let mut out = vec![0.0; n];
                row_f64(isa, &a, &b, stride, &mut out);
                out
            };
            let expected: Vec<f64> = (0..n)
                .map(|j| {
                    let mut lanes = [0.0; LANES];
                    let whole = k / LANES * LANES;
                    (0..whole).for_each(|i| lanes[i % LANES] += a[i] * b[j * stride + i]);
                    lanes.iter().sum::<f64>() + (whole..k).map(|i| a[i] * b[j * stride + i]).sum::<f64>()
                })
                .collect();
            for &isa in Isa::ALL.iter().filter(|isa| isa.is_available()) {
                assert_eq!(product(isa), expected, "{} {n}x{k}", isa.name());
            }
        }
    }
}
