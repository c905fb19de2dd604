//! How results reach memory.

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

    /// Has `write` write to `to`, told whether past the cache: directly where that is possible one register at a time,
    /// else to a piece that is copied there.
    pub(crate) fn write<R>(&mut self, to: &mut [u8], write: impl FnOnce(&mut [u8], bool) -> R) -> R {
        if !self.past_cache || to.as_ptr().addr().is_multiple_of(LINE) {
            return write(to, self.past_cache);
        }
        let words = to.len().div_ceil(size_of::<u64>());
        if self.piece.len() < words {
            self.piece.resize(words, 0);
        }
        let piece: &mut [u8] = bytemuck::cast_slice_mut(&mut self.piece);
        let result = write(&mut piece[..to.len()], false);
        self.isa.run_without_vbmi(Stream { from: &piece[..to.len()], to });
        result
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
