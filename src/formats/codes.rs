//! Codes as types: one value of a format, for code that handles single numbers. Tensors keep codes as plain integers
//! beside their [`Format`].

use super::round::{Overflow, Rounding};
use super::spec::Format;
use super::unpacked::Unpacked;

macro_rules! code_types {
    ($($(#[$doc:meta])* $name:ident: $int:ty;)*) => {$(
        $(#[$doc])*
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
    )*};
}

code_types! {
    /// An OCP E4M3 code.
    ///
    /// ```
    /// use finegrain::formats::E4M3;
    /// assert_eq!(E4M3::from_f32(1000.0), E4M3::MAX);
    /// assert_eq!(E4M3::MAX.to_f32(), 448.0);
    /// assert!(E4M3::from_bits(0x7F).unwrap().is_nan());
    /// let there: float8::F8E4M3 = E4M3::from_f32(1.5).into();
    /// assert_eq!(E4M3::from(there).to_f32(), 1.5);
    /// ```
    E4M3: u8;
    /// An OCP E5M2 code.
    E5M2: u8;
    /// An E4M3FNUZ code.
    E4M3Fnuz: u8;
    /// An E5M2FNUZ code.
    E5M2Fnuz: u8;
    /// A 12-bit E5M6 code.
    E5M6: u16;
    /// A 6-bit E3M2 code.
    E3M2: u8;
    /// A 6-bit E2M3 code.
    E2M3: u8;
    /// A 4-bit E2M1 code.
    E2M1: u8;
    /// An E8M0 scale code.
    E8M0: u8;
}

macro_rules! float8_interop {
    ($($ours:ident = $theirs:ident;)*) => {$(
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
