//! Bytes that lie apart, a run of them for each lane of a register.

/// Most places that runs begin at: one for every four lanes.
const PLACES: usize = 4;

/// A run of bytes for each lane of a register, in a slice, taken in chunks of 16 bytes.
///
/// The run of lane 4g + l begins `offsets[g] + l · between` bytes after that of lane 0: at every place there are four, the
/// same distance apart.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    data: &'a [u8],
    start: usize,
    offsets: [usize; PLACES],
    between: usize,
    chunks: usize,
}

impl<'a> Gather<'a> {
    /// Bytes of a chunk.
    pub const CHUNK: usize = 16;

    /// Runs of `chunks` chunks, that of lane 0 from byte `start` on.
    ///
    /// # Panics
    /// If one does not end within `data`.
    #[inline(always)]
    pub fn new(
        data: &'a [u8],
        start: usize,
        offsets: [usize; PLACES],
        between: usize,
        chunks: usize,
    ) -> Self {
        let last = offsets.iter().fold(0, |last, &offset| last.max(offset));
        // None of the terms is so large that the sum overflows.
        let most = isize::MAX as usize / 4;
        assert!(last <= most && between <= most / 4 && chunks <= most / Gather::CHUNK / 4);
        let extent = last + 3 * between + chunks * Gather::CHUNK;
        assert!(extent <= data.len() && start <= data.len() - extent, "a run ends beyond the data");
        Gather { data, start, offsets, between, chunks }
    }

    /// Where the runs of lanes 4g, 4g + 1, … begin.
    #[inline(always)]
    pub fn place(&self, g: usize) -> usize {
        self.start + self.offsets[g]
    }

    /// What the runs lie in.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes from run to run of a place.
    pub(super) fn between(&self) -> usize {
        self.between
    }

    /// Where chunk `i` of lane 4g + l begins: there are [`Gather::CHUNK`] bytes of the slice from it on.
    ///
    /// # Panics
    /// If there is no such chunk.
    #[inline(always)]
    pub(super) fn chunk(&self, g: usize, l: usize, i: usize) -> *const u8 {
        assert!(g < PLACES && l < 4 && i < self.chunks);
        // In this order the last sum is often a constant, part of the instruction.
        let start = self.data.as_ptr().wrapping_add(self.start + i * Gather::CHUNK);
        start.wrapping_add(self.offsets[g] + l * self.between)
    }
}
