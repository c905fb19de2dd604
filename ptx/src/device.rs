//! The device: global memory and launches.

use crate::exec::{self, Launch, Options};
use crate::fault::{Fault, FaultKind};
use crate::memory::Global;
use crate::ptx::Module;
use crate::report::Report;

/// An emulated GPU.
///
/// ```
/// use ptx_emulator::{Arg, Device, Launch, Module, Options};
/// let module = Module::parse(
///     ".version 8.0\n.target sm_89\n.address_size 64\n\
///      .visible .entry number(.param .u64 out) {\n\
///        .reg .b32 %r<2>; .reg .b64 %rd<4>;\n\
///        ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x;\n\
///        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;\n\
///        st.global.u32 [%rd3], %r1; ret; }",
/// )?;
/// let mut device = Device::new();
/// let out = device.alloc(4 * 64);
/// let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], dynamic_shared: 0, args: vec![Arg::Ptr(out)] };
/// let report = device.launch(&module, "number", &launch, &Options::default())?;
/// assert_eq!(device.read(out + 4 * 63, 4)?, 63u32.to_le_bytes());
/// assert_eq!(report.sectors(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct Device {
    global: Global,
}

impl Device {
    /// A device with nothing allocated.
    pub fn new() -> Self {
        Device::default()
    }

    /// Allocates `bytes` of global memory, aligned to 256, of which nothing is written yet.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        self.global.alloc(bytes)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// [`FaultKind::GlobalOutOfBounds`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), FaultKind> {
        let (segment, at) = self.global.find(address, bytes.len())?;
        segment.write(at, bytes, true, None)
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// [`FaultKind::GlobalOutOfBounds`]; [`FaultKind::UninitialisedMemory`] where nothing was written.
    pub fn read(&mut self, address: u64, len: usize) -> Result<Vec<u8>, FaultKind> {
        let (segment, at) = self.global.find(address, len)?;
        segment.read(at, len, None).map(<[u8]>::to_vec)
    }

    /// Runs a kernel to its end, blocks one after the other.
    ///
    /// # Errors
    /// The first [`Fault`]; memory is then as the kernel left it.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        launch: &Launch,
        options: &Options,
    ) -> Result<Report, Fault> {
        exec::launch(&mut self.global, module, kernel, launch, options)
    }
}
