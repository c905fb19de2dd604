//! `finegrain identify`: what it finds is what `gemm` takes, and what it refuses.

use finegrain::checkpoint::{Dtype, Tensor};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem};
use finegrain::scaled::Granule;
use serde_json::Value;

use crate::common::operands::scaled;
use crate::gemm::{groups, stored};
use crate::{Folder, f32s, fails, finegrain, json, stdout};

const SHAPE: [usize; 3] = [40, 130, 700];

/// A problem in 1×128 by 128×128, and its result in an arithmetic.
fn problem(accumulation: &str) -> (Vec<(String, Tensor)>, Tensor) {
    let [m, n, k] = SHAPE;
    let a = scaled(Format::E4M3, m, k, Granule::TILE_1X128, 21);
    let b = scaled(Format::E4M3, n, k, Granule::BLOCK_128X128, 22);
    let accumulation: Accumulation = accumulation.parse().unwrap();
    let d = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
    let operands = [stored("a", Dtype::F8_E4M3, &[&a]), stored("b", Dtype::F8_E4M3, &[&b])].concat();
    (operands, Tensor::from_f32(&d.run().unwrap()))
}

fn file(folder: &Folder, operands: &[(String, Tensor)], rest: &[(&str, Tensor)]) -> String {
    let operands = operands.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
    folder.write("in", &operands.chain(rest.iter().cloned()).collect::<Vec<_>>())
}

#[test]
fn options_compute_the_result_again() {
    let folder = Folder::new();
    for accumulation in ["hopper/128", "hopper/128/partial-first/split-k=2", "f32/128/unfused", "ada/32"] {
        let (operands, d) = problem(accumulation);
        let path = file(&folder, &operands, &[("d", d.clone())]);
        let found = json(&["identify", &path]);
        let best = &found["matches"][0];
        assert_eq!((best["differ"].as_u64(), best["of"].as_u64()), (Some(0), Some(40 * 130)), "{best}");
        assert_eq!(best["accumulation"], accumulation);
        let options: Vec<&str> =
            best["options"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let out = folder.text("d");
        stdout(&finegrain([&["gemm", &path, &out][..], &options].concat()));
        let again = finegrain::checkpoint::TensorFile::open(&out).unwrap().read("d").unwrap();
        assert_eq!(again, d, "{accumulation}");
    }
    let (operands, d) = problem("hopper/128");
    let text = stdout(&finegrain(["identify", &file(&folder, &operands, &[("d", d)])]));
    assert!(text.contains("--accumulate hopper --promote 128") && text.contains("deepgemm"), "{text}");
}

#[test]
fn nothing_exact_is_a_finding() {
    let folder = Folder::new();
    let (operands, d) = problem("hopper/128");
    let mut values = d.to_f32().unwrap();
    values[3 * 130 + 7] *= 1.5;
    let d = f32s(&[40, 130], &values);
    let path = file(&folder, &operands, &[("d", d)]);
    let output = finegrain(["identify", &path, "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["exact"], &found["matches"][0]["differ"]), (&0.into(), &1.into()));
    assert_eq!(found["matches"][0]["accumulation"], "hopper/128");
    let first = &found["differences"]["first"][0];
    assert_eq!((&first["row"], &first["column"]), (&3.into(), &7.into()));
    assert!(found["hints"][0].as_str().unwrap().contains("all but 1 of 5200 elements"), "{found}");
}

#[test]
fn what_is_no_result_is_refused() {
    let folder = Folder::new();
    let (operands, d) = problem("hopper/128");
    let of = |shape: &[usize]| f32s(shape, &vec![f32::NAN; shape.iter().product()]);
    fails(["identify", &file(&folder, &operands, &[])], &["d"]);
    let path = file(&folder, &operands, &[("d", of(&[40, 131]))]);
    fails(["identify", &path], &["'d'", "[40, 131]", "[40, 130]"]);
    let path = file(&folder, &operands, &[("d", of(&[40, 130]))]);
    fails(["identify", &path], &["'d'", "5200 elements", "NaN"]);
    let codes = Tensor::new(Dtype::U8, vec![40, 130], vec![1; 40 * 130]).unwrap();
    fails(["identify", &file(&folder, &operands, &[("d", codes)])], &["'d'", "U8", "F32, BF16 or F16"]);
    let c = Tensor::new(Dtype::BF16, vec![40, 130], vec![1; 2 * 40 * 130]).unwrap();
    let path = file(&folder, &operands, &[("d", d), ("c", c)]);
    fails(["identify", &path], &["'c'", "BF16", "F32 or F16"]);
}

#[test]
fn groups_are_read_as_gemm_reads_them() {
    let folder = Folder::new();
    let a = scaled(Format::E4M3, 6, 256, Granule::TILE_1X128, 1);
    let experts = [2, 3].map(|seed| scaled(Format::E4M3, 64, 256, Granule::BLOCK_128X128, seed));
    let parts = [
        stored("a", Dtype::F8_E4M3, &[&a]),
        stored("b", Dtype::F8_E4M3, &[&experts[0], &experts[1]]),
        groups(&[1, 1, -1, 0, 0, 0]),
    ];
    let operands = parts.concat();
    let (problem, out) = (file(&folder, &operands, &[]), folder.text("d"));
    stdout(&finegrain(["gemm", &problem, &out, "--accumulate", "hopper", "--promotion", "partial-first"]));
    let d = finegrain::checkpoint::TensorFile::open(&out).unwrap().read("d").unwrap();
    let found = json(&["identify", &file(&folder, &operands, &[("d", d)])]);
    let exact = found["matches"].as_array().unwrap();
    assert!(exact.iter().any(|m| m["accumulation"] == "hopper/128/partial-first"), "{found}");
    assert_eq!(exact[0]["of"], 5 * 64);
}
