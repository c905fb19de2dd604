//! Byte strings, one for each lane of a register.

/// Most places that strings begin at: one for every four lanes.
const PLACES: usize = 4;

/// How the strings of a register lie in a slice, wherever they begin.
///
/// String 4g + l begins `offsets[g] + l · between` bytes after the first: at every place there are four, the same distance
/// apart. A string is `pieces` pieces, of which a register takes one.
#[derive(Clone, Copy)]
pub struct Layout {
    offsets: [usize; PLACES],
    between: usize,
    pieces: usize,
    /// Bytes from the first to the end of the last.
    extent: usize,
}

impl Layout {
    /// # Panics
    /// If the strings reach beyond any slice.
    #[inline(always)]
    pub fn new(offsets: [usize; PLACES], between: usize, pieces: usize) -> Layout {
        let last = offsets.iter().fold(0, |last, &offset| last.max(offset));
        // None of the terms is so large that the sum overflows.
        let most = isize::MAX as usize / 4;
        assert!(last <= most && between <= most / 4 && pieces <= most / Strings::PIECE / 4);
        Layout { offsets, between, pieces, extent: last + 3 * between + pieces * Strings::PIECE }
    }
}

/// Strings in a slice.
#[derive(Clone, Copy)]
pub struct Strings<'a> {
    data: &'a [u8],
    start: usize,
    layout: Layout,
}

impl<'a> Strings<'a> {
    /// Bytes of a piece.
    pub const PIECE: usize = 16;

    /// The strings of which the first begins at byte `start`.
    ///
    /// # Panics
    /// If one does not end within `data`.
    #[inline(always)]
    pub fn new(data: &'a [u8], start: usize, layout: Layout) -> Strings<'a> {
        assert!(
            layout.extent <= data.len() && start <= data.len() - layout.extent,
            "a string ends beyond the data"
        );
        Strings { data, start, layout }
    }

    /// Where the strings 4g, 4g + 1, … begin.
    #[inline(always)]
    pub fn place(&self, g: usize) -> usize {
        self.start + self.layout.offsets[g]
    }

    /// What the strings lie in.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes from string to string of a place.
    pub(super) fn between(&self) -> usize {
        self.layout.between
    }

    /// Where piece `i` of string 4g + l begins: there are [`Strings::PIECE`] bytes of the slice from it on.
    ///
    /// # Panics
    /// If there is no such piece.
    #[inline(always)]
    pub(super) fn piece(&self, g: usize, l: usize, i: usize) -> *const u8 {
        assert!(g < PLACES && l < 4 && i < self.layout.pieces);
        // In this order the last sum is often a constant, part of the instruction.
        let start = self.data.as_ptr().wrapping_add(self.start + i * Strings::PIECE);
        start.wrapping_add(self.layout.offsets[g] + l * self.layout.between)
    }
}
