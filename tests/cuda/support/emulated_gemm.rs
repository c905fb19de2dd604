//! GEMM problems laid out in an emulated device's memory as the kernels take them, and what finegrain makes of them.

use finegrain::cuda::kernels::{Desc, Kernel};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem, Promotion};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, ScaleGrid, ScaledMatrix, ScaledRef};
use half::bf16;
use ptx_emulator::{Arg, Device, Launch, Module, Options, Report};

/// Which dense problems make the whole.
#[derive(Clone, Debug)]
pub enum Form {
    Dense,
    /// The group of each row.
    Contiguous(Vec<i32>),
    /// The valid rows of each group.
    Masked(Vec<i32>),
    KGrouped,
}

/// Where things lie. `GAPPED` keeps nothing aligned: codes byte by byte, D and the addend element by element.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Elements between rows of codes, of D and of the addend that belong to nobody.
    pub gap: usize,
    /// Elements before the first.
    pub offset: usize,
    /// Whether scales of granules of 1 row lie MN-major.
    pub mn_major: bool,
}

impl Layout {
    pub const BEST: Layout = Layout { gap: 0, offset: 0, mn_major: true };
    pub const GAPPED: Layout = Layout { gap: 3, offset: 1, mn_major: false };
}

/// A problem. A and B have an entry for each group, but A of the contiguous form has one.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub form: Form,
    pub a: Vec<ScaledMatrix>,
    pub b: Vec<ScaledMatrix>,
    pub promotion: Promotion,
    pub bf16: bool,
    pub addend: Option<Matrix<f32>>,
    /// The addend is D's first content, and adding overwrites it.
    pub in_place: bool,
    pub layout: Layout,
}

/// What the plain kernel is told besides.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    /// Elements of K between promotions; 0: one chain without scales.
    pub interval: usize,
}

/// An operand on the device.
struct Placed {
    codes: u64,
    scales: u64,
    ld: usize,
    row: usize,
    interval: usize,
    granule: usize,
    group: usize,
    scale_group: usize,
}

fn bytes_of(x: &ScaledMatrix) -> &Matrix<u8> {
    let Codes::Bytes(codes) = x.codes() else { panic!("codes of 8 bits") };
    codes
}

fn grid_of(x: &ScaledMatrix) -> Option<&Matrix<f32>> {
    x.scales().map(|s| match &s.grid {
        ScaleGrid::F32(grid) => grid,
        _ => panic!("scales in f32"),
    })
}

/// Concatenates along K.
fn beside<T: Copy>(parts: &[&Matrix<T>]) -> Matrix<T> {
    let rows = parts[0].rows();
    let cols = parts.iter().map(|p| p.cols()).sum();
    let data = (0..rows).flat_map(|i| parts.iter().flat_map(move |p| p.row(i).iter().copied())).collect();
    Matrix::from_vec(rows, cols, data).unwrap()
}

/// Writes rows at a pitch. What lies between them is never written, so that reading it is a fault.
fn place_rows(device: &mut Device, rows: &[Vec<u8>], pitch: usize, offset: usize) -> u64 {
    let last = rows.last().map_or(0, Vec::len);
    let base = device.alloc(offset + rows.len().saturating_sub(1) * pitch + last) + offset as u64;
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
        device.write(base + (i * pitch) as u64, row).unwrap();
    }
    base
}

fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl Case {
    pub fn new(name: &str, form: Form, a: Vec<ScaledMatrix>, b: Vec<ScaledMatrix>) -> Case {
        Case {
            name: name.to_owned(),
            form,
            a,
            b,
            promotion: Promotion::ScalesFirst,
            bf16: false,
            addend: None,
            in_place: false,
            layout: Layout::BEST,
        }
    }

    fn m(&self) -> usize {
        self.a[0].shape().0
    }

    fn n(&self) -> usize {
        self.b[0].shape().0
    }

    /// (rows, columns) of D.
    pub fn output(&self) -> (usize, usize) {
        let stacked = !matches!(self.form, Form::Dense | Form::Contiguous(_));
        (if stacked { self.a.len() * self.m() } else { self.m() }, self.n())
    }

    fn suffix(&self) -> &'static str {
        match self.form {
            Form::Dense => "",
            Form::Contiguous(_) => "_contiguous",
            Form::Masked(_) => "_masked",
            Form::KGrouped => "_k_grouped",
        }
    }

    pub fn mma_kernel(&self) -> String {
        self.promoted_kernel("sm89")
    }

    pub fn wgmma_kernel(&self) -> String {
        self.promoted_kernel("sm90a")
    }

    fn promoted_kernel(&self, arch: &str) -> String {
        let name = |x: &[ScaledMatrix]| if x[0].format() == Format::E4M3 { "e4m3" } else { "e5m2" };
        format!("{arch}_{}_{}_gemm_promoted{}", name(&self.a), name(&self.b), self.suffix())
    }

    pub fn plain_kernel(&self) -> String {
        format!("gemm_f32_reference{}", self.suffix())
    }

    /// D by finegrain, as bits.
    pub fn expected<'a>(&'a self, accumulation: Accumulation) -> Vec<u32> {
        let accumulation = accumulation.with_promotion(self.promotion);
        let views =
            |x: &'a [ScaledMatrix]| -> Vec<ScaledRef<'a>> { x.iter().map(ScaledMatrix::view).collect() };
        let (a, b) = (views(&self.a), views(&self.b));
        let addend = self.addend.as_ref().map(Matrix::view);
        let wide = |d: Matrix<f32>| d.as_slice().iter().map(|x| x.to_bits()).collect();
        let narrow = |d: Matrix<bf16>| d.as_slice().iter().map(|x| x.to_bits().into()).collect();
        if let Form::Dense = self.form {
            let mut problem = GemmProblem::nt(a[0], b[0]).unwrap().with_accumulation(accumulation).unwrap();
            if let Some(c) = addend {
                problem = problem.with_addend(c).unwrap();
            }
            return if self.bf16 {
                narrow(problem.run_bf16().unwrap())
            } else {
                wide(problem.run().unwrap())
            };
        }
        let problem = match &self.form {
            Form::Contiguous(groups) => GroupedProblem::contiguous(a[0], groups, &b),
            Form::Masked(valid) => {
                GroupedProblem::masked(&a, &valid.iter().map(|&v| v as usize).collect::<Vec<_>>(), &b)
            }
            _ => GroupedProblem::k_grouped(&a, &b),
        };
        let mut problem = problem.unwrap().with_accumulation(accumulation).unwrap();
        if let Some(c) = addend {
            problem = problem.with_addend(c).unwrap();
        }
        if self.bf16 { narrow(problem.run_bf16().unwrap()) } else { wide(problem.run().unwrap()) }
    }

    fn place(&self, device: &mut Device, x: &[ScaledMatrix]) -> Placed {
        let Layout { gap, offset, mn_major } = self.layout;
        let k_grouped = matches!(self.form, Form::KGrouped);
        let codes: Vec<&Matrix<u8>> = x.iter().map(bytes_of).collect();
        let joined = k_grouped.then(|| beside(&codes));
        let codes = joined.as_ref().map_or(codes, |joined| vec![joined]);
        let (rows, k) = codes[0].shape();
        let ld = k + gap;
        let lines: Vec<Vec<u8>> = codes.iter().flat_map(|c| (0..rows).map(|i| c.row(i).to_vec())).collect();
        let at = place_rows(device, &lines, ld, offset);

        let grids: Option<Vec<&Matrix<f32>>> = x.iter().map(grid_of).collect();
        let granule = x[0].scales().map_or(1, |s| s.granule.rows());
        let Some(grids) = grids else {
            return Placed {
                codes: at,
                scales: 0,
                ld,
                row: 0,
                interval: 0,
                granule,
                group: rows * ld,
                scale_group: 0,
            };
        };
        let joined = k_grouped.then(|| beside(&grids));
        let grids = joined.as_ref().map_or(grids, |joined| vec![joined]);
        let (down, across) = grids[0].shape();
        let (lines, pitch, row, interval): (Vec<Vec<u8>>, _, _, _) = if mn_major && granule == 1 {
            // Each interval's scales start at a multiple of 16 bytes, as the fast copies want.
            let pitch = down.next_multiple_of(4);
            let column = |g: &Matrix<f32>, t: usize| f32_bytes((0..down).map(|i| g.row(i)[t]));
            (grids.iter().flat_map(|g| (0..across).map(|t| column(g, t))).collect(), pitch, 1, pitch)
        } else {
            // So do those of a row of blocks.
            let pitch = if mn_major { across.next_multiple_of(4) } else { across };
            let rows = |g: &Matrix<f32>, i: usize| f32_bytes(g.row(i).iter().copied());
            (grids.iter().flat_map(|g| (0..down).map(|i| rows(g, i))).collect(), pitch, pitch, 1)
        };
        let scale_group = if grids.len() > 1 { pitch * lines.len() / grids.len() } else { 0 };
        let scales = place_rows(device, &lines, 4 * pitch, 4 * offset);
        Placed { codes: at, scales, ld, row, interval, granule, group: rows * ld, scale_group }
    }

    fn groups(&self) -> Vec<i32> {
        match &self.form {
            Form::Dense => Vec::new(),
            Form::Contiguous(groups) => groups.clone(),
            Form::Masked(valid) => valid.clone(),
            Form::KGrouped => {
                let (mut element, mut interval, mut pairs) = (0, 0, vec![0, 0]);
                for x in &self.a {
                    element += x.shape().1 as i32;
                    interval += x.shape().1.div_ceil(128) as i32;
                    pairs.extend([element, interval]);
                }
                pairs
            }
        }
    }

    /// D by a kernel, as bits, and what it did, or what is wrong. With `plain`, by that of the plain table.
    pub fn run(
        &self,
        module: &Module,
        name: &str,
        plain: Option<Plain>,
        options: &Options,
    ) -> Result<(Vec<u32>, Report), String> {
        let mut device = Device::new();
        let (a, b) = (self.place(&mut device, &self.a), self.place(&mut device, &self.b));
        let ((rows, n), Layout { gap, offset, .. }) = (self.output(), self.layout);
        let (m, k, ld, width) = (self.m(), self.a[0].shape().1, n + gap, if self.bf16 { 2 } else { 4 });
        let d = device.alloc(width * (offset + rows.saturating_sub(1) * ld + n)) + (width * offset) as u64;
        let addend = self.addend.as_ref().map_or(0, |c| {
            let lines: Vec<Vec<u8>> = (0..rows).map(|i| f32_bytes(c.row(i).iter().copied())).collect();
            if self.in_place {
                for (i, line) in lines.iter().enumerate() {
                    device.write(d + (4 * i * ld) as u64, line).unwrap();
                }
                return d;
            }
            place_rows(&mut device, &lines, 4 * ld, 4 * offset)
        });
        let tensor = |x: &[ScaledMatrix]| x[0].scales().map_or(1.0, |s| s.tensor);
        let order = match self.promotion {
            Promotion::ScalesFirst => 0,
            Promotion::PartialFirst => 1,
            Promotion::Unfused => 2,
            Promotion::ScalesLast => unreachable!("the kernels scale at promotion"),
        };
        let u32s = |x: usize| Arg::U32(x as u32);
        let u64s = |x: usize| Arg::U64(x as u64);
        let mut args = vec![Arg::Ptr(a.codes), Arg::Ptr(b.codes), Arg::Ptr(a.scales), Arg::Ptr(b.scales)];
        args.extend([Arg::Ptr(addend), Arg::Ptr(d), u32s(m), u32s(n), u32s(k)]);
        args.extend([a.ld, b.ld, ld, ld, a.row, a.interval, b.row, b.interval].map(u64s));
        args.extend([u32s(a.granule), u32s(b.granule), Arg::F32(tensor(&self.a) * tensor(&self.b))]);
        args.extend([Arg::I32(order), Arg::I32(self.bf16.into())]);
        if !matches!(self.form, Form::Dense) {
            let groups = place_rows(&mut device, &[i32_bytes(&self.groups())], 0, 0);
            args.push(Arg::Ptr(groups));
            args.extend([a.group, b.group, a.scale_group, b.scale_group].map(u64s));
        }
        if let Some(Plain { interval }) = plain {
            let format = |x: &[ScaledMatrix]| Arg::I32((x[0].format() == Format::E5M2).into());
            args.extend([u32s(128), u32s(interval), format(&self.a), format(&self.b)]);
        }
        let stacked = matches!(self.form, Form::Masked(_) | Form::KGrouped);
        let desc = Desc { rows: m, cols: n, depth: k, groups: if stacked { self.a.len() } else { 1 } };
        let config = Kernel::by_name(name).unwrap().config(desc).unwrap();
        let launch =
            Launch { grid: config.grid, block: config.block, dynamic_shared: config.dynamic_shared, args };
        let report = device.launch(module, name, &launch, options).map_err(|f| f.to_string())?;

        let mut bits = Vec::with_capacity(rows * n);
        for i in 0..rows {
            let at = d + (i * ld * width) as u64;
            let row = device.read(at, n * width).map_err(|e| format!("row {i} of D: {e}"))?;
            bits.extend(row.chunks(width).map(|x| x.iter().rev().fold(0, |y, &b| y << 8 | u32::from(b))));
            for between in 0..if i + 1 < rows { gap } else { 0 } {
                let outside = device.read(at + ((n + between) * width) as u64, 1);
                if outside.is_ok() {
                    return Err(format!("written past column {n} of row {i}"));
                }
            }
        }
        Ok((bits, report))
    }
}

/// All checks on, with the shared memory that a block of the kernel's architecture may have.
pub fn options(kernel: &str) -> Options {
    let shared_limit = if kernel.starts_with("sm90a") { 227 } else { 99 } * 1024;
    Options { shared_limit, ..Options::default() }
}
