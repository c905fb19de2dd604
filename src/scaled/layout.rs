//! The layouts in which GPU kernels read scale grids.
//!
//! A layout is one function, [`ScaleLayout::offset`]: where the scale at (i, j) of a grid [rows, cols] lies in a flat
//! buffer, and one length, [`ScaleLayout::stored_len`]. Storing and loading follow from these two; places that no
//! scale maps to are padding and hold 0. Row i counts along M (or N), column j along K.
//!
//! | layout | buffer | offset of (i, j) |
//! |---|---|---|
//! | row-major | [rows, cols] | i·cols + j |
//! | MN-major for TMA, cuBLAS 1D | [cols, pad4(rows)] | j·pad4(rows) + i |
//! | packed UE8M0, in bytes | [⌈cols/4⌉, pad4(rows), 4] | (⌊j/4⌋·pad4(rows) + i)·4 + j mod 4 |
//! | cuBLAS 2D | [rows, pad4(cols)] | i·pad4(cols) + j |
//! | 128×4 swizzle | [⌈rows/128⌉, ⌈cols/4⌉, 32, 4, 4] | 512·tile + (r mod 32)·16 + ⌊r/32⌋·4 + j mod 4, r = i mod 128 |
//!
//! Sources: DeepGEMM (`get_mn_major_tma_aligned_tensor`, `get_mn_major_tma_aligned_packed_ue8m0_tensor`),
//! TransformerEngine's GEMM-ready block scales, and cuBLAS's "1D block scaling factors layout" for the swizzle.
//!
//! DeepGEMM's two layouts of the same scales, f32 for SM90 and packed bytes for SM100:
//!
//! ```
//! use finegrain::matrix::Matrix;
//! use finegrain::scaled::layout::{ScaleLayout, pack_ue8m0, to_e8m0};
//!
//! // Three tokens, two granules along K.
//! let scales = Matrix::from_vec(3, 2, vec![1.0f32, 0.5, 2.0, 0.25, 4.0, 1.0])?;
//! let stored = ScaleLayout::MnMajorTma.store(scales.view());
//! assert_eq!(stored, [1.0, 2.0, 4.0, 0.0, 0.5, 0.25, 1.0, 0.0]);
//! assert_eq!(ScaleLayout::MnMajorTma.load(&stored, 3, 2)?, scales);
//!
//! let words = pack_ue8m0(to_e8m0(scales.view())?.view());
//! assert_eq!(words, [0x7E7F, 0x7D80, 0x7F81, 0]);
//! # Ok::<(), finegrain::Error>(())
//! ```

use crate::error::{Error, Result};
use crate::formats::e8m0;
use crate::matrix::{MatRef, Matrix};

/// Strides are padded to this many scales: 16 bytes of f32, what TMA and cuBLAS ask for; also the scales in one word
/// and the columns of a swizzle tile.
const ALIGN: usize = 4;
/// Rows of a swizzle tile.
const TILE_ROWS: usize = 128;
/// Rows of a swizzle tile that lie at consecutive 16-byte steps; the four groups of them interleave.
const TILE_STEP_ROWS: usize = 32;
/// Bytes between those steps: four groups of four columns.
const TILE_STEP: usize = 16;

/// Where the scales of a grid lie in a flat buffer. See the [module](self) for the table of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// As checkpoints and this library hold them.
    RowMajor,
    /// DeepGEMM's layout of f32 scales on SM90: MN-major, the column stride padded to 16 bytes for TMA.
    MnMajorTma,
    /// DeepGEMM's layout of E8M0 bytes on SM100: four along K to a little-endian word ([`pack_ue8m0`] gives the
    /// words), words MN-major with a padded column stride.
    PackedUe8m0,
    /// TransformerEngine's GEMM-ready scales of 1×128 tiles, as cuBLAS reads them: [K/128, pad4(M)]. The bytes of
    /// [`ScaleLayout::MnMajorTma`] under cuBLAS's name.
    Cublas1d,
    /// The same of 128×128 blocks: [M/128, pad4(K/128)].
    Cublas2d,
    /// Bytes of MXFP8 and NVFP4: tiles of 128 rows × 4 columns, row-major over the grid padded to whole tiles.
    Swizzle128x4,
}

impl ScaleLayout {
    /// Every layout.
    pub const ALL: [ScaleLayout; 6] = [
        ScaleLayout::RowMajor,
        ScaleLayout::MnMajorTma,
        ScaleLayout::PackedUe8m0,
        ScaleLayout::Cublas1d,
        ScaleLayout::Cublas2d,
        ScaleLayout::Swizzle128x4,
    ];

    /// The place of the scale at (i, j) of a grid [rows, cols], in scales from the start of the buffer.
    ///
    /// # Panics
    /// If (i, j) is not in the grid.
    pub fn offset(self, i: usize, j: usize, rows: usize, cols: usize) -> usize {
        assert!(i < rows && j < cols, "scale ({i}, {j}) of a {rows}×{cols} grid");
        match self {
            ScaleLayout::RowMajor => i * cols + j,
            ScaleLayout::MnMajorTma | ScaleLayout::Cublas1d => j * rows.next_multiple_of(ALIGN) + i,
            ScaleLayout::PackedUe8m0 => (j / ALIGN * rows.next_multiple_of(ALIGN) + i) * ALIGN + j % ALIGN,
            ScaleLayout::Cublas2d => i * cols.next_multiple_of(ALIGN) + j,
            ScaleLayout::Swizzle128x4 => {
                let (tile, r) = (i / TILE_ROWS * cols.div_ceil(ALIGN) + j / ALIGN, i % TILE_ROWS);
                let in_tile = r % TILE_STEP_ROWS * TILE_STEP + r / TILE_STEP_ROWS * ALIGN + j % ALIGN;
                tile * TILE_ROWS * ALIGN + in_tile
            }
        }
    }

    /// Scales in the buffer of a grid [rows, cols], padding included; `usize::MAX` for a grid too large to exist.
    pub fn stored_len(self, rows: usize, cols: usize) -> usize {
        let pad = |n: usize, to: usize| n.div_ceil(to).saturating_mul(to);
        let (rows, cols) = match self {
            ScaleLayout::RowMajor => (rows, cols),
            ScaleLayout::MnMajorTma | ScaleLayout::Cublas1d => (pad(rows, ALIGN), cols),
            ScaleLayout::PackedUe8m0 => (pad(rows, ALIGN), pad(cols, ALIGN)),
            ScaleLayout::Cublas2d => (rows, pad(cols, ALIGN)),
            ScaleLayout::Swizzle128x4 => (pad(rows, TILE_ROWS), pad(cols, ALIGN)),
        };
        rows.saturating_mul(cols)
    }

    /// The buffer of a grid; padding is `T::default()`, zero for every type of scale.
    pub fn store<T: Copy + Default>(self, grid: MatRef<'_, T>) -> Vec<T> {
        self.store_padded(grid, T::default())
    }

    /// The same with other padding, which no kernel may let into a result.
    pub fn store_padded<T: Copy>(self, grid: MatRef<'_, T>, padding: T) -> Vec<T> {
        let (rows, cols) = grid.shape();
        let mut stored = vec![padding; self.stored_len(rows, cols)];
        for (i, row) in grid.iter_rows().enumerate() {
            for (j, &scale) in row.iter().enumerate() {
                stored[self.offset(i, j, rows, cols)] = scale;
            }
        }
        stored
    }

    /// The grid [rows, cols] of a buffer: the inverse of [`ScaleLayout::store`]. Padding is not looked at.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer has not the length that layout and grid ask for.
    pub fn load<T: Copy>(self, stored: &[T], rows: usize, cols: usize) -> Result<Matrix<T>> {
        self.check_len(stored.len(), self.stored_len(rows, cols), rows, cols)?;
        Ok(Matrix::from_fn(rows, cols, |i, j| stored[self.offset(i, j, rows, cols)]))
    }

    fn check_len(self, found: usize, expected: usize, rows: usize, cols: usize) -> Result<()> {
        if found != expected {
            return Err(Error::Shape(format!(
                "{self:?} buffer has {found} elements, expected {expected} for a {rows}×{cols} grid of scales"
            )));
        }
        Ok(())
    }
}

/// The E8M0 bytes of f32 scales that are powers of two, exact.
///
/// # Errors
/// [`Error::Invalid`] with place and value of the first scale that is not one of 2^-127 … 2^127. Rounding such a scale
/// would change every value it dequantises; requantise instead.
pub fn to_e8m0(scales: MatRef<'_, f32>) -> Result<Matrix<u8>> {
    let mut bytes = Vec::with_capacity(scales.rows() * scales.cols());
    for (i, row) in scales.iter_rows().enumerate() {
        for (j, &s) in row.iter().enumerate() {
            // −127 is the least exponent with a byte, and byte 0 stands for it.
            match e8m0::exact_log2(s).and_then(|e| u8::try_from(e + i32::from(e8m0::ONE)).ok()) {
                Some(byte) => bytes.push(byte),
                None => {
                    return Err(Error::Invalid(format!(
                        "scale ({i}, {j}) is {s:e}, not a power of two from 2^-127 to 2^127"
                    )));
                }
            }
        }
    }
    Matrix::from_vec(scales.rows(), scales.cols(), bytes)
}

/// E8M0 bytes in [`ScaleLayout::PackedUe8m0`], as the int32 words that DeepGEMM takes: the byte of granule 4w along K is
/// the lowest of word w.
pub fn pack_ue8m0(grid: MatRef<'_, u8>) -> Vec<i32> {
    let bytes = ScaleLayout::PackedUe8m0.store(grid);
    bytes.as_chunks().0.iter().map(|&word| i32::from_le_bytes(word)).collect()
}

/// The inverse of [`pack_ue8m0`] for a grid [rows, cols] of bytes.
///
/// # Errors
/// [`Error::Shape`] if the number of words is not ⌈cols/4⌉ · pad4(rows).
pub fn unpack_ue8m0(words: &[i32], rows: usize, cols: usize) -> Result<Matrix<u8>> {
    let layout = ScaleLayout::PackedUe8m0;
    layout.check_len(words.len(), layout.stored_len(rows, cols) / ALIGN, rows, cols)?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    layout.load(&bytes, rows, cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scale (i, j) is 10·(i + 1) + j + 1: its place can be read off.
    fn grid(rows: usize, cols: usize) -> Matrix<u8> {
        Matrix::from_fn(rows, cols, |i, j| (10 * (i + 1) + j + 1) as u8)
    }

    #[test]
    fn small_layouts_written_out() {
        let g = grid(3, 2);
        assert_eq!(ScaleLayout::RowMajor.store(g.view()), [11, 12, 21, 22, 31, 32]);
        for layout in [ScaleLayout::MnMajorTma, ScaleLayout::Cublas1d] {
            assert_eq!(layout.store(g.view()), [11, 21, 31, 0, 12, 22, 32, 0]);
        }
        assert_eq!(
            ScaleLayout::Cublas2d.store(grid(2, 5).view()),
            [11, 12, 13, 14, 15, 0, 0, 0, 21, 22, 23, 24, 25, 0, 0, 0]
        );
        // Five granules along K: a word of four and a word of one, for two rows padded to four.
        let packed = ScaleLayout::PackedUe8m0.store(grid(2, 5).view());
        assert_eq!(packed[..8], [11, 12, 13, 14, 21, 22, 23, 24]);
        assert_eq!(packed[8..16], [0; 8]);
        assert_eq!(packed[16..], [15, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn packed_words_are_little_endian_along_k() {
        let g = Matrix::from_vec(1, 5, vec![0x7F, 0x80, 0x01, 0xFE, 0x7E]).unwrap();
        assert_eq!(pack_ue8m0(g.view()), [0xFE01_807Fu32 as i32, 0, 0, 0, 0x7E, 0, 0, 0]);
    }

    /// A tile is 32 steps of 16 bytes; step s holds four columns of rows s, s + 32, s + 64, s + 96 (cuBLAS).
    #[test]
    fn swizzle_is_the_documented_tile() {
        let at = |i, j| ScaleLayout::Swizzle128x4.offset(i, j, 200, 7);
        let tile: Vec<(usize, usize)> = vec![(0, 0), (0, 3), (1, 0), (31, 0), (32, 0), (96, 2), (127, 3)];
        let places: Vec<usize> = tile.into_iter().map(|(i, j)| at(i, j)).collect();
        assert_eq!(places, [0, 3, 16, 496, 4, 14, 511]);
        // The second tile of the first row, then the tiles of the second row.
        assert_eq!([at(0, 4), at(128, 0), at(128, 4), at(199, 6)], [512, 1024, 1536, 1536 + 7 * 16 + 8 + 2]);
        assert_eq!(ScaleLayout::Swizzle128x4.stored_len(200, 7), 2048);
    }

    #[test]
    fn ragged_grids_come_back_and_padding_is_zero() {
        for rows in [0, 1, 3, 4, 5, 31, 33, 127, 128, 129, 300] {
            for cols in [0, 1, 3, 4, 5, 8, 9] {
                // Never 0, so that what is 0 in the buffer is padding.
                let f32s = Matrix::from_fn(rows, cols, |i, j| (1 + i * cols + j) as f32);
                let bytes = f32s.map(|&x| 1 + (x as usize % 255) as u8);
                for layout in ScaleLayout::ALL {
                    let stored = layout.store(f32s.view());
                    assert_eq!(stored.len(), layout.stored_len(rows, cols));
                    assert_eq!(stored.iter().filter(|&&x| x != 0.0).count(), rows * cols, "{layout:?}");
                    assert_eq!(layout.load(&stored, rows, cols).unwrap(), f32s, "{layout:?} {rows}×{cols}");
                    let stored = layout.store(bytes.view());
                    assert_eq!(layout.load(&stored, rows, cols).unwrap(), bytes, "{layout:?} {rows}×{cols}");
                }
                let words = pack_ue8m0(bytes.view());
                assert_eq!(words.len(), cols.div_ceil(4) * rows.next_multiple_of(4));
                assert_eq!(unpack_ue8m0(&words, rows, cols).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn wrong_lengths_are_named() {
        let message = ScaleLayout::Cublas1d.load(&[0f32; 9], 3, 2).unwrap_err().to_string();
        assert!(message.contains("has 9 elements, expected 8 for a 3×2 grid"), "{message}");
        let message = unpack_ue8m0(&[0; 7], 3, 2).unwrap_err().to_string();
        assert!(message.contains("has 7 elements, expected 4 for a 3×2 grid"), "{message}");
        for layout in ScaleLayout::ALL {
            assert!(layout.load(&[0u8; 4], usize::MAX, usize::MAX).is_err());
        }
    }

    #[test]
    fn only_powers_of_two_become_bytes() {
        let all = Matrix::from_fn(5, 51, |i, j| e8m0::to_f32((51 * i + j) as u8));
        assert_eq!(to_e8m0(all.view()).unwrap(), Matrix::from_fn(5, 51, |i, j| (51 * i + j) as u8));
        let below = f32::from_bits(1 << 21); // 2^-128
        for bad in [0.3, 0.0, -1.0, f32::NAN, f32::INFINITY, below, 1f32.next_up()] {
            let mut scales = Matrix::filled(3, 4, 1.0);
            scales.row_mut(2)[1] = bad;
            let message = to_e8m0(scales.view()).unwrap_err().to_string();
            assert!(message.contains("scale (2, 1)") && message.contains(&format!("{bad:e}")), "{message}");
        }
    }
}
