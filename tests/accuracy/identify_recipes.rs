//! Recipes are found by what they gave: the golden codes and scales of every source, and results that no recipe gives.

use finegrain::accuracy::identify::{Extent, RecipeIdentification, RecipeMatch, identify_recipe};
use finegrain::accuracy::{exact_product, product_error};
use finegrain::checkpoint::TensorFile;
use finegrain::formats::Format;
use finegrain::matrix::Matrix;
use finegrain::parallel::Cancellation;
use finegrain::quant::{Cause, Differences, Quantizer, Recipe, Role, ScaleFormat};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use finegrain::{Engine, Error};

use crate::common::golden::{self, bits, tensor};
use crate::common::operands::Random;

fn identify(x: &Matrix<f32>, given: &ScaledMatrix) -> RecipeIdentification {
    identify_recipe(x.view(), given.view(), Extent::Sampled, &Engine::cpu()).unwrap()
}

fn exact(found: &RecipeIdentification) -> Vec<String> {
    found.matches[..found.exact].iter().map(|m| m.recipe.to_string()).collect()
}

/// Codes and scales as a golden file has them, scales in their own matrix of any shape.
fn given(
    file: &TensorFile,
    key: &str,
    (rows, cols): (usize, usize),
    recipe: &Recipe,
    granule: Granule,
    (scale_key, tensor): (&str, f32),
) -> ScaledMatrix {
    let codes: Vec<u32> = bits(file, &format!("{key}.q")).into_iter().map(|c| c as u32).collect();
    let codes = Codes::new(recipe.element, &Matrix::from_vec(rows, cols, codes).unwrap());
    let scales = bits(file, &format!("{scale_key}.s"));
    let (r, c) = granule.grid(rows, cols);
    let bytes = || Matrix::from_vec(r, c, scales.iter().map(|&s| s as u8).collect()).unwrap();
    let grid = match recipe.scale_format() {
        ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32 => {
            let floats = scales.iter().map(|&s| f32::from_bits(s as u32)).collect();
            ScaleGrid::F32(Matrix::from_vec(r, c, floats).unwrap())
        }
        ScaleFormat::E8M0 => ScaleGrid::E8M0(bytes()),
        ScaleFormat::E4M3 => ScaleGrid::E4M3(bytes()),
    };
    ScaledMatrix::new(recipe.element, codes, Some(Scales { granule, grid, tensor })).unwrap()
}

/// The golden codes and scales of a recipe are the recipe's, in the role in which they were made.
fn is_found(x: &Matrix<f32>, given: &ScaledMatrix, recipe: &Recipe, role: Role, what: &str) {
    let found = identify(x, given);
    let is_it = |m: &&RecipeMatch| m.recipe == *recipe && m.roles.contains(&role);
    let it = found.matches.iter().find(is_it).unwrap_or_else(|| panic!("{what}: was not tried"));
    assert!(it.is_exact(), "{what}: {it:?}");
    assert_eq!(it.elements as usize, x.as_slice().len(), "{what}");
    assert!(exact(&found).contains(&recipe.to_string()), "{what}");
}

#[test]
fn golden_values_are_those_of_their_recipes() {
    let file = golden::oracle("recipes");
    let mut cases = 0;
    for matrix in ["clean", "special"] {
        let x = tensor(&file, &format!("{matrix}.x")).to_matrix().unwrap();
        let (rows, cols) = x.shape();
        for name in file.names().iter().filter_map(|name| name.strip_suffix(".q")) {
            let Some(rest) = name.strip_prefix(&format!("{matrix}.")) else { continue };
            let (recipe, role) = if let Some((geometry, recipe)) = rest.split_once('.')
                && !geometry.starts_with("mx")
            {
                let role = match geometry {
                    "1x128" => Role::Activation,
                    "128x128" => Role::Weight,
                    "128x1" => Role::Transposed,
                    other => panic!("{other}"),
                };
                (recipe.to_owned(), role)
            } else {
                (rest.replace('.', "-"), Role::Activation)
            };
            let recipe: Recipe = recipe.parse().unwrap();
            let granule = match role {
                Role::Activation => recipe.activation,
                Role::Weight => recipe.weight,
                Role::Transposed => recipe.activation.transposed(),
            };
            let scales = name.strip_suffix("-torchao").unwrap_or(name);
            if !file.contains(&format!("{scales}.s")) {
                continue;
            }
            let mut given = given(&file, name, (rows, cols), &recipe, granule, (scales, 1.0));
            if role == Role::Transposed {
                given = given.transposed();
            }
            is_found(&x, &given, &recipe, role, name);
            cases += 1;
        }
    }
    assert!(cases >= 20, "only {cases} cases");
    let x = tensor(&file, "nvfp4.x").to_matrix().unwrap();
    for name in ["torchao", "torchao-1level", "te-1x16", "te-16x16"] {
        let recipe: Recipe = format!("nvfp4-{name}").parse().unwrap();
        let scale = match name {
            "torchao" => f32::from_bits(bits(&file, "nvfp4.torchao.tensor_scale")[0] as u32),
            "torchao-1level" => 1.0,
            _ => 1.0 / (2688.0 / tensor(&file, "nvfp4.te.amax").to_f32().unwrap()[0]),
        };
        let key = format!("nvfp4.{name}");
        let given = given(&file, &key, x.shape(), &recipe, recipe.activation, (&key, scale));
        is_found(&x, &given, &recipe, Role::Activation, &key);
    }
}

/// Bell-shaped rows of many sizes, one of them zeros.
fn sample(rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(2 * seed + 1);
    Matrix::from_fn(rows, cols, |i, _| {
        let bell = (0..6).map(|_| random.below(1 << 24) as f32 / 16_777_216.0 - 0.5).sum::<f32>();
        if i == 3 { 0.0 } else { bell * 2f32.powi(i as i32 % 11 - 5) }
    })
}

fn quantized(x: &Matrix<f32>, recipe: &str, role: Role) -> ScaledMatrix {
    Quantizer::new(recipe.parse().unwrap()).quantize(x.view(), role).unwrap().matrix
}

/// Every recipe in every role, on a matrix large enough for a sample.
#[test]
fn every_recipe_finds_itself_in_every_role() {
    let x = sample(512, 640, 1);
    for recipe in Recipe::ALL {
        for &role in Role::ALL {
            let what = format!("{recipe} {}", role.name());
            is_found(&x, &quantized(&x, recipe.name.as_str(), role), recipe, role, &what);
        }
    }
}

#[test]
fn what_differs_outside_the_sample_is_seen() {
    let x = sample(6000, 640, 2);
    let mut changed = x.clone();
    // Between two bands.
    changed.row_mut(401)[77] *= 64.0;
    let given = quantized(&changed, "te", Role::Activation);
    let found = identify(&x, &given);
    assert_eq!(found.exact, 0);
    let best = &found.best()[0];
    assert_eq!((best.recipe.name.as_str(), best.differences.scales), ("te", 1));
    assert_eq!((best.elements, best.granules), (6000 * 640, 6000 * 5));
    let diff = best.diff.as_ref().unwrap();
    assert_eq!((diff.differing.len(), diff.differing[0].at), (1, (401, 0)));
    // All recipes are compared everywhere on demand.
    let all = identify_recipe(x.view(), given.view(), Extent::All, &Engine::cpu()).unwrap();
    assert!(all.matches.iter().all(|m| m.elements == 6000 * 640));
    assert!(found.matches.iter().any(|m| m.elements < 6000 * 640));
}

#[test]
fn granules_and_formats_of_no_recipe_take_their_arithmetic() {
    let x = sample(256, 512, 3);
    for (recipe, role) in [
        ("deepseek-v3:activation=1x64", Role::Activation),
        ("te:weight=64x64", Role::Weight),
        ("deepgemm:element=e5m2", Role::Weight),
        ("mxfp8-e4m3-rceil:activation=1x128", Role::Activation),
        ("vllm:activation=1x64", Role::Transposed),
    ] {
        let found = identify(&x, &quantized(&x, recipe, role));
        let values = |recipe: &str| quantized(&x, recipe, role).view().to_f64();
        let same = |m: &RecipeMatch| m.roles == [role] && values(&m.recipe.to_string()) == values(recipe);
        assert!(found.exact > 0 && found.best().iter().all(same), "{recipe}: {:?}", exact(&found));
    }
    let hybrid = Quantizer::new("te-current-hybrid".parse::<Recipe>().unwrap().for_gradients());
    let found = identify(&x, &hybrid.weight(x.view()).unwrap().matrix);
    assert_eq!(exact(&found), ["te-current-hybrid:element=e5m2"]);
    // E8M0 bytes and powers of two in f32 are the same scales.
    let (format, codes, scales) = quantized(&x, "deepseek-v3-ue8m0", Role::Activation).into_parts();
    let mut scales = scales.unwrap();
    let bytes = Matrix::from_fn(256, 4, |i, j| (scales.grid.view().at(i, j).to_bits() >> 23) as u8);
    scales.grid = ScaleGrid::E8M0(bytes);
    let found = identify(&x, &ScaledMatrix::new(format, codes, Some(scales)).unwrap());
    assert!(exact(&found).contains(&"deepseek-v3-ue8m0".to_owned()), "{:?}", exact(&found));
}

/// The cause of what no recipe gives: the rule that was changed.
#[test]
fn causes_of_the_nearest() {
    let x = sample(256, 512, 4);
    let of = |recipe: &str| identify(&x, &quantized(&x, recipe, Role::Activation));
    let found = of("te:floor=0.3");
    let best = &found.best()[0];
    assert!(found.exact == 0 && !best.is_exact());
    let causes: Vec<Cause> = best.diff.as_ref().unwrap().causes.iter().map(|c| c.cause).collect();
    assert_eq!(causes[0], Cause::AmaxFloor, "{causes:?}");
    let te = found.matches.iter().find(|m| m.recipe == Recipe::TE).unwrap();
    assert_eq!(te.distance(), best.distance());
    assert!(found.best().len() <= 5 && found.best().windows(2).all(|w| w[0].distance() <= w[1].distance()));
    // Scales rounded on the way into a file: codes are right, scales a little off.
    let (format, codes, scales) = quantized(&x, "te-f32", Role::Activation).into_parts();
    let mut scales = scales.unwrap();
    if let ScaleGrid::F32(grid) = &mut scales.grid {
        *grid = grid.map(|&s| half::bf16::from_f32(s).to_f32());
    }
    let rounded = ScaledMatrix::new(format, codes, Some(scales)).unwrap();
    let found = identify(&x, &rounded);
    assert_eq!(found.exact, 0);
    assert_eq!(found.best()[0].recipe.name.as_str(), "te-f32");
    assert_eq!(found.best()[0].differences.codes, 0);
}

#[test]
fn nan_under_nan_scales_is_equal() {
    let mut x = sample(4, 256, 5);
    x.row_mut(1)[9] = f32::NAN;
    let q = quantized(&x, "mxfp8", Role::Activation);
    let (format, codes, scales) = q.into_parts();
    let Codes::Bytes(mut codes) = codes else { unreachable!() };
    codes.row_mut(1)[..32].fill(0x7F);
    let given = ScaledMatrix::new(format, Codes::Bytes(codes), scales).unwrap();
    let found = identify(&x, &given);
    assert!(exact(&found).contains(&"mxfp8-e4m3-floor".to_owned()), "{:?}", exact(&found));
}

#[test]
fn what_cannot_be_identified_is_refused() {
    let x = sample(64, 128, 6);
    let of = |x: &Matrix<f32>, given: &ScaledMatrix| {
        identify_recipe(x.view(), given.view(), Extent::Sampled, &Engine::cpu()).unwrap_err()
    };
    let q = quantized(&x, "te", Role::Activation);
    let message = of(&sample(64, 129, 6), &q).to_string();
    assert!(message.contains("64×129") && message.contains("64×128"), "{message}");
    let Codes::Bytes(codes) = q.codes() else { unreachable!() };
    let bare = ScaledMatrix::new(Format::E4M3, Codes::Bytes(codes.clone()), None).unwrap();
    assert!(matches!(of(&x, &bare), Error::Invalid(m) if m.contains("without scales")));
    let empty = quantized(&Matrix::filled(0, 128, 0.0), "te", Role::Activation);
    assert!(matches!(of(&Matrix::filled(0, 128, 0.0), &empty), Error::Shape(_)));
    let cancellation = Cancellation::new();
    cancellation.request();
    let engine = Engine::cpu().with_cancellation(&cancellation);
    let cancelled = identify_recipe(x.view(), q.view(), Extent::Sampled, &engine);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

#[test]
fn the_error_of_a_product_is_that_of_both_products() {
    let (w, x) = (sample(300, 256, 7), sample(20, 256, 8));
    let [a, b] = ["te", "te-f32"].map(|recipe| quantized(&w, recipe, Role::Weight));
    let error = |a: &ScaledMatrix, b: &ScaledMatrix| {
        product_error(x.view(), a.view(), b.view(), Extent::All, &Engine::cpu()).unwrap()
    };
    let wide = x.map(|&v| f64::from(v));
    let [y, other] = [&a, &b].map(|w| exact_product(wide.view(), w.view().to_f64().view()));
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = squares(&mut y.as_slice().iter().zip(other.as_slice()).map(|(y, o)| o - y));
    let expected = (difference / squares(&mut y.as_slice().iter().copied())).sqrt();
    let found = error(&a, &b);
    approx::assert_relative_eq!(found.relative, expected, max_relative = 1e-12);
    assert!(found.rows == 20 && found.nonfinite == 0 && found.relative > 1e-4);
    assert_eq!(error(&a, &a).relative, 0.0);

    let other = quantized(&sample(300, 255, 7), "te", Role::Weight);
    let refused = |b: &ScaledMatrix, x: &Matrix<f32>| {
        let error = product_error(x.view(), a.view(), b.view(), Extent::Sampled, &Engine::cpu());
        error.unwrap_err().to_string()
    };
    assert!(refused(&other, &x).contains("300×255"));
    assert!(refused(&b, &sample(20, 128, 1)).contains("128"));
    assert_eq!(Differences::default(), identify(&w, &a).matches[0].differences);
}
