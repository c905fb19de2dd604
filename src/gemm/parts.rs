//! Products in parts, by a backend that knows none: what follows the sums of an element's chains (contract, clause 9).
//!
//! Each part of K is a product of its own, without scales where those come after the sum. Its result in f32 is added to
//! that of the parts before; then one pass over D applies scales, addend and rounding. The bits are those of the contract
//! whatever computes the parts. Beside D that takes the sum in f32, and one part more where there are several.

use std::fmt;

use finegrain_cpu::Buffer;
use finegrain_cpu::gemm::{Epilogue, RowsMut, SumScales, epilogue};

use super::backend::{GemmBackend, GemmPlan, Output, rounded_to_f16};
use super::problem::GemmProblem;
use super::reference::NAN;
use crate::error::{Error, Result};
use crate::matrix::MatMut;
use crate::parallel::{self, Watch};
use crate::scaled::ScaledRef;
use crate::simd::Isa;

/// Elements of the longest register: sums and scales of columns have room for whole ones.
const LINE: usize = 16;
/// Rows of D that one task finishes.
const ROWS: usize = 32;

/// How a backend computes a problem in parts.
///
/// # Errors
/// Those of the backend for a part; [`Error::Unsupported`] if a part begins inside a granule of scales and goes beyond.
pub(super) fn plan<'p>(
    backend: &'p dyn GemmBackend,
    problem: &'p GemmProblem<'p>,
) -> Result<Box<dyn GemmPlan + 'p>> {
    let part = |k: std::ops::Range<usize>| {
        let start = k.start;
        problem.part(k).ok_or_else(|| {
            let name = backend.name();
            Error::Unsupported(format!(
                "backend {name}: the part of K that begins at {start} begins inside a granule of scales"
            ))
        })
    };
    let parts = problem.k_parts().into_iter().map(part).collect::<Result<Vec<_>>>()?;
    let mut how = Vec::new();
    for part in &parts {
        let plan = backend.plan(part)?;
        how.push((plan.isa().unwrap_or(Isa::Scalar), plan.to_string()));
    }
    Ok(Box::new(InParts { problem, backend, parts, how }))
}

/// The parts, and on which instruction set and how each is computed.
struct InParts<'p> {
    problem: &'p GemmProblem<'p>,
    backend: &'p dyn GemmBackend,
    parts: Vec<GemmProblem<'p>>,
    how: Vec<(Isa, String)>,
}

impl fmt::Display for InParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K in {} parts, then their sum: {}", self.parts.len(), self.how[0].1)
    }
}

/// Sums in f32, rows apart by whole registers.
struct Sums {
    values: Buffer,
    cols: usize,
    stride: usize,
}

impl Sums {
    fn new(rows: usize, cols: usize) -> Sums {
        let stride = cols.next_multiple_of(LINE);
        Sums { values: Buffer::zeros(rows * stride), cols, stride }
    }

    fn view_mut(&mut self, rows: usize) -> Result<MatMut<'_, f32>> {
        let values = &mut self.values.as_mut_slice()[..rows * self.stride];
        Ok(MatMut::new(values, rows, self.stride)?.col_range(0, self.cols))
    }

    /// Adds the elements of another.
    fn add(&mut self, other: &Sums, watch: &Watch<'_>) -> Result<()> {
        let length = (ROWS * self.stride).max(1);
        let chunks = self.values.as_mut_slice::<f32>().chunks_mut(length).collect();
        parallel::for_each_part(watch, chunks, &|i, chunk: &mut [f32]| {
            let other = &other.values.as_slice::<f32>()[i * length..];
            chunk.iter_mut().zip(other).for_each(|(sum, part)| *sum += part);
        })
    }
}

impl InParts<'_> {
    /// The sum of the parts.
    fn sums(&self, watch: &Watch<'_>) -> Result<Sums> {
        let (m, n) = self.problem.output_shape();
        let compute = |part: &GemmProblem<'_>, sums: &mut Sums| {
            self.backend.plan(part)?.run(Output::F32(sums.view_mut(m)?), watch)
        };
        let mut sums = Sums::new(m, n);
        compute(&self.parts[0], &mut sums)?;
        if self.parts.len() > 1 {
            let mut next = Sums::new(m, n);
            for part in &self.parts[1..] {
                compute(part, &mut next)?;
                sums.add(&next, watch)?;
            }
        }
        Ok(sums)
    }

    /// The scales of an operand, which are constant over K, with room for a whole register at the end.
    fn scales(&self, x: &ScaledRef<'_>) -> Vec<f32> {
        let rows = x.shape().0;
        let mut scales = vec![1.0; rows.next_multiple_of(LINE)];
        if !self.problem.scales_in_model() {
            x.scales_at(0..rows, 0, &mut scales);
        }
        scales
    }

    /// D of the sums.
    fn finish<T: Send>(
        &self,
        sums: &Sums,
        rows: Vec<&mut [T]>,
        watch: &Watch<'_>,
        rows_mut: for<'a, 'd> fn(&'a mut [&'d mut [T]]) -> RowsMut<'a, 'd>,
    ) -> Result<()> {
        let problem = self.problem;
        let scales = problem
            .sum_scaling()
            .map(|scaling| (scaling.into(), self.scales(problem.a()), self.scales(problem.b())));
        let mut rows = rows.into_iter();
        let tasks: Vec<Vec<&mut [T]>> = std::iter::from_fn(|| {
            let task: Vec<&mut [T]> = rows.by_ref().take(ROWS).collect();
            (!task.is_empty()).then_some(task)
        })
        .collect();
        parallel::for_each_part(watch, tasks, &|i, mut task: Vec<&mut [T]>| {
            let first = i * ROWS;
            let addend = problem.addend().map(|c| c.row_range(first, first + task.len()));
            let x = Epilogue {
                acc: &sums.values.as_slice()[first * sums.stride..],
                stride: sums.stride,
                scales: scales.as_ref().map(|(scaling, rows, cols)| SumScales {
                    scaling: *scaling,
                    rows: &rows[first..],
                    cols,
                }),
                tensor_scale: problem.tensor_scale(),
                addend: addend.as_ref().map(|c| (c.strided(), c.stride())),
                nan: NAN,
            };
            epilogue(self.how[0].0, &x, rows_mut(&mut task), 0, sums.cols);
        })
    }
}

impl GemmPlan for InParts<'_> {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }

    fn isa(&self) -> Option<Isa> {
        Some(self.how[0].0)
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        match out {
            Output::F32(d) => {
                self.finish(&self.sums(watch)?, d.into_rows(), watch, |rows| RowsMut::F32(rows))
            }
            Output::Bf16(d) => {
                self.finish(&self.sums(watch)?, d.into_rows(), watch, |rows| RowsMut::Bf16(rows))
            }
            Output::F16(d) => rounded_to_f16(d, |wide| self.run(wide, watch)),
        }
    }
}
