//! How results reach memory.

use bytemuck::Pod;

use crate::simd::{Convert, Isa, Work};

/// Bytes of a line of the cache, and of the widest register.
const LINE: usize = 64;

/// Where kernels store: through the cache, or past it where results are too large to be read from there. Streamed
/// results are ordered when this is dropped, which a task does before it ends.
#[derive(Debug)]
pub struct Stores {
    isa: Isa,
    past_cache: bool,
    /// What cannot go past the cache one register at a time is put together here.
    piece: Vec<u64>,
}

impl Stores {
    /// Stores of an instruction set, past the cache or not.
    pub fn new(isa: Isa, past_cache: bool) -> Stores {
        Stores { isa, past_cache, piece: Vec::new() }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether results go past the cache.
    pub fn past_cache(&self) -> bool {
        self.past_cache
    }

    /// Copies a finished piece to where it belongs.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn copy(&self, from: &[u8], to: &mut [u8]) {
        if self.past_cache {
            self.isa.run_without_vbmi(Stream { from, to });
        } else {
            to.copy_from_slice(from);
        }
    }

    /// Whether rows of `to`, `stride` elements apart, can be written one register at a time.
    pub(crate) fn writes_directly<T>(&self, to: &[T], stride: usize) -> bool {
        let aligned = |bytes: usize| bytes.is_multiple_of(LINE);
        !self.past_cache || aligned(to.as_ptr().addr()) && aligned(stride * size_of::<T>())
    }

    /// Has `write` write a piece of the first-level cache, which is then copied to `to`.
    pub(crate) fn write_piece<T: Pod>(&mut self, to: &mut [T], write: impl FnOnce(&mut [T])) {
        let to_bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        let words = to_bytes.len().div_ceil(size_of::<u64>());
        if self.piece.len() < words {
            self.piece.resize(words, 0);
        }
        let piece: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut self.piece)[..to_bytes.len()];
        write(bytemuck::cast_slice_mut(piece));
        self.isa.run_without_vbmi(Stream { from: piece, to: to_bytes });
    }

    /// Has `write` write to `to`, told whether past the cache: directly where that is possible one register at a time,
    /// else by a piece.
    pub(crate) fn write<R>(&mut self, to: &mut [u8], write: impl FnOnce(&mut [u8], bool) -> R) -> R {
        if self.writes_directly(to, 0) {
            return write(to, self.past_cache);
        }
        let mut result = None;
        self.write_piece(to, |piece| result = Some(write(piece, false)));
        result.expect("it was written")
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        if self.past_cache {
            self.isa.run_without_vbmi(Fence);
        }
    }
}

struct Stream<'a> {
    from: &'a [u8],
    to: &'a mut [u8],
}

impl Work for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        s.stream(self.from, self.to);
    }
}

struct Fence;

impl Work for Fence {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        s.fence();
    }
}
