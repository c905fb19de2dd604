//! Quantisers and what is fused with them.

use std::sync::Arc;

use half::bf16;

use super::operand::{BLOCK_ROWS, Codes2d, OnDevice, Scales2d, grid_layout, pitch};
use super::{Cuda, Float, kernel, size, values};
use crate::cuda::Launch;
use crate::cuda::args::{RecipeArgs, ScaleGridArgs, ScaleKind};
use crate::cuda::driver::{Arg, Driver};
use crate::cuda::kernels::{Desc, Kernel};
use crate::element::{ElementType, Panel};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatRef;
use crate::plan::Plan;
use crate::quant::{OnCpu, QuantStats, Quantized, Recipe, Role, Source};
use crate::scaled::layout::{ScaleLayout, to_e8m0};
use crate::scaled::{CodesRef, Granule, Resident, ScaleGrid, ScaleGridRef, ScaledMatrix, ScaledRef, Scales};
use crate::simd::Cpu;

/// A launch of a quantise kernel that is not refused.
struct Quantization<'a> {
    kernel: &'static Kernel,
    source: Source<'a>,
    recipe: &'a Recipe,
    recipe_args: RecipeArgs,
    granule: Granule,
    scales: ScaleKind,
}

impl<'a> Quantization<'a> {
    fn new(source: Source<'a>, recipe: &'a Recipe, scales: ScaleKind) -> Result<Self> {
        let (name, granule) = match source {
            Source::Matrix(x, Role::Activation) => {
                (format!("quantize_1x128_{}", name(&x)?), recipe.activation)
            }
            Source::Matrix(x, Role::Weight) => (format!("quantize_128x128_{}", name(&x)?), recipe.weight),
            Source::Matrix(x, Role::Transposed) => {
                (format!("quantize_128x1_{}", name(&x)?), recipe.activation)
            }
            Source::Swiglu(gate, _) => (format!("swiglu_quantize_1x128_{}", name(&gate)?), recipe.activation),
            Source::Scaled(x) => {
                let granule = readable(&x)?;
                if granule != Granule::TILE_1X128 {
                    return Err(Error::Unsupported(format!(
                        "requantize_transpose_e4m3 reads tiles of 1x128, not {granule}"
                    )));
                }
                ("requantize_transpose_e4m3".to_owned(), recipe.activation)
            }
        };
        let recipe_args = RecipeArgs::try_from(recipe)?;
        let expected = if name.contains("128x128") { Granule::BLOCK_128X128 } else { Granule::TILE_1X128 };
        if granule != expected {
            let recipe = recipe.name;
            let message =
                format!("recipe {recipe} has granules of {granule}, the kernel {name} of {expected}");
            return Err(Error::Unsupported(message));
        }
        ScaleGridArgs::new(0, (0, 0), scales, Some(recipe))?;
        Ok(Quantization { kernel: kernel(&name), source, recipe, recipe_args, granule, scales })
    }

    /// Of codes and of scales.
    fn result_shapes(&self) -> ((usize, usize), (usize, usize)) {
        let (rows, cols) = self.source.shape();
        let transposed = self.source.role() == Role::Transposed;
        let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
        ((rows, cols), self.granule.grid(rows, cols))
    }

    /// How many rows of the result share a scale.
    fn granule_rows(&self) -> usize {
        if self.granule == Granule::BLOCK_128X128 { BLOCK_ROWS } else { 1 }
    }
}

/// What the names of kernels that read a matrix end in.
fn name(x: &Panel<'_>) -> Result<&'static str> {
    match x.data.kind() {
        ElementType::F32 => Ok(f32::NAME),
        ElementType::Bf16 => Ok(bf16::NAME),
        ElementType::F16 => Err(Error::Unsupported("the CUDA kernels quantise f32 and bf16, not f16".into())),
    }
}

/// Memory that a launch reads, and the arguments that name it.
type Inputs<M> = (Vec<Arc<M>>, Vec<Arg>);

/// What a kernel has counted, in the order of `kernels/common/stats.cuh`.
const COUNTERS: usize = 8;

impl<D: Driver> Cuda<D> {
    /// Quantises on the device, with f32 scales: the codes, scales and statistics of [`Quantizer`](crate::quant::Quantizer), NaN canonical.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for recipes and granules that have no kernel, and with the driver's word.
    pub fn quantize<T: Float>(&self, x: MatRef<'_, T>, recipe: &Recipe, role: Role) -> Result<Quantized> {
        self.quantized(Source::matrix(x, role), recipe, ScaleKind::F32)
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
    ) -> Result<Quantized> {
        self.quantized(Source::matrix(x, role), recipe, ScaleKind::PackedE8m0)
    }

    /// SwiGLU and quantisation in one pass, in 1×128 tiles: the codes, scales and statistics of
    /// [`swiglu`](crate::quant::swiglu()) followed by [`Quantizer::activation`](crate::quant::Quantizer::activation).
    ///
    /// # Errors
    /// [`Error::Shape`] if gate and up differ in shape; as [`Cuda::quantize`].
    pub fn swiglu_quantize<T: Float>(
        &self,
        gate: MatRef<'_, T>,
        up: MatRef<'_, T>,
        recipe: &Recipe,
    ) -> Result<Quantized> {
        self.quantized(Source::swiglu(gate, up)?, recipe, ScaleKind::F32)
    }

    /// The transpose of E4M3 in 1×128 tiles, grouped anew: [`Quantizer::requantize_transposed`](crate::quant::Quantizer::requantize_transposed).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for operands that the kernel does not read; as [`Cuda::quantize`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>, recipe: &Recipe) -> Result<Quantized> {
        self.quantized(Source::Scaled(x), recipe, ScaleKind::F32)
    }

    fn quantized(&self, source: Source<'_>, recipe: &Recipe, scales: ScaleKind) -> Result<Quantized> {
        let (kept, stats) = self.keep_quantized(&Quantization::new(source, recipe, scales)?)?;
        Ok(Quantized { matrix: kept.download()?, stats })
    }

    /// How something is quantised; the result stays on the device.
    ///
    /// # Errors
    /// As the methods above.
    pub(crate) fn plan_quantize<'p>(
        &'p self,
        source: Source<'p>,
        recipe: &'p Recipe,
    ) -> Result<Plan<'p, (Resident, QuantStats)>> {
        let job = Quantization::new(source, recipe, ScaleKind::F32)?;
        let (rows, cols) = source.shape();
        let how = self.describe(job.kernel, Desc::matrix(rows, cols));
        Ok(Plan::new(how, move || self.keep_quantized(&job)))
    }

    fn keep_quantized(&self, job: &Quantization<'_>) -> Result<(Resident, QuantStats)> {
        let Quantization { kernel, source, recipe, recipe_args, granule, scales, .. } = job;
        let (rows, cols) = source.shape();
        if rows * cols == 0 {
            // There is nothing to launch.
            let Quantized { matrix, stats } = OnCpu { recipe, cpu: Cpu::AUTOMATIC }.quantize(source)?;
            let matrix = if *scales == ScaleKind::F32 { matrix } else { with_bytes(matrix)? };
            return Ok((self.keep(&[matrix.view()])?.remove(0), stats));
        }
        let (shape, grid_shape) = job.result_shapes();
        let (layout, row, interval) = match scales {
            ScaleKind::PackedE8m0 => (ScaleLayout::PackedUe8m0, 4, 4 * grid_shape.0.next_multiple_of(4)),
            ScaleKind::E8m0 => (ScaleLayout::RowMajor, grid_shape.1, 1),
            ScaleKind::F32 => grid_layout(job.granule_rows(), grid_shape),
        };
        let stored = layout.stored_len(grid_shape.0, grid_shape.1);

        let (_inputs, mut args) = self.source(source)?;
        let ld = pitch(shape.1);
        // What lies between rows and between scales is 0: kernels read it, and make nothing of it.
        let codes = Arc::new(self.driver.zeros(shape.0 * ld)?);
        let scale_memory = Arc::new(self.driver.zeros(if *scales == ScaleKind::F32 {
            size_of::<f32>() * stored
        } else {
            stored
        })?);
        let counters = self.driver.zeros(COUNTERS * size_of::<u64>())?;
        let strides = (row as i64, interval as i64);
        let grid = ScaleGridArgs::new(self.driver.address(&scale_memory), strides, *scales, Some(recipe))?;
        args.extend([
            Arg::I32(size(rows)?),
            Arg::I32(size(cols)?),
            self.address(&codes),
            Arg::I64(ld as i64),
            Arg::Scales(grid),
            Arg::Recipe(*recipe_args),
            self.address(&counters),
        ]);
        self.run(&Launch::new(kernel, Desc::matrix(rows, cols), args)?)?;

        let bytes = self.driver.download(&scale_memory)?;
        let grid = match scales {
            ScaleKind::F32 => {
                ScaleGrid::F32(layout.load(&values::<f32>(&bytes)[..stored], grid_shape.0, grid_shape.1)?)
            }
            ScaleKind::E8m0 | ScaleKind::PackedE8m0 => {
                ScaleGrid::E8M0(layout.load(&bytes[..stored], grid_shape.0, grid_shape.1)?)
            }
        };
        let stats = statistics(&values(&self.driver.download(&counters)?), (rows, cols), grid_shape);
        let kept_scales = (*scales == ScaleKind::F32).then(|| Scales2d {
            memory: Arc::clone(&scale_memory),
            offset: 0,
            granule_rows: job.granule_rows(),
            granule_k: Some(granule.cols()),
            row,
            interval,
        });
        let on = OnDevice::new(&self.driver, shape, Codes2d { memory: codes, offset: 0, ld }, kept_scales);
        let scales = Scales { granule: *granule, grid, tensor: 1.0 };
        Ok((Resident::new(recipe.element, shape, Arc::new(on), Some(scales)), stats))
    }

    /// What the first arguments of a kernel name, to be kept until the launch is done.
    fn source(&self, source: &Source<'_>) -> Result<Inputs<D::Memory>> {
        let float = |x: &Panel<'_>| {
            let bytes: Vec<u8> = (0..x.rows).flat_map(|i| x.row(i).bytes()).copied().collect();
            let memory = Arc::new(self.driver.upload(&bytes)?);
            let args = [self.address(&memory), Arg::I64(x.cols as i64)];
            Ok::<_, Error>((memory, args))
        };
        match source {
            Source::Matrix(x, _) => {
                let (memory, args) = float(x)?;
                Ok((vec![memory], args.to_vec()))
            }
            Source::Swiglu(gate, up) => {
                let ((gate, first), (up, second)) = (float(gate)?, float(up)?);
                Ok((vec![gate, up], [first, second].concat()))
            }
            Source::Scaled(x) => {
                let scaled = self.scaled(x)?;
                let args = vec![scaled.codes, scaled.ld, Arg::Scales(scaled.grid)];
                Ok((scaled.memory, args))
            }
        }
    }

    /// A matrix that [`readable`] accepts: uploaded, or where it lies.
    pub(super) fn scaled(&self, x: &ScaledRef<'_>) -> Result<Scaled<D::Memory>> {
        if let Some(OnDevice { codes, scales: Some(scales), .. }) = self.resident(x) {
            let address = self.driver.address(&scales.memory) + (size_of::<f32>() * scales.offset) as u64;
            let strides = (scales.row as i64, scales.interval as i64);
            return Ok(Scaled {
                codes: Arg::Address(self.driver.address(&codes.memory) + codes.offset as u64),
                ld: Arg::I64(codes.ld as i64),
                grid: ScaleGridArgs::new(address, strides, ScaleKind::F32, None)?,
                memory: vec![Arc::clone(&codes.memory), Arc::clone(&scales.memory)],
            });
        }
        x.fetch()?;
        let CodesRef::Bytes(codes) = x.codes() else { unreachable!("readable asks for E4M3") };
        let grid = x.scales().expect("readable asks for scales").grid;
        let (scales, kind) = match grid {
            ScaleGridRef::F32(grid) => (self.upload(grid)?, ScaleKind::F32),
            ScaleGridRef::E8M0(grid) => (self.upload(grid)?, ScaleKind::E8m0),
            ScaleGridRef::E4M3(_) => unreachable!("readable refuses them"),
        };
        let codes = self.upload(codes)?;
        let strides = (grid.shape().1 as i64, 1);
        Ok(Scaled {
            codes: self.address(&codes),
            ld: Arg::I64(x.shape().1 as i64),
            grid: ScaleGridArgs::new(self.driver.address(&scales), strides, kind, None)?,
            memory: vec![Arc::new(codes), Arc::new(scales)],
        })
    }
}

/// A matrix of codes and scales as kernels that dequantise take it.
pub(super) struct Scaled<M> {
    pub(super) codes: Arg,
    pub(super) ld: Arg,
    pub(super) grid: ScaleGridArgs,
    /// To be kept until the launch is done.
    pub(super) memory: Vec<Arc<M>>,
}

/// The statistics of a matrix from what a kernel has counted.
fn statistics(counted: &[u64], (rows, cols): (usize, usize), grid: (usize, usize)) -> QuantStats {
    QuantStats {
        elements: (rows * cols) as u64,
        nan: counted[0],
        infinite: counted[1],
        saturated: counted[2],
        flushed: counted[3],
        lost: counted[4],
        granules: (grid.0 * grid.1) as u64,
        zero_granules: counted[5],
        floored_granules: counted[6],
        nonfinite_granules: counted[7],
    }
}

/// The granule of what the kernels dequantise: E4M3 in 1×128 or 128×128, one level of scales.
pub(super) fn readable(x: &ScaledRef<'_>) -> Result<Granule> {
    const READ: &str = "the CUDA kernels dequantise e4m3 with scales of f32 or e8m0 in 1x128 or 128x128";
    let refuse = |what: String| Err(Error::Unsupported(format!("{READ}, not {what}")));
    if x.format() != Format::E4M3 {
        return refuse(x.format().to_string());
    }
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
    Ok(scales.granule)
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
