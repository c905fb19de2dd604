//! Bugs planted in the PTX of the kernels: what the emulator's checks and the comparison of bits are worth. Each must be
//! caught, by a fault or by other bits, on a problem that the kernel as it is solves.
#![cfg(feature = "cuda")]

#[path = "common/emulated_gemm.rs"]
mod emulated_gemm;
#[path = "common/operands.rs"]
mod operands;

use emulated_gemm::{Case, Form, alone, options, ptx};
use finegrain::cuda::RecipeArgs;
use finegrain::cuda::kernels::{Desc, Kernel};
use finegrain::formats::Format::E4M3;
use finegrain::gemm::{Accumulation, Promotion};
use finegrain::matrix::Matrix;
use finegrain::quant::Recipe;
use finegrain::scaled::{Granule, ScaleGrid, ScaledMatrix, Scales};
use operands::{Random, scaled, unscaled};
use ptx_emulator::{Arg, Device, Launch, Module, Options};

const TILE: Granule = Granule::TILE_1X128;
const BLOCK: Granule = Granule::BLOCK_128X128;

/// A bug: in the text of `kernel`, which has `find` `count` times, the one of index `nth` becomes `replace`; the bug
/// shows on `problem`. Blanks are single here, and comments gone.
struct Mutant {
    name: &'static str,
    kernel: &'static str,
    problem: &'static str,
    find: &'static str,
    replace: &'static str,
    nth: usize,
    count: usize,
}

const fn bug(
    name: &'static str,
    kernel: &'static str,
    problem: &'static str,
    find: &'static str,
    replace: &'static str,
) -> Mutant {
    Mutant { name, kernel, problem, find, replace, nth: 0, count: 1 }
}

const fn which(nth: usize, count: usize, mutant: Mutant) -> Mutant {
    Mutant { nth, count, ..mutant }
}

const DENSE: &str = "sm89_e4m3_e4m3_gemm_promoted";
const CONTIGUOUS: &str = "sm89_e4m3_e4m3_gemm_promoted_contiguous";
const MASKED: &str = "sm89_e4m3_e4m3_gemm_promoted_masked";
const K_GROUPED: &str = "sm89_e4m3_e4m3_gemm_promoted_k_grouped";
const WGMMA: &str = "sm90a_e4m3_e4m3_gemm_promoted";
const TILES: &str = "quantize_1x128_f32";
const BLOCKS: &str = "quantize_128x128_f32";
const COLUMNS: &str = "quantize_128x1_f32";

#[rustfmt::skip]
const GEMM_MUTANTS: &[Mutant] = &[
    // The pipeline.
    bug("barrier of the loop missing", DENSE, "deep", "bar.sync 0;\nsetp.ge.u32", "setp.ge.u32"),
    bug("barrier before the sums missing", DENSE, "deep", "cp.async.wait_group 0;\nbar.sync 0;", "cp.async.wait_group 0;"),
    bug("barrier after the sums missing", DENSE, "deep", "bar.sync 0;\nand.b32", "and.b32"),
    bug("waits for one group too few", DENSE, "deep", "cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    bug("does not wait", DENSE, "deep", "cp.async.wait_group 1;", ""),
    bug("waits after the barrier", DENSE, "deep", "cp.async.wait_group 1;\nbar.sync 0;", "bar.sync 0;\ncp.async.wait_group 1;"),
    which(0, 2, bug("no commit before the loop", DENSE, "deep", "cp.async.commit_group;", "")),
    which(1, 2, bug("no commit in the loop", DENSE, "deep", "cp.async.commit_group;", "")),
    bug("always the first stage", DENSE, "deep", "mul.lo.s32 %r1104, %r1504, 33792;", "mov.u32 %r1104, 0;"),
    // Fragments.
    bug("a1 and a2 exchanged", DENSE, "deep", "{%r592, %r593, %r594, %r595}, {%r612, %r613}", "{%r592, %r594, %r593, %r595}, {%r612, %r613}"),
    bug("b0 and b1 exchanged", DENSE, "deep", "{%r592, %r593, %r594, %r595}, {%r612, %r613}", "{%r592, %r593, %r594, %r595}, {%r613, %r612}"),
    bug("ldmatrix of other rows", DENSE, "deep", "add.s32 %r606, %r596, 4096;", "add.s32 %r606, %r596, 2048;"),
    bug("ldmatrix without the swizzle", DENSE, "deep", "xor.b32 %r1118, %r1110, %r1117;", "mov.u32 %r1118, %r1110;"),
    bug("swizzle of half the rows", DENSE, "deep", "and.b32 %r1117, %r1100, 7;", "and.b32 %r1117, %r1100, 3;"),
    bug("partial sum not reset", DENSE, "deep", "mov.f32 %f929, %f1049;\n", ""),
    // Promotion.
    bug("scales left out", DENSE, "partial-first", "fma.rn.f32 %f1576, %f1058, %f1059, %f1576;", "add.rn.f32 %f1576, %f929, %f1576;"),
    bug("mul and add for fma", DENSE, "partial-first", "fma.rn.f32 %f1576, %f1058, %f1059, %f1576;", "mul.rn.f32 %f1058, %f1058, %f1059;\nadd.rn.f32 %f1576, %f1058, %f1576;"),
    bug("promotion rounds to zero", DENSE, "partial-first", "mul.rn.f32 %f1058, %f929, %f1057;", "mul.rz.f32 %f1058, %f929, %f1057;"),
    bug("scale of the neighbouring column", DENSE, "partial-first", "or.b32 %r1165, %r1160, 1;", "or.b32 %r1165, %r1160, 0;"),
    which(1, 2, bug("scale of A not advanced in the loop", DENSE, "deep", "add.s64 %rd230, %rd230, %rd93;", "")),
    bug("scale of a block by its row", DENSE, "edges", "selp.b32 %r228, %r218, %r227, %p10;", "mov.u32 %r228, %r218;"),
    // Edges.
    bug("scales past the last row read", DENSE, "edges", "selp.b32 %r10, %r240, 0, %p14;", "mov.u32 %r10, 16;"),
    bug("copies of 16 bytes past the end of K", DENSE, "edges", "selp.b32 %r106, %r374, 0, %p90;", "mov.u32 %r106, 16;"),
    bug("rows past the end copied", DENSE, "edges", "selp.b32 %r258, %r21, 0, %p27;", "mov.u32 %r258, %r21;"),
    bug("columns past n stored", DENSE, "edges", "setp.lt.u32 %p217, %r192, 4;", "setp.lt.u32 %p217, %r192, 3;"),
    bug("rows past m stored", DENSE, "edges", "setp.lt.u32 %p218, %r1544, %r220;", "setp.lt.u32 %p218, %r1544, 128;"),
    bug("quads stored where rows are not aligned", DENSE, "edges", "and.pred %p4, %p189, %p191;", "mov.pred %p4, %p189;"),
    // The epilogue.
    bug("tensor scale left out", DENSE, "two levels", "mul.rn.f32 %f1445, %f1425, %f480;", "mov.f32 %f1445, %f1425;"),
    bug("NaN as it comes", DENSE, "nan", "selp.f32 %f476, %f1445, 0f7FC00000, %p201;", "mov.f32 %f476, %f1445;"),
    bug("ties away from zero", DENSE, "ties to bf16", "add.s32 %r1432, %r1429, %r1431;", "add.s32 %r1432, %r1429, 1;"),
    bug("bf16 cut off", DENSE, "ties to bf16", "add.s32 %r1433, %r1432, 32767;", "mov.u32 %r1433, %r1432;"),
    // Groups.
    bug("group of the tile before", CONTIGUOUS, "contiguous", "ld.global.nc.u32 %r216, [%rd90];", "ld.global.nc.u32 %r216, [%rd88];"),
    bug("padding multiplied", CONTIGUOUS, "contiguous", "shr.u32 %r1376, %r1375, 31;", "mov.u32 %r1376, 0;"),
    bug("all rows valid", MASKED, "masked", "ld.global.nc.u32 %r3, [%rd103];", "mov.u32 %r3, 140;"),
    bug("scales of a k-group from another's", K_GROUPED, "k-grouped", "ld.global.nc.u32 %r2, [%rd89+4];", "ld.global.nc.u32 %r2, [%rd87+4];"),
    bug("a k-group one element too long", K_GROUPED, "k-grouped", "sub.s32 %r3, %r219, %r1;", "sub.s32 %r3, %r219, %r1;\nadd.s32 %r3, %r3, 1;"),
];

#[rustfmt::skip]
const WGMMA_MUTANTS: &[Mutant] = &[
    // Descriptors.
    bug("stride of A's descriptor halved", WGMMA, "deep", "or.b64 %rd192, %rd200, 4611686293305360384;", "or.b64 %rd192, %rd200, 4611686155866406912;"),
    bug("stride of B's descriptor halved", WGMMA, "deep", "or.b64 %rd193, %rd201, 4611686293305360384;", "or.b64 %rd193, %rd201, 4611686155866406912;"),
    bug("no swizzle", WGMMA, "deep", "or.b64 %rd193, %rd201, 4611686293305360384;", "or.b64 %rd193, %rd201, 274877972480;"),
    bug("swizzle of 64 bytes", WGMMA, "deep", "or.b64 %rd193, %rd201, 4611686293305360384;", "or.b64 %rd193, %rd201, 9223372311732748288;"),
    bug("swizzle of 32 bytes", WGMMA, "deep", "or.b64 %rd193, %rd201, 4611686293305360384;", "or.b64 %rd193, %rd201, 13835058330160136192;"),
    bug("the same 32 of K twice", WGMMA, "deep", "or.b64 %rd195, %rd201, 4611686293305360386;", "or.b64 %rd195, %rd201, 4611686293305360384;"),
    bug("rows of the other warpgroup", WGMMA, "deep", "and.b32 %r726, %r725, 253952;", "and.b32 %r726, %r725, 0;"),
    bug("descriptors differ between warps", WGMMA, "deep", "and.b32 %r726, %r725, 253952;", "and.b32 %r726, %r725, 258048;"),
    bug("A and B exchanged", WGMMA, "deep", "%rd194, %rd195, p, 1, 1;", "%rd195, %rd194, p, 1, 1;"),
    bug("accumulators exchanged", WGMMA, "partial-first", "fma.rn.f32 %f2015, %f1379, %f1380, %f2015;\nmul.rn.f32 %f1381, %f1950,", "fma.rn.f32 %f2015, %f1379, %f1380, %f2015;\nmul.rn.f32 %f1381, %f1949,"),
    bug("sum not reset", WGMMA, "deep", "mov.u32 %r716, 0;", "mov.u32 %r716, 1;"),
    bug("sum reset at each step", WGMMA, "deep", "mov.u32 %r719, 1;", "mov.u32 %r719, 0;"),
    // What is asynchronous.
    bug("wgmma not waited for", WGMMA, "deep", "wgmma.wait_group.sync.aligned 0;", ""),
    bug("wgmma waited for one group too few", WGMMA, "deep", "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
    bug("wgmma not committed", WGMMA, "deep", "wgmma.commit_group.sync.aligned;", ""),
    bug("wgmma.fence missing", WGMMA, "deep", "wgmma.fence.sync.aligned;", ""),
    bug("fence.proxy.async missing", WGMMA, "deep", "fence.proxy.async.shared::cta;", ""),
    bug("fence.proxy.async before the copies arrive", WGMMA, "deep", "cp.async.wait_group 2;\nfence.proxy.async.shared::cta;", "fence.proxy.async.shared::cta;\ncp.async.wait_group 2;"),
    bug("barrier of the loop missing", WGMMA, "deep", "fence.proxy.async.shared::cta;\nbar.sync 0;", "fence.proxy.async.shared::cta;"),
    bug("waits for one group of copies too few", WGMMA, "deep", "cp.async.wait_group 2;", "cp.async.wait_group 3;"),
    bug("multiplies the stage that is being filled", WGMMA, "deep", "mul.lo.s32 %r720, %r1302, 33792;", "mul.lo.s32 %r720, %r1305, 33792;"),
    // Promotion.
    bug("scales left out", WGMMA, "partial-first", "fma.rn.f32 %f2015, %f1379, %f1380, %f2015;", "add.rn.f32 %f2015, %f1951, %f2015;"),
    bug("promotion skipped", WGMMA, "partial-first", "fma.rn.f32 %f2015, %f1379, %f1380, %f2015;", ""),
    bug("scale of the neighbouring row", WGMMA, "partial-first", "or.b32 %r757, %r742, 8;", "or.b32 %r757, %r742, 1;"),
    bug("scale of the neighbouring column", WGMMA, "partial-first", "or.b32 %r753, %r748, 1;", "or.b32 %r753, %r748, 0;"),
    bug("scales of another stage", WGMMA, "partial-first", "mad.lo.s32 %r734, %r1302, 33792, %r228;", "mov.u32 %r734, %r228;"),
];

#[rustfmt::skip]
const QUANTISE_MUTANTS: &[Mutant] = &[
    bug("shuffle at the wrong distance", TILES, "ragged", "mov.u32 %r255, 16;", "mov.u32 %r255, 8;"),
    bug("last shuffle left out", TILES, "ragged", "max.u32 %r270, %r267, %r269;", "mov.u32 %r270, %r267;"),
    bug("shuffle that leaves lanes out", TILES, "ragged", "mov.u32 %r256, -1;", "mov.u32 %r256, 65535;"),
    bug("columns past the end read", TILES, "ragged", "setp.ge.s32 %p8, %r8, %r170;", "setp.ge.s32 %p8, %r8, 2147483647;"),
    bug("barrier after amax missing", BLOCKS, "ragged", "bar.sync 0;\nand.b32", "and.b32"),
    bug("shuffle between warps' amax at the wrong distance", BLOCKS, "ragged", "%r654, %r631, %r626", "%r654, %r634, %r626"),
    bug("barrier after amax missing", COLUMNS, "ragged", "bar.sync 0;\nsetp.gt.s32", "setp.gt.s32"),
    bug("barrier after the factors missing", COLUMNS, "ragged", "bar.sync 0;\nmov.u32 %r627", "mov.u32 %r627"),
    bug("amax of a warp left out", COLUMNS, "ragged", "ld.shared.u32 %r542, [%r540];", "ld.shared.u32 %r542, [%r540+256];"),
    bug("factor of the neighbouring column", COLUMNS, "ragged", "ld.shared.f32 %f53, [%r161+4];", "ld.shared.f32 %f53, [%r161];"),
    bug("words of a column exchanged", COLUMNS, "ragged", "{%r1236, %r1235}", "{%r1235, %r1236}"),
    bug("codes of a column read from another", COLUMNS, "ragged", "ld.shared.v4.u32 {%r982, %r983, %r984, %r985}, [%r981];", "ld.shared.v4.u32 {%r982, %r983, %r984, %r985}, [%r981+16];"),
];

/// The text of one kernel without comments, its blanks single.
fn text(kernel: &str) -> String {
    let file = Kernel::by_name(kernel).unwrap().source.file.strip_suffix(".cu").unwrap();
    let text = alone(&ptx(file), kernel);
    let lines = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|l| !l.is_empty() && !l.starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn planted(text: &str, mutant: &Mutant) -> Module {
    let name = mutant.name;
    let places: Vec<usize> = text.match_indices(mutant.find).map(|(at, _)| at).collect();
    assert_eq!(places.len(), mutant.count, "{name}: {} is not as often in {}", mutant.find, mutant.kernel);
    let (before, after) = text.split_at(places[mutant.nth]);
    let changed = format!("{before}{}{}", mutant.replace, &after[mutant.find.len()..]);
    // What does not parse has not been caught.
    Module::parse(&changed).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Plants each bug and answers those that nobody noticed. `run` is given a kernel and a problem; `want` what is right.
fn survivors(
    mutants: &[Mutant],
    want: impl Fn(&Mutant) -> Vec<u32>,
    run: impl Fn(&Mutant, &Module) -> Result<Vec<u32>, String>,
) -> Vec<String> {
    let mut survivors = Vec::new();
    for mutant in mutants {
        let (Mutant { name, kernel, problem, .. }, text) = (mutant, text(mutant.kernel));
        let want = want(mutant);
        let sound = run(mutant, &Module::parse(&text).unwrap()).unwrap();
        assert!(sound == want, "{kernel} is wrong on {problem} before {name} is planted");
        match run(mutant, &planted(&text, mutant)) {
            Err(fault) => println!("{name}: {fault}"),
            Ok(got) => {
                let differing = got.iter().zip(&want).filter(|(g, w)| g != w).count();
                println!("{kernel}, {name}: {differing} of {} values differ", want.len());
                if differing == 0 {
                    survivors.push(format!("{kernel}, {name}, on {problem}"));
                }
            }
        }
    }
    println!("{} bugs planted, {} not noticed", mutants.len(), survivors.len());
    survivors
}

/// Scales that are given.
fn with_scales(
    x: &ScaledMatrix,
    granule: Granule,
    tensor: f32,
    scale: impl Fn(usize) -> f32,
) -> ScaledMatrix {
    let (rows, cols) = x.shape();
    let (down, across) = granule.grid(rows, cols);
    let grid = ScaleGrid::F32(Matrix::from_fn(down, across, |i, j| scale(i + j)));
    ScaledMatrix::new(x.format(), x.codes().clone(), Some(Scales { granule, grid, tensor })).unwrap()
}

fn gemm_problem(name: &str) -> Case {
    let dense = |a, b| Case::new(name, Form::Dense, vec![a], vec![b]);
    let several =
        |n: usize, rows, k, g, seed: u64| (0..n).map(|i| scaled(E4M3, rows, k, g, seed + i as u64)).collect();
    match name {
        "deep" => dense(scaled(E4M3, 128, 640, TILE, 1), scaled(E4M3, 128, 640, BLOCK, 2)),
        "partial-first" => Case {
            promotion: Promotion::PartialFirst,
            ..dense(scaled(E4M3, 128, 384, TILE, 3), scaled(E4M3, 128, 384, TILE, 4))
        },
        "edges" => dense(scaled(E4M3, 67, 400, TILE, 5), scaled(E4M3, 131, 400, BLOCK, 6)),
        "two levels" => dense(
            with_scales(&unscaled(E4M3, 20, 144, 7), TILE, 0.3, |i| 1.0 + i as f32),
            with_scales(&unscaled(E4M3, 24, 144, 8), BLOCK, 1.0, |_| 1.5),
        ),
        "nan" => {
            // A NaN among the scales passes its sign and fraction on, unless it is made canonical at the end.
            let a = with_scales(&unscaled(E4M3, 20, 144, 9), TILE, 1.0, |_| f32::from_bits(0xFFC0_1234));
            dense(a, with_scales(&unscaled(E4M3, 24, 144, 10), BLOCK, 1.0, |_| 1.0))
        }
        "ties to bf16" => {
            // Few products of scale 1: sums of few bits, of which many lie between two bf16.
            let one = |rows, seed| with_scales(&unscaled(E4M3, rows, 16, seed), TILE, 1.0, |_| 1.0);
            Case { bf16: true, ..dense(one(64, 11), one(64, 12)) }
        }
        "contiguous" => {
            let groups = (0..290).map(|i| [i32::from(i < 100), 2, 0][i / 128]);
            let groups =
                groups.enumerate().map(|(i, g)| if (100..128).contains(&i) { -1 } else { g }).collect();
            let (a, b) = (several(1, 290, 144, TILE, 13), several(3, 24, 144, BLOCK, 14));
            let addend = Some(Matrix::from_fn(290, 24, |i, j| (i * j) as f32 + 1.0));
            Case { addend, ..Case::new(name, Form::Contiguous(groups), a, b) }
        }
        "masked" => {
            let (a, b) = (several(3, 140, 144, TILE, 15), several(3, 24, 144, BLOCK, 16));
            Case::new(name, Form::Masked(vec![3, 0, 140]), a, b)
        }
        "k-grouped" => {
            let sizes = [130, 0, 150];
            let of = |rows, seed| sizes.map(|k| scaled(E4M3, rows, k, TILE, seed + k as u64)).to_vec();
            Case::new(name, Form::KGrouped, of(40, 17), of(24, 18))
        }
        _ => panic!("no problem {name}"),
    }
}

fn survivors_of_gemm(mutants: &[Mutant], kernel: fn(&Case) -> String, model: Accumulation) -> Vec<String> {
    let want = |m: &Mutant| gemm_problem(m.problem).expected(model.promote_every(128).unwrap());
    let run = |m: &Mutant, module: &Module| {
        let case = gemm_problem(m.problem);
        assert_eq!(kernel(&case), m.kernel, "{}", m.name);
        Ok(case.run(module, m.kernel, None, &options(m.kernel))?.0)
    };
    survivors(mutants, want, run)
}

#[test]
fn bugs_in_the_gemms_by_mma_are_caught() {
    let survivors = survivors_of_gemm(GEMM_MUTANTS, Case::mma_kernel, Accumulation::ADA);
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}

#[test]
fn bugs_in_the_gemm_by_wgmma_are_caught() {
    let survivors = survivors_of_gemm(WGMMA_MUTANTS, Case::wgmma_kernel, Accumulation::HOPPER);
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}

const ROWS: usize = 141;
const COLS: usize = 300;

/// Codes and scales that a quantise kernel makes of a matrix whose edges are ragged.
fn quantised(kernel: &str, module: &Module) -> Result<Vec<u32>, String> {
    let mut random = Random(0x51ED);
    let x: Vec<u8> = (0..ROWS * COLS)
        .flat_map(|_| {
            ((random.below(1 << 20) as f32 - 524_288.0) * (random.below(9) as f32).exp2()).to_le_bytes()
        })
        .collect();
    let (transposed, height) = (kernel == COLUMNS, if kernel == BLOCKS { 128 } else { 1 });
    let (rows, cols) = if transposed { (COLS, ROWS) } else { (ROWS, COLS) };
    let (down, across) = (rows.div_ceil(height), cols.div_ceil(128));
    let mut device = Device::new();
    let (input, codes, scales) =
        (device.alloc(x.len()), device.alloc(rows * cols), device.alloc(4 * down * across));
    device.write(input, &x).unwrap();
    let r = RecipeArgs::try_from(&Recipe::DEEPSEEK_V3).unwrap();
    let words =
        [r.form, r.power_of_two, r.payload, r.cast, r.ignores_nan, r.replaces].map(i32::cast_unsigned);
    let floats = [r.floor, r.max, r.inv_max, r.zero, r.overflow, r.infinite, r.nan].map(f32::to_bits);
    let recipe = words.into_iter().chain(floats).flat_map(u32::to_le_bytes).collect();
    let grid = [scales, across as u64, 1, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    let args = vec![
        Arg::Ptr(input),
        Arg::U64(COLS as u64),
        Arg::I32(ROWS as i32),
        Arg::I32(COLS as i32),
        Arg::Ptr(codes),
        Arg::U64(cols as u64),
        Arg::Bytes(grid),
        Arg::Bytes(recipe),
    ];
    let config = Kernel::by_name(kernel).unwrap().config(Desc::matrix(ROWS, COLS)).unwrap();
    let launch =
        Launch { grid: config.grid, block: config.block, dynamic_shared: config.dynamic_shared, args };
    device.launch(module, kernel, &launch, &Options::default()).map_err(|f| f.to_string())?;
    let mut bytes = device.read(codes, rows * cols).map_err(|e| e.to_string())?;
    bytes.extend(device.read(scales, 4 * down * across).map_err(|e| e.to_string())?);
    Ok(bytes.into_iter().map(u32::from).collect())
}

/// The kernels as they are have the library's bits, of which other tests speak; here they are the measure.
#[test]
fn bugs_in_the_quantisers_are_caught() {
    let want = |m: &Mutant| quantised(m.kernel, &Module::parse(&text(m.kernel)).unwrap()).unwrap();
    let survivors = survivors(QUANTISE_MUTANTS, want, |m, module| quantised(m.kernel, module));
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}
