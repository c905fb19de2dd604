//! The sanitiser of grouped GEMMs: every planted fault is found, and no backend has one.

use crate::common::operands::{e8m0, scaled};
use finegrain::Engine;
use finegrain::formats::Format;
use finegrain::gemm::sanitize::{GroupedOperands, Groups, LayoutRules, Poison, Rule, Violation, sanitize};
use finegrain::gemm::{
    Arithmetic, GemmBackend, GemmPlan, GemmProblem, GroupedForm, GroupedProblem, Model, Output, Reference,
};
use finegrain::matrix::Matrix;
use finegrain::parallel::Watch;
use finegrain::scaled::layout::ScaleLayout;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

const TILE: usize = 8;

fn experts(format: Format, count: u64) -> Vec<ScaledMatrix> {
    (0..count).map(|g| scaled(format, 5, 256, Granule::BLOCK_128X128, 50 + g)).collect()
}

/// Group 2 is empty; padding after each group, and in two granule shapes of A.
fn contiguous(granule: Granule) -> GroupedOperands {
    let rows = [0, 0, 0, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, -1, -1, -1];
    let a = scaled(Format::E4M3, rows.len(), 256, granule, 3);
    GroupedOperands::new(vec![a], experts(Format::E4M3, 3), Groups::Contiguous(rows.to_vec())).unwrap()
}

fn masked(format: Format) -> GroupedOperands {
    let a = (0..3).map(|g| scaled(format, 8, 256, Granule::TILE_1X128, g + 1)).collect();
    GroupedOperands::new(a, experts(format, 3), Groups::Masked(vec![3, 0, 8])).unwrap()
}

#[test]
fn no_backend_reads_padding() {
    let mut runs = 0;
    let all = [
        contiguous(Granule::TILE_1X128),
        contiguous(Granule::new(4, 128).unwrap()),
        masked(Format::E4M3),
        masked(Format::E5M2),
    ];
    for operands in &all {
        for engine in ["blocked", "emulated", "reference"].map(|name| Engine::by_name(name).unwrap()) {
            for name in ["f32/128", "exact/128", "hopper/128", "ada/64"] {
                let arithmetic: Arithmetic = name.parse().unwrap();
                let problem = operands.problem().unwrap().with_arithmetic(&arithmetic).unwrap();
                if engine.plan_gemm(&problem).is_err() {
                    continue;
                }
                let kernel = |operands: &GroupedOperands| {
                    engine.gemm(&operands.problem()?.with_arithmetic(&arithmetic)?)
                };
                assert_eq!(sanitize(operands, &kernel).unwrap(), [], "{engine}, {name}");
                runs += 1;
            }
        }
    }
    assert!(runs >= 4 * 5, "{runs}");
    // Scales that the model applies.
    let a = e8m0(Format::E4M3, 4, 128, 1);
    let b = vec![e8m0(Format::E4M3, 3, 128, 2), e8m0(Format::E4M3, 3, 128, 3)];
    let operands = GroupedOperands::new(vec![a], b, Groups::Contiguous(vec![1, -1, 1, -1])).unwrap();
    let arithmetic: Arithmetic = "blackwell-mx/none".parse().unwrap();
    let kernel = |operands: &GroupedOperands| {
        Engine::reference().gemm(&operands.problem()?.with_arithmetic(&arithmetic)?)
    };
    assert_eq!(sanitize(&operands, &kernel).unwrap(), []);
}

/// What a right kernel computes, as the base of wrong ones.
fn right(operands: &GroupedOperands) -> finegrain::Result<Matrix<f32>> {
    operands.problem()?.run()
}

/// A backend that is right group by group, and whose grouped kernel reads one row too far.
struct OneRowTooFar;

struct GroupedPlan<'p>(&'p GroupedProblem<'p>);

impl GemmBackend for OneRowTooFar {
    fn name(&self) -> &'static str {
        "one-row-too-far"
    }

    fn models(&self) -> Vec<Model> {
        Reference.models()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> finegrain::Result<Box<dyn GemmPlan + 'p>> {
        Reference.plan(problem)
    }

    fn plan_grouped<'p>(
        &'p self,
        problem: &'p GroupedProblem<'p>,
    ) -> finegrain::Result<Box<dyn GemmPlan + 'p>> {
        Ok(Box::new(GroupedPlan(problem)))
    }
}

impl std::fmt::Display for GroupedPlan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("all groups at once, one row too far")
    }
}

impl GemmPlan for GroupedPlan<'_> {
    fn backend(&self) -> &'static str {
        OneRowTooFar.name()
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> finegrain::Result<()> {
        let Output::F32(mut d) = out else { unreachable!("the sanitiser reads f32") };
        Reference.run_grouped(self.0, Output::F32(d.reborrow()), watch)?;
        let GroupedForm::Contiguous { a, .. } = self.0.form() else { return Ok(()) };
        let last = self.0.parts()[0].rows().end;
        let below = a.row_range(last, last + 1).dequantize()?;
        d.row_mut(last - 1)[0] += 0.0 * below.row(0)[0];
        Ok(())
    }
}

/// The grouped kernel of a backend is what runs, not one product a group.
#[test]
fn a_leak_of_the_grouped_kernel_alone_is_caught() {
    let operands = contiguous(Granule::TILE_1X128);
    let leaks = |grouped: bool| {
        let kernel = |operands: &GroupedOperands| {
            let problem = operands.problem()?;
            let (rows, cols) = problem.output_shape();
            let mut d = Matrix::filled(rows, cols, 0.0);
            let backend: &dyn GemmBackend = if grouped { &OneRowTooFar } else { &Reference };
            backend.run_grouped(&problem, Output::F32(d.view_mut()), &Watch::NONE)?;
            Ok(d)
        };
        sanitize(&operands, &kernel).unwrap()
    };
    assert_eq!(leaks(false), []);
    assert!(leaks(true).iter().any(|leak| (leak.poison, leak.rows, leak.first) == (Poison::Nan, 1, (2, 0))));
}

#[test]
fn kernels_that_read_padding_are_caught() {
    let operands = contiguous(Granule::TILE_1X128);
    let caught = |kernel: &dyn Fn(&GroupedOperands) -> finegrain::Result<Matrix<f32>>| {
        let leaks = sanitize(&operands, &kernel).unwrap();
        leaks.iter().map(|l| (l.poison, l.rows, l.first)).collect::<Vec<_>>()
    };
    assert_eq!(caught(&right), []);

    // The last valid row of each group takes the scale of the row below it: for group 0 and 1, a padding row.
    let neighbor = |o: &GroupedOperands| {
        let mut d = right(o)?;
        let scales = o.a()[0].view();
        for i in [2, 12] {
            let (own, below) = (scales.scale_at(i, 0), scales.scale_at(i + 1, 0));
            d.row_mut(i).iter_mut().for_each(|v| *v *= below / own);
        }
        Ok(d)
    };
    assert_eq!(caught(&neighbor), Poison::ALL.map(|p| (p, 2, (2, 0))));

    // A tile's valid rows see its padding rows, masked by multiplying with 0: harmless but for what is not finite.
    let masked_by_zero = |o: &GroupedOperands| {
        let (mut d, a) = (right(o)?, o.a()[0].dequantize().unwrap());
        for i in (0..16).filter(|&i| o.valid_rows()[i]) {
            let stray: f32 = (i / TILE * TILE..(i / TILE + 1) * TILE)
                .filter(|&r| !o.valid_rows()[r])
                .map(|r| 0.0 * a.row(r)[7])
                .sum();
            d.row_mut(i)[4] += stray;
        }
        Ok(d)
    };
    let leaks = caught(&masked_by_zero);
    assert!(leaks.contains(&(Poison::Nan, 8, (0, 4))), "{leaks:?}");

    // A tile's scale is the largest of all its rows, padding included: NaN is lost in max, a huge one is not.
    let tile_amax = |o: &GroupedOperands| {
        let mut d = right(o)?;
        let scales = o.a()[0].view();
        for i in (0..16).filter(|&i| o.valid_rows()[i]) {
            let rows = i / TILE * TILE..(i / TILE + 1) * TILE;
            let largest = rows.map(|r| scales.scale_at(r, 0)).fold(0.0, f32::max);
            d.row_mut(i)[0] += if largest > 1e6 { 1.0 } else { 0.0 };
        }
        Ok(d)
    };
    assert_eq!(caught(&tile_amax), [Poison::Huge, Poison::Infinite].map(|p| (p, 8, (0, 0))));

    // The B of a group that no row belongs to.
    let empty_group = |o: &GroupedOperands| {
        let mut d = right(o)?;
        d.row_mut(9)[1] += 0.0 * o.b()[2].dequantize().unwrap().row(0)[0];
        Ok(d)
    };
    assert!(caught(&empty_group).contains(&(Poison::Nan, 1, (9, 1))));

    // Scales in DeepGEMM's layout have padding of their own, which a kernel that rounds 5 rows up to 8 reads.
    let b = experts(Format::E4M3, 1);
    let a = scaled(Format::E4M3, 5, 256, Granule::TILE_1X128, 3);
    let five = GroupedOperands::new(vec![a], b, Groups::Contiguous(vec![0; 5])).unwrap();
    let padded = |o: &GroupedOperands| {
        let mut d = right(o)?;
        let grid = o.a()[0].scales().unwrap().grid.view().to_f32();
        let stored = ScaleLayout::MnMajorTma.store_padded(grid.view(), o.padding_scale());
        assert_eq!(stored.len(), 2 * 8);
        d.row_mut(4)[0] += 0.0 * stored[5..8].iter().sum::<f32>();
        Ok(d)
    };
    let leaks = sanitize(&five, &padded).unwrap();
    assert!(
        leaks.iter().any(|l| l.poison == Poison::Nan && l.first == (4, 0) && l.poisoned.is_nan()),
        "{leaks:?}"
    );
    let wrong_shape = |_: &GroupedOperands| Ok(Matrix::filled(4, 5, 0.0f32));
    assert!(sanitize(&five, &wrong_shape).unwrap_err().to_string().contains("4×5, expected 5×5"));
}

fn rules_of(violations: &[Violation]) -> Vec<(Rule, Option<usize>)> {
    violations.iter().map(|v| (v.rule, v.group)).collect()
}

#[test]
fn every_planted_violation_is_listed() {
    let rules = LayoutRules { align: TILE, power_of_two: false };
    let with = |rows: &[i32], count| {
        let a = scaled(Format::E4M3, rows.len(), 256, Granule::TILE_1X128, 3);
        GroupedOperands::new(vec![a], experts(Format::E4M3, count), Groups::Contiguous(rows.to_vec()))
            .unwrap()
    };
    let legal = [0, 0, 0, 0, 0, 0, 0, -1, 1, 1, -1, -1, -1, -1, -1, -1];
    assert_eq!(with(&legal, 2).violations(rules), []);
    for (row, index, count, expected) in [
        (7, 1, 2, vec![(Rule::Alignment, Some(1)), (Rule::BoundaryInTile, None)]),
        (7, 2, 2, vec![(Rule::IndexOutOfRange, None), (Rule::BoundaryInTile, None)]),
        (7, -2, 2, vec![(Rule::PaddingIndex, None)]),
        (
            15,
            0,
            2,
            vec![(Rule::Alignment, Some(0)), (Rule::SplitGroup, Some(0)), (Rule::BoundaryInTile, None)],
        ),
        (0, 0, 3, vec![(Rule::EmptyGroup, Some(2))]),
    ] {
        let mut rows = legal;
        rows[row] = index;
        let found = with(&rows, count).violations(rules);
        assert_eq!(rules_of(&found), expected, "{found:?}");
    }
    let ragged = with(&legal[..10], 2).violations(rules);
    assert_eq!(rules_of(&ragged), [(Rule::Alignment, None)]);
    assert_eq!(ragged[0].message, "a ends at row 10, no multiple of 8");
    assert!(with(&[0, 5], 1).problem().is_err() && with(&[0, 5], 1).violations(rules).len() >= 2);

    let counts = |valid: [usize; 2], rows| {
        let a = (0..2).map(|g| scaled(Format::E4M3, rows, 256, Granule::TILE_1X128, g + 1)).collect();
        GroupedOperands::new(a, experts(Format::E4M3, 2), Groups::Masked(valid.to_vec())).unwrap()
    };
    assert_eq!(counts([8, 1], 8).violations(rules), []);
    assert_eq!(
        rules_of(&counts([9, 0], 8).violations(rules)),
        [(Rule::IndexOutOfRange, Some(0)), (Rule::EmptyGroup, Some(1))]
    );
    assert_eq!(
        rules_of(&counts([1, 1], 6).violations(rules)),
        [(Rule::Alignment, Some(0)), (Rule::Alignment, Some(1))]
    );

    let k = |sizes: [usize; 2]| {
        let each =
            |rows, seed| sizes.map(|k| scaled(Format::E4M3, rows, k, Granule::TILE_1X128, seed)).to_vec();
        GroupedOperands::new(each(4, 1), each(5, 2), Groups::K).unwrap()
    };
    let wide = LayoutRules { align: 128, power_of_two: false };
    assert_eq!(k([128, 256]).violations(wide), []);
    assert_eq!(
        rules_of(&k([130, 0]).violations(wide)),
        [(Rule::Alignment, Some(0)), (Rule::EmptyGroup, Some(1))]
    );
}

#[test]
fn values_count_where_they_are_read() {
    let matrix = |scales: [f32; 4], codes: [u8; 4]| {
        let grid = ScaleGrid::F32(Matrix::from_vec(4, 1, scales.to_vec()).unwrap());
        let scales = Scales { granule: Granule::TILE_1X128, grid, tensor: 1.0 };
        let codes = Codes::Bytes(Matrix::from_fn(4, 2, |i, _| codes[i]));
        ScaledMatrix::new(Format::E4M3, codes, Some(scales)).unwrap()
    };
    let ones = || matrix([1.0; 4], [0x38; 4]);
    let found = |a, b, power_of_two| {
        let operands = GroupedOperands::new(vec![a], vec![b], Groups::Contiguous(vec![0, 0, 0, -1])).unwrap();
        operands.violations(LayoutRules { align: 4, power_of_two })
    };
    assert_eq!(found(ones(), ones(), true), []);
    // Row 3 is padding and may hold anything.
    assert_eq!(found(matrix([1.0, 0.5, 4.0, f32::NAN], [0x38, 0x38, 0x38, 0x7F]), ones(), true), []);
    let violations = found(matrix([1.0, 3.0, 5.0, 6.0], [0x38; 4]), ones(), true);
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].message, "a: 2 scales are no powers of two, the first 3e0 at (1, 0)");
    assert_eq!(found(matrix([1.0, 3.0, 5.0, 6.0], [0x38; 4]), ones(), false), []);
    let violations = found(ones(), matrix([0.0, -1.0, f32::INFINITY, 1.0], [0x38, 0x7F, 0xFF, 0x38]), true);
    assert_eq!(rules_of(&violations), [(Rule::NonFinite, Some(0)), (Rule::ScaleRange, Some(0))]);
    assert!(
        violations[0].message.contains("4 codes") && violations[1].message.contains("3 scales"),
        "{violations:?}"
    );
    for rule in Rule::ALL {
        assert_eq!(rule.name().parse::<Rule>().unwrap(), rule);
    }
}

#[test]
fn operands_that_do_not_belong_together_are_refused() {
    let one = || scaled(Format::E4M3, 4, 256, Granule::TILE_1X128, 1);
    let refused = |a, b, groups, words: &[&str]| {
        let message = GroupedOperands::new(a, b, groups).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    refused(vec![one()], vec![one()], Groups::Contiguous(vec![0; 3]), &["3 indices", "4"]);
    refused(vec![one()], vec![one(), one()], Groups::Masked(vec![1, 1]), &["1 matrices A", "expected 2"]);
    refused(vec![one()], vec![one()], Groups::Masked(vec![1, 1]), &["2 indices", "1"]);
    refused(vec![one()], vec![], Groups::Contiguous(vec![0; 4]), &["0 of B"]);
}
