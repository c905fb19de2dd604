//! `finegrain bench`: small sizes; the numbers are not looked at, what was run is.

use finegrain::simd::Isa;

use crate::{finegrain, json};

#[test]
fn every_operation_is_checked_and_measured() {
    for op in ["gemm", "grouped", "emulate", "quantize", "dequantize", "cast"] {
        let size = ["--m", "5", "--n", "9", "--k", "200", "--groups", "2", "--seconds", "0"];
        let report = json(&[&["bench", op, "--threads", "2"][..], &size].concat());
        assert_eq!((&report["op"], &report["m"], &report["k"]), (&op.into(), &5.into(), &200.into()));
        assert_eq!(report["threads"], 2);
        for figure in ["seconds", "gbytes_per_s", "peak_gflops", "peak_gbytes_per_s"] {
            assert!(report[figure].as_f64().unwrap() > 0.0, "{op}: {figure}");
        }
        let copies = report["copy_gbytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
        assert_eq!(copies, ["quantize", "dequantize", "cast"].contains(&op), "{op}");
        let multiplies = report["gflops"].as_f64().unwrap() > 0.0;
        assert_eq!(multiplies, ["gemm", "grouped", "emulate"].contains(&op), "{op}");
    }
}

/// Every role, and the formats that are read and written.
#[test]
fn elements_in_every_form() {
    let size = ["--m", "150", "--k", "70", "--seconds", "0"];
    for form in [
        &["quantize", "--as", "weight", "--from", "bf16"][..],
        &["quantize", "--as", "transposed", "--from", "f16", "--recipe", "e5m6"],
        &["dequantize", "--as", "activation", "--to", "f32", "--recipe", "nvfp4"],
        &["cast", "--to", "e2m1", "--from", "bf16"],
        &["cast", "--to", "e5m6", "--isa", "scalar"],
    ] {
        assert!(
            json(&[&["bench"], form, &size].concat())["gbytes_per_s"].as_f64().unwrap() > 0.0,
            "{form:?}"
        );
    }
    for wrong in
        [&["dequantize", "--to", "e4m3"][..], &["quantize", "--from", "e4m3"], &["cast", "--to", "f32"]]
    {
        assert_eq!(finegrain([&["bench"], wrong, &size].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn the_instruction_set_is_the_one_asked_for() {
    let small = ["bench", "gemm", "--m", "3", "--n", "8", "--k", "64", "--seconds", "0", "--isa"];
    assert_eq!(json(&[&small[..], &["scalar"]].concat())["isa"], "scalar");
    let refused = finegrain([&small[..], &["abacus"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        message.contains("unknown instruction set 'abacus'") && message.contains("avx512-bf16"),
        "{message}"
    );
}

/// `FINEGRAIN_ISA` decides where no option does; what the CPU lacks, or nobody has, is an error and never another one.
#[test]
fn a_forced_instruction_set_runs_or_is_an_error() {
    let bench = |name: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_finegrain"))
            .args(["bench", "gemm", "--m", "17", "--n", "33", "--k", "200", "--seconds", "0", "--json"])
            .env("FINEGRAIN_ISA", name)
            .output()
            .unwrap()
    };
    let mut ran = 0;
    for isa in Isa::ALL {
        let output = bench(isa.name());
        let message = String::from_utf8_lossy(&output.stderr);
        if isa.is_available() {
            assert_eq!(output.status.code(), Some(0), "{isa}: {message}");
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["isa"], isa.name());
            ran += 1;
        } else {
            assert_eq!(output.status.code(), Some(1), "{isa}: {message}");
            assert!(message.contains("FINEGRAIN_ISA") && message.contains(isa.name()), "{message}");
        }
    }
    assert!(ran > 0);
    let refused = bench("abacus");
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("FINEGRAIN_ISA") && message.contains("abacus"), "{message}");
}
