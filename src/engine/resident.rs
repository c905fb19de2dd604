//! Operands that are put where an engine works, once.

use super::{Engine, Place};
use crate::error::{Error, Result};
use crate::scaled::{Kept, Resident, ScaledRef};

impl Engine<'_> {
    /// Puts a matrix where the engine works, so that products in a loop do not put it there again: on a device into its
    /// memory, as its kernels like it; on a CPU it is copied, and packed when a product of more than 32 rows first has it as B,
    /// for the instruction set and the promotion interval of that product.
    ///
    /// Packed weights take 2 bytes an element for BF16 instructions and 4 for f32. With N = K = 4096 and BF16 they made
    /// products of 40 rows 1.4 times as fast, of 64 to 256 rows 1.05 to 1.1 times, of 1024 rows no faster (Zen 4, one and two
    /// threads). Up to 32 rows the codes are read as they are: there reading is what limits, and packed they are the longer.
    ///
    /// ```
    /// use finegrain::Engine;
    /// use finegrain::gemm::GemmProblem;
    /// use finegrain::matrix::Matrix;
    /// use finegrain::quant::{Recipe, Role};
    /// let engine = Engine::cpu(); // or Engine::by_name("cuda")?
    /// let w = engine.quantize(Matrix::filled(8, 256, 0.5f32).view(), &Recipe::DEEPSEEK_V3, Role::Weight)?.matrix;
    /// let w = engine.upload(w.view())?;
    /// for step in 0..3 {
    ///     let x = Matrix::from_fn(4, 256, |i, j| ((step + i * j) % 7) as f32);
    ///     let x = engine.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
    ///     let y = engine.gemm(&GemmProblem::nt(x.view(), w.view())?)?;
    ///     assert_eq!(y.shape(), (4, 8));
    /// }
    /// assert_eq!(w.download()?.shape(), (8, 256));
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what the engine does not read, or if the view starts inside a granule; what a device
    /// says.
    pub fn upload(&self, x: ScaledRef<'_>) -> Result<Resident> {
        Ok(self.upload_group(&[x])?.remove(0))
    }

    /// The same with the matrices of a group, all of one shape: the experts of a layer. A grouped product takes them
    /// together, in this order, as they lie.
    ///
    /// # Errors
    /// As [`Engine::upload`]; [`Error::Unsupported`] if their shapes or granules differ.
    pub fn upload_group(&self, group: &[ScaledRef<'_>]) -> Result<Vec<Resident>> {
        if let Some(x) = group.iter().find(|x| x.row_offset() != 0) {
            let message = format!("a view from row {} of a granule cannot be kept", x.row_offset());
            return Err(Error::Unsupported(message));
        }
        match &self.place {
            Place::Cpu(..) => {
                let keep = |x: &ScaledRef<'_>| {
                    x.fetch()?;
                    Ok(Kept::resident(x.to_matrix()))
                };
                group.iter().map(keep).collect()
            }
            Place::Device(device) => device.keep(group),
        }
    }
}
