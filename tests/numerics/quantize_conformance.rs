//! Quantisers and dequantisers on every instruction set give the reference's bits: codes, scales and statistics, for
//! every recipe, role and input type, one thread or many.
//!
//! `FINEGRAIN_ISA=NAME` tries that instruction set only; `FINEGRAIN_REQUIRE_ISA=NAME` makes the absence of an
//! instruction set a failure; without it the absent are named.

use crate::common::isas::available;
use crate::common::operands::Random;
use crate::common::runner::{self, on_cpu};
use finegrain::Engine;
use finegrain::formats::{Format, Overflow};
use finegrain::matrix::{MatMut, MatRef, Matrix};
use finegrain::name::Name;
use finegrain::quant::{Element, ElementCast, Quantized, Quantizer, Recipe, Role};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledRef};
use half::{bf16, f16};

const ROLES: [Role; 3] = [Role::Activation, Role::Weight, Role::Transposed];

/// Compares every instruction set, on one thread and on three, with the reference; returns how many ran.
fn conforms<T: Element>(what: &str, recipe: &Recipe, x: MatRef<'_, T>, role: Role) -> usize {
    runner::quantize(&on_cpu("cpu"), what, x, recipe, role)
}

/// All recipes, and formats and casts that no recipe of the catalogue has.
fn recipes() -> Vec<Recipe> {
    let mut all = Recipe::ALL.to_vec();
    let hybrid = "te-current-hybrid".parse::<Recipe>().unwrap();
    all.push(Recipe { name: Name::literal("te-current-hybrid gradients"), ..hybrid.for_gradients() });
    for element in [Format::E4M3Fnuz, Format::E5M2Fnuz, Format::E5M2, Format::E2M3, Format::E5M6] {
        for cast in [Overflow::Saturate, Overflow::NonSaturating].map(ElementCast::Plain) {
            all.push(Recipe { name: Name::literal(element.name()), element, cast, ..Recipe::TE });
            // Payloads of the MX floor rule pass the largest value.
            let mx = "mxfp8-e4m3-floor".parse::<Recipe>().unwrap();
            all.push(Recipe { name: Name::literal(element.name()), element, cast, ..mx });
        }
    }
    all
}

/// What a matrix is filled with.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Both signs over many binades.
    Wide,
    /// Ordinary numbers, a third of them zero.
    Sparse,
    /// Numbers on and beside the midpoints of the formats under scales that are powers of two.
    Midpoints,
    /// Whole granules of zeros of both signs, of subnormals, of huge and of tiny numbers.
    Edges,
    /// Here and there an infinity or NaN.
    Specials,
}

const FILLS: [Fill; 5] = [Fill::Wide, Fill::Sparse, Fill::Midpoints, Fill::Edges, Fill::Specials];

fn matrix(fill: Fill, rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed);
    Matrix::from_fn(rows, cols, |i, j| {
        let mut unit = || random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let ordinary = unit();
        let choice = random.below(1 << 16);
        match fill {
            Fill::Wide => ordinary * 2f32.powi(choice as i32 % 40 - 20),
            Fill::Sparse => [0.0, ordinary, -0.0, ordinary, 4.0 * ordinary, ordinary][choice as usize % 6],
            Fill::Midpoints => {
                // 1 + odd/32 is a midpoint of four fraction bits, and so on; or the largest value, to fix the scale.
                let steps = [2.0, 4.0, 8.0, 16.0, 128.0][choice as usize % 5];
                let middle = (1.0 + (random.below(64) as f32 % steps + 0.5) / steps)
                    * 2f32.powi(random.below(20) as i32 - 12);
                let beside = f32::from_bits(middle.to_bits() + random.below(3) as u32 - 1);
                if choice < 4096 { 448.0 } else { beside.copysign(ordinary) }
            }
            Fill::Edges => match (i / 3 + j / 16) % 7 {
                0 => 0.0f32.copysign(ordinary),
                1 => ordinary * 1e-39,
                2 => ordinary * f32::MAX,
                3 => ordinary * 1e-30,
                4 => f32::from_bits(choice as u32 & 7).copysign(ordinary),
                5 => f32::MAX.copysign(ordinary),
                _ => ordinary,
            },
            Fill::Specials => match choice % 200 {
                0 => f32::NAN,
                1 => -f32::NAN,
                2 => f32::INFINITY,
                3 => f32::NEG_INFINITY,
                _ => ordinary,
            },
        }
    })
}

/// Every recipe, role, type and kind of values, on a shape with an edge granule on both sides.
#[test]
fn every_recipe() {
    let mut ran = 0;
    for (k, fill) in FILLS.into_iter().enumerate() {
        let x = matrix(fill, 131, 281, k as u64);
        let (narrow, half) = (x.map(|&v| bf16::from_f32(v)), x.map(|&v| f16::from_f32(v)));
        for recipe in recipes() {
            for role in ROLES {
                ran += conforms(&format!("{fill:?} f32"), &recipe, x.view(), role);
                ran += conforms(&format!("{fill:?} bf16"), &recipe, narrow.view(), role);
                ran += conforms(&format!("{fill:?} f16"), &recipe, half.view(), role);
            }
        }
    }
    assert_eq!(ran, 2 * available().len() * FILLS.len() * recipes().len() * ROLES.len() * 3);
}

/// Around registers, groups of them, tiles and granules; nothing at all; rows that lie apart.
#[test]
fn shapes_and_strides() {
    let sizes = [0, 1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 160, 257];
    let wide = matrix(Fill::Wide, 260, 300, 7);
    let names = [
        "deepseek-v3",
        "te",
        "mxfp8-e4m3-floor",
        "nvfp4-te-16x16",
        "e5m6-1x128",
        "torchao-rowwise",
        "te-current",
    ];
    let mut random = Random(8);
    for round in 0..120 {
        let mut pick = || sizes[random.below(sizes.len() as u64) as usize];
        let (rows, cols, top, left) = (pick(), pick(), round % 3, round % 7);
        let x = wide.view().row_range(top, top + rows).col_range(left, left + cols);
        let narrow = wide.map(|&v| bf16::from_f32(v));
        let y = narrow.view().row_range(top, top + rows).col_range(left, left + cols);
        let recipe = names[round % names.len()].parse::<Recipe>().unwrap();
        for role in ROLES {
            conforms(&format!("{rows}×{cols}"), &recipe, x, role);
            conforms(&format!("{rows}×{cols} bf16"), &recipe, y, role);
        }
    }
}

/// Matrices of many tasks, whose results go past the cache; granules of several tasks.
#[test]
fn large_matrices() {
    let x = matrix(Fill::Sparse, 1030, 5003, 9);
    for name in ["deepseek-v3", "tilekernels", "torchao-tensorwise", "torchao-rowwise", "nvfp4-te-1x16"] {
        for role in ROLES {
            conforms("large", &name.parse().unwrap(), x.view(), role);
        }
    }
    let tall = matrix(Fill::Specials, 1500, 40, 10);
    for granule in [(600, 3), (600, 32), (129, 16)].map(|(r, c)| Granule::new(r, c).unwrap()) {
        let recipe = Recipe { activation: granule, ..Recipe::DEEPSEEK_V3 };
        conforms("tall granules", &recipe, tall.view(), Role::Activation);
        let recipe = Recipe { activation: granule.transposed(), ..Recipe::DEEPSEEK_V3 };
        conforms("tall granules", &recipe, tall.view(), Role::Transposed);
    }
}

/// Into memory that held another result.
#[test]
fn into_memory_of_the_caller() {
    let (x, y) = (matrix(Fill::Wide, 70, 200, 11), matrix(Fill::Edges, 70, 200, 12));
    for recipe in [Recipe::DEEPSEEK_V3, "nvfp4".parse::<Recipe>().unwrap(), "e5m6".parse::<Recipe>().unwrap()]
    {
        let quantizer = Quantizer::new(recipe);
        for role in ROLES {
            let mut out = quantizer.quantize(x.view(), role).unwrap().matrix;
            let stats = quantizer.quantize_into(y.view(), role, &mut out).unwrap();
            assert_eq!(Quantized { matrix: out, stats }, quantizer.quantize(y.view(), role).unwrap());
        }
        let mut other = quantizer.activation(y.view().row_range(0, 60)).unwrap().matrix;
        let message =
            quantizer.quantize_into(y.view(), Role::Activation, &mut other).unwrap_err().to_string();
        assert!(message.contains("60×200") && message.contains("70×200"), "{message}");
    }
    let mut other = Quantizer::new(Recipe::DEEPSEEK_V3).weight(x.view()).unwrap().matrix;
    let message =
        Quantizer::new(Recipe::TE).quantize_into(x.view(), Role::Activation, &mut other).unwrap_err();
    assert!(message.to_string().contains("128x128") && message.to_string().contains("1x128"), "{message}");
}

/// Both types of a dequantised matrix on every instruction set.
fn dequantizes(what: &str, x: ScaledRef<'_>) -> usize {
    runner::dequantize(&on_cpu("cpu"), what, x)
}

#[test]
fn dequantizing_every_recipe() {
    let mut ran = 0;
    for (k, fill) in FILLS.into_iter().enumerate() {
        let x = matrix(fill, 131, 281, 20 + k as u64);
        for recipe in recipes() {
            for role in ROLES {
                let q = Quantizer::new(recipe).quantize(x.view(), role).unwrap();
                let (rows, _) = q.matrix.shape();
                ran += dequantizes(&format!("{} {role:?} {fill:?}", recipe.name), q.view());
                dequantizes("from a row on", q.view().row_range(5.min(rows), rows));
            }
        }
    }
    assert_eq!(ran, 2 * available().len() * FILLS.len() * recipes().len() * ROLES.len());
}

/// All codes of every format under scales that overflow, underflow and are not finite; without scales.
#[test]
fn dequantizing_every_code() {
    let scales = [1.0, -0.0, 1e-38, 3e-41, 2.5e38, -1.5, f32::INFINITY, f32::NAN, 0.1];
    for &format in Format::ALL.iter().filter(|f| f.spec().bits() <= 16 && **f != Format::E8M0) {
        let bits = format.spec().bits();
        let (rows, cols) = (scales.len(), 1 << bits.min(12));
        let code = |j: usize| {
            (j << (bits - bits.min(12))) as u16 | (j & 0xF & ((1 << (bits - bits.min(12))) - 1)) as u16
        };
        let codes = if bits <= 8 {
            Codes::Bytes(Matrix::from_fn(rows, cols, |_, j| j as u8))
        } else {
            Codes::Words(Matrix::from_fn(rows, cols, |_, j| code(j)))
        };
        let plain = finegrain::scaled::ScaledMatrix::new(format, codes.clone(), None).unwrap();
        dequantizes(format.name(), plain.view());
        for tensor in [1.0, 0.3, 0.0, f32::INFINITY] {
            let grid = ScaleGrid::F32(Matrix::from_fn(rows, 1, |i, _| scales[i]));
            let scales = finegrain::scaled::Scales { granule: Granule::ROW, grid, tensor };
            let x = finegrain::scaled::ScaledMatrix::new(format, codes.clone(), Some(scales)).unwrap();
            dequantizes(&format!("{format} times {tensor}"), x.view());
        }
    }
}

/// bf16 into rows without gaps that begin at any address.
fn dequantizes_gapless(what: &str, x: ScaledRef<'_>, offsets: &[usize]) -> usize {
    let expected = x.dequantize_reference::<bf16>();
    let (rows, cols) = x.shape();
    let mut out = vec![bf16::ZERO; rows * cols + 32];
    for isa in available() {
        for &offset in offsets {
            out.fill(bf16::from_f32(-7.0));
            let part = &mut out[offset..offset + rows * cols];
            let engine = Engine::cpu().on(isa).unwrap();
            engine.dequantize_into(x, MatMut::new(part, rows, cols).unwrap()).unwrap();
            let differs = part.iter().zip(expected.as_slice()).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "{what} on {isa}, {offset} elements from the start");
            let around = out[..offset].iter().chain(&out[offset + rows * cols..]);
            assert!(around.copied().all(|v| v == bf16::from_f32(-7.0)), "{what} on {isa}: written beside");
        }
    }
    available().len()
}

/// Rows enough of a block that its scale is multiplied by all codes beforehand: every code under scales of all kinds, blocks
/// that end within groups of codes, rows without gaps and with.
#[test]
fn dequantizing_blocks() {
    let finite = [1.0, -0.0, 1e-38, 3e-41, 2.5e38, -1.5, 0.1, -2e-40, 3.0];
    let all = [1.0, f32::INFINITY, 0.5, f32::NAN, -2.0, 1e-38, 7.0, 0.0, -1.0];
    let formats = Format::ALL.iter().filter(|f| f.spec().bits() <= 8 && **f != Format::E8M0);
    let mut ran = 0;
    for &format in formats.clone() {
        let count = 1 << format.spec().bits();
        for (scales, tensor, width, cols) in [
            (finite, 1.0, 128, 1152),
            (finite, 0.3, 192, 1600),
            (all, 1.0, 128, 1100),
            (finite, 1.0, 40, 350),
        ] {
            let codes = Codes::Bytes(Matrix::from_fn(21, cols, |i, j| ((37 * i + j) % count) as u8));
            let grid = ScaleGrid::F32(Matrix::from_fn(1, 9, |_, j| scales[j]));
            let scales =
                finegrain::scaled::Scales { granule: Granule::new(128, width).unwrap(), grid, tensor };
            let x = finegrain::scaled::ScaledMatrix::new(format, codes, Some(scales)).unwrap();
            let what = format!("{format} in blocks of {width} columns times {tensor}");
            dequantizes(&what, x.view());
            ran += dequantizes_gapless(&what, x.view(), &[0, 5]);
        }
    }
    assert_eq!(ran, 4 * formats.count() * available().len());
}

/// Results that go past the cache, from addresses that are aligned and that are not, with NaN here and there.
#[test]
fn dequantizing_past_the_cache() {
    let (rows, cols) = (1000, 11520);
    let code = |i: usize, j: usize| match (i * cols + j) % 4999 {
        0 => 0xFF,
        _ => (((31 * i + 7 * j) % 127) | (((i ^ j) & 1) << 7)) as u8,
    };
    let scales = [1.0, -0.0, 1e-38, 0.1, -1.5];
    let grid = ScaleGrid::F32(Matrix::from_fn(8, 90, |i, j| scales[(i + j) % 5]));
    let scales = finegrain::scaled::Scales { granule: Granule::BLOCK_128X128, grid, tensor: 1.0 };
    let codes = Codes::Bytes(Matrix::from_fn(rows, cols, code));
    let x = finegrain::scaled::ScaledMatrix::new(Format::E4M3, codes, Some(scales)).unwrap();
    assert_eq!(dequantizes_gapless("large", x.view(), &[0, 1, 2, 16, 31]), available().len());
    dequantizes("large, rows apart", x.view());
}

/// Requantising to the transpose equals dequantising, transposing and quantising by the reference.
#[test]
fn requantizing_to_the_transpose() {
    for (fill, rows, cols) in [(Fill::Wide, 300, 200), (Fill::Specials, 129, 65), (Fill::Sparse, 64, 64)] {
        let x = matrix(fill, rows, cols, 30);
        for recipe in recipes() {
            let first = Engine::reference().quantize(x.view(), &recipe, Role::Activation).unwrap();
            let ran = runner::requantize(&on_cpu("cpu"), &format!("{fill:?}"), first.view(), &recipe);
            assert_eq!(ran, 2 * available().len());
        }
    }
}
