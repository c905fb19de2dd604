//! `quantize` and `dequantize`: names, dtypes and shapes of what is written, and the way back.

use finegrain::checkpoint::{TensorFile, dequantize_tensor, quantize_tensor};
use finegrain::quant::{Recipe, Role};
use half::bf16;

use super::*;

fn weights(rows: usize, cols: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 100.0 - 5.0).collect();
    f32s(&[rows, cols], &values)
}

fn names(path: &str) -> Vec<String> {
    let mut names = TensorFile::open(path).unwrap().names().to_vec();
    names.sort();
    names
}

#[test]
fn files_hold_the_librarys_codes_and_scales() {
    let dir = Folder::new();
    let w = weights(140, 300);
    let input = dir.write("in", &[("l.weight", w.clone()), ("l.bias", f32s(&[3], &[1.0; 3]))]);
    let roles =
        [("weight", Role::Weight), ("activation", Role::Activation), ("transposed", Role::Transposed)];
    for name in ["deepseek-v3", "te", "mxfp8-e4m3-floor", "mxfp4-e2m1-floor", "nvfp4-te-1x16", "e5m6-1x128"] {
        for (word, role) in roles {
            let output = dir.text("out");
            let report = json(&["quantize", &input, &output, "--recipe", name, "--as", word]);
            let (tensors, stats) = quantize_tensor(&w, "l.weight", &name.parse().unwrap(), role).unwrap();
            let file = TensorFile::open(&output).unwrap();
            for (name, tensor) in &tensors {
                assert_eq!(file.read(name).unwrap(), *tensor, "{name} as {word}");
            }
            assert_eq!(file.names().len(), tensors.len() + 1);
            assert_eq!(report["total"]["elements"], stats.elements);
            assert_eq!(report["total"]["saturated"], stats.saturated);
            assert_eq!(file.read("l.bias").unwrap().data(), f32s(&[3], &[1.0; 3]).data());
        }
    }
    let names = names(&dir.text("out"));
    assert_eq!(names, ["l.bias", "l.weight", "l.weight_scale_inv"]);
}

#[test]
fn the_way_back_is_code_times_scale() {
    let dir = Folder::new();
    let w = weights(140, 300);
    let input = dir.write("in", &[("w", w.clone()), ("ids", bytes(Dtype::U8, &[2], &[1, 2]))]);
    for (recipe, format) in
        [("deepseek-v3", None), ("nvfp4-te-1x16", Some("e2m1")), ("e5m6-1x128", Some("e5m6"))]
    {
        let (quantized, back) = (dir.text("q"), dir.text("back"));
        stdout(&finegrain(["quantize", &input, &quantized, "--recipe", recipe, "--as", "activation"]));
        let format = format.map_or(vec![], |f| vec!["--format", f]);
        let (tensors, _) = quantize_tensor(&w, "w", &recipe.parse().unwrap(), Role::Activation).unwrap();
        let element = recipe.parse::<Recipe>().unwrap().element;
        let second = tensors.get(2).map(|(_, t)| t);
        let (want, _) = dequantize_tensor(&tensors[0].1, element, &tensors[1].1, second, None).unwrap();
        for to in ["f32", "bf16"] {
            let args = ["dequantize", &quantized, &back, "--to", to];
            stdout(&finegrain(args.iter().chain(&format)));
            assert_eq!(names(&back), ["ids", "w"], "scales are dropped, other tensors kept");
            let got = TensorFile::open(&back).unwrap().read("w").unwrap().to_f32().unwrap();
            let round = |&v: &f32| if to == "f32" { v } else { bf16::from_f32(v).to_f32() };
            assert_eq!(got, want.iter().map(round).collect::<Vec<_>>(), "{recipe} {to}");
        }
        if !format.is_empty() {
            fails(["dequantize", &quantized, &dir.text("no")], &["tensor 'w'", "--format"]);
        }
    }
    assert_eq!(dir.list(), ["back", "in", "q"]);
}

#[test]
fn what_is_not_quantized_is_copied() {
    let dir = Folder::new();
    let input = dir.write(
        "in",
        &[
            ("a.proj", weights(4, 128)),
            ("b.gate", weights(4, 128)),
            ("empty", f32s(&[1 << 60, 0], &[])),
            ("done", bytes(Dtype::F8_E4M3, &[4, 128], &[0x38; 512])),
            ("done_scale_inv", f32s(&[4, 1], &[0.5; 4])),
        ],
    );
    let args = ["quantize", &input, &dir.text("out"), "--recipe", "te", "--as", "activation"];
    stdout(&finegrain(args.iter().chain(&["--tensor", "proj$"])));
    let all = ["a.proj", "a.proj_scale_inv", "b.gate", "done", "done_scale_inv", "empty"];
    assert_eq!(names(&dir.text("out")), all);
    stdout(&finegrain(args));
    let file = TensorFile::open(dir.path("out")).unwrap();
    assert_eq!(file.info("b.gate").unwrap().dtype, Dtype::F8_E4M3);
    assert_eq!(file.info("done_scale_inv").unwrap().dtype, Dtype::F32);
    stdout(&finegrain(["dequantize", &dir.text("out"), &dir.text("back"), "--to", "f32"]));
    let done = TensorFile::open(dir.path("back")).unwrap().read("done").unwrap();
    assert_eq!(done.to_f32().unwrap(), [0.5; 512]);
}

#[test]
fn wrong_requests_leave_nothing() {
    let dir = Folder::new();
    let codes = bytes(Dtype::F8_E4M3, &[256, 256], &[0x38; 65536]);
    let input = dir.write("in", &[("w", codes), ("w_scale_inv", f32s(&[3, 5], &[0.5; 15]))]);
    let out = dir.text("out");
    fails(["dequantize", &input, &out], &["tensor 'w'", "[3, 5]", "[256, 256]"]);
    fails(["dequantize", &input, &out, "--granule", "128x128"], &["tensor 'w'", "3×5", "2×2"]);
    fails(["dequantize", &input, &input], &["output equals input"]);
    let quantize = ["quantize", &input, &out, "--recipe", "te", "--as", "weight"];
    fails(quantize, &["none of 2 tensors", "nothing to quantise"]);
    fails(quantize.iter().chain(&["--tensor", "w"]), &["matches 'w'"]);
    let twice = dir.write("in", &[("a", weights(4, 4)), ("a_scale_inv", bytes(Dtype::U8, &[1], &[0]))]);
    fails(
        ["quantize", &twice, &out, "--recipe", "te", "--as", "weight"],
        &["'a_scale_inv'", "written twice"],
    );
    for wrong in [["--recipe", "nonsense"], ["--tensor", "("]] {
        let output = finegrain(quantize.iter().chain(&wrong));
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(dir.list(), ["in"]);
}
