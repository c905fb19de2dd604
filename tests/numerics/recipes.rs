//! Every recipe against the golden values, byte for byte: scales and codes, on clean and on hostile tiles.
//!
//! The golden file says which of its rows come from running the source itself (`SURE`); for the others, tiles with
//! infinities or NaN are the reading of a formula. They are compared all the same: finegrain promises its own bits.

use crate::common::golden::{self, Score, all, bits, exact, nan_e4m3, nan_e5m2, nan_f32, tensor};
use finegrain::checkpoint::TensorFile;
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantized, Quantizer, Recipe, Role};
use finegrain::scaled::{Codes, ScaleGrid};

fn codes(q: &Quantized) -> Matrix<u64> {
    match q.matrix.codes() {
        Codes::Bytes(m) => m.map(|&c| u64::from(c)),
        Codes::Words(m) => m.map(|&c| u64::from(c)),
        Codes::Dwords(m) => m.map(|&c| u64::from(c)),
    }
}

fn scales(q: &Quantized) -> Matrix<u64> {
    match &q.matrix.scales().unwrap().grid {
        ScaleGrid::F32(m) => m.map(|s| u64::from(s.to_bits())),
        ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m) => m.map(|&s| u64::from(s)),
    }
}

/// The middle part of `{prefix}{middle}.q` for every such tensor.
fn middles<'a>(file: &'a TensorFile, prefix: &str) -> Vec<&'a str> {
    let mut found: Vec<&str> =
        file.names().iter().filter_map(|n| n.strip_prefix(prefix)?.strip_suffix(".q")).collect();
    found.sort();
    found
}

#[test]
fn fp8_recipes_in_three_geometries() {
    let file = golden::oracle("recipes");
    let mut score = Score::default();
    let mut cases = 0;
    for matrix in ["clean", "special"] {
        let x = tensor(&file, &format!("{matrix}.x")).to_matrix().unwrap();
        for (geometry, role) in
            [("1x128", Role::Activation), ("128x128", Role::Weight), ("128x1", Role::Transposed)]
        {
            let prefix = format!("{matrix}.{geometry}.");
            for name in middles(&file, &prefix) {
                let q = Quantizer::new(name.parse::<Recipe>().unwrap()).quantize(x.view(), role).unwrap();
                let (mut got_codes, mut got_scales) = (codes(&q), scales(&q));
                if role == Role::Transposed {
                    got_codes = got_codes.view().transposed();
                    got_scales = got_scales.view().transposed();
                }
                let key = format!("{prefix}{name}");
                score.eq(
                    &format!("{key}.s"),
                    got_scales.as_slice(),
                    &bits(&file, &format!("{key}.s")),
                    nan_f32,
                    all,
                );
                score.eq(
                    &format!("{key}.q"),
                    got_codes.as_slice(),
                    &bits(&file, &format!("{key}.q")),
                    nan_e4m3,
                    all,
                );
                cases += 1;
            }
        }
    }
    println!("{cases} cases");
    score.finish("FP8 recipes");
}

#[test]
fn mx_kinds() {
    let file = golden::oracle("recipes");
    let mut score = Score::default();
    for matrix in ["clean", "special"] {
        let x = tensor(&file, &format!("{matrix}.x")).to_matrix().unwrap();
        for name in middles(&file, &format!("{matrix}.mx")) {
            let name = format!("mx{name}"); // kind.mode
            let q = Quantizer::new((name.replace('.', "-")).parse::<Recipe>().unwrap())
                .activation(x.view())
                .unwrap();
            let key = format!("{matrix}.{name}");
            // floor-torchao shares its scales with floor.
            let scale_key = key.strip_suffix("-torchao").unwrap_or(&key);
            let bytes = scales(&q);
            if file.contains(&format!("{scale_key}.s")) {
                score.eq(
                    &format!("{key}.s"),
                    bytes.as_slice(),
                    &bits(&file, &format!("{scale_key}.s")),
                    exact,
                    all,
                );
            }
            // Codes of blocks whose scale is NaN have no meaning.
            let cols = x.cols();
            let skip = |i: usize| bytes.row(i / cols)[i % cols / 32] == 255;
            let nan = match name.as_str() {
                n if n.contains("e4m3") => nan_e4m3,
                n if n.contains("e5m2") => nan_e5m2,
                _ => exact,
            };
            score.eq(&format!("{key}.q"), codes(&q).as_slice(), &bits(&file, &format!("{key}.q")), nan, skip);
        }
    }
    score.finish("MX kinds");
}

#[test]
fn nvfp4() {
    let file = golden::oracle("recipes");
    let mut score = Score::default();
    let x = tensor(&file, "nvfp4.x").to_matrix().unwrap();
    for name in ["torchao", "torchao-1level", "te-1x16", "te-16x16"] {
        let q =
            Quantizer::new(format!("nvfp4-{name}").parse::<Recipe>().unwrap()).activation(x.view()).unwrap();
        score.eq(name, scales(&q).as_slice(), &bits(&file, &format!("nvfp4.{name}.s")), exact, all);
        score.eq(name, codes(&q).as_slice(), &bits(&file, &format!("nvfp4.{name}.q")), exact, all);
        let tensor_scale = q.matrix.scales().unwrap().tensor;
        match name {
            "torchao" => {
                let want = bits(&file, "nvfp4.torchao.tensor_scale");
                score.eq("tensor scale", &[u64::from(tensor_scale.to_bits())], &want, exact, all);
            }
            "torchao-1level" => assert_eq!(tensor_scale, 1.0),
            _ => {
                let amax = tensor(&file, "nvfp4.te.amax").to_f32().unwrap()[0];
                assert_eq!(tensor_scale, 1.0 / (2688.0 / amax), "the reciprocal of S = fl(2688 / amax)");
            }
        }
    }
    score.finish("NVFP4");
}

#[test]
fn e5m6() {
    let file = golden::oracle("recipes");
    let mut score = Score::default();
    let x = tensor(&file, "clean.x").to_matrix().unwrap();
    for name in middles(&file, "clean.e5m6") {
        let name = format!("e5m6{name}");
        let q = Quantizer::new(name.parse::<Recipe>().unwrap()).activation(x.view()).unwrap();
        score.eq(&name, scales(&q).as_slice(), &bits(&file, &format!("clean.{name}.s")), exact, all);
        score.eq(&name, codes(&q).as_slice(), &bits(&file, &format!("clean.{name}.q")), exact, all);
    }
    score.finish("E5M6");
}

/// Non-finite input is counted whatever the recipe makes of it, and so is everything that the codes do not hold.
#[test]
fn statistics_count_what_the_codes_lost() {
    let mut x = Matrix::filled(2, 256, 1.0f32);
    x.row_mut(0)[3] = f32::NAN;
    x.row_mut(0)[200] = f32::NEG_INFINITY;
    x.row_mut(1)[..128].fill(0.0);
    x.row_mut(1)[128..].fill(1e-6);
    x.row_mut(1)[130] = 1e-12;
    for recipe in Recipe::ALL.iter().filter(|r| r.activation.cols() == 128) {
        let stats = Quantizer::new(*recipe).activation(x.view()).unwrap().stats;
        assert_eq!((stats.elements, stats.nan, stats.infinite), (512, 1, 1), "{}", recipe.name);
        assert_eq!(
            (stats.granules, stats.zero_granules, stats.nonfinite_granules),
            (4, 1, 2),
            "{}",
            recipe.name
        );
        assert_eq!(stats.floored_granules, u64::from(recipe.amax.floor == 1e-4), "{}", recipe.name);
        assert!(stats.flushed >= 1, "{}: 1e-12 beside 1e-6", recipe.name);
    }
    // MX floor scales clip the block maximum: 1.9 · 2^8 > 448 in units of the scale.
    let clipped = Matrix::filled(1, 32, 1.9f32);
    let stats = Quantizer::new("mxfp8".parse::<Recipe>().unwrap()).activation(clipped.view()).unwrap().stats;
    assert_eq!(stats.saturated, 32);
    let stats =
        Quantizer::new("mxfp8-rceil".parse::<Recipe>().unwrap()).activation(clipped.view()).unwrap().stats;
    assert_eq!(stats.saturated, 0);
}

/// Sources of f32, bf16 and f16 with the same values give the same codes; a strided view gives those of its copy.
#[test]
fn input_types_and_strides_do_not_matter() {
    let x =
        Matrix::from_fn(130, 300, |i, j| half::bf16::from_f32((i as f32 - 64.0) * 0.37 + j as f32 * 0.011));
    let wide = x.map(|v| v.to_f32());
    for recipe in [Recipe::DEEPSEEK_V3, Recipe::TE, "mxfp8".parse::<Recipe>().unwrap()] {
        let quantizer = Quantizer::new(recipe);
        for role in [Role::Activation, Role::Weight, Role::Transposed] {
            let q = quantizer.quantize(x.view(), role).unwrap();
            assert_eq!(q, quantizer.quantize(wide.view(), role).unwrap(), "{}", recipe.name);
        }
        let part = wide.view().row_range(1, 129).col_range(3, 259);
        let copy = part.to_matrix();
        assert_eq!(quantizer.weight(part).unwrap(), quantizer.weight(copy.view()).unwrap());
    }
}

/// Requantising to the transpose is dequantise, transpose, quantise; power-of-two scales lose nothing that fits.
#[test]
fn requantizing_to_the_transpose() {
    let x = Matrix::from_fn(200, 384, |i, j| ((i * 31 + j * 17) % 97) as f32 * 0.25 - 12.0);
    for recipe in [Recipe::DEEPSEEK_V3, Recipe::TE] {
        let quantizer = Quantizer::new(recipe);
        let first = quantizer.activation(x.view()).unwrap();
        let again = quantizer.requantize_transposed(first.view()).unwrap();
        let values = first.matrix.dequantize().unwrap();
        assert_eq!(again.matrix, quantizer.transposed(values.view()).unwrap().matrix);
        assert_eq!(again.matrix.shape(), (384, 200));
        if recipe == Recipe::TE {
            assert_eq!(
                again.matrix.dequantize().unwrap(),
                values.view().transposed(),
                "power-of-two scales, no underflow"
            );
        }
    }
}

/// Square blocks transpose without requantising.
#[test]
fn square_blocks_transpose() {
    let w = Matrix::from_fn(150, 260, |i, j| (i as f32).sin() * (j as f32 + 1.0).ln());
    let q = Quantizer::new(Recipe::DEEPSEEK_V3).weight(w.view()).unwrap();
    let of_transpose = Quantizer::new(Recipe::DEEPSEEK_V3).weight(w.view().transposed().view()).unwrap();
    assert_eq!(q.matrix.transposed(), of_transpose.matrix);
}

#[test]
fn empty_matrices_quantize() {
    for recipe in Recipe::ALL {
        for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
            let x = Matrix::filled(rows, cols, 0f32);
            let q = Quantizer::new(*recipe).activation(x.view()).unwrap();
            assert_eq!((q.matrix.shape(), q.stats.elements), ((rows, cols), 0), "{}", recipe.name);
            assert_eq!(q.matrix.dequantize().unwrap(), x, "{}", recipe.name);
        }
    }
    // More rows than can be counted through, none with an element.
    let tall = finegrain::matrix::MatRef::new(&[0f32; 0], 1 << 60, 0).unwrap();
    let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(tall).unwrap();
    assert_eq!(q.matrix.dequantize().unwrap().shape(), (1 << 60, 0));
}
