//! What belongs to granules, spread to their columns.

use crate::simd::{Convert, Isa, Work};

/// Gives each column its granule's value: `out[j] = values[(first + j) / width]`.
///
/// # Panics
/// If there are not as many granules as the columns of `out` have.
pub fn spread(isa: Isa, values: &[f32], first: usize, width: usize, out: &mut [f32]) {
    isa.run_without_vbmi(Spread { values, first, width, out });
}

struct Spread<'a> {
    values: &'a [f32],
    first: usize,
    width: usize,
    out: &'a mut [f32],
}

impl Work for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Spread { values, first, width, out } = self;
        let mut granules = values.iter().skip(first / width);
        let (mut at, mut left) = (0, width - first % width);
        while at < out.len() {
            let &value = granules.next().expect("a granule for each column");
            let end = at.saturating_add(left).min(out.len());
            let (register, part) = (s.splat(value), &mut out[at..end]);
            let mut whole = part.chunks_exact_mut(S::LANES);
            for lanes in whole.by_ref() {
                s.store(register, lanes);
            }
            for one in whole.into_remainder() {
                *one = value;
            }
            (at, left) = (end, width);
        }
    }
}
