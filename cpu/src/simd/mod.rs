//! Instruction sets: the only CPU intrinsics of the library, under one dispatch point.
//!
//! An algorithm is written once, generic over `Simd`, the operations on registers of f32 and u32 lanes, and run by
//! `Isa::run` on the instruction set of choice. A value of a type that implements `Simd` exists only where the CPU
//! has its instructions, so the operations are safe to call. Lanes never interact in arithmetic: each is the scalar
//! loop, which is why no instruction set changes a bit of a result.
//!
//! `FINEGRAIN_ISA` forces an instruction set by name; one that the CPU lacks is an error, never a silent fallback.
//!
//! ```
//! use finegrain_cpu::simd::Isa;
//! assert!(Isa::Scalar.is_available());
//! println!("this run uses {}", Isa::active()?);
//! # Ok::<(), finegrain_cpu::simd::IsaError>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod code_spec;
mod convert;
#[cfg(target_arch = "x86_64")]
mod convert_avx2;
#[cfg(target_arch = "x86_64")]
mod convert_avx512;
mod convert_portable;
mod decode;
mod encode;
mod fused;
mod gather;
mod geometry;
mod peak;
mod portable;
mod widen;

use std::ops::IndexMut;
use std::sync::OnceLock;

pub use code_spec::{CodeSpec, Specials};
pub use convert::{Convert, DIVISORS, Put, Stores};
pub use decode::{Bf16Table, Decode, Decoder};
pub use encode::{Any, Encoder, EncoderOn, FixedRounding, Mode, Nearest};
pub use fused::{Fused, FusedWork};
pub use gather::Gather;
pub use geometry::{Geometry, KC};
pub use widen::{Lane, Widener};

/// Registers of [`Simd::LANES`] lanes and what is done with them.
///
/// The functions are `#[inline(always)]` down to the intrinsics, since code runs with an instruction set only inside
/// [`Isa::run`]: whatever it calls must be inlined there too.
pub trait Simd: Copy + Send + Sync {
    /// The instruction set.
    const ISA: Isa;
    /// What it is made of.
    const GEOMETRY: &'static Geometry = Self::ISA.geometry();
    /// 32-bit lanes of a register.
    const LANES: usize = Self::GEOMETRY.lanes;
    /// Registers of the instruction set.
    const REGISTERS: usize = Self::GEOMETRY.registers;
    /// Elements of K in one 32-bit lane of a packed panel: an f32, or two BF16.
    const PAIR: usize = Self::GEOMETRY.pair;

    /// A register of f32 lanes.
    type F32: Copy;
    /// A register of u32 lanes.
    type U32: Copy;
    /// The registers of NR columns of a microtile.
    type Columns: Copy + IndexMut<usize, Output = Self::F32>;
    /// A [`Bf16Table`] in registers.
    type Tables: Copy;

    /// Runs `work` compiled for this instruction set.
    fn vectorize<W: Work>(self, work: W) -> W::Output;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// `x` in every register.
    fn columns(self, x: Self::F32) -> Self::Columns;
    /// `x` in every lane.
    fn splat_u32(self, x: u32) -> Self::U32;
    /// The first `LANES` elements.
    fn load(self, x: &[f32]) -> Self::F32;
    /// The first `LANES` elements.
    fn load_u32(self, x: &[u32]) -> Self::U32;
    /// The first `4 · LANES` bytes, little-endian.
    fn load_bytes(self, x: &[u8]) -> Self::U32;
    /// The first `LANES` bytes, one a lane.
    fn load_u8(self, x: &[u8]) -> Self::U32;
    /// The first `2 · LANES` bytes, two a lane, little-endian.
    fn load_u16(self, x: &[u8]) -> Self::U32;
    /// Into the first `LANES` elements.
    fn store(self, x: Self::F32, out: &mut [f32]);
    /// Into the first `LANES` elements.
    fn store_u32(self, x: Self::U32, out: &mut [u32]);
    /// The low halves of the lanes, into the first `LANES` elements.
    fn store_u16(self, x: Self::U32, out: &mut [u16]);
    /// The same bits.
    fn bits(self, x: Self::F32) -> Self::U32;
    /// The same bits.
    fn float(self, x: Self::U32) -> Self::F32;

    /// fl(a + b).
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// fl(a · b).
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// fl(a · b + c), one rounding.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// One step of the contract's sum over the [`Simd::PAIR`] elements of a lane, k ascending. Products must be exact
    /// in f32 on [`Isa::Scalar`], and nothing subnormal on [`Isa::Avx512Bf16`].
    fn step(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// `x` with the NaN `nan` where it is any NaN.
    fn with_nan(self, x: Self::F32, nan: f32) -> Self::F32;

    /// a + b, modulo 2^32.
    fn add_u32(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// Bitwise and.
    fn and(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// Bitwise or.
    fn or(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// a << n, n below 32.
    fn shl(self, a: Self::U32, n: u32) -> Self::U32;
    /// a >> n, zeros shifted in, n below 32.
    fn shr(self, a: Self::U32, n: u32) -> Self::U32;
    /// a >> n, the sign bit shifted in, n below 32.
    fn sar(self, a: Self::U32, n: u32) -> Self::U32;
    /// a << n lane by lane, every n below 32.
    fn shl_lanes(self, a: Self::U32, n: Self::U32) -> Self::U32;
    /// a >> n lane by lane, the sign bit shifted in, every n below 32.
    fn sar_lanes(self, a: Self::U32, n: Self::U32) -> Self::U32;
    /// Whether any byte of `a`, as i8, is greater than `b`.
    fn any_byte_above(self, a: Self::U32, b: i8) -> bool;

    /// What the functions below look up.
    fn tables(self, table: &Bf16Table) -> Self::Tables;
    /// BF16 pairs of the four codes in each lane, the first of a pair in the high half: lane i of result j has the codes
    /// of bytes 2j and 2j + 1 of lane i. Only where [`Simd::PAIR`] is 2.
    fn pairs_in_lanes(self, _tables: &Self::Tables, _codes: Self::U32) -> [Self::F32; 2] {
        unreachable!("pairs are decoded where a step takes pairs")
    }
    /// The same of codes in a row: lane i of result j has the codes of bytes 2(i + LANES·j) and 2(i + LANES·j) + 1.
    fn pairs_in_order(self, _tables: &Self::Tables, _codes: Self::U32) -> [Self::F32; 2] {
        unreachable!("pairs are decoded where a step takes pairs")
    }

    /// Loads `LANES` rows of 4 bytes a lane, `stride` bytes apart, and transposes: lane i of the result's register j is
    /// dword j of row i.
    fn load_transposed(self, x: &[u8], stride: usize, out: &mut [Self::U32]);
    /// Loads chunk `i` of each run and transposes: lane l of the result's register j is dword j of the chunk of lane l.
    fn load_chunks(self, x: &Gather<'_>, i: usize) -> [Self::U32; 4];
    /// The first four elements, again and again.
    fn broadcast_4(self, x: &[f32]) -> Self::F32;
    /// Transposes the 4 × 4 blocks that every four lanes of four registers are: lane 4g + b of result j is lane 4g + j of
    /// register b.
    fn transpose_4x4(self, x: [Self::U32; 4]) -> [Self::U32; 4];
    /// Asks for the cache line of the element `at` places from the start of `x`, soon to be read; it may lie beyond the
    /// end.
    fn prefetch<T>(self, x: &[T], at: usize);
}

/// An algorithm that runs on any instruction set. Implementations mark `run` `#[inline(always)]`.
pub trait Work {
    /// What it returns.
    type Output;
    /// Runs it.
    fn run<S: Convert>(self, s: S) -> Self::Output;
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable code, for every processor.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with BF16 and VBMI: VDPBF16PS, whose sums were checked against the contract on this CPU, and tables that
    /// decode 64 codes at a time.
    Avx512Bf16,
}

impl Isa {
    /// All, the widest last.
    pub const ALL: &'static [Isa] = &[Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The name, as `FINEGRAIN_ISA` and the command line take it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::<false>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::Avx512::<true>::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction set itself, if this CPU has it.
    ///
    /// # Errors
    /// [`IsaError::Absent`] if it has not.
    pub fn checked(self) -> Result<Isa, IsaError> {
        if self.is_available() { Ok(self) } else { Err(IsaError::Absent(self)) }
    }

    /// What `FINEGRAIN_ISA` names; `None` where it is not set. Read once.
    ///
    /// # Errors
    /// [`IsaError::Forced`] if it names one that does not exist or that the CPU lacks.
    pub fn forced() -> Result<Option<Isa>, IsaError> {
        static FORCED: OnceLock<Result<Option<Isa>, IsaError>> = OnceLock::new();
        let read = || match std::env::var("FINEGRAIN_ISA") {
            Ok(name) => {
                let isa = name.parse::<Isa>().and_then(Isa::checked);
                isa.map(Some).map_err(|e| IsaError::Forced(Box::new(e)))
            }
            Err(_) => Ok(None),
        };
        FORCED.get_or_init(read).clone()
    }

    /// What `FINEGRAIN_ISA` names, else the widest that the CPU has.
    ///
    /// # Errors
    /// As [`Isa::forced`].
    pub fn active() -> Result<Isa, IsaError> {
        let widest = || Isa::ALL.iter().copied().rfind(|i| i.is_available()).unwrap_or(Isa::Scalar);
        Ok(Isa::forced()?.unwrap_or_else(widest))
    }

    /// Runs an algorithm on this instruction set: the one dispatch point.
    ///
    /// # Panics
    /// If the CPU lacks it: callers hold one from [`Isa::active`] or [`Isa::checked`].
    pub fn run<W: Work>(self, work: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::Avx512::<true>::detect().expect(ABSENT).vectorize(work),
            _ => self.run_without_vbmi(work),
        }
    }

    /// The same of an algorithm that has no use for BF16 and VBMI: [`Isa::Avx512`] runs it for [`Isa::Avx512Bf16`], so that it
    /// is compiled once for both.
    pub(crate) fn run_without_vbmi<W: Work>(self, work: W) -> W::Output {
        match self {
            Isa::Scalar => portable::Portable.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().expect(ABSENT).vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => avx512::Avx512::<false>::detect().expect(ABSENT).vectorize(work),
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::Portable.vectorize(work),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const ABSENT: &str = "an instruction set is checked before it is used";

/// Why there is no instruction set to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No instruction set has this name.
    Unknown(String),
    /// This CPU lacks it.
    Absent(Isa),
    /// `FINEGRAIN_ISA` asks for one that is one of the above.
    Forced(Box<IsaError>),
}

impl std::fmt::Display for IsaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names =
            |isas: &mut dyn Iterator<Item = &Isa>| isas.map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
        match self {
            IsaError::Unknown(name) => {
                write!(f, "unknown instruction set '{name}'; known: {}", names(&mut Isa::ALL.iter()))
            }
            IsaError::Absent(isa) => {
                let has = names(&mut Isa::ALL.iter().filter(|isa| isa.is_available()));
                write!(f, "this CPU lacks instruction set {isa}; it has {has}")
            }
            IsaError::Forced(why) => write!(f, "FINEGRAIN_ISA: {why}"),
        }
    }
}

impl std::error::Error for IsaError {}

impl std::str::FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let found = Isa::ALL.iter().find(|isa| isa.name() == name);
        found.copied().ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
