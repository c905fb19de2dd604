//! Gate B of the kernels that are no GEMMs: the committed PTX, run by the interpreter with its checks for races and for
//! memory that nothing wrote, gives the bits of `quant` on every recipe it can be asked for. Needs neither NVRTC nor a GPU.
//!
//! Equal means every bit. Only the sign of a NaN is not compared as it stands: where a CPU makes a NaN (0 · ∞, ∞ / ∞) its
//! sign is the processor's choice (negative on x86, positive on ARM), and the kernels write the canonical NaN instead. So
//! NaN of the reference is made canonical, and the kernels must give just that.
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use finegrain::cuda::kernels::{Desc, Kernel};
use finegrain::cuda::{RecipeArgs, ScaleGridArgs};
use finegrain::formats::{Format, e8m0};
use finegrain::matrix::{MatRef, Matrix};
use finegrain::quant::{Element, Quantizer, Recipe, ScaleFormat, swiglu};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use half::bf16;
use ptx_emulator::{Arg, Device, Fault, Launch, Module, Options, Report};

const PTX: [(&str, &str); 5] = [
    ("quantize_1x128.cu", include_str!("../kernels/ptx/quantize_1x128.sm_89.ptx")),
    ("quantize_128x128.cu", include_str!("../kernels/ptx/quantize_128x128.sm_89.ptx")),
    ("quantize_128x1.cu", include_str!("../kernels/ptx/quantize_128x1.sm_89.ptx")),
    ("dequantize.cu", include_str!("../kernels/ptx/dequantize.sm_89.ptx")),
    ("swiglu_quantize_1x128.cu", include_str!("../kernels/ptx/swiglu_quantize_1x128.sm_89.ptx")),
];

const GRANULE: usize = 128;
/// In every byte that lies between the rows of an output: a kernel that writes there is found out.
const PADDING: u8 = 0xA5;

fn kernel(name: &str) -> &'static Kernel {
    Kernel::by_name(name).unwrap_or_else(|| panic!("no kernel {name}"))
}

fn ptx(kernel: &Kernel) -> &'static str {
    PTX.iter().find(|(file, _)| *file == kernel.source.file).expect("its PTX is listed").1
}

fn module(kernel: &Kernel) -> &'static Module {
    static MODULES: OnceLock<BTreeMap<&str, Module>> = OnceLock::new();
    let parse = || PTX.iter().map(|(file, text)| (*file, Module::parse(text).unwrap())).collect();
    &MODULES.get_or_init(parse)[kernel.source.file]
}

/// The recipes that the kernels compute.
fn recipes() -> Vec<&'static Recipe> {
    let supported: Vec<_> = Recipe::ALL.iter().filter(|r| RecipeArgs::try_from(*r).is_ok()).collect();
    for name in [
        "deepseek-v3",
        "deepseek-v3-ue8m0",
        "deepseek-v3.2-ue8m0",
        "deepgemm",
        "te",
        "te-kernel",
        "fbgemm",
        "compressed-tensors",
    ] {
        assert!(supported.iter().any(|r| r.name == name), "{name} has lost its kernels");
    }
    supported
}

// ---- inputs ----------------------------------------------------------------------------------------------------------

/// A repeatable stream of bits.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, n: u32) -> u32 {
        (u64::from(self.next()) * u64::from(n) >> 32) as u32
    }

    /// Either sign, a random fraction, an exponent of `lowest .. lowest + count`.
    fn float(&mut self, lowest: i32, count: u32) -> f32 {
        let field = (lowest + 127) as u32 + self.below(count);
        let bits = self.next();
        f32::from_bits(bits & 0x807F_FFFF | field << 23)
    }
}

/// What a granule holds; the last few are decided by one element at a random place, so that an amax which misses any of
/// a granule's elements cannot be right.
const KINDS: usize = 14;

fn element(kind: usize, decisive: bool, bits: &mut Bits) -> f32 {
    let small = bits.float(-6, 8);
    match kind {
        0 => small,
        1 => 0.0,
        2 => f32::from_bits(bits.next() & 0x8000_0000),
        // Subnormals, and for bf16 its subnormals too.
        3 => f32::from_bits(bits.next() & 0x807F_FFFF),
        4 => bits.float(100, 28),
        // Below every recipe's floor; reciprocals overflow.
        5 => bits.float(-126, 8),
        // Every bit pattern: NaN and infinity one in 256.
        6 => f32::from_bits(bits.next()),
        7 => f32::NAN,
        8 if decisive => f32::INFINITY.copysign(small),
        9 if decisive => f32::from_bits(0x7F80_0001 | bits.next()),
        // Infinity and NaN in one granule.
        10 if small.to_bits() % 64 < 2 => [f32::NEG_INFINITY, f32::NAN][small.to_bits() as usize % 2],
        // amax 448 · 2^k and a few steps beyond: where scales that become powers of two change.
        11 if decisive => {
            let amax = 448.0 * (bits.below(60) as f32 - 30.0).exp2();
            f32::from_bits(amax.to_bits() + bits.below(80) - 4)
        }
        12 if decisive => f32::MAX.copysign(small),
        13 if decisive => bits.float(3, 4),
        13 => 0.0,
        _ => small / 1024.0,
    }
}

trait Float: Element + bytemuck::Pod {
    fn of(x: f32) -> Self;
    /// The bits of x rounded to this type, NaN made canonical.
    fn canonical(x: f32) -> u32;
}

impl Float for f32 {
    fn of(x: f32) -> Self {
        x
    }
    fn canonical(x: f32) -> u32 {
        if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() }
    }
}

impl Float for bf16 {
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn canonical(x: f32) -> u32 {
        if x.is_nan() { 0x7FC0 } else { u32::from(bf16::from_f32(x).to_bits()) }
    }
}

/// A matrix whose granules are of one kind after the other, beginning with `first`.
fn input<T: Float>(rows: usize, cols: usize, granule: Granule, first: usize) -> Matrix<T> {
    let mut bits = Bits(0x9E37_79B9 + first as u64);
    let (height, width) = (granule.rows(), granule.cols());
    let (_, across) = granule.grid(rows, cols);
    let mut chosen = |i: usize, j: usize| {
        let (h, w) = (height.min(rows - i * height), width.min(cols - j * width));
        (i * height + bits.below(h as u32) as usize, j * width + bits.below(w as u32) as usize)
    };
    let decisive: Vec<_> =
        (0..rows.div_ceil(height) * across).map(|g| chosen(g / across, g % across)).collect();
    Matrix::from_fn(rows, cols, |i, j| {
        let g = i / height * across + j / width;
        T::of(element((first + g) % KINDS, decisive[g] == (i, j), &mut bits))
    })
}

// ---- launches --------------------------------------------------------------------------------------------------------

/// A shape and how its matrices lie in memory: rows `extra` elements longer than they need to be, the first one at
/// `offset` elements after an address that is a multiple of 256.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    cols: usize,
    extra: [usize; 2],
    offset: [usize; 2],
}

const fn shape(rows: usize, cols: usize, extra: [usize; 2], offset: [usize; 2]) -> Shape {
    Shape { rows, cols, extra, offset }
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stored {
    bytes: bool,
    mn_major: bool,
}

impl Stored {
    /// The ways that fit a recipe.
    fn all(recipe: &Recipe) -> impl Iterator<Item = Stored> {
        let power_of_two = recipe.scale_format() != ScaleFormat::F32;
        (0..if power_of_two { 4 } else { 2 }).map(|i| Stored { bytes: i & 2 != 0, mn_major: i & 1 != 0 })
    }

    /// The shape of a grid as it lies in memory and the distance of its rows.
    fn laid_out(self, rows: usize, cols: usize) -> (usize, usize, usize) {
        if self.mn_major { (cols, rows, rows.next_multiple_of(4)) } else { (rows, cols, cols) }
    }

    fn argument(self, address: u64, ld: usize, recipe: Option<&Recipe>) -> Arg {
        let strides = if self.mn_major { (1, ld as i64) } else { (ld as i64, 1) };
        let grid = ScaleGridArgs::new(address, strides, self.bytes, recipe).unwrap();
        let mut bytes = grid.data.to_le_bytes().to_vec();
        bytes.extend(grid.row_stride.to_le_bytes());
        bytes.extend(grid.col_stride.to_le_bytes());
        bytes.extend(grid.kind.to_le_bytes());
        bytes.extend([0; 4]);
        Arg::Bytes(bytes)
    }

    /// What a scale of the reference is in memory.
    fn bits(self, scale: f32) -> u32 {
        if self.bytes { u32::from(e8m0::nearest(scale)) } else { f32::canonical(scale) }
    }
}

fn recipe_argument(recipe: &Recipe) -> Arg {
    let r = RecipeArgs::try_from(recipe).unwrap();
    let integers = [r.form, r.power_of_two, r.payload, r.cast, r.ignores_nan, r.replaces];
    let floats = [r.floor, r.max, r.inv_max, r.zero, r.overflow, r.infinite, r.nan];
    let words = integers.into_iter().map(|i| i as u32).chain(floats.into_iter().map(f32::to_bits));
    Arg::Bytes(words.flat_map(u32::to_le_bytes).collect())
}

/// A matrix in device memory that a kernel fills: between its rows there is padding.
struct Output {
    address: u64,
    shape: (usize, usize),
    ld: usize,
    size: usize,
}

impl Output {
    fn new(device: &mut Device, shape: (usize, usize), ld: usize, offset: usize, size: usize) -> Output {
        let (rows, cols) = shape;
        // Nothing lies behind the last row's last element: to write there is a fault.
        let address = device.alloc((offset + (rows - 1) * ld + cols) * size) + (offset * size) as u64;
        for row in 1..rows {
            let end = address + ((row * ld - (ld - cols)) * size) as u64;
            device.write(end, &vec![PADDING; (ld - cols) * size]).unwrap();
        }
        Output { address, shape, ld, size }
    }

    /// The elements row by row, or `None` if something wrote between the rows or left an element unwritten.
    fn read(&self, device: &mut Device) -> Option<Vec<u32>> {
        let (rows, cols) = self.shape;
        let mut words = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            let stored = if row + 1 < rows { self.ld } else { cols } * self.size;
            let bytes = device.read(self.address + (row * self.ld * self.size) as u64, stored).ok()?;
            let (data, padding) = bytes.split_at(cols * self.size);
            if padding.iter().any(|&b| b != PADDING) {
                return None;
            }
            words.extend(
                data.chunks_exact(self.size).map(|b| b.iter().rev().fold(0, |w, &b| w << 8 | u32::from(b))),
            );
        }
        Some(words)
    }
}

/// Copies a matrix to the device; the padding between its rows stays unwritten, so that to read it is a fault.
fn upload<T: bytemuck::Pod>(device: &mut Device, x: MatRef<'_, T>, ld: usize, offset: usize) -> u64 {
    let (rows, cols) = x.shape();
    let size = size_of::<T>();
    let address = device.alloc((offset + (rows - 1) * ld + cols) * size) + (offset * size) as u64;
    for (i, row) in x.iter_rows().enumerate() {
        device.write(address + (i * ld * size) as u64, bytemuck::cast_slice(row)).unwrap();
    }
    address
}

fn upload_scales(device: &mut Device, scales: &Matrix<f32>, stored: Stored) -> Arg {
    let (rows, cols) = scales.shape();
    let (_, _, ld) = stored.laid_out(rows, cols);
    let grid = if stored.mn_major { scales.view().transposed() } else { scales.clone() };
    let address = if stored.bytes {
        upload(device, grid.map(|&s| e8m0::nearest(s)).view(), ld, 0)
    } else {
        upload(device, grid.view(), ld, 0)
    };
    stored.argument(address, ld, None)
}

fn int(n: usize) -> Arg {
    Arg::I32(i32::try_from(n).unwrap())
}

fn run(
    device: &mut Device,
    module: &Module,
    kernel: &Kernel,
    shape: Shape,
    args: Vec<Arg>,
) -> Result<Report, Fault> {
    let config = kernel.config(Desc::matrix(shape.rows, shape.cols)).unwrap();
    let launch =
        Launch { grid: config.grid, block: config.block, dynamic_shared: config.dynamic_shared, args };
    device.launch(module, kernel.name, &launch, &Options { check_races: true, ..Options::default() })
}

/// What a kernel left in memory.
#[derive(Debug)]
struct Outcome {
    /// `None` where a place was not written, or one beside them was.
    words: Option<(Vec<u32>, Vec<u32>)>,
    report: Report,
}

/// Runs a quantiser: `inputs` are its arguments before the number of rows; codes come as a matrix of `out`, scales as one of
/// `grid`, both row-major.
fn quantise(
    module: &Module,
    kernel: &Kernel,
    shape: Shape,
    (out, grid): ((usize, usize), (usize, usize)),
    recipe: &Recipe,
    stored: Stored,
    inputs: impl FnOnce(&mut Device) -> Vec<Arg>,
) -> Result<Outcome, Fault> {
    let mut device = Device::new();
    let mut args = inputs(&mut device);
    let ld_codes = out.1 + shape.extra[1];
    let codes = Output::new(&mut device, out, ld_codes, shape.offset[1], 1);
    let (r, c, ld) = stored.laid_out(grid.0, grid.1);
    let scales = Output::new(&mut device, (r, c), ld, 0, if stored.bytes { 1 } else { 4 });
    args.extend([int(shape.rows), int(shape.cols), Arg::Ptr(codes.address), Arg::U64(ld_codes as u64)]);
    args.extend([stored.argument(scales.address, ld, Some(recipe)), recipe_argument(recipe)]);
    let report = run(&mut device, module, kernel, shape, args)?;
    let words = codes.read(&mut device).zip(scales.read(&mut device));
    let words = words.map(|(codes, scales)| {
        let scales = Matrix::from_vec(r, c, scales).unwrap();
        (codes, if stored.mn_major { scales.view().transposed() } else { scales }.into_vec())
    });
    Ok(Outcome { words, report })
}

// ---- the kernels and their reference -----------------------------------------------------------------------------------

/// Codes and scales that the reference gives.
fn parts(q: &ScaledMatrix) -> (&Matrix<u8>, &Matrix<f32>) {
    let Codes::Bytes(codes) = q.codes() else { panic!("codes are bytes") };
    let ScaleGrid::F32(scales) = &q.scales().unwrap().grid else { panic!("scales are f32") };
    (codes, scales)
}

/// One launch of one quantiser and what it should give.
struct Trial {
    kernel: &'static Kernel,
    shape: Shape,
    recipe: &'static Recipe,
    stored: Stored,
    first_kind: usize,
}

impl Trial {
    /// Runs it on a module; `Ok` holds the number of equal words and the report.
    fn on(&self, module: &Module) -> Result<(usize, Report), String> {
        if self.kernel.name.ends_with("_bf16") {
            self.typed::<bf16>(module)
        } else {
            self.typed::<f32>(module)
        }
    }

    fn typed<T: Float>(&self, module: &Module) -> Result<(usize, Report), String> {
        let Trial { shape, recipe, stored, first_kind, kernel } = *self;
        let Shape { rows, cols, extra, offset } = shape;
        let quantizer = Quantizer::new(*recipe);
        let name = kernel.name;
        let ld = cols + extra[0];
        let place = |device: &mut Device, x: &Matrix<T>| {
            [Arg::Ptr(upload(device, x.view(), ld, offset[0])), Arg::U64(ld as u64)]
        };
        let launch = |q: &ScaledMatrix, inputs: &dyn Fn(&mut Device) -> Vec<Arg>| {
            let shapes = (q.shape(), q.scales().unwrap().grid.view().shape());
            quantise(module, kernel, shape, shapes, recipe, stored, inputs)
        };
        let (tile, column) = (Granule::TILE_1X128, Granule::TILE_1X128.transposed());
        let (want, got) = if name.starts_with("swiglu") {
            // The distance between the kinds of gate and up grows by 5 on each round, which is coprime to their number:
            // all pairs occur.
            let gate = input::<T>(rows, cols, tile, first_kind);
            let up = input::<T>(rows, cols, tile, first_kind + 5 * (first_kind / KINDS) + 1);
            let y = swiglu(gate.view(), up.view()).unwrap();
            let want = quantizer.in_granules(y.view(), tile).unwrap().matrix;
            let got = launch(&want, &|device| [place(device, &gate), place(device, &up)].concat());
            (want, got)
        } else if name.starts_with("requantize") {
            let x = codes_in_tiles(rows, cols, first_kind, stored.bytes, tile);
            let want = Quantizer::new(Recipe { activation: tile, ..*recipe });
            let want = want.requantize_transposed(x.view()).unwrap().matrix;
            let (codes, scales) = parts(&x);
            let got = launch(&want, &|device| {
                let address = upload(device, codes.view(), ld, offset[0]);
                vec![Arg::Ptr(address), Arg::U64(ld as u64), upload_scales(device, scales, stored)]
            });
            (want, got)
        } else {
            let granule = if name.contains("128x128") {
                Granule::BLOCK_128X128
            } else if name.contains("128x1_") {
                column
            } else {
                tile
            };
            let x = input::<T>(rows, cols, granule, first_kind);
            let want = if granule == column {
                Quantizer::new(Recipe { activation: tile, ..*recipe }).transposed(x.view())
            } else {
                quantizer.in_granules(x.view(), granule)
            };
            let want = want.unwrap().matrix;
            let got = launch(&want, &|device| place(device, &x).to_vec());
            (want, got)
        };
        let got = got.map_err(|fault| format!("{self}: {fault}"))?;
        let Some((codes, scales)) = got.words else {
            return Err(format!("{self}: an element is not written, or the padding is"));
        };
        let (want_codes, want_scales) = parts(&want);
        let want_codes: Vec<u32> = want_codes.as_slice().iter().map(|&c| u32::from(c)).collect();
        let want_scales: Vec<u32> = want_scales.as_slice().iter().map(|&s| stored.bits(s)).collect();
        compare(&scales, &want_scales).map_err(|e| format!("{self}: scales: {e}"))?;
        compare(&codes, &want_codes).map_err(|e| format!("{self}: codes: {e}"))?;
        Ok((codes.len() + scales.len(), got.report))
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trial { kernel, shape, recipe, stored, first_kind } = self;
        write!(f, "{}, {}, {shape:?}, {stored:?}, kinds from {first_kind}", kernel.name, recipe.name)
    }
}

fn compare(got: &[u32], want: &[u32]) -> Result<(), String> {
    assert_eq!(got.len(), want.len());
    let mut differing = got.iter().zip(want).enumerate().filter(|(_, (g, w))| g != w);
    match differing.next() {
        None => Ok(()),
        Some((i, (g, w))) => Err(format!(
            "{} of {} differ, first {i}: {g:08x}, expected {w:08x}",
            1 + differing.count(),
            got.len()
        )),
    }
}

/// Codes of every pattern with scales of every kind, in granules of `granule`.
fn codes_in_tiles(rows: usize, cols: usize, seed: usize, bytes: bool, granule: Granule) -> ScaledMatrix {
    let mut bits = Bits(seed as u64);
    let (r, c) = granule.grid(rows, cols);
    let scales = Matrix::from_fn(r, c, |i, j| match (bytes, (seed + i * c + j) % 8) {
        (true, 0) => f32::from_bits(0x0040_0000),
        (true, 1) => f32::NAN,
        (true, 2) => 127f32.exp2(),
        (true, _) => (bits.below(40) as f32 - 20.0).exp2(),
        (false, 0) => 0.0,
        (false, 1) => [f32::NAN, f32::INFINITY, f32::MAX][bits.below(3) as usize],
        (false, 2) => f32::from_bits(bits.next() & 0x007F_FFFF),
        (false, _) => bits.float(-20, 30).abs(),
    });
    // Half of the tiles without NaN, so that amax shows.
    let codes = Matrix::from_fn(rows, cols, |i, j| {
        let code = (bits.next() >> 24) as u8;
        if (i / 3 + j / GRANULE) % 2 == 0 && code & 0x7F == 0x7F { 0 } else { code }
    });
    let scales = Scales { granule, grid: ScaleGrid::F32(scales), tensor: 1.0 };
    ScaledMatrix::new(Format::E4M3, Codes::Bytes(codes), Some(scales)).unwrap()
}

// ---- the tests ---------------------------------------------------------------------------------------------------------

/// For kernels over rows: dense; ragged with an unaligned leading dimension of the codes; unaligned throughout; rows that are
/// aligned but end within a chunk; one element.
const ROWS: [Shape; 5] = [
    shape(16, 256, [0, 0], [0, 0]),
    shape(13, 300, [0, 0], [0, 0]),
    shape(15, 130, [1, 3], [1, 1]),
    shape(14, 141, [3, 3], [4, 16]),
    shape(1, 1, [0, 0], [0, 0]),
];

/// The same for kernels whose granules have 128 rows.
const BLOCKS: [Shape; 5] = [
    shape(128, 128, [0, 0], [0, 0]),
    shape(131, 200, [0, 0], [0, 0]),
    shape(17, 70, [3, 5], [1, 3]),
    shape(140, 29, [3, 4], [0, 0]),
    shape(1, 1, [0, 0], [0, 0]),
];

/// Every recipe and every way to store its scales on every shape, the kinds of granules going round.
fn check(names: &[&str], shapes: &[Shape]) {
    let (mut compared, mut launches) = (0, 0);
    let mut wrong = Vec::new();
    for name in names {
        let kernel = kernel(name);
        let mut first_kind = 0;
        for recipe in recipes() {
            for stored in Stored::all(recipe) {
                for &shape in shapes {
                    first_kind += 3;
                    let trial = Trial { kernel, shape, recipe, stored, first_kind };
                    match trial.on(module(kernel)) {
                        Ok((words, _)) => compared += words,
                        Err(why) => wrong.push(why),
                    }
                    launches += 1;
                }
            }
        }
    }
    println!("{names:?}: {compared} codes and scales in {launches} launches");
    assert!(
        wrong.is_empty(),
        "{} of {launches} launches are wrong:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}

#[test]
fn tiles_have_the_reference_bits() {
    check(&["quantize_1x128_f32", "quantize_1x128_bf16"], &ROWS);
}

#[test]
fn swiglu_has_the_reference_bits() {
    check(&["swiglu_quantize_1x128_f32", "swiglu_quantize_1x128_bf16"], &ROWS);
}

#[test]
fn blocks_have_the_reference_bits() {
    // Blocks are few, so one launch a recipe has as many as there are kinds.
    let shape = shape(5, GRANULE * KINDS - 100, [0, 0], [0, 0]);
    for name in ["quantize_128x128_f32", "quantize_128x128_bf16"] {
        for (i, recipe) in recipes().into_iter().enumerate() {
            let stored = Stored::all(recipe).last().unwrap();
            let trial = Trial { kernel: kernel(name), shape, recipe, stored, first_kind: i };
            trial.on(module(trial.kernel)).unwrap_or_else(|why| panic!("{why}"));
        }
    }
    check(&["quantize_128x128_f32", "quantize_128x128_bf16"], &BLOCKS);
}

#[test]
fn transposes_have_the_reference_bits() {
    check(&["quantize_128x1_f32", "quantize_128x1_bf16", "requantize_transpose_e4m3"], &BLOCKS);
}

#[test]
fn values_have_the_reference_bits() {
    let (mut compared, mut launches) = (0, 0);
    let stored = |i: usize| Stored { bytes: i & 2 != 0, mn_major: i & 1 != 0 };
    for granule in [Granule::TILE_1X128, Granule::BLOCK_128X128] {
        for (n, shape) in ROWS.into_iter().chain(BLOCKS).enumerate() {
            for i in 0..4 {
                let x = codes_in_tiles(shape.rows, shape.cols, 4 * n + i, stored(i).bytes, granule);
                for outcome in [
                    dequantise::<f32>(kernel("dequantize_e4m3_f32"), shape, &x, stored(i)),
                    dequantise::<bf16>(kernel("dequantize_e4m3_bf16"), shape, &x, stored(i)),
                ] {
                    compared += outcome
                        .unwrap_or_else(|why| panic!("{shape:?}, {granule}, {:?}: {why}", stored(i)))
                        .0;
                    launches += 1;
                }
            }
        }
    }
    println!("dequantize: {compared} values in {launches} launches");
}

fn dequantise<T: Float>(
    kernel: &Kernel,
    shape: Shape,
    x: &ScaledMatrix,
    stored: Stored,
) -> Result<(usize, Report), String> {
    let Shape { rows, cols, extra, offset } = shape;
    let (codes, scales) = parts(x);
    let mut device = Device::new();
    let [ld, ld_out] = extra.map(|e| cols + e);
    let address = upload(&mut device, codes.view(), ld, offset[0]);
    let scales = upload_scales(&mut device, scales, stored);
    let out = Output::new(&mut device, (rows, cols), ld_out, offset[1], size_of::<T>());
    let granule_rows = int(x.scales().unwrap().granule.rows());
    let mut args = vec![Arg::Ptr(address), Arg::U64(ld as u64), scales, granule_rows, int(rows), int(cols)];
    args.extend([Arg::Ptr(out.address), Arg::U64(ld_out as u64)]);
    let report = run(&mut device, module(kernel), kernel, shape, args).map_err(|fault| fault.to_string())?;
    let got = out.read(&mut device).ok_or("an element is not written, or the padding is")?;
    let want: Vec<u32> = x.dequantize().as_slice().iter().map(|&v| T::canonical(v)).collect();
    compare(&got, &want)?;
    Ok((got.len(), report))
}

/// On aligned shapes whole warps move 16 bytes a lane without gaps, and only scales go in narrow accesses; shared memory is
/// free of conflicts.
#[test]
fn memory_is_touched_as_planned() {
    // Kernel, narrow accesses for 256 × 256 elements.
    let (tiles, blocks) = (256 * 2, 2 * 2);
    let planned = [
        ("quantize_1x128_f32", tiles),
        ("quantize_1x128_bf16", tiles),
        ("quantize_128x128_f32", blocks),
        ("quantize_128x128_bf16", blocks),
        ("quantize_128x1_f32", tiles),
        ("quantize_128x1_bf16", tiles),
        // Each chunk of 16 codes needs the scale of its tile.
        ("requantize_transpose_e4m3", tiles + 256 * 256 / 16),
        ("swiglu_quantize_1x128_f32", tiles),
        ("swiglu_quantize_1x128_bf16", tiles),
        // Each chunk of 4 or 8 values needs the scale of its tile.
        ("dequantize_e4m3_f32", 256 * 256 / 4),
        ("dequantize_e4m3_bf16", 256 * 256 / 8),
    ];
    let shape = shape(256, 256, [0, 0], [0, 0]);
    let stored = Stored { bytes: false, mn_major: false };
    for (name, narrow) in planned {
        let kernel = kernel(name);
        let x = codes_in_tiles(shape.rows, shape.cols, 0, false, Granule::TILE_1X128);
        let trial = Trial { kernel, shape, recipe: &Recipe::DEEPSEEK_V3, stored, first_kind: 0 };
        let result = match name {
            "dequantize_e4m3_f32" => dequantise::<f32>(kernel, shape, &x, stored),
            "dequantize_e4m3_bf16" => dequantise::<bf16>(kernel, shape, &x, stored),
            _ => trial.on(module(kernel)),
        };
        let report = result.unwrap_or_else(|why| panic!("{why}")).1;
        let lines = || report.memory.values();
        let accesses: u64 = lines().map(|m| m.accesses).sum();
        let wide: u64 = lines().map(|m| m.wide_accesses).sum();
        let conflicts = report.extra_wavefronts();
        println!(
            "{name}: {:.1} % of {accesses} accesses are 16 bytes, {conflicts} conflicts",
            100.0 * report.wide_share()
        );
        assert_eq!(accesses - wide, narrow, "{name}: narrow accesses");
        let sectors: u64 = lines().filter(|m| m.wide_accesses > 0).map(|m| m.sectors).sum();
        assert_eq!(2 * sectors, wide, "{name}: 16-byte accesses that leave gaps");
        assert_eq!(
            conflicts,
            0,
            "{name}: {:?}",
            lines().filter(|m| m.extra_wavefronts > 0).collect::<Vec<_>>()
        );
    }
}
