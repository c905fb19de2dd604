//! Device memory of the interpreter, inputs of every kind, and launches of the kernels that are no GEMMs.

use finegrain::cuda::kernels::{Desc, Kernel};
use finegrain::cuda::{RecipeArgs, ScaleGridArgs, ScaleKind};
use finegrain::formats::e8m0;
use finegrain::matrix::{MatRef, Matrix};
use finegrain::quant::{Element, Recipe, ScaleFormat};
use finegrain::scaled::Granule;
use finegrain::scaled::layout::ScaleLayout;
use half::bf16;
use ptx_emulator::{Arg, Device, Fault, Launch, Module, Options, Report};

/// In every byte that lies between the rows of an output: a kernel that writes there is found out.
const PADDING: u8 = 0xA5;

// ---- inputs ----------------------------------------------------------------------------------------------------------

/// A repeatable stream of bits.
pub struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(n)) >> 32) as u32
    }

    /// Either sign, a random fraction, an exponent of `lowest .. lowest + count`.
    pub fn float(&mut self, lowest: i32, count: u32) -> f32 {
        let field = (lowest + 127) as u32 + self.below(count);
        let bits = self.next();
        f32::from_bits(bits & 0x807F_FFFF | field << 23)
    }
}

/// What a granule holds; the last few are decided by one element at a random place, so that an amax which misses any of
/// a granule's elements cannot be right.
pub const KINDS: usize = 14;

pub fn element(kind: usize, decisive: bool, bits: &mut Bits) -> f32 {
    let small = bits.float(-6, 8);
    match kind {
        0 => small,
        1 => 0.0,
        2 => f32::from_bits(bits.next() & 0x8000_0000),
        // Subnormals, and for bf16 its subnormals too.
        3 => f32::from_bits(bits.next() & 0x807F_FFFF),
        4 => bits.float(100, 28),
        // Below every recipe's floor; reciprocals overflow.
        5 => bits.float(-126, 8),
        // Every bit pattern: NaN and infinity one in 256.
        6 => f32::from_bits(bits.next()),
        7 => f32::NAN,
        8 if decisive => f32::INFINITY.copysign(small),
        9 if decisive => f32::from_bits(0x7F80_0001 | bits.next()),
        // Infinity and NaN in one granule.
        10 if small.to_bits() % 64 < 2 => [f32::NEG_INFINITY, f32::NAN][small.to_bits() as usize % 2],
        // amax 448 · 2^k and a few steps beyond: where scales that become powers of two change.
        11 if decisive => {
            let amax = 448.0 * (bits.below(60) as f32 - 30.0).exp2();
            f32::from_bits(amax.to_bits() + bits.below(80) - 4)
        }
        12 if decisive => f32::MAX.copysign(small),
        13 if decisive => bits.float(3, 4),
        13 => 0.0,
        _ => small / 1024.0,
    }
}

pub trait Float: Element + bytemuck::Pod {
    fn of(x: f32) -> Self;
    /// The bits of x rounded to this type, NaN made canonical.
    fn canonical(x: f32) -> u32;
}

impl Float for f32 {
    fn of(x: f32) -> Self {
        x
    }
    fn canonical(x: f32) -> u32 {
        if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() }
    }
}

impl Float for bf16 {
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn canonical(x: f32) -> u32 {
        if x.is_nan() { 0x7FC0 } else { u32::from(bf16::from_f32(x).to_bits()) }
    }
}

/// A matrix whose granules are of one kind after the other, beginning with `first`.
pub fn input<T: Float>(rows: usize, cols: usize, granule: Granule, first: usize) -> Matrix<T> {
    let mut bits = Bits(0x9E37_79B9 + first as u64);
    let (height, width) = (granule.rows(), granule.cols());
    let (_, across) = granule.grid(rows, cols);
    let mut chosen = |i: usize, j: usize| {
        let (h, w) = (height.min(rows - i * height), width.min(cols - j * width));
        (i * height + bits.below(h as u32) as usize, j * width + bits.below(w as u32) as usize)
    };
    let decisive: Vec<_> =
        (0..rows.div_ceil(height) * across).map(|g| chosen(g / across, g % across)).collect();
    Matrix::from_fn(rows, cols, |i, j| {
        let g = i / height * across + j / width;
        T::of(element((first + g) % KINDS, decisive[g] == (i, j), &mut bits))
    })
}

// ---- launches --------------------------------------------------------------------------------------------------------

/// A shape and how its matrices lie in memory: rows `extra` elements longer than they need to be, the first one at
/// `offset` elements after an address that is a multiple of 256.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub cols: usize,
    pub extra: [usize; 2],
    pub offset: [usize; 2],
}

pub const fn shape(rows: usize, cols: usize, extra: [usize; 2], offset: [usize; 2]) -> Shape {
    Shape { rows, cols, extra, offset }
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stored {
    pub kind: ScaleKind,
    pub layout: ScaleLayout,
}

impl Stored {
    const ALL: [Stored; 5] = [
        Stored { kind: ScaleKind::F32, layout: ScaleLayout::RowMajor },
        Stored { kind: ScaleKind::F32, layout: ScaleLayout::MnMajorTma },
        Stored { kind: ScaleKind::E8m0, layout: ScaleLayout::RowMajor },
        Stored { kind: ScaleKind::E8m0, layout: ScaleLayout::MnMajorTma },
        Stored { kind: ScaleKind::PackedE8m0, layout: ScaleLayout::PackedUe8m0 },
    ];

    /// f32, row by row.
    pub const PLAIN: Stored = Stored::ALL[0];

    /// The ways that fit a recipe; without one all of them.
    pub fn all(recipe: Option<&Recipe>) -> impl Iterator<Item = Stored> {
        let power_of_two = recipe.is_none_or(|r| r.scale_format() != ScaleFormat::F32);
        Stored::ALL.into_iter().filter(move |s| power_of_two || s.kind == ScaleKind::F32)
    }

    /// Whether scales are bytes.
    pub fn bytes(self) -> bool {
        self.kind != ScaleKind::F32
    }

    fn size(self) -> usize {
        if self.bytes() { 1 } else { 4 }
    }

    fn address(self, base: u64, (i, j): (usize, usize), (rows, cols): (usize, usize)) -> u64 {
        base + (self.layout.offset(i, j, rows, cols) * self.size()) as u64
    }

    fn argument(self, address: u64, (rows, cols): (usize, usize), recipe: Option<&Recipe>) -> Arg {
        let padded = rows.next_multiple_of(4) as i64;
        let strides = match self.layout {
            ScaleLayout::RowMajor => (cols as i64, 1),
            ScaleLayout::MnMajorTma => (1, padded),
            _ => (4, 4 * padded),
        };
        let grid = ScaleGridArgs::new(address, strides, self.kind, recipe).unwrap();
        let mut bytes = grid.data.to_le_bytes().to_vec();
        bytes.extend(grid.row_stride.to_le_bytes());
        bytes.extend(grid.col_stride.to_le_bytes());
        bytes.extend(grid.kind.to_le_bytes());
        bytes.extend([0; 4]);
        Arg::Bytes(bytes)
    }

    /// What a scale of the reference is in memory.
    pub fn bits(self, scale: f32) -> u32 {
        if self.bytes() { u32::from(e8m0::nearest(scale)) } else { f32::canonical(scale) }
    }
}

/// A grid of scales in device memory that a kernel fills: where no scale lies there is padding.
pub struct ScaleOutput {
    address: u64,
    shape: (usize, usize),
    stored: Stored,
}

impl ScaleOutput {
    pub fn new(device: &mut Device, shape: (usize, usize), stored: Stored) -> ScaleOutput {
        let (rows, cols) = shape;
        let places = stored.layout.stored_len(rows, cols);
        let address = device.alloc(places * stored.size());
        let output = ScaleOutput { address, shape, stored };
        let taken: Vec<u64> = output.places().collect();
        let step = stored.size() as u64;
        for free in (0..places as u64).map(|p| address + p * step).filter(|at| !taken.contains(at)) {
            device.write(free, &vec![PADDING; stored.size()]).unwrap();
        }
        output
    }

    /// Where the scales lie, row by row.
    fn places(&self) -> impl Iterator<Item = u64> {
        let ScaleOutput { address, shape: (rows, cols), stored } = *self;
        (0..rows * cols).map(move |n| stored.address(address, (n / cols, n % cols), (rows, cols)))
    }

    pub fn argument(&self, recipe: &Recipe) -> Arg {
        self.stored.argument(self.address, self.shape, Some(recipe))
    }

    /// The scales row by row, or `None` if one is not written or the padding is.
    pub fn read(&self, device: &mut Device) -> Option<Vec<u32>> {
        let size = self.stored.size();
        let word = |bytes: Vec<u8>| bytes.iter().rev().fold(0, |w, &b| w << 8 | u32::from(b));
        let taken: Vec<u64> = self.places().collect();
        let places = self.stored.layout.stored_len(self.shape.0, self.shape.1);
        for free in (0..places * size).step_by(size).map(|at| self.address + at as u64) {
            if !taken.contains(&free) && device.read(free, size).ok()?.iter().any(|&b| b != PADDING) {
                return None;
            }
        }
        taken.iter().map(|&at| device.read(at, size).ok().map(word)).collect()
    }
}

pub fn recipe_argument(recipe: &Recipe) -> Arg {
    let r = RecipeArgs::try_from(recipe).unwrap();
    let integers = [r.form, r.power_of_two, r.payload, r.cast, r.ignores_nan, r.replaces];
    let floats = [r.floor, r.max, r.inv_max, r.zero, r.overflow, r.infinite, r.nan];
    let words = integers.into_iter().map(|i| i as u32).chain(floats.into_iter().map(f32::to_bits));
    Arg::Bytes(words.flat_map(u32::to_le_bytes).collect())
}

/// A matrix in device memory that a kernel fills: between its rows there is padding.
pub struct Output {
    pub address: u64,
    pub shape: (usize, usize),
    pub ld: usize,
    pub size: usize,
}

impl Output {
    pub fn new(device: &mut Device, shape: (usize, usize), ld: usize, offset: usize, size: usize) -> Output {
        let (rows, cols) = shape;
        // Nothing lies behind the last row's last element: to write there is a fault.
        let address = device.alloc((offset + (rows - 1) * ld + cols) * size) + (offset * size) as u64;
        for row in 1..rows {
            let end = address + ((row * ld - (ld - cols)) * size) as u64;
            device.write(end, &vec![PADDING; (ld - cols) * size]).unwrap();
        }
        Output { address, shape, ld, size }
    }

    /// The elements row by row, or `None` if something wrote between the rows or left an element unwritten.
    pub fn read(&self, device: &mut Device) -> Option<Vec<u32>> {
        let (rows, cols) = self.shape;
        let mut words = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            let stored = if row + 1 < rows { self.ld } else { cols } * self.size;
            let bytes = device.read(self.address + (row * self.ld * self.size) as u64, stored).ok()?;
            let (data, padding) = bytes.split_at(cols * self.size);
            if padding.iter().any(|&b| b != PADDING) {
                return None;
            }
            words.extend(
                data.chunks_exact(self.size).map(|b| b.iter().rev().fold(0, |w, &b| w << 8 | u32::from(b))),
            );
        }
        Some(words)
    }
}

/// Copies a matrix to the device; the padding between its rows stays unwritten, so that to read it is a fault.
pub fn upload<T: bytemuck::Pod>(device: &mut Device, x: MatRef<'_, T>, ld: usize, offset: usize) -> u64 {
    let (rows, cols) = x.shape();
    let size = size_of::<T>();
    let address = device.alloc((offset + (rows - 1) * ld + cols) * size) + (offset * size) as u64;
    for (i, row) in x.iter_rows().enumerate() {
        device.write(address + (i * ld * size) as u64, bytemuck::cast_slice(row)).unwrap();
    }
    address
}

pub fn upload_scales(device: &mut Device, scales: &Matrix<f32>, stored: Stored) -> Arg {
    let (rows, cols) = scales.shape();
    let address = device.alloc(stored.layout.stored_len(rows, cols) * stored.size());
    for (i, row) in scales.view().iter_rows().enumerate() {
        for (j, &scale) in row.iter().enumerate() {
            let at = stored.address(address, (i, j), (rows, cols));
            let written = if stored.bytes() {
                device.write(at, &[e8m0::nearest(scale)])
            } else {
                device.write(at, &scale.to_le_bytes())
            };
            written.unwrap();
        }
    }
    stored.argument(address, (rows, cols), None)
}

pub fn int(n: usize) -> Arg {
    Arg::I32(i32::try_from(n).unwrap())
}

pub fn run(
    device: &mut Device,
    module: &Module,
    kernel: &Kernel,
    shape: Shape,
    args: Vec<Arg>,
) -> Result<Report, Box<Fault>> {
    let config = kernel.config(Desc::matrix(shape.rows, shape.cols)).unwrap();
    let launch =
        Launch { grid: config.grid, block: config.block, dynamic_shared: config.dynamic_shared, args };
    device
        .launch(module, kernel.name, &launch, &Options { check_races: true, ..Options::default() })
        .map_err(Box::new)
}
