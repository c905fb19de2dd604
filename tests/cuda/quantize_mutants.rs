//! Planted bugs in the quantisers, dequantisers and what is fused with them: see mutants.rs.

use crate::support::compiler::compiler;
use crate::support::interpreter::{Stored, shape};
use crate::support::mutant::{Mutant, survivors};
use crate::support::quantize_bugs::MUTANTS;
use crate::support::trials::{
    BLOCKS, EDGES, MANY, ROWS, Trial, Values, codes_in_tiles, dequantized_on, kernel, made_up_recipes,
    recipes,
};
use finegrain::cuda::kernels::Desc;
use finegrain::scaled::Granule;
use ptx_emulator::Module;

/// Runs a mutant's kernel on every recipe, shape and way to store scales, up to the first that is not as the library has it.
fn solve(mutant: &Mutant, module: &Module) -> Result<(), String> {
    let kernel = kernel(mutant.kernel);
    let by_rows =
        ["quantize_1x128", "swiglu", "dequantize"].iter().any(|start| kernel.name.starts_with(start));
    // Also one with more columns of scales than a packed word has.
    let wide = shape(3, 700, [0, 0], [0, 0]);
    let shapes = [if by_rows { &ROWS[..] } else { &BLOCKS[..] }, &[wide]].concat();
    let mut first_kind = 0;
    if kernel.name.starts_with("dequantize") {
        for granule in [Granule::TILE_1X128, Granule::BLOCK_128X128] {
            for (i, &shape) in shapes.iter().enumerate() {
                for stored in Stored::all(None) {
                    let x = codes_in_tiles(shape.rows, shape.cols, i, stored.bytes(), granule);
                    dequantized_on(module, kernel.name, shape, &x, stored)?;
                }
            }
        }
        return Ok(());
    }
    for recipe in recipes() {
        for stored in Stored::all(Some(recipe)) {
            for &shape in &shapes {
                first_kind += 3;
                Trial { kernel, shape, recipe, stored, values: Values::Kinds(first_kind) }.on(module)?;
                // Memory is planned for elements of which nothing is counted; others, and padding, are read again.
                if !(shape.rows.is_multiple_of(128) && shape.cols.is_multiple_of(128)) {
                    continue;
                }
                let trial = Trial { kernel, shape, recipe, stored, values: Values::Random };
                let conflicts = trial.on(module)?.1.extra_wavefronts();
                let blocks = kernel.config(Desc::matrix(shape.rows, shape.cols)).unwrap().grid;
                let planned = blocks.map(u64::from).iter().product::<u64>() * planned_conflicts(kernel.name);
                if conflicts > planned {
                    return Err(format!("{trial}: {conflicts} more wavefronts, {planned} planned"));
                }
            }
        }
    }
    if kernel.source.file == "quantize_1x128.cu" {
        let e8m0 = Stored::all(None).find(|s| s.bytes()).unwrap();
        for recipe in [recipes(), made_up_recipes()].concat() {
            let stored = if Stored::all(Some(recipe)).any(|s| s == e8m0) { e8m0 } else { Stored::PLAIN };
            Trial { kernel, shape: EDGES, recipe, stored, values: Values::Edges }.on(module)?;
        }
    }
    if by_rows {
        for recipe in recipes() {
            let stored = Stored::PLAIN;
            for values in [Values::Ties, Values::Random] {
                Trial { kernel, shape: MANY, recipe, stored, values }.on(module)?;
            }
        }
    }
    Ok(())
}

/// Wavefronts more than requests in a block of a transposing kernel, on account of amax and factors: see quantize.rs.
fn planned_conflicts(kernel: &str) -> u64 {
    match kernel {
        "quantize_128x1_f32" => 8 * 2 * 4,
        "quantize_128x1_bf16" => 8 * 2 * 8,
        "requantize_transpose_e4m3" => 8 * 2 * 16,
        _ => 0,
    }
}

#[test]
fn bugs_are_noticed() {
    let Some(compiler) = compiler() else { return };
    let survivors = survivors(compiler, MUTANTS, solve);
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}
