//! Prints what each kind of kernel can reach at best, as a table in Markdown: registers and shared memory from the
//! compiled machine code, times from published peaks. An estimate, not a measurement. Needs NVRTC, no GPU:
//! `cargo run --release --features cuda --example cuda_roofline [DEVICE]...`, by default one device of each architecture.

use finegrain::cuda::kernels::{Desc, Kernel};
use finegrain::cuda::roofline::{DEVICES, DeviceSpec, Estimate, Work, cast, product};
use finegrain::cuda::{Compiler, Target};

const ROWS: usize = 4096;
const COLS: usize = 7168;
/// A prefill and a decode of one of DeepSeek-V3's products.
const PRODUCTS: [(usize, usize, usize); 2] = [(4096, 4096, 7168), (64, 4096, 7168)];

/// Kernels over a matrix, with the bytes of an element in and out and its f32 instructions: the maximum and the payload's
/// product or quotient; a product; e^x by a polynomial, a quotient and a product.
const CASTS: [(&str, usize, usize); 9] = [
    ("quantize_1x128_f32", 5, 2),
    ("quantize_1x128_bf16", 3, 2),
    ("quantize_128x128_bf16", 3, 2),
    ("quantize_128x1_bf16", 3, 2),
    ("requantize_transpose_e4m3", 2, 3),
    ("dequantize_e4m3_f32", 5, 1),
    ("dequantize_e4m3_bf16", 3, 1),
    ("swiglu_quantize_1x128_f32", 9, 25),
    ("swiglu_quantize_1x128_bf16", 5, 25),
];

const GEMMS: [&str; 3] =
    ["gemm_f32_reference", "sm89_e4m3_e4m3_gemm_promoted", "sm90a_e4m3_e4m3_gemm_promoted"];

fn row(
    compiler: &Compiler,
    name: &str,
    device: &DeviceSpec,
    desc: Desc,
    work: Work,
) -> finegrain::Result<()> {
    let kernel = Kernel::by_name(name).expect("a kernel of the table");
    if !kernel.source.archs.contains(&device.arch) {
        return Ok(());
    }
    let compiled = compiler.compile(kernel.source, device.arch, Target::Cubin)?;
    let resources = compiled.resources(name).expect("the log speaks of each kernel");
    let Some(e) = Estimate::of(kernel, resources, device, desc, work) else { return Ok(()) };
    let problem = match desc.depth {
        0 => format!("{}×{}", desc.rows, desc.cols),
        k => format!("{}×{}×{k}", desc.rows, desc.cols),
    };
    let shared = (resources.shared + kernel.dynamic_shared).div_ceil(1024);
    let micro = |seconds: f64| format!("{:.1}", seconds * 1e6);
    println!(
        "| `{name}` | {problem} | {:.1} | {:.2} | {} | {shared} | {} ({:.0} %) | {:.0} % | {} | {}–{} |",
        work.bytes / 1e6,
        (work.tensor + 2.0 * work.f32) / 1e9,
        resources.registers,
        e.blocks,
        100.0 * e.occupancy,
        100.0 * e.filled,
        e.limit(),
        micro(e.at_least()),
        micro(e.without_overlap()),
    );
    Ok(())
}

fn main() -> finegrain::Result<()> {
    let compiler = Compiler::new()?;
    let named: Vec<String> = std::env::args().skip(1).collect();
    let first_of_its_kind = |d: &DeviceSpec| DEVICES.iter().find(|x| x.arch == d.arch) == Some(d);
    let wanted = |d: &DeviceSpec| {
        if named.is_empty() { first_of_its_kind(d) } else { named.iter().any(|n| n == d.name) }
    };
    println!("Estimates from published peaks and the compiled machine code; nothing here was measured.");
    for device in DEVICES.iter().filter(|d| wanted(d)) {
        let DeviceSpec { name, arch, multiprocessors, memory, fp8, f32 } = device;
        println!(
            "\n{name} ({arch}): {multiprocessors} SMs, {memory} GB/s, {fp8} TFLOP/s in FP8, {f32} in f32.\n"
        );
        println!(
            "| kernel | problem | MB | GFLOP | registers | shared, KiB | blocks an SM (threads) | waves filled | limit | µs \
             at best, without overlap |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for (name, bytes, instructions) in CASTS {
            let work = cast(ROWS * COLS, bytes, instructions);
            row(&compiler, name, device, Desc::matrix(ROWS, COLS), work)?;
        }
        for name in GEMMS {
            for (m, n, k) in PRODUCTS {
                let desc = Desc { rows: m, cols: n, depth: k, groups: 1 };
                row(&compiler, name, device, desc, product(m, n, k, name != GEMMS[0]))?;
            }
        }
    }
    Ok(())
}
