//! How a grid of scales lies on its codes. The rule, in one place:
//!
//! Codes [.., rows, cols] are a stack of matrices; a vector is one row. Their scales are
//! - no dimension, or one element: one scale for all of them;
//! - [rows], of a single matrix: one scale a row;
//! - [.., r, c] with the same leading dimensions: for each matrix the grid of a granule.
//!
//! The granule is one of [`Granule::FIELD`] (and 16×16 where scales are E4M3, as TransformerEngine's NVFP4 weights have
//! it), or the one given; no other is made up from a quotient. Grids that are stored otherwise are read where a
//! [`ScaleStorage`] says so, and named where nothing says it.

use std::ops::RangeInclusive;

use super::scaled::ReadAs;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::scaled::Granule;
use safetensors::Dtype;

/// Dimensions of padded grids are multiples of this: 16 bytes of f32, as TMA and cuBLAS ask for.
const PAD: usize = 4;

/// How the scales of a tensor are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleStorage {
    /// [.., r, c], as checkpoints hold them.
    #[default]
    RowMajor,
    /// [.., c, r].
    Transposed,
    /// [.., r, c] with dimensions filled up to multiples of 4; what fills them is not read.
    Padded,
    /// [.., c, r], filled up likewise: the MN-major layout of TMA and cuBLAS.
    TransposedPadded,
    /// One scale for each index of the leading dimensions: \[E\] or [E, 1, 1] of experts [E, N, K], [E, N] of their rows,
    /// [O, 1, 1, 1] of a convolution.
    Leading,
}

impl ScaleStorage {
    /// Every way.
    pub const ALL: [ScaleStorage; 5] = [
        ScaleStorage::RowMajor,
        ScaleStorage::Transposed,
        ScaleStorage::Padded,
        ScaleStorage::TransposedPadded,
        ScaleStorage::Leading,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            ScaleStorage::RowMajor => "row-major",
            ScaleStorage::Transposed => "transposed",
            ScaleStorage::Padded => "padded",
            ScaleStorage::TransposedPadded => "transposed-padded",
            ScaleStorage::Leading => "leading",
        }
    }
}

impl std::str::FromStr for ScaleStorage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| Error::unknown("scale layout", name, Self::ALL.map(Self::name)))
    }
}

/// The matrices of a shape: how many are stacked, and their rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) matrices: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Stack {
    /// A vector is one row, a scalar 1×1.
    pub(crate) fn of(shape: &[usize]) -> Stack {
        match shape {
            [] => Stack { matrices: 1, rows: 1, cols: 1 },
            [cols] => Stack { matrices: 1, rows: 1, cols: *cols },
            [lead @ .., rows, cols] => Stack { matrices: lead.iter().product(), rows: *rows, cols: *cols },
        }
    }
}

/// Scales on their codes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) granule: Granule,
    /// The grid of each matrix.
    pub(crate) grid: (usize, usize),
    /// Where each scale of all grids, one after the other, is stored; `None` where they lie as they should, or for one
    /// scale that all matrices share.
    pub(crate) from: Option<Vec<usize>>,
    /// One scale for all matrices.
    pub(crate) shared: bool,
}

/// The granules that are inferred for scales of a dtype, that of the dtype's own formats first: where several fit they
/// mean the same, and their names should be the usual ones.
fn known(scales: Dtype) -> impl Iterator<Item = Granule> + Clone {
    let (first, last) = match scales {
        Dtype::F8_E8M0 => (Some(Granule::MX_1X32), None),
        Dtype::F8_E4M3 => (Some(Granule::NVFP4_1X16), Some(Granule::square(16))),
        _ => (None, None),
    };
    first.into_iter().chain(Granule::FIELD).chain(last)
}

/// Places scales of a shape and dtype on codes of a shape, in the granule given or one of those that are known.
///
/// # Errors
/// [`Error::Shape`] if they do not fit; the message says what would.
pub(crate) fn place(codes: &[usize], scales: &[usize], dtype: Dtype, read_as: &ReadAs) -> Result<Placed> {
    let placed = match read_as.granule {
        Some(granule) => try_place(codes, scales, std::iter::once(granule), read_as.storage),
        None => try_place(codes, scales, known(dtype), read_as.storage),
    };
    placed.ok_or_else(|| Error::Shape(misfit(codes, scales, dtype, read_as)))
}

fn try_place(
    codes: &[usize],
    scales: &[usize],
    granules: impl Iterator<Item = Granule> + Clone,
    storage: ScaleStorage,
) -> Option<Placed> {
    let stack = Stack::of(codes);
    let shape_of = |g: Granule| g.grid(stack.rows, stack.cols);
    let one = || {
        let fits = |g: &Granule| shape_of(*g) == (1, 1);
        let granule =
            granules.clone().find(|g| *g == Granule::TENSOR).or_else(|| granules.clone().find(fits));
        granule.map(|granule| Placed { granule, grid: (1, 1), from: None, shared: true })
    };
    if matches!(scales, [] | [1]) {
        return one();
    }
    if storage == ScaleStorage::Leading {
        return place_leading(codes, scales, granules);
    }
    let lead = &codes[..codes.len().saturating_sub(2)];
    let stored = match scales {
        [n] if codes.len() == 2 && *n == stack.rows => {
            return granules
                .clone()
                .find(|g| *g == Granule::ROW || shape_of(*g) == (*n, 1))
                .map(|granule| Placed { granule, grid: (*n, 1), from: None, shared: false });
        }
        [n] if codes.len() == 1 => (1, *n),
        [grid_lead @ .., r, c] if grid_lead == lead => (*r, *c),
        [1, rest @ ..] if rest.iter().all(|&n| n == 1) => return one(),
        _ => return None,
    };
    let mut fitting = granules.filter(|&g| stored_as(shape_of(g), stored, storage));
    let granule = fitting.next()?;
    let grid = shape_of(granule);
    // Padding can hide which of two granules is meant.
    if fitting.any(|g| shape_of(g) != grid) {
        return None;
    }
    let (from_cols, matrix) = (stored.1, stored.0.checked_mul(stored.1)?);
    let transposed = matches!(storage, ScaleStorage::Transposed | ScaleStorage::TransposedPadded);
    let from = match storage {
        ScaleStorage::RowMajor => None,
        // Nothing to find, however many matrices have it.
        _ if stack.matrices == 0 || stack.rows == 0 || stack.cols == 0 => None,
        _ => {
            let at = |i: usize, j: usize| if transposed { j * from_cols + i } else { i * from_cols + j };
            let one =
                |n: usize| (0..grid.0).flat_map(move |i| (0..grid.1).map(move |j| n * matrix + at(i, j)));
            Some((0..stack.matrices).flat_map(one).collect())
        }
    };
    Some(Placed { granule, grid, from, shared: false })
}

/// Whether a grid may be stored in these dimensions.
fn stored_as(grid: (usize, usize), stored: (usize, usize), storage: ScaleStorage) -> bool {
    let padded = |n: usize, found: usize| n == found || n.checked_next_multiple_of(PAD) == Some(found);
    let (r, c) = stored;
    match storage {
        ScaleStorage::RowMajor => grid == (r, c),
        ScaleStorage::Transposed => grid == (c, r),
        ScaleStorage::Padded => padded(grid.0, r) && padded(grid.1, c),
        ScaleStorage::TransposedPadded => padded(grid.0, c) && padded(grid.1, r),
        ScaleStorage::Leading => false,
    }
}

/// One scale for each index of the first dimensions.
fn place_leading(
    codes: &[usize],
    scales: &[usize],
    granules: impl Iterator<Item = Granule> + Clone,
) -> Option<Placed> {
    let stack = Stack::of(codes);
    let ones = scales.iter().rev().take_while(|&&n| n == 1).count();
    let prefix = &scales[..scales.len() - ones];
    if prefix.is_empty()
        || !codes.starts_with(prefix)
        || prefix.len() >= codes.len()
        || scales.len() > codes.len()
    {
        return None;
    }
    let lead = codes.len().saturating_sub(2);
    let has = |granule| granules.clone().any(|g| g == granule);
    if prefix.len() > lead {
        let each_row = Placed { granule: Granule::ROW, grid: (stack.rows, 1), from: None, shared: false };
        return has(Granule::ROW).then_some(each_row);
    }
    if stack.matrices == 0 || stack.rows == 0 || stack.cols == 0 {
        return None;
    }
    let repeated: usize = codes[prefix.len()..lead].iter().product();
    let from = (0..stack.matrices).map(|n| n / repeated.max(1)).collect();
    let each = Placed { granule: Granule::TENSOR, grid: (1, 1), from: Some(from), shared: false };
    has(Granule::TENSOR).then_some(each)
}

/// Why scales do not fit, and what would.
fn misfit(codes: &[usize], scales: &[usize], dtype: Dtype, read_as: &ReadAs) -> String {
    let ReadAs { granule: given, storage, suffix, .. } = *read_as;
    let stack = Stack::of(codes);
    let shapes = format!("scale grid {} on codes {}", sizes(scales), sizes(codes));
    if let Some(granule) = given {
        let (r, c) = granule.grid(stack.rows, stack.cols);
        let (expected, granule) = (format!("{r}×{c}"), described(granule));
        let stored = match scales {
            [.., found_r, found_c] => format!("{found_r}×{found_c}"),
            _ => sizes(scales),
        };
        let how =
            if storage == ScaleStorage::RowMajor { String::new() } else { format!(" {}", storage.name()) };
        return format!(
            "{shapes}: the grid is {stored}, expected {expected}{how} for {}×{} with {granule}",
            stack.rows, stack.cols
        );
    }
    let mut hints = Vec::new();
    for other in ScaleStorage::ALL.into_iter().filter(|s| *s != storage && *s != ScaleStorage::RowMajor) {
        // A transposed grid needs no padding to be one.
        let plainer = other == ScaleStorage::TransposedPadded
            && try_place(codes, scales, known(dtype), ScaleStorage::Transposed).is_some();
        if let Some(placed) = try_place(codes, scales, known(dtype), other).filter(|_| !plainer) {
            let what = match other {
                ScaleStorage::Leading => "one scale for each index of the leading dimensions".to_owned(),
                _ => format!("the grid of {} granules, {}", placed.granule, other.name()),
            };
            hints.push(format!("it looks like {what}: --scale-layout{suffix} {} reads that", other.name()));
        }
    }
    if let Some(granule) = others(codes, scales) {
        hints.push(format!("{granule} would fit: --granule{suffix} {granule} says so"));
    }
    if let Some(granule) = known(dtype).find(|g| {
        let filled = swizzled(g.grid(stack.rows, stack.cols));
        filled.is_some() && filled == last_two(scales)
    }) {
        hints.push(format!(
            "it has the size of {granule} granules in the 128x4 swizzle of tensor cores, which is not read from files"
        ));
    }
    if hints.is_empty() {
        hints.push("no granule fits".to_owned());
    }
    let mut fields: Vec<String> = known(dtype).map(|g| g.to_string()).collect();
    fields.sort_unstable();
    fields.dedup();
    format!("{shapes} is that of no granule in use ({}); {}", fields.join(", "), hints.join("; "))
}

/// The grid filled up to whole tiles of 128×4.
fn swizzled((rows, cols): (usize, usize)) -> Option<(usize, usize)> {
    let filled = (rows.checked_next_multiple_of(128)?, cols.checked_next_multiple_of(PAD)?);
    (filled != (rows, cols)).then_some(filled)
}

fn last_two(scales: &[usize]) -> Option<(usize, usize)> {
    match scales {
        [.., r, c] => Some((*r, *c)),
        _ => None,
    }
}

fn described(granule: Granule) -> String {
    match granule {
        Granule::TENSOR => "one scale for the tensor".to_owned(),
        Granule::ROW => "one scale a row".to_owned(),
        g => format!("{g} granules"),
    }
}

/// A granule that is not of the field and would give the grid: of each side a power of two where there is one.
pub(crate) fn others(codes: &[usize], scales: &[usize]) -> Option<Granule> {
    let stack = Stack::of(codes);
    let lead = &codes[..codes.len().saturating_sub(2)];
    let (r, c) = match scales {
        [n] if codes.len() == 1 => (1, *n),
        [grid_lead @ .., r, c] if grid_lead == lead => (*r, *c),
        _ => return None,
    };
    let side = |size: usize, count: usize| {
        if count == 1 {
            return Some(usize::MAX);
        }
        let range = sides(size, count)?;
        let power = range.end().checked_ilog2().map(|e| 1usize << e).filter(|p| range.contains(p));
        Some(power.unwrap_or(*range.start()))
    };
    Granule::new(side(stack.rows, r)?, side(stack.cols, c)?).ok()
}

/// The sides that cut `size` elements into `count` parts.
fn sides(size: usize, count: usize) -> Option<RangeInclusive<usize>> {
    if count == 0 || size < count {
        return None;
    }
    let (least, most) = (size.div_ceil(count), (size - 1) / (count - 1).max(1));
    (size.div_ceil(least) == count).then_some(least..=most.max(least))
}

/// A shape for messages: long ones end in how many more there are.
pub(crate) fn sizes(shape: &[usize]) -> String {
    const SHOWN: usize = 8;
    if shape.len() <= SHOWN {
        return format!("{shape:?}");
    }
    let shown: Vec<String> = shape[..SHOWN].iter().map(usize::to_string).collect();
    format!("[{}, … {} dimensions]", shown.join(", "), shape.len())
}

/// Scales of a placed grid, each `width` bytes, in the order of the matrices.
pub(crate) fn arranged(scales: &Tensor, placed: &Placed) -> Vec<u8> {
    let Some(from) = &placed.from else { return scales.data().to_vec() };
    let width = scales.dtype().bitsize() / 8;
    from.iter().flat_map(|&i| &scales.data()[i * width..(i + 1) * width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(
        codes: &[usize],
        scales: &[usize],
        storage: ScaleStorage,
    ) -> Option<(String, Option<Vec<usize>>)> {
        let placed = place(codes, scales, Dtype::F32, &ReadAs { storage, ..ReadAs::default() }).ok()?;
        Some((placed.granule.to_string(), placed.from))
    }

    fn refused(codes: &[usize], scales: &[usize]) -> String {
        place(codes, scales, Dtype::F32, &ReadAs::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_inferred_is_what_granules_infer() {
        for codes in [&[256, 512][..], &[1, 512], &[40, 16], &[512], &[3, 64, 96], &[2, 2, 40, 50], &[]] {
            for rank in 0..=codes.len() + 1 {
                for seed in 0..300usize {
                    let pick =
                        |d: usize| [1, 2, 3, 4, 8, 16, 40, 64, 256, 512][(seed + d * (seed / 10 + 3)) % 10];
                    let scales: Vec<usize> = (0..rank).map(pick).collect();
                    let here = placed(codes, &scales, ScaleStorage::RowMajor).map(|(g, _)| g);
                    if let Some(granule) = Granule::infer(codes, &scales) {
                        assert!(here.is_some(), "{codes:?} {scales:?}: {granule}");
                    }
                    let fits = |g: &String| Granule::FIELD.iter().any(|f| f.to_string() == *g);
                    assert!(here.iter().all(fits));
                }
            }
        }
    }

    #[test]
    fn other_storages_are_named_and_read_on_demand() {
        use ScaleStorage::{Leading, Padded, RowMajor, Transposed, TransposedPadded};
        assert_eq!(placed(&[256, 512], &[4, 2], RowMajor), None);
        let transposed = placed(&[256, 512], &[4, 2], Transposed).unwrap();
        assert_eq!(transposed, ("128x128".to_owned(), Some(vec![0, 2, 4, 6, 1, 3, 5, 7])));
        let message = refused(&[256, 512], &[4, 2]);
        for part in ["[4, 2]", "[256, 512]", "128x128 granules, transposed", "--scale-layout transposed"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(message.contains("64x256 would fit: --granule 64x256"), "{message}");

        let padded = placed(&[2, 576], &[2, 8], Padded).unwrap();
        assert_eq!(padded, ("1x128".to_owned(), Some(vec![0, 1, 2, 3, 4, 8, 9, 10, 11, 12])));
        assert!(refused(&[2, 576], &[2, 8]).contains("--scale-layout padded"));
        let tma = placed(&[6, 256], &[2, 8], TransposedPadded).unwrap();
        assert_eq!(tma.1.unwrap()[..4], [0, 8, 1, 9]);
        assert!(refused(&[6, 256], &[2, 8]).contains("--scale-layout transposed-padded"));

        assert_eq!(placed(&[3, 64, 96], &[3], RowMajor), None);
        assert_eq!(placed(&[3, 64, 96], &[3], Leading).unwrap(), ("tensor".to_owned(), Some(vec![0, 1, 2])));
        assert_eq!(placed(&[3, 64, 96], &[3, 64], Leading).unwrap().0, "row");
        assert_eq!(
            placed(&[4, 2, 3, 3], &[4, 1, 1, 1], Leading).unwrap().1.unwrap(),
            [0, 0, 1, 1, 2, 2, 3, 3]
        );
        assert!(refused(&[3, 64, 96], &[3]).contains("--scale-layout leading"));
        assert!(refused(&[256, 512], &[1, 256]).contains("--scale-layout transposed"));
        assert!(refused(&[256, 512], &[3, 5]).contains("--granule 86x103"));
        assert!(refused(&[256, 512], &[0, 4]).contains("no granule fits"));
        assert!(refused(&[2, 2], &[3, 5]).contains("no granule fits"));
    }

    #[test]
    fn sides_that_cut_a_size_are_a_range() {
        for size in 1..60usize {
            for count in 1..70 {
                let fitting: Vec<usize> = (1..=size).filter(|&s| size.div_ceil(s) == count).collect();
                let range = sides(size, count);
                let found: Vec<usize> = range.into_iter().flatten().filter(|&s| s <= size).collect();
                if count > 1 {
                    assert_eq!(found, fitting, "{size} in {count}");
                }
            }
        }
    }
}
