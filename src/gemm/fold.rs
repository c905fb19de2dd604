//! Folded scales: powers of two, and other scales of few bits, multiplied into the operands (contract, clause 10).
//!
//! The operands become BF16 matrices without first-level scales, exactly, and the product is that of those. They take two
//! bytes an element while it is computed.

use std::fmt;

use half::bf16;

use super::backend::{GemmBackend, GemmPlan, Output};
use super::problem::GemmProblem;
use crate::error::{Error, Result};
use crate::formats::{Format, FormatSpec};
use crate::matrix::Matrix;
use crate::parallel::{self, Watch};
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};
use crate::simd::Isa;

const BF16: &FormatSpec = Format::Bf16.spec();
const F32: &FormatSpec = Format::F32.spec();

/// Rows that one task looks at.
const ROWS: usize = 16;

/// Both operands with their scales folded in.
#[derive(Clone, Debug)]
pub(crate) struct Folded {
    a: ScaledMatrix,
    b: ScaledMatrix,
}

impl Folded {
    /// Of a problem that folds its scales.
    pub(crate) fn of(problem: &GemmProblem<'_>) -> Folded {
        Folded { a: fold(problem.a()), b: fold(problem.b()) }
    }

    /// The same problem over the folded operands.
    pub(crate) fn problem<'f>(&'f self, problem: &GemmProblem<'f>) -> GemmProblem<'f> {
        let accumulation = problem.accumulation().with_fold(Fold::Nothing);
        let folded =
            GemmProblem::nt(self.a.view(), self.b.view()).and_then(|p| p.with_accumulation(accumulation));
        let folded = folded.and_then(|folded| problem.addend().map_or(Ok(folded), |c| folded.with_addend(c)));
        folded.expect("a problem that exists is legal, and so is that over its operands in BF16")
    }
}

/// Whether scales are multiplied into the operands before anything is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fold {
    /// No.
    #[default]
    Nothing,
    /// Those of the first level: operands are code × scale in BF16, where all of that is exact.
    Scales,
}

/// Whether every element times its scale is a BF16 number.
///
/// # Errors
/// [`Error::Unsupported`] with the first that is none.
pub(super) fn check(name: &str, x: &ScaledRef<'_>) -> Result<()> {
    let ((rows, cols), spec) = (x.shape(), x.format().spec());
    let granule = x.scales().map_or(Granule::TENSOR, |s| s.granule);
    let first_of = |i: usize| -> Option<(usize, usize, f32)> {
        let mut values = vec![0.0; cols];
        for row in Granule::span(rows, ROWS, i) {
            let mut decoded = false;
            for g in 0..granule.grid(rows, cols).1 {
                let columns = Granule::span(cols, granule.cols(), g);
                let scale = x.scale_at(row, columns.start);
                if all_fit(spec, scale) {
                    continue;
                }
                if !decoded {
                    x.decode_row(row, &mut values);
                    decoded = true;
                }
                if let Some(j) = columns.into_iter().find(|&j| product(values[j], scale).is_none()) {
                    return Some((row, j, values[j]));
                }
            }
        }
        None
    };
    if cols == 0 {
        return Ok(());
    }
    let found = parallel::map(&Watch::NONE, rows.div_ceil(ROWS), &first_of)?;
    match found.into_iter().flatten().next() {
        None => Ok(()),
        Some((i, j, value)) => Err(Error::Unsupported(format!(
            "the scales of {name} cannot be folded: element ({i}, {j}), {value} times {}, is no number of BF16",
            x.scale_at(i, j)
        ))),
    }
}

/// Whether all finite codes of a format times this scale are BF16 numbers: the significant bits and the range fit.
fn all_fit(spec: &FormatSpec, scale: f32) -> bool {
    if scale == 0.0 {
        return true;
    }
    let bits = scale.abs().to_bits();
    let field = (bits >> 23) as i32;
    if field == 0 || field == 0xFF {
        return false;
    }
    let (exponent, fraction) = (field - F32.bias, bits & 0x007F_FFFF);
    // Significant bits of the scale beyond the first, and of the products: none more where the scale is a power of two.
    let more = F32.mantissa_bits - fraction.trailing_zeros().min(F32.mantissa_bits);
    let significant = spec.mantissa_bits + 1 + if more == 0 { 0 } else { more + 1 };
    significant <= BF16.mantissa_bits + 1
        && spec.quantum_floor() + exponent - more as i32 >= BF16.quantum_floor()
        && spec.emax() + exponent + i32::from(more > 0) <= BF16.emax()
}

/// An element times its scale, if it is a BF16 number or NaN. Both have at most 24 significant bits.
fn product(value: f32, scale: f32) -> Option<bf16> {
    let exact = f64::from(value) * f64::from(scale);
    let rounded = bf16::from_f64(exact);
    (rounded.to_f64() == exact || exact.is_nan()).then_some(rounded)
}

fn fold(x: &ScaledRef<'_>) -> ScaledMatrix {
    let (rows, cols) = x.shape();
    let mut codes = Matrix::filled(rows, cols, 0u16);
    let lines = codes.view_mut().into_rows();
    let line = |i: usize, line: &mut [u16]| {
        let mut values = vec![0.0; cols];
        x.decode_row(i, &mut values);
        for (j, (code, value)) in line.iter_mut().zip(values).enumerate() {
            let folded = product(value, x.scale_at(i, j)).expect("a problem that exists is legal");
            *code = folded.to_bits();
        }
    };
    parallel::for_each_part(&Watch::NONE, lines, &line).expect("nobody cancels");
    let scales = (x.tensor_scale() != 1.0).then(|| Scales {
        granule: Granule::TENSOR,
        grid: ScaleGrid::F32(Matrix::filled(1, 1, 1.0)),
        tensor: x.tensor_scale(),
    });
    ScaledMatrix::new(Format::Bf16, Codes::Words(codes), scales).expect("codes of 16 bits with one scale")
}

/// How a backend computes a problem with folded scales: over the operands in BF16.
///
/// # Errors
/// Those of the backend for BF16.
pub(super) fn plan<'p>(
    backend: &'p dyn GemmBackend,
    problem: &'p GemmProblem<'p>,
) -> Result<Box<dyn GemmPlan + 'p>> {
    let folded = Folded::of(problem);
    let inner = folded.problem(problem);
    let plan = backend.plan(&inner)?;
    let (isa, how) = (plan.isa(), plan.to_string());
    drop(plan);
    Ok(Box::new(OverFolded { problem, backend, folded, isa, how }))
}

/// The operands, and on which instruction set and how their product is computed.
struct OverFolded<'p> {
    problem: &'p GemmProblem<'p>,
    backend: &'p dyn GemmBackend,
    folded: Folded,
    isa: Option<Isa>,
    how: String,
}

impl fmt::Display for OverFolded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scales folded into operands in BF16, then {}", self.how)
    }
}

impl GemmPlan for OverFolded<'_> {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }

    fn isa(&self) -> Option<Isa> {
        self.isa
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let problem = self.folded.problem(self.problem);
        self.backend.plan(&problem)?.run(out, watch)
    }
}
