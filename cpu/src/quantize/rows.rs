//! Casts of rows by all rules.

use std::ops::Range;

use half::{bf16, f16};

use super::code_word::{CodeWord, GROUP, MAGNITUDE, flushed};
use super::{CastRule, Counts};
use crate::elements::{CodesMut, Elements};
use crate::simd::{Convert, EncoderOn, Lane, Nearest, Put, Work};
use crate::stores::Stores;

/// A row of elements to be cast.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// How.
    pub rule: &'a CastRule,
    /// The elements.
    pub x: Elements<'a>,
    /// One factor a column, padded to a multiple of 64.
    pub factors: &'a [f32],
    /// Whether each 64 columns are left to the caller: some element or factor is infinite or NaN.
    pub rough: &'a [bool],
    /// Whether some payload may be beyond the largest code.
    pub clips: bool,
}

/// Casts a row by all rules and counts what happened. Groups of elements that registers do not cast are left to `singly`,
/// which is given their columns and memory for their codes, and counts for itself.
///
/// code = encoder(x / factor) or encoder(x · factor).
///
/// # Panics
/// If there are not as many codes or factors as elements.
pub fn cast_row(
    stores: &mut Stores,
    row: &Row<'_>,
    mut codes: CodesMut<'_>,
    singly: &mut dyn FnMut(Range<usize>, CodesMut<'_>),
) -> Counts {
    assert_eq!(row.x.len(), codes.len(), "a code for each element");
    let (isa, words) = (stores.isa(), matches!(codes, CodesMut::Words(_)));
    stores.write(codes.bytes(), |codes, past_cache| match (row.x, words) {
        (Elements::F32(x), false) => {
            isa.run_without_vbmi(Groups::<f32, u8> { row, x, codes, past_cache, singly })
        }
        (Elements::Bf16(x), false) => {
            isa.run_without_vbmi(Groups::<bf16, u8> { row, x, codes, past_cache, singly })
        }
        (Elements::F16(x), false) => {
            isa.run_without_vbmi(Groups::<f16, u8> { row, x, codes, past_cache, singly })
        }
        (x, true) => {
            let codes = bytemuck::cast_slice_mut(codes);
            match x {
                Elements::F32(x) => {
                    isa.run_without_vbmi(Groups::<f32, u16> { row, x, codes, past_cache, singly })
                }
                Elements::Bf16(x) => {
                    isa.run_without_vbmi(Groups::<bf16, u16> { row, x, codes, past_cache, singly })
                }
                Elements::F16(x) => {
                    isa.run_without_vbmi(Groups::<f16, u16> { row, x, codes, past_cache, singly })
                }
            }
        }
    })
}

struct Groups<'a, 'b, T, C> {
    row: &'a Row<'a>,
    x: &'a [T],
    codes: &'a mut [C],
    past_cache: bool,
    singly: &'a mut (dyn FnMut(Range<usize>, CodesMut<'_>) + 'b),
}

impl<T: Lane, C: CodeWord> Work for Groups<'_, '_, T, C> {
    type Output = Counts;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> Counts {
        let Groups { row, x, codes, past_cache, singly } = self;
        let (encoder, group) = (row.rule.encoder.on(s), 4 * S::LANES);
        let put = Put::new(s, past_cache);
        let mut counts = Counts::default();
        for at in (0..x.len()).step_by(group) {
            let (x, codes) = (&x[at..], &mut codes[at..]);
            let mut padded = [T::default(); GROUP];
            let elements = if x.len() < group {
                padded[..x.len()].copy_from_slice(x);
                &padded[..group]
            } else {
                &x[..group]
            };
            let mut joined = None;
            if !row.rough[at / GROUP] {
                let (mut values, mut factors) = ([s.splat(0.0); 4], [s.splat(1.0); 4]);
                for i in 0..4 {
                    values[i] = T::load(s, &elements[i * S::LANES..]);
                    factors[i] = s.load(&row.factors[at + i * S::LANES..]);
                }
                let encoded = row.rule.cast(s, &encoder, [values, factors], row.clips, &mut counts);
                joined = encoded.map(|codes| (values, C::in_row(s, codes)));
            }
            match joined {
                Some((values, joined)) => {
                    counts.flushed += flushed::<S, C>(s, &encoder, values, joined);
                    if x.len() >= group {
                        C::put(put, joined, codes);
                    } else {
                        let mut last = [C::zeroed(); GROUP];
                        C::put(Put::cached(s), joined, &mut last);
                        codes.copy_from_slice(&last[..codes.len()]);
                    }
                }
                None => {
                    let count = x.len().min(group);
                    by_definition(singly, at..at + count, &mut codes[..count]);
                }
            }
        }
        counts
    }
}

#[cold]
#[inline(never)]
fn by_definition<C: CodeWord>(
    singly: &mut dyn FnMut(Range<usize>, CodesMut<'_>),
    columns: Range<usize>,
    codes: &mut [C],
) {
    singly(columns, C::typed(codes));
}

impl CastRule {
    /// The codes of elements by all rules, from [elements, factors]; `None` if this takes the definition. Saturation is
    /// counted where some payload `clips`.
    #[inline(always)]
    pub(super) fn cast<S: Convert>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        [x, factors]: [[S::F32; 4]; 2],
        clips: bool,
        counts: &mut Counts,
    ) -> Option<[S::U32; 4]> {
        // Loops, not closures over arrays: those would not be compiled for the instruction set.
        let mut payloads = x;
        for i in 0..4 {
            payloads[i] = if self.divides { s.div(x[i], factors[i]) } else { s.mul(x[i], factors[i]) };
            if self.positive_zero {
                payloads[i] = s.add(payloads[i], s.splat(0.0));
            }
        }
        if clips || self.normal_from.is_some() {
            let (mask, limit) = (s.splat_u32(MAGNITUDE), s.splat_u32(self.encoder.limit()));
            let mut beyond = 0;
            for payload in payloads {
                beyond += s.count_above(s.and(s.bits(payload), mask), limit);
            }
            if let Some(normal_from) = self.normal_from
                && (beyond > 0 || has_subnormals(s, normal_from, payloads))
            {
                return None;
            }
            counts.saturated += u64::from(beyond);
            counts.lost += if self.encoder.loses() { u64::from(beyond) } else { 0 };
        }
        Some(encoder.round_all(s, payloads, Nearest::<false>))
    }
}

/// Whether a payload other than zero lies below `normal_from`.
#[inline(always)]
fn has_subnormals<S: Convert>(s: S, normal_from: f32, payloads: [S::F32; 4]) -> bool {
    let bound = s.splat_u32(normal_from.to_bits());
    let mut found = false;
    for payload in payloads {
        let magnitude = s.and(s.bits(payload), s.splat_u32(MAGNITUDE));
        let nonzero = s.count_above(magnitude, s.splat_u32(0));
        found |= s.count_above(bound, magnitude) + nonzero > S::LANES as u32;
    }
    found
}
