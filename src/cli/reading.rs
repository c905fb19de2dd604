//! What a file does not say of its codes and scales: arguments of every subcommand that reads them.

use crate::checkpoint::{Checkpoint, ReadAs, ScaleStorage, ScaledTensor, Tensor};
use crate::formats::Format;
use crate::matrix::Matrix;
use crate::scaled::Granule;

use crate::cli::Failure;
use crate::cli::output::shape;

// A comment for clap would replace the text of the subcommand.
#[derive(clap::Args, Clone, Copy, Default, PartialEq)]
pub(crate) struct ReadingArgs {
    /// Elements that share a scale, such as 64x64, for scale grids of another granule than tensor, row, 1x128, 128x128,
    /// 1x32, 1x16 and 32x32
    #[arg(long, value_name = "RxC")]
    granule: Option<Granule>,

    /// Format of codes that are stored as integers
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Codes of --format lie two in a byte, the low half first
    #[arg(long)]
    packed: bool,

    /// Format of scales that are stored as integers: e8m0 or e4m3
    #[arg(long, value_name = "FORMAT")]
    scale_format: Option<Format>,

    /// How scales are stored: row-major; transposed; padded or transposed-padded to multiples of 4; leading: one for each
    /// index of the leading dimensions
    #[arg(long, value_name = "LAYOUT", default_value = "row-major")]
    scale_layout: ScaleStorage,
}

impl ReadingArgs {
    pub(crate) fn read_as(&self) -> Result<ReadAs, Failure> {
        if self.packed && self.format.is_none_or(|f| f.spec().bits() != 4) {
            return Err(Failure::Usage("--packed is for a --format of 4 bits".to_owned()));
        }
        Ok(ReadAs {
            format: self.format,
            packed: self.packed,
            scale_format: self.scale_format,
            granule: self.granule,
            storage: self.scale_layout,
            suffix: "",
        })
    }
}

/// The values of a tensor as a matrix: codes times their scales, floats as they are. All dimensions but the last are rows.
pub(crate) fn read_values(file: &Checkpoint, name: &str, read_as: &ReadAs) -> crate::Result<Matrix<f32>> {
    let info = file.info(name)?;
    if info.shape.len() < 2 {
        return Err(file.blame(name, format!("shape {}, expected a matrix", shape(&info.shape))));
    }
    // A product with it may still be larger than any memory.
    if info.elements() == 0 {
        return Err(file.blame(name, format!("shape {} has no elements", shape(&info.shape))));
    }
    if let Some((codes, _)) = file.pairs().owner(name) {
        return Err(file.blame(name, format!("holds scales of '{codes}', which is what has values")));
    }
    if !file.pairs().is_codes(name) {
        if !Tensor::is_float(info.dtype) {
            return Err(
                file.blame(name, format!("dtype {}, expected floats, or codes with scales", info.dtype))
            );
        }
        return file.read(name)?.to_matrix().map_err(|e| file.blame(name, e));
    }
    let codes = ScaledTensor::read(file, name, read_as)?;
    let values = codes.dequantize().map_err(|e| file.blame(name, e))?;
    let (cols, rows) = codes.shape().split_last().map_or((1, 1), |(c, lead)| (*c, lead.iter().product()));
    Matrix::from_vec(rows, cols, values)
}
