//! `finegrain identify --source` and `--against`: codes and scales, the recipes that gave them, and what differs.

use finegrain::checkpoint::{Dtype, Tensor};
use serde_json::Value;

use crate::common::operands::Random;
use crate::{Folder, f32s, fails, finegrain, json, stdout};

fn values(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(2 * seed + 1);
    let mut bell = || (0..4).map(|_| random.below(1 << 24) as f32 / 16_777_216.0 - 0.5).sum::<f32>();
    (0..rows * cols).map(|i| bell() * 2f32.powi((i / cols) as i32 % 7 - 3)).collect()
}

fn floats(rows: usize, cols: usize, seed: u64) -> Tensor {
    f32s(&[rows, cols], &values(rows, cols, seed))
}

/// Two weights and a bias, and what `quantize` makes of them.
fn files(folder: &Folder, recipe: &str, role: &str) -> (String, String) {
    let tensors = [
        ("l.weight", floats(200, 300, 1)),
        ("m.weight", floats(130, 260, 2)),
        ("bias", f32s(&[3], &[1.0, 2.0, 3.0])),
    ];
    let source = folder.write("source", &tensors);
    let quantized = folder.text(recipe);
    stdout(&finegrain(["quantize", &source, &quantized, "--recipe", recipe, "--as", role]));
    (source, quantized)
}

fn findings(args: &[&str]) -> Value {
    let output = finegrain(args.iter().chain(&["--json"]));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn usage(args: &[&str], words: &[&str]) {
    let output = finegrain(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{words:?}: {stderr}");
}

fn recipes(matches: &Value) -> Vec<&str> {
    matches.as_array().unwrap().iter().map(|m| m["recipe"].as_str().unwrap()).collect()
}

#[test]
fn recipes_that_gave_every_tensor_are_found() {
    for (recipe, role) in [
        ("deepseek-v3", "weight"),
        ("deepgemm-cuda", "activation"),
        ("te", "transposed"),
        ("nvfp4", "weight"),
    ] {
        let folder = Folder::new();
        let (source, quantized) = files(&folder, recipe, role);
        // 4-bit codes are integers in files.
        let read_as: &[&str] = if recipe == "nvfp4" { &["--format", "e2m1"] } else { &[] };
        let found = json(&[&["identify", &quantized, "--source", &source], read_as].concat());
        let name = if recipe == "nvfp4" { "nvfp4-te-1x16" } else { recipe };
        assert!(recipes(&found["matches"]).contains(&name), "{recipe}: {found}");
        for m in found["matches"].as_array().unwrap() {
            assert_eq!((&m["codes_differ"], &m["scales_differ"]), (&0.into(), &0.into()), "{m}");
            assert_eq!(m["of"], 200 * 300 + 130 * 260);
            assert_eq!(m["causes"], serde_json::json!({}));
        }
        assert_eq!(found["tensors"].as_array().unwrap().len(), 2);
        let roles = &found["tensors"][0]["matches"][0]["roles"];
        assert!(roles.as_array().unwrap().iter().any(|r| *r == role), "{recipe}: {roles}");
        // What tells several apart is said.
        let undecided = found["undecided"].as_str();
        assert_eq!(undecided.is_some(), found["exact"].as_u64().unwrap() > 1, "{found}");
        assert!(undecided.is_none_or(|text| text.contains("other data")), "{found}");
        let text = [&["identify", &quantized, "--source", &source][..], read_as].concat();
        let text = stdout(&finegrain(text));
        assert!(text.starts_with("every code and scale of all 2 tensors is that of"), "{text}");
        assert!(text.contains(name) && text.contains(role), "{text}");
    }
}

#[test]
fn a_recipe_takes_the_role_of_each_tensor() {
    let folder = Folder::new();
    let (source, weights) = files(&folder, "deepgemm", "weight");
    let activations = folder.text("activations");
    let quantize = ["quantize", &source, &activations, "--recipe", "deepgemm", "--as", "activation"];
    stdout(&finegrain([&quantize[..], &["--tensor", "m.weight"]].concat()));
    let read =
        |path: &str, name: &str| finegrain::checkpoint::TensorFile::open(path).unwrap().read(name).unwrap();
    let mixed = folder.write(
        "mixed",
        &[
            ("l.weight", read(&weights, "l.weight")),
            ("l.weight_scale_inv", read(&weights, "l.weight_scale_inv")),
            ("m.weight", read(&activations, "m.weight")),
            ("m.weight_scale_inv", read(&activations, "m.weight_scale_inv")),
        ],
    );
    let found = json(&["identify", &mixed, "--source", &source]);
    assert!(recipes(&found["matches"]).contains(&"deepgemm"), "{found}");
    let roles = |i: usize| found["tensors"][i]["matches"][0]["roles"].clone();
    assert_eq!((roles(0), roles(1)), (serde_json::json!(["weight"]), serde_json::json!(["activation"])));
}

#[test]
fn no_recipe_is_a_finding_with_causes() {
    let folder = Folder::new();
    let (source, quantized) = files(&folder, "te:floor=100", "activation");
    let found = findings(&["identify", &quantized, "--source", &source]);
    assert_eq!(found["exact"], 0);
    let best = &found["matches"][0];
    assert_eq!(best["of"], 200 * 300 + 130 * 260);
    let causes = best["causes"].as_object().unwrap();
    assert!(causes.contains_key("amax-floor"), "{best}");
    let sum = |key: &str| causes.values().map(|c| c[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        (sum("codes"), sum("scales")),
        (best["codes_differ"].as_u64().unwrap(), best["scales_differ"].as_u64().unwrap())
    );
    let blocks = found["tensors"][0]["matches"][0]["worst_blocks"].as_array().unwrap();
    assert!((1..=8).contains(&blocks.len()) && blocks[0]["cause"] == "amax-floor", "{blocks:?}");
    let output = finegrain(["identify", &quantized, "--source", &source]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("no recipe gives every code and scale of all 2 tensors"), "{text}");
    assert!(text.contains("amax floor") && text.contains("blocks that differ most"), "{text}");
    // One tensor by te, one by a floor of its own: no recipe is that of both.
    let one = ["identify", &quantized, "--source", &source, "--tensor", "^l", "--json"];
    assert_eq!(finegrain(one).status.code(), Some(3));
}

/// Divisors of the second level, as compressed-tensors stores them: what NVFP4's recipes multiply by is their inverse.
#[test]
fn divisors_are_tensor_scales() {
    let folder = Folder::new();
    let values = values(64, 96, 3);
    let source = folder.write("source", &[("l.weight", f32s(&[64, 96], &values))]);
    let quantized = folder.text("nvfp4");
    stdout(&finegrain(["quantize", &source, &quantized, "--recipe", "nvfp4", "--as", "weight"]));
    let file = finegrain::checkpoint::TensorFile::open(&quantized).unwrap();
    let amax = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let codes = file.read("l.weight").unwrap();
    let packed = codes.data().chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let divided = folder.write(
        "divided",
        &[
            ("l.weight_packed", Tensor::new(Dtype::U8, vec![64, 48], packed).unwrap()),
            ("l.weight_scale", file.read("l.weight_scale_inv").unwrap()),
            ("l.weight_global_scale", f32s(&[1], &[2688.0 / amax])),
        ],
    );
    let found = json(&["identify", &divided, "--source", &source, "--format", "e2m1", "--packed"]);
    assert_eq!(recipes(&found["matches"])[0], "nvfp4-te-1x16");
}

#[test]
fn stacks_are_identified_matrix_by_matrix() {
    let folder = Folder::new();
    let data: Vec<f32> = (0..3).flat_map(|seed| values(64, 96, seed)).collect();
    let source = folder.write("source", &[("experts", f32s(&[3, 64, 96], &data))]);
    let (te, other) = (folder.text("te"), folder.text("other"));
    for (recipe, out) in [("te-current", &te), ("te", &other)] {
        stdout(&finegrain(["quantize", &source, out, "--recipe", recipe, "--as", "transposed"]));
    }
    let found = json(&["identify", &te, "--source", &source]);
    assert!(recipes(&found["matches"]).contains(&"te-current"), "{found}");
    assert_eq!(found["matches"][0]["of"], 3 * 64 * 96);
    let found = findings(&["identify", &te, "--against", &other]);
    let tensor = &found["tensors"][0];
    assert_eq!(tensor["worst_blocks"][0]["at"].as_array().unwrap().len(), 3, "{tensor}");
    assert_eq!(tensor["of"], 3 * 64 * 96);
}

#[test]
fn trainer_and_rollout_are_compared() {
    let folder = Folder::new();
    let (_, v3) = files(&folder, "deepseek-v3", "weight");
    let (source, te) = files(&folder, "te", "weight");
    let found = json(&["identify", &v3, "--against", &v3, "--x", &format!("{source}:l.weight")]);
    assert_eq!(
        (&found["tensors"][0]["codes_differ"], &found["tensors"][0]["y_error"]),
        (&0.into(), &0.0.into())
    );
    let found = findings(&["identify", &v3, "--against", &te]);
    for (i, (elements, scales)) in [(200 * 300, 2 * 3), (130 * 260, 2 * 3)].into_iter().enumerate() {
        let tensor = &found["tensors"][i];
        assert_eq!((&tensor["of"], &tensor["scales_of"]), (&elements.into(), &scales.into()));
        assert_eq!(tensor["causes"]["power-of-two"]["scales"], tensor["scales_differ"]);
        assert_eq!(tensor["scales_differ"], scales, "{tensor}");
        assert!(tensor["codes_differ"].as_u64().unwrap() > elements / 4, "{tensor}");
        assert_eq!(tensor["y_error"], Value::Null);
        assert_eq!(tensor["worst_blocks"].as_array().unwrap().len(), 6);
    }
    // X has the columns of one of the two.
    let x = folder.write("a:b", &[("x:1", floats(16, 260, 9))]);
    let found = findings(&["identify", &v3, "--against", &te, "--x", &format!("{x}:x:1")]);
    assert_eq!(found["tensors"][0]["y_error"], Value::Null);
    let error = found["tensors"][1]["y_error"].as_f64().unwrap();
    assert!(error > 1e-3 && error < 0.2, "{error}");
    let output = finegrain(["identify", &v3, "--against", &te]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("2 of 2 tensors differ") && text.contains("power-of-two scales or not"),
        "{text}"
    );
}

/// A folder of shards against one file.
#[test]
fn folders_are_read() {
    let folder = Folder::new();
    let (source, te) = files(&folder, "te", "weight");
    std::fs::create_dir(folder.path("shards")).unwrap();
    std::fs::copy(&te, folder.path("shards").join("model.safetensors")).unwrap();
    let shards = folder.text("shards");
    assert!(recipes(&json(&["identify", &shards, "--source", &source])["matches"]).contains(&"te"));
    let found = json(&["identify", &shards, "--against", &te]);
    assert_eq!(found["tensors"].as_array().unwrap().len(), 2);
}

#[test]
fn bad_input_is_one_line() {
    let folder = Folder::new();
    let (source, te) = files(&folder, "te", "weight");
    let write = |name: &str, tensors: &[(&str, Tensor)]| folder.write(name, tensors);
    fails(["identify", &source, "--source", &source], &["source", "no quantised tensor"]);
    fails(["identify", &te, "--against", &source], &["source", "no quantised tensor"]);
    fails(["identify", &te, "--source", &source, "--tensor", "nope"], &["no quantised tensor", "'nope'"]);
    let other = write("other", &[("z", floats(4, 4, 1))]);
    fails(["identify", &te, "--source", &other], &["other", "no tensor in common", "'l.weight'", "'z'"]);
    let narrow = write("narrow", &[("l.weight", floats(200, 299, 1))]);
    fails(["identify", &te, "--source", &narrow], &["te", "'l.weight'", "[200, 300]", "[200, 299]"]);
    fails(["identify", &te, "--source", &te], &["te", "'l.weight'", "F8_E4M3", "floats"]);
    let bytes =
        |shape: &[usize]| Tensor::new(Dtype::F8_E4M3, shape.to_vec(), vec![1; shape.iter().product()]);
    let bare = write("bare", &[("l.weight", bytes(&[200, 300]).unwrap())]);
    fails(["identify", &bare, "--source", &source], &["bare", "'l.weight'", "without scales"]);
    fails(["identify", &te, "--against", &bare], &["bare", "'l.weight'", "without scales"]);
    let scales = f32s(&[3, 5], &[1.0; 15]);
    let odd = write("odd", &[("l.weight", bytes(&[200, 300]).unwrap()), ("l.weight_scale_inv", scales)]);
    fails(["identify", &odd, "--source", &source], &["odd", "l.weight_scale_inv", "[3, 5]", "[200, 300]"]);
    let scale = || f32s(&[1], &[1.0]);
    let small = write("small", &[("l.weight", bytes(&[4, 4]).unwrap()), ("l.weight_scale_inv", scale())]);
    fails(["identify", &te, "--against", &small], &["small", "'l.weight'", "[4, 4]", "[200, 300]"]);
    let x = write("x", &[("x", floats(8, 64, 1))]);
    let with_x = |x: &str| ["identify", &te, "--against", &te, "--x", x].map(str::to_owned);
    fails(with_x(&format!("{x}:x")), &["'x'", "64 columns", "'l.weight' is [200, 300]"]);
    fails(with_x(&format!("{x}:y")), &["'y'", "not in the file"]);
    usage(&["identify", &te, "--against", &te, "--x", "nothing"], &["FILE:NAME"]);
}

#[test]
fn options_that_do_not_go_together_are_usage_errors() {
    usage(&["identify", "q", "--source", "x", "--against", "y"], &["--source", "--against"]);
    usage(&["identify", "q", "--x", "a:b"], &["--against"]);
    usage(&["identify", "q", "--source", "x", "--x", "a:b"], &["--x", "--source"]);
    for option in
        [["--granule-a", "1x128"], ["--format-b", "e4m3"], ["--scale-layout-a", "padded"], ["--grouped", "k"]]
    {
        usage(&["identify", "q", "--source", "x", option[0], option[1]], &["--source", option[0]]);
        usage(&["identify", "q", "--against", "x", option[0], option[1]], &["--against", option[0]]);
    }
    for option in [["--granule", "1x128"], ["--tensor", "w"], ["--scale-layout", "padded"]] {
        usage(&["identify", "q", option[0], option[1]], &["--source or --against"]);
    }
}

/// Granules that no rule infers are named, as for dequantize.
#[test]
fn granules_are_named_as_for_dequantize() {
    let folder = Folder::new();
    let (source, quantized) = files(&folder, "deepseek-v3:weight=64x64", "weight");
    fails(["identify", &quantized, "--source", &source], &["--granule"]);
    let found = json(&["identify", &quantized, "--source", &source, "--granule", "64x64"]);
    assert_eq!(found["matches"][0]["recipe"], "deepseek-v3:weight=64x64");
}
