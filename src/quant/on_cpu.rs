//! Quantisation on a CPU: by the definition, or in registers with the same bits.

use super::fast::{self, Order};
use super::recipe::Recipe;
use super::trial;
use super::{Element, QuantStats, Quantized, Role, reference};
use crate::element::panel;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};
use crate::parallel::Watch;
use crate::scaled::{Granule, ScaledMatrix, ScaledRef};
use crate::simd::{Cpu, Isa, OpClass, Path};

/// A recipe, and where it is followed.
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

    /// Who quantises a matrix of this shape, in words.
    pub(crate) fn how(&self, shape: (usize, usize), role: Role) -> Result<String> {
        let (_, order) = self.recipe.grouping(role);
        Ok(self
            .isa(shape, order)?
            .map_or_else(|| "reference".to_owned(), |isa| format!("registers of {isa}")))
    }

    pub(crate) fn quantize<T: Element>(&self, x: MatRef<'_, T>, role: Role) -> Result<Quantized> {
        let (granule, order) = self.recipe.grouping(role);
        self.quantize_in(x, granule, order)
    }

    pub(crate) fn in_granules<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        self.quantize_in(x, granule, Order::Same)
    }

    fn quantize_in<T: Element>(&self, x: MatRef<'_, T>, granule: Granule, order: Order) -> Result<Quantized> {
        let Some(isa) = self.isa(x.shape(), order)? else {
            return match order {
                Order::Same => self.by_reference(x, granule),
                Order::Transposed => self.by_reference(x.transposed().view(), granule),
            };
        };
        let (rows, cols) = order.result_of(x.shape());
        let mut matrix = fast::blank(self.recipe, rows, cols, granule);
        let stats = self.in_registers(x, order, isa, &mut matrix)?;
        Ok(Quantized { matrix, stats })
    }

    pub(crate) fn quantize_into<T: Element>(
        &self,
        x: MatRef<'_, T>,
        role: Role,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        let (granule, order) = self.recipe.grouping(role);
        self.check_result(out, granule, order.result_of(x.shape()))?;
        let Some(isa) = self.isa(x.shape(), order)? else {
            let Quantized { matrix, stats } = self.quantize(x, role)?;
            *out = matrix;
            return Ok(stats);
        };
        self.in_registers(x, order, isa, out)
    }

    fn in_registers<T: Element>(
        &self,
        x: MatRef<'_, T>,
        order: Order,
        isa: Isa,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        fast::quantize(panel(x), self.recipe, order, isa, out, &self.cpu.watch)
    }

    fn by_reference<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        let x = x.map(|v| v.to_f32());
        let (matrix, stats) = reference::quantize(x.view(), self.recipe, granule, &self.cpu.watch)?;
        self.cpu.watch.report(stats.elements);
        Ok(Quantized { matrix, stats })
    }

    /// Whether a matrix has the shape, formats and granule of a result.
    fn check_result(&self, out: &ScaledMatrix, granule: Granule, shape: (usize, usize)) -> Result<()> {
        if out.shape() != shape {
            let ((r, c), (rows, cols)) = (out.shape(), shape);
            return Err(Error::Shape(format!("{r}×{c} codes are to hold a result of {rows}×{cols}")));
        }
        let kind = |format: Format, granule: Granule, scales: Format| {
            format!("{format} in {granule} with {scales} scales")
        };
        let wanted = kind(self.recipe.element, granule, fast::scale_format(self.recipe));
        let found = match out.scales() {
            Some(s) => kind(out.format(), s.granule, s.grid.view().format()),
            None => format!("{} without scales", out.format()),
        };
        if found != wanted {
            return Err(Error::Invalid(format!("a matrix of {found} is to hold a result of {wanted}")));
        }
        Ok(())
    }

    pub(crate) fn requantize_transposed(&self, x: ScaledRef<'_>) -> Result<Quantized> {
        let granule = self.recipe.activation;
        match self.isa(x.shape(), Order::Transposed)? {
            None => self.quantize(x.dequantize_reference::<f32>().view(), Role::Transposed),
            Some(isa) if fast::requantizes_by_tiles(self.recipe) => {
                let (rows, cols) = x.shape();
                let mut matrix = fast::blank(self.recipe, cols, rows, granule);
                let stats = fast::requantize_transposed(&x, self.recipe, isa, &mut matrix, &self.cpu.watch)?;
                Ok(Quantized { matrix, stats })
            }
            Some(isa) => {
                let mut values = Matrix::filled(x.shape().0, x.shape().1, 0.0f32);
                let silent = Watch { progress: None, ..self.cpu.watch };
                let cpu = Cpu { path: Path::Registers(Some(isa)), watch: silent };
                x.dequantize_on(values.view_mut(), &cpu)?;
                self.quantize(values.view(), Role::Transposed)
            }
        }
    }
}

impl Recipe {
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
