//! Quantisation on a CPU: by the definition, or in registers with the same bits.

use super::fast::{self, Order};
use super::recipe::Recipe;
use super::source::Source;
use super::swiglu::swiglu_of;
use super::trial;
use super::{QuantStats, Quantized, Role, reference};
use crate::element::{Panel, panel};
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::parallel::Watch;
use crate::scaled::{Granule, ScaledMatrix, ScaledMut, ScaledRef};
use crate::simd::{Cpu, Isa, OpClass, Path};

/// A recipe, and where it is followed. Not generic, so that it is compiled once and not by every caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnCpu<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) cpu: Cpu<'a>,
}

impl OnCpu<'_> {
    /// The instruction set that quantises a matrix of this shape; `None` where it is the reference: for formats that
    /// registers do not encode, and for nothing.
    fn isa(&self, (rows, cols): (usize, usize), order: Order) -> Result<Option<Isa>> {
        let (op, role) = match order {
            Order::Same => (OpClass::Quantize, Role::Activation),
            Order::Transposed => (OpClass::QuantizeTransposed, Role::Transposed),
        };
        let isa = self.cpu.isa(op, &|| trial::quantize(role))?;
        Ok(isa.filter(|_| fast::supports(self.recipe) && rows > 0 && cols > 0))
    }

    /// How something is quantised, in words.
    pub(crate) fn how(&self, source: &Source<'_>) -> Result<String> {
        let (_, order) = self.recipe.grouping(source.role());
        let isa = self.isa(source.shape(), order)?;
        let who = isa.map_or_else(|| "reference".to_owned(), |isa| format!("registers of {isa}"));
        Ok(format!("quantize {source} by {}: {who}", self.recipe.name))
    }

    /// Codes, scales and what happened.
    pub(crate) fn quantize(&self, source: &Source<'_>) -> Result<Quantized> {
        let (granule, order) = self.recipe.grouping(source.role());
        match source {
            Source::Matrix(x, _) => self.in_order(*x, granule, order),
            Source::Swiglu(gate, up) => {
                let y = swiglu_of(*gate, *up, &self.unreported().cpu.watch)?;
                self.in_order(panel(y.view()), granule, order)
            }
            Source::Scaled(x) => self.requantize_transposed(x),
        }
    }

    /// The same in any granule.
    pub(crate) fn in_granules(&self, x: Panel<'_>, granule: Granule) -> Result<Quantized> {
        self.in_order(x, granule, Order::Same)
    }

    fn in_order(&self, x: Panel<'_>, granule: Granule, order: Order) -> Result<Quantized> {
        let Some(isa) = self.isa((x.rows, x.cols), order)? else {
            return self.by_reference(x, granule, order);
        };
        let (rows, cols) = order.result_of((x.rows, x.cols));
        let mut matrix = fast::blank(self.recipe, rows, cols, granule);
        let out = matrix.view_mut().expect("blank has scales");
        let (stats, tensor) = fast::quantize(x, self.recipe, order, isa, out, &self.cpu.watch)?;
        matrix.set_tensor_scale(tensor);
        Ok(Quantized { matrix, stats })
    }

    fn by_reference(&self, x: Panel<'_>, granule: Granule, order: Order) -> Result<Quantized> {
        let x = match order {
            Order::Same => Matrix::from_fn(x.rows, x.cols, |i, j| x.at(i, j)),
            Order::Transposed => Matrix::from_fn(x.cols, x.rows, |j, i| x.at(i, j)),
        };
        let (matrix, stats) = reference::quantize(x.view(), self.recipe, granule, &self.cpu.watch)?;
        self.cpu.watch.report(stats.elements);
        Ok(Quantized { matrix, stats })
    }

    /// The same into the memory of an earlier result.
    pub(crate) fn quantize_into(
        &self,
        x: Panel<'_>,
        role: Role,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        let Some(room) = out.view_mut() else {
            let found = out.format();
            return Err(Error::Invalid(format!("a matrix of {found} without scales is to hold a result")));
        };
        let (stats, tensor) = self.quantize_to(x, role, room)?;
        out.set_tensor_scale(tensor);
        Ok(stats)
    }

    /// The same into memory of the caller's; with the scale of the tensor.
    pub(crate) fn quantize_to(
        &self,
        x: Panel<'_>,
        role: Role,
        out: ScaledMut<'_>,
    ) -> Result<(QuantStats, f32)> {
        let (granule, order) = self.recipe.grouping(role);
        let shape = (x.rows, x.cols);
        out.check(self.recipe.element, order.result_of(shape), granule, fast::scale_format(self.recipe))?;
        match self.isa(shape, order)? {
            Some(isa) => fast::quantize(x, self.recipe, order, isa, out, &self.cpu.watch),
            None => {
                let Quantized { matrix, stats } = self.in_order(x, granule, order)?;
                out.copy_from(matrix.view())?;
                Ok((stats, matrix.view().tensor_scale()))
            }
        }
    }

    fn requantize_transposed(&self, x: &ScaledRef<'_>) -> Result<Quantized> {
        x.fetch()?;
        let ((rows, cols), granule) = (x.shape(), self.recipe.activation);
        let isa = self.isa((rows, cols), Order::Transposed)?;
        let Some(isa) = isa.filter(|_| fast::requantizes_by_tiles(self.recipe)) else {
            let mut values = Matrix::filled(rows, cols, 0.0f32);
            let path = isa.map_or(Path::Reference, |isa| Path::Registers(Some(isa)));
            x.dequantize_on(values.view_mut(), &Cpu { path, ..self.unreported().cpu })?;
            return self.in_order(panel(values.view()), granule, Order::Transposed);
        };
        let mut matrix = fast::blank(self.recipe, cols, rows, granule);
        let out = matrix.view_mut().expect("blank has scales");
        let stats = fast::requantize_transposed(x, self.recipe, isa, out, &self.cpu.watch)?;
        Ok(Quantized { matrix, stats })
    }

    /// For a first of two passes: the second tells of the elements.
    fn unreported(&self) -> Self {
        let watch = Watch { progress: None, ..self.cpu.watch };
        OnCpu { cpu: Cpu { watch, ..self.cpu }, ..*self }
    }
}

impl Recipe {
    /// Shape and granule of the result for a matrix of `shape`, (rows, columns), in a role.
    ///
    /// ```
    /// use finegrain::quant::{Recipe, Role};
    /// use finegrain::scaled::Granule;
    /// let result = Recipe::DEEPSEEK_V3.result_of(Role::Transposed, (4, 300));
    /// assert_eq!(result, ((300, 4), Granule::TILE_1X128));
    /// ```
    pub fn result_of(&self, role: Role, shape: (usize, usize)) -> ((usize, usize), Granule) {
        let (granule, order) = self.grouping(role);
        (order.result_of(shape), granule)
    }

    /// How a matrix is grouped in a role: the granules of the result, and how it lies.
    fn grouping(&self, role: Role) -> (Granule, Order) {
        match role {
            Role::Activation => (self.activation, Order::Same),
            Role::Weight => (self.weight, Order::Same),
            Role::Transposed => (self.activation, Order::Transposed),
        }
    }
}

impl Order {
    /// The shape of the result.
    fn result_of(self, (rows, cols): (usize, usize)) -> (usize, usize) {
        match self {
            Order::Same => (rows, cols),
            Order::Transposed => (cols, rows),
        }
    }
}
