//! Planted bugs in the quantisers, dequantisers and what is fused with them: see mutants.rs.

use crate::support::compiler::compiler;
use crate::support::interpreter::{Stored, shape};
use crate::support::mutant::{Mutant, survivors};
use crate::support::quantize_bugs::MUTANTS;
use crate::support::trials::{
    ALONE, BLOCKS, EDGES, MANY, ROWS, Trial, Values, codes_in_tiles, dequantized_on, kernel, made_up_recipes,
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
    let on =
        |shape, recipe, stored, values| as_planned(&Trial { kernel, shape, recipe, stored, values }, module);
    for recipe in recipes() {
        for stored in Stored::all(Some(recipe)) {
            for &shape in &shapes {
                first_kind += 3;
                on(shape, recipe, stored, Values::Kinds(first_kind))?;
                on(shape, recipe, stored, Values::Random)?;
            }
        }
        on(ALONE, recipe, Stored::PLAIN, Values::Alone)?;
    }
    // Without a floor granules past the end can have factors that make NaN of their zeros.
    let ragged = shapes[1];
    for (i, recipe) in made_up_recipes().into_iter().enumerate() {
        on(ragged, recipe, Stored::PLAIN, Values::Kinds(i))?;
    }
    if kernel.source.file == "quantize_1x128.cu" {
        let e8m0 = Stored::all(None).find(|s| s.bytes()).unwrap();
        for recipe in [recipes(), made_up_recipes()].concat() {
            let stored = if Stored::all(Some(recipe)).any(|s| s == e8m0) { e8m0 } else { Stored::PLAIN };
            on(EDGES, recipe, stored, Values::Edges)?;
        }
    }
    if by_rows {
        for recipe in recipes() {
            for values in [Values::Ties, Values::Random] {
                on(MANY, recipe, Stored::PLAIN, values)?;
            }
        }
    }
    Ok(())
}

/// Runs a trial whose kernel must touch shared memory as planned, whatever it meets: where elements are looked at again it
/// meets no bank twice.
fn as_planned(trial: &Trial, module: &Module) -> Result<(), String> {
    let conflicts = trial.on(module)?.1.extra_wavefronts();
    let Trial { kernel, shape, .. } = trial;
    let blocks = kernel.config(Desc::matrix(shape.rows, shape.cols)).unwrap().grid;
    let planned = blocks.map(u64::from).iter().product::<u64>() * planned_conflicts(kernel.name);
    if conflicts == planned {
        Ok(())
    } else {
        Err(format!("{trial}: {conflicts} more wavefronts, {planned} planned"))
    }
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
