//! Whole products that libraries returned on an H200: the arithmetic of each call gives every bit.

use crate::common::golden::{self, Score, bits, exact, recording, recording_cut};
use finegrain::checkpoint::{Tensor, TensorFile};
use finegrain::formats::Format;
use finegrain::gemm::{Arithmetic, GemmProblem, SplitK};
use finegrain::matrix::Matrix;
use finegrain::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};

/// A result and what it was computed from.
struct Product {
    /// The tensor of the result.
    name: String,
    /// What the names of the operands begin with.
    operands: String,
    formats: [Format; 2],
    granules: [Granule; 2],
    arithmetic: Arithmetic,
    bf16: bool,
}

/// `d.CALLER.FORM.(FA.FB.)MxNxK.(fastN.)FORMAT`.
fn product(name: &str) -> Product {
    let words: Vec<&str> = name.split('.').collect();
    let (caller, form) = (words[1], words[2]);
    let shape = words.iter().find(|word| word.matches('x').count() == 2).unwrap();
    let formats = if caller == "scaled_mm" { [words[3], words[4]] } else { ["e4m3", "e4m3"] };
    let granules = match form {
        "tensor" => [Granule::TENSOR; 2],
        "row" => [Granule::ROW; 2],
        "tile_block" => [Granule::TILE_1X128, Granule::BLOCK_128X128],
        "tile_tile" => [Granule::TILE_1X128; 2],
        _ => panic!("{name}"),
    };
    let fast = words.contains(&"fast1");
    let call = match (caller, form) {
        ("deepgemm", _) => "deepgemm",
        ("triton", _) => "triton-deepseek",
        (_, "tensor" | "row") if fast => "cublaslt-fast",
        (_, "tensor" | "row") => "cublaslt",
        _ => "cublaslt-block",
    };
    // Long K, few tiles of D: cuBLASLt splits K where the scales and the accumulation allow it.
    let splits = caller == "scaled_mm" && *shape == "256x256x7168";
    let splits = splits && (form.starts_with("tile") || form == "tensor" && fast);
    let arithmetic = match call.parse().unwrap() {
        Arithmetic::Library(call, _) if splits => Arithmetic::Library(call, SplitK::equal(2).unwrap()),
        other => other,
    };
    Product {
        name: name.to_owned(),
        operands: format!("{form}.{}.{}.{shape}", formats[0], formats[1]),
        formats: formats.map(|format| format.parse().unwrap()),
        granules,
        arithmetic,
        bf16: words.last() == Some(&"bf16"),
    }
}

fn codes(file: &TensorFile, name: &str) -> Matrix<u8> {
    let tensor = file.read(name).unwrap();
    Matrix::from_vec(tensor.shape()[0], tensor.shape()[1], tensor.data().to_vec()).unwrap()
}

/// Scales as a matrix: one for a tensor is 1×1.
fn scales(file: &TensorFile, name: &str) -> Matrix<f32> {
    let tensor = file.read(name).unwrap();
    let (rows, cols) = match tensor.shape() {
        [1] => (1, 1),
        [rows, cols] => (*rows, *cols),
        shape => panic!("{name}: {shape:?}"),
    };
    Matrix::from_vec(rows, cols, tensor.to_f32().unwrap()).unwrap()
}

fn compare(file: &TensorFile, title: &str) {
    let mut score = Score::default();
    let mut names: Vec<&String> = file.names().iter().filter(|name| name.starts_with("d.")).collect();
    names.sort_unstable();
    for product in names.iter().map(|name| product(name)) {
        let Product { name, operands, formats, granules, arithmetic, bf16 } = product;
        let [a, b] = ["a", "b"].map(|side| codes(file, &format!("{operands}.{side}")));
        let [sa, sb] = ["sa", "sb"].map(|side| scales(file, &format!("{operands}.{side}")));
        let operand = |i: usize, codes, scales| {
            let scales = ScalesRef { granule: granules[i], grid: ScaleGridRef::F32(scales), tensor: 1.0 };
            ScaledRef::new(formats[i], CodesRef::Bytes(codes), Some(scales)).unwrap()
        };
        let problem =
            GemmProblem::nt(operand(0, a.view(), sa.view()), operand(1, b.view(), sb.view())).unwrap();
        let problem = problem.with_arithmetic(&arithmetic).unwrap();
        let d = match bf16 {
            true => Tensor::from_bf16(&problem.run_bf16().unwrap()),
            false => Tensor::from_f32(&problem.run().unwrap()),
        };
        let what = format!("{name}, {arithmetic}, {}", problem.accumulation());
        score.eq(&what, &d.to_bits().unwrap(), &bits(file, &name), exact, golden::all);
    }
    score.finish(title);
}

#[test]
fn products_of_libraries_are_those_of_an_h200() {
    compare(&recording("products"), "products on an H200");
}

#[test]
fn products_of_the_committed_cut() {
    compare(&recording_cut("products"), "products on an H200, committed cut");
}
