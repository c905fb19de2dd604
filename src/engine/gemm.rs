//! Products, dense and grouped.

use std::fmt;

use half::{bf16, f16};

use super::Engine;
use crate::error::{Error, Result};
use crate::gemm::{self, GemmProblem, GroupedProblem, Model, Output};
use crate::matrix::Matrix;
use crate::simd::Isa;

/// A product of either kind, which references to problems turn into.
#[derive(Clone, Copy, Debug)]
pub enum Product<'p> {
    /// One.
    Dense(&'p GemmProblem<'p>),
    /// Several in one output.
    Grouped(&'p GroupedProblem<'p>),
}

impl<'p> From<&'p GemmProblem<'_>> for Product<'p> {
    fn from(problem: &'p GemmProblem<'_>) -> Self {
        Product::Dense(problem)
    }
}

impl<'p> From<&'p GroupedProblem<'_>> for Product<'p> {
    fn from(problem: &'p GroupedProblem<'_>) -> Self {
        Product::Grouped(problem)
    }
}

impl Product<'_> {
    /// (rows, columns) of D.
    pub fn output_shape(&self) -> (usize, usize) {
        match self {
            Product::Dense(p) => p.output_shape(),
            Product::Grouped(p) => p.output_shape(),
        }
    }

    /// Multiply-adds of all groups.
    pub fn multiply_adds(&self) -> u64 {
        let dense = |p: &GemmProblem<'_>| p.m() as u64 * p.n() as u64 * p.k() as u64;
        match self {
            Product::Dense(p) => dense(p),
            Product::Grouped(p) => p.parts().iter().map(|part| dense(part.problem())).sum(),
        }
    }
}

/// How an engine computes a product: it can be printed, and run as often as D is wanted.
pub struct GemmPlan<'p> {
    engine: &'p Engine<'p>,
    plan: Box<dyn gemm::GemmPlan + 'p>,
    output: (usize, usize),
}

impl GemmPlan<'_> {
    /// The name of the backend that computes; of the first group.
    pub fn backend(&self) -> &'static str {
        self.plan.backend()
    }

    /// The CPU's instruction set that it runs on, if on one.
    pub fn isa(&self) -> Option<Isa> {
        self.plan.isa()
    }

    /// D in f32.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; what the outside world may refuse, such as a device.
    pub fn run(&self) -> Result<Matrix<f32>> {
        let (rows, cols) = self.output;
        let mut d = Matrix::filled(rows, cols, 0.0);
        self.run_into(Output::F32(d.view_mut()))?;
        Ok(d)
    }

    /// D rounded once to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`GemmPlan::run`].
    pub fn run_bf16(&self) -> Result<Matrix<bf16>> {
        let (rows, cols) = self.output;
        let mut d = Matrix::filled(rows, cols, bf16::ZERO);
        self.run_into(Output::Bf16(d.view_mut()))?;
        Ok(d)
    }

    /// D rounded once to F16, to nearest even.
    ///
    /// # Errors
    /// As [`GemmPlan::run`].
    pub fn run_f16(&self) -> Result<Matrix<f16>> {
        let (rows, cols) = self.output;
        let mut d = Matrix::filled(rows, cols, f16::ZERO);
        self.run_into(Output::F16(d.view_mut()))?;
        Ok(d)
    }

    /// D into memory of the caller's; every element is written, +0 where no group is.
    ///
    /// # Errors
    /// As [`GemmPlan::run`]; [`Error::Shape`] if `out` has another shape.
    pub fn run_into(&self, out: Output<'_>) -> Result<()> {
        let ((rows, cols), (m, n)) = (out.shape(), self.output);
        if (rows, cols) != (m, n) {
            return Err(Error::Shape(format!("the output given is {rows}×{cols}, expected {m}×{n}")));
        }
        self.engine.install(|| self.plan.run(out, &self.engine.watch))
    }
}

impl fmt::Display for GemmPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

impl fmt::Debug for GemmPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GemmPlan").field(&self.to_string()).finish()
    }
}

impl Engine<'_> {
    /// The accumulation models that it computes, each for some problems at least.
    pub fn models(&self) -> Vec<Model> {
        self.backend().models()
    }

    /// How a product is computed: which backend, instruction set or device, and how the problem is cut.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why it is not; [`Error::Unknown`] if `FINEGRAIN_ISA` names no instruction
    /// set.
    pub fn plan_gemm<'p>(&'p self, product: impl Into<Product<'p>>) -> Result<GemmPlan<'p>> {
        let product = product.into();
        let plan = self.install(|| match product {
            Product::Dense(problem) => self.backend().plan(problem),
            Product::Grouped(problem) => self.backend().plan_grouped(problem),
        })?;
        Ok(GemmPlan { engine: self, plan, output: product.output_shape() })
    }

    /// D of a dense or grouped problem in f32.
    ///
    /// # Errors
    /// As [`Engine::plan_gemm`] and [`GemmPlan::run`].
    pub fn gemm<'p>(&'p self, product: impl Into<Product<'p>>) -> Result<Matrix<f32>> {
        self.plan_gemm(product)?.run()
    }

    /// D rounded once to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`Engine::gemm`].
    pub fn gemm_bf16<'p>(&'p self, product: impl Into<Product<'p>>) -> Result<Matrix<bf16>> {
        self.plan_gemm(product)?.run_bf16()
    }

    /// D rounded once to F16, to nearest even.
    ///
    /// # Errors
    /// As [`Engine::gemm`].
    pub fn gemm_f16<'p>(&'p self, product: impl Into<Product<'p>>) -> Result<Matrix<f16>> {
        self.plan_gemm(product)?.run_f16()
    }

    /// D into memory of the caller's; every element is written, +0 where no group is.
    ///
    /// # Errors
    /// As [`Engine::gemm`]; [`Error::Shape`] if `out` has another shape.
    pub fn gemm_into<'p>(&'p self, product: impl Into<Product<'p>>, out: Output<'_>) -> Result<()> {
        self.plan_gemm(product)?.run_into(out)
    }
}
