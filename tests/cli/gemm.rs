//! `finegrain gemm`: the library's bits for every kind of file, and what it refuses.

use finegrain::checkpoint::{Dtype, Tensor, TensorFile};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef};

use crate::common::operands::{e8m0, nvfp4, scaled, unscaled};
use crate::{Folder, f32s, fails, finegrain, json, stdout, tensor};

/// The tensors `name`, `name_scale_inv` and `name_scale_tensor` of stacked matrices.
pub(crate) fn stored(name: &str, dtype: Dtype, stack: &[&ScaledMatrix]) -> Vec<(String, Tensor)> {
    let (rows, cols) = stack[0].shape();
    let shape = |r: usize, c: usize| if stack.len() == 1 { vec![r, c] } else { vec![stack.len(), r, c] };
    let codes = stack.iter().flat_map(|m| match m.codes() {
        Codes::Bytes(m) => m.as_slice().to_vec(),
        Codes::Words(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
        Codes::Dwords(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
    });
    let mut tensors =
        vec![(name.to_owned(), Tensor::new(dtype, shape(rows, cols), codes.collect()).unwrap())];
    if let Some(s) = stack[0].scales() {
        let (r, c) = s.grid.view().shape();
        let grids = stack.iter().flat_map(|m| match &m.scales().unwrap().grid {
            ScaleGrid::F32(m) => m.as_slice().iter().flat_map(|s| s.to_le_bytes()).collect(),
            ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m) => m.as_slice().to_vec(),
        });
        let dtype = Tensor::dtype_of(s.grid.view().format()).unwrap();
        tensors
            .push((format!("{name}_scale_inv"), Tensor::new(dtype, shape(r, c), grids.collect()).unwrap()));
        if s.tensor != 1.0 {
            tensors.push((format!("{name}_scale_tensor"), f32s(&[1], &[s.tensor])));
        }
    }
    tensors
}

fn write(folder: &Folder, name: &str, parts: Vec<Vec<(String, Tensor)>>) -> String {
    let tensors: Vec<_> = parts.into_iter().flatten().collect();
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    folder.write(name, &tensors)
}

pub(crate) fn groups(values: &[i32]) -> Vec<(String, Tensor)> {
    vec![("groups".to_owned(), tensor(Dtype::I32, &[values.len()], values, |v| v.to_le_bytes()))]
}

fn d(path: &str) -> Tensor {
    TensorFile::open(path).unwrap().read("d").unwrap()
}

#[test]
fn dense_products_are_the_librarys() {
    let folder = Folder::new();
    let out = folder.text("d");
    let a = scaled(Format::E4M3, 5, 300, Granule::TILE_1X128, 1);
    let b = scaled(Format::E5M2, 200, 300, Granule::BLOCK_128X128, 2);
    let c = Matrix::from_fn(5, 200, |i, j| (i * 200 + j) as f32 - 500.0);
    let addend = vec![("c".to_owned(), Tensor::from_f32(&c))];
    let file = write(
        &folder,
        "in",
        vec![stored("a", Dtype::F8_E4M3, &[&a]), stored("b", Dtype::F8_E5M2, &[&b]), addend],
    );
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_addend(c.view()).unwrap();

    // The shapes say the granules; the interval follows.
    let report = json(&["gemm", &file, &out]);
    assert_eq!(report["accumulation"], "f32/128");
    assert_eq!(report["a"], "e4m3 with f32 scales in 1x128");
    assert_eq!(report["shape"], serde_json::json!([5, 200]));
    assert_eq!(d(&out), Tensor::from_f32(&problem.run().unwrap()));

    let hopper = Accumulation::HOPPER.promote_every(64).unwrap();
    let hopper = problem.with_accumulation(hopper).unwrap();
    stdout(&finegrain(["gemm", &file, &out, "--accumulate", "hopper", "--promote", "64", "--out", "bf16"]));
    assert_eq!(d(&out), Tensor::from_bf16(&hopper.run_bf16().unwrap()));
    stdout(&finegrain([
        "gemm",
        &file,
        &out,
        "--threads",
        "1",
        "--backend",
        "reference",
        "--promotion",
        "partial-first",
    ]));
    let order = problem.accumulation().with_promotion(finegrain::gemm::Promotion::PartialFirst);
    assert_eq!(d(&out), Tensor::from_f32(&problem.with_accumulation(order).unwrap().run().unwrap()));
}

#[test]
fn block_scales_of_the_tensor_core() {
    let folder = Folder::new();
    let out = folder.text("d");
    let (a, b) = (e8m0(Format::E4M3, 4, 96, 3), e8m0(Format::E4M3, 6, 96, 4));
    let file =
        write(&folder, "mx", vec![stored("a", Dtype::F8_E4M3, &[&a]), stored("b", Dtype::F8_E4M3, &[&b])]);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    assert_eq!(json(&["gemm", &file, &out])["accumulation"], "f32/32");
    assert_eq!(d(&out), Tensor::from_f32(&problem.run().unwrap()));
    stdout(&finegrain(["gemm", &file, &out, "--accumulate", "blackwell-mx"]));
    let mx = problem.with_accumulation(Accumulation::BLACKWELL_MX).unwrap();
    assert_eq!(d(&out), Tensor::from_f32(&mx.run().unwrap()));

    let (a, b) = (nvfp4(4, 64, 5, 0.25), nvfp4(3, 64, 6, 3.0));
    let file = write(&folder, "nv", vec![stored("a", Dtype::U8, &[&a]), stored("b", Dtype::U8, &[&b])]);
    let args =
        ["gemm", &file, &out, "--accumulate", "blackwell-fp4", "--format-a", "e2m1", "--format-b", "e2m1"];
    assert_eq!(json(&args)["accumulation"], "blackwell-fp4/none");
    let fp4 =
        GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
    assert_eq!(d(&out), Tensor::from_f32(&fp4.run().unwrap()));
}

#[test]
fn grouped_products_are_the_librarys() {
    let folder = Folder::new();
    let out = folder.text("d");
    let f8 = Dtype::F8_E4M3;
    let experts = [7, 8, 9].map(|seed| scaled(Format::E4M3, 10, 256, Granule::BLOCK_128X128, seed));
    let b: Vec<&ScaledMatrix> = experts.iter().collect();
    let b_views: Vec<ScaledRef<'_>> = experts.iter().map(ScaledMatrix::view).collect();

    let a = scaled(Format::E4M3, 6, 256, Granule::TILE_1X128, 10);
    let rows = [2, 2, -1, 0, 0, -1];
    let file = write(&folder, "m", vec![stored("a", f8, &[&a]), stored("b", f8, &b), groups(&rows)]);
    stdout(&finegrain(["gemm", &file, &out]));
    let contiguous = GroupedProblem::contiguous(a.view(), &rows, &b_views).unwrap();
    assert_eq!(d(&out), Tensor::from_f32(&contiguous.run().unwrap()));

    let stack = [11, 12, 13].map(|seed| scaled(Format::E4M3, 4, 256, Granule::TILE_1X128, seed));
    let valid = [4, 0, 2];
    let a: Vec<&ScaledMatrix> = stack.iter().collect();
    let file = write(&folder, "masked", vec![stored("a", f8, &a), stored("b", f8, &b), groups(&valid)]);
    stdout(&finegrain(["gemm", &file, &out, "--grouped", "masked", "--accumulate", "ada"]));
    let a_views: Vec<ScaledRef<'_>> = stack.iter().map(ScaledMatrix::view).collect();
    let ada = Accumulation::ADA.promote_every(128).unwrap();
    let masked =
        GroupedProblem::masked(&a_views, &[4, 0, 2], &b_views).unwrap().with_accumulation(ada).unwrap();
    let want = Tensor::from_f32(&masked.run().unwrap()).reshaped(vec![3, 4, 10]).unwrap();
    assert_eq!(d(&out), want);

    // K of the groups: 130, 0 and 126, each with granules of its own: grids of 2, 0 and 1 columns side by side.
    let part = |rows, k, seed| scaled(Format::E4M3, rows, k, Granule::TILE_1X128, seed);
    let (x, y) = (
        [part(5, 130, 20), part(5, 0, 21), part(5, 126, 22)],
        [part(4, 130, 23), part(4, 0, 24), part(4, 126, 25)],
    );
    let joined = |name: &str, parts: &[ScaledMatrix; 3]| {
        let bytes = |m: &ScaledMatrix, i: usize| match m.codes() {
            Codes::Bytes(m) => m.row(i).to_vec(),
            Codes::Words(_) | Codes::Dwords(_) => unreachable!(),
        };
        let scales = |m: &ScaledMatrix, i: usize| match &m.scales().unwrap().grid {
            ScaleGrid::F32(m) => m.row(i).to_vec(),
            _ => unreachable!(),
        };
        let rows = parts[0].shape().0;
        let codes = (0..rows).flat_map(|i| parts.iter().flat_map(move |m| bytes(m, i))).collect();
        let grid: Vec<f32> = (0..rows).flat_map(|i| parts.iter().flat_map(move |m| scales(m, i))).collect();
        vec![
            (name.to_owned(), Tensor::new(f8, vec![rows, 256], codes).unwrap()),
            (format!("{name}_scale_inv"), f32s(&[rows, 3], &grid)),
        ]
    };
    let file = write(&folder, "k", vec![joined("a", &x), joined("b", &y), groups(&[130, 0, 126])]);
    let granule = ["--granule-a", "1x128", "--granule-b", "1x128"];
    stdout(&finegrain(["gemm", &file, &out, "--grouped", "k"].iter().chain(&granule)));
    let views = |parts: &[ScaledMatrix; 3]| -> Vec<ScaledRef<'static>> {
        parts.iter().map(|m| Box::leak(Box::new(m.clone())).view()).collect()
    };
    let k = GroupedProblem::k_grouped(&views(&x), &views(&y)).unwrap();
    assert_eq!(d(&out), Tensor::from_f32(&k.run().unwrap()).reshaped(vec![3, 5, 4]).unwrap());
}

#[test]
fn wrong_problems_fail_in_one_line_and_leave_nothing() {
    let folder = Folder::new();
    let out = folder.text("d");
    let f8 = Dtype::F8_E4M3;
    let a = scaled(Format::E4M3, 4, 256, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, 300, 256, Granule::BLOCK_128X128, 2);
    let fine = write(&folder, "fine", vec![stored("a", f8, &[&a]), stored("b", f8, &[&b])]);
    let case = |file: &str, args: &[&str], words: &[&str]| {
        fails(["gemm", file, &out].iter().chain(args), words);
        assert!(!folder.path("d").exists());
    };
    case(&fine, &["--granule-b", "128x64"], &["tensor 'b'", "3×2", "3×4", "300×256"]);
    case(&fine, &["--promote", "256"], &["fine", "128", "256"]);
    case(&fine, &["--promote", "0"], &["interval", "0"]);
    case(&fine, &["--accumulate", "blackwell-fp4"], &["blackwell-fp4", "e2m1", "e4m3"]);
    case(&fine, &["--backend", "abacus"], &["'abacus'", "reference"]);
    case(&fine, &["--grouped", "k"], &["'groups'", "not in the file"]);
    case(&fine, &["--format-a", "e5m2"], &["tensor 'a'", "e4m3", "e5m2"]);

    let narrow = unscaled(Format::E4M3, 4, 128, 3);
    let file = write(&folder, "k", vec![stored("a", f8, &[&narrow]), stored("b", f8, &[&b])]);
    case(&file, &[], &["4×128", "300×256"]);
    let file = write(
        &folder,
        "grid",
        vec![
            stored("a", f8, &[&a]),
            stored("b", f8, &[&b])[..1].to_vec(),
            vec![("b_scale_inv".to_owned(), f32s(&[7, 5], &[1.0; 35]))],
        ],
    );
    case(&file, &[], &["'b_scale_inv'", "[7, 5]", "[300, 256]", "--granule-b"]);
    let file = write(&folder, "u8", vec![stored("a", Dtype::U8, &[&a]), stored("b", f8, &[&b])]);
    case(&file, &[], &["tensor 'a'", "U8", "--format-a"]);
    let file = write(
        &folder,
        "f32",
        vec![vec![("a".to_owned(), f32s(&[1, 4], &[1.0; 4])), ("b".to_owned(), f32s(&[1, 4], &[1.0; 4]))]],
    );
    case(&file, &[], &["tensor 'a'", "F32"]);
    let file = write(
        &folder,
        "groups",
        vec![stored("a", f8, &[&a]), stored("b", f8, &[&b, &b]), groups(&[0, 1, 2, -1])],
    );
    case(&file, &[], &["row 2", "group 2", "0 to 1"]);
    let file = write(
        &folder,
        "addend",
        vec![
            stored("a", f8, &[&a]),
            stored("b", f8, &[&b]),
            vec![("c".to_owned(), f32s(&[4, 4], &[0.0; 16]))],
        ],
    );
    case(&file, &[], &["4×4", "4×300"]);
}

/// What libraries do around the instruction: orders, parts of K, and calls by name.
#[test]
fn orders_parts_and_calls() {
    let folder = Folder::new();
    let (out, f8) = (folder.text("d"), Dtype::F8_E4M3);
    let a = scaled(Format::E4M3, 5, 512, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, 200, 512, Granule::BLOCK_128X128, 2);
    let blocks = write(&folder, "blocks", vec![stored("a", f8, &[&a]), stored("b", f8, &[&b])]);
    let (x, y) = (
        scaled(Format::E4M3, 5, 512, Granule::TENSOR, 3),
        scaled(Format::E4M3, 200, 512, Granule::TENSOR, 4),
    );
    let tensors = write(&folder, "tensors", vec![stored("a", f8, &[&x]), stored("b", f8, &[&y])]);
    let of = |(a, b): (&ScaledMatrix, &ScaledMatrix), accumulation: &str| {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        let problem = problem.with_accumulation(accumulation.parse().unwrap()).unwrap();
        Tensor::from_f32(&problem.run().unwrap())
    };
    for (file, operands, args, accumulation) in [
        (&blocks, (&a, &b), "--split-k 2", "f32/128/split-k=2"),
        (&blocks, (&a, &b), "--promotion unfused --split-k 0,128,384", "f32/128/unfused/split-k=0,128,384"),
        (&blocks, (&a, &b), "--accumulate cublaslt-block", "hopper/128"),
        (&blocks, (&a, &b), "--accumulate te-blockwise --split-k 2", "hopper/128/split-k=2"),
        (&blocks, (&a, &b), "--accumulate deepgemm", "hopper/128"),
        (&blocks, (&a, &b), "--accumulate triton-deepseek", "hopper/128/partial-first"),
        (&tensors, (&x, &y), "--accumulate cublaslt", "hopper/128/scales-last"),
        (&tensors, (&x, &y), "--accumulate cublaslt-fast --split-k 2", "hopper/none/split-k=2"),
        (&tensors, (&x, &y), "--promotion scales-last", "f32/128/scales-last"),
        // The last of an option counts.
        (
            &tensors,
            (&x, &y),
            "--accumulate ada --promote none --split-k 3 --accumulate hopper --promote 64 --split-k 2",
            "hopper/64/split-k=2",
        ),
    ] {
        let words: Vec<&str> = ["gemm", file, &out].into_iter().chain(args.split(' ')).collect();
        let report = json(&words);
        assert_eq!(report["accumulation"], accumulation, "{args}");
        assert_eq!(d(&out), of(operands, accumulation), "{args}");
        // The options that it names are the same arithmetic.
        let options: Vec<&str> =
            report["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
        assert_eq!(json(&[&["gemm", file, &out], &options[..]].concat())["accumulation"], accumulation);
    }
    for beside in [["--promote", "128"], ["--promotion", "partial-first"]] {
        let output = finegrain(["gemm", &blocks, &out, "--accumulate", "deepgemm"].iter().chain(&beside));
        assert_eq!(output.status.code(), Some(2), "{beside:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(beside[0]), "{beside:?}");
    }
    for split in ["0", "128,256", "0,0", "some"] {
        assert_eq!(finegrain(["gemm", &blocks, &out, "--split-k", split]).status.code(), Some(2), "{split}");
    }
    fails(["gemm", &blocks, &out, "--split-k", "0,512"], &["blocks", "split-K at 512: K is 512"]);
    fails(["gemm", &blocks, &out, "--split-k", "0,100"], &["blocks", "100", "128"]);
    fails(["gemm", &blocks, &out, "--promotion", "scales-last"], &["scales of A", "128", "512"]);
    fails(["gemm", &tensors, &out, "--accumulate", "cublaslt-block"], &["cublaslt-block", "A has tensor"]);

    // Its old name, said once.
    let old = finegrain(["gemm", &blocks, &out, "--promotion", "deepseek-v3", "--promotion", "deepseek-v3"]);
    assert_eq!(old.status.code(), Some(0));
    let said = String::from_utf8(old.stderr).unwrap();
    assert!(
        said.lines().count() == 1 && said.contains("unfused") && said.contains("partial-first"),
        "{said}"
    );
    assert_eq!(d(&out), of((&a, &b), "f32/128/unfused"));
}

/// MX operands in BF16, whose interval follows from nothing but the default.
#[test]
fn folded_scales() {
    let folder = Folder::new();
    let (out, f8) = (folder.text("d"), Dtype::F8_E4M3);
    let (a, b) = (e8m0(Format::E4M3, 4, 320, 3), e8m0(Format::E4M3, 6, 320, 4));
    let file = write(&folder, "mx", vec![stored("a", f8, &[&a]), stored("b", f8, &[&b])]);
    for (args, accumulation) in [
        ("--fold-scales", "f32/128/fold-scales"),
        ("--fold-scales --promote none --split-k 2", "f32/none/split-k=2/fold-scales"),
        ("--fold-scales --accumulate hopper-f16 --promote 64", "hopper-f16/64/fold-scales"),
    ] {
        let words: Vec<&str> = ["gemm", &file, &out].into_iter().chain(args.split(' ')).collect();
        assert_eq!(json(&words)["accumulation"], accumulation);
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        let problem = problem.with_accumulation(accumulation.parse().unwrap()).unwrap();
        assert_eq!(d(&out), Tensor::from_f32(&problem.run().unwrap()));
    }
    fails(["gemm", &file, &out, "--fold-scales", "--accumulate", "hopper"], &["mx", "bf16"]);
    let (a, b) = (
        scaled(Format::E4M3, 5, 256, Granule::TILE_1X128, 1),
        scaled(Format::E4M3, 7, 256, Granule::TILE_1X128, 2),
    );
    let file = write(&folder, "f32", vec![stored("a", f8, &[&a]), stored("b", f8, &[&b])]);
    fails(["gemm", &file, &out, "--fold-scales"], &["f32", "scales of A", "BF16"]);
}
