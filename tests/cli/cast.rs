//! `cast`: the library's codes, in the dtypes and shapes that were promised.

use finegrain::checkpoint::{Dtype, Tensor, TensorFile};
use finegrain::formats::{Events, Format, Overflow, Rounding, TensorRounding, Unpacked, e5m6, packed};

use super::*;

/// Values of every kind in 4 × 16: normal, subnormal, midpoints, overflow, specials.
fn samples() -> Vec<f64> {
    let special =
        [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 464.0, 465.0, -1e300, 1e-300, 61440.0];
    let spread = (0..54).map(|i| (f64::from(i) - 20.3) * 2f64.powi(i % 23 - 12) * (1.0 + 2f64.powi(-45)));
    special.into_iter().chain(spread).collect()
}

/// By name.
type Named<T> = Vec<(&'static str, T)>;

/// One tensor of each float dtype and one of integers, with the unpacked values of each.
fn every_dtype() -> (Named<Tensor>, Named<Vec<Unpacked>>) {
    let (x, shape) = (samples(), [4, 16]);
    let round = |format: Format| -> Vec<u64> {
        let cast = |&v: &f64| {
            format.cast(Unpacked::from_f64(v), Rounding::NearestEven, Overflow::NonSaturating).code
        };
        x.iter().map(cast).collect()
    };
    let narrow = |format| round(format).into_iter().map(|c| c as u16).collect::<Vec<_>>();
    let (b, h) = (narrow(Format::Bf16), narrow(Format::F16));
    let singles: Vec<f32> = round(Format::F32).iter().map(|&c| f32::from_bits(c as u32)).collect();
    let tensors = vec![
        ("f64", tensor(Dtype::F64, &shape, &x, |v| v.to_le_bytes())),
        ("f32", f32s(&shape, &singles)),
        ("bf16", words(Dtype::BF16, &shape, &b)),
        ("f16", words(Dtype::F16, &shape, &h)),
        ("int", tensor(Dtype::I64, &[3], &[1i64, -2, 3], |v| v.to_le_bytes())),
    ];
    let decode = |format: Format, codes: &[u16]| -> Vec<Unpacked> {
        codes.iter().map(|&c| format.spec().decode(u64::from(c))).collect()
    };
    let values = vec![
        ("f64", x.iter().map(|&v| Unpacked::from_f64(v)).collect()),
        ("f32", singles.iter().map(|&v| Unpacked::from_f32(v)).collect()),
        ("bf16", decode(Format::Bf16, &b)),
        ("f16", decode(Format::F16, &h)),
    ];
    (tensors, values)
}

#[test]
fn cast_is_the_library_on_every_dtype() {
    let dir = Folder::new();
    let (tensors, values) = every_dtype();
    let input = dir.write("in", &tensors);
    let roundings = [
        ("nearest-even", Rounding::NearestEven),
        ("toward-zero", Rounding::TowardZero),
        ("up", Rounding::Up),
        ("down", Rounding::Down),
        ("nearest-away", Rounding::NearestAway),
    ];
    let overflows = [("saturate", Overflow::Saturate), ("nonsaturating", Overflow::NonSaturating)];
    for &format in Format::ALL {
        for (round, rounding) in roundings {
            for (mode, overflow) in overflows {
                let output = dir.text("out");
                let args =
                    ["cast", &input, &output, "--to", format.name(), "--round", round, "--overflow", mode];
                let report = json(&args);
                let file = TensorFile::open(&output).unwrap();
                for (name, x) in &values {
                    let what = format!("{format} {round} {mode} {name}");
                    let casts: Vec<_> = x.iter().map(|&v| format.cast(v, rounding, overflow)).collect();
                    let result = file.read(name).unwrap();
                    assert_eq!(result.shape(), [4, 16], "{what}");
                    let codes: Vec<u64> = casts.iter().map(|c| c.code).collect();
                    assert_eq!(result.to_bits().unwrap(), codes, "{what}");
                    let lines = report["tensors"].as_array().unwrap();
                    let stats = &lines.iter().find(|l| l["name"] == *name).unwrap()["stats"];
                    let overflowed = casts.iter().filter(|c| c.events.contains(Events::OVERFLOW));
                    assert_eq!(stats["overflowed"], overflowed.count(), "{what}");
                }
                let copied = file.read("int").unwrap();
                assert_eq!(copied, tensors[4].1);
            }
        }
    }
    assert_eq!(dir.list(), ["in", "out"]);
}

#[test]
fn cast_names_dtypes_and_says_what_it_copied() {
    let dir = Folder::new();
    let input = dir.write("in", &every_dtype().0);
    let expected = [
        ("e4m3", Dtype::F8_E4M3),
        ("e5m2", Dtype::F8_E5M2),
        ("e4m3fnuz", Dtype::F8_E4M3FNUZ),
        ("e8m0", Dtype::F8_E8M0),
        ("e3m2", Dtype::U8),
        ("e2m1", Dtype::U8),
        ("e5m6", Dtype::U16),
        ("bf16", Dtype::BF16),
        ("f16", Dtype::F16),
    ];
    for (to, dtype) in expected {
        let text = stdout(&finegrain(["cast", &input, &dir.text("out"), "--to", to]));
        assert!(text.contains("4 tensors cast to") && text.contains("1 copied unchanged"), "{text}");
        assert!(text.lines().any(|l| l.starts_with("int") && l.contains("copied")), "{text}");
        assert_eq!(TensorFile::open(dir.path("out")).unwrap().info("f64").unwrap().dtype, dtype);
    }
}

#[test]
fn packed_codes_unpack_to_the_plain_ones() {
    let dir = Folder::new();
    let input = dir.write("in", &every_dtype().0);
    let cast = |to: &str, extra: &[&str]| {
        let output = dir.text("out");
        stdout(&finegrain(["cast", &input, &output, "--to", to].iter().chain(extra)));
        TensorFile::open(output).unwrap().read("f32").unwrap()
    };
    let (plain, nibbles) = (cast("e2m1", &[]), cast("e2m1", &["--packed"]));
    assert_eq!((nibbles.dtype(), nibbles.shape()), (Dtype::U8, [4, 8].as_slice()));
    assert_eq!(packed::unpack4(nibbles.data()), plain.data());
    let (plain, triples) = (cast("e5m6", &[]), cast("e5m6", &["--packed"]));
    assert_eq!((triples.dtype(), triples.shape()), (Dtype::U32, [4, 6].as_slice()));
    let packed: Vec<u32> = triples.to_bits().unwrap().into_iter().map(|b| b as u32).collect();
    let plain: Vec<u16> = plain.to_bits().unwrap().into_iter().map(|b| b as u16).collect();
    assert_eq!(e5m6::unpack(&packed).unwrap(), plain);

    let odd = dir.write("odd", &[("fine", f32s(&[2], &[1.0; 2])), ("odd", f32s(&[2, 3], &[1.0; 6]))]);
    let args = ["cast", &odd, &dir.text("new"), "--to", "e2m1", "--packed"];
    fails(args, &["odd: tensor 'odd'", "multiple of 2", "it is 3"]);
    assert!(!dir.path("new").exists());
}

#[test]
fn stochastic_casts_follow_from_seed_name_and_place() {
    let dir = Folder::new();
    let x: Vec<f32> = (0..5000).map(|i| 1.0 + i as f32 / 5000.0).collect();
    let input = dir.write("in", &[("a", f32s(&[5000], &x)), ("b", f32s(&[5000], &x))]);
    let cast = |seed: &str, name: &str| {
        let output = dir.text("out");
        stdout(&finegrain([
            "cast",
            &input,
            &output,
            "--to",
            "e4m3",
            "--round",
            "stochastic",
            "--seed",
            seed,
        ]));
        TensorFile::open(output).unwrap().read(name).unwrap().into_data()
    };
    assert_ne!(cast("1", "a"), cast("2", "a"));
    assert_ne!(cast("1", "a"), cast("1", "b"));
    let rounding = TensorRounding::Stochastic { seed: 1 }.for_tensor("b");
    let element = |(i, &v): (usize, &f32)| {
        Format::E4M3.cast(Unpacked::from_f32(v), rounding.at(i as u64), Overflow::Saturate).code as u8
    };
    assert_eq!(cast("1", "b"), x.iter().enumerate().map(element).collect::<Vec<_>>());
}

#[test]
fn tilekernels_rounding_is_e5m6s() {
    let dir = Folder::new();
    let x: Vec<f32> = (0..4000u32).map(|i| f32::from_bits(0x3300_0000 + i * 65_539)).collect();
    let input = dir.write("in", &[("x", f32s(&[4000], &x)), ("d", every_dtype().0.swap_remove(0).1)]);
    let output = dir.text("out");
    let args = ["cast", &input, &output, "--to", "e5m6", "--round", "tilekernels"];
    fails(args, &["tensor 'd'", "F64"]);
    assert_eq!(dir.list(), ["in"]);
    let input = dir.write("in", &[("x", f32s(&[4000], &x))]);
    stdout(&finegrain(["cast", &input, &output, "--to", "e5m6", "--round", "tilekernels"]));
    let codes = TensorFile::open(&output).unwrap().read("x").unwrap().to_bits().unwrap();
    let expected = |&v: &f32| u64::from(e5m6::cast(v, e5m6::E5m6Rounding::TileKernels));
    assert_eq!(codes, x.iter().map(expected).collect::<Vec<_>>());
}
