//! The CUDA kernels on the machine's first device, each answer compared with the library before it is timed:
//! `cargo bench --features cuda --bench cuda`. Without a device it says so and does nothing.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/cuda/support/device_bench.rs"]
#[allow(unreachable_pub)]
mod device_bench;

use device_bench::{Sizes, run};
use finegrain::cuda::roofline::DeviceSpec;
use finegrain::cuda::{CudaDriver, Driver};

/// Shapes of DeepSeek-V3, as DeepGEMM lists them.
fn sizes() -> Sizes {
    let weights = [(2112, 7168), (24_576, 1536), (7168, 2048), (4096, 7168)];
    let products = [64, 128, 4096].iter().flat_map(|&m| weights.map(|(n, k)| (m, n, k))).collect();
    Sizes { runs: 20, matrix: (4096, 7168), products, groups: (1024, 4096, 7168) }
}

fn main() -> finegrain::Result<()> {
    let driver = match CudaDriver::new(0) {
        Ok(driver) => driver,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    let (name, [driver_version, nvrtc]) = (driver.name()?, driver.versions()?);
    let version = |(major, minor)| format!("{major}.{minor}");
    println!(
        "device: {name} ({}), driver for CUDA {}, NVRTC {}",
        driver.arch(),
        version(driver_version),
        version(nvrtc)
    );
    for line in run(driver, DeviceSpec::by_name(&name), &sizes())? {
        println!("{line}");
    }
    Ok(())
}
