//! Gate B of the kernels that are no GEMMs: the committed PTX, run by the interpreter with its checks for races and for
//! memory that nothing wrote, gives the bits of `quant` on every recipe it can be asked for. Needs neither NVRTC nor a GPU.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::support::interpreter::{KINDS, Shape, Stored, shape};
use crate::support::kept;
use crate::support::trials::{
    ALONE, BLOCKS, EDGES, GRANULE, MANY, ROWS, Trial, Values, codes_in_tiles, dequantized_on, kernel,
    made_up_recipes, recipes,
};
use finegrain::cuda::kernels::{Kernel, SOURCES, Source};
use finegrain::quant::Recipe;
use finegrain::scaled::layout::ScaleLayout;
use finegrain::scaled::{Granule, ScaledMatrix};
use ptx_emulator::{Module, Report};

fn module(kernel: &Kernel) -> &'static Module {
    static MODULES: OnceLock<BTreeMap<&str, Module>> = OnceLock::new();
    let all = || SOURCES.iter().filter(|source| !source.file.contains("gemm"));
    let parse = |source: &&Source| Module::parse(&kept::read(source, source.ptx[0])).unwrap();
    &MODULES.get_or_init(|| all().map(|source| (source.file, parse(source))).collect())[kernel.source.file]
}

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
                    let trial = Trial { kernel, shape, recipe, stored, values: Values::Kinds(first_kind) };
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
            let trial = Trial { kernel: kernel(name), shape, recipe, stored, values: Values::Kinds(i) };
            trial.on(module(trial.kernel)).unwrap_or_else(|why| panic!("{why}"));
        }
    }
    check(&["quantize_128x128_f32", "quantize_128x128_bf16"], &BLOCKS);
}

/// What the kinds meet too seldom: scales at the edges of binades, roundings that differ in few elements of many, elements
/// that are counted alone; and recipes by which zeros past the end would become NaN.
#[test]
fn rare_cases_have_the_reference_bits() {
    let mut compared = 0;
    let mut check = |name: &str, shape, recipe, stored, values| {
        let kernel = kernel(name);
        let trial = Trial { kernel, shape, recipe, stored, values };
        compared += trial.on(module(kernel)).unwrap_or_else(|why| panic!("{why}")).0;
    };
    for recipe in [recipes(), made_up_recipes()].concat() {
        for stored in Stored::all(Some(recipe)).filter(|s| s.layout == ScaleLayout::RowMajor) {
            check("quantize_1x128_f32", EDGES, recipe, stored, Values::Edges);
        }
    }
    for recipe in recipes() {
        for name in ["quantize_1x128_f32", "quantize_1x128_bf16"] {
            check(name, MANY, recipe, Stored::PLAIN, Values::Ties);
        }
    }
    for name in ["swiglu_quantize_1x128_f32", "swiglu_quantize_1x128_bf16"] {
        check(name, MANY, &Recipe::DEEPSEEK_V3, Stored::PLAIN, Values::Random);
    }
    let by_rows = [
        "quantize_1x128_f32",
        "quantize_1x128_bf16",
        "swiglu_quantize_1x128_f32",
        "swiglu_quantize_1x128_bf16",
    ];
    let by_blocks = [
        "quantize_128x128_f32",
        "quantize_128x128_bf16",
        "quantize_128x1_f32",
        "quantize_128x1_bf16",
        "requantize_transpose_e4m3",
    ];
    for (names, [_, ragged, ..]) in [(&by_rows[..], ROWS), (&by_blocks[..], BLOCKS)] {
        for name in names {
            check(name, ALONE, &Recipe::DEEPSEEK_V3, Stored::PLAIN, Values::Alone);
            for (i, recipe) in made_up_recipes().into_iter().enumerate() {
                check(name, ragged, recipe, Stored::PLAIN, Values::Kinds(i));
            }
        }
    }
    println!("{compared} codes and scales compared");
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
                    let outcome = dequantized(name, shape, &x, stored);
                    compared +=
                        outcome.unwrap_or_else(|why| panic!("{shape:?}, {granule}, {stored:?}: {why}")).0;
                    launches += 1;
                }
            }
        }
    }
    println!("dequantize: {compared} values in {launches} launches");
}

fn dequantized(
    name: &str,
    shape: Shape,
    x: &ScaledMatrix,
    stored: Stored,
) -> Result<(usize, Report), String> {
    dequantized_on(module(kernel(name)), name, shape, x, stored)
}

/// On aligned shapes whole warps move 16 bytes a lane without gaps, and only scales go in narrow accesses. Codes pass through
/// shared memory without conflicts. What conflicts there are come from amax and factors of the transposing kernels: the
/// lanes of a warp touch 64 / E of 64 columns that are E apart, which are two to a bank, so that each of E writes and E reads
/// takes one wavefront more. Where elements are looked at again there are none.
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
        let trial = |values| Trial { kernel, shape, recipe: &Recipe::DEEPSEEK_V3, stored, values };
        // Of random numbers there is nothing to count, and no counter is touched.
        let result = if name.starts_with("dequantize") {
            dequantized(name, shape, &x, stored)
        } else {
            trial(Values::Random).on(module(kernel))
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
        let planned = 8 * 8 * 2 * in_a_row;
        assert_eq!(conflicts, planned, "{name}: conflicts in shared memory");
        if !name.starts_with("dequantize") {
            let report = trial(Values::Kinds(0)).on(module(kernel)).unwrap_or_else(|why| panic!("{why}")).1;
            assert_eq!(report.extra_wavefronts(), planned, "{name}: conflicts where elements are counted");
        }
    }
}
