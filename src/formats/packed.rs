//! Two 4-bit codes a byte, the first in the low half (OCP MX, DeepSeek-V4, PyTorch's float4_e2m1fn_x2).

/// Packs 4-bit codes, low nibble first; an odd last code leaves the high nibble 0.
///
/// ```
/// use finegrain::formats::packed;
/// assert_eq!(packed::pack4(&[0x1, 0x2, 0xF]), [0x21, 0x0F]);
/// assert_eq!(packed::unpack4(&[0x21, 0x0F]), [0x1, 0x2, 0xF, 0x0]);
/// ```
pub fn pack4(codes: &[u8]) -> Vec<u8> {
    codes.chunks(2).map(|pair| (pair[0] & 15) | (pair.get(1).copied().unwrap_or(0) & 15) << 4).collect()
}

/// Unpacks to one code a byte: twice as many as bytes.
pub fn unpack4(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect()
}
