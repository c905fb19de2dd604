//! A dense GEMM and its legality, checked once.

use std::num::NonZeroUsize;
use std::ops::Range;

use half::{bf16, f16};

use super::accumulation::{Accumulation, DEEPSEEK_INTERVAL, Model};
use super::arithmetic::Arithmetic;
use super::backend::{GemmBackend, Output};
use super::cpu::OnCpu;
use super::fold::{self, Fold};
use super::promotion::{Promotion, SumScaling};
use super::split::SplitK;
use super::tensor_core::{BlockScales, StepResult, TensorCore};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};
use crate::parallel::Watch;
use crate::scaled::{Granule, ScaleGridRef, ScaledRef};

/// D [M, N] = A [M, K] · B [N, K]ᵀ (+ C [M, N]) with its arithmetic. A problem that exists is legal.
///
/// ```
/// use finegrain::formats::Format;
/// use finegrain::gemm::{Accumulation, GemmProblem};
/// use finegrain::scaled::{Granule, ScaledRef};
/// let codes = [0x38u8; 2 * 256]; // 1.0 in E4M3
/// let scales = [1.0f32, 2.0, 3.0, 4.0];
/// let x = ScaledRef::from_slices(Format::E4M3, &codes, 2, 256, &scales, Granule::TILE_1X128)?;
/// let w = ScaledRef::from_codes(Format::E4M3, &codes, 2, 256)?;
/// let problem = GemmProblem::nt(x, w)?;
/// assert_eq!(problem.run()?.row(1), [896.0, 896.0]); // 128·3 + 128·4
///
/// // The scales of x change every 128 elements of K, so intervals of 256 would need two scales.
/// let refused = problem.with_accumulation(Accumulation::F32.promote_every(256)?);
/// assert!(refused.unwrap_err().to_string().contains("128"));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct GemmProblem<'a> {
    a: ScaledRef<'a>,
    b: ScaledRef<'a>,
    accumulation: Accumulation,
    addend: Option<MatRef<'a, f32>>,
}

impl<'a> GemmProblem<'a> {
    /// A problem in the everyday model: f32, promoted every 128, or as much more often as scales that are finer along
    /// K ask for (the greatest common divisor of 128 and the granules' columns).
    ///
    /// # Errors
    /// [`Error::Shape`] if A and B differ in K.
    pub fn nt(a: ScaledRef<'a>, b: ScaledRef<'a>) -> Result<Self> {
        let ((m, k), (n, kb)) = (a.shape(), b.shape());
        if k != kb {
            return Err(Error::Shape(format!(
                "A is {m}×{k} [M, K] and B is {n}×{kb} [N, K]: they differ in K"
            )));
        }
        let accumulation = Accumulation::new(Model::F32).with_interval(Some(fitting_interval(&[a, b], k)));
        GemmProblem { a, b, accumulation, addend: None }.checked()
    }

    /// The same problem in another arithmetic.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model does not multiply these formats or does not take these scales, if scales
    /// change inside a promotion interval, or along K where they come last, if there is an addend, no promotion, and
    /// scales outside the model (contract, clause 6), if K has no such parts (clause 9), or if scales cannot be folded
    /// exactly (clause 10).
    pub fn with_accumulation(self, accumulation: Accumulation) -> Result<Self> {
        GemmProblem { accumulation, ..self }.checked()
    }

    /// The same problem in another arithmetic, with an interval that fits where it leaves that open.
    ///
    /// # Errors
    /// As [`GemmProblem::with_accumulation`].
    pub fn with_arithmetic(self, arithmetic: &Arithmetic) -> Result<Self> {
        self.with_accumulation(self.fitted(arithmetic)?)
    }

    /// The accumulation that an arithmetic is for these operands, whether it is legal or not.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a library's call does not take them.
    pub fn fitted(&self, arithmetic: &Arithmetic) -> Result<Accumulation> {
        arithmetic.fit(&[self.a], &[self.b], self.k())
    }

    /// The same problem with C [M, N] added.
    ///
    /// # Errors
    /// [`Error::Shape`] if C is not M × N; [`Error::Unsupported`] as in [`GemmProblem::with_accumulation`].
    pub fn with_addend(self, c: MatRef<'a, f32>) -> Result<Self> {
        let (m, n) = (self.m(), self.n());
        if c.shape() != (m, n) {
            let (rows, cols) = c.shape();
            return Err(Error::Shape(format!("the addend is {rows}×{cols}, the output {m}×{n}")));
        }
        GemmProblem { addend: Some(c), ..self }.checked()
    }

    /// D in f32, on this CPU: the fastest backend that has these bits, the threads of the current pool. An
    /// [`Engine`](crate::Engine) runs it elsewhere, and watched.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
    pub fn run(&self) -> Result<Matrix<f32>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, 0.0);
        OnCpu::AUTO.run(self, Output::F32(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// D rounded once to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`GemmProblem::run`].
    pub fn run_bf16(&self) -> Result<Matrix<bf16>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, bf16::ZERO);
        OnCpu::AUTO.run(self, Output::Bf16(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// D rounded once to F16, to nearest even.
    ///
    /// # Errors
    /// As [`GemmProblem::run`].
    pub fn run_f16(&self) -> Result<Matrix<f16>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, f16::ZERO);
        OnCpu::AUTO.run(self, Output::F16(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// A [M, K].
    #[inline]
    pub fn a(&self) -> &ScaledRef<'a> {
        &self.a
    }

    /// B [N, K].
    #[inline]
    pub fn b(&self) -> &ScaledRef<'a> {
        &self.b
    }

    /// Rows of A and D.
    #[inline]
    pub fn m(&self) -> usize {
        self.a.shape().0
    }

    /// Rows of B, columns of D.
    #[inline]
    pub fn n(&self) -> usize {
        self.b.shape().0
    }

    /// Columns of A and B.
    #[inline]
    pub fn k(&self) -> usize {
        self.a.shape().1
    }

    /// (M, N).
    #[inline]
    pub fn output_shape(&self) -> (usize, usize) {
        (self.m(), self.n())
    }

    /// The arithmetic.
    #[inline]
    pub fn accumulation(&self) -> Accumulation {
        self.accumulation
    }

    /// C [M, N], if there is one.
    #[inline]
    pub fn addend(&self) -> Option<MatRef<'a, f32>> {
        self.addend
    }

    /// Elements of K in an interval: the promotion interval, or all of K (at least 1).
    #[inline]
    pub fn interval(&self) -> usize {
        self.accumulation.interval().map_or(self.k().max(1), |n| n.get())
    }

    /// Whether the model applies the first-level scales itself, so that promotion takes them as 1.
    #[inline]
    pub fn scales_in_model(&self) -> bool {
        self.accumulation.model().takes_block_scales()
    }

    /// fl(ta·tb), the second level of scales; `None` if both are 1.
    pub fn tensor_scale(&self) -> Option<f32> {
        let (ta, tb) = (self.a.tensor_scale(), self.b.tensor_scale());
        (ta != 1.0 || tb != 1.0).then_some(ta * tb)
    }

    /// Whether D is the model's chain itself: no promotion, no scales outside the model (contract, clause 5), and no
    /// sum after it (clause 9).
    #[inline]
    pub fn is_bare_chain(&self) -> bool {
        self.accumulation.interval().is_none()
            && !self.is_scaled_outside()
            && !self.accumulation.ends_in_sum()
    }

    /// Whether there are scales, of either level, that the model does not apply.
    #[inline]
    fn is_scaled_outside(&self) -> bool {
        let scaled = self.a.scales().is_some() || self.b.scales().is_some();
        scaled && !self.scales_in_model() && !self.folds() || self.tensor_scale().is_some()
    }

    /// Whether the operands become BF16 before anything else (contract, clause 10).
    #[inline]
    pub(crate) fn folds(&self) -> bool {
        self.accumulation.fold() == Fold::Scales
    }

    /// How scales meet the sum of all of K; `None` if there are none or promotion has applied them (contract, clauses 5
    /// and 9).
    pub(crate) fn sum_scaling(&self) -> Option<SumScaling> {
        let order = self.accumulation.promotion();
        let of_rows = |x: &ScaledRef<'_>| x.scales().is_some_and(|s| s.granule.rows() != usize::MAX);
        let by_rows = !self.scales_in_model() && (of_rows(&self.a) || of_rows(&self.b));
        match (order, self.accumulation.interval()) {
            _ if self.k() == 0 => None,
            (Promotion::ScalesLast, _) if by_rows => Some(SumScaling::InTurn),
            (Promotion::ScalesLast, _) => Some(SumScaling::ByProduct),
            (_, None) if self.is_scaled_outside() => Some(SumScaling::Promoted(order)),
            (_, _) => None,
        }
    }

    /// The parts of K that are summed by themselves (contract, clause 9), ascending; all of K where it is not split.
    pub fn k_parts(&self) -> Vec<Range<usize>> {
        self.checked_k_parts().expect("a problem that exists is legal")
    }

    fn checked_k_parts(&self) -> Result<Vec<Range<usize>>> {
        self.accumulation.split_k().ranges(self.k(), self.accumulation.split_unit())
    }

    /// A part of K as a product of its own, without addend and second-level scale, and without scales where those follow
    /// the sum of the parts; `None` if it begins inside a granule of scales and goes beyond.
    pub(super) fn part(&self, k: Range<usize>) -> Option<GemmProblem<'a>> {
        let promotion = self.accumulation.promotion();
        let scales_follow = self.accumulation.interval().is_none() || promotion == Promotion::ScalesLast;
        let operand = |x: &ScaledRef<'a>| {
            let x = if scales_follow && !self.scales_in_model() { x.without_scales() } else { *x };
            x.k_range(k.clone()).map(|x| x.without_tensor_scale())
        };
        let promotion = if scales_follow { Promotion::ScalesFirst } else { promotion };
        let accumulation = self.accumulation.with_promotion(promotion).with_split_k(SplitK::Whole);
        let part = GemmProblem { a: operand(&self.a)?, b: operand(&self.b)?, accumulation, addend: None };
        Some(part.checked().expect("the parts of a legal problem are legal"))
    }

    fn checked(self) -> Result<Self> {
        for (name, x) in [("A", &self.a), ("B", &self.b)] {
            let format = if self.folds() { Format::Bf16 } else { x.format() };
            check_format(self.accumulation.model(), name, format)?;
        }
        if let Model::TensorCore(core) = self.accumulation.model() {
            check_block_scales(core, &self.a, &self.b)?;
            if core.result() == StepResult::F16 && !self.accumulation.split_k().is_whole() {
                return Err(Error::Unsupported(format!(
                    "{core} accumulates in f16, and parts of K are added in f32: no library splits K so"
                )));
            }
        }
        for (name, x) in [("A", &self.a), ("B", &self.b)] {
            self.check_split(name, x)?;
            if self.folds() {
                fold::check(name, x)?;
            } else {
                self.check_interval(name, x)?;
            }
        }
        self.check_addend()?;
        Ok(self)
    }

    /// Every interval lies within one granule; where the model applies the scales, whole granules make an interval.
    fn check_interval(&self, name: &str, x: &ScaledRef<'_>) -> Result<()> {
        let Some(scales) = x.scales() else { return Ok(()) };
        let (cols, k) = (scales.granule.cols(), self.k());
        if cols >= k {
            return Ok(());
        }
        let last = self.accumulation.promotion() == Promotion::ScalesLast;
        let problem = match self.accumulation.interval().map(|n| n.get()) {
            _ if last && !self.scales_in_model() => {
                format!("in the order scales-last they multiply the sum and have to be constant over K = {k}")
            }
            Some(n) if self.scales_in_model() && !n.is_multiple_of(cols) && n < k => {
                format!("the promotion interval {n} is no multiple of {cols}")
            }
            _ if self.scales_in_model() => return Ok(()),
            Some(n) if cols.is_multiple_of(n) => return Ok(()),
            Some(n) => format!("the promotion interval {n} does not divide {cols}"),
            None => {
                format!("without promotion they would have to be constant over K = {k}; promote every {cols}")
            }
        };
        Err(Error::Unsupported(format!("the scales of {name} change every {cols} elements of K: {problem}")))
    }

    /// K has the parts that are asked for, and they begin with granules of the scales that the model applies.
    fn check_split(&self, name: &str, x: &ScaledRef<'_>) -> Result<()> {
        let parts = self.checked_k_parts()?;
        let Some(scales) = x.scales().filter(|_| self.scales_in_model()) else { return Ok(()) };
        match parts[1..].iter().find(|part| !part.start.is_multiple_of(scales.granule.cols())) {
            None => Ok(()),
            Some(part) => Err(Error::Unsupported(format!(
                "split-K at {}: the scales of {name} that the model applies change every {} elements of K",
                part.start,
                scales.granule.cols()
            ))),
        }
    }

    fn check_addend(&self) -> Result<()> {
        let accumulation = self.accumulation;
        let at_the_end = accumulation.interval().is_some() || accumulation.ends_in_sum();
        if self.addend.is_none() || at_the_end || self.is_bare_chain() {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "{} has no promotion, so the addend is the initial accumulator of the chain, and the scales that are \
             applied after the chain would scale it too: promote the partial sums (every {}), or add afterwards",
            self.accumulation,
            self.k().clamp(1, DEEPSEEK_INTERVAL.get())
        )))
    }
}

/// The promotion interval that fits the operands: 128, or the largest divisor of it over which all scales are constant.
pub(super) fn fitting_interval(operands: &[ScaledRef<'_>], k: usize) -> NonZeroUsize {
    let gcd = |mut x: usize, mut y: usize| {
        while y != 0 {
            (x, y) = (y, x % y);
        }
        x
    };
    let columns = operands.iter().filter_map(|x| x.scales()).map(|s| s.granule.cols());
    let interval = columns.filter(|&cols| cols < k).fold(DEEPSEEK_INTERVAL.get(), gcd);
    NonZeroUsize::new(interval).unwrap_or(DEEPSEEK_INTERVAL)
}

fn check_format(model: Model, name: &str, format: Format) -> Result<()> {
    let core = match model {
        Model::TensorCore(core) => core,
        // Products of F32 have no place in the exact sum's fixed point.
        Model::Exact if format == Format::F32 => {
            return Err(Error::Unsupported(format!(
                "{model} multiplies formats of at most 16 bits; {name} is {format}"
            )));
        }
        Model::F32 | Model::Exact => return Ok(()),
    };
    if core.operands().contains(&format) {
        return Ok(());
    }
    let known = core.operands().iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
    Err(Error::Unsupported(format!("{core} multiplies {known}; {name} is {format}")))
}

/// The scales that a tensor core applies are of the kinds it knows, on both operands.
fn check_block_scales(core: TensorCore, a: &ScaledRef<'_>, b: &ScaledRef<'_>) -> Result<()> {
    let kind = |x: &ScaledRef<'_>| {
        x.scales().map(|s| match (s.grid, s.granule) {
            (ScaleGridRef::E8M0(_), Granule::MX_1X32) => BlockKind::Mx,
            (ScaleGridRef::E4M3(_), Granule::NVFP4_1X16) => BlockKind::Nvfp4,
            _ => BlockKind::Other,
        })
    };
    let (expected, legal) = match (core.scales(), kind(a), kind(b)) {
        (BlockScales::None, ..) => return Ok(()),
        (BlockScales::Mx, ka, kb) => (
            "e8m0 scales in 1x32 on both operands, or none on either",
            ka == kb && matches!(ka, None | Some(BlockKind::Mx)),
        ),
        (BlockScales::Fp4, ka, kb) => (
            "e8m0 scales in 1x32 or e4m3 scales in 1x16, the same on both operands",
            ka == kb && matches!(ka, Some(BlockKind::Mx | BlockKind::Nvfp4)),
        ),
    };
    let describe = |x: &ScaledRef<'_>| match x.scales() {
        Some(s) => format!("{} in {}", s.grid.format(), s.granule),
        None => "none".to_owned(),
    };
    if legal {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{core} applies block scales itself and takes {expected}; A has {}, B has {}",
        describe(a),
        describe(b)
    )))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockKind {
    Mx,
    Nvfp4,
    Other,
}
