//! What a kernel can reach at best, from what the compiler made of it and from what makers publish of their devices:
//! an estimate, never a measurement.
//!
//! The model: every byte of the operands and the result passes through memory once; the tensor cores, the f32 units and
//! memory each work at their published peak; the blocks run in waves of as many as the multiprocessors hold, the last
//! one as long as the others. [`Estimate::at_least`] lets all three work at once, [`Estimate::without_overlap`] one after
//! the other.

use super::arch::Arch;
use super::compile::Resources;
use super::kernels::{Desc, Kernel};

/// A device as its maker describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceSpec {
    /// Its name, as the driver says it.
    pub name: &'static str,
    /// What it runs.
    pub arch: Arch,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Memory, in 10^9 bytes a second.
    pub memory: f64,
    /// FP8 tensor cores with f32 results, without sparsity, in 10^12 operations a second.
    pub fp8: f64,
    /// f32, in 10^12 operations a second; a fused multiply-add is two.
    pub f32: f64,
}

/// Devices and their published peaks: NVIDIA's data sheets of the L40S, the H100 (SXM) and the H200, and its Ada white paper
/// for the RTX 4090.
pub const DEVICES: &[DeviceSpec] = &[
    DeviceSpec {
        name: "NVIDIA L40S",
        arch: Arch::Sm89,
        multiprocessors: 142,
        memory: 864.0,
        fp8: 733.0,
        f32: 91.6,
    },
    DeviceSpec {
        name: "NVIDIA GeForce RTX 4090",
        arch: Arch::Sm89,
        multiprocessors: 128,
        memory: 1008.0,
        fp8: 330.3,
        f32: 82.6,
    },
    DeviceSpec {
        name: "NVIDIA H100 80GB HBM3",
        arch: Arch::Sm90a,
        multiprocessors: 132,
        memory: 3350.0,
        fp8: 1979.0,
        f32: 66.9,
    },
    DeviceSpec {
        name: "NVIDIA H200",
        arch: Arch::Sm90a,
        multiprocessors: 132,
        memory: 4800.0,
        fp8: 1979.0,
        f32: 66.9,
    },
];

impl DeviceSpec {
    /// The device of this name.
    pub fn by_name(name: &str) -> Option<&'static DeviceSpec> {
        DEVICES.iter().find(|d| d.name == name)
    }
}

/// Blocks that one multiprocessor holds at a time: as registers, shared memory, threads and its slots for blocks allow.
///
/// ```
/// use finegrain::cuda::kernels::Kernel;
/// use finegrain::cuda::roofline::blocks_a_multiprocessor;
/// use finegrain::cuda::{Arch, Resources};
/// let kernel = Kernel::by_name("quantize_1x128_f32").unwrap();
/// let with = |registers| Resources { registers, ..Resources::default() };
/// assert_eq!(blocks_a_multiprocessor(kernel, with(40), Arch::Sm89), 6); // 1536 threads
/// assert_eq!(blocks_a_multiprocessor(kernel, with(48), Arch::Sm89), 5); // 65536 registers
/// assert_eq!(blocks_a_multiprocessor(kernel, with(32), Arch::Sm90a), 8); // 2048 threads
/// ```
pub fn blocks_a_multiprocessor(kernel: &Kernel, resources: Resources, arch: Arch) -> u32 {
    const WARP: u32 = 32;
    /// The quarters of a multiprocessor have registers of their own.
    const QUARTERS: u32 = 4;
    let registers_a_warp = resources.registers.next_multiple_of(Arch::REGISTER_UNIT).max(1) * WARP;
    let warps = QUARTERS * (Arch::REGISTERS / QUARTERS / registers_a_warp);
    let shared = resources.shared + kernel.dynamic_shared + Arch::SHARED_OF_THE_SYSTEM;
    let limits = [
        warps / kernel.threads().div_ceil(WARP),
        arch.shared_of_multiprocessor() / shared,
        arch.threads_of_multiprocessor() / kernel.threads(),
        arch.blocks_of_multiprocessor(),
    ];
    limits.into_iter().min().unwrap_or(0)
}

/// What a launch has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of operands and result.
    pub bytes: f64,
    /// Operations of the tensor cores; a multiply-add is two.
    pub tensor: f64,
    /// Instructions of the f32 units.
    pub f32: f64,
}

/// A product in the `f32` model by the plain kernel, or by tensor cores with promotion every 128.
///
/// Bytes: codes, a scale for each row and 128 elements of K on one side and for each block on the other, D in f32.
/// f32 instructions: a product and a fused multiply-add for each promotion, a fused multiply-add for each step of the
/// plain kernel.
pub fn product(m: usize, n: usize, k: usize, tensor_cores: bool) -> Work {
    let [m, n, k] = [m, n, k].map(|x| x as f64);
    let intervals = (k / 128.0).ceil();
    let scales = m * intervals + (n / 128.0).ceil() * intervals;
    let promotions = 2.0 * m * n * intervals;
    Work {
        bytes: (m + n) * k + 4.0 * scales + 4.0 * m * n,
        tensor: if tensor_cores { 2.0 * m * n * k } else { 0.0 },
        f32: if tensor_cores { promotions } else { promotions + m * n * k },
    }
}

/// A quantiser or dequantiser of `elements`, with `bytes` an element in and out together, scales left out: they are less
/// than a thirtieth; with `instructions` of the f32 units each.
pub fn cast(elements: usize, bytes: usize, instructions: usize) -> Work {
    let [bytes, f32] = [bytes, instructions].map(|each| elements as f64 * each as f64);
    Work { bytes, tensor: 0.0, f32 }
}

/// What a launch takes at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Blocks that one multiprocessor holds.
    pub blocks: u32,
    /// The share of its threads that they are.
    pub occupancy: f64,
    /// Launched blocks over those that the waves have room for.
    pub filled: f64,
    /// Seconds for memory, tensor cores and f32 units.
    pub seconds: [f64; 3],
}

impl Estimate {
    /// The estimate for a launch; `None` where a device of another architecture is named or nothing is launched.
    pub fn of(
        kernel: &Kernel,
        resources: Resources,
        device: &DeviceSpec,
        desc: Desc,
        work: Work,
    ) -> Option<Estimate> {
        let grid = kernel.config(desc)?.grid;
        if !kernel.source.archs.contains(&device.arch) {
            return None;
        }
        let blocks = blocks_a_multiprocessor(kernel, resources, device.arch);
        let launched = grid.iter().map(|&n| f64::from(n)).product::<f64>();
        let room = f64::from(blocks * device.multiprocessors);
        let filled = launched / ((launched / room).ceil() * room);
        let occupancy =
            f64::from(blocks * kernel.threads()) / f64::from(device.arch.threads_of_multiprocessor());
        // An instruction of the f32 units is a fused multiply-add's worth: two operations.
        let seconds = [
            work.bytes / (device.memory * 1e9),
            work.tensor / (device.fp8 * 1e12 * filled),
            2.0 * work.f32 / (device.f32 * 1e12 * filled),
        ];
        Some(Estimate { blocks, occupancy, filled, seconds })
    }

    /// Seconds where memory, tensor cores and f32 units all work at once.
    pub fn at_least(&self) -> f64 {
        self.seconds.into_iter().fold(0.0, f64::max)
    }

    /// Seconds where each waits for the others.
    pub fn without_overlap(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// What takes longest.
    pub fn limit(&self) -> &'static str {
        let names = ["memory", "tensor cores", "f32 units"];
        let longest = self.at_least();
        names[self.seconds.iter().position(|&s| s == longest).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_and_registers_allow_one_block_of_a_gemm() {
        let with = |registers| Resources { registers, ..Resources::default() };
        for (name, arch) in
            [("sm89_e4m3_e4m3_gemm_promoted", Arch::Sm89), ("sm90a_e4m3_e4m3_gemm_promoted", Arch::Sm90a)]
        {
            let kernel = Kernel::by_name(name).unwrap();
            assert_eq!(blocks_a_multiprocessor(kernel, with(255), arch), 1, "{name}");
            assert_eq!(blocks_a_multiprocessor(kernel, with(64), arch), 1, "{name}: shared memory");
        }
    }

    #[test]
    fn a_product_written_out() {
        let kernel = Kernel::by_name("sm90a_e4m3_e4m3_gemm_promoted").unwrap();
        let device = DeviceSpec::by_name("NVIDIA H100 80GB HBM3").unwrap();
        let resources = Resources { registers: 255, ..Resources::default() };
        let desc = Desc { rows: 1280, cols: 2048, depth: 1024, groups: 1 };
        let work = product(1280, 2048, 1024, true);
        assert_eq!(work.bytes, 3328.0 * 1024.0 + 4.0 * (1280.0 * 8.0 + 16.0 * 8.0) + 4.0 * 1280.0 * 2048.0);
        assert_eq!((work.tensor, work.f32), (2.0 * 1280.0 * 2048.0 * 1024.0, 16.0 * 1280.0 * 2048.0));
        let estimate = Estimate::of(kernel, resources, device, desc, work).unwrap();
        // 160 tiles on 132 multiprocessors: two waves.
        assert_eq!((estimate.blocks, estimate.filled), (1, 160.0 / 264.0));
        assert_eq!(estimate.occupancy, 0.125);
        let tensor = work.tensor / (1979e12 * 160.0 / 264.0);
        assert!((estimate.seconds[1] / tensor - 1.0).abs() < 1e-12);
        assert_eq!(estimate.limit(), "tensor cores");
        assert!(estimate.without_overlap() > estimate.at_least());
        let ada = DeviceSpec::by_name("NVIDIA L40S").unwrap();
        assert_eq!(Estimate::of(kernel, resources, ada, desc, work), None);
    }
}
