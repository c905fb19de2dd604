//! Codes as types: one value of a format, for code that handles single numbers. Tensors keep codes as plain integers
//! beside their [`Format`].

use super::round::{Overflow, Rounding};
use super::spec::{Format, for_formats};
use super::unpacked::Unpacked;

/// The code types of the formats that have one: a line with an integer makes one, a line without nothing.
macro_rules! code_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $e:literal, $m:literal, $bias:literal, $specials:ident,
       [$($int:ty)?], [$($nan:ident)?];)*) => {
        $($(code_type! { $variant: $int })?)*
    };
}

macro_rules! code_type {
    ($name:ident: $int:ty) => {
        #[doc = concat!("A code of [`Format::", stringify!($name), "`].")]
        ///
        /// ```
        #[doc = concat!("use finegrain::formats::", stringify!($name), " as Code;")]
        /// assert_eq!(Code::from_f32(f32::MAX), Code::MAX);
        /// assert_eq!(Code::from_f32(2.0).to_f32(), 2.0);
        /// assert_eq!(Code::from_bits(Code::MAX.to_bits()), Some(Code::MAX));
        /// ```
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[repr(transparent)]
        pub struct $name($int);

        impl $name {
            /// The format's facts live there.
            pub const FORMAT: Format = Format::$name;
            /// The largest finite value.
            pub const MAX: Self = Self(Format::$name.spec().max_code() as $int);

            /// The code with these bits; `None` if bits outside the format's width are set.
            pub const fn from_bits(bits: $int) -> Option<Self> {
                if bits as u64 & !Format::$name.spec().code_mask() == 0 { Some(Self(bits)) } else { None }
            }

            /// The bits of the code.
            pub const fn to_bits(self) -> $int {
                self.0
            }

            /// Rounds to nearest even, saturating; NaN stays NaN, or becomes zero in a format without one.
            pub fn from_f32(x: f32) -> Self {
                Self::round_from(x, Rounding::NearestEven, Overflow::Saturate)
            }

            /// Rounds as told.
            pub fn round_from(x: f32, rounding: Rounding, overflow: Overflow) -> Self {
                Self(Format::$name.cast(Unpacked::from_f32(x), rounding, overflow).code as $int)
            }

            /// The value, exact.
            pub fn to_f32(self) -> f32 {
                Format::$name.decode_f32(self.0 as u16)
            }

            /// Whether the code is NaN.
            pub const fn is_nan(self) -> bool {
                matches!(Format::$name.spec().decode(self.0 as u64), Unpacked::Nan { .. })
            }

            /// Whether the code is ±∞.
            pub const fn is_infinite(self) -> bool {
                matches!(Format::$name.spec().decode(self.0 as u64), Unpacked::Infinite { .. })
            }

            /// Whether the code is neither NaN nor infinite.
            pub const fn is_finite(self) -> bool {
                !self.is_nan() && !self.is_infinite()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({:#04x} = {})", stringify!($name), self.0, self.to_f32())
            }
        }
    };
}

for_formats!(code_types);

macro_rules! float8_interop {
    ($($ours:ident = $theirs:ident;)*) => {$(
        /// ```
        #[doc = concat!("use finegrain::formats::", stringify!($ours), " as Ours;")]
        #[doc = concat!("let theirs: float8::", stringify!($theirs), " = Ours::from_f32(1.5).into();")]
        /// assert_eq!(Ours::from(theirs).to_f32(), 1.5);
        /// ```
        impl From<float8::$theirs> for $ours {
            fn from(x: float8::$theirs) -> Self {
                Self(x.to_bits())
            }
        }

        impl From<$ours> for float8::$theirs {
            fn from(x: $ours) -> Self {
                float8::$theirs::from_bits(x.0)
            }
        }

        impl $ours {
            /// Rounds to nearest even, saturating.
            pub fn from_bf16(x: half::bf16) -> Self {
                Self::from_f32(x.to_f32())
            }

            /// Rounds to nearest even, saturating.
            pub fn from_f16(x: half::f16) -> Self {
                Self::from_f32(x.to_f32())
            }

            /// The value, exact.
            pub fn to_bf16(self) -> half::bf16 {
                half::bf16::from_f32(self.to_f32())
            }
        }
    )*};
}

float8_interop! {
    E4M3 = F8E4M3;
    E5M2 = F8E5M2;
}
