//! `finegrain sanitize`.

use finegrain::checkpoint::{Dtype, Tensor, TensorFile, write_tensors};

use crate::{Folder, bytes, f32s, fails, finegrain, json, stdout, tensor};

/// Six rows of two groups in tiles of 4, the last row of each tile padding.
fn problem(folder: &Folder, groups: &[i32], scales: &[f32]) -> String {
    let codes =
        |n: usize, seed: usize| (0..n).map(|i| (0x30 + (i * 7 + seed) % 16) as u8).collect::<Vec<_>>();
    let i32s = |values: &[i32]| tensor(Dtype::I32, &[values.len()], values, |v| v.to_le_bytes());
    folder.write(
        "problem",
        &[
            ("a", bytes(Dtype::F8_E4M3, &[8, 128], &codes(8 * 128, 1))),
            ("a_scale_inv", f32s(&[8, 1], scales)),
            ("b", bytes(Dtype::F8_E4M3, &[2, 3, 128], &codes(2 * 3 * 128, 5))),
            ("b_scale_inv", f32s(&[2, 1, 1], &[0.5, 2.0])),
            ("groups", i32s(groups)),
        ],
    )
}

const GROUPS: [i32; 8] = [0, 0, 0, -1, 1, 1, 1, -1];
const SCALES: [f32; 8] = [1.0, 2.0, 0.5, 3.0, 4.0, 0.25, 1.0, 5.0];

#[test]
fn a_clean_layout_passes_on_every_backend() {
    let folder = Folder::new();
    let file = problem(&folder, &GROUPS, &SCALES);
    let args = ["sanitize", &file, "--align", "4", "--ue8m0"];
    let report = json(&args);
    assert_eq!((&report["rows"], &report["valid_rows"]), (&8.into(), &6.into()));
    assert_eq!(report["violations"], serde_json::json!([]));
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.len() >= 2 && kernels.iter().all(|k| k["leaks"] == serde_json::json!([])), "{kernels:?}");
    let text =
        stdout(&finegrain(args.iter().chain(&["--accumulate", "hopper/128", "--backend", "reference"])));
    assert_eq!(text, "reference hopper/128: not a bit of 6 valid rows of 8 changes with 3 poisons\n");
}

/// Exit 1, the findings on stdout.
fn finds(args: &[&str], words: &[&str]) {
    let output = finegrain(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
    for word in words {
        assert!(out.contains(word), "'{word}' is not in: {out}");
    }
}

#[test]
fn broken_rules_are_listed() {
    let folder = Folder::new();
    let mut scales = SCALES;
    scales[1] = 3.0;
    let file = problem(&folder, &[0, 0, 1, 1, 1, -1, -1, -1], &scales);
    let args = ["sanitize", &file, "--align", "4", "--ue8m0"];
    let words = [
        "alignment",
        "group 1 starts at row 2, no multiple of 4",
        "boundary-in-tile",
        "power-of-two",
        "3e0 at (1, 0)",
    ];
    finds(&args, &words);
    let allowed = ["--allow", "alignment", "--allow", "boundary-in-tile", "--allow", "power-of-two"];
    stdout(&finegrain(args.iter().chain(&allowed)));
    let file = problem(&folder, &[0, 0, 0, 7, 1, 1, 1, -3], &SCALES);
    finds(
        &["sanitize", &file, "--align", "4"],
        &["rows 3 to 3 belong to group 7, expected 0 to 1", "index -3, padding is -1"],
    );
    let file = problem(&folder, &[0; 8], &SCALES);
    finds(&["sanitize", &file, "--align", "4"], &["empty-group", "no row belongs to group 1"]);
}

/// The way of a kernel outside: poisoned files, its results, the verdict.
#[test]
fn kernels_outside_are_checked_through_files() {
    let folder = Folder::new();
    let file = problem(&folder, &GROUPS, &SCALES);
    let (poisoned, results) = (folder.text("poisoned"), folder.path("results"));
    stdout(&finegrain(["sanitize", &file, "--align", "4", "--poison", &poisoned]));
    std::fs::create_dir(&results).unwrap();
    for name in ["clean", "nan", "huge", "infinite"] {
        let name = format!("{name}.safetensors");
        let input = folder.path("poisoned").join(&name);
        let poison = TensorFile::open(&input).unwrap();
        let scales = poison.read("a_scale_inv").unwrap().to_f32().unwrap();
        // Valid rows are as they were, padding rows are not.
        assert_eq!((scales[0], scales[4], scales[6]), (1.0, 4.0, 1.0));
        assert!(scales[3] != 3.0 && scales[7] != 5.0);
        assert_eq!(poison.read("a_scale_inv.tma").unwrap().shape(), [1, 8]);
        stdout(&finegrain([
            std::ffi::OsStr::new("gemm"),
            input.as_os_str(),
            results.join(&name).as_os_str(),
        ]));
    }
    let args = ["sanitize", &file, "--align", "4", "--results", results.to_str().unwrap()];
    assert!(stdout(&finegrain(args)).contains("not a bit of 6 valid rows of 8 changes with 3 poisons"));

    // A kernel that lets one value through.
    let path = results.join("nan.safetensors");
    let mut d = TensorFile::open(&path).unwrap().read("d").unwrap().to_f32().unwrap();
    d[4 * 3 + 1] = f32::NAN;
    write_tensors(&path, &[("d".to_owned(), f32s(&[8, 3], &d))]).unwrap();
    finds(&args, &["nan in the padding changes 1 of 6 valid rows, the first at (4, 1)"]);
    let wrong: Tensor = f32s(&[3, 8], &d);
    write_tensors(&path, &[("d".to_owned(), wrong)]).unwrap();
    fails(args, &["nan.safetensors", "[3, 8]", "8 rows of 3"]);
}
