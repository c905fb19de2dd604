//! Codes of a byte each to bf16 by tables of their products with a scale: the fastest loop of dequantising.

use bytemuck::Zeroable;
use half::bf16;

use crate::dequantize::{GROUP, Values, finite};
use crate::simd::{Convert, Isa, Put, Widener, Work};
use crate::stores::Stores;

/// How many codes ahead are asked for.
const AHEAD: usize = 2048;
/// The codes whose values tables hold: bit 7 is a sign.
const TABULATED: usize = 2 * GROUP;

/// The bf16 values of codes 0 … 127 under a scale: the low bytes of 64 of them, the high bytes, and so on.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Products([[u8; GROUP]; 4]);

/// Whether an instruction set looks values up.
pub fn has_tables(isa: Isa) -> bool {
    isa == Isa::Avx512Bf16
}

/// The products of all codes with each of `scales`, on an instruction set that [`has_tables`]. Those of infinities and
/// NaN have no meaning.
pub fn tabulate(isa: Isa, how: &Values<'_>, scales: &[f32], products: &mut Vec<Products>) {
    products.clear();
    products.resize(scales.len(), Products([[0; GROUP]; 4]));
    isa.run(Tabulate { how, scales, products });
}

struct Tabulate<'a> {
    how: &'a Values<'a>,
    scales: &'a [f32],
    products: &'a mut [Products],
}

/// Codes 0 … 127.
const CODES: [u8; TABULATED] = {
    let (mut codes, mut i) = ([0; TABULATED], 0);
    while i < codes.len() {
        codes[i] = i as u8;
        i += 1;
    }
    codes
};

impl Work for Tabulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        assert!(S::PAIR == 2, "tables are looked up where a step takes pairs");
        for (&scale, products) in self.scales.iter().zip(self.products) {
            let (scales, mut values) = ([s.splat(scale); 4], [bf16::zeroed(); TABULATED]);
            for (codes, values) in CODES.chunks_exact(GROUP).zip(values.chunks_exact_mut(GROUP)) {
                finite(s, self.how, Put::cached(s), codes, scales, values);
            }
            let words: &[u8] = bytemuck::cast_slice(&values);
            for i in 0..2 {
                let half = &words[2 * GROUP * i..];
                let [low, high] = s.split_words([s.load_bytes(half), s.load_bytes(&half[GROUP..])]);
                s.store_bytes(low, &mut products.0[2 * i]);
                s.store_bytes(high, &mut products.0[2 * i + 1]);
            }
        }
    }
}

/// Codes of a row, or of rows without gaps, and where their products are.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    /// Finds infinities and NaN.
    pub widener: &'a Widener,
    /// One table a granule.
    pub products: &'a [Products],
    /// Columns of a granule: a multiple of [`GROUP`].
    pub width: usize,
    /// Columns of a row.
    pub cols: usize,
    /// Where in a row `codes` begin: a multiple of [`GROUP`].
    pub column: usize,
    /// Whole groups.
    pub codes: &'a [u8],
}

/// Looks groups of codes up, as far as there is no infinity or NaN among them, and returns how many codes that were. The
/// instruction set [`has_tables`].
///
/// # Panics
/// If there are not as many values as codes.
pub fn look_up(stores: &Stores, x: &Lookup<'_>, out: &mut [bf16]) -> usize {
    assert_eq!(x.codes.len(), out.len(), "a value for each code");
    stores.isa().run(Look { x, out: bytemuck::cast_slice_mut(out), past_cache: stores.past_cache() })
}

/// Places of the words of two registers.
const PLACES: [u16; GROUP] = {
    let (mut places, mut i) = ([0; GROUP], 0);
    while i < places.len() {
        places[i] = i as u16;
        i += 1;
    }
    places
};

/// Without calls, so that tables stay in registers.
struct Look<'a> {
    x: &'a Lookup<'a>,
    /// Two bytes a code.
    out: &'a mut [u8],
    past_cache: bool,
}

impl Work for Look<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> usize {
        assert!(S::PAIR == 2, "tables are looked up where a step takes pairs");
        let Look { x, out, past_cache } = self;
        let &Lookup { widener: &widener, products, width, cols, mut column, codes } = x;
        // Past the cache go aligned registers, put together from two that follow each other.
        let to_aligned = out.as_ptr().addr().next_multiple_of(GROUP) - out.as_ptr().addr();
        let after_skip = s.load_bytes(bytemuck::cast_slice(&PLACES[to_aligned / 2..][..GROUP / 2]));
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
                    let joined = s.pick_words([last, first], after_skip);
                    s.stream_bytes(joined, &mut out[2 * at + to_aligned - GROUP..]);
                } else {
                    s.store_bytes(first, &mut out[2 * at..]);
                }
                if past_cache {
                    let joined = s.pick_words([first, second], after_skip);
                    s.stream_bytes(joined, &mut out[2 * at + to_aligned..]);
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
