//! The three GEMMs of a Linear layer, quantised by a recipe, multiplied by an accumulation, held against exact.
//!
//! Y = X·Wᵀ (Fprop), dX = dY·W (Dgrad), dW = dYᵀ·X (Wgrad). Groups run along each GEMM's K: Fprop takes X in activation
//! tiles and W in weight blocks; Dgrad takes dY in activation tiles and the same weight blocks transposed (recipes whose
//! weight granule is not square quantise Wᵀ anew); Wgrad takes both operands transposed, grouped along tokens
//! (DeepSeek-V3 report 3.3).

use serde::Serialize;

use super::budget::{Budget, OperandError, Stage};
use super::metrics::ErrorMetrics;
use super::product::exact_product;
use crate::error::{Error, Result};
use crate::gemm::{Accumulation, Arithmetic, Execution, GemmProblem};
use crate::matrix::Matrix;
use crate::quant::{QuantStats, Quantizer, Recipe};
use crate::scaled::ScaledMatrix;

/// One of a Linear's three GEMMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Pass {
    /// Y = X·Wᵀ, K = in.
    Fprop,
    /// dX = dY·W, K = out.
    Dgrad,
    /// dW = dYᵀ·X, K = tokens.
    Wgrad,
}

impl Pass {
    /// All three.
    pub const ALL: [Pass; 3] = [Pass::Fprop, Pass::Dgrad, Pass::Wgrad];

    /// The name of the result: Y, dX or dW.
    pub const fn result(self) -> &'static str {
        match self {
            Pass::Fprop => "Y",
            Pass::Dgrad => "dX",
            Pass::Wgrad => "dW",
        }
    }

    /// The names of A and B as the GEMM reads them.
    pub const fn operands(self) -> [&'static str; 2] {
        match self {
            Pass::Fprop => ["x", "w"],
            Pass::Dgrad => ["dy", "w^T"],
            Pass::Wgrad => ["dy^T", "x^T"],
        }
    }
}

/// How a result is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputFormat {
    /// As computed.
    F32,
    /// Rounded once, to nearest even.
    Bf16,
}

/// How operands are represented.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    /// Rounded to BF16, no scales: the baseline.
    Bf16,
    /// Quantised by a recipe.
    Recipe(Recipe),
}

impl Scheme {
    /// `bf16` or the recipe's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Scheme::Bf16 => "bf16",
            Scheme::Recipe(recipe) => recipe.name,
        }
    }

    /// Looks a scheme up.
    ///
    /// # Errors
    /// As [`Recipe::by_name`].
    pub fn by_name(name: &str) -> Result<Self> {
        if name == "bf16" { Ok(Scheme::Bf16) } else { Recipe::by_name(name).map(|r| Scheme::Recipe(*r)) }
    }
}

/// The tensors of a Linear layer: x [tokens, in], w [out, in], and for the backward passes dy [tokens, out].
#[derive(Clone, Debug)]
pub struct Linear {
    x: Matrix<f32>,
    w: Matrix<f32>,
    dy: Option<Matrix<f32>>,
}

impl Linear {
    /// Joins the tensors.
    ///
    /// # Errors
    /// [`Error::Shape`] if in, out or the number of tokens disagree.
    pub fn new(x: Matrix<f32>, w: Matrix<f32>, dy: Option<Matrix<f32>>) -> Result<Self> {
        let ((tokens, input), (output, w_input)) = (x.shape(), w.shape());
        if input != w_input {
            return Err(Error::Shape(format!(
                "x is {tokens}×{input}, w is {output}×{w_input}: the last sizes must agree"
            )));
        }
        if let Some(dy) = &dy
            && dy.shape() != (tokens, output)
        {
            let (r, c) = dy.shape();
            return Err(Error::Shape(format!(
                "dy is {r}×{c}, expected {tokens}×{output} for x of {tokens}×{input} and w of {output}×{input}"
            )));
        }
        Ok(Linear { x, w, dy })
    }

    /// The passes that the tensors allow: all three with dy, Fprop alone without.
    pub fn passes(&self) -> &'static [Pass] {
        if self.dy.is_some() { &Pass::ALL } else { &Pass::ALL[..1] }
    }

    /// (tokens, in, out).
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.x.rows(), self.x.cols(), self.w.rows())
    }

    /// Multiply-adds of one pass; all three have the same number.
    pub fn multiply_adds(&self) -> u64 {
        let (tokens, input, output) = self.sizes();
        tokens as u64 * input as u64 * output as u64
    }

    fn dy(&self) -> Result<&Matrix<f32>> {
        self.dy.as_ref().ok_or_else(|| Error::Invalid("the backward passes need dy".into()))
    }

    /// The exact result of a pass.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a backward pass without dy.
    pub fn exact(&self, pass: Pass) -> Result<Matrix<f64>> {
        let (a, b) = self.originals(pass)?;
        Ok(exact_product(a.view(), b.view()))
    }

    /// The unquantised operands of a pass as the GEMM reads them.
    fn originals(&self, pass: Pass) -> Result<(Matrix<f64>, Matrix<f64>)> {
        let wide = |m: &Matrix<f32>| m.map(|&v| f64::from(v));
        let wide_t = |m: &Matrix<f32>| wide(m).view().transposed();
        Ok(match pass {
            Pass::Fprop => (wide(&self.x), wide(&self.w)),
            Pass::Dgrad => (wide(self.dy()?), wide_t(&self.w)),
            Pass::Wgrad => (wide_t(self.dy()?), wide_t(&self.x)),
        })
    }

    /// The operands of a pass as the GEMM reads them (`A [M, K]`, `B [N, K]`) and what quantising them did.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a backward pass without dy.
    pub fn operands(&self, pass: Pass, scheme: &Scheme) -> Result<(ScaledMatrix, ScaledMatrix, QuantStats)> {
        let recipe = match scheme {
            Scheme::Bf16 => {
                let bf16 = |m: &Matrix<f32>| m.map(|&v| half::bf16::from_f32(v));
                let plain = |m: &Matrix<f32>| ScaledMatrix::from_bf16(bf16(m).view());
                let (a, b) = match pass {
                    Pass::Fprop => (plain(&self.x), plain(&self.w)),
                    Pass::Dgrad => (plain(self.dy()?), plain(&self.w).transposed()),
                    Pass::Wgrad => (plain(self.dy()?).transposed(), plain(&self.x).transposed()),
                };
                return Ok((a, b, QuantStats::default()));
            }
            Scheme::Recipe(recipe) => recipe,
        };
        let forward = Quantizer::new(*recipe);
        let gradient = Quantizer::new(recipe.for_gradients());
        let (a, b) = match pass {
            Pass::Fprop => (forward.activation(self.x.view())?, forward.weight(self.w.view())?),
            Pass::Dgrad => {
                let square = recipe.weight == recipe.weight.transposed();
                let w = if square {
                    let mut w = forward.weight(self.w.view())?;
                    w.matrix = w.matrix.transposed();
                    w
                } else {
                    forward.weight(self.w.view().transposed().view())?
                };
                (gradient.activation(self.dy()?.view())?, w)
            }
            Pass::Wgrad => (gradient.transposed(self.dy()?.view())?, forward.transposed(self.x.view())?),
        };
        Ok((a.matrix, b.matrix, a.stats + b.stats))
    }

    /// Quantises the operands of a pass and measures what that alone costs.
    ///
    /// # Errors
    /// As [`Linear::operands`]; [`Error::Shape`] if `exact` is not of the pass' shape.
    pub fn quantized<'e>(
        &'e self,
        pass: Pass,
        scheme: &Scheme,
        exact: &'e Matrix<f64>,
    ) -> Result<QuantizedPass<'e>> {
        let (a, b, stats) = self.operands(pass, scheme)?;
        let (layer, scheme) = (self, *scheme);
        let product = exact_product(a.view().to_f64().view(), b.view().to_f64().view());
        let error = ErrorMetrics::of(product.view(), exact.view())?;
        Ok(QuantizedPass { layer, pass, scheme, a, b, stats, exact, product, error })
    }
}

/// The quantised operands of one pass, with their exact product.
#[derive(Clone, Debug)]
pub struct QuantizedPass<'e> {
    layer: &'e Linear,
    pass: Pass,
    scheme: Scheme,
    a: ScaledMatrix,
    b: ScaledMatrix,
    stats: QuantStats,
    /// The product of the original operands.
    exact: &'e Matrix<f64>,
    /// The product of the quantised operands.
    product: Matrix<f64>,
    error: ErrorMetrics,
}

/// How far one pass' result lies from exact, and how much of it is accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PassReport {
    /// Against the exact product of the original operands.
    pub total: ErrorMetrics,
    /// The exact product of the quantised operands against that of the originals: what quantisation alone costs.
    pub quantisation: ErrorMetrics,
    /// Against the exact product of the quantised operands: what accumulation alone costs.
    pub accumulation: ErrorMetrics,
    /// What quantisation did to the operands.
    pub stats: QuantStats,
}

impl QuantizedPass<'_> {
    /// The quantised operands as a GEMM: its default arithmetic.
    ///
    /// # Errors
    /// None: the operands of a pass share K.
    pub fn problem(&self) -> Result<GemmProblem<'_>> {
        GemmProblem::nt(self.a.view(), self.b.view())
    }

    /// The exact product of the original operands.
    pub fn exact(&self) -> &Matrix<f64> {
        self.exact
    }

    /// The exact product of the quantised operands.
    pub fn product(&self) -> &Matrix<f64> {
        &self.product
    }

    /// Multiplies with an arithmetic and measures; also tells the accumulation that ran.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the arithmetic does not take these operands.
    pub fn accumulate(
        &self,
        arithmetic: &Arithmetic,
        execution: &Execution<'_>,
    ) -> Result<(Accumulation, PassReport)> {
        let problem = self.problem()?.with_arithmetic(arithmetic)?;
        let d = problem.run_with(execution)?;
        let report = PassReport {
            total: ErrorMetrics::of(d.view(), self.exact.view())?,
            quantisation: self.error,
            accumulation: ErrorMetrics::of(d.view(), self.product.view())?,
            stats: self.stats,
        };
        Ok((problem.accumulation(), report))
    }

    /// Where the error comes from: the stages from the exact product to the computed one. `output` says whether the
    /// result is stored in bf16.
    ///
    /// # Errors
    /// As [`QuantizedPass::accumulate`].
    pub fn budget(
        &self,
        arithmetic: &Arithmetic,
        output: OutputFormat,
        execution: &Execution<'_>,
    ) -> Result<Budget> {
        let (a, b) = self.layer.originals(self.pass)?;
        let (qa, qb) = (self.a.view().to_f64(), self.b.view().to_f64());
        let [name_a, name_b] = self.pass.operands();
        let operands = [OperandError::of(name_a, &a, &qa), OperandError::of(name_b, &b, &qb)];
        let mut after = Vec::new();
        let exact_scales = match self.scheme {
            Scheme::Recipe(recipe) => recipe.with_exact_scales(),
            Scheme::Bf16 => None,
        };
        match exact_scales {
            None => after.push((Stage::QuantiseA, exact_product(qa.view(), b.view()))),
            Some(recipe) => {
                let (ea, eb, _) = self.layer.operands(self.pass, &Scheme::Recipe(recipe))?;
                after.push((Stage::QuantiseA, exact_product(ea.view().to_f64().view(), b.view())));
                after.push((Stage::RoundScalesA, exact_product(qa.view(), b.view())));
                after.push((Stage::QuantiseB, exact_product(qa.view(), eb.view().to_f64().view())));
            }
        }
        let last = if exact_scales.is_some() { Stage::RoundScalesB } else { Stage::QuantiseB };
        after.push((last, self.product.clone()));
        let d = self.problem()?.with_arithmetic(arithmetic)?.run_with(execution)?;
        after.push((Stage::Accumulate, d.map(|&v| f64::from(v))));
        if output == OutputFormat::Bf16 {
            after.push((Stage::RoundOutput, d.map(|&v| half::bf16::from_f32(v).to_f64())));
        }
        Ok(Budget::of(self.exact, &after, operands))
    }
}
