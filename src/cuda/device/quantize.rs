//! Quantisers, dequantisers and what is fused with them.

use half::bf16;

use super::{Cuda, Float, kernel, size, values};
use crate::cuda::Launch;
use crate::cuda::args::{RecipeArgs, ScaleGridArgs, ScaleKind};
use crate::cuda::driver::{Arg, Driver};
use crate::cuda::kernels::Desc;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};
use crate::quant::{Quantizer, Recipe, Role, swiglu};
use crate::scaled::layout::{ScaleLayout, to_e8m0};
use crate::scaled::{Codes, CodesRef, Granule, ScaleGrid, ScaleGridRef, ScaledMatrix, ScaledRef, Scales};

/// A launch of a quantise kernel: what all of them take after their inputs, and what they leave.
struct Quantization<'r> {
    kernel: String,
    recipe: &'r Recipe,
    granule: Granule,
    /// Of the input.
    shape: (usize, usize),
    /// Whether codes and scales are those of the transpose.
    transposed: bool,
    scales: ScaleKind,
}

impl<D: Driver> Cuda<D> {
    /// Quantises on the device, with f32 scales: the codes and scales of [`Quantizer`], NaN canonical. Statistics are not
    /// taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for recipes and granules that have no kernel, and with the driver's word.
    pub fn quantize<T: Float>(&self, x: MatRef<'_, T>, recipe: &Recipe, role: Role) -> Result<ScaledMatrix> {
        self.quantize_with(x, recipe, role, ScaleKind::F32)
    }

    /// The same with scales of one byte, which the device writes in DeepGEMM's packed form
    /// ([`ScaleLayout::PackedUe8m0`]).
    ///
    /// # Errors
    /// As [`Cuda::quantize`]; also [`Error::Unsupported`] if the recipe's scales are no powers of two.
    pub fn quantize_ue8m0<T: Float>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        role: Role,
    ) -> Result<ScaledMatrix> {
        self.quantize_with(x, recipe, role, ScaleKind::PackedE8m0)
    }

    fn quantize_with<T: Float>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        role: Role,
        scales: ScaleKind,
    ) -> Result<ScaledMatrix> {
        let (geometry, granule) = match role {
            Role::Activation => ("1x128", recipe.activation),
            Role::Weight => ("128x128", recipe.weight),
            Role::Transposed => ("128x1", recipe.activation),
        };
        let job = Quantization {
            kernel: format!("quantize_{geometry}_{}", T::NAME),
            recipe,
            granule,
            shape: x.shape(),
            transposed: role == Role::Transposed,
            scales,
        };
        let inputs = || {
            let memory = self.upload(x)?;
            let args = vec![self.address(&memory), Arg::I64(x.cols() as i64)];
            Ok((vec![memory], args))
        };
        self.quantized(&job, inputs, || Ok(Quantizer::new(*recipe).quantize(x, role)?.matrix))
    }

    /// SwiGLU and quantisation in one pass, in 1×128 tiles: the codes and scales of
    /// [`swiglu`](crate::quant::swiglu()) followed by [`Quantizer::activation`].
    ///
    /// # Errors
    /// [`Error::Shape`] if gate and up differ in shape; as [`Cuda::quantize`].
    pub fn swiglu_quantize<T: Float>(
        &self,
        gate: MatRef<'_, T>,
        up: MatRef<'_, T>,
        recipe: &Recipe,
    ) -> Result<ScaledMatrix> {
        if gate.shape() != up.shape() {
            let ((rows, cols), (r, c)) = (gate.shape(), up.shape());
            return Err(Error::Shape(format!("gate is {rows}x{cols}, up is {r}x{c}: they must agree")));
        }
        let job = Quantization {
            kernel: format!("swiglu_quantize_1x128_{}", T::NAME),
            recipe,
            granule: recipe.activation,
            shape: gate.shape(),
            transposed: false,
            scales: ScaleKind::F32,
        };
        let ld = Arg::I64(gate.cols() as i64);
        let inputs = || {
            let (gate, up) = (self.upload(gate)?, self.upload(up)?);
            let args = vec![self.address(&gate), ld, self.address(&up), ld];
            Ok((vec![gate, up], args))
        };
        self.quantized(&job, inputs, || {
            Ok(Quantizer::new(*recipe).activation(swiglu(gate, up)?.view())?.matrix)
        })
    }

    /// The transpose of E4M3 in 1×128 tiles, grouped anew: [`Quantizer::requantize_transposed`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for operands that the kernel does not read; as [`Cuda::quantize`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>, recipe: &Recipe) -> Result<ScaledMatrix> {
        let (codes, granule) = readable(&x)?;
        if granule != Granule::TILE_1X128 {
            return Err(Error::Unsupported(format!(
                "requantize_transpose_e4m3 reads tiles of 1x128, not {granule}"
            )));
        }
        let job = Quantization {
            kernel: "requantize_transpose_e4m3".to_owned(),
            recipe,
            granule: recipe.activation,
            shape: x.shape(),
            transposed: true,
            scales: ScaleKind::F32,
        };
        let inputs = || {
            let ((scales, grid), codes) = (self.scales(&x)?, self.upload(codes)?);
            let args = vec![self.address(&codes), Arg::I64(x.shape().1 as i64), Arg::Scales(grid)];
            Ok((vec![codes, scales], args))
        };
        self.quantized(&job, inputs, || Ok(Quantizer::new(*recipe).requantize_transposed(x)?.matrix))
    }

    /// Runs a quantise kernel. `inputs` gives the memory that its first arguments name, and these; `empty` is what an
    /// empty input gives, for which there is nothing to launch.
    fn quantized(
        &self,
        job: &Quantization<'_>,
        inputs: impl FnOnce() -> Result<(Vec<D::Memory>, Vec<Arg>)>,
        empty: impl FnOnce() -> Result<ScaledMatrix>,
    ) -> Result<ScaledMatrix> {
        let Quantization { kernel: name, recipe, granule, shape: (rows, cols), transposed, scales } = job;
        let recipe_args = RecipeArgs::try_from(*recipe)?;
        let expected = if name.contains("128x128") { Granule::BLOCK_128X128 } else { Granule::TILE_1X128 };
        if *granule != expected {
            let name = recipe.name;
            let message =
                format!("recipe {name} has granules of {granule}, the kernel {} of {expected}", job.kernel);
            return Err(Error::Unsupported(message));
        }
        let (out_rows, out_cols) = if *transposed { (*cols, *rows) } else { (*rows, *cols) };
        let (grid_rows, grid_cols) = granule.grid(out_rows, out_cols);
        let layout = match scales {
            ScaleKind::PackedE8m0 => ScaleLayout::PackedUe8m0,
            ScaleKind::F32 | ScaleKind::E8m0 => ScaleLayout::RowMajor,
        };
        let stored = layout.stored_len(grid_rows, grid_cols);
        // Refused before anything is launched, also where nothing would be.
        let strides = match scales {
            ScaleKind::PackedE8m0 => (4, 4 * grid_rows.next_multiple_of(4) as i64),
            ScaleKind::F32 | ScaleKind::E8m0 => (grid_cols as i64, 1),
        };
        let mut grid = ScaleGridArgs::new(0, strides, *scales, Some(recipe))?;
        if rows * cols == 0 {
            let matrix = empty()?;
            return if *scales == ScaleKind::F32 { Ok(matrix) } else { with_bytes(matrix) };
        }
        let (_memory, mut args) = inputs()?;
        let codes = self.driver.allocate(out_rows * out_cols)?;
        // The padding between scales is 0.
        let scale_memory = match scales {
            ScaleKind::F32 => self.driver.allocate(4 * stored)?,
            ScaleKind::E8m0 | ScaleKind::PackedE8m0 => self.driver.upload(&vec![0; stored])?,
        };
        grid.data = self.driver.address(&scale_memory);
        args.extend([Arg::I32(size(*rows)?), Arg::I32(size(*cols)?)]);
        args.extend([
            self.address(&codes),
            Arg::I64(out_cols as i64),
            Arg::Scales(grid),
            Arg::Recipe(recipe_args),
        ]);
        self.run(&Launch::new(kernel(name), Desc::matrix(*rows, *cols), args)?)?;
        let codes = Codes::Bytes(self.download(&codes, out_rows, out_cols)?);
        let bytes = self.driver.download(&scale_memory)?;
        let grid = match scales {
            ScaleKind::F32 => ScaleGrid::F32(layout.load(&values::<f32>(&bytes), grid_rows, grid_cols)?),
            ScaleKind::E8m0 | ScaleKind::PackedE8m0 => {
                ScaleGrid::E8M0(layout.load(&bytes, grid_rows, grid_cols)?)
            }
        };
        ScaledMatrix::new(recipe.element, codes, Some(Scales { granule: *granule, grid, tensor: 1.0 }))
    }

    /// The values in f32: [`ScaledRef::dequantize`], NaN canonical.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for operands that the kernel does not read, and with the driver's word.
    pub fn dequantize(&self, x: ScaledRef<'_>) -> Result<Matrix<f32>> {
        self.values(x)
    }

    /// The values rounded to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`Cuda::dequantize`].
    pub fn dequantize_bf16(&self, x: ScaledRef<'_>) -> Result<Matrix<bf16>> {
        self.values(x)
    }

    fn values<T: Float>(&self, x: ScaledRef<'_>) -> Result<Matrix<T>> {
        let (codes, granule) = readable(&x)?;
        let (rows, cols) = x.shape();
        let out = self.driver.allocate(rows * cols * size_of::<T>())?;
        if rows * cols != 0 {
            let (input, (_scales, grid)) = (self.upload(codes)?, self.scales(&x)?);
            let args = vec![
                self.address(&input),
                Arg::I64(cols as i64),
                Arg::Scales(grid),
                Arg::I32(size(granule.rows())?),
                Arg::I32(size(rows)?),
                Arg::I32(size(cols)?),
                self.address(&out),
                Arg::I64(cols as i64),
            ];
            let name = format!("dequantize_e4m3_{}", T::NAME);
            self.run(&Launch::new(kernel(&name), Desc::matrix(rows, cols), args)?)?;
        }
        self.download(&out, rows, cols)
    }

    /// The scales of an operand that [`readable`] accepts, row-major as they are.
    fn scales(&self, x: &ScaledRef<'_>) -> Result<(D::Memory, ScaleGridArgs)> {
        let grid = x.scales().expect("readable asks for scales").grid;
        let (memory, kind) = match grid {
            ScaleGridRef::F32(grid) => (self.upload(grid)?, ScaleKind::F32),
            ScaleGridRef::E8M0(grid) => (self.upload(grid)?, ScaleKind::E8m0),
            ScaleGridRef::E4M3(_) => unreachable!("readable refuses them"),
        };
        let args = ScaleGridArgs::new(self.driver.address(&memory), (grid.shape().1 as i64, 1), kind, None)?;
        Ok((memory, args))
    }
}

/// The codes and the granule of what the kernels dequantise: E4M3 in 1×128 or 128×128, one level of scales.
fn readable<'a>(x: &ScaledRef<'a>) -> Result<(MatRef<'a, u8>, Granule)> {
    const READ: &str = "the CUDA kernels dequantise e4m3 with scales of f32 or e8m0 in 1x128 or 128x128";
    let refuse = |what: String| Err(Error::Unsupported(format!("{READ}, not {what}")));
    let (Format::E4M3, CodesRef::Bytes(codes)) = (x.format(), x.codes()) else {
        return refuse(x.format().to_string());
    };
    let Some(scales) = x.scales() else { return refuse("without scales".to_owned()) };
    if !matches!(scales.granule, Granule::TILE_1X128 | Granule::BLOCK_128X128) {
        return refuse(format!("in {}", scales.granule));
    }
    if matches!(scales.grid, ScaleGridRef::E4M3(_)) {
        return refuse(format!("with scales of {}", scales.grid.format()));
    }
    if scales.tensor != 1.0 {
        return refuse(format!("with a second scale of {}", scales.tensor));
    }
    if x.row_offset() != 0 {
        return refuse(format!("from row {} of a block", x.row_offset()));
    }
    Ok((codes, scales.granule))
}

/// The same matrix with its f32 scales as bytes.
fn with_bytes(x: ScaledMatrix) -> Result<ScaledMatrix> {
    let (format, codes, scales) = x.into_parts();
    let scales = scales.map(|s| {
        let grid = ScaleGrid::E8M0(to_e8m0(s.grid.view().to_f32().view())?);
        Ok::<_, Error>(Scales { grid, ..s })
    });
    ScaledMatrix::new(format, codes, scales.transpose()?)
}
