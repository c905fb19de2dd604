//! E5M6: DeepSeek's 12-bit format for the input of the Linear after attention (report 3.3.3), with the packing and the
//! rounding of its TileKernels repository.

use super::round::Overflow;
use super::spec::Format;
use crate::error::{Error, Result};

/// Which rounding the cast to E5M6 uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum E5m6Rounding {
    /// Correct: nearest even everywhere, overflow and infinity saturate to 65024.
    NearestEven,
    /// TileKernels' rule (DeepSeek TileKernels, `cast_e5m6`): truncate to FP16, drop 4 bits, add 1 if
    /// (h & 1) + (f32 bits & 1FFFF) > 10000h. Nearest even for |x| ≥ 2^-14, not below. The rule is not defined for
    /// |x| ≥ 65536 and NaN; there this takes the correct rounding.
    TileKernels,
}

/// The 12-bit code of an f32.
///
/// ```
/// use finegrain::formats::e5m6::{cast, E5m6Rounding};
/// assert_eq!(cast(1.0, E5m6Rounding::NearestEven), 0x3C0);
/// assert_eq!(cast(1e9, E5m6Rounding::NearestEven), 0x7BF); // 65024
/// ```
pub fn cast(x: f32, rounding: E5m6Rounding) -> u16 {
    match rounding {
        E5m6Rounding::TileKernels if x.abs() < 65536.0 => {
            let h = fp16_toward_zero(x) >> 4;
            let up = u32::from(h & 1) + (x.to_bits() & 0x1_FFFF) > 0x1_0000;
            (h + u16::from(up)) & 0xFFF
        }
        _ => Format::E5M6.cast_f32(x, Overflow::Saturate).code as u16,
    }
}

fn fp16_toward_zero(x: f32) -> u16 {
    use super::{Overflow, Rounding, Unpacked};
    Format::F16.cast(Unpacked::from_f32(x), Rounding::TowardZero, Overflow::Saturate).code as u16
}

/// Packs eight codes into three words, the first code in the highest bits: w0 = h0<<20 | h1<<8 | h2>>4,
/// w1 = h2<<28 | h3<<16 | h4<<4 | h5>>8, w2 = h5<<24 | h6<<12 | h7 (TileKernels).
pub fn pack8(h: [u16; 8]) -> [u32; 3] {
    let h = h.map(|c| u32::from(c & 0xFFF));
    [
        h[0] << 20 | h[1] << 8 | h[2] >> 4,
        h[2] << 28 | h[3] << 16 | h[4] << 4 | h[5] >> 8,
        h[5] << 24 | h[6] << 12 | h[7],
    ]
}

/// The inverse of [`pack8`].
pub fn unpack8(w: [u32; 3]) -> [u16; 8] {
    [
        w[0] >> 20,
        w[0] >> 8,
        w[0] << 4 | w[1] >> 28,
        w[1] >> 16,
        w[1] >> 4,
        w[1] << 8 | w[2] >> 24,
        w[2] >> 12,
        w[2],
    ]
    .map(|c| (c & 0xFFF) as u16)
}

/// Packs a slice of codes.
///
/// # Errors
/// [`Error::Shape`] if the length is no multiple of 8.
pub fn pack(codes: &[u16]) -> Result<Vec<u32>> {
    let (groups, rest) = codes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::Shape(format!("{} E5M6 codes: packing needs a multiple of 8", codes.len())));
    }
    Ok(groups.iter().flat_map(|&g| pack8(g)).collect())
}

/// Unpacks a slice of words.
///
/// # Errors
/// [`Error::Shape`] if the length is no multiple of 3.
pub fn unpack(words: &[u32]) -> Result<Vec<u16>> {
    let (groups, rest) = words.as_chunks::<3>();
    if !rest.is_empty() {
        return Err(Error::Shape(format!("{} words of packed E5M6: expected a multiple of 3", words.len())));
    }
    Ok(groups.iter().flat_map(|&g| unpack8(g)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_reversible_for_every_code_in_every_place() {
        for code in 0..4096u16 {
            for place in 0..8 {
                let mut h = [0xA5Au16; 8];
                h[place] = code;
                assert_eq!(unpack8(pack8(h)), h);
            }
        }
        assert!(pack(&[0; 7]).is_err());
        assert!(unpack(&[0; 4]).is_err());
    }

    #[test]
    fn both_roundings_agree_on_normal_numbers() {
        for i in (0..0x4780_0000u32).step_by(4099) {
            let x = f32::from_bits(i);
            if x.abs() >= 2f32.powi(-14) && x.abs() < 65280.0 {
                assert_eq!(cast(x, E5m6Rounding::NearestEven), cast(x, E5m6Rounding::TileKernels), "{x:e}");
            }
        }
    }
}
