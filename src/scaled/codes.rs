//! Codes of a matrix in the width that holds them.

use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};

/// The matrix in an enum, whichever it is, made into that of another enum of the same kinds.
macro_rules! each {
    ($of:expr, $from:ident => $to:ident { $($kind:ident),+ }, $m:ident => $made:expr) => {
        match $of {
            $($from::$kind($m) => $to::$kind($made),)+
        }
    };
}
pub(super) use each;

/// The codes of a matrix: one a byte up to 8 bits, one a 16-bit word up to 16 (E5M6, BF16, F16), and F32 itself, which
/// is what tensor cores for TF32 read.
#[derive(Clone, Debug, PartialEq)]
pub enum Codes {
    /// Formats of at most 8 bits, in the low bits.
    Bytes(Matrix<u8>),
    /// Formats of 9 to 16 bits.
    Words(Matrix<u16>),
    /// F32.
    Dwords(Matrix<u32>),
}

/// A borrowed view of [`Codes`].
#[derive(Clone, Copy, Debug)]
pub enum CodesRef<'a> {
    /// Formats of at most 8 bits, in the low bits.
    Bytes(MatRef<'a, u8>),
    /// Formats of 9 to 16 bits.
    Words(MatRef<'a, u16>),
    /// F32.
    Dwords(MatRef<'a, u32>),
}

impl Codes {
    /// One code an element, in the width that holds codes of the format.
    pub fn new(format: Format, codes: &Matrix<u32>) -> Codes {
        match format.spec().bits() {
            ..=8 => Codes::Bytes(codes.map(|&c| c as u8)),
            9..=16 => Codes::Words(codes.map(|&c| c as u16)),
            _ => Codes::Dwords(codes.map(|&c| c)),
        }
    }

    /// A view of the whole.
    #[inline]
    pub fn view(&self) -> CodesRef<'_> {
        each!(self, Codes => CodesRef { Bytes, Words, Dwords }, m => m.view())
    }

    #[inline]
    pub(super) fn transposed(&self) -> Codes {
        each!(self, Codes => Codes { Bytes, Words, Dwords }, m => m.view().transposed())
    }
}

impl<'a> CodesRef<'a> {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            CodesRef::Bytes(m) => m.shape(),
            CodesRef::Words(m) => m.shape(),
            CodesRef::Dwords(m) => m.shape(),
        }
    }

    /// The code of element (i, j).
    #[inline]
    pub fn at(&self, i: usize, j: usize) -> u32 {
        match self {
            CodesRef::Bytes(m) => u32::from(m.at(i, j)),
            CodesRef::Words(m) => u32::from(m.at(i, j)),
            CodesRef::Dwords(m) => m.at(i, j),
        }
    }

    /// Bits that hold a code.
    pub(super) const fn width(&self) -> u32 {
        match self {
            CodesRef::Bytes(_) => u8::BITS,
            CodesRef::Words(_) => u16::BITS,
            CodesRef::Dwords(_) => u32::BITS,
        }
    }

    #[inline]
    pub(super) fn row_range(&self, start: usize, end: usize) -> Self {
        each!(self, CodesRef => CodesRef { Bytes, Words, Dwords }, m => m.row_range(start, end))
    }

    #[inline]
    pub(super) fn col_range(&self, start: usize, end: usize) -> Self {
        each!(self, CodesRef => CodesRef { Bytes, Words, Dwords }, m => m.col_range(start, end))
    }

    #[inline]
    pub(super) fn to_codes(self) -> Codes {
        each!(self, CodesRef => Codes { Bytes, Words, Dwords }, m => m.to_matrix())
    }
}
