//! GEMMs in every accumulation: dense and grouped, with every promotion order, parts of K, addends and both outputs.

use half::f16;

use super::{Vectors, random, random_matrix, tensor};
use crate::checkpoint::{Dtype, Tensor};
use crate::engine::Engine;
use crate::error::Result;
use crate::formats::{Format, Unpacked};
use crate::gemm::{
    Accumulation, BlockScales, Fold, GemmProblem, GroupedProblem, Model, Promotion, SplitK, StepResult,
    TensorCore,
};
use crate::matrix::Matrix;
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};

/// Accumulators in f16, and tensor cores that were never built: every parameter of one differs from those of the built
/// ones in some of them.
const CUSTOM: [&str; 7] = [
    "hopper:result=f16",
    "hopper-f16:result=f16",
    "hopper-mma:result=f16",
    "volta:result=f16",
    "hopper:f=10,result=e8m10,terms=nearest,round=nearest",
    "ada:l=7,f=30,result=f32",
    "ampere:l=16,terms=nearest,addend=late",
];

/// Vectors are what the reference gives, not what a faster backend makes of it.
const REFERENCE: Engine<'static> = Engine::reference();

const M: usize = 9;
const N: usize = 7;
/// Two intervals of 128, whole steps, and a ragged end.
const K: usize = 300;

pub(super) fn vectors() -> Result<Vectors> {
    let mut out =
        Vectors::new("accumulations", "D = A·Bᵀ (+ C) in every accumulation model, dense and grouped");
    let addend = random_matrix(M, N, 50, |r| f32::from_bits((r as u32 & 0x80FF_FFFF) | 0x4200_0000));
    out.input("c", None, Tensor::from_f32(&addend));
    let halves = addend.map(|&c| f16::from_f32(c));
    out.input("c_f16", None, Tensor::from_f16(&halves));
    let halves = halves.map(|c| c.to_f32());
    let custom = CUSTOM.iter().map(|name| name.parse::<Model>()).collect::<Result<Vec<_>>>()?;
    let cores = TensorCore::ALL.iter().map(|&c| Model::TensorCore(c));
    for model in [Model::F32, Model::Exact].into_iter().chain(cores).chain(custom) {
        let formats = match model {
            Model::TensorCore(core) => core.operands(),
            _ => &[Format::E4M3, Format::E5M2, Format::Bf16],
        };
        for (at, &fa) in formats.iter().enumerate() {
            let fb = formats[(at + 1) % formats.len()];
            for (kind, a, b) in operands(model, fa, fb)? {
                let c = if accumulates_in_f16(model) { ("c_f16", &halves) } else { ("c", &addend) };
                dense(&mut out, model, &format!("{model}.{fa}-{fb}.{kind}"), (&a, &b), c)?;
            }
        }
    }
    for model in
        [Model::F32, Model::Exact, Model::TensorCore(TensorCore::ADA), Model::TensorCore(TensorCore::HOPPER)]
    {
        grouped(&mut out, model)?;
    }
    Ok(out)
}

fn accumulates_in_f16(model: Model) -> bool {
    matches!(model, Model::TensorCore(core) if core.result() == StepResult::F16)
}

/// The kinds of scales that a model takes.
fn operands(model: Model, fa: Format, fb: Format) -> Result<Vec<(&'static str, ScaledMatrix, ScaledMatrix)>> {
    let pair = |kind, seed, scales: &dyn Fn(usize, u64, bool) -> Option<Scales>| -> Result<_> {
        let a = ScaledMatrix::new(fa, codes(fa, M, K, seed), scales(M, seed, true))?;
        let b = ScaledMatrix::new(fb, codes(fb, N, K, seed + 1), scales(N, seed + 1, false))?;
        Ok((kind, a, b))
    };
    let block = match model {
        Model::TensorCore(core) => core.scales(),
        _ => BlockScales::None,
    };
    let mx = pair("mx", 20, &|rows, seed, _| Some(e8m0(rows, seed)));
    match block {
        BlockScales::None => Ok(vec![
            pair("unscaled", 10, &|_, _, _| None)?,
            pair("rows", 12, &|rows, seed, is_a| {
                let granule = if is_a { Granule::ROW } else { Granule::TENSOR };
                Some(f32_scales(rows, K, granule, seed))
            })?,
            pair("tensor", 16, &|rows, seed, _| Some(f32_scales(rows, K, Granule::TENSOR, seed)))?,
            pair("tiles", 14, &|rows, seed, is_a| {
                let granule = if is_a { Granule::TILE_1X128 } else { Granule::BLOCK_128X128 };
                Some(f32_scales(rows, K, granule, seed))
            })?,
            mx?,
        ]),
        BlockScales::Mx => Ok(vec![mx?]),
        BlockScales::Fp4 => Ok(vec![mx?, pair("nvfp4", 24, &|rows, seed, _| Some(nvfp4(rows, seed)))?]),
    }
}

fn dense(
    out: &mut Vectors,
    model: Model,
    base: &str,
    (a, b): (&ScaledMatrix, &ScaledMatrix),
    (c_name, c): (&str, &Matrix<f32>),
) -> Result<()> {
    let mut inputs = stored(out, &format!("{base}.a"), &[a])?;
    inputs.extend(stored(out, &format!("{base}.b"), &[b])?);
    let plain = Accumulation::new(model);
    let every = |n: usize, order| plain.promote_every(n).map(|p| p.with_promotion(order));
    let mut accumulations = vec![plain];
    for &order in Promotion::ALL {
        accumulations.extend([every(128, order)?, every(64, order)?]);
        // Parts of K by their number, and where they begin.
        let at = SplitK::at(&[0, 64, 256])?;
        accumulations.extend([
            plain.with_promotion(order).with_split_k(SplitK::equal(2)?),
            every(128, order)?.with_split_k(SplitK::equal(2)?),
            every(64, order)?.with_split_k(at),
        ]);
    }
    accumulations.push(plain.with_promotion(Promotion::ScalesLast));
    for folding in [plain, every(128, Promotion::ScalesFirst)?, plain.with_split_k(SplitK::equal(2)?)] {
        accumulations.push(folding.with_fold(Fold::Scales));
    }
    let problem = GemmProblem::nt(a.view(), b.view())?;
    for accumulation in accumulations {
        // Scales that change inside an interval or before they are applied, an addend before scales, and parts inside an
        // instruction are refused by the contract.
        let Ok(problem) = problem.with_accumulation(accumulation) else { continue };
        let interval = accumulation.interval().map_or("none".to_owned(), |n| n.to_string());
        let order = accumulation.promotion().name();
        let words = model.to_string();
        let mut parameters =
            vec![("accumulation", words.as_str()), ("interval", interval.as_str()), ("promotion", order)];
        let mut name = format!("{base}.d.{interval}.{order}");
        let split = accumulation.split_k().to_string();
        if !accumulation.split_k().is_whole() {
            parameters.push(("split_k", &split));
            name += &format!(".split-{}", split.replace(',', "-"));
        }
        if accumulation.fold() == Fold::Scales {
            parameters.push(("fold_scales", "true"));
            name += ".folded";
        }
        let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
        out.output(&name, None, Tensor::from_f32(&REFERENCE.gemm(&problem)?), ("gemm", &names, &parameters));
        let bf16 = Tensor::from_bf16(&REFERENCE.gemm_bf16(&problem)?);
        out.output(format!("{name}.bf16"), None, bf16, ("gemm", &names, &parameters));
        if accumulates_in_f16(model) {
            let f16 = Tensor::from_f16(&REFERENCE.gemm_f16(&problem)?);
            out.output(format!("{name}.f16"), None, f16, ("gemm", &names, &parameters));
        }
        if let Ok(with_addend) = problem.with_addend(c.view()) {
            let names = [names.as_slice(), &[c_name]].concat();
            let d = Tensor::from_f32(&REFERENCE.gemm(&with_addend)?);
            out.output(format!("{name}.c"), None, d, ("gemm", &names, &parameters));
        }
    }
    Ok(())
}

fn grouped(out: &mut Vectors, model: Model) -> Result<()> {
    const E4M3: Format = Format::E4M3;
    let tiles = |rows, cols, granule, seed| {
        ScaledMatrix::new(E4M3, codes(E4M3, rows, cols, seed), Some(f32_scales(rows, cols, granule, seed)))
    };
    let base = format!("grouped.{model}");
    let experts =
        (0..3).map(|g| tiles(N, 256, Granule::BLOCK_128X128, 60 + g)).collect::<Result<Vec<_>>>()?;
    let b: Vec<ScaledRef<'_>> = experts.iter().map(ScaledMatrix::view).collect();
    let b_names = stored(out, &format!("{base}.b"), &experts.iter().collect::<Vec<_>>())?;
    let accumulation = Accumulation::new(model).promote_every(128)?;
    let groups_of = |values: &[i32]| tensor(Dtype::I32, &[values.len()], values, |v| v.to_le_bytes());
    let put = |out: &mut Vectors, form: &str, problem: GroupedProblem<'_>, inputs: &[&str]| {
        let d = Tensor::from_f32(&REFERENCE.gemm(&problem.with_accumulation(accumulation)?)?);
        let parameters = [("accumulation", model.name()), ("interval", "128"), ("promotion", "scales-first")];
        out.output(format!("{base}.{form}.d"), None, d, (&format!("gemm-{form}"), inputs, &parameters));
        Ok(())
    };

    // Padding first, between and last; a group twice, and one that is empty.
    let rows = [-1, 2, 2, -1, 0, 0, 0, 2, -1];
    let a = tiles(rows.len(), 256, Granule::TILE_1X128, 70)?;
    let mut inputs = stored(out, &format!("{base}.contiguous.a"), &[&a])?;
    inputs.extend(b_names.iter().cloned());
    inputs.push(format!("{base}.contiguous.groups"));
    out.input(inputs.last().expect("just pushed"), None, groups_of(&rows)?);
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    put(out, "contiguous", GroupedProblem::contiguous(a.view(), &rows, &b)?, &names)?;

    let stack = (0..3).map(|g| tiles(5, 256, Granule::TILE_1X128, 80 + g)).collect::<Result<Vec<_>>>()?;
    let views: Vec<ScaledRef<'_>> = stack.iter().map(ScaledMatrix::view).collect();
    let mut inputs = stored(out, &format!("{base}.masked.a"), &stack.iter().collect::<Vec<_>>())?;
    inputs.extend(b_names);
    inputs.push(format!("{base}.masked.groups"));
    out.input(inputs.last().expect("just pushed"), None, groups_of(&[5, 0, 2])?);
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    put(out, "masked", GroupedProblem::masked(&views, &[5, 0, 2], &b)?, &names)?;

    // K of the groups: ragged, empty and whole; each operand a tensor of its own.
    let (mut parts, mut inputs) = (Vec::new(), Vec::new());
    for (g, k) in [130usize, 0, 256].into_iter().enumerate() {
        let (a, b) = (
            tiles(M, k, Granule::TILE_1X128, 90 + g as u64)?,
            tiles(N, k, Granule::TILE_1X128, 95 + g as u64)?,
        );
        inputs.extend(stored(out, &format!("{base}.k.a{g}"), &[&a])?);
        inputs.extend(stored(out, &format!("{base}.k.b{g}"), &[&b])?);
        parts.push((a, b));
    }
    let (a, b): (Vec<_>, Vec<_>) = parts.iter().map(|(a, b)| (a.view(), b.view())).unzip();
    let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
    put(out, "k", GroupedProblem::k_grouped(&a, &b)?, &names)
}

/// Puts codes and scales of stacked matrices, and gives their names.
fn stored(out: &mut Vectors, name: &str, stack: &[&ScaledMatrix]) -> Result<Vec<String>> {
    let (rows, cols) = stack[0].shape();
    let shape = |r: usize, c: usize| if stack.len() == 1 { vec![r, c] } else { vec![stack.len(), r, c] };
    let format = stack[0].format();
    let codes = stack.iter().flat_map(|m| match m.codes() {
        Codes::Bytes(m) => m.as_slice().to_vec(),
        Codes::Words(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
        Codes::Dwords(m) => m.as_slice().iter().flat_map(|c| c.to_le_bytes()).collect(),
    });
    let codes = Tensor::new(Tensor::code_dtype(format), shape(rows, cols), codes.collect())?;
    out.input(name, Some(format), codes);
    let mut names = vec![name.to_owned()];
    let Some(scales) = stack[0].scales() else { return Ok(names) };
    let (r, c) = scales.grid.view().shape();
    let grids = stack.iter().filter_map(|m| m.scales()).flat_map(|s| match &s.grid {
        ScaleGrid::F32(m) => m.as_slice().iter().flat_map(|s| s.to_le_bytes()).collect(),
        ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m) => m.as_slice().to_vec(),
    });
    let dtype = Tensor::code_dtype(scales.grid.view().format());
    names.push(format!("{name}_scale_inv"));
    out.input(&names[1], None, Tensor::new(dtype, shape(r, c), grids.collect())?);
    if scales.tensor != 1.0 {
        names.push(format!("{name}_scale_tensor"));
        out.input(&names[2], None, tensor(Dtype::F32, &[1], &[scales.tensor], |s| s.to_le_bytes())?);
    }
    Ok(names)
}

/// Rows by index modulo 8: any finite codes; one sign; large, then small; near cancellation; subnormals; and in row 5 a
/// NaN, in row 6 an infinity, where the format has them.
fn codes(format: Format, rows: usize, cols: usize, seed: u64) -> Codes {
    let spec = format.spec();
    let (sign, top) = (spec.sign_mask(), spec.max_code());
    let infinity = match spec.has_infinity() {
        true => spec.encode(Unpacked::Infinite { negative: false }).unwrap_or(top),
        false => top,
    };
    let code = |i: usize, j: usize| {
        let bits = random(seed, i, j);
        let finite = ((bits >> 8) % (top + 1)) | if bits & 1 == 1 { sign } else { 0 };
        let code = match i % 8 {
            1 => finite & !sign,
            2 if j < cols / 4 => top & !sign,
            2 => finite & 0x7,
            3 => random(seed, i, j / 2) >> 8 & (top >> 1) | if j % 2 == 1 { sign } else { 0 },
            4 => finite & (sign | ((1 << spec.mantissa_bits) - 1)),
            5 if j == cols / 2 => spec.nan_code().unwrap_or(top),
            6 if j == cols / 3 => infinity,
            _ => finite,
        };
        code as u32
    };
    Codes::new(format, &Matrix::from_fn(rows, cols, code))
}

/// Scales in [2^−4, 2^4) with all fraction bits.
fn f32_scales(rows: usize, cols: usize, granule: Granule, seed: u64) -> Scales {
    let (r, c) = granule.grid(rows, cols);
    let scale = |bits: u64| f32::from_bits((123 << 23) + (bits >> 8) as u32 % (8 << 23));
    Scales { granule, grid: ScaleGrid::F32(random_matrix(r, c, seed + 100, scale)), tensor: 1.0 }
}

fn e8m0(rows: usize, seed: u64) -> Scales {
    let (r, c) = Granule::MX_1X32.grid(rows, K);
    let grid = ScaleGrid::E8M0(random_matrix(r, c, seed + 100, |bits| 120 + (bits >> 8) as u8 % 15));
    Scales { granule: Granule::MX_1X32, grid, tensor: 1.0 }
}

fn nvfp4(rows: usize, seed: u64) -> Scales {
    let (r, c) = Granule::NVFP4_1X16.grid(rows, K);
    let grid = ScaleGrid::E4M3(random_matrix(r, c, seed + 100, |bits| (bits >> 8) as u8 % 0x7F));
    Scales { granule: Granule::NVFP4_1X16, grid, tensor: 0.375 }
}
