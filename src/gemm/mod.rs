//! Matrix products with named, reproducible arithmetic.
//!
//! # The contract
//!
//! It defines the bits of D. The reference ([`Reference`]) is this text as code; every other backend gives the same
//! bits or says that it does not support the problem.
//!
//! 1. **Shapes.** D [M, N] = A [M, K] · Bᵀ with B [N, K]; both operands are contiguous along K ("NT"). The value of an
//!    element is code × scale, times the tensor scale where there are two levels. Other layouts are views or
//!    transposed copies.
//! 2. **Steps.** In the model [`Model::F32`] each step is partial = fma(a, b, partial) in f32 on the decoded codes, k
//!    ascending. Products of FP8 codes, in any mix, and of BF16 with FP8 are exact in f32, and so are BF16 × BF16 that
//!    neither under- nor overflow: there, fused and unfused give the same bits.
//! 3. **Intervals.** K is cut into promotion intervals, the last one shorter where need be. A partial sum starts each
//!    at +0.
//! 4. **The model is part of the problem.** [`Model`] says how an interval is summed: in f32, exactly, or as a tensor
//!    core does. A backend gives the bits of that model; there is no "approximately". Tensor cores that take F32 read
//!    it as TF32: its 13 lowest bits are dropped.
//! 5. **Promotion.** After each interval, in ascending order, the partial sum joins an f32 accumulator that starts at
//!    +0, in one of the orders of [`Promotion`]. Scales that the model itself applies (MX, FP4) are 1 here. After the
//!    last interval a second level of scales, where there is one, gives acc = fl(fl(ta·tb)·acc). Without promotion all
//!    of K is one interval; if there are no scales outside the model, D is that chain itself.
//! 6. **Addend and store.** With promotion the addend C is added once, D = fl(acc + c), after everything in clause 5.
//!    Without promotion it is the chain's initial accumulator, the C operand of an MMA instruction; that needs a D
//!    that is the chain itself, so with scales outside the model it is refused. Where steps give f16 the accumulator is
//!    an f16, and so is that C: another number is rounded to the nearest one first. D is stored as f32, or rounded once
//!    to BF16 or F16, to nearest even. Scales that change inside a promotion interval are refused, but for those that the model
//!    applies.
//! 7. **Edges.** Subnormals are honoured and −0 is kept; the exact model and the tensor cores have no −0 but by
//!    rounding ([`Model::Exact`]) or as the addend of an empty chain. NaN has one pattern: 7FC00000, or 7FFFFFFF where
//!    D is a tensor core's chain itself; in BF16 7FC0, in F16 the upper bits of that, 7E00 or 7FFF.
//! 8. **Parallelism.** Work is split over M and N only, never over K: D does not depend on threads, on the instruction
//!    set or on the machine.
//! 9. **What libraries add.** It is part of the arithmetic's name. *Scales last* ([`Promotion::ScalesLast`]): partial sums
//!    are promoted without scales, acc = fl(acc + p), and the sum of all of K is multiplied by the scales, fl(fl(sa·sb)·acc),
//!    or where a row of A or of B has one of its own, in turn, fl(fl(acc·sb)·sa); scales that change along K are refused. *Split-K* ([`SplitK`]): K is cut into parts of whole intervals (without promotion: of
//!    whole steps of the model), each of which starts at +0; their f32 results, the accumulator after the last interval or
//!    without promotion the chain, are added in ascending order. Without promotion, scales outside the model are applied to
//!    the sum of the parts, promoted once into +0; with it the orders but scales-last have applied them. With either, D is
//!    no chain itself: the second level of scales follows, then C, added once in f32, and NaN is 7FC00000. Accumulators in
//!    f16 are not split.
//! 10. **Folded scales** ([`Fold::Scales`]). Before everything else each operand becomes the BF16 matrix of code × scale of
//!     the first level, where all of that is exact; otherwise the problem is refused. What is computed is the product of
//!     those, which have no first level of scales; the second follows as ever.
//!
//! # Parts
//!
//! [`Accumulation`] is the arithmetic as data, [`Arithmetic`] what a user asks for (with the interval left open or not, or
//! what a [`LibraryCall`] computes),
//! [`GemmProblem`] joins it with two operands and checks once that all of
//! it is legal, [`GroupedProblem`] is several of them in one output; [`GemmBackend`] is what computes them.
//!
//! ```
//! use finegrain::formats::Format;
//! use finegrain::gemm::{Accumulation, GemmProblem};
//! use finegrain::scaled::ScaledRef;
//! let (ones, twos) = ([0x38u8; 4 * 256], [0x40u8; 3 * 256]); // E4M3 codes of 1 and 2
//! let a = ScaledRef::from_codes(Format::E4M3, &ones, 4, 256)?;
//! let b = ScaledRef::from_codes(Format::E4M3, &twos, 3, 256)?;
//! let d = GemmProblem::nt(a, b)?.with_accumulation(Accumulation::HOPPER.promoted::<128>())?.run()?;
//! assert_eq!(d.shape(), (4, 3));
//! assert!(d.as_slice().iter().all(|&x| x == 512.0));
//! # Ok::<(), finegrain::Error>(())
//! ```
//!
//! Sources: DeepSeek-V3 report (arXiv 2412.19437) 3.3 and 3.5.2; for the promotion orders DeepGEMM, TransformerEngine,
//! DeepSeek-V3's inference code, and what an H200 returned ([`LibraryCall`]); MMA-Sim and the
//! same H200 for the tensor cores.
#![forbid(unsafe_code)]

mod accumulation;
mod arithmetic;
mod backend;
mod blocked;
mod cpu;
mod emulated;
mod exact;
mod fold;
mod grouped;
mod intervals;
mod library;
mod operand;
mod parts;
mod problem;
mod promotion;
mod reference;
pub mod sanitize;
mod split;
mod tensor_core;
pub(crate) mod trial;

pub use accumulation::{Accumulation, Model};
pub use arithmetic::{Arithmetic, Beside};
#[cfg(feature = "cuda")]
pub(crate) use backend::rounded_to_f16;
pub use backend::{GemmBackend, GemmPlan, Output};
pub use blocked::Blocked;
pub(crate) use cpu::{OnCpu, Only};
pub use emulated::Emulated;
pub use fold::Fold;
pub(crate) use fold::Folded;
pub use grouped::{GroupedForm, GroupedPart, GroupedProblem};
pub use library::LibraryCall;
pub use problem::GemmProblem;
pub use promotion::Promotion;
pub(crate) use promotion::SumScaling;
pub use reference::Reference;
pub use split::{Cuts, SplitK};
pub use tensor_core::{Addend, BlockScales, StepResult, StepRounding, StepSum, TensorCore};
