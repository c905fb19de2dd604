//! Between floats and codes: what quantisers, dequantisers and casts do with registers beside [`Simd`].

use bytemuck::Pod;

use super::Simd;

/// Operations on registers for conversions. Comparisons and maxima read lanes as i32; the bits of magnitudes of floats
/// are ordered so.
pub(crate) trait Convert: Simd {
    /// fl(a − b).
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// fl(a / b).
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
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

    /// The lanes of four registers, all below 2^8, as bytes in order.
    fn pack_bytes(self, x: [Self::U32; 4]) -> Self::U32;
    /// The lanes of two registers, all below 2^16, as words in order.
    fn pack_words(self, x: [Self::U32; 2]) -> Self::U32;
    /// Into the first `4 · LANES` bytes.
    fn store_bytes(self, x: Self::U32, out: &mut [u8]);

    /// Copies past the cache; both are of one length. [`Convert::fence`] must follow on this thread before another reads.
    fn stream(self, from: &[u8], to: &mut [u8]);
    /// Orders what was streamed before everything that follows.
    fn fence(self);
}

/// Copies what of two slices of one length lies before and behind the whole registers of `to`, which begin at multiples
/// of `BYTES`, and gives those.
#[inline(always)]
pub(super) fn copy_ends<'a, const BYTES: usize>(
    from: &'a [u8],
    to: &'a mut [u8],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [u8; BYTES])> {
    assert_eq!(from.len(), to.len());
    let head = to.as_ptr().align_offset(BYTES).min(to.len());
    let ((from_head, from), (to_head, to)) = (from.split_at(head), to.split_at_mut(head));
    let ((from, from_tail), (to, to_tail)) = (from.as_chunks(), to.as_chunks_mut());
    to_head.copy_from_slice(from_head);
    to_tail.copy_from_slice(from_tail);
    from.iter().zip(to)
}

/// How results reach memory: through the cache, or past it where they are too large to be read from there. Streamed
/// results are ordered when this is dropped, which a task does before it ends.
pub(crate) struct Stores<S: Convert> {
    s: S,
    past_cache: bool,
}

impl<S: Convert> Stores<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, past_cache: bool) -> Self {
        Stores { s, past_cache }
    }

    /// Copies a finished piece to where it belongs.
    #[inline(always)]
    pub(crate) fn copy<T: Pod>(&self, from: &[T], to: &mut [T]) {
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
