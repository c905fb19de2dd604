//! Between floats and codes: what quantisers, dequantisers and casts do with registers beside [`Simd`].

use bytemuck::Pod;

use super::{Bf16Table, Simd};

/// The divisors of [`Convert::quotient`], 2^−76 to 2^100: with them nothing over- or underflows that a code depends on.
pub const DIVISORS: [f32; 2] = [f32::from_bits(51 << 23), f32::from_bits(227 << 23)];

/// Operations on registers for conversions. Comparisons and maxima read lanes as i32; the bits of magnitudes of floats
/// are ordered so.
pub trait Convert: Simd {
    /// fl(a − b).
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// fl(a / b).
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// fl(x / divisor), or a number beside it where an [`super::Encoder`] gives both the same code. `inverse` is
    /// fl(1 / divisor), `divisor` lies within [`DIVISORS`], and the quotient within the range of the format.
    ///
    /// Where there is a fused multiply-add it takes no division: q = fl(x · inverse), then Markstein's correction
    /// fl(q − fl(q · divisor − x) · inverse). The rounded quotient and the number beside it are coded apart only where the
    /// quotient lies at a midpoint of two f32, one of which is a tie of the format. Let u be the distance of the two, c and
    /// d the significands of quotient and divisor, from 1 to 2. x · inverse is off by at most u · c · d / 4, which is less
    /// than u: a tie has few bits, so c is not next to 2. Hence q is one of the two, off by half of u, and the remainder is
    /// exact. The corrected q is off by at most u · d / 2^26 before it is rounded, but no quotient lies closer to a midpoint
    /// than u / (d · 2^24). Zeros keep their sign.
    fn quotient(self, x: Self::F32, divisor: Self::F32, inverse: Self::F32) -> Self::F32;
    /// fl(a · b + c); a · b is exact.
    fn add_product(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `x`, or the positive number `least` with the sign of `x` where that is larger in magnitude; none is NaN.
    fn at_least(self, x: Self::F32, least: Self::F32) -> Self::F32;
    /// a >> n lane by lane, zeros shifted in, every n below 32.
    fn shr_lanes(self, a: Self::U32, n: Self::U32) -> Self::U32;
    /// a − b, wrapping.
    fn sub_u32(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The bits of `a` where `mask` is set, else those of `b`.
    fn blend_bits(self, mask: Self::U32, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The lesser of each lane.
    fn min(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The larger of each lane.
    fn max(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// `x` in lanes where a > b, else `y`.
    fn select_above(self, a: Self::U32, b: Self::U32, x: Self::U32, y: Self::U32) -> Self::U32;
    /// Number of lanes where a > b.
    fn count_above(self, a: Self::U32, b: Self::U32) -> u32;
    /// Number of zero bytes.
    fn count_zero_bytes(self, a: Self::U32) -> u32;
    /// The largest lane.
    fn largest(self, a: Self::U32) -> u32;
    /// The largest lane of each of `LANES` registers, in order.
    fn largest_of_each(self, x: &[Self::U32]) -> Self::U32;

    /// The lanes of four registers, all below 2^8, as bytes in order.
    fn pack_bytes(self, x: [Self::U32; 4]) -> Self::U32;
    /// The lowest bytes of the lanes of four registers, in order, and the highest.
    #[inline(always)]
    fn outer_bytes(self, x: [Self::U32; 4]) -> [Self::U32; 2] {
        packed_outer_bytes(self, x)
    }
    /// The lanes of two registers, all below 2^16, as words in order.
    fn pack_words(self, x: [Self::U32; 2]) -> Self::U32;
    /// The values of four registers of finite codes, in order, by table. Only where [`Simd::PAIR`] is 2.
    fn look_up(self, _table: &Bf16Table, _codes: Self::U32) -> [Self::F32; 4] {
        unreachable!("tables are looked up where a step takes pairs")
    }
    /// The low and the high bytes of the words of two registers, in order. Only where [`Simd::PAIR`] is 2.
    fn split_words(self, _words: [Self::U32; 2]) -> [Self::U32; 2] {
        unreachable!("bytes are split to be looked up, where a step takes pairs")
    }
    /// The words of a register of codes of a byte each, in order. `table` has those of codes 0 … 127, two times
    /// [`Convert::split_words`]; bit 7 of a code changes the sign. Only where [`Simd::PAIR`] is 2.
    fn look_up_words(self, _table: [Self::U32; 4], _codes: Self::U32) -> [Self::U32; 2] {
        unreachable!("tables are looked up where a step takes pairs")
    }
    /// The words of two registers whose places, among both, are the words of `at`. Only where [`Simd::PAIR`] is 2.
    fn pick_words(self, _words: [Self::U32; 2], _at: Self::U32) -> Self::U32 {
        unreachable!("words are picked where a step takes pairs")
    }
    /// Two registers of numbers as bf16 in order, rounded to nearest even; none is NaN.
    #[inline(always)]
    fn bf16(self, x: [Self::F32; 2]) -> Self::U32 {
        let (one, half) = (self.splat_u32(1), self.splat_u32(0x7FFF));
        let mut words = [one; 2];
        for i in 0..2 {
            let bits = self.bits(x[i]);
            let odd = self.and(self.shr(bits, 16), one);
            words[i] = self.shr(self.add_u32(bits, self.add_u32(odd, half)), 16);
        }
        self.pack_words(words)
    }
    /// The same where none is subnormal: the instructions that convert would flush those.
    #[inline(always)]
    fn bf16_of_normals(self, x: [Self::F32; 2]) -> Self::U32 {
        self.bf16(x)
    }
    /// Into the first `4 · LANES` bytes.
    fn store_bytes(self, x: Self::U32, out: &mut [u8]);
    /// The same past the cache; they begin at a multiple of their size. [`Convert::fence`] must follow as after
    /// [`Convert::stream`].
    fn stream_bytes(self, x: Self::U32, out: &mut [u8]);

    /// Copies past the cache; both are of one length. [`Convert::fence`] must follow on this thread before another reads.
    #[inline(always)]
    fn stream(self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len());
        let bytes = 4 * Self::LANES;
        let head = to.as_ptr().align_offset(bytes).min(to.len());
        let tail = head + (to.len() - head) / bytes * bytes;
        to[..head].copy_from_slice(&from[..head]);
        for (from, to) in from[head..tail].chunks_exact(bytes).zip(to[head..tail].chunks_exact_mut(bytes)) {
            self.stream_bytes(self.load_bytes(from), to);
        }
        to[tail..].copy_from_slice(&from[tail..]);
    }
    /// Orders what was streamed before everything that follows.
    fn fence(self);
}

/// [`Convert::outer_bytes`] by [`Convert::pack_bytes`].
#[inline(always)]
pub(super) fn packed_outer_bytes<S: Convert>(s: S, [a, b, c, d]: [S::U32; 4]) -> [S::U32; 2] {
    let low = s.splat_u32(0xFF);
    [
        s.pack_bytes([s.and(a, low), s.and(b, low), s.and(c, low), s.and(d, low)]),
        s.pack_bytes([s.shr(a, 24), s.shr(b, 24), s.shr(c, 24), s.shr(d, 24)]),
    ]
}

/// How results reach memory: through the cache, or past it where they are too large to be read from there. Streamed
/// results are ordered when this is dropped, which a task does before it ends.
pub struct Stores<S: Convert> {
    s: S,
    past_cache: bool,
}

impl<S: Convert> Stores<S> {
    /// Stores past the cache or not.
    #[inline(always)]
    pub fn new(s: S, past_cache: bool) -> Self {
        Stores { s, past_cache }
    }

    /// Whether results go past the cache.
    #[inline(always)]
    pub fn past_cache(&self) -> bool {
        self.past_cache
    }

    /// How many elements of `to` lie in front of an aligned one.
    #[inline(always)]
    pub fn to_aligned<T>(to: &[T]) -> usize {
        (to.as_ptr().addr().next_multiple_of(4 * S::LANES) - to.as_ptr().addr()) / size_of::<T>()
    }

    /// How to write there one register at a time; `None` where that cannot go past the cache.
    #[inline(always)]
    pub fn put<T: Pod>(&self, to: &[T]) -> Option<Put<S>> {
        let aligned = to.as_ptr().addr().is_multiple_of(4 * S::LANES);
        (!self.past_cache || aligned).then_some(Put { s: self.s, past_cache: self.past_cache })
    }

    /// Copies a finished piece to where it belongs.
    #[inline(always)]
    pub fn copy<T: Pod>(&self, from: &[T], to: &mut [T]) {
        if self.past_cache {
            self.s.stream(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        } else {
            to.copy_from_slice(from);
        }
    }
}

impl<S: Convert> Drop for Stores<S> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.past_cache {
            self.s.fence();
        }
    }
}

/// Writes registers of results.
#[derive(Clone, Copy)]
pub struct Put<S: Convert> {
    s: S,
    past_cache: bool,
}

impl<S: Convert> Put<S> {
    /// Through the cache or past it; whoever writes past it has [`Stores`] and with them their fence.
    #[inline(always)]
    pub fn new(s: S, past_cache: bool) -> Self {
        Put { s, past_cache }
    }

    /// Through the cache.
    #[inline(always)]
    pub fn cached(s: S) -> Self {
        Put::new(s, false)
    }

    /// Into the first `4 · LANES` bytes.
    #[inline(always)]
    pub fn bytes(self, x: S::U32, to: &mut [u8]) {
        if self.past_cache { self.s.stream_bytes(x, to) } else { self.s.store_bytes(x, to) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Work};
    use super::*;

    struct Quotients<'a> {
        x: &'a [f32],
        divisor: f32,
    }

    impl Work for Quotients<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Convert>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.x.len()];
            let divisor = s.splat(self.divisor);
            let inverse = s.div(s.splat(1.0), divisor);
            for (x, out) in self.x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                s.store(s.quotient(s.load(x), divisor, inverse), out);
            }
            out
        }
    }

    /// Beside ties of formats with three and six fraction bits, over the significands of divisors; at the ends of
    /// [`DIVISORS`] too. Zeros keep their sign.
    #[test]
    fn quotients_beside_ties_are_rounded_right() {
        let available = || Isa::ALL.iter().filter(|isa| isa.is_available());
        for (bits, step) in [(4, 509), (7, 4093)] {
            let significands = (0..1u32 << 23).step_by(step).chain((1 << 23) - 64..1 << 23);
            for (i, significand) in significands.enumerate() {
                let exponent = [127, 100, 51, 226][i % 4];
                let divisor = f32::from_bits(exponent << 23 | significand);
                let ties = (0..1 << bits).map(|t| 1.0 + t as f32 / (1 << bits) as f32);
                let beside = |tie: f32| (-4..4).map(move |d| ((tie * divisor).to_bits() as i32 + d) as u32);
                let x: Vec<f32> = ties.flat_map(beside).map(f32::from_bits).collect();
                for isa in available() {
                    let found = isa.run(Quotients { x: &x, divisor });
                    for (x, found) in x.iter().zip(found) {
                        assert_eq!(found.to_bits(), (x / divisor).to_bits(), "{x:e} / {divisor:e} on {isa}");
                    }
                }
            }
        }
        let zeros: Vec<f32> = [0.0, -0.0].repeat(8);
        for isa in available() {
            let found = isa.run(Quotients { x: &zeros, divisor: 0.3 });
            assert!(found.iter().zip(&zeros).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
}
