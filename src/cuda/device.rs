//! The launcher: matrices in, matrices out, on any [`Driver`].
//!
//! Desc → [`Config`] → [`Launch`]: what is asked for, how it is cut, what is run. A launch can be printed.

use half::bf16;

use super::args::{RecipeArgs, ScaleGridArgs};
use super::driver::{Arg, Driver};
use super::kernels::{Config, Desc, Kernel};
use super::{Arch, CudaDriver};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::gemm::{Execution, GemmBackend, GemmProblem, Model, Output, Promotion, TensorCore};
use crate::matrix::{MatRef, Matrix};
use crate::quant::{Quantizer, Recipe, Role};
use crate::scaled::{Codes, CodesRef, Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};

/// One run of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    kernel: &'static Kernel,
    config: Config,
    args: Vec<Arg>,
}

impl Launch {
    fn new(name: &str, desc: Desc, args: Vec<Arg>) -> Result<Self> {
        let kernel = Kernel::by_name(name).expect("the launcher names kernels of the table");
        let Some(config) = kernel.config(desc) else {
            return Err(Error::Unsupported(format!("{name} has no grid for {desc:?}")));
        };
        Ok(Launch { kernel, config, args })
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Config { grid, block, dynamic_shared } = self.config;
        let name = self.kernel.name;
        write!(f, "{name}: grid {grid:?}, block {block:?}, {dynamic_shared} bytes of dynamic shared memory")
    }
}

/// A device that quantises and multiplies.
///
/// ```no_run
/// use finegrain::cuda::{Cuda, CudaDriver};
/// use finegrain::gemm::{Accumulation, GemmProblem};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Recipe, Role};
/// let gpu = Cuda::new(CudaDriver::new(0)?);
/// let x = gpu.quantize(Matrix::filled(256, 512, 0.5f32).view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
/// let w = gpu.quantize(Matrix::filled(128, 512, 0.1f32).view(), &Recipe::DEEPSEEK_V3, Role::Weight)?;
/// let hopper = Accumulation::HOPPER.promote_every(128)?;
/// let y = gpu.gemm(&GemmProblem::nt(x.view(), w.view())?.with_accumulation(hopper)?)?;
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Debug)]
pub struct Cuda<D = CudaDriver> {
    driver: D,
}

/// Which kernel computes a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GemmKernel {
    /// The `f32` model, one thread an element.
    Plain,
    /// `ada` by mma.sync.
    Mma,
    /// `hopper` by wgmma.
    Wgmma,
}

/// An operand on the device.
struct Operand<M> {
    codes: M,
    scales: M,
    /// Elements from a granule's scale to that of the next rows, and of the next granule along K.
    strides: (i64, i64),
    granule_rows: u32,
    /// Elements of K that share a scale; those of a whole row where one does.
    granule_k: u32,
}

impl<D: Driver> Cuda<D> {
    /// A device.
    pub fn new(driver: D) -> Self {
        Cuda { driver }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Quantises on the device, with f32 scales: the codes and scales of [`Quantizer`], NaN canonical. Statistics are not
    /// taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for recipes and granules that have no kernel, and with the driver's word.
    pub fn quantize(&self, x: MatRef<'_, f32>, recipe: &Recipe, role: Role) -> Result<ScaledMatrix> {
        let args = RecipeArgs::try_from(recipe)?;
        let (name, granule) = match role {
            Role::Activation => ("quantize_1x128_f32", recipe.activation),
            Role::Weight => ("quantize_128x128_f32", recipe.weight),
            Role::Transposed => ("quantize_128x1_f32", recipe.activation),
        };
        let expected = if role == Role::Weight { Granule::BLOCK_128X128 } else { Granule::TILE_1X128 };
        if granule != expected {
            let message =
                format!("recipe {} has granules of {granule}, the kernel {name} of {expected}", recipe.name);
            return Err(Error::Unsupported(message));
        }
        let (rows, cols) = x.shape();
        if rows * cols == 0 {
            // Nothing to launch; the reference knows what an empty matrix is.
            return Ok(Quantizer::new(*recipe).quantize(x, role)?.matrix);
        }
        let (out_rows, out_cols) = if role == Role::Transposed { (cols, rows) } else { (rows, cols) };
        let (grid_rows, grid_cols) = granule.grid(out_rows, out_cols);
        let bytes: Vec<u8> = x.iter_rows().flatten().flat_map(|v| v.to_le_bytes()).collect();
        let input = self.driver.upload(&bytes)?;
        let codes = self.driver.allocate(out_rows * out_cols)?;
        let scales = self.driver.allocate(4 * grid_rows * grid_cols)?;
        let strides = (grid_cols as i64, 1);
        let grid = ScaleGridArgs::new(self.driver.address(&scales), strides, false, Some(recipe))?;
        let args = vec![
            Arg::Address(self.driver.address(&input)),
            Arg::I64(cols as i64),
            Arg::I32(size(rows)?),
            Arg::I32(size(cols)?),
            Arg::Address(self.driver.address(&codes)),
            Arg::I64(out_cols as i64),
            Arg::Scales(grid),
            Arg::Recipe(args),
        ];
        self.run(&Launch::new(name, Desc::matrix(rows, cols), args)?)?;
        let codes = Matrix::from_vec(out_rows, out_cols, self.driver.download(&codes)?)?;
        let scales = Matrix::from_vec(grid_rows, grid_cols, floats(&self.driver.download(&scales)?))?;
        let scales = Scales { granule, grid: ScaleGrid::F32(scales), tensor: 1.0 };
        ScaledMatrix::new(recipe.element, Codes::Bytes(codes), Some(scales))
    }

    /// D in f32.
    ///
    /// # Errors
    /// As [`GemmBackend::supports`], and with the driver's word.
    pub fn gemm(&self, problem: &GemmProblem<'_>) -> Result<Matrix<f32>> {
        let bytes = self.multiply(problem, false)?;
        Matrix::from_vec(problem.m(), problem.n(), floats(&bytes))
    }

    fn run(&self, launch: &Launch) -> Result<()> {
        // SAFETY: launches are made here alone, with the arguments that the kernels' sources document and with memory
        // sized from the same shapes, which its owners keep until they have downloaded the result. The interpreter runs
        // each kind of launch in the tests.
        unsafe { self.driver.launch(launch.kernel, launch.config, &launch.args) }
    }

    /// The bytes of D, row-major, f32 or bf16.
    fn multiply(&self, problem: &GemmProblem<'_>, as_bf16: bool) -> Result<Vec<u8>> {
        let which = self.kernel_for(problem)?;
        let (m, n, k) = (problem.m(), problem.n(), problem.k());
        let d = self.driver.allocate(m * n * if as_bf16 { 2 } else { 4 })?;
        if m * n == 0 {
            return Ok(Vec::new());
        }
        let (a, b) = (self.operand(problem.a(), k)?, self.operand(problem.b(), k)?);
        let addend = problem.addend().map(|c| {
            let bytes: Vec<u8> = c.iter_rows().flatten().flat_map(|v| v.to_le_bytes()).collect();
            self.driver.upload(&bytes)
        });
        let addend = addend.transpose()?;
        let promotion = match problem.accumulation().promotion() {
            Promotion::ScalesFirst => 0,
            Promotion::PartialFirst => 1,
            Promotion::Unfused => 2,
        };
        let address = |memory: &D::Memory| Arg::Address(self.driver.address(memory));
        let (size_m, size_n, size_k) = (size(m)? as u32, size(n)? as u32, size(k)? as u32);
        let mut args = vec![
            address(&a.codes),
            address(&b.codes),
            address(&a.scales),
            address(&b.scales),
            addend.as_ref().map_or(Arg::Address(0), address),
            address(&d),
            Arg::U32(size_m),
            Arg::U32(size_n),
            Arg::U32(size_k),
            Arg::I64(k as i64),
            Arg::I64(k as i64),
            Arg::I64(n as i64),
            Arg::I64(n as i64),
            Arg::I64(a.strides.0),
            Arg::I64(a.strides.1),
            Arg::I64(b.strides.0),
            Arg::I64(b.strides.1),
            Arg::U32(a.granule_rows),
            Arg::U32(b.granule_rows),
            Arg::F32(problem.tensor_scale().unwrap_or(1.0)),
            Arg::I32(promotion),
            Arg::I32(i32::from(as_bf16)),
        ];
        let pair = format!("{}_{}", problem.a().format(), problem.b().format());
        let name = match which {
            GemmKernel::Plain => {
                let interval = if problem.is_bare_chain() { 0 } else { size(problem.interval())? as u32 };
                // One granule serves both: strides of 0 make the other one's scale the same throughout.
                args.extend([Arg::U32(a.granule_k.min(b.granule_k)), Arg::U32(interval)]);
                args.extend(
                    [problem.a(), problem.b()].map(|x| Arg::I32(i32::from(x.format() == Format::E5M2))),
                );
                "gemm_f32_reference".to_owned()
            }
            GemmKernel::Mma => format!("sm89_{pair}_gemm_promoted"),
            GemmKernel::Wgmma => format!("sm90a_{pair}_gemm_promoted"),
        };
        self.run(&Launch::new(&name, Desc { rows: m, cols: n, depth: k, groups: 1 }, args)?)?;
        self.driver.download(&d)
    }

    /// Codes and scales of an operand, uploaded. Where there are no scales, one 1 serves all.
    fn operand(&self, x: &ScaledRef<'_>, k: usize) -> Result<Operand<D::Memory>> {
        let CodesRef::Bytes(codes) = x.codes() else { unreachable!("kernel_for takes FP8 only") };
        let bytes: Vec<u8> = codes.iter_rows().flatten().copied().collect();
        let codes = self.driver.upload(&bytes)?;
        let whole = size(k.max(1))? as u32;
        let Some(s) = x.scales() else {
            let scales = self.driver.upload(&1f32.to_le_bytes())?;
            return Ok(Operand { codes, scales, strides: (0, 0), granule_rows: 1, granule_k: whole });
        };
        let grid = s.grid.to_f32();
        let bytes: Vec<u8> = grid.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect();
        let scales = self.driver.upload(&bytes)?;
        // A granule that takes a whole side has one scale there, to which no stride leads.
        let row = if s.granule.rows() == usize::MAX { 0 } else { grid.cols() as i64 };
        let along_k = i64::from(s.granule.cols() < k);
        let granule_rows = u32::try_from(s.granule.rows()).unwrap_or(1);
        let granule_k = u32::try_from(s.granule.cols().min(k.max(1))).unwrap_or(whole);
        Ok(Operand { codes, scales, strides: (row, along_k), granule_rows, granule_k })
    }

    /// The kernel that has this problem's bits.
    fn kernel_for(&self, problem: &GemmProblem<'_>) -> Result<GemmKernel> {
        let refuse = |why: String| Err(Error::Unsupported(format!("the CUDA kernels {why}")));
        for x in [problem.a(), problem.b()] {
            if !matches!(x.format(), Format::E4M3 | Format::E5M2) {
                return refuse(format!("multiply e4m3 and e5m2, not {}", x.format()));
            }
            if x.row_offset() != 0 {
                return refuse("take operands that begin with a granule".to_owned());
            }
        }
        let accumulation = problem.accumulation();
        let arch = self.driver.arch();
        let fast = match (accumulation.model(), arch) {
            (Model::F32, _) => {
                let granules = [problem.a(), problem.b()].map(|x| x.scales().map(|s| s.granule.cols()));
                let [a, b] = granules.map(|g| g.filter(|&cols| cols < problem.k()));
                return match (a, b) {
                    (Some(a), Some(b)) if a != b => {
                        refuse(format!("take one granule along K, not {a} for A and {b} for B"))
                    }
                    _ => Ok(GemmKernel::Plain),
                };
            }
            (Model::TensorCore(TensorCore::ADA), Arch::Sm89) => GemmKernel::Mma,
            (Model::TensorCore(TensorCore::HOPPER), Arch::Sm90a) => GemmKernel::Wgmma,
            (model, arch) => return refuse(format!("have no accumulation model {model} on {arch}")),
        };
        if accumulation.interval().is_none_or(|n| n.get() != Granule::TILE_1X128.cols()) {
            return refuse(format!("promote every 128, not as {accumulation}"));
        }
        for x in [problem.a(), problem.b()] {
            let granule = x.scales().map(|s| s.granule);
            let known = [Granule::TILE_1X128, Granule::BLOCK_128X128, Granule::TENSOR, Granule::ROW];
            if granule.is_some_and(|g| !known.contains(&g)) {
                return refuse(format!(
                    "take granules of 1x128, 128x128, row or tensor, not {}",
                    granule.unwrap_or(Granule::ROW)
                ));
            }
        }
        Ok(fast)
    }
}

impl<D: Driver> GemmBackend for Cuda<D> {
    fn name(&self) -> &'static str {
        "cuda"
    }

    /// The `f32` model on every device, `ada` on sm_89, `hopper` on sm_90a, on E4M3 and E5M2.
    fn supports(&self, problem: &GemmProblem<'_>) -> Result<()> {
        self.kernel_for(problem).map(|_| ())
    }

    fn run(&self, problem: &GemmProblem<'_>, out: Output<'_>, execution: &Execution<'_>) -> Result<()> {
        let (m, n) = problem.output_shape();
        match out {
            Output::F32(mut d) => {
                let values = floats(&self.multiply(problem, false)?);
                (0..m).for_each(|i| d.row_mut(i).copy_from_slice(&values[i * n..][..n]));
            }
            Output::Bf16(mut d) => {
                let bytes = self.multiply(problem, true)?;
                let values: Vec<bf16> = bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect();
                (0..m).for_each(|i| d.row_mut(i).copy_from_slice(&values[i * n..][..n]));
            }
        }
        execution.report(m as u64 * n as u64 * problem.k() as u64);
        Ok(())
    }
}

/// A size as kernels take it.
fn size(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        Error::Unsupported(format!("{n} elements along one side: the CUDA kernels count to 2^31"))
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
