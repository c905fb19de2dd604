//! Files of others: scales by any name and in any layout, packed codes, sizes that nobody has room for.

use finegrain::checkpoint::{Tensor, TensorFile};
use half::bf16;

use super::*;

/// Codes of 1.0.
fn ones(shape: &[usize]) -> Tensor {
    bytes(Dtype::F8_E4M3, shape, &vec![0x38; shape.iter().product()])
}

fn count(n: usize) -> Vec<f32> {
    (1..=n).map(|i| i as f32).collect()
}

fn values(path: &str, name: &str) -> Vec<f32> {
    TensorFile::open(path).unwrap().read(name).unwrap().to_f32().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn named(names: &[(&str, Tensor)], name: &str) -> Tensor {
    names.iter().find(|(n, _)| *n == name).unwrap().1.clone()
}

#[test]
fn scales_are_applied_by_any_name_and_left_alone_otherwise() {
    let dir = Folder::new();
    let (out, again) = (dir.text("out"), dir.text("again"));
    for (codes, scale) in [
        ("w.weight", "w.weight_scale_inv"),
        ("w.weight", "w.weight_scale"),
        ("w.weight", "w.scale"),
        ("w.weight", "w.scale_weight"),
        ("w", "w_scale"),
        ("w", "w.scale"),
        ("w13_weight", "w13_weight_scale"),
    ] {
        for (scales, first) in [
            (f32s(&[], &[0.5]), 0.5),
            (f32s(&[1], &[0.5]), 0.5),
            (f32s(&[4, 1], &[0.5, 1.0, 2.0, 4.0]), 0.5),
            (words(Dtype::BF16, &[1, 1], &[bf16::from_f32(0.25).to_bits()]), 0.25),
            (words(Dtype::F16, &[4, 2], &[0x3400; 8]), 0.25),
            (bytes(Dtype::F8_E8M0, &[4, 8], &[126; 32]), 0.5),
        ] {
            let tensors = [
                (codes, ones(&[4, 256])),
                (scale, scales),
                ("logit_scale", f32s(&[2, 2], &[3.0; 4])),
                ("norm.scale", f32s(&[2, 128], &[3.0; 256])),
                ("norm.weight", f32s(&[2, 128], &[3.0; 256])),
            ];
            let input = dir.write("in", &tensors);
            let what = format!("{codes} {scale} {:?}", named(&tensors, scale).shape());
            stdout(&finegrain(["dequantize", &input, &out, "--to", "f32"]));
            assert_eq!(values(&out, codes)[0], first, "{what}");
            assert!(!TensorFile::open(&out).unwrap().contains(scale), "{what}");

            // What quantises and casts sees weights in the last three only.
            let quantize = ["quantize", &input, &again, "--recipe", "te", "--as", "weight"];
            let cast = ["cast", &input, &again, "--to", "e5m2"];
            for args in [&quantize[..], &cast] {
                let report = json(args);
                let file = TensorFile::open(&again).unwrap();
                assert_eq!(file.read(codes).unwrap(), named(&tensors, codes), "{what}");
                assert_eq!(file.read(scale).unwrap(), named(&tensors, scale), "{what}");
                for weight in ["logit_scale", "norm.scale", "norm.weight"] {
                    assert_ne!(file.info(weight).unwrap().dtype, Dtype::F32, "{weight}: {what}");
                }
                let lines = report["tensors"].as_array().unwrap();
                let line = lines.iter().find(|l| l["name"] == scale).unwrap();
                assert_eq!(line["note"], format!("scales of '{codes}'"));
            }
            let compared = ["compare", &input, "--x", codes, "--w", scale, "--recipe", "te-current"];
            if named(&tensors, scale).shape().len() == 2 {
                fails(compared, &[&format!("'{scale}'"), &format!("'{codes}'")]);
            }
        }
    }
}

#[test]
fn scales_in_another_shard_are_scales() {
    let dir = Folder::new();
    let shard = |i: usize| format!("m-0000{i}-of-00002.safetensors");
    let first = dir.write(
        &shard(1),
        &[
            ("w", ones(&[4, 256])),
            ("v_scale_inv", f32s(&[4, 2], &[0.5; 8])),
            ("n", f32s(&[4, 4], &[1.0; 16])),
        ],
    );
    dir.write(&shard(2), &[("v", ones(&[4, 256])), ("w_scale_inv", f32s(&[4, 2], &[0.25; 8]))]);
    let out = dir.text("out");
    stdout(&finegrain(["quantize", &first, &out, "--recipe", "te", "--as", "activation"]));
    assert_eq!(values(&out, "v_scale_inv"), [0.5; 8]);
    stdout(&finegrain(["dequantize", &first, &out]));
    assert_eq!(values(&out, "w"), [0.25; 1024]);
    assert_eq!(values(&out, "v_scale_inv"), [0.5; 8]);
    std::fs::remove_file(&out).unwrap();
    let report = json(&["inspect", dir.0.path().to_str().unwrap()]);
    assert_eq!(
        (report["tensors"].as_array().unwrap().len(), report["findings"].as_array().unwrap().len()),
        (5, 0)
    );
}

#[test]
fn grids_of_no_granule_in_use_are_refused_and_read_on_demand() {
    let dir = Folder::new();
    let out = dir.text("out");
    let case = |codes: &[usize], grid: &[usize], words: &[&str], args: &[&str], last: f32| {
        let n = grid.iter().product();
        let input = dir.write("in", &[("w", ones(codes)), ("w_scale_inv", f32s(grid, &count(n)))]);
        let what = format!("{grid:?} on {codes:?}");
        fails(["dequantize", &input, &out], &[words, &["tensor 'w'", "'w_scale_inv'"]].concat());
        let findings = json(&["inspect", &input])["findings"].clone();
        assert_eq!(
            (&findings[0]["kind"], &findings[0]["severity"]),
            (&"scale-grid".into(), &"warning".into()),
            "{what}"
        );
        stdout(&finegrain(["dequantize", &input, &out, "--to", "f32"].iter().chain(args)));
        assert_eq!(*values(&out, "w").last().unwrap(), last, "{what}");
    };
    let layout = |word| ["--scale-layout", word];
    case(&[256, 512], &[4, 2], &["transposed", "--granule 64x256"], &layout("transposed"), 8.0);
    case(&[8, 576], &[8, 8], &["padded", "--granule 1x"], &layout("padded"), 61.0);
    case(&[6, 576], &[5, 8], &["transposed-padded"], &layout("transposed-padded"), 38.0);
    case(&[256, 512], &[1, 256], &["transposed"], &layout("transposed"), 256.0);
    case(&[256, 512], &[4, 8], &["--granule 64x64"], &["--granule", "64x64"], 32.0);
    case(&[256, 512], &[1, 512], &["--granule *x1"], &["--granule", "*x1"], 512.0);
    case(&[3, 128, 256], &[3], &["leading"], &layout("leading"), 3.0);
    case(&[3, 128, 256], &[3, 128], &["leading"], &layout("leading"), 384.0);
    case(&[4, 2, 3, 3], &[4, 1, 1, 1], &["leading"], &layout("leading"), 4.0);
    case(&[3, 256, 512], &[3, 4, 2], &["transposed"], &layout("transposed"), 24.0);
    // Off by one: nothing reads it.
    let input = dir.write("in", &[("w", ones(&[256, 512])), ("w_scale_inv", f32s(&[3, 4], &count(12)))]);
    fails(["dequantize", &input, &dir.text("no")], &["[3, 4]", "[256, 512]", "--granule 86x128"]);
    fails(["dequantize", &input, &dir.text("no"), "--scale-layout", "padded"], &["[3, 4]"]);
    assert_eq!(dir.list(), ["in", "out"]);
}

#[test]
fn products_refuse_grids_that_fit_nothing_and_fit_groups_of_k() {
    let dir = Folder::new();
    let out = dir.text("out");
    // K = 160 + 160: the tail of each group has a scale of its own.
    let tails = dir.write(
        "tails",
        &[
            ("a", ones(&[1, 320])),
            ("b", ones(&[1, 320])),
            ("a_scale_inv", f32s(&[1, 4], &[1.0, 1000.0, 1.0, 1000.0])),
            ("b_scale_inv", f32s(&[1, 4], &[1.0; 4])),
            ("groups", tensor(Dtype::I32, &[2], &[160, 160], |v: &i32| v.to_le_bytes())),
        ],
    );
    let report = json(&["gemm", &tails, &out, "--grouped", "k"]);
    assert_eq!(values(&out, "d"), [32128.0; 2]);
    assert_eq!(report["a"], "e4m3 with f32 scales in 1x128");
    let padded = [1.0, 1.0, 1.0, 1.0, 1.0, 7.0, 7.0, 7.0];
    let tensors = |a: Tensor| {
        [
            ("a", ones(&[1, 576])),
            ("b", ones(&[1, 576])),
            ("a_scale_inv", a),
            ("b_scale", f32s(&[1, 5], &[1.0; 5])),
        ]
    };
    let input = dir.write("padded", &tensors(f32s(&[1, 8], &padded)));
    fails(
        ["gemm", &input, &dir.text("no")],
        &["'a_scale_inv'", "[1, 8]", "--scale-layout-a padded", "--granule-a"],
    );
    stdout(&finegrain(["gemm", &input, &out, "--scale-layout-a", "padded"]));
    assert_eq!(values(&out, "d"), [576.0]);
    let input = dir.write("mn", &tensors(f32s(&[5, 4], &[2.0, 9.0, 9.0, 9.0].repeat(5))));
    stdout(&finegrain(["gemm", &input, &out, "--scale-layout-a", "transposed-padded"]));
    assert_eq!(values(&out, "d"), [1152.0]);
    let input = dir.write("bf16", &tensors(words(Dtype::BF16, &[1, 5], &[0x4000; 5])));
    stdout(&finegrain(["gemm", &input, &out]));
    assert_eq!(values(&out, "d"), [1152.0]);
}

#[test]
fn packed_codes_are_read_on_demand_and_never_copied_as_if_done() {
    let dir = Folder::new();
    let out = dir.text("out");
    // compressed-tensors: the global scale divides; ModelOpt: the second scale multiplies.
    for (names, second, third) in [
        (["w.weight_packed", "w.weight_scale", "w.weight_global_scale"], 4.0f32, 0.5 / 4.0),
        (["w.weight", "w.weight_scale", "w.weight_scale_2"], 4.0, 0.5 * 4.0),
        (["w.weight_packed", "w.weight_scale", "w.weight_global_scale"], 3584.0, 0.5 / 3584.0),
    ] {
        let input = dir.write(
            "in",
            &[
                (names[0], bytes(Dtype::U8, &[4, 32], &[0x21; 128])),
                (names[1], bytes(Dtype::F8_E4M3, &[4, 4], &[0x38; 16])),
                (names[2], f32s(&[1], &[second])),
                ("w.input_scale", f32s(&[1], &[7.0])),
            ],
        );
        fails(
            ["dequantize", &input, &dir.text("no")],
            &[&format!("'{}'", names[0]), &format!("'{}'", names[1]), "--format"],
        );
        stdout(&finegrain(["dequantize", &input, &out, "--to", "f32", "--format", "e2m1", "--packed"]));
        let file = TensorFile::open(&out).unwrap();
        assert_eq!(file.info("w.weight").unwrap().shape, [4, 64]);
        assert_eq!(values(&out, "w.weight")[..2], [third, third * 2.0]);
        assert_eq!(file.names().len(), 2, "the scale of activations stays");
        assert_eq!(json(&["inspect", &input])["findings"], Value::Array(vec![]));
    }
    // DeepSeek-V4: I8 and E8M0.
    let v4 = [
        ("e.weight", bytes(Dtype::I8, &[2, 32], &[0x21; 64])),
        ("e.scale", bytes(Dtype::F8_E8M0, &[2, 2], &[128; 4])),
    ];
    let input = dir.write("in", &v4);
    fails(["dequantize", &input, &dir.text("no")], &["'e.weight'", "'e.scale'", "I8"]);
    stdout(&finegrain(["dequantize", &input, &out, "--to", "f32", "--format", "e2m1", "--packed"]));
    assert_eq!(values(&out, "e.weight")[..2], [1.0, 2.0]);
    // gpt-oss: blocks in a dimension of their own, E8M0 as U8, values transposed.
    let oss = [
        ("e.up_blocks", bytes(Dtype::U8, &[1, 2, 1, 16], &[[0x21; 16], [0x43; 16]].concat())),
        ("e.up_scales", bytes(Dtype::U8, &[1, 2, 1], &[127, 128])),
    ];
    let input = dir.write("in", &oss);
    let args = ["dequantize", &input, &out, "--to", "f32", "--format", "e2m1", "--packed"];
    fails(args, &["'e.up_blocks'", "'e.up_scales'", "--scale-format"]);
    stdout(&finegrain(args.iter().chain(&["--scale-format", "e8m0"])));
    assert_eq!(TensorFile::open(&out).unwrap().info("e.up").unwrap().shape, [1, 32, 2]);
    assert_eq!(values(&out, "e.up")[..4], [0.5, 3.0, 1.0, 4.0]);
    // F4 says what it is; integers of GPTQ are refused by name.
    let f4 =
        [("w", bytes(Dtype::F4, &[1, 32], &[0x21; 16])), ("w_scale", bytes(Dtype::F8_E8M0, &[1, 1], &[128]))];
    stdout(&finegrain(["dequantize", &dir.write("in", &f4), &out, "--to", "f32"]));
    assert_eq!(values(&out, "w")[..2], [1.0, 2.0]);
    let gptq = [
        ("l.qweight", tensor(Dtype::I32, &[2, 8], &[1; 16], |v: &i32| v.to_le_bytes())),
        ("l.scales", words(Dtype::F16, &[1, 8], &[0x3C00; 8])),
        ("l.qzeros", tensor(Dtype::I32, &[1, 1], &[1], |v: &i32| v.to_le_bytes())),
    ];
    let input = dir.write("in", &gptq);
    fails(["dequantize", &input, &dir.text("no")], &["'l.qweight'", "'l.qzeros'"]);
    fails(
        ["quantize", &input, &dir.text("no"), "--recipe", "te", "--as", "weight"],
        &["nothing to quantise"],
    );
    // F8 codes with something beside them that might be their scales.
    let odd = [("l.weight", ones(&[4, 64])), ("l.WeightScale", f32s(&[4, 1], &[2.0; 4]))];
    let input = dir.write("in", &odd);
    fails(["dequantize", &input, &dir.text("no")], &["'l.weight'", "'l.WeightScale'"]);
    stdout(&finegrain(["cast", &input, &out, "--to", "e5m2"]));
    assert_eq!(values(&out, "l.WeightScale"), [2.0; 4]);
    let findings = json(&["inspect", &input])["findings"].clone();
    let unknown = findings.as_array().unwrap().iter().find(|f| f["kind"] == "scale-unknown").unwrap();
    assert_eq!((&unknown["tensor"], &unknown["severity"]), (&"l.weight".into(), &"warning".into()));
    let twice = [("w", ones(&[2, 2])), ("w_scale", f32s(&[1], &[1.0])), ("w_scale_inv", f32s(&[1], &[2.0]))];
    fails(["dequantize", &dir.write("in", &twice), &dir.text("no")], &["'w'", "'w_scale'", "'w_scale_inv'"]);
    let floats = dir.write("in", &[("w", f32s(&[2, 2], &[1.0; 4]))]);
    fails(["dequantize", &floats, &dir.text("no")], &["none of 1 tensors", "nothing to dequantise"]);
    assert_eq!(dir.list(), ["in", "out"]);
}

#[test]
fn what_is_lost_is_counted_and_said() {
    let dir = Folder::new();
    let out = dir.text("out");
    let largest = bytes(Dtype::F8_E4M3, &[1, 128], &[0x7E; 128]);
    let input = dir.write("in", &[("w", largest.clone()), ("w_scale_inv", f32s(&[1, 1], &[3.4e38 / 448.0]))]);
    let output = finegrain(["dequantize", &input, &out, "--json"]);
    let stats = serde_json::from_str::<Value>(&stdout(&output)).unwrap()["tensors"][0]["stats"].clone();
    assert_eq!((&stats["infinite"], &stats["overflowed"]), (&128.into(), &128.into()));
    assert!(stderr(&output).contains("warning: tensor 'w': 128 values are finite in f32"));
    assert_eq!(values(&out, "w"), [f32::INFINITY; 128]);
    let plain = json(&["dequantize", &input, &out, "--to", "f32"]);
    assert_eq!(plain["tensors"][0]["stats"]["infinite"], 0);

    let input = dir
        .write("in", &[("w", largest), ("w_scale", bytes(Dtype::F8_E8M0, &[1, 4], &[127, 255, 127, 255]))]);
    let output = finegrain(["dequantize", &input, &out, "--json"]);
    let stats = serde_json::from_str::<Value>(&stdout(&output)).unwrap()["tensors"][0]["stats"].clone();
    assert_eq!((&stats["nan"], &stats["nan_scales"]), (&64.into(), &2.into()));
    assert!(stderr(&output).contains("2 scales are NaN"));

    let x = f32s(&[6], &[1.0, 0.0, -2.0, f32::NAN, 1e30, f32::INFINITY]);
    let input = dir.write("in", &[("x", x)]);
    for (to, more, lost) in [
        ("e8m0", "saturate", 2),
        ("e4m3", "nonsaturating", 1),
        ("e4m3", "saturate", 0),
        ("e5m2", "nonsaturating", 1),
    ] {
        let output = finegrain(["cast", &input, &out, "--to", to, "--overflow", more, "--json"]);
        let report = serde_json::from_str::<Value>(&stdout(&output)).unwrap();
        assert_eq!(report["tensors"][0]["stats"]["lost"], lost, "{to} {more}");
        assert_eq!(stderr(&output).contains("finite elements became infinite or NaN"), lost > 0);
    }
    let table = stdout(&finegrain(["cast", &input, &out, "--to", "e8m0"]));
    assert!(table.lines().next().unwrap().contains("lost"));
}

#[test]
fn sizes_that_nobody_has_room_for_are_one_line() {
    let dir = Folder::new();
    let out = dir.text("out");
    let empty = |shape: &[usize]| bytes(Dtype::F8_E4M3, shape, &[]);
    let cases: [(&[usize], &[usize], &str); 4] = [
        (&[1 << 40, 0, 8], &[2, 8], "a"),
        (&[1 << 30, 0], &[1 << 30, 0], "memory"),
        (&[1 << 60, 0], &[1 << 60, 0], "memory"),
        (&[1 << 20, 1 << 20, 0], &[2, 0], "a"),
    ];
    for (a, b, word) in cases {
        let b = if b.contains(&0) { empty(b) } else { ones(b) };
        let input = dir.write("in", &[("a", empty(a)), ("b", b)]);
        fails(["gemm", &input, &out], &[word]);
    }
    // Nothing of nothing is nothing.
    let tall = [
        ("w", empty(&[1 << 60, 0])),
        ("w_scale_inv", f32s(&[1 << 53, 0], &[])),
        ("x", f32s(&[0, 1 << 60, 7], &[])),
    ];
    let input = dir.write("in", &tall);
    for args in [vec!["dequantize"], vec!["cast", "--to", "e4m3"]] {
        stdout(&finegrain([args[0], &input, &out].iter().chain(&args[1..])));
    }
    stdout(&finegrain(["inspect", &input]));
    // Many dimensions, long names.
    let name = "n".repeat(65_536);
    let input =
        dir.write("in", &[(&name, f32s(&[2, 2], &[1.0; 4])), ("deep", f32s(&vec![1; 100_000], &[1.0]))]);
    for args in [vec!["cast", "--to", "bf16"], vec!["quantize", "--recipe", "te", "--as", "weight"]] {
        let text = stdout(&finegrain([args[0], &input, &out].iter().chain(&args[1..])));
        assert!(text.lines().all(|line| line.len() < 1000));
    }
    assert!(stdout(&finegrain(["inspect", &input])).contains("more)"));
    fails(["dequantize", &input, &dir.text("no")], &["nothing to dequantise"]);
    let plain = dir.write("plain", &[("a", ones(&[4, 8])), ("b", ones(&[2, 8]))]);
    fails(["gemm", &plain, &dir.text("no"), "--threads", "1000000"], &["1000000 threads", "at most"]);
    fails(["compare", "--threads", "18446744073709551615"], &["at most"]);
    fails(["gemm", &input, &dir.text("no")], &["'a'", "not in the file"]);
}

#[test]
fn files_of_other_kinds_are_named() {
    let dir = Folder::new();
    for (raw, word) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"[..], "Git LFS"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "pickle"),
        (b"\x80\x02}q\x00(X\x06\x00\x00\x00weight", "pickle"),
        (b"GGUF\x03\x00\x00\x00\x01\x00\x00\x00", "GGUF"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"{\"weight_map\": {\"a\": \"model.safetensors\"}}", "JSON"),
    ] {
        std::fs::write(dir.path("in"), raw).unwrap();
        for args in [vec!["inspect"], vec!["cast", "out", "--to", "bf16"]] {
            let input = dir.text("in");
            let args = [&[args[0], input.as_str()], &args[1..]].concat();
            fails(args, &["not a safetensors file: looks like", word]);
        }
    }
}

#[test]
fn comparisons_read_weights_with_their_scales() {
    let dir = Folder::new();
    let x = f32s(&[4, 256], &count(1024));
    let report = |scales: &[f32; 4]| {
        let input = dir.write(
            "in",
            &[
                ("x", x.clone()),
                (
                    "w",
                    bytes(
                        Dtype::F8_E4M3,
                        &[256, 256],
                        &(0..65536).map(|i| 0x20 + (i * 7 % 64) as u8).collect::<Vec<_>>(),
                    ),
                ),
                ("w_scale_inv", f32s(&[2, 2], scales)),
            ],
        );
        json(&["compare", &input, "--x", "x", "--w", "w", "--recipe", "te-current", "--accumulate", "f32"])
    };
    assert_ne!(report(&[1.0; 4]), report(&[1e-3, 1.0, 1000.0, 1.0]));
    let input = dir.write(
        "in",
        &[
            ("x", x.clone()),
            ("w", bytes(Dtype::U8, &[4, 256], &[1; 1024])),
            ("w_scale", f32s(&[4, 2], &[1.0; 8])),
        ],
    );
    let args = ["compare", &input, "--x", "x", "--w", "w"];
    fails(args, &["'w'", "'w_scale'", "--format"]);
}
