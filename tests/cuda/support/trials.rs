//! Launches of the kernels that are no GEMMs, and the reference they are held to.
//!
//! Equal means every bit. Only the sign of a NaN is not compared as it stands: where a CPU makes a NaN (0 · ∞, ∞ / ∞) its
//! sign is the processor's choice (negative on x86, positive on ARM), and the kernels write the canonical NaN instead. So
//! NaN of the reference is made canonical, and the kernels must give just that.

use finegrain::cuda::RecipeArgs;
use finegrain::cuda::kernels::Kernel;
use finegrain::formats::{Format, Overflow};
use finegrain::matrix::Matrix;
use finegrain::quant::{Amax, ElementCast, QuantStats, Quantized, Quantizer, Recipe, swiglu};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use half::bf16;
use ptx_emulator::{Arg, Device, Fault, Module, Report};

use super::interpreter::{
    Bits, Float, KINDS, Output, ScaleOutput, Shape, Stored, input, int, recipe_argument, run, shape, upload,
    upload_scales,
};

pub const GRANULE: usize = 128;

pub fn kernel(name: &str) -> &'static Kernel {
    Kernel::by_name(name).unwrap_or_else(|| panic!("no kernel {name}"))
}

/// The recipes that the kernels compute.
pub fn recipes() -> Vec<&'static Recipe> {
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

/// Recipes beside the published ones: without a floor under amax, so that scales become as small as they can; and with a
/// cast that does not saturate where NaN decides the scale, so that elements can lie around the largest code.
pub fn made_up_recipes() -> Vec<&'static Recipe> {
    let without_floor = |r: &Recipe| Recipe { amax: Amax { floor: 0.0, ..r.amax }, ..*r };
    let overflowing = Recipe { cast: ElementCast::Plain(Overflow::NonSaturating), ..Recipe::TE };
    let all = recipes().into_iter().map(without_floor).chain([overflowing]);
    all.map(|r| &*Box::leak(Box::new(r))).collect()
}

/// What a kernel left in memory.
#[derive(Debug)]
struct Outcome {
    /// `None` where a place was not written, or one beside them was.
    words: Option<(Vec<u32>, Vec<u32>)>,
    /// In the order of `stats.cuh`.
    counted: Vec<u64>,
    report: Report,
}

/// Runs a quantiser: `inputs` are its arguments before the number of rows; codes come as a matrix of `out`, scales as one of
/// `grid`, both row-major.
fn quantize(
    module: &Module,
    kernel: &Kernel,
    shape: Shape,
    (out, grid): ((usize, usize), (usize, usize)),
    recipe: &Recipe,
    stored: Stored,
    inputs: impl FnOnce(&mut Device) -> Vec<Arg>,
) -> Result<Outcome, Box<Fault>> {
    let mut device = Device::new();
    let mut args = inputs(&mut device);
    let ld_codes = out.1 + shape.extra[1];
    let codes = Output::new(&mut device, out, ld_codes, shape.offset[1], 1);
    let scales = ScaleOutput::new(&mut device, grid, stored);
    args.extend([int(shape.rows), int(shape.cols), Arg::Ptr(codes.address), Arg::U64(ld_codes as u64)]);
    // The counters are added to.
    let counters = device.alloc(8 * COUNTERS.len());
    device.write(counters, bytemuck::cast_slice(&COUNTERS)).unwrap();
    args.extend([scales.argument(recipe), recipe_argument(recipe), Arg::Ptr(counters)]);
    let report = run(&mut device, module, kernel, shape, args)?;
    let words = codes.read(&mut device).zip(scales.read(&mut device));
    let counted = device.read(counters, 8 * COUNTERS.len()).unwrap();
    let counted = counted.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let counted = counted.zip(COUNTERS).map(|(counted, before)| counted.wrapping_sub(before)).collect();
    Ok(Outcome { words, counted, report })
}

/// What the counters hold before a launch.
const COUNTERS: [u64; 8] = [5, 0, u32::MAX as u64, 7, 0, 1 << 40, 3, 2];

/// What a kernel counts of these statistics.
fn counts(s: &QuantStats) -> Vec<u64> {
    vec![
        s.nan,
        s.infinite,
        s.saturated,
        s.flushed,
        s.lost,
        s.zero_granules,
        s.floored_granules,
        s.nonfinite_granules,
    ]
}

// ---- the kernels and their reference -----------------------------------------------------------------------------------

/// Codes and scales that the reference gives.
fn parts(q: &ScaledMatrix) -> (&Matrix<u8>, &Matrix<f32>) {
    let Codes::Bytes(codes) = q.codes() else { panic!("codes are bytes") };
    let ScaleGrid::F32(scales) = &q.scales().unwrap().grid else { panic!("scales are f32") };
    (codes, scales)
}

/// What a matrix holds.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Granules of one kind after the other, from this one on.
    Kinds(usize),
    /// Numbers in no order: what differs in few of many shows.
    Random,
    /// Numbers whose payloads lie at most two steps beside the middle of two codes: a factor that is one step off shows.
    Ties,
    /// Tiles whose scales lie at powers of two and some steps beyond, subnormal ones included; and elements around 448
    /// beside a NaN or an infinity, for which some recipes scale by 1 or by a half. In the shape [`EDGES`].
    Edges,
    /// Numbers whose codes are not zero, but for one in 64 columns: flushed, a NaN or an infinity. Whoever looks again does
    /// so for its sake alone, and it is counted where another warp has its granule. In the shape [`ALONE`].
    Alone,
}

/// Binades in which [`Values::Edges`] has scales: all those where the rounding of log2 changes, and the ends.
const BINADES: [i32; 30] = [
    -143, -135, -129, -128, -127, -126, -125, -64, -63, -33, -32, -31, -17, -16, -15, -9, -8, -7, -5, -4, -3,
    -2, -1, 0, 1, 2, 4, 8, 32, 64,
];

/// From four steps below a power of two to two beyond the most that the rounding of log2 absorbs.
pub const EDGES: Shape = shape(51, (BINADES.len() + 1) * GRANULE, [0, 0], [0, 0]);

/// The shape of [`Values::Random`] and [`Values::Ties`].
pub const MANY: Shape = shape(64, 1024, [0, 0], [0, 0]);

/// The shape of [`Values::Alone`]: nothing is past the end, where codes are zero.
pub const ALONE: Shape = shape(GRANULE, 256, [0, 0], [0, 0]);

impl Values {
    fn matrix<T: Float>(self, rows: usize, cols: usize, granule: Granule) -> Matrix<T> {
        let mut bits = Bits(0xED6E);
        match self {
            Values::Kinds(first) => input(rows, cols, granule, first),
            Values::Random => Matrix::from_fn(rows, cols, |_, _| T::of(bits.float(-3, 5))),
            Values::Ties => {
                let granules = granule.grid(rows, cols);
                let amax = Matrix::from_fn(granules.0, granules.1, |_, _| bits.float(-3, 5).abs());
                Matrix::from_fn(rows, cols, |i, j| {
                    let amax = amax.row(i / granule.rows())[j / granule.cols()];
                    // The normal codes but the largest, each with the next one.
                    let code = 8 + (j as u16 * 7 + i as u16) % 118;
                    let [low, high] = [code, code + 1].map(|c| f64::from(Format::E4M3.decode_f32(c)));
                    let tie = ((low + high) / 2.0 / 448.0 * f64::from(amax)) as f32;
                    T::of(match j % granule.cols() {
                        0 => amax,
                        _ => f32::from_bits(tie.to_bits() + j as u32 % 5 - 2),
                    })
                })
            }
            Values::Edges => Matrix::from_fn(rows, cols, |i, j| {
                let beside = [f32::NAN, f32::INFINITY][i % 2];
                T::of(match BINADES.get(j / GRANULE) {
                    Some(&e) if j % GRANULE == i => {
                        f32::from_bits((448.0 * pow2(e)).to_bits() + i as u32 - 4)
                    }
                    Some(_) => 0.0,
                    None if j % GRANULE == i => beside,
                    // Scaled by 1 or by a half.
                    None => (408.0 + (j % GRANULE) as f32) * [1.0, 2.0][i / 2 % 2],
                })
            }),
            Values::Alone => {
                let flushed = pow2(-40);
                let alone = [flushed, f32::NAN, flushed, f32::INFINITY]
                    .map(|x| (x, bits.below(GRANULE as u32) as usize, bits.below(64) as usize));
                Matrix::from_fn(rows, cols, |i, j| {
                    let (x, row, col) = alone[j / 64];
                    T::of(if (row, col) == (i, j % 64) { x } else { bits.float(-3, 5) })
                })
            }
        }
    }
}

/// 2^e · 448 is a normal number for each e here, while 2^e need not be one.
fn pow2(e: i32) -> f32 {
    if e >= -126 { f32::from_bits(((e + 127) as u32) << 23) } else { f32::from_bits(1 << (e + 149)) }
}

/// One launch of one quantiser and what it should give.
pub struct Trial {
    pub kernel: &'static Kernel,
    pub shape: Shape,
    pub recipe: &'static Recipe,
    pub stored: Stored,
    pub values: Values,
}

impl Trial {
    /// Runs it on a module; `Ok` holds the number of equal words and the report.
    pub fn on(&self, module: &Module) -> Result<(usize, Report), String> {
        if self.kernel.name.ends_with("_bf16") {
            self.typed::<bf16>(module)
        } else {
            self.typed::<f32>(module)
        }
    }

    fn typed<T: Float>(&self, module: &Module) -> Result<(usize, Report), String> {
        let Trial { shape, recipe, stored, values, kernel } = *self;
        let first_kind = if let Values::Kinds(first) = values { first } else { 0 };
        let Shape { rows, cols, extra, offset } = shape;
        let quantizer = Quantizer::new(*recipe);
        let name = kernel.name;
        let ld = cols + extra[0];
        let place = |device: &mut Device, x: &Matrix<T>| {
            [Arg::Ptr(upload(device, x.view(), ld, offset[0])), Arg::U64(ld as u64)]
        };
        let launch = |q: &Quantized, inputs: &dyn Fn(&mut Device) -> Vec<Arg>| {
            let q = &q.matrix;
            let shapes = (q.shape(), q.scales().unwrap().grid.view().shape());
            quantize(module, kernel, shape, shapes, recipe, stored, inputs)
        };
        let (tile, column) = (Granule::TILE_1X128, Granule::TILE_1X128.transposed());
        let (want, got) = if name.starts_with("swiglu") {
            // The distance between the kinds of gate and up grows by 5 on each round, which is coprime to their number:
            // all pairs occur.
            let gate = values.matrix::<T>(rows, cols, tile);
            let up = match values {
                Values::Kinds(first) => input::<T>(rows, cols, tile, first + 5 * (first / KINDS) + 1),
                _ => values.matrix::<T>(rows, cols, tile).map(|&v| T::of(1.0 + v.to_f32() * 0.01)),
            };
            let y = swiglu(gate.view(), up.view()).unwrap();
            let want = quantizer.in_granules(y.view(), tile).unwrap();
            let got = launch(&want, &|device| [place(device, &gate), place(device, &up)].concat());
            (want, got)
        } else if name.starts_with("requantize") {
            let x = match values {
                Values::Kinds(_) => codes_in_tiles(rows, cols, first_kind, stored.bytes(), tile),
                _ => {
                    quantizer.in_granules(values.matrix::<f32>(rows, cols, tile).view(), tile).unwrap().matrix
                }
            };
            let want = Quantizer::new(Recipe { activation: tile, ..*recipe });
            let want = want.requantize_transposed(x.view()).unwrap();
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
            let x = values.matrix::<T>(rows, cols, granule);
            let want = if granule == column {
                Quantizer::new(Recipe { activation: tile, ..*recipe }).transposed(x.view())
            } else {
                quantizer.in_granules(x.view(), granule)
            };
            let want = want.unwrap();
            let got = launch(&want, &|device| place(device, &x).to_vec());
            (want, got)
        };
        let got = got.map_err(|fault| format!("{self}: {fault}"))?;
        let Some((codes, scales)) = got.words else {
            return Err(format!("{self}: an element is not written, or the padding is"));
        };
        let (want_codes, want_scales) = parts(&want.matrix);
        let want_codes: Vec<u32> = want_codes.as_slice().iter().map(|&c| u32::from(c)).collect();
        let want_scales: Vec<u32> = want_scales.as_slice().iter().map(|&s| stored.bits(s)).collect();
        compare(&scales, &want_scales).map_err(|e| format!("{self}: scales: {e}"))?;
        compare(&codes, &want_codes).map_err(|e| format!("{self}: codes: {e}"))?;
        let want_counts = counts(&want.stats);
        if got.counted != want_counts {
            return Err(format!("{self}: counted {:?}, expected {want_counts:?}", got.counted));
        }
        Ok((codes.len() + scales.len(), got.report))
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trial { kernel, shape, recipe, stored, values } = self;
        write!(f, "{}, {}, {shape:?}, {stored:?}, {values:?}", kernel.name, recipe.name)
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
pub fn codes_in_tiles(rows: usize, cols: usize, seed: usize, bytes: bool, granule: Granule) -> ScaledMatrix {
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
        if (i / 3 + j / GRANULE).is_multiple_of(2) && code & 0x7F == 0x7F { 0 } else { code }
    });
    let scales = Scales { granule, grid: ScaleGrid::F32(scales), tensor: 1.0 };
    ScaledMatrix::new(Format::E4M3, Codes::Bytes(codes), Some(scales)).unwrap()
}

/// For kernels over rows: dense; ragged with an unaligned leading dimension of the codes; unaligned throughout; rows that are
/// aligned but end within a chunk; one element.
pub const ROWS: [Shape; 5] = [
    shape(16, 256, [0, 0], [0, 0]),
    shape(13, 300, [0, 0], [0, 0]),
    shape(15, 130, [1, 3], [1, 1]),
    shape(14, 141, [3, 3], [4, 16]),
    shape(1, 1, [0, 0], [0, 0]),
];

/// The same for kernels whose granules have 128 rows.
pub const BLOCKS: [Shape; 5] = [
    shape(128, 128, [0, 0], [0, 0]),
    shape(131, 200, [0, 0], [0, 0]),
    shape(17, 70, [3, 5], [1, 3]),
    shape(140, 29, [3, 4], [0, 0]),
    shape(1, 1, [0, 0], [0, 0]),
];

pub fn dequantized_on(
    module: &Module,
    name: &str,
    shape: Shape,
    x: &ScaledMatrix,
    stored: Stored,
) -> Result<(usize, Report), String> {
    let kernel = kernel(name);
    let of = if name.ends_with("_bf16") { dequantize::<bf16> } else { dequantize::<f32> };
    of(module, kernel, shape, x, stored)
}

fn dequantize<T: Float>(
    module: &Module,
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
    let report = run(&mut device, module, kernel, shape, args).map_err(|fault| fault.to_string())?;
    let got = out.read(&mut device).ok_or("an element is not written, or the padding is")?;
    let want: Vec<u32> = x.dequantize().unwrap().as_slice().iter().map(|&v| T::canonical(v)).collect();
    compare(&got, &want)?;
    Ok((got.len(), report))
}
