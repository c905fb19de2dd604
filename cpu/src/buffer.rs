//! Scratch of the kernels that read what they packed.

use bytemuck::{Pod, Zeroable};

/// Packed elements in memory that begins at a cache line: a register of them never lies across two.
#[derive(Debug, Default)]
pub struct Buffer(Vec<Line>);

/// A cache line.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Buffer {
    /// Room for `len` dwords, all zero.
    pub fn zeros(len: usize) -> Buffer {
        Buffer(vec![Line::default(); len.div_ceil(16)])
    }

    /// Room for `len` dwords; what is there is whatever was there.
    pub fn reserve(&mut self, len: usize) {
        if self.0.len() < len.div_ceil(16) {
            // Not grown in place: old elements need not be copied.
            *self = Buffer::zeros(len);
        }
    }

    /// The elements.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.0)
    }

    /// The elements, to be written.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
