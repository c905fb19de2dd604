//! Scale grids in the layouts of GPU kernels, and packed codes.

use super::{Vectors, random_matrix, tensor};
use crate::checkpoint::{Dtype, Tensor};
use crate::error::Result;
use crate::formats::{Format, e5m6, packed};
use crate::scaled::layout::{ScaleLayout, pack_ue8m0};

/// Grids of one word, ragged ones, and more than one swizzle tile each way.
const GRIDS: [(usize, usize); 6] = [(1, 1), (3, 2), (5, 9), (128, 4), (129, 7), (300, 17)];

pub(super) fn vectors() -> Result<Vectors> {
    let mut out = Vectors::new("layouts", "scale grids in the layouts of GPU kernels, and packed codes");
    for (rows, cols) in GRIDS {
        let f32s = random_matrix(rows, cols, 1, |r| f32::from_bits((120 << 23) + (r % (16 << 23)) as u32));
        let bytes = random_matrix(rows, cols, 2, |r| 100 + (r % 55) as u8);
        let (wide, narrow) = (format!("f32.{rows}x{cols}"), format!("e8m0.{rows}x{cols}"));
        out.input(&wide, None, Tensor::from_f32(&f32s));
        out.input(&narrow, None, Tensor::from_bytes(Dtype::F8_E8M0, &bytes));
        for layout in ScaleLayout::ALL {
            let name = format!("{layout:?}");
            let stored = layout.store(f32s.view());
            let stored = tensor(Dtype::F32, &[stored.len()], &stored, |x| x.to_le_bytes())?;
            let made = ("store", [wide.as_str()], [("layout", name.as_str())]);
            out.output(format!("{wide}.{name}"), None, stored, (made.0, &made.1, &made.2));
            let stored = layout.store(bytes.view());
            let stored = tensor(Dtype::U8, &[stored.len()], &stored, |&x| [x])?;
            let made = ("store", [narrow.as_str()], [("layout", name.as_str())]);
            out.output(format!("{narrow}.{name}"), Some(Format::E8M0), stored, (made.0, &made.1, &made.2));
        }
        let words = pack_ue8m0(bytes.view());
        let words = tensor(Dtype::I32, &[words.len()], &words, |x| x.to_le_bytes())?;
        out.output(format!("{narrow}.words"), None, words, ("pack_ue8m0", &[&narrow], &[]));
    }
    let fp4: Vec<u8> = (0..=255u8).flat_map(|byte| [byte & 0xF, byte >> 4]).collect();
    out.input("e2m1", Some(Format::E2M1), tensor(Dtype::U8, &[fp4.len()], &fp4, |&x| [x])?);
    let bytes = packed::pack4(&fp4);
    out.output(
        "e2m1.packed",
        None,
        tensor(Dtype::U8, &[bytes.len()], &bytes, |&x| [x])?,
        ("pack4", &["e2m1"], &[]),
    );
    let codes: Vec<u16> = (0..4096).collect();
    out.input("e5m6", Some(Format::E5M6), tensor(Dtype::U16, &[4096], &codes, |x| x.to_le_bytes())?);
    let words = e5m6::pack(&codes)?;
    let words = tensor(Dtype::U32, &[words.len()], &words, |x| x.to_le_bytes())?;
    out.output("e5m6.packed", None, words, ("pack8", &["e5m6"], &[]));
    Ok(out)
}
