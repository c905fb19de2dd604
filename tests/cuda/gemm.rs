//! The GEMM kernels, as PTX in an emulated device with all its checks on, against the library: D bit for bit, no race,
//! no access outside, nothing written beside D, no bank conflict in the main loop.

use std::time::Instant;

use crate::common::operands::{Random, scaled, unscaled};
use crate::support::emulated_gemm::{Case, Form, Layout, Plain, options};
use crate::support::kept;
use finegrain::cuda::kernels::{KERNELS, Kernel};
use finegrain::formats::Format::{self, E4M3, E5M2};
use finegrain::gemm::{Accumulation, Promotion};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use ptx_emulator::Module;

const TILE: Granule = Granule::TILE_1X128;
const BLOCK: Granule = Granule::BLOCK_128X128;
const MMA: &str = "sm89_fp8_gemm_promoted";
const WGMMA: &str = "sm90a_fp8_gemm_promoted";
const PLAIN: &str = "gemm_f32_reference";

fn addend(rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed);
    Matrix::from_fn(rows, cols, |_, _| (random.below(1 << 20) as f32 - 524_288.0) / 1024.0)
}

/// `x` with other codes and scales.
fn edited(
    x: &ScaledMatrix,
    code: impl Fn(usize, usize, u8) -> u8,
    scale: impl Fn(usize, usize, f32) -> f32,
    tensor: f32,
) -> ScaledMatrix {
    let (format, codes, scales) = x.clone().into_parts();
    let Codes::Bytes(codes) = codes else { unreachable!("codes of 8 bits") };
    let (rows, cols) = codes.shape();
    let codes = Codes::Bytes(Matrix::from_fn(rows, cols, |i, j| code(i, j, codes.row(i)[j])));
    let scales = scales.map(|s| {
        let ScaleGrid::F32(grid) = &s.grid else { unreachable!("scales in f32") };
        let grid = Matrix::from_fn(grid.rows(), grid.cols(), |i, j| scale(i, j, grid.row(i)[j]));
        Scales { grid: ScaleGrid::F32(grid), tensor, ..s }
    });
    ScaledMatrix::new(format, codes, scales).unwrap()
}

/// Rows of NaN, infinities (of both signs where the format has them), zeros and subnormals among finite ones; scales
/// from subnormal ones to those whose products overflow.
fn special(format: Format, rows: usize, cols: usize, granule: Granule, seed: u64) -> ScaledMatrix {
    let x = scaled(format, rows, cols, granule, seed);
    let mantissa = if format == E4M3 { 7 } else { 3 };
    let code = |i: usize, j: usize, c: u8| match i % 16 {
        1 if j % 97 == 5 => 0x7F,
        2 if j == 0 => 0xFF,
        3 if format == E5M2 && j == cols - 1 => 0x7C,
        4 if format == E5M2 && j % 67 == 2 => 0x7C | ((j % 2) as u8) << 7,
        5 => (c & 1) << 7,
        6 | 7 => c & (0x80 | mantissa),
        8 => c | 0x70 & !mantissa,
        _ => c,
    };
    let x = edited(&x, code, |_, _, s| s, 1.0);
    let scale = |i: usize, t: usize, s: f32| match (i + 3 * t) % 8 {
        1 => s * 2f32.powi(-126) * 2f32.powi(-18),
        2 => s * 2f32.powi(100),
        3 => s * 2f32.powi(-70),
        4 => -s,
        5 => 0.0,
        _ => s,
    };
    edited(&x, |_, _, c| c, scale, 1.0)
}

fn dense(name: &str, a: ScaledMatrix, b: ScaledMatrix) -> Case {
    Case::new(name, Form::Dense, vec![a], vec![b])
}

/// Dense problems of every kind, in all formats and orders between them.
fn dense_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Whole tiles, every pair of formats, order and pair of scales once at least.
    for (i, (fa, fb)) in [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)].into_iter().enumerate() {
        for (j, (ga, gb)) in [(TILE, BLOCK), (TILE, TILE)].into_iter().enumerate() {
            let seed = 10 * i as u64 + j as u64;
            let mut case =
                dense("whole tiles", scaled(fa, 128, 384, ga, seed), scaled(fb, 128, 384, gb, seed + 5));
            case.promotion = Promotion::SCALING_PARTIALS[(i + j) % 3];
            case.bf16 = j == 1;
            cases.push(case);
            let mut case =
                dense("special", special(fa, 80, 272, ga, seed), special(fb, 48, 272, gb, seed + 3));
            case.promotion = Promotion::SCALING_PARTIALS[(i + j + 1) % 3];
            case.bf16 = j == 0;
            cases.push(case);
        }
    }
    // Edges. K of one element to some intervals and a tail; more stages than intervals and fewer; more intervals than
    // scales of a block are held.
    let shapes = [
        (1, 1, 1),
        (130, 3, 144),
        (5, 131, 129),
        (67, 45, 127),
        (129, 129, 16),
        (33, 34, 1041),
        (20, 24, 1300),
    ];
    for (i, (m, n, k)) in shapes.into_iter().enumerate() {
        for layout in [Layout::BEST, Layout::GAPPED] {
            for &promotion in
                if i == 5 { Promotion::SCALING_PARTIALS } else { &Promotion::SCALING_PARTIALS[i % 3..=i % 3] }
            {
                let (seed, gb) = (i as u64 + 77, if i % 2 == 0 { BLOCK } else { TILE });
                let name = format!("{m}×{n}×{k}, gap {}", layout.gap);
                let mut case = dense(&name, scaled(E4M3, m, k, TILE, seed), scaled(E4M3, n, k, gb, seed + 9));
                case.addend = (i % 2 == 1).then(|| addend(m, n, seed));
                case.bf16 = i % 3 == 1;
                (case.layout, case.promotion) = (layout, promotion);
                cases.push(case);
            }
        }
    }
    // Blocks on the left, more than one down; the second level of scales; an addend in place.
    let two_levels = |x: ScaledMatrix, t| edited(&x, |_, _, c| c, |_, _, s| s, t);
    let mut case = dense(
        "blocks of A, two levels, in place",
        two_levels(scaled(E5M2, 140, 160, BLOCK, 1), 0.3),
        two_levels(scaled(E4M3, 136, 160, TILE, 2), -1.7e-3),
    );
    case.addend = Some(addend(140, 136, 3));
    case.in_place = true;
    cases.push(case);
    let zero =
        |rows, g, seed| edited(&scaled(E4M3, rows, 200, g, seed), |_, _, c| c & 0x80, |_, _, s| s, 1.0);
    cases.push(dense("zeros of both signs", zero(20, TILE, 1), zero(24, BLOCK, 2)));
    let mut case = dense("K = 0", scaled(E4M3, 9, 0, TILE, 1), scaled(E4M3, 10, 0, TILE, 2));
    case.addend = Some(addend(9, 10, 1));
    cases.push(case);
    cases
}

fn grouped_cases() -> Vec<Case> {
    let several = |sizes: &[(usize, usize)], g, seed: u64| -> Vec<ScaledMatrix> {
        sizes.iter().enumerate().map(|(i, &(m, k))| scaled(E4M3, m, k, g, seed + i as u64)).collect()
    };
    let mut cases = Vec::new();
    for (i, &promotion) in Promotion::SCALING_PARTIALS.iter().enumerate() {
        let gb = if i == 1 { TILE } else { BLOCK };
        let layout = if i == 2 { Layout::GAPPED } else { Layout::BEST };
        let k = if i == 1 { 256 } else { 150 };
        // Group 1 has no rows; a tile of padding alone; the last tile is cut.
        let owner = |row: usize| match row {
            0..100 => 2,
            128..131 => 0,
            384..400 => 3,
            _ => -1,
        };
        let groups = (0..410).map(owner).collect();
        let (a, b) = (several(&[(410, k)], TILE, 3), several(&[(70, k); 4], gb, 50));
        let mut contiguous = Case::new("contiguous", Form::Contiguous(groups), a, b);
        contiguous.addend = (i != 1).then(|| addend(410, 70, 4));
        let (a, b) = (several(&[(140, k); 4], TILE, 7), several(&[(66, k); 4], gb, 60));
        let mut masked = Case::new("masked", Form::Masked(vec![3, 0, 140, 128]), a, b);
        masked.addend = (i != 1).then(|| addend(560, 66, 4));
        let sizes = if i == 1 { [256, 0, 128, 16] } else { [130, 0, 5, 257] };
        let (a, b) = (several(&sizes.map(|k| (131, k)), TILE, 9), several(&sizes.map(|k| (37, k)), gb, 70));
        let mut k_grouped = Case::new("k-grouped", Form::KGrouped, a, b);
        k_grouped.addend = (i != 1).then(|| addend(4 * 131, 37, 4));
        for mut case in [contiguous, masked, k_grouped] {
            (case.promotion, case.layout, case.bf16) = (promotion, layout, i == 1);
            cases.push(case);
        }
    }
    cases
}

/// Runs a case, compares, and answers how many values.
fn agrees(
    case: &Case,
    module: &Module,
    kernel: &str,
    plain: Option<Plain>,
    accumulation: Accumulation,
) -> usize {
    let what = format!("{kernel}: {}, {}", case.name, accumulation.with_promotion(case.promotion));
    let want = case.expected(accumulation);
    let (got, _) =
        case.run(module, kernel, plain, &options(kernel)).unwrap_or_else(|f| panic!("{what}: {f}"));
    assert_eq!(got.len(), want.len(), "{what}");
    let wrong: Vec<usize> = (0..want.len()).filter(|&i| got[i] != want[i]).collect();
    if let Some(&i) = wrong.first() {
        let (row, col) = (i / case.output().1, i % case.output().1);
        let count = wrong.len();
        panic!(
            "{what}: {count} of {} differ, first ({row}, {col}): {:#x}, expected {:#x}",
            want.len(),
            got[i],
            want[i]
        );
    }
    want.len()
}

/// A kernel's PTX, as it is kept.
fn module(kernel: &Kernel) -> Module {
    let text = kept::read(kernel.source, kernel.source.ptx[0]);
    Module::parse(&kept::alone(&text, kernel.name)).unwrap()
}

/// Every kernel of a table, with the cases that name it.
fn check(
    cases: &[Case],
    file: &str,
    kernel: impl Fn(&Case) -> String,
    run: impl Fn(&Case, &Module, &str) -> usize,
) {
    let (mut values, mut launches) = (0, 0);
    for entry in KERNELS.iter().filter(|k| k.source.file == format!("{file}.cu")) {
        let own: Vec<&Case> = cases.iter().filter(|c| kernel(c) == entry.name).collect();
        if own.is_empty() {
            continue;
        }
        let module = module(entry);
        launches += own.len();
        values += own.iter().map(|case| run(case, &module, entry.name)).sum::<usize>();
    }
    assert_eq!(launches, cases.len(), "{file}: cases without a kernel");
    println!("{file}: {launches} problems, {values} values of D compared");
}

#[test]
fn every_kernel_has_a_case() {
    let cases = [dense_cases(), grouped_cases()].concat();
    let files = [MMA, WGMMA, PLAIN].map(|file| format!("{file}.cu"));
    for kernel in KERNELS.iter().filter(|k| files.contains(&k.source.file.into())) {
        let of = |c: &Case| [c.mma_kernel(), c.wgmma_kernel(), c.plain_kernel()];
        assert!(cases.iter().any(|c| of(c).contains(&kernel.name.into())), "{}", kernel.name);
    }
}

fn ada(case: &Case, module: &Module, kernel: &str) -> usize {
    agrees(case, module, kernel, None, Accumulation::ADA.promote_every(128).unwrap())
}

#[test]
fn mma_on_dense_problems() {
    check(&dense_cases(), MMA, Case::mma_kernel, ada);
}

#[test]
fn mma_on_grouped_problems() {
    check(&grouped_cases(), MMA, Case::mma_kernel, ada);
}

fn hopper(case: &Case, module: &Module, kernel: &str) -> usize {
    agrees(case, module, kernel, None, Accumulation::HOPPER.promote_every(128).unwrap())
}

#[test]
fn wgmma_on_dense_problems() {
    check(&dense_cases(), WGMMA, Case::wgmma_kernel, hopper);
}

#[test]
fn wgmma_on_grouped_problems() {
    check(&grouped_cases(), WGMMA, Case::wgmma_kernel, hopper);
}

/// On the same problem the two units of the tensor core have other bits: the comparisons above can tell them apart.
#[test]
fn wgmma_is_not_ada() {
    let case = dense("whole tiles", scaled(E4M3, 128, 384, TILE, 1), scaled(E4M3, 128, 384, BLOCK, 2));
    let of = |a: Accumulation| case.expected(a.promote_every(128).unwrap());
    assert_ne!(of(Accumulation::HOPPER), of(Accumulation::ADA));
}

fn plain(interval: usize) -> impl Fn(&Case, &Module, &str) -> usize {
    move |case, module, kernel| {
        let accumulation = match interval {
            0 => Accumulation::F32.without_promotion(),
            n => Accumulation::F32.promote_every(n).unwrap(),
        };
        agrees(case, module, kernel, Some(Plain { interval }), accumulation)
    }
}

#[test]
fn plain_on_dense_problems() {
    check(&dense_cases(), PLAIN, Case::plain_kernel, plain(128));
}

#[test]
fn plain_on_grouped_problems() {
    check(&grouped_cases(), PLAIN, Case::plain_kernel, plain(128));
}

#[test]
fn plain_with_other_intervals_and_as_one_chain() {
    let of =
        |k, seed| dense("intervals", scaled(E4M3, 20, k, TILE, seed), scaled(E5M2, 40, k, BLOCK, seed + 1));
    for interval in [64, 32, 1] {
        check(&[of(300, 1), of(129, 2)], PLAIN, Case::plain_kernel, plain(interval));
    }
    let mut chain = dense("one chain", unscaled(E5M2, 21, 333, 3), unscaled(E4M3, 35, 333, 4));
    let without = chain.clone();
    chain.addend = Some(addend(21, 35, 5));
    check(&[chain, without], PLAIN, Case::plain_kernel, plain(0));
}

/// What the interpreter counts in GEMMs of whole tiles with the best layout: every global access is of 16 bytes, no access
/// to shared memory meets a bank twice, and 256³ takes less than a second with race checking.
#[test]
fn memory_is_touched_as_planned() {
    for (file, model) in [(MMA, Accumulation::ADA), (WGMMA, Accumulation::HOPPER)] {
        for k in [256, 640] {
            let case = dense("whole tiles", scaled(E4M3, 256, k, TILE, 1), scaled(E4M3, 256, k, BLOCK, 2));
            let kernel = if file == MMA { case.mma_kernel() } else { case.wgmma_kernel() };
            let module = module(Kernel::by_name(&kernel).unwrap());
            let start = Instant::now();
            let (got, report) = case.run(&module, &kernel, None, &options(&kernel)).unwrap();
            let time = start.elapsed();
            assert_eq!(got, case.expected(model.promote_every(128).unwrap()));
            for (line, m) in &report.memory {
                assert_eq!(m.extra_wavefronts, 0, "{kernel}: {} in line {line} waits for a bank", m.opcode);
                assert_eq!(m.accesses, m.wide_accesses, "{kernel}: {} in line {line} is narrow", m.opcode);
            }
            // For each of 4 tiles and each interval: codes of 128 rows twice, scales of A's rows; the scale of B's block
            // once for four intervals. Then D.
            let (tiles, intervals) = (4, k as u64 / 128);
            let copies = intervals * (2 * 1024 + 32) + intervals.div_ceil(4);
            let accesses: u64 = report.memory.values().map(|m| m.accesses).sum();
            assert_eq!(accesses, tiles * (copies + 128 * 128 / 4), "{kernel}");
            if file == MMA {
                assert_eq!(report.count("mma.sync"), tiles * intervals * 8 * 64);
                assert_eq!(report.count("ldmatrix"), tiles * intervals * 8 * 24);
            } else {
                assert_eq!(report.count("wgmma.mma_async"), tiles * intervals * 8 * 4);
            }
            println!(
                "{kernel} 256×256×{k} with race checking: {time:.2?}, {} instructions, {accesses} global accesses, all of \
                 16 bytes, {} more wavefronts",
                report.instructions,
                report.extra_wavefronts()
            );
        }
    }
}
