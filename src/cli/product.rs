//! A product as a file holds it, dense or grouped, in an arithmetic that is yet to be named.

use clap::ValueEnum;

use crate::checkpoint::{Checkpoint, ScaledTensor};
use crate::cli::operand::require_room;
use crate::engine::Product;
use crate::gemm::{Accumulation, Arithmetic, GemmProblem, GroupedProblem};
use crate::matrix::Matrix;
use crate::scaled::{Granule, ScaledRef};

/// How `groups` is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grouped {
    /// 'groups' names the group of each row of a
    Contiguous,
    /// 'groups' counts the valid rows of each group
    Masked,
    /// 'groups' holds K of each group
    K,
}

/// Either kind of problem; a grouped one with the shape of d as it is stored.
pub(crate) enum Problem<'a> {
    Dense(Box<GemmProblem<'a>>),
    Grouped(Box<GroupedProblem<'a>>, Vec<usize>),
}

impl<'a> Problem<'a> {
    /// The product of a and b, with what `groups` and `form` say of them.
    pub(crate) fn new(
        (a, b): (&'a ScaledTensor, &'a ScaledTensor),
        groups: Option<&[i32]>,
        form: Option<Grouped>,
    ) -> crate::Result<Self> {
        let Some(groups) = groups else {
            let dense = GemmProblem::nt(a.whole()?, b.whole()?)?;
            require_room(dense.m(), dense.n())?;
            return Ok(Problem::Dense(Box::new(dense)));
        };
        let (grouped, count) = match form.unwrap_or(Grouped::Contiguous) {
            Grouped::Contiguous => (GroupedProblem::contiguous(a.whole()?, groups, &b.groups()?)?, None),
            Grouped::Masked => {
                (GroupedProblem::masked(&a.groups()?, &sizes(groups)?, &b.groups()?)?, Some(groups.len()))
            }
            Grouped::K => {
                let sizes = sizes(groups)?;
                (GroupedProblem::k_grouped(&a.k_groups(&sizes)?, &b.k_groups(&sizes)?)?, Some(groups.len()))
            }
        };
        let (rows, n) = grouped.output_shape();
        require_room(rows, n)?;
        let shape = count.map_or(vec![rows, n], |g| vec![g, rows / g, n]);
        Ok(Problem::Grouped(Box::new(grouped), shape))
    }

    /// The accumulation that an arithmetic is for it.
    pub(crate) fn fitted(&self, arithmetic: &Arithmetic) -> crate::Result<Accumulation> {
        match self {
            Problem::Dense(p) => p.fitted(arithmetic),
            Problem::Grouped(p, _) => p.fitted(arithmetic),
        }
    }

    /// The same in an arithmetic.
    pub(crate) fn with_accumulation(self, accumulation: Accumulation) -> crate::Result<Self> {
        Ok(match self {
            Problem::Dense(p) => Problem::Dense(Box::new(p.with_accumulation(accumulation)?)),
            Problem::Grouped(p, shape) => {
                Problem::Grouped(Box::new((*p).with_accumulation(accumulation)?), shape)
            }
        })
    }

    /// The same with c, if there is one.
    pub(crate) fn with_addend(self, c: Option<&'a Matrix<f32>>) -> crate::Result<Self> {
        let Some(c) = c else { return Ok(self) };
        Ok(match self {
            Problem::Dense(p) => Problem::Dense(Box::new(p.with_addend(c.view())?)),
            Problem::Grouped(p, shape) => Problem::Grouped(Box::new((*p).with_addend(c.view())?), shape),
        })
    }

    /// What an engine computes.
    pub(crate) fn product(&self) -> Product<'_> {
        match self {
            Problem::Dense(p) => Product::from(&**p),
            Problem::Grouped(p, _) => Product::from(&**p),
        }
    }

    /// The arithmetic.
    pub(crate) fn accumulation(&self) -> Accumulation {
        match self {
            Problem::Dense(p) => p.accumulation(),
            Problem::Grouped(p, _) => p.accumulation(),
        }
    }

    /// The shape of d as it is stored.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match self {
            Problem::Dense(p) => vec![p.m(), p.n()],
            Problem::Grouped(_, shape) => shape.clone(),
        }
    }

    /// The granules of the operands as they are multiplied: groups along K have their own.
    pub(crate) fn granules(&self) -> (Option<Granule>, Option<Granule>) {
        let of = |p: &GemmProblem<'_>| {
            let granule = |operand: &ScaledRef<'_>| operand.scales().map(|s| s.granule);
            (granule(p.a()), granule(p.b()))
        };
        match self {
            Problem::Dense(p) => of(p),
            Problem::Grouped(p, _) => p.parts().first().map_or((None, None), |part| of(part.problem())),
        }
    }
}

/// The tensor `groups`, which a grouped problem must have.
pub(crate) fn read_groups(file: &Checkpoint, grouped: Option<Grouped>) -> crate::Result<Option<Vec<i32>>> {
    if grouped.is_none() && !file.contains("groups") {
        return Ok(None);
    }
    file.read("groups")?.to_i32().map(Some).map_err(|e| file.blame("groups", e))
}

/// Sizes of groups: I32 in the file, none negative.
pub(crate) fn sizes(groups: &[i32]) -> crate::Result<Vec<usize>> {
    let size = |(i, &g): (usize, &i32)| {
        usize::try_from(g).map_err(|_| crate::Error::Invalid(format!("groups[{i}] is {g}, expected a size")))
    };
    groups.iter().enumerate().map(size).collect()
}
