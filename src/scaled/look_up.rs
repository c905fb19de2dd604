//! Codes of a byte each to bf16 by tables: the fastest loop of dequantising.

use crate::simd::{Convert, Stores, Widener, Work};

/// How many codes ahead are asked for.
pub(super) const AHEAD: usize = 2048;
/// The most elements of `4 · LANES`.
pub(super) const GROUP: usize = 64;

/// The bf16 values of codes 0 … 127 under a scale, as [`Convert::look_up_words`] takes them.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Products(pub(super) [[u8; GROUP]; 4]);

/// Places of the words of two registers.
const PLACES: [u16; GROUP] = {
    let (mut places, mut i) = ([0; GROUP], 0);
    while i < places.len() {
        places[i] = i as u16;
        i += 1;
    }
    places
};

/// Looks groups of codes up, as far as there is no infinity or NaN among them, and returns how many codes that were. A work
/// of its own, without calls, so that tables stay in registers.
pub(super) struct LookUp<'a> {
    pub(super) widener: &'a Widener,
    pub(super) products: &'a [Products],
    /// Columns of a granule, of a row, and where in a row `codes` begin.
    pub(super) width: usize,
    pub(super) cols: usize,
    pub(super) column: usize,
    pub(super) codes: &'a [u8],
    /// Two bytes a code.
    pub(super) out: &'a mut [u8],
    pub(super) past_cache: bool,
}

impl Work for LookUp<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> usize {
        let LookUp { widener, products, width, cols, mut column, codes, out, past_cache } = self;
        // Past the cache go aligned registers, put together from two that follow each other.
        let skip = Stores::<S>::to_aligned(out);
        let after_skip = s.load_bytes(bytemuck::cast_slice(&PLACES[skip / 2..][..GROUP / 2]));
        let (mut at, mut last, mut granule) = (0, s.splat_u32(0), column / width);
        'groups: while at < codes.len() {
            let next = ((granule + 1) * width).min(cols);
            let end = (at + next - column).min(codes.len());
            let [a, b, c, d] = &products[granule].0;
            let table = [s.load_bytes(a), s.load_bytes(b), s.load_bytes(c), s.load_bytes(d)];
            while at < end {
                let codes = &codes[at..];
                s.prefetch(codes, AHEAD);
                let codes = s.load_bytes(codes);
                if widener.bytes_have_specials(s, codes) {
                    break 'groups;
                }
                let [first, second] = s.look_up_words(table, codes);
                if past_cache && at > 0 {
                    s.stream_bytes(
                        s.pick_words([last, first], after_skip),
                        &mut out[2 * at + skip - GROUP..],
                    );
                } else {
                    s.store_bytes(first, &mut out[2 * at..]);
                }
                if past_cache {
                    s.stream_bytes(s.pick_words([first, second], after_skip), &mut out[2 * at + skip..]);
                    last = second;
                } else {
                    s.store_bytes(second, &mut out[2 * at + GROUP..]);
                }
                at += GROUP;
            }
            (column, granule) = if next == cols { (0, 0) } else { (next, granule + 1) };
        }
        if past_cache && at > 0 {
            s.store_bytes(last, &mut out[2 * at - GROUP..]);
        }
        at
    }
}
