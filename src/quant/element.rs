//! What matrices to be quantised hold.

use half::{bf16, f16};

/// An input element: f32, or a narrower float that converts exactly.
pub trait Element: Copy + Send + Sync {
    /// The value, exact.
    fn to_f32(self) -> f32;

    /// The same elements by their type, which fast paths choose their loads by.
    #[doc(hidden)]
    fn typed(x: &[Self]) -> Typed<'_>
    where
        Self: Sized;
}

/// Elements by type.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum Typed<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE binary16.
    F16(&'a [f16]),
}

impl Typed<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Typed::F32(x) => x.len(),
            Typed::Bf16(x) => x.len(),
            Typed::F16(x) => x.len(),
        }
    }
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn typed(x: &[f32]) -> Typed<'_> {
        Typed::F32(x)
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn typed(x: &[bf16]) -> Typed<'_> {
        Typed::Bf16(x)
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn typed(x: &[f16]) -> Typed<'_> {
        Typed::F16(x)
    }
}
