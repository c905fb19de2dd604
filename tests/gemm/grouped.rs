//! Grouped GEMMs: every row has the bits of its group's dense problem.

use std::num::NonZeroUsize;

use finegrain::Engine;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};

/// Codes and scales that differ from place to place; `seed` tells operands apart.
fn operand(rows: usize, cols: usize, granule: Granule, seed: usize) -> ScaledMatrix {
    let grid = granule.grid(rows, cols);
    with_grid(rows, cols, granule, grid, seed)
}

fn with_grid(rows: usize, cols: usize, granule: Granule, grid: (usize, usize), seed: usize) -> ScaledMatrix {
    let (codes, grid) = parts(rows, cols, grid, seed);
    ScaledMatrix::new(Format::E4M3, codes, Some(Scales { granule, grid, tensor: 1.0 })).unwrap()
}

fn parts(rows: usize, cols: usize, grid: (usize, usize), seed: usize) -> (Codes, ScaleGrid) {
    let hash = |i: usize, j: usize| (i * 31 + j * 17 + seed * 101).wrapping_mul(0x9E37_79B9) >> 7;
    let codes = Matrix::from_fn(rows, cols, |i, j| match hash(i, j) as u8 {
        0x7F | 0xFF => 0x38,
        code => code,
    });
    let scale = |i, j| 0.25 + (hash(i, j) % 1000) as f32 / 300.0;
    (Codes::Bytes(codes), ScaleGrid::F32(Matrix::from_fn(grid.0, grid.1, scale)))
}

fn accumulations() -> [Accumulation; 3] {
    let hopper = Accumulation::HOPPER.promote_every(128).unwrap();
    [Accumulation::F32, Accumulation::EXACT, hopper]
}

/// One element of a dense problem on the rows alone.
fn dense(a: ScaledRef<'_>, b: ScaledRef<'_>, accumulation: Accumulation) -> Matrix<f32> {
    GemmProblem::nt(a, b).unwrap().with_accumulation(accumulation).unwrap().run().unwrap()
}

fn views(all: &[ScaledMatrix]) -> Vec<ScaledRef<'_>> {
    all.iter().map(ScaledMatrix::view).collect()
}

fn assert_row(what: &str, got: &[f32], want: &[f32]) {
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(want), "{what}");
}

#[test]
fn contiguous_rows_are_those_of_their_group() {
    for granule in
        [Granule::TILE_1X128, Granule::BLOCK_128X128, Granule::new(3, 128).unwrap(), Granule::TENSOR]
    {
        let a = operand(12, 200, granule, 1);
        let experts: Vec<_> = (0..4).map(|g| operand(9, 200, Granule::BLOCK_128X128, 10 + g)).collect();
        // Group 3 has no row, group 1 comes twice, padding in between and at the end.
        let groups = [1, 1, 1, 0, -1, -1, 2, 2, 1, 1, 0, -1];
        let c = Matrix::from_fn(12, 9, |i, j| i as f32 - j as f32 / 3.0);
        for accumulation in accumulations() {
            let b = views(&experts);
            let problem = GroupedProblem::contiguous(a.view(), &groups, &b).unwrap();
            let problem = problem.with_accumulation(accumulation).unwrap();
            assert_eq!(problem.parts().len(), 5);
            let d = problem.run().unwrap();
            let added = problem.clone().with_addend(c.view()).unwrap().run().unwrap();
            let full: Vec<_> = b.iter().map(|&b| dense(a.view(), b, accumulation)).collect();
            for (i, &g) in groups.iter().enumerate() {
                let what = format!("row {i} of group {g}, {granule}, {accumulation}");
                if g < 0 {
                    assert_row(&what, d.row(i), &[0.0; 9]);
                    assert_row(&what, added.row(i), &[0.0; 9]);
                    continue;
                }
                let want = full[g as usize].row(i);
                assert_row(&what, d.row(i), want);
                let sum: Vec<f32> = want.iter().zip(c.row(i)).map(|(d, c)| d + c).collect();
                assert_row(&what, added.row(i), &sum);
            }
        }
    }
}

#[test]
fn masked_groups_compute_their_valid_rows() {
    let a: Vec<_> = (0..3).map(|g| operand(8, 300, Granule::TILE_1X128, g)).collect();
    let b: Vec<_> = (0..3).map(|g| operand(5, 300, Granule::BLOCK_128X128, 10 + g)).collect();
    let valid = [3, 0, 8];
    for accumulation in accumulations() {
        let problem = GroupedProblem::masked(&views(&a), &valid, &views(&b)).unwrap();
        let d = problem.with_accumulation(accumulation).unwrap().run().unwrap();
        assert_eq!(d.shape(), (24, 5));
        for g in 0..3 {
            let want = dense(a[g].view(), b[g].view(), accumulation);
            for i in 0..8 {
                let expected = if i < valid[g] { want.row(i) } else { &[0.0; 5] };
                assert_row(&format!("row {i} of group {g}"), d.row(8 * g + i), expected);
            }
        }
    }
}

/// Ragged groups with their own granules: the grid has more columns than that of the whole matrix.
#[test]
fn k_groups_have_their_own_granules() {
    let sizes = [130, 0, 1, 128, 300];
    let (k, grid_cols) = (sizes.iter().sum::<usize>(), 2 + 1 + 1 + 3);
    let groups = |rows, granule: Granule, seed| {
        let columns = if granule.cols() == usize::MAX { 1 } else { grid_cols };
        let (codes, grid) = parts(rows, k, (granule.grid(rows, k).0, columns), seed);
        let scales = Scales { granule, grid, tensor: 1.0 };
        let owned: &'static (Codes, Scales) = Box::leak(Box::new((codes, scales)));
        ScaledRef::k_groups(Format::E4M3, owned.0.view(), Some(owned.1.view()), &sizes).unwrap()
    };
    for (ga, gb) in [(Granule::TILE_1X128, Granule::TILE_1X128), (Granule::ROW, Granule::BLOCK_128X128)] {
        let (a, b) = (groups(6, ga, 1), groups(7, gb, 2));
        let c = Matrix::from_fn(30, 7, |i, j| (i * 7 + j) as f32);
        for accumulation in accumulations() {
            let problem = GroupedProblem::k_grouped(&a, &b).unwrap().with_accumulation(accumulation).unwrap();
            let d = problem.run().unwrap();
            let added = problem.with_addend(c.view()).unwrap().run().unwrap();
            assert_eq!(d.shape(), (30, 7));
            for g in 0..sizes.len() {
                let want = dense(a[g], b[g], accumulation);
                for i in 0..6 {
                    let row = 6 * g + i;
                    assert_row(&format!("row {i} of group {g}"), d.row(row), want.row(i));
                    let sum: Vec<f32> = want.row(i).iter().zip(c.row(row)).map(|(d, c)| d + c).collect();
                    assert_row(&format!("row {i} of group {g}"), added.row(row), &sum);
                }
            }
        }
    }
    // The scales of a group are those of its own columns of the grid.
    let a = groups(6, Granule::TILE_1X128, 1);
    let (_, grid) = parts(6, k, (6, grid_cols), 1);
    assert_eq!(a[4].scale_at(2, 299), grid.view().at(2, 6));
    assert_eq!(a[2].scale_at(5, 0), grid.view().at(5, 2));
}

#[test]
fn the_default_arithmetic_is_one_for_all_groups() {
    let cut = |rows, seed| {
        let whole: &'static ScaledMatrix =
            Box::leak(Box::new(operand(rows, 144, Granule::new(1, 48).unwrap(), seed)));
        let (codes, scales) = (whole.view().codes(), whole.view().scales());
        ScaledRef::k_groups(Format::E4M3, codes, scales, &[96, 48]).unwrap()
    };
    let problem = GroupedProblem::k_grouped(&cut(2, 1), &cut(3, 2)).unwrap();
    // gcd(128, 48), though the second group alone has one granule and could take 128.
    assert_eq!(problem.accumulation().to_string(), "f32/16");
    assert!(problem.parts().iter().all(|p| p.problem().accumulation() == problem.accumulation()));
}

#[test]
fn all_groups_may_be_empty() {
    let a = operand(3, 128, Granule::TILE_1X128, 1);
    let b = [operand(4, 128, Granule::BLOCK_128X128, 2)];
    let d = GroupedProblem::contiguous(a.view(), &[-1; 3], &views(&b)).unwrap().run().unwrap();
    assert_row("padding", d.as_slice(), &[0.0; 12]);
    let d = GroupedProblem::masked(&[a.view()], &[0], &views(&b)).unwrap().run().unwrap();
    assert_row("masked", d.as_slice(), &[0.0; 12]);
    let (a, b) = (operand(3, 0, Granule::TILE_1X128, 1), operand(4, 0, Granule::TILE_1X128, 2));
    let problem = GroupedProblem::k_grouped(&[a.view(); 2], &[b.view(); 2]).unwrap();
    assert_row("k", problem.run().unwrap().as_slice(), &[0.0; 24]);
    let c = Matrix::from_fn(6, 4, |i, j| (i + j) as f32);
    assert_row(
        "k with addend",
        problem.with_addend(c.view()).unwrap().run().unwrap().as_slice(),
        c.as_slice(),
    );
}

#[test]
fn results_do_not_depend_on_threads_and_bf16_is_rounded_once() {
    let a = operand(20, 256, Granule::TILE_1X128, 1);
    let b: Vec<_> = (0..2).map(|g| operand(9, 256, Granule::BLOCK_128X128, g)).collect();
    let groups: Vec<i32> = (0..20).map(|i| i / 7 - 1).collect();
    let problem = GroupedProblem::contiguous(a.view(), &groups, &views(&b)).unwrap();
    let want = problem.run().unwrap();
    for threads in [1, 3] {
        let engine = Engine::cpu().with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
        assert_row("threads", engine.gemm(&problem).unwrap().as_slice(), want.as_slice());
        let narrow = engine.gemm_bf16(&problem).unwrap();
        assert_eq!(narrow, want.map(|&x| half::bf16::from_f32(x)));
    }
}

#[test]
fn refusals_name_both_numbers() {
    let a = operand(4, 128, Granule::TILE_1X128, 1);
    let b: Vec<_> = (0..2).map(|g| operand(5, 128, Granule::TILE_1X128, g)).collect();
    let b = views(&b);
    let refuse = |result: finegrain::Result<GroupedProblem<'_>>, text: &str| {
        assert_eq!(result.expect_err(text).to_string(), text);
    };
    refuse(GroupedProblem::contiguous(a.view(), &[0; 3], &b), "3 group indices for the 4 rows of A");
    refuse(
        GroupedProblem::contiguous(a.view(), &[0, 1, 2, 0], &b),
        "row 2 belongs to group 2, expected 0 to 1, or -1 for padding",
    );
    refuse(
        GroupedProblem::contiguous(a.view(), &[0, -2, 0, 0], &b),
        "row 1 belongs to group -2, expected 0 to 1, or -1 for padding",
    );
    refuse(
        GroupedProblem::contiguous(a.view(), &[-1; 4], &[]),
        "no group of B: a grouped problem has at least one",
    );
    let (taller, longer) = (operand(6, 128, Granule::TILE_1X128, 1), operand(5, 129, Granule::TILE_1X128, 1));
    refuse(
        GroupedProblem::contiguous(a.view(), &[0; 4], &[b[0], taller.view()]),
        "B of group 1 has 6 rows, that of group 0 has 5",
    );
    refuse(
        GroupedProblem::contiguous(a.view(), &[0; 4], &[b[0], longer.view()]),
        "B of group 1 is 5×129, expected K = 128",
    );
    refuse(GroupedProblem::masked(&[a.view()], &[1], &b), "the number of groups differs: 1 of A, 2 of B");
    refuse(
        GroupedProblem::masked(&[a.view(); 2], &[1; 3], &b),
        "the number of groups differs: 2 of A, 3 of valid row counts",
    );
    refuse(GroupedProblem::masked(&[a.view(); 2], &[4, 5], &b), "group 1 has 5 valid rows of 4");
    refuse(GroupedProblem::k_grouped(&[a.view(); 3], &b), "the number of groups differs: 3 of A, 2 of B");
    refuse(
        GroupedProblem::k_grouped(&[a.view(); 2], &[b[0], longer.view()]),
        "A is 4×128 [M, K] and B is 5×129 [N, K]: they differ in K",
    );
    let c = Matrix::filled(4, 4, 0.0);
    refuse(
        GroupedProblem::contiguous(a.view(), &[0; 4], &b).unwrap().with_addend(c.view()),
        "the addend is 4×4, the output 4×5",
    );

    let cut = |scales, sizes: &[usize]| {
        let message = ScaledRef::k_groups(Format::E4M3, a.view().codes(), scales, sizes);
        message.map(|groups| groups.len()).map_err(|e| e.to_string())
    };
    assert_eq!(cut(None, &[100, 28]), Ok(2));
    assert_eq!(
        cut(None, &[100, 27]),
        Err("2 groups of K add up to 127, the matrix has 128 columns".to_owned())
    );
    assert!(cut(None, &[usize::MAX, 129]).is_err());
    assert_eq!(
        cut(a.view().scales(), &[100, 28]),
        Err("scale grid is 4×1, expected 4×2 for 4×128 in 2 groups along K with 1x128 granules".to_owned())
    );
}
