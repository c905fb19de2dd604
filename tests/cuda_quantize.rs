//! Gate B of the kernels that are no GEMMs: the committed PTX, run by the interpreter with its checks for races and for
//! memory that nothing wrote, gives the bits of `quant` on every recipe it can be asked for. Needs neither NVRTC nor a GPU.
//!
//! Equal means every bit. Only the sign of a NaN is not compared as it stands: where a CPU makes a NaN (0 · ∞, ∞ / ∞) its
//! sign is the processor's choice (negative on x86, positive on ARM), and the kernels write the canonical NaN instead. So
//! NaN of the reference is made canonical, and the kernels must give just that.
#![cfg(feature = "cuda")]

#[path = "common/interpreter.rs"]
mod interpreter;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use finegrain::cuda::RecipeArgs;
use finegrain::cuda::kernels::Kernel;
use finegrain::formats::Format;
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe, swiglu};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use half::bf16;
use interpreter::{
    Bits, Float, KINDS, Output, ScaleOutput, Shape, Stored, input, int, recipe_argument, run, shape, upload,
    upload_scales,
};
use ptx_emulator::{Arg, Device, Fault, Module, Report};

const PTX: [(&str, &str); 5] = [
    ("quantize_1x128.cu", include_str!("../kernels/ptx/quantize_1x128.sm_89.ptx")),
    ("quantize_128x128.cu", include_str!("../kernels/ptx/quantize_128x128.sm_89.ptx")),
    ("quantize_128x1.cu", include_str!("../kernels/ptx/quantize_128x1.sm_89.ptx")),
    ("dequantize.cu", include_str!("../kernels/ptx/dequantize.sm_89.ptx")),
    ("swiglu_quantize_1x128.cu", include_str!("../kernels/ptx/swiglu_quantize_1x128.sm_89.ptx")),
];

const GRANULE: usize = 128;
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
) -> Result<Outcome, Box<Fault>> {
    let mut device = Device::new();
    let mut args = inputs(&mut device);
    let ld_codes = out.1 + shape.extra[1];
    let codes = Output::new(&mut device, out, ld_codes, shape.offset[1], 1);
    let scales = ScaleOutput::new(&mut device, grid, stored);
    args.extend([int(shape.rows), int(shape.cols), Arg::Ptr(codes.address), Arg::U64(ld_codes as u64)]);
    args.extend([scales.argument(recipe), recipe_argument(recipe)]);
    let report = run(&mut device, module, kernel, shape, args)?;
    let words = codes.read(&mut device).zip(scales.read(&mut device));
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
            let x = codes_in_tiles(rows, cols, first_kind, stored.bytes(), tile);
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
        if (i / 3 + j / GRANULE).is_multiple_of(2) && code & 0x7F == 0x7F { 0 } else { code }
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
            for stored in Stored::all(Some(recipe)) {
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
            let stored = Stored::all(Some(recipe)).last().unwrap();
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
    for granule in [Granule::TILE_1X128, Granule::BLOCK_128X128] {
        for (n, shape) in ROWS.into_iter().chain(BLOCKS).enumerate() {
            for (i, stored) in Stored::all(None).enumerate() {
                let x = codes_in_tiles(shape.rows, shape.cols, 5 * n + i, stored.bytes(), granule);
                for name in ["dequantize_e4m3_f32", "dequantize_e4m3_bf16"] {
                    let outcome = dequantised(name, shape, &x, stored);
                    compared +=
                        outcome.unwrap_or_else(|why| panic!("{shape:?}, {granule}, {stored:?}: {why}")).0;
                    launches += 1;
                }
            }
        }
    }
    println!("dequantize: {compared} values in {launches} launches");
}

fn dequantised(
    name: &str,
    shape: Shape,
    x: &ScaledMatrix,
    stored: Stored,
) -> Result<(usize, Report), String> {
    dequantised_on(module(kernel(name)), name, shape, x, stored)
}

fn dequantised_on(
    module: &Module,
    name: &str,
    shape: Shape,
    x: &ScaledMatrix,
    stored: Stored,
) -> Result<(usize, Report), String> {
    let kernel = kernel(name);
    let of = if name.ends_with("_bf16") { dequantise::<bf16> } else { dequantise::<f32> };
    of(module, kernel, shape, x, stored)
}

fn dequantise<T: Float>(
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
    let want: Vec<u32> = x.dequantize().as_slice().iter().map(|&v| T::canonical(v)).collect();
    compare(&got, &want)?;
    Ok((got.len(), report))
}

/// On aligned shapes whole warps move 16 bytes a lane without gaps, and only scales go in narrow accesses. Codes pass through
/// shared memory without conflicts. What conflicts there are come from amax and factors of the transposing kernels: the
/// lanes of a warp touch 64 / E of 64 columns that are E apart, which are two to a bank, so that each of E writes and E reads
/// takes one wavefront more.
#[test]
fn memory_is_touched_as_planned() {
    // Kernel, narrow accesses for 256 × 256 elements, elements that a thread of a transposing kernel has in a row.
    let (tiles, blocks) = (256 * 2, 2 * 2);
    let planned = [
        ("quantize_1x128_f32", tiles, 0),
        ("quantize_1x128_bf16", tiles, 0),
        ("quantize_128x128_f32", blocks, 0),
        ("quantize_128x128_bf16", blocks, 0),
        ("quantize_128x1_f32", tiles, 4),
        ("quantize_128x1_bf16", tiles, 8),
        // Each chunk of 16 codes needs the scale of its tile.
        ("requantize_transpose_e4m3", tiles + 256 * 256 / 16, 16),
        ("swiglu_quantize_1x128_f32", tiles, 0),
        ("swiglu_quantize_1x128_bf16", tiles, 0),
        // Each chunk of 4 or 8 values needs the scale of its tile.
        ("dequantize_e4m3_f32", 256 * 256 / 4, 0),
        ("dequantize_e4m3_bf16", 256 * 256 / 8, 0),
    ];
    let shape = shape(256, 256, [0, 0], [0, 0]);
    let stored = Stored::PLAIN;
    for (name, narrow, in_a_row) in planned {
        let kernel = kernel(name);
        let x = codes_in_tiles(shape.rows, shape.cols, 0, false, Granule::TILE_1X128);
        let trial = Trial { kernel, shape, recipe: &Recipe::DEEPSEEK_V3, stored, first_kind: 0 };
        let result = if name.starts_with("dequantize") {
            dequantised(name, shape, &x, stored)
        } else {
            trial.on(module(kernel))
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
        // 8 blocks of 8 warps.
        assert_eq!(conflicts, 8 * 8 * 2 * in_a_row, "{name}: conflicts in shared memory");
    }
}

// ---- planted bugs --------------------------------------------------------------------------------------------------------

/// A change of a kernel's PTX; n counts from 0 in the order of the text.
#[derive(Clone, Copy, Debug)]
enum Bug {
    /// The n-th line with this text is dropped.
    Drop(&'static str, usize),
    /// The n-th line with the first text has the second instead.
    Swap(&'static str, usize, &'static str),
    /// The branch that guards the n-th line with this text is dropped.
    Unguard(&'static str, usize),
    /// The n-th line with this text has its operands i and j exchanged.
    Operands(&'static str, usize, usize, usize),
    /// The n-th line with this text has this operand instead of its i-th.
    Operand(&'static str, usize, usize, &'static str),
}

impl Bug {
    /// The module with the bug in one kernel. A place that is not there is a failure: the bug would be found by nothing.
    fn plant(self, kernel: &Kernel) -> Module {
        let text = ptx(kernel);
        let start = text.find(&format!(".entry {}(", kernel.name)).expect("the kernel is in its PTX");
        let end = text[start + 1..].find(".entry ").map_or(text.len(), |at| start + 1 + at);
        let mut lines: Vec<String> = text[start..end].lines().map(str::to_owned).collect();
        let (Bug::Drop(what, n)
        | Bug::Swap(what, n, _)
        | Bug::Unguard(what, n)
        | Bug::Operands(what, n, ..)
        | Bug::Operand(what, n, ..)) = self;
        let found = lines.iter().enumerate().filter(|(_, l)| l.contains(what)).nth(n);
        let at = found.unwrap_or_else(|| panic!("{}: no place for {self:?}", kernel.name)).0;
        let operands = |line: &str, change: &dyn Fn(&mut Vec<String>)| {
            let (opcode, rest) = line.trim().split_once(char::is_whitespace).unwrap();
            let mut list: Vec<String> =
                rest.trim_end_matches(';').split(',').map(|o| o.trim().to_owned()).collect();
            change(&mut list);
            format!("{opcode} {};", list.join(", "))
        };
        let before = lines[..].to_vec();
        match self {
            Bug::Drop(..) => lines[at].clear(),
            Bug::Swap(from, _, to) => lines[at] = lines[at].replace(from, to),
            Bug::Unguard(..) => {
                let guard = lines[..at].iter().rposition(|l| l.contains("bra")).unwrap();
                let branch = lines[guard].trim();
                assert!(
                    branch.starts_with("@%p") && branch.contains("bra"),
                    "{self:?}: {branch} is no guard"
                );
                lines[guard].clear();
            }
            Bug::Operands(_, _, i, j) => lines[at] = operands(&lines[at], &|list| list.swap(i, j)),
            Bug::Operand(_, _, i, new) => lines[at] = operands(&lines[at], &|list| list[i] = new.to_owned()),
        }
        assert_ne!(before, lines, "{}: {self:?} changes nothing", kernel.name);
        let planted = format!("{}{}\n{}", &text[..start], lines.join("\n"), &text[end..]);
        Module::parse(&planted).unwrap_or_else(|e| panic!("{}: {self:?}: {e}", kernel.name))
    }
}

/// Each bug is found, by a fault of the interpreter or by bits that differ; without it the same launches are right.
#[test]
fn planted_bugs_are_found() {
    let shfl = "shfl.sync.bfly";
    let cast = "cvt.rn.satfinite.e4m3x2.f32";
    let bugs = [
        // Barriers: after the partial amax, after the factors, after the codes.
        ("quantize_128x128_f32", Bug::Drop("bar.sync", 0)),
        ("quantize_128x128_bf16", Bug::Drop("bar.sync", 0)),
        ("quantize_128x1_f32", Bug::Drop("bar.sync", 0)),
        ("quantize_128x1_f32", Bug::Drop("bar.sync", 1)),
        ("quantize_128x1_bf16", Bug::Drop("bar.sync", 2)),
        ("requantize_transpose_e4m3", Bug::Drop("bar.sync", 2)),
        // Shuffles: a wrong distance, in the maximum and in the exchange of codes.
        ("quantize_1x128_f32", Bug::Operand(shfl, 0, 2, "8")),
        ("quantize_1x128_bf16", Bug::Operand(shfl, 8, 2, "2")),
        ("quantize_128x128_f32", Bug::Operand(shfl, 3, 2, "1")),
        ("quantize_128x1_f32", Bug::Operand(shfl, 0, 2, "8")),
        ("requantize_transpose_e4m3", Bug::Operand(shfl, 0, 2, "8")),
        ("swiglu_quantize_1x128_f32", Bug::Operand(shfl, 2, 2, "16")),
        // Bounds: an element beyond the row is written.
        ("quantize_1x128_f32", Bug::Unguard("st.global.u8", 5)),
        ("quantize_128x1_bf16", Bug::Unguard("st.global.u8", 9)),
        ("dequantize_e4m3_f32", Bug::Unguard("st.global.u32", 5)),
        ("dequantize_e4m3_f32", Bug::Operand(shfl, 1, 2, "2")),
        ("dequantize_e4m3_bf16", Bug::Operand(shfl, 0, 2, "2")),
        // Casts: two codes change places.
        ("quantize_1x128_f32", Bug::Operands(cast, 0, 1, 2)),
        ("quantize_128x128_bf16", Bug::Operands(cast, 1, 1, 2)),
        ("swiglu_quantize_1x128_bf16", Bug::Operands(cast, 0, 1, 2)),
        // Arithmetic: a maximum that is a minimum, a term of a series for another, an inverted quotient.
        ("quantize_1x128_bf16", Bug::Swap("max.u32", 0, "min.u32")),
        ("quantize_128x1_f32", Bug::Swap("max.u32", 3, "min.u32")),
        ("swiglu_quantize_1x128_f32", Bug::Operands("fma.rn.f32", 5, 1, 3)),
        ("swiglu_quantize_1x128_f32", Bug::Operands("div.rn.f32", 0, 1, 2)),
    ];
    let mut missed = Vec::new();
    for (name, bug) in bugs {
        let kernel = kernel(name);
        let planted = bug.plant(kernel);
        let shapes = if kernel.block[0] == 512 || name.contains("transpose") || name.contains("128x1_") {
            &BLOCKS[..4]
        } else {
            &ROWS[..4]
        };
        let mut found = None;
        // Every recipe: a bug may lie on the path of one cast or one payload.
        for (i, recipe) in recipes().into_iter().enumerate() {
            let stored = Stored::f32(i);
            let shape = shapes[i % shapes.len()];
            let x = codes_in_tiles(shape.rows, shape.cols, i, false, Granule::TILE_1X128);
            // Blocks begin with a kind whose every element matters.
            let first_kind = if name.contains("128x128") { 0 } else { i };
            let trial = Trial { kernel, shape, recipe, stored, first_kind };
            let attempt = |module: &Module| match name.starts_with("dequantize") {
                true => dequantised_on(module, name, shape, &x, stored),
                false => trial.on(module),
            };
            attempt(module(kernel)).unwrap_or_else(|why| panic!("without a bug: {why}"));
            found = found.or_else(|| attempt(&planted).err());
        }
        match found {
            Some(how) => println!("{bug:?}: {how}"),
            None => missed.push((name, bug)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
