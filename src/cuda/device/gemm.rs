//! Products: which kernel, with which arguments.

use std::fmt;

use half::bf16;

use super::operand::{Groups, Operand};
use super::{Cuda, Float, size};
use crate::cuda::driver::Driver;
use crate::cuda::gemm_args::{GemmArgs, OperandArgs, PlainArgs};
use crate::cuda::kernels::{Desc, Kernel};
use crate::cuda::{Arch, Launch};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::gemm::{
    Accumulation, Fold, GemmBackend, GemmPlan, GemmProblem, GroupedForm, GroupedProblem, Model, Output,
    TensorCore, rounded_to_f16,
};
use crate::matrix::{MatRef, Matrix};
use crate::parallel::Watch;
use crate::scaled::ScaledRef;

/// Elements of K in a stage of the fast kernels, which is their promotion interval, and rows of their tiles.
const TILE: usize = 128;
/// The row that belongs to no group.
const PADDING: i32 = -1;

/// Which dense problems make the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One.
    Dense,
    /// m-grouped contiguous.
    Contiguous,
    /// m-grouped masked.
    Masked,
    /// k-grouped.
    KGrouped,
}

impl Form {
    /// What the names of its kernels end in.
    const fn suffix(self) -> &'static str {
        match self {
            Form::Dense => "",
            Form::Contiguous => "_contiguous",
            Form::Masked => "_masked",
            Form::KGrouped => "_k_grouped",
        }
    }
}

/// What is asked of a GEMM: all that the choice of its kernel and its launch depend on. The first of Desc →
/// [`Config`](crate::cuda::kernels::Config) → [`Launch`]; it can be printed.
///
/// ```
/// use finegrain::cuda::{Arch, GemmDesc};
/// use finegrain::gemm::{Accumulation, GemmProblem};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Quantizer::new(Recipe::DEEPSEEK_V3).activation(Matrix::filled(300, 512, 1.0f32).view())?;
/// let problem = GemmProblem::nt(x.view(), x.view())?;
/// let hopper = problem.with_accumulation(Accumulation::HOPPER.promote_every(128)?)?;
/// let desc = GemmDesc::dense(&hopper)?;
/// assert_eq!(desc.to_string(), "dense 300×300×512 of e4m3 × e4m3 in hopper/128");
/// let kernel = desc.kernel(Arch::Sm90a)?;
/// assert_eq!(kernel.name, "sm90a_e4m3_e4m3_gemm_promoted");
/// assert_eq!(kernel.config(desc.sizes()).unwrap().grid, [3, 3, 1]);
/// assert!(desc.kernel(Arch::Sm89).unwrap_err().to_string().contains("no accumulation model hopper on sm_89"));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmDesc {
    /// Which dense problems make the whole.
    pub form: Form,
    /// Rows of A: of all of it (dense, contiguous) or of each group.
    pub m: usize,
    /// Rows of B of each group.
    pub n: usize,
    /// K; in the k-grouped form that of the longest group.
    pub k: usize,
    /// Groups; 1 in the dense form.
    pub groups: usize,
    /// Format of A.
    pub a: Format,
    /// Format of B.
    pub b: Format,
    /// The arithmetic.
    pub accumulation: Accumulation,
}

impl GemmDesc {
    /// Of a dense problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the formats have no kernel.
    pub fn dense(problem: &GemmProblem<'_>) -> Result<Self> {
        Product::dense(problem).map(|p| p.desc)
    }

    /// Of a grouped problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the formats have no kernel, or the groups are not of one kind.
    pub fn grouped(problem: &GroupedProblem<'_>) -> Result<Self> {
        Product::grouped(problem).map(|p| p.desc)
    }

    /// The sizes that the launch's geometry depends on.
    pub const fn sizes(&self) -> Desc {
        let groups = match self.form {
            Form::Dense | Form::Contiguous => 1,
            Form::Masked | Form::KGrouped => self.groups,
        };
        Desc { rows: self.m, cols: self.n, depth: self.k, groups }
    }

    /// The kernel that has these bits on an architecture.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why there is none.
    pub fn kernel(&self, arch: Arch) -> Result<&'static Kernel> {
        let GemmDesc { form, a, b, accumulation, .. } = *self;
        if accumulation.ends_in_sum() || accumulation.fold() != Fold::Nothing {
            return refuse(format!("sum K in one and scale at promotion, not as {accumulation}"));
        }
        let name = match unit(accumulation.model(), arch) {
            None => {
                let known = models(arch).iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
                let model = accumulation.model();
                return refuse(format!("have no accumulation model {model} on {arch}, but {known}"));
            }
            Some(Unit::Plain) => format!("gemm_f32_reference{}", form.suffix()),
            Some(_) if accumulation.interval().is_none_or(|n| n.get() != TILE) => {
                return refuse(format!("promote every {TILE}, not as {accumulation}"));
            }
            Some(Unit::Mma) => format!("sm89_{a}_{b}_gemm_promoted{}", form.suffix()),
            Some(Unit::Wgmma) => format!("sm90a_{a}_{b}_gemm_promoted{}", form.suffix()),
        };
        match Kernel::by_name(&name) {
            Some(kernel) => Ok(kernel),
            None => refuse(format!("multiply e4m3 × e4m3 in groups, not {a} × {b}")),
        }
    }
}

impl fmt::Display for GemmDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GemmDesc { form, m, n, k, groups, a, b, accumulation } = self;
        let (form, groups) = match form {
            Form::Dense => ("dense", String::new()),
            Form::Contiguous => ("contiguous", format!(" in {groups} groups")),
            Form::Masked => ("masked", format!(" in {groups} groups")),
            Form::KGrouped => ("k-grouped", format!(" in {groups} groups")),
        };
        write!(f, "{form} {m}×{n}×{k}{groups} of {a} × {b} in {accumulation}")
    }
}

/// What multiplies.
#[derive(Clone, Copy)]
enum Unit {
    /// One thread an element.
    Plain,
    /// mma.sync.
    Mma,
    /// wgmma.
    Wgmma,
}

/// What has a model's bits on an architecture. sm_120a executes the kernels by mma.sync, but no model of its tensor core
/// is known.
fn unit(model: Model, arch: Arch) -> Option<Unit> {
    match (model, arch) {
        (Model::F32, _) => Some(Unit::Plain),
        (Model::TensorCore(TensorCore::ADA), Arch::Sm89) => Some(Unit::Mma),
        (Model::TensorCore(TensorCore::HOPPER), Arch::Sm90a) => Some(Unit::Wgmma),
        _ => None,
    }
}

/// The models that kernels have on an architecture.
fn models(arch: Arch) -> Vec<Model> {
    let known = [Model::F32, Model::TensorCore(TensorCore::ADA), Model::TensorCore(TensorCore::HOPPER)];
    known.into_iter().filter(|&model| unit(model, arch).is_some()).collect()
}

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Unsupported(format!("the CUDA kernels {why}")))
}

/// A problem of any form, as a launch needs it.
struct Product<'a> {
    desc: GemmDesc,
    a: Vec<ScaledRef<'a>>,
    b: Vec<ScaledRef<'a>>,
    addend: Option<MatRef<'a, f32>>,
    output: (usize, usize),
    tensor_scale: f32,
    /// Elements of K between promotions; `None` where D is the chain itself.
    interval: Option<usize>,
    /// The argument `groups` of the form.
    groups: Vec<i32>,
}

/// The one value that all problems have.
fn one<T: PartialEq + Copy + fmt::Debug>(what: &str, values: impl Iterator<Item = T>) -> Result<Option<T>> {
    let mut first = None;
    for value in values {
        match first {
            Some(one) if one != value => {
                return refuse(format!("take one {what} for all groups, not {one:?} and {value:?}"));
            }
            _ => first = Some(value),
        }
    }
    Ok(first)
}

impl<'a> Product<'a> {
    fn dense(problem: &GemmProblem<'a>) -> Result<Self> {
        Product::new(
            Form::Dense,
            (vec![*problem.a()], vec![*problem.b()]),
            problem.accumulation(),
            problem.addend(),
            problem.output_shape(),
            std::slice::from_ref(problem),
        )
    }

    fn grouped(problem: &GroupedProblem<'a>) -> Result<Self> {
        let (form, operands) = match problem.form() {
            GroupedForm::Contiguous { a, b, .. } => (Form::Contiguous, (vec![*a], b.clone())),
            GroupedForm::Masked { a, b, .. } => (Form::Masked, (a.clone(), b.clone())),
            GroupedForm::KGrouped { a, b } => (Form::KGrouped, (a.clone(), b.clone())),
        };
        let parts: Vec<GemmProblem<'a>> = problem.parts().iter().map(|part| *part.problem()).collect();
        let (accumulation, addend) = (problem.accumulation(), problem.addend());
        let product = Product::new(form, operands, accumulation, addend, problem.output_shape(), &parts)?;
        let groups = match problem.form() {
            GroupedForm::Contiguous { groups, .. } => {
                if accumulation.model() != Model::F32 {
                    check_tiles(groups)?;
                }
                groups.clone()
            }
            GroupedForm::Masked { valid, .. } => valid.iter().map(|&v| size(v)).collect::<Result<_>>()?,
            GroupedForm::KGrouped { a, .. } => {
                let granule_k = product.granule_k();
                let (mut element, mut interval, mut pairs) = (0, 0, vec![0, 0]);
                for x in a {
                    element += x.shape().1;
                    interval += x.shape().1.div_ceil(granule_k);
                    pairs.extend([size(element)?, size(interval)?]);
                }
                pairs
            }
        };
        Ok(Product { groups, ..product })
    }

    fn new(
        form: Form,
        (a, b): (Vec<ScaledRef<'a>>, Vec<ScaledRef<'a>>),
        accumulation: Accumulation,
        addend: Option<MatRef<'a, f32>>,
        output: (usize, usize),
        parts: &[GemmProblem<'a>],
    ) -> Result<Self> {
        let format = |xs: &[ScaledRef<'_>]| {
            let format = one("format", xs.iter().map(ScaledRef::format))?.unwrap_or(Format::E4M3);
            match format {
                Format::E4M3 | Format::E5M2 => Ok(format),
                _ => refuse(format!("multiply e4m3 and e5m2, not {format}")),
            }
        };
        let depths = a.iter().map(|x| x.shape().1);
        let desc = GemmDesc {
            form,
            m: a.first().map_or(0, |x| x.shape().0),
            n: output.1,
            k: depths.max().unwrap_or(0),
            groups: if form == Form::Dense { 1 } else { b.len() },
            a: format(&a)?,
            b: format(&b)?,
            accumulation,
        };
        // Without a part there is no row that any of this decides.
        let chain = one("kind of scales", parts.iter().map(GemmProblem::is_bare_chain))?.unwrap_or(false);
        let whole = desc.k.max(1);
        let interval = (!chain).then(|| accumulation.interval().map_or(whole, |n| n.get()));
        let scales = parts.iter().map(|p| p.tensor_scale().unwrap_or(1.0));
        let tensor_scale = one("second scale", scales)?.unwrap_or(1.0);
        Ok(Product { desc, a, b, addend, output, tensor_scale, interval, groups: Vec::new() })
    }

    /// Elements of K that share a scale on the device: those of an interval, inside which none changes.
    fn granule_k(&self) -> usize {
        self.interval.unwrap_or(self.desc.k.max(1))
    }
}

/// Each 128 rows belong to one group, their padding last.
fn check_tiles(groups: &[i32]) -> Result<()> {
    for (t, tile) in groups.chunks(TILE).enumerate() {
        let filled = tile.iter().position(|&g| g == PADDING).unwrap_or(tile.len());
        if let Some(at) = (1..tile.len()).find(|&i| tile[i] != if i < filled { tile[0] } else { PADDING }) {
            let row = t * TILE;
            return refuse(format!(
                "of this model take rows in {TILE}s that belong to one group, padding last: row {row} is of group {}, \
                 row {} of {}",
                tile[0],
                row + at,
                tile[at]
            ));
        }
    }
    Ok(())
}

impl<D: Driver> Cuda<D> {
    /// D in f32.
    ///
    /// # Errors
    /// As [`GemmBackend::supports`], and with the driver's word.
    pub fn gemm(&self, problem: &GemmProblem<'_>) -> Result<Matrix<f32>> {
        self.multiply(&Product::dense(problem)?)
    }

    /// D of a grouped problem in f32, by one launch.
    ///
    /// # Errors
    /// As [`GemmBackend::supports_grouped`], and with the driver's word.
    pub fn grouped_gemm(&self, problem: &GroupedProblem<'_>) -> Result<Matrix<f32>> {
        self.multiply(&Product::grouped(problem)?)
    }

    fn multiply<T: Float>(&self, product: &Product<'_>) -> Result<Matrix<T>> {
        let desc = &product.desc;
        let kernel = desc.kernel(self.driver.arch())?;
        let (rows, n) = product.output;
        let d = self.driver.allocate(rows * n * size_of::<T>())?;
        if rows * n == 0 {
            return self.download(&d, rows, n);
        }
        let groups = match desc.form {
            Form::Dense | Form::Contiguous | Form::Masked => Groups::Stacked,
            Form::KGrouped => Groups::AlongK,
        };
        let granule_k = product.granule_k();
        let a = self.place(&product.a, groups, granule_k)?;
        let b = self.place(&product.b, groups, granule_k)?;
        let addend = product.addend.map(|c| self.upload(c)).transpose()?;
        let indices = self.driver.upload(bytemuck::cast_slice(&product.groups))?;
        let args = GemmArgs {
            a: self.operand(&a)?,
            b: self.operand(&b)?,
            addend: addend.as_ref().map_or(0, |c| self.driver.address(c)),
            d: self.driver.address(&d),
            m: count(desc.m)?,
            n: count(desc.n)?,
            k: count(desc.k)?,
            ld_addend: n as i64,
            ldd: n as i64,
            tensor_scale: product.tensor_scale,
            promotion: desc.accumulation.promotion().into(),
            bf16: T::NAME == bf16::NAME,
            groups: (desc.form != Form::Dense).then(|| self.driver.address(&indices)),
            plain: match desc.accumulation.model() {
                Model::F32 => Some(PlainArgs {
                    granule_k: count(granule_k)?,
                    interval: count(product.interval.unwrap_or(0))?,
                    formats: [desc.a, desc.b],
                }),
                _ => None,
            },
        };
        self.run(&Launch::new(kernel, desc.sizes(), args.list())?)?;
        self.download(&d, rows, n)
    }

    /// The addresses and strides of an operand.
    fn operand(&self, x: &Operand<D::Memory>) -> Result<OperandArgs> {
        let Operand { codes, scales, group, scale_group } = x;
        Ok(OperandArgs {
            codes: self.driver.address(&codes.memory) + codes.offset as u64,
            scales: self.driver.address(&scales.memory) + (size_of::<f32>() * scales.offset) as u64,
            ld: codes.ld as i64,
            scale_row: scales.row as i64,
            scale_interval: scales.interval as i64,
            granule: count(scales.granule_rows)?,
            group: *group as i64,
            scale_group: *scale_group as i64,
        })
    }
}

/// A size as kernels take it.
fn count(n: usize) -> Result<u32> {
    size(n).map(i32::cast_unsigned)
}

/// A launch that is still to be made.
struct Planned<'p, D> {
    gpu: &'p Cuda<D>,
    product: Product<'p>,
    kernel: &'static Kernel,
    multiply_adds: u64,
}

impl<'p, D: Driver> Planned<'p, D> {
    fn new(gpu: &'p Cuda<D>, product: Product<'p>, multiply_adds: u64) -> Result<Self> {
        let kernel = product.desc.kernel(gpu.driver.arch())?;
        Ok(Planned { gpu, product, kernel, multiply_adds })
    }
}

impl<D: Driver> fmt::Display for Planned<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.gpu.describe(self.kernel, self.product.desc.sizes()))
    }
}

impl<D: Driver> GemmPlan for Planned<'_, D> {
    fn backend(&self) -> &'static str {
        self.gpu.name()
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        watch.check()?;
        match out {
            Output::F16(d) => return rounded_to_f16(d, |wide| self.run(wide, watch)),
            Output::F32(mut d) => {
                let values = self.gpu.multiply::<f32>(&self.product)?;
                (0..values.rows()).for_each(|i| d.row_mut(i).copy_from_slice(values.row(i)));
            }
            Output::Bf16(mut d) => {
                let values = self.gpu.multiply::<bf16>(&self.product)?;
                (0..values.rows()).for_each(|i| d.row_mut(i).copy_from_slice(values.row(i)));
            }
        }
        watch.report(self.multiply_adds);
        Ok(())
    }
}

fn multiply_adds(problem: &GemmProblem<'_>) -> u64 {
    problem.m() as u64 * problem.n() as u64 * problem.k() as u64
}

impl<D: Driver> GemmBackend for Cuda<D> {
    fn name(&self) -> &'static str {
        "cuda"
    }

    /// `f32` on every device, `ada` on sm_89, `hopper` on sm_90a.
    fn models(&self) -> Vec<Model> {
        models(self.driver.arch())
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        Ok(Box::new(Planned::new(self, Product::dense(problem)?, multiply_adds(problem))?))
    }

    /// All groups in one launch.
    fn plan_grouped<'p>(&'p self, problem: &'p GroupedProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        let all = problem.parts().iter().map(|part| multiply_adds(part.problem())).sum();
        Ok(Box::new(Planned::new(self, Product::grouped(problem)?, all)?))
    }
}
