//! Steps of tensor cores, chained: recordings of an H200, and MMA-Sim for the tensor cores that no recording holds. All
//! bits, by the reference and by every backend that computes the problem.

use crate::common::golden::{self, Score, bits, exact, oracle_cut, recording, recording_cut};
use crate::common::isas;
use crate::conforming;
use finegrain::Engine;
use finegrain::checkpoint::TensorFile;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, Model, StepResult};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, ScaledMatrix};

/// The format of operands named so in the recordings.
fn format_of(name: &str) -> Format {
    match name {
        "tf32" => Format::F32,
        _ => name.parse().unwrap(),
    }
}

/// The matrices of a tensor [.., rows, cols].
fn matrices(file: &TensorFile, name: &str, format: Format) -> Vec<ScaledMatrix> {
    let shape = file.info(name).unwrap().shape.clone();
    let [.., rows, cols] = shape[..] else { panic!("{name} is no matrix: {shape:?}") };
    let of = |codes: &[u64]| {
        let codes = Matrix::from_vec(rows, cols, codes.to_vec()).unwrap();
        ScaledMatrix::new(format, Codes::new(format, &codes.map(|&c| c as u32)), None).unwrap()
    };
    bits(file, name).chunks_exact(rows * cols).map(of).collect()
}

/// One model on all batches of a, b and c: D as it accumulates, f32 or f16, in bits.
fn chains(file: &TensorFile, model: Model, [a, b, c]: [&str; 3], (fa, fb): (Format, Format)) -> Vec<u64> {
    let halves = matches!(model, Model::TensorCore(core) if core.result() == StepResult::F16);
    let accumulator = if halves { Format::F16 } else { Format::F32 };
    let (a, b) = (matrices(file, a, fa), matrices(file, b, fb));
    let mut d = Vec::new();
    for (i, c) in matrices(file, c, accumulator).iter().enumerate() {
        let c = c.dequantize().unwrap();
        // Dequantised NaN is the one NaN; the pattern of c's does not matter.
        let problem = GemmProblem::nt(a[i].view(), b[i].view())
            .and_then(|p| p.with_accumulation(Accumulation::new(model)))
            .and_then(|p| p.with_addend(c.view()))
            .unwrap();
        if i == 0 {
            let ran = conforming::conforms("emulated", &format!("{model}"), &problem);
            let amd = model.to_string().starts_with("cdna");
            assert!(amd || ran == 2 * isas::available().len(), "{model}: an instruction set refused it");
        }
        let reference = Engine::reference();
        match halves {
            true => d.extend(
                reference.gemm_f16(&problem).unwrap().as_slice().iter().map(|x| u64::from(x.to_bits())),
            ),
            false => {
                d.extend(reference.gemm(&problem).unwrap().as_slice().iter().map(|x| u64::from(x.to_bits())))
            }
        }
    }
    d
}

fn nan(x: u64, y: u64) -> bool {
    golden::nan_f32(x, y)
}

fn nan_f16(x: u64, y: u64) -> bool {
    let nan = |u: u64| u < 1 << 16 && u & 0x7FFF > 0x7C00;
    nan(x) && nan(y)
}

/// wgmma and mma.sync of an H200: FP8, F16, BF16 and TF32, into f32 and f16.
#[test]
fn instructions_of_an_h200() {
    instructions(&recording("chains"), "instructions of an H200");
}

#[test]
fn instructions_of_an_h200_in_the_committed_cut() {
    instructions(&recording_cut("chains"), "instructions of an H200, committed cut");
}

fn instructions(file: &TensorFile, title: &str) {
    let mut score = Score::default();
    let mut names: Vec<String> =
        file.names().iter().filter(|n| n.starts_with("d.")).map(|n| n.to_string()).collect();
    names.sort();
    for name in names {
        let [_, instruction, kind, ckind, steps] = name.split('.').collect::<Vec<_>>()[..] else {
            panic!("{name}")
        };
        let [unit, fa, fb, acc] = instruction.split('_').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let base = match (unit, fa) {
            ("w", "e4m3" | "e5m2") => "hopper",
            ("m", "e4m3" | "e5m2") => "hopper-mma",
            (_, "f16" | "bf16") => "hopper-f16",
            (_, "tf32") => "hopper-tf32",
            _ => panic!("{name}"),
        };
        let result = if acc == "f16" { ":result=f16" } else { "" };
        let model: Model = format!("{base}{result}").parse().unwrap();
        let [a, b] = [("a", fa), ("b", fb)].map(|(side, format)| format!("{side}.{format}.{kind}.{steps}"));
        let c = format!("c.{acc}.{kind}.{ckind}.{steps}");
        let got = chains(file, model, [&a, &b, &c], (format_of(fa), format_of(fb)));
        // Its last addition is an ordinary one, whose NaN is that of the operands.
        let any_nan = base == "hopper-mma";
        let same = |x, y| any_nan && (if acc == "f16" { nan_f16(x, y) } else { nan(x, y) });
        score.eq(&format!("{name} {model}"), &got, &bits(file, &name), same, golden::all);
    }
    score.finish(title);
}

/// AMD's tensor cores, f16 results and the generations that were not recorded.
#[test]
fn steps_of_mma_sim() {
    let file = oracle_cut("mma_sim");
    let mut score = Score::default();
    for name in file.names().iter().filter(|n| n.starts_with("d.")) {
        let [_, model, fa, fb, kind, ckind] = name.split('.').collect::<Vec<_>>()[..] else {
            panic!("{name}")
        };
        let model: Model = model.parse().unwrap();
        let halves = matches!(model, Model::TensorCore(core) if core.result() == StepResult::F16);
        let acc = if halves { "f16" } else { "f32" };
        let (a, b) = (format!("a.{fa}.{kind}"), format!("b.{fb}.{kind}"));
        let c = format!("c.{fa}.{fb}.{acc}.{kind}.{ckind}");
        let got = chains(&file, model, [&a, &b, &c], (format_of(fa), format_of(fb)));
        let same = |x, y| if halves { nan_f16(x, y) } else { exact(x, y) || nan(x, y) };
        score.eq(name, &got, &bits(&file, name), same, golden::all);
    }
    score.finish("steps of MMA-Sim");
}
