//! One pass of a Linear: exact, quantised by a scheme, multiplied in an arithmetic. Each exact product is computed once.

use serde::Serialize;

use super::budget::{Budget, OperandError, Stage};
use super::metrics::ErrorMetrics;
use super::product::exact_product;
use crate::engine::Engine;
use crate::error::Result;
use crate::formats::Format;
use crate::gemm::{Accumulation, Arithmetic, GemmProblem};
use crate::linear::{Linear, Operands, Pass, Scheme};
use crate::matrix::Matrix;
use crate::quant::QuantStats;

/// How a result is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputFormat {
    /// As computed.
    F32,
    /// Rounded once to BF16, to nearest even.
    Bf16,
    /// Rounded once to F16, to nearest even.
    F16,
}

impl OutputFormat {
    /// The format that D has.
    pub const fn format(self) -> Format {
        match self {
            OutputFormat::F32 => Format::F32,
            OutputFormat::Bf16 => Format::Bf16,
            OutputFormat::F16 => Format::F16,
        }
    }
}

/// A pass and its exact result.
#[derive(Clone, Debug)]
pub struct ExactPass<'l> {
    layer: &'l Linear,
    pass: Pass,
    product: Matrix<f64>,
}

impl<'l> ExactPass<'l> {
    /// Computes the exact result.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a backward pass without dy.
    pub fn new(layer: &'l Linear, pass: Pass) -> Result<Self> {
        let (a, b) = layer.originals(pass)?;
        Ok(ExactPass { layer, pass, product: exact_product(a.view(), b.view()) })
    }

    /// Which pass.
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// The exact product of the original operands.
    pub fn product(&self) -> &Matrix<f64> {
        &self.product
    }

    /// Quantises the operands and measures what that alone costs.
    ///
    /// # Errors
    /// As [`Linear::operands`].
    pub fn quantized(&self, scheme: &Scheme) -> Result<QuantizedPass<'_>> {
        let operands = self.layer.operands(self.pass, scheme)?;
        let product = exact_product(operands.a.view().to_f64().view(), operands.b.view().to_f64().view());
        let error = ErrorMetrics::of(product.view(), self.product.view())?;
        Ok(QuantizedPass { exact: self, scheme: *scheme, operands, product, error })
    }
}

/// The quantised operands of one pass, with their exact product.
#[derive(Clone, Debug)]
pub struct QuantizedPass<'e> {
    exact: &'e ExactPass<'e>,
    scheme: Scheme,
    operands: Operands,
    product: Matrix<f64>,
    error: ErrorMetrics,
}

impl QuantizedPass<'_> {
    /// The pass, with what is exact about it.
    pub fn exact(&self) -> &ExactPass<'_> {
        self.exact
    }

    /// How the operands are represented.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The quantised operands.
    pub fn operands(&self) -> &Operands {
        &self.operands
    }

    /// The exact product of the quantised operands.
    pub fn product(&self) -> &Matrix<f64> {
        &self.product
    }

    /// The quantised operands as a GEMM: its default arithmetic.
    ///
    /// # Errors
    /// None: the operands of a pass share K.
    pub fn problem(&self) -> Result<GemmProblem<'_>> {
        GemmProblem::nt(self.operands.a.view(), self.operands.b.view())
    }

    /// Multiplies in an arithmetic.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the arithmetic does not take these operands.
    pub fn multiply(&self, arithmetic: &Arithmetic, engine: &Engine<'_>) -> Result<Multiplied<'_>> {
        let problem = self.problem()?.with_arithmetic(arithmetic)?;
        let d = engine.gemm(&problem)?;
        let report = PassReport {
            total: ErrorMetrics::of(d.view(), self.exact.product.view())?,
            quantization: self.error,
            accumulation: ErrorMetrics::of(d.view(), self.product.view())?,
            stats: self.operands.stats,
        };
        Ok(Multiplied { quantized: self, problem, d, report })
    }

    /// The stages from the exact product to that of the quantised operands, which the budgets of all arithmetics share.
    ///
    /// # Errors
    /// As [`Linear::operands`].
    pub fn stages(&self) -> Result<Stages<'_>> {
        let ExactPass { layer, pass, .. } = *self.exact;
        let (a, b) = layer.originals(pass)?;
        let (qa, qb) = (self.operands.a.view().to_f64(), self.operands.b.view().to_f64());
        let [name_a, name_b] = pass.operands();
        let operands = [OperandError::of(name_a, &a, &qa), OperandError::of(name_b, &b, &qb)];
        let exact_scales = match self.scheme {
            Scheme::Recipe(recipe) => recipe.with_exact_scales(),
            Scheme::Bf16 => None,
        };
        let mut before = Vec::new();
        match exact_scales {
            None => before.push((Stage::QuantizeA, exact_product(qa.view(), b.view()))),
            Some(recipe) => {
                let exact = layer.operands(pass, &Scheme::Recipe(recipe))?;
                let (ea, eb) = (exact.a.view().to_f64(), exact.b.view().to_f64());
                before.push((Stage::QuantizeA, exact_product(ea.view(), b.view())));
                before.push((Stage::RoundScalesA, exact_product(qa.view(), b.view())));
                before.push((Stage::QuantizeB, exact_product(qa.view(), eb.view())));
            }
        }
        let last = if exact_scales.is_some() { Stage::RoundScalesB } else { Stage::QuantizeB };
        Ok(Stages { quantized: self, operands, before, last })
    }
}

/// The products on the way from the originals to the quantised operands.
#[derive(Clone, Debug)]
pub struct Stages<'q> {
    quantized: &'q QuantizedPass<'q>,
    operands: [OperandError; 2],
    /// After each stage but the last, whose product is that of the quantised operands.
    before: Vec<(Stage, Matrix<f64>)>,
    last: Stage,
}

impl Stages<'_> {
    /// Where the error of a result comes from, stored in `output`.
    ///
    /// # Panics
    /// If the result has another shape than the pass.
    pub fn budget(&self, result: &Multiplied<'_>, output: OutputFormat) -> Budget {
        let summed = result.d.map(|&v| f64::from(v));
        let stored = match output {
            OutputFormat::F32 => None,
            OutputFormat::Bf16 => Some(result.d.map(|&v| half::bf16::from_f32(v).to_f64())),
            OutputFormat::F16 => Some(result.d.map(|&v| half::f16::from_f32(v).to_f64())),
        };
        let mut after: Vec<(Stage, &Matrix<f64>)> = self.before.iter().map(|(s, d)| (*s, d)).collect();
        after.push((self.last, &self.quantized.product));
        after.push((Stage::Accumulate, &summed));
        after.extend(stored.as_ref().map(|d| (Stage::RoundOutput, d)));
        Budget::of(&self.quantized.exact.product, &after, self.operands.clone())
    }
}

/// How far one pass' result lies from exact, and how much of it is accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PassReport {
    /// Against the exact product of the original operands.
    pub total: ErrorMetrics,
    /// The exact product of the quantised operands against that of the originals: what quantisation alone costs.
    #[serde(rename = "quantisation")]
    pub quantization: ErrorMetrics,
    /// Against the exact product of the quantised operands: what accumulation alone costs.
    pub accumulation: ErrorMetrics,
    /// What quantisation did to the operands.
    pub stats: QuantStats,
}

/// The result of a pass in one arithmetic.
#[derive(Clone, Debug)]
pub struct Multiplied<'q> {
    quantized: &'q QuantizedPass<'q>,
    problem: GemmProblem<'q>,
    d: Matrix<f32>,
    report: PassReport,
}

impl<'q> Multiplied<'q> {
    /// The operands, quantised.
    pub fn quantized(&self) -> &'q QuantizedPass<'q> {
        self.quantized
    }

    /// The problem that was solved.
    pub fn problem(&self) -> &GemmProblem<'q> {
        &self.problem
    }

    /// The accumulation that ran.
    pub fn accumulation(&self) -> Accumulation {
        self.problem.accumulation()
    }

    /// D as computed.
    pub fn values(&self) -> &Matrix<f32> {
        &self.d
    }

    /// How far it is from exact.
    pub fn report(&self) -> &PassReport {
        &self.report
    }
}
