//! The operands of a GEMM as a file holds them, and what the arguments add to that.

use crate::checkpoint::{Checkpoint, ReadAs, ScaleStorage, ScaledTensor};
use crate::formats::Format;
use crate::scaled::Granule;
use crate::{Error, Result};

// A comment for clap would replace the text of the subcommand: what the shapes and dtypes of a and b do not say.
#[derive(clap::Args)]
pub(crate) struct OperandArgs {
    /// Granule of a's scales, such as 1x128
    #[arg(long, value_name = "RxC")]
    granule_a: Option<Granule>,

    /// Granule of b's scales, such as 128x128
    #[arg(long, value_name = "RxC")]
    granule_b: Option<Granule>,

    /// Format of a's codes, where its dtype is U8 or U16
    #[arg(long, value_name = "FORMAT")]
    format_a: Option<Format>,

    /// Format of b's codes, where its dtype is U8 or U16
    #[arg(long, value_name = "FORMAT")]
    format_b: Option<Format>,

    /// a's codes lie two in a byte, the low half first
    #[arg(long, requires = "format_a")]
    packed_a: bool,

    /// b's codes lie two in a byte, the low half first
    #[arg(long, requires = "format_b")]
    packed_b: bool,

    /// Format of a's scales, where their dtype is U8: e8m0 or e4m3
    #[arg(long, value_name = "FORMAT")]
    scale_format_a: Option<Format>,

    /// Format of b's scales, where their dtype is U8: e8m0 or e4m3
    #[arg(long, value_name = "FORMAT")]
    scale_format_b: Option<Format>,

    /// How a's scales are stored: row-major, transposed, padded, transposed-padded (MN-major, as TMA and cuBLAS read them),
    /// leading
    #[arg(long, value_name = "LAYOUT", default_value = "row-major")]
    scale_layout_a: ScaleStorage,

    /// How b's scales are stored, likewise
    #[arg(long, value_name = "LAYOUT", default_value = "row-major")]
    scale_layout_b: ScaleStorage,
}

impl OperandArgs {
    /// Whether the scales of both are stored as this library holds them.
    pub(crate) fn is_row_major(&self) -> bool {
        [self.scale_layout_a, self.scale_layout_b].iter().all(|layout| *layout == ScaleStorage::RowMajor)
    }

    /// Reads a and b.
    pub(crate) fn read(&self, file: &Checkpoint) -> Result<(ScaledTensor, ScaledTensor)> {
        let a = ReadAs {
            format: self.format_a,
            packed: self.packed_a,
            scale_format: self.scale_format_a,
            granule: self.granule_a,
            storage: self.scale_layout_a,
            suffix: "-a",
        };
        let b = ReadAs {
            format: self.format_b,
            packed: self.packed_b,
            scale_format: self.scale_format_b,
            granule: self.granule_b,
            storage: self.scale_layout_b,
            suffix: "-b",
        };
        Ok((read(file, "a", &a)?, read(file, "b", &b)?))
    }
}

/// Reads tensor `name` and what belongs to it; `name_scale_inv` also for a and b that are no codes.
fn read(file: &Checkpoint, name: &str, read_as: &ReadAs) -> Result<ScaledTensor> {
    let info = file.info(name)?;
    if info.shape.len() < 2 {
        return Err(file.blame(name, format!("shape {:?}, expected a matrix", info.shape)));
    }
    let key = format!("{name}_scale_inv");
    let operand = ScaledTensor::read_operand(file, name, &key, read_as)?;
    match read_as.granule {
        Some(granule) if !operand.has_scales() => {
            Err(file.blame(&key, format!("not in the file, but --granule-{name} is {granule}")))
        }
        _ => Ok(operand),
    }
}

/// The error of a product whose result would not fit.
pub(crate) fn require_room(rows: usize, cols: usize) -> Result<()> {
    // The result, its copy as a tensor, and once more to look for what is not finite.
    const COPIES: u64 = 3;
    let bytes = crate::checkpoint::matrix_bytes(rows, cols, size_of::<f32>());
    let bytes = bytes.and_then(|bytes| bytes.checked_mul(COPIES));
    crate::checkpoint::require_memory(&format!("d [{rows}, {cols}]"), bytes)
        .map_err(|e| Error::Shape(e.to_string()))
}
