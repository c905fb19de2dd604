//! The CUDA kernels on the machine's first device, each answer compared with the library before it is timed:
//! `cargo bench --features cuda --bench cuda`. Without a device it says so and does nothing.

#[path = "../tests/common/device_bench.rs"]
mod device_bench;
#[path = "../tests/common/device_checks.rs"]
mod device_checks;
#[path = "../tests/common/operands.rs"]
mod operands;

use device_bench::{Sizes, run};
use finegrain::cuda::roofline::DeviceSpec;
use finegrain::cuda::{CudaDriver, Driver};

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
    for line in run(driver, DeviceSpec::by_name(&name), &Sizes::real())? {
        println!("{line}");
    }
    Ok(())
}
