//! From codes to packed panels: any signed format of at most 8 bits, and BF16, in registers.

use super::Simd;
use super::{CodeSpec, Specials};

/// How the codes of a format become operands of the GEMM's step.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are two of it a problem")]
pub enum Decoder {
    /// A byte a code.
    Bytes(ByteCodes),
    /// BF16 as it is.
    Words(WordCodes),
}

impl Decoder {
    /// The decoder of codes of at most 8 bits with values `table`; `None` for formats that it does not know: those whose
    /// NaN is the code of −0.
    pub fn bytes(spec: CodeSpec, table: &'static [f32]) -> Option<Decoder> {
        (spec.specials != Specials::Fnuz).then(|| Decoder::Bytes(ByteCodes::new(spec, table)))
    }

    /// The decoder of BF16.
    pub const BF16: Decoder = Decoder::Words(WordCodes);

    /// Bytes of a code.
    pub const fn code_bytes(&self) -> usize {
        match self {
            Decoder::Bytes(_) => 1,
            Decoder::Words(_) => 2,
        }
    }
}

/// Decodes registers of codes.
pub trait Decode: Copy {
    /// Codes in one 32-bit lane.
    const CODES: usize;

    /// What [`Decode::lanes`] looks up, in registers.
    type Tables<S: Simd>: Copy;

    /// Loads it: once before a loop, since the compiler may not find that the memory does not change.
    fn tables<S: Simd>(&self, s: S) -> Self::Tables<S>;

    /// Decodes the codes of each lane, k ascending, [`Simd::PAIR`] elements a result: the first of a pair in the high
    /// half, since the dot product adds that first. The first `CODES / PAIR` results count.
    fn lanes<S: Simd>(&self, s: S, tables: &Self::Tables<S>, codes: S::U32) -> [S::F32; 4];

    /// Decodes the codes at the start of `x`, which lie in a row, one element or pair after the other. `REGISTERS`
    /// results count, of as many codes as fill them.
    fn row<S: Simd>(&self, s: S, x: &[u8]) -> [S::F32; 2];

    /// Registers that [`Decode::row`] gives.
    fn row_registers<S: Simd>() -> usize;
}

/// BF16.
#[derive(Clone, Copy, Debug)]
pub struct WordCodes;

impl Decode for WordCodes {
    const CODES: usize = 2;
    type Tables<S: Simd> = ();

    #[inline(always)]
    fn tables<S: Simd>(&self, _: S) {}

    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, (): &(), x: S::U32) -> [S::F32; 4] {
        let mut values = [s.splat(0.0); 4];
        if S::PAIR == 2 {
            values[0] = s.float(s.or(s.shl(x, 16), s.shr(x, 16)));
        } else {
            values[0] = s.float(s.shl(x, 16));
            values[1] = s.float(s.and(x, s.splat_u32(0xFFFF_0000)));
        }
        values
    }

    #[inline(always)]
    fn row<S: Simd>(&self, s: S, x: &[u8]) -> [S::F32; 2] {
        let value = if S::PAIR == 2 {
            self.lanes(s, &(), s.load_bytes(x))[0]
        } else {
            s.float(s.shl(s.load_u16(x), 16))
        };
        [value; 2]
    }

    fn row_registers<S: Simd>() -> usize {
        1
    }
}

/// Codes of a byte each.
///
/// Where a step takes BF16 pairs, two tables look up their bytes. Elsewhere a code of e exponent and m fraction bits is
/// moved so that its sign, exponent and fraction fall on those of an f32 whose exponent field it then is: the value
/// times 2^(bias − 127), subnormals included, and one exact product restores it. Infinities and NaN are found by a
/// comparison and looked up in the format's table.
#[derive(Clone, Copy, Debug)]
pub struct ByteCodes {
    pairs: Bf16Table,
    fields: Fields,
    /// Every byte without its sign; what is above `largest_finite` there is a special.
    magnitude: u32,
    largest_finite: i8,
    table: &'static [f32],
}

/// What moves the fields of codes to those of f32, a register of each: the compiler keeps in registers what memory holds,
/// and takes shifts whose counts it does not know lane by lane, which are cheaper than those by one count.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Fields {
    /// For each byte of a lane, moves its sign to bit 31.
    align: [[u32; 16]; 4],
    /// Moves the lowest exponent bit to bit 23.
    shift: [u32; 16],
    mask: [u32; 16],
    factor: [f32; 16],
}

/// [`Fields`] in registers, and what [`Simd::tables`] gives.
#[derive(Clone, Copy)]
pub struct ByteTables<S: Simd> {
    pairs: S::Tables,
    align: [S::U32; 4],
    shift: S::U32,
    mask: S::U32,
    factor: S::F32,
}

/// The bytes of the BF16 numbers of all codes without their bit 7, which is the sign where a format has 8 bits, and what
/// is needed to look up 64 codes at once. The constants are here too: the compiler loads constants again and again, but keeps in
/// registers what memory holds.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Bf16Table {
    pub(super) low: [u8; 128],
    pub(super) high: [u8; 128],
    pub(super) sign: [u8; 64],
    /// Where the bytes of pairs are among 64 low and 64 high bytes, see [`Simd::pairs_in_lanes`].
    pub(super) in_lanes: [[u8; 64]; 2],
    /// The same for [`Simd::pairs_in_order`].
    pub(super) in_order: [[u8; 64]; 2],
}

impl Bf16Table {
    /// That of a format of at most 8 bits, whose codes have these values: a power of two of them.
    pub fn new(values: &[f32]) -> Bf16Table {
        let mut table = Bf16Table {
            low: [0; 128],
            high: [0; 128],
            sign: [0x80; 64],
            in_lanes: [pair_bytes(4, 0), pair_bytes(4, 2)],
            in_order: [pair_bytes(2, 0), pair_bytes(2, 32)],
        };
        for code in 0..128 {
            // Every value of at most 8 bits is a BF16: the low half of its f32 is zero.
            let [_, _, low, high] = values[code & (values.len() - 1)].to_le_bytes();
            (table.low[code], table.high[code]) = (low, high);
        }
        table
    }
}

/// Where the bytes of BF16 pairs are among 64 low and 64 high bytes: lane i has the codes `stride · i + first` in its
/// high half and the next in its low half.
fn pair_bytes(stride: usize, first: usize) -> [u8; 64] {
    let mut at = [0; 64];
    for (i, lane) in at.chunks_exact_mut(4).enumerate() {
        let code = (stride * i + first) as u8;
        lane.copy_from_slice(&[code + 1, 64 + code + 1, code, 64 + code]);
    }
    at
}

impl ByteCodes {
    fn new(spec: CodeSpec, table: &'static [f32]) -> ByteCodes {
        let largest_finite = match spec.specials {
            Specials::None => i8::MAX,
            Specials::Above(largest) => largest as i8,
            Specials::Fnuz => unreachable!("Decoder::bytes refuses it"),
        };
        let mask = 0x7F80_0000 & (0x7F80_0000 >> (8 - spec.exponent_bits))
            | (0x7F_FFFF << (23 - spec.mantissa_bits)) & 0x7F_FFFF;
        // A code has at most 8 bits, so that the sign of byte 3 is moved up too, if at all.
        let align = [0, 8, 16, 24].map(|place| [32 - spec.bits() - place; 16]);
        let fields = Fields {
            align,
            shift: [8 - spec.exponent_bits; 16],
            mask: [0x8000_0000 | mask; 16],
            factor: [f32::from_bits(((254 - spec.bias) as u32) << 23); 16],
        };
        ByteCodes {
            pairs: Bf16Table::new(table),
            fields,
            magnitude: 0x0101_0101 * spec.magnitude(),
            largest_finite,
            table,
        }
    }

    /// Whether some byte is an infinity or NaN.
    #[inline(always)]
    fn has_specials<S: Simd>(&self, s: S, codes: S::U32) -> bool {
        s.any_byte_above(s.and(codes, s.splat_u32(self.magnitude)), self.largest_finite)
    }

    /// The values of finite codes in byte `j` of each lane.
    #[inline(always)]
    fn expand<S: Simd>(s: S, tables: &ByteTables<S>, codes: S::U32, j: usize) -> S::F32 {
        let fields = s.and(s.sar_lanes(s.shl_lanes(codes, tables.align[j]), tables.shift), tables.mask);
        s.mul(s.float(fields), tables.factor)
    }

    /// The values of byte `j` of each lane, by table.
    #[inline(always)]
    fn look_up<S: Simd>(&self, s: S, codes: S::U32, j: usize) -> S::F32 {
        let mut bytes = [0; 16];
        s.store_u32(codes, &mut bytes);
        s.load(&self.values(bytes, j))
    }

    /// Out of the loops: specials are rare.
    #[inline(never)]
    fn values(&self, codes: [u32; 16], j: usize) -> [f32; 16] {
        codes.map(|code| self.table[(code >> (8 * j)) as usize & (self.table.len() - 1)])
    }
}

impl Decode for ByteCodes {
    const CODES: usize = 4;
    type Tables<S: Simd> = ByteTables<S>;

    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> ByteTables<S> {
        let Fields { align, shift, mask, factor } = &self.fields;
        ByteTables {
            pairs: s.tables(&self.pairs),
            align: [
                s.load_u32(&align[0]),
                s.load_u32(&align[1]),
                s.load_u32(&align[2]),
                s.load_u32(&align[3]),
            ],
            shift: s.load_u32(shift),
            mask: s.load_u32(mask),
            factor: s.load(factor),
        }
    }

    #[inline(always)]
    fn lanes<S: Simd>(&self, s: S, tables: &ByteTables<S>, x: S::U32) -> [S::F32; 4] {
        if S::PAIR == 2 {
            let [first, second] = s.pairs_in_lanes(&tables.pairs, x);
            return [first, second, first, second];
        }
        // Loops and no closures: a closure that is not inlined runs without the instruction set.
        let mut values = [s.splat(0.0); 4];
        for (j, value) in values.iter_mut().enumerate() {
            *value = ByteCodes::expand(s, tables, x, j);
        }
        if self.has_specials(s, x) {
            for (j, value) in values.iter_mut().enumerate() {
                *value = self.look_up(s, x, j);
            }
        }
        values
    }

    #[inline(always)]
    fn row<S: Simd>(&self, s: S, x: &[u8]) -> [S::F32; 2] {
        if S::PAIR == 2 {
            return s.pairs_in_order(&s.tables(&self.pairs), s.load_bytes(x));
        }
        let codes = s.load_u8(x);
        let special = self.has_specials(s, codes);
        let tables = self.tables(s);
        [if special { self.look_up(s, codes, 0) } else { ByteCodes::expand(s, &tables, codes, 0) }; 2]
    }

    fn row_registers<S: Simd>() -> usize {
        S::PAIR
    }
}
