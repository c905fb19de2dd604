//! A Linear layer's three GEMMs: their operands, in full precision or in a scheme's codes and scales.
//!
//! Y = X·Wᵀ (Fprop), dX = dY·W (Dgrad), dW = dYᵀ·X (Wgrad). Groups run along each GEMM's K: Fprop takes X in activation
//! tiles and W in weight blocks; Dgrad takes dY in activation tiles and the same weight blocks transposed (recipes whose
//! weight granule is not square quantise Wᵀ anew); Wgrad takes both operands transposed, grouped along tokens
//! (DeepSeek-V3 report 3.3).
//!
//! ```
//! use finegrain::gemm::GemmProblem;
//! use finegrain::linear::{Linear, Pass, Scheme};
//! use finegrain::matrix::Matrix;
//! let x = Matrix::from_fn(8, 256, |t, c| ((t * 37 + c * 11) % 23) as f32 - 11.0);
//! let w = Matrix::from_fn(16, 256, |o, c| ((o * 13 + c * 7) % 19) as f32 * 0.01 - 0.09);
//! let dy = Matrix::from_fn(8, 16, |t, o| ((t * 5 + o * 3) % 17) as f32 * 1e-3 - 8e-3);
//! let layer = Linear::new(x, w, Some(dy))?;
//! let operands = layer.operands(Pass::Dgrad, &"deepseek-v3".parse()?)?;
//! let dx = GemmProblem::nt(operands.a.view(), operands.b.view())?.run()?;
//! assert_eq!(dx.shape(), (8, 256));
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

mod scheme;

use serde::Serialize;

pub use self::scheme::Scheme;
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::quant::{QuantStats, Quantizer};
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

/// The tensors of a Linear layer: x [tokens, in], w [out, in], and for the backward passes dy [tokens, out].
#[derive(Clone, Debug)]
pub struct Linear {
    x: Matrix<f32>,
    w: Matrix<f32>,
    dy: Option<Matrix<f32>>,
}

/// The operands of a pass as its GEMM reads them.
#[derive(Clone, Debug)]
pub struct Operands {
    /// A [M, K].
    pub a: ScaledMatrix,
    /// B [N, K].
    pub b: ScaledMatrix,
    /// What quantising both did.
    pub stats: QuantStats,
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

    /// A [M, K] and B [N, K] of a pass before anything is rounded.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a backward pass without dy.
    pub fn originals(&self, pass: Pass) -> Result<(Matrix<f64>, Matrix<f64>)> {
        let wide = |m: &Matrix<f32>| m.map(|&v| f64::from(v));
        let wide_t = |m: &Matrix<f32>| wide(m).view().transposed();
        Ok(match pass {
            Pass::Fprop => (wide(&self.x), wide(&self.w)),
            Pass::Dgrad => (wide(self.dy()?), wide_t(&self.w)),
            Pass::Wgrad => (wide_t(self.dy()?), wide_t(&self.x)),
        })
    }

    /// The operands of a pass in a scheme.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a backward pass without dy.
    pub fn operands(&self, pass: Pass, scheme: &Scheme) -> Result<Operands> {
        let recipe = match scheme {
            Scheme::Bf16 => return self.rounded(pass),
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
        Ok(Operands { a: a.matrix, b: b.matrix, stats: a.stats + b.stats })
    }

    /// The operands of a pass in BF16.
    fn rounded(&self, pass: Pass) -> Result<Operands> {
        let plain = |m: &Matrix<f32>| ScaledMatrix::from_bf16(m.map(|&v| half::bf16::from_f32(v)).view());
        let (a, b) = match pass {
            Pass::Fprop => (plain(&self.x), plain(&self.w)),
            Pass::Dgrad => (plain(self.dy()?), plain(&self.w).transposed()),
            Pass::Wgrad => (plain(self.dy()?).transposed(), plain(&self.x).transposed()),
        };
        Ok(Operands { a, b, stats: QuantStats::default() })
    }
}
