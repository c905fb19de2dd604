//! `inspect`: every finding, and what is no finding.

use super::*;

/// The kinds of what inspect finds in a file of these tensors, with the messages.
fn found(tensors: &[(&str, Tensor)]) -> Vec<(String, String)> {
    let dir = Folder::new();
    let input = dir.write("in", tensors);
    let output = finegrain(["inspect", &input, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = finegrain(["inspect", &input]);
    let findings = report["findings"].as_array().unwrap();
    let errors = findings.iter().any(|f| f["severity"] == "error");
    assert_eq!([&output, &text].map(|o| o.status.code()), [Some(if errors { 3 } else { 0 }); 2]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(&format!("{} findings", findings.len())), "{text}");
    let word = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    findings.iter().map(|f| (word(f, "kind"), word(f, "message"))).collect()
}

#[test]
fn inspect_finds_each_fault() {
    let e4m3 = |shape: &[usize], code: u8| bytes(Dtype::F8_E4M3, shape, &vec![code; shape.iter().product()]);
    let one = |tensors: &[(&str, Tensor)], kind: &str, words: &[&str]| {
        let all = found(tensors);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].0, kind);
        words.iter().for_each(|w| assert!(all[0].1.contains(w), "'{w}' is not in: {}", all[0].1));
    };
    let w = e4m3(&[256, 384], 0x38);
    let grid = |v: &[f32; 6]| f32s(&[2, 3], v);
    let good = grid(&[0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
    assert_eq!(found(&[("l.weight", w.clone()), ("l.weight_scale_inv", good.clone())]), []);
    let pair = |scales: Tensor| [("w", w.clone()), ("w_scale_inv", scales)];
    one(&pair(f32s(&[3, 5], &[0.3; 15])), "scale-grid", &["[3, 5]", "[256, 384]"]);
    one(&[("w_scale_inv", good.clone())], "scale-without-codes", &["no tensor 'w'"]);
    one(&[("w", w.clone())], "codes-without-scale", &["'w_scale_inv'"]);
    one(&pair(grid(&[0.3, 0.0, 0.5, 0.0, 0.7, 0.8])), "zero-scale", &["2 of 6", "index 1"]);
    one(&pair(grid(&[0.3, 0.4, -0.5, 0.6, 0.7, 0.8])), "negative-scale", &["1 of 6", "index 2"]);
    one(&pair(grid(&[0.3, 0.4, 0.5, f32::NAN, 0.7, 0.8])), "nonfinite-scale", &["1 of 6", "NaN", "index 3"]);
    let infinite = grid(&[f32::INFINITY, 0.4, 0.5, f32::INFINITY, 0.7, 0.8]);
    one(&pair(infinite), "nonfinite-scale", &["2 of 6", "infinite", "index 0"]);
    one(&pair(bytes(Dtype::F8_E8M0, &[2, 3], &[127, 127, 255, 126, 1, 2])), "nonfinite-scale", &["1 of 6"]);
    let counted = tensor(Dtype::I32, &[2, 3], &[1i32; 6], |v| v.to_le_bytes());
    one(&pair(counted), "scale-dtype", &["I32"]);
    one(
        &[("w", f32s(&[256, 384], &vec![1.0; 98304])), ("w_scale_inv", good.clone())],
        "scales-of-floats",
        &["F32"],
    );

    let mut codes = vec![0x38; 256 * 384];
    (codes[777], codes[9999]) = (0x7F, 0xFF);
    let nan = bytes(Dtype::F8_E4M3, &[256, 384], &codes);
    one(&[("w", nan), ("w_scale_inv", good.clone())], "nonfinite-code", &["2 of 98304", "NaN", "index 777"]);
    one(
        &[("x", words(Dtype::BF16, &[3], &[0x3F80, 0x7FC0, 0]))],
        "nonfinite-value",
        &["1 of 3", "NaN", "index 1"],
    );
    one(
        &[("x", words(Dtype::F16, &[2], &[0x3F80, 0xFC00]))],
        "nonfinite-value",
        &["1 of 2", "infinite", "index 1"],
    );
    one(&[("x", f32s(&[4], &[0.0; 4]))], "all-zero", &["all 4 elements"]);
}

#[test]
fn inspect_finds_scales_rounded_under_old_codes() {
    // 8 blocks; in each the largest code is 7E (448), as ordinary scales give it.
    let code = |i: usize| if i.is_multiple_of(128 * 3) { 0x7E } else { 0x30 };
    let codes: Vec<u8> = (0..256 * 512).map(code).collect();
    let full = bytes(Dtype::F8_E4M3, &[256, 512], &codes);
    let powers: Vec<f32> = (0..8).map(|i| 2f32.powi(-i)).collect();
    let all = found(&[("w", full.clone()), ("w_scale_inv", f32s(&[2, 4], &powers))]);
    assert_eq!((all.len(), all[0].0.as_str()), (1, "not-requantised"));
    assert!(all[0].1.contains("without requantising the payload") && all[0].1.contains("8 of 8 128x128"));

    // Requantised with those scales, the maxima spread.
    let spread: Vec<u8> =
        codes.iter().enumerate().map(|(i, &c)| if c == 0x7E { 0x77 + (i % 7) as u8 } else { c }).collect();
    let spread = bytes(Dtype::F8_E4M3, &[256, 512], &spread);
    assert_eq!(found(&[("w", spread), ("w_scale_inv", f32s(&[2, 4], &powers))]), []);
    let plain: Vec<f32> = powers.iter().map(|s| s * 1.1).collect();
    assert_eq!(found(&[("w", full), ("w_scale_inv", f32s(&[2, 4], &plain))]), []);
}

#[test]
fn inspect_reads_granules_out_of_shapes() {
    let dir = Folder::new();
    let codes = bytes(Dtype::F8_E4M3, &[256, 384], &[0x38; 256 * 384]);
    let granules: [(&[usize], &str); 7] = [
        (&[], "tensor"),
        (&[1], "tensor"),
        (&[256, 1], "row"),
        (&[256, 3], "1x128"),
        (&[2, 3], "128x128"),
        (&[256, 12], "1x32"),
        (&[256, 24], "1x16"),
    ];
    for (shape, granule) in granules {
        let scales = f32s(shape, &vec![0.3; shape.iter().product()]);
        let input = dir.write("in", &[("w", codes.clone()), ("w_scale_inv", scales)]);
        let report = json(&["inspect", &input]);
        let tensors = report["tensors"].as_array().unwrap();
        let w = tensors.iter().find(|t| t["name"] == "w").unwrap();
        assert_eq!(w["scales"]["granule"], granule);
        assert_eq!((&w["amax"], &w["elements"]), (&Value::from(1.0), &Value::from(98304)));
        assert!(stdout(&finegrain(["inspect", &input])).contains(granule));
    }
}
