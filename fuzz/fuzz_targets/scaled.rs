//! Scaled matrices of any small shape, granule and grid: what is constructed can be dequantised.
#![no_main]

use arbitrary::Arbitrary;
use finegrain::checkpoint::{Dtype, Tensor, dequantize_tensor};
use finegrain::formats::Format;
use finegrain::matrix::{MatRef, Matrix};
use finegrain::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    format: u8,
    shape: Vec<u8>,
    grid: Vec<u8>,
    granule: Option<(u8, u8)>,
    codes: Vec<u8>,
    scale: f32,
}

/// No dimension beyond this: small matrices reach every branch.
const SIDE: usize = 40;

fn sizes(bytes: &[u8]) -> Vec<usize> {
    bytes.iter().take(4).map(|&b| usize::from(b) % SIDE).collect()
}

fuzz_target!(|input: Input| {
    let format = Format::ALL[usize::from(input.format) % Format::ALL.len()];
    let (shape, grid) = (sizes(&input.shape), sizes(&input.grid));
    let (elements, scales): (usize, usize) = (shape.iter().product(), grid.iter().product());
    if elements > 1 << 14 || scales > 1 << 14 {
        return;
    }
    let granule = input.granule.and_then(|(r, c)| Granule::new(usize::from(r), usize::from(c)).ok());
    let code = |i: usize| input.codes.get(i % input.codes.len().max(1)).copied().unwrap_or(0);
    let wide = format.spec().bits() > 8;
    let codes: Vec<u8> = (0..elements * if wide { 2 } else { 1 }).map(code).collect();
    let scale_values = vec![input.scale; scales];

    let dtype = if wide { Dtype::U16 } else { Dtype::U8 };
    let codes_tensor = Tensor::new(dtype, shape.clone(), codes.clone()).unwrap();
    let scale_bytes = scale_values.iter().flat_map(|s| s.to_le_bytes()).collect();
    let scale_tensor = Tensor::new(Dtype::F32, grid.clone(), scale_bytes).unwrap();
    if let Ok((values, _)) = dequantize_tensor(&codes_tensor, format, &scale_tensor, None, granule) {
        assert_eq!(values.len(), elements);
    }

    let (&[rows, cols], &[grid_rows, grid_cols]) = (shape.as_slice(), grid.as_slice()) else { return };
    let words: Matrix<u16>;
    let codes = if wide {
        words = codes_tensor.word_matrix().unwrap();
        CodesRef::Words(words.view())
    } else {
        CodesRef::Bytes(MatRef::new(&codes, rows, cols).unwrap())
    };
    let granule = granule.or_else(|| Granule::infer(&shape, &grid)).unwrap_or(Granule::TILE_1X128);
    let scale_grid = ScaleGridRef::F32(MatRef::new(&scale_values, grid_rows, grid_cols).unwrap());
    let scales = ScalesRef { granule, grid: scale_grid, tensor: 1.0 };
    if let Ok(scaled) = ScaledRef::new(format, codes, Some(scales)) {
        let whole = scaled.dequantize().unwrap();
        assert_eq!(whole.shape(), (rows, cols));
        for start in 0..rows.min(3) {
            let part = scaled.row_range(start, rows).dequantize().unwrap();
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            assert!(part.as_slice().iter().zip(&whole.as_slice()[start * cols..]).all(same));
        }
    }
});
