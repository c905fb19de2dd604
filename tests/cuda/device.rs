//! On a real GPU: everything that the launcher computes, compared with the library. Without one the tests say so; with
//! FINEGRAIN_REQUIRE_GPU=1 that is a failure.

use crate::common::operands::scaled;
use crate::support::device_checks;
use cudarc::driver::sys::is_culib_present;
use finegrain::Engine;
use finegrain::cuda::{Cuda, CudaDriver};
use finegrain::formats::Format::E4M3;
use finegrain::gemm::GemmProblem;
use finegrain::scaled::Granule;

/// The machine's first device, or `None` where there is none and need not be.
fn gpu() -> Option<Cuda> {
    match CudaDriver::new(0) {
        Ok(driver) => Some(Cuda::new(driver)),
        Err(why) => {
            let required = std::env::var_os("FINEGRAIN_REQUIRE_GPU").is_some_and(|v| v == "1");
            assert!(!required, "{why}, and FINEGRAIN_REQUIRE_GPU is set");
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn casts_are_the_references() {
    let Some(gpu) = gpu() else { return };
    let compared = device_checks::casts(&gpu, &[(150, 200), (3, 640), (1, 1), (1027, 7168)]);
    println!("{compared} elements compared");
}

#[test]
fn products_are_the_references() {
    let Some(gpu) = gpu() else { return };
    let shapes = [(130, 140, 300), (1, 3, 128), (64, 128, 77), (200, 576, 7168), (512, 1024, 512)];
    println!("{} values compared", device_checks::products(&gpu, &shapes));
}

#[test]
fn grouped_products_are_the_references() {
    let Some(gpu) = gpu() else { return };
    println!("{} values compared", device_checks::groups(&gpu, 300, 1024));
}

/// Statistics and values at the edges.
#[test]
fn operations_are_the_references() {
    let Some(gpu) = gpu() else { return };
    let ran = device_checks::operations(&gpu, &[(150, 200), (3, 640), (1, 1), (257, 1024)]);
    println!("{ran} comparisons");
}

#[test]
fn residents_are_operands() {
    let Some(gpu) = gpu() else { return };
    println!("{} comparisons", device_checks::residents(&gpu));
}

/// The device under its name among the backends: its bits, or the reason why there are none.
#[test]
fn the_backend_can_be_named() {
    let (a, b) =
        (scaled(E4M3, 9, 256, Granule::TILE_1X128, 1), scaled(E4M3, 10, 256, Granule::BLOCK_128X128, 2));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    match gpu() {
        Some(_) => {
            let cuda = Engine::by_name("cuda").unwrap();
            assert_eq!(cuda.gemm(&problem).unwrap(), problem.run().unwrap());
        }
        None => {
            let why = CudaDriver::new(0).unwrap_err().to_string();
            assert_eq!(Engine::by_name("cuda").unwrap_err().to_string(), why);
        }
    }
}

/// Where cudarc would panic, there is an error with a sentence.
#[test]
fn without_a_driver_there_is_an_error() {
    // SAFETY: it only tries to load the library.
    if unsafe { is_culib_present() } {
        println!("skipped: there is a CUDA driver");
        return;
    }
    let why = CudaDriver::new(0).unwrap_err().to_string();
    assert!(why.contains("no CUDA driver on this machine: libcuda was not found"), "{why}");
}
