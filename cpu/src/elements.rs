//! Elements and codes by their type: what kernels take, so that nothing around them is compiled once a type.

use std::ops::Range;

use half::{bf16, f16};

use crate::simd::Lane;

/// The types of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// f32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl ElementType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::Bf16 | ElementType::F16 => 2,
        }
    }

    /// The bits of the largest finite magnitude as f32; what kernels find above it is an infinity or NaN.
    pub const fn largest(self) -> u32 {
        match self {
            ElementType::F32 => <f32 as Lane>::LARGEST,
            ElementType::Bf16 => <bf16 as Lane>::LARGEST,
            ElementType::F16 => <f16 as Lane>::LARGEST,
        }
    }
}

/// Elements that are read.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE binary16.
    F16(&'a [f16]),
}

impl<'a> Elements<'a> {
    /// The first `len` elements of this type that lie in `memory`.
    pub fn in_memory(kind: ElementType, memory: &'a [u32], len: usize) -> Elements<'a> {
        match kind {
            ElementType::F32 => Elements::F32(&bytemuck::cast_slice(memory)[..len]),
            ElementType::Bf16 => Elements::Bf16(&bytemuck::cast_slice(memory)[..len]),
            ElementType::F16 => Elements::F16(&bytemuck::cast_slice(memory)[..len]),
        }
    }

    /// Their type.
    pub fn kind(&self) -> ElementType {
        match self {
            Elements::F32(_) => ElementType::F32,
            Elements::Bf16(_) => ElementType::Bf16,
            Elements::F16(_) => ElementType::F16,
        }
    }

    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::Bf16(x) => x.len(),
            Elements::F16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Elements<'a> {
        match self {
            Elements::F32(x) => Elements::F32(&x[range]),
            Elements::Bf16(x) => Elements::Bf16(&x[range]),
            Elements::F16(x) => Elements::F16(&x[range]),
        }
    }

    /// One of them, exact.
    pub fn at(&self, i: usize) -> f32 {
        match self {
            Elements::F32(x) => x[i],
            Elements::Bf16(x) => x[i].to_f32(),
            Elements::F16(x) => x[i].to_f32(),
        }
    }

    /// All of them, exact, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }

    /// Their bytes.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Elements::F32(x) => bytemuck::cast_slice(x),
            Elements::Bf16(x) => bytemuck::cast_slice(x),
            Elements::F16(x) => bytemuck::cast_slice(x),
        }
    }
}

/// Elements that are written.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl<'a> ElementsMut<'a> {
    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            ElementsMut::F32(x) => x.len(),
            ElementsMut::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> usize {
        match self {
            ElementsMut::F32(_) => size_of::<f32>(),
            ElementsMut::Bf16(_) => size_of::<bf16>(),
        }
    }

    /// Some of them.
    pub fn slice(&mut self, range: Range<usize>) -> ElementsMut<'_> {
        match self {
            ElementsMut::F32(x) => ElementsMut::F32(&mut x[range]),
            ElementsMut::Bf16(x) => ElementsMut::Bf16(&mut x[range]),
        }
    }

    /// Writes one of them, rounded to nearest even.
    pub fn set(&mut self, i: usize, value: f32) {
        match self {
            ElementsMut::F32(x) => x[i] = value,
            ElementsMut::Bf16(x) => x[i] = bf16::from_f32(value),
        }
    }

    /// Parts of `len` elements; the last may have fewer.
    pub fn into_chunks(self, len: usize) -> Vec<ElementsMut<'a>> {
        match self {
            ElementsMut::F32(x) => x.chunks_mut(len).map(ElementsMut::F32).collect(),
            ElementsMut::Bf16(x) => x.chunks_mut(len).map(ElementsMut::Bf16).collect(),
        }
    }
}

/// Codes that are read.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// A byte each, formats of at most 8 bits.
    Bytes(&'a [u8]),
    /// A word each.
    Words(&'a [u16]),
}

impl<'a> Codes<'a> {
    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Codes<'a> {
        match self {
            Codes::Bytes(codes) => Codes::Bytes(&codes[range]),
            Codes::Words(codes) => Codes::Words(&codes[range]),
        }
    }

    /// Those from `start` on.
    pub fn from(&self, start: usize) -> Codes<'a> {
        match self {
            Codes::Bytes(codes) => Codes::Bytes(&codes[start..]),
            Codes::Words(codes) => Codes::Words(&codes[start..]),
        }
    }

    /// One of them.
    pub fn at(&self, i: usize) -> u16 {
        match self {
            Codes::Bytes(codes) => u16::from(codes[i]),
            Codes::Words(codes) => codes[i],
        }
    }
}

/// Codes that are written.
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// A byte each, formats of at most 8 bits.
    Bytes(&'a mut [u8]),
    /// A word each.
    Words(&'a mut [u16]),
}

impl<'a> CodesMut<'a> {
    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            CodesMut::Bytes(codes) => codes.len(),
            CodesMut::Words(codes) => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a code.
    pub fn code_bytes(&self) -> usize {
        match self {
            CodesMut::Bytes(_) => 1,
            CodesMut::Words(_) => 2,
        }
    }

    /// Some of them.
    pub fn slice(&mut self, range: Range<usize>) -> CodesMut<'_> {
        match self {
            CodesMut::Bytes(codes) => CodesMut::Bytes(&mut codes[range]),
            CodesMut::Words(codes) => CodesMut::Words(&mut codes[range]),
        }
    }

    /// Writes one of them, its low bits.
    pub fn set(&mut self, i: usize, code: u64) {
        match self {
            CodesMut::Bytes(codes) => codes[i] = code as u8,
            CodesMut::Words(codes) => codes[i] = code as u16,
        }
    }

    /// Their bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        match self {
            CodesMut::Bytes(codes) => codes,
            CodesMut::Words(codes) => bytemuck::cast_slice_mut(codes),
        }
    }

    /// Parts of `len` codes; the last may have fewer.
    pub fn into_chunks(self, len: usize) -> Vec<CodesMut<'a>> {
        match self {
            CodesMut::Bytes(codes) => codes.chunks_mut(len).map(CodesMut::Bytes).collect(),
            CodesMut::Words(codes) => codes.chunks_mut(len).map(CodesMut::Words).collect(),
        }
    }
}

/// A matrix of elements: rows of `cols`, `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// From the first element to the last; more may follow.
    pub data: Elements<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from row to row.
    pub stride: usize,
}

impl<'a> Panel<'a> {
    /// A row.
    pub fn row(&self, i: usize) -> Elements<'a> {
        assert!(i < self.rows, "row {i} of a panel of {} rows", self.rows);
        self.data.slice(i * self.stride..i * self.stride + self.cols)
    }

    /// One element, exact.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.row(i).at(j)
    }

    /// Some rows and columns.
    pub fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Panel<'a> {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part ends within its panel");
        let (start, stride) = (rows.start * self.stride + cols.start, self.stride);
        let (rows, cols) = (rows.len(), cols.len());
        let len = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        let start = if len == 0 { 0 } else { start };
        Panel { data: self.data.slice(start..start + len), rows, cols, stride }
    }
}
