//! Gate C: the launcher, over a driver that is the PTX interpreter: argument order and types, grids, shared memory, error
//! paths, and the bits that come back.
#![cfg(feature = "cuda")]

#[path = "common/operands.rs"]
mod operands;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use finegrain::cuda::kernels::{Config, Kernel};
use finegrain::cuda::{Arch, Arg, Cuda, CudaDriver, Driver, Launch};
use finegrain::error::{Error, Result};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, Execution, GemmBackend, GemmProblem, Model, Output, Promotion};
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe, Role};
use finegrain::scaled::{Granule, ScaledMatrix};
use half::bf16;
use operands::{scaled, unscaled};
use ptx_emulator::{Device, Module, Options};

/// A GPU of sm_89 that is the interpreter.
#[derive(Default)]
struct StandIn {
    device: Mutex<Device>,
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
    launches: Mutex<Vec<&'static str>>,
}

/// Memory of the stand-in: address and size.
struct Memory(u64, usize);

fn fault(e: impl ToString) -> Error {
    Error::Unsupported(e.to_string())
}

impl Driver for StandIn {
    type Memory = Memory;

    fn arch(&self) -> Arch {
        Arch::Sm89
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.allocate(bytes.len())?;
        self.device.lock().unwrap().write(memory.0, bytes).map_err(fault)?;
        Ok(memory)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        Ok(Memory(self.device.lock().unwrap().alloc(bytes.max(1)), bytes))
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.0
    }

    fn download(&self, memory: &Memory) -> Result<Vec<u8>> {
        self.device.lock().unwrap().read(memory.0, memory.1).map_err(fault)
    }

    // What a wrong argument does here is a fault, not undefined behaviour.
    unsafe fn launch(&self, kernel: &'static Kernel, config: Config, args: &[Arg]) -> Result<()> {
        let module = {
            let mut modules = self.modules.lock().unwrap();
            let load = || {
                let file = kernel.source.ptx_file(Arch::Sm89);
                let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx").join(file);
                Arc::new(Module::parse(&std::fs::read_to_string(path).unwrap()).unwrap())
            };
            Arc::clone(modules.entry(kernel.source.file).or_insert_with(load))
        };
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let args = args.iter().map(|arg| match *arg {
            Arg::Address(v) => ptx_emulator::Arg::Ptr(v),
            Arg::U32(v) => ptx_emulator::Arg::U32(v),
            Arg::I32(v) => ptx_emulator::Arg::I32(v),
            Arg::I64(v) => ptx_emulator::Arg::U64(v as u64),
            Arg::F32(v) => ptx_emulator::Arg::F32(v),
            Arg::Scales(s) => {
                let words = [s.data, s.row_stride as u64, s.col_stride as u64, s.kind as u64];
                ptx_emulator::Arg::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect())
            }
            Arg::Recipe(r) => {
                let whole =
                    [r.form, r.power_of_two, r.payload, r.cast, r.ignores_nan, r.replaces].map(|v| v as u32);
                let floats =
                    [r.floor, r.max, r.inv_max, r.zero, r.overflow, r.infinite, r.nan].map(f32::to_bits);
                ptx_emulator::Arg::Bytes(bytes(&[&whole[..], &floats[..]].concat()))
            }
        });
        let launch = ptx_emulator::Launch {
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            args: args.collect(),
        };
        let options = Options { fp8_model: Model::by_name("ada")?, ..Options::default() };
        self.launches.lock().unwrap().push(kernel.name);
        self.device.lock().unwrap().launch(&module, kernel.name, &launch, &options).map_err(fault)?;
        Ok(())
    }
}

fn gpu() -> Cuda<StandIn> {
    Cuda::new(StandIn::default())
}

fn last(gpu: &Cuda<StandIn>) -> &'static str {
    gpu.driver().launches.lock().unwrap().last().copied().unwrap_or("nothing")
}

fn check(gpu: &Cuda<StandIn>, what: &str, problem: &GemmProblem<'_>, kernel: &str) {
    let bits = |m: &Matrix<f32>| m.map(|v| v.to_bits());
    let (got, want) = (gpu.gemm(problem).unwrap(), problem.run().unwrap());
    assert_eq!(last(gpu), kernel, "{what}");
    assert_eq!(bits(&got), bits(&want), "{what}");
}

#[test]
fn quantised_matrices_are_the_references() {
    let gpu = gpu();
    let x = Matrix::from_fn(150, 200, |i, j| ((i * 37 + j * 11) % 101) as f32 * 0.13 - 6.0);
    for name in ["deepseek-v3", "te", "deepgemm"] {
        let recipe = Recipe::by_name(name).unwrap();
        for role in [Role::Activation, Role::Weight, Role::Transposed] {
            let got = gpu.quantize(x.view(), recipe, role).unwrap();
            assert_eq!(
                got,
                Quantizer::new(*recipe).quantize(x.view(), role).unwrap().matrix,
                "{name} {role:?}"
            );
        }
    }
    assert_eq!(last(&gpu), "quantize_128x1_f32");
    let empty = gpu.quantize(Matrix::filled(0, 128, 0.0).view(), &Recipe::TE, Role::Activation).unwrap();
    assert_eq!(empty.shape(), (0, 128));
}

#[test]
fn products_are_the_references() {
    let gpu = gpu();
    let ada = Accumulation::ADA.promote_every(128).unwrap();
    let shapes = [(130, 140, 300), (1, 3, 128), (64, 128, 77)];
    for (seed, (m, n, k)) in shapes.into_iter().enumerate() {
        let a = scaled(Format::E4M3, m, k, Granule::TILE_1X128, 2 * seed as u64 + 1);
        for (format, granule) in [(Format::E4M3, Granule::BLOCK_128X128), (Format::E5M2, Granule::TILE_1X128)]
        {
            let b = scaled(format, n, k, granule, 2 * seed as u64 + 2);
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            check(&gpu, "f32", &problem, "gemm_f32_reference");
            let name = format!("sm89_e4m3_{format}_gemm_promoted");
            let fast = problem.with_accumulation(ada).unwrap();
            check(&gpu, "ada", &fast, &name);
            let c = Matrix::from_fn(m, n, |i, j| i as f32 - 3.0 * j as f32);
            for order in [Promotion::PartialFirst, Promotion::Unfused] {
                let with =
                    fast.with_accumulation(ada.with_promotion(order)).unwrap().with_addend(c.view()).unwrap();
                check(&gpu, "addend", &with, &name);
            }
        }
    }
    // Tensor and row scales, none at all, and intervals of one's own.
    let (a, b) =
        (scaled(Format::E4M3, 5, 256, Granule::TENSOR, 7), scaled(Format::E4M3, 6, 256, Granule::ROW, 8));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    check(&gpu, "tensor and row", &problem, "gemm_f32_reference");
    check(&gpu, "tensor and row", &problem.with_accumulation(ada).unwrap(), "sm89_e4m3_e4m3_gemm_promoted");
    let (a, b) = (unscaled(Format::E4M3, 5, 100, 9), unscaled(Format::E5M2, 4, 100, 10));
    let bare =
        GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(Accumulation::F32.without_promotion());
    let c = Matrix::filled(5, 4, -1.5f32);
    check(&gpu, "bare chain", &bare.unwrap().with_addend(c.view()).unwrap(), "gemm_f32_reference");
}

#[test]
fn a_backend_writes_where_it_is_told() {
    let gpu = gpu();
    let (a, b) = (
        scaled(Format::E4M3, 9, 256, Granule::TILE_1X128, 1),
        scaled(Format::E4M3, 10, 256, Granule::BLOCK_128X128, 2),
    );
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    gpu.supports(&problem).unwrap();
    let mut d = Matrix::filled(9, 10, bf16::ZERO);
    gpu.run(&problem, Output::Bf16(d.view_mut()), &Execution::default()).unwrap();
    assert_eq!(d, problem.run_bf16().unwrap());
}

#[test]
fn what_no_kernel_computes_is_refused_with_the_reason() {
    let gpu = gpu();
    let a = scaled(Format::E4M3, 4, 256, Granule::TILE_1X128, 1);
    let refused = |a: &ScaledMatrix, accumulation: Option<Accumulation>, words: &[&str]| {
        let problem = GemmProblem::nt(a.view(), a.view()).unwrap();
        let problem = accumulation.map_or(problem, |acc| problem.with_accumulation(acc).unwrap());
        let message = gpu.supports(&problem).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    refused(&a, Some(Accumulation::HOPPER.promote_every(128).unwrap()), &["hopper", "sm_89"]);
    refused(&a, Some(Accumulation::ADA.promote_every(64).unwrap()), &["128", "ada/64"]);
    refused(&unscaled(Format::Bf16, 4, 64, 2), None, &["bf16"]);
    let mx = Recipe::by_name("mxfp8").unwrap();
    let message =
        gpu.quantize(Matrix::filled(1, 1, 0.0).view(), mx, Role::Activation).unwrap_err().to_string();
    assert!(message.contains("mxfp8"), "{message}");
    assert_eq!(last(&gpu), "nothing");
    let _: fn(&Launch) -> String = ToString::to_string; // a launch can be printed
}

/// On a machine without a GPU the real driver says so; on one with a GPU the same problems are compared.
#[test]
fn a_real_device_is_used_where_there_is_one() {
    match CudaDriver::new(0) {
        Err(e) => println!("skipped: {e}"),
        Ok(driver) => {
            let gpu = Cuda::new(driver);
            let x = Matrix::from_fn(150, 256, |i, j| ((i * 37 + j * 11) % 101) as f32 * 0.13 - 6.0);
            let a = gpu.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation).unwrap();
            let b = gpu.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Weight).unwrap();
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            assert_eq!(gpu.gemm(&problem).unwrap(), problem.run().unwrap());
        }
    }
}
