//! What users' matrices hold: f32, bf16 or f16 where they are read, f32 or bf16 where they are written.
//!
//! Kernels take elements by their type, as [`finegrain_cpu::elements`], so that nothing but the public functions is
//! compiled once for each.
#![forbid(unsafe_code)]

use bytemuck::Pod;
use half::{bf16, f16};

pub(crate) use finegrain_cpu::elements::{Codes, CodesMut, ElementType, Elements, ElementsMut, Panel};

use crate::matrix::MatRef;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// An element of a user's matrix: f32, or a narrower float that converts exactly.
pub trait Element: sealed::Sealed + Pod + Send + Sync {
    /// The value, exact.
    fn to_f32(self) -> f32;

    /// The same elements by their type.
    #[doc(hidden)]
    fn typed(x: &[Self]) -> Elements<'_>;
}

/// An element that results are written as: f32 or bf16.
pub trait Output: Element {
    /// A value, rounded to nearest even.
    fn from_f32(value: f32) -> Self;

    /// The same elements by their type.
    #[doc(hidden)]
    fn typed_mut(out: &mut [Self]) -> ElementsMut<'_>;
}

impl Element for f32 {
    #[inline]
    fn to_f32(self) -> f32 {
        self
    }

    fn typed(x: &[f32]) -> Elements<'_> {
        Elements::F32(x)
    }
}

impl Element for bf16 {
    #[inline]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn typed(x: &[bf16]) -> Elements<'_> {
        Elements::Bf16(x)
    }
}

impl Element for f16 {
    #[inline]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn typed(x: &[f16]) -> Elements<'_> {
        Elements::F16(x)
    }
}

impl Output for f32 {
    fn from_f32(value: f32) -> f32 {
        value
    }

    fn typed_mut(out: &mut [f32]) -> ElementsMut<'_> {
        ElementsMut::F32(out)
    }
}

impl Output for bf16 {
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }

    fn typed_mut(out: &mut [bf16]) -> ElementsMut<'_> {
        ElementsMut::Bf16(out)
    }
}

/// A matrix by the type of its elements.
pub(crate) fn panel<T: Element>(x: MatRef<'_, T>) -> Panel<'_> {
    let (rows, cols) = x.shape();
    Panel { data: T::typed(x.strided()), rows, cols, stride: x.stride() }
}
