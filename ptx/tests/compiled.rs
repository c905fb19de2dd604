//! NVRTC's output for a small CUDA kernel, from end to end: cp.async, ldmatrix, mma, shuffles, an atomic.

use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, Model};
use finegrain::matrix::MatRef;
use finegrain::scaled::{CodesRef, ScaledRef};
use ptx_emulator::{Arg, Device, Fault, FaultKind, Launch, Module, Options, Report};

const TILE: &str = include_str!("ptx/tile.ptx");
const K: usize = 128;

fn codes(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    // No NaN: its answer is tested on its own.
    (0..len).map(|_| next()).map(|c| if c & 0x7F == 0x7F { 0x7E } else { c }).collect()
}

fn run(
    ptx: &str,
    a: &[u8],
    b: &[u8],
    model: impl Into<Option<Model>>,
) -> Result<(Vec<f32>, f32, Report), Fault> {
    let module = Module::parse(ptx).unwrap();
    let mut device = Device::new();
    let [pa, pb] = [a, b].map(|codes| {
        let address = device.alloc(codes.len());
        device.write(address, codes).unwrap();
        address
    });
    let (d, amax) = (device.alloc(4 * 16 * 8), device.alloc(4));
    device.write(amax, &[0; 4]).unwrap();
    let args = vec![Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(d), Arg::Ptr(amax), Arg::I32(K as i32)];
    let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], dynamic_shared: 0, args };
    let report = device.launch(
        &module,
        "tile",
        &launch,
        &Options { fp8_model: model.into(), ..Options::default() },
    )?;
    let floats =
        |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    let (d, amax) = (floats(device.read(d, 512).unwrap()), floats(device.read(amax, 4).unwrap()));
    Ok((d, amax[0], report))
}

fn reference(a: &[u8], b: &[u8], accumulation: Accumulation) -> Vec<f32> {
    let operand = |codes, rows| {
        let codes = CodesRef::Bytes(MatRef::new(codes, rows, K).unwrap());
        ScaledRef::new(Format::E4M3, codes, None).unwrap()
    };
    let problem =
        GemmProblem::nt(operand(a, 16), operand(b, 8)).unwrap().with_accumulation(accumulation).unwrap();
    problem.run().unwrap().as_slice().to_vec()
}

#[test]
fn a_compiled_tile_has_the_reference_bits() {
    for seed in 0..4 {
        let (mut a, b) = (codes(2 * seed + 1, 16 * K), codes(2 * seed + 2, 8 * K));
        if seed == 3 {
            a[5 * K + 7] = 0x7F;
        }
        for model in ["ada", "f32", "hopper", "blackwell-mma"] {
            let model = model.parse::<Model>().unwrap();
            let (d, amax, report) = run(TILE, &a, &b, model).unwrap_or_else(|f| panic!("{f}"));
            let want = reference(&a, &b, Accumulation::new(model));
            let same = d.iter().zip(&want).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "{model}: {d:?} against {want:?}");
            assert_eq!(amax, want.iter().fold(0f32, |m, x| m.max(x.abs())));
            assert_eq!(report.count("mma.sync"), K as u64 / 32);
            // Rows of 48 bytes: no conflicts for ldmatrix, one for each four rows that cp.async fills.
            let matrices = report.memory.values().filter(|m| m.opcode.starts_with("ldmatrix"));
            assert_eq!(matrices.map(|m| m.extra_wavefronts).sum::<u64>(), 0);
            assert_eq!(report.extra_wavefronts(), 6 * K as u64 / 32);
        }
    }
}

/// What the instruction computes depends on the GPU: Hopper has FP8 for wgmma alone.
#[test]
fn the_target_says_which_tensor_core_it_is() {
    let (a, b) = (codes(5, 16 * K), codes(6, 8 * K));
    for (target, model) in [("sm_89", "ada"), ("sm_90a", "hopper-mma"), ("sm_100a", "blackwell-mma")] {
        let ptx = TILE.replace(".target sm_89", &format!(".target {target}"));
        let (d, ..) = run(&ptx, &a, &b, None).unwrap();
        let want = reference(&a, &b, Accumulation::new(model.parse().unwrap()));
        assert!(d.iter().zip(&want).all(|(x, y)| x.to_bits() == y.to_bits()), "{target}: not {model}");
    }
    let models = ["ada", "hopper-mma", "blackwell-mma"].map(|model| model.parse::<Model>().unwrap());
    let of = models.map(|model| reference(&a, &b, Accumulation::new(model)));
    assert!(of[0] != of[1] && of[1] != of[2], "the operands tell the models apart");
}

#[test]
fn bugs_planted_in_it_are_found() {
    let (a, b) = (codes(1, 16 * K), codes(2, 8 * K));
    let ada = "ada".parse::<Model>().unwrap();
    let planted = |from: &str, to: &str| {
        assert!(TILE.contains(from), "{from}");
        run(&TILE.replace(from, to), &a, &b, ada)
    };
    let wait = planted("cp.async.wait_group 0;", "").unwrap_err();
    assert!(matches!(wait.kind, FaultKind::PendingCopy { .. }), "{wait}");
    let order = planted("bar.warp.sync", "// bar.warp.sync").unwrap_err();
    assert!(matches!(order.kind, FaultKind::Race { .. }), "{order}");
    // Rows g and g + 8 of A swapped: no check can object, but the result does.
    let (swapped, ..) = planted("%f113}, {%r37,%r38,", "%f113}, {%r38,%r37,").unwrap();
    assert_ne!(swapped, reference(&a, &b, Accumulation::new(ada)));
}
