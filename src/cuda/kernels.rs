//! The table of kernels: source, architectures, launch geometry, and what their machine code must look like.
//!
//! Arguments are documented at each kernel in its source. A kernel is added by a row here; the tests then compile it for
//! every architecture of its source and hold the machine code to the row.

use std::fmt;

use super::arch::Arch;

/// One file of `kernels/`.
#[derive(Debug)]
pub struct Source {
    /// File name in `kernels/`.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
    /// What it is compiled for.
    pub archs: &'static [Arch],
    /// What its PTX is kept for in `kernels/ptx/`: each architecture whose PTX differs in more than the name.
    pub ptx: &'static [Arch],
}

/// One file of `kernels/common/`: name and text.
#[derive(Debug)]
pub struct Header {
    /// File name, as sources include it.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! header {
    ($file:literal) => {
        Header { file: $file, text: include_str!(concat!("../../kernels/common/", $file)) }
    };
}

macro_rules! source {
    ($file:literal, $archs:expr, $ptx:expr) => {
        Source { file: $file, text: include_str!(concat!("../../kernels/", $file)), archs: $archs, ptx: $ptx }
    };
}

/// Every header.
pub const HEADERS: &[Header] = &[
    header!("types.cuh"),
    header!("ptx.cuh"),
    header!("fp8.cuh"),
    header!("stats.cuh"),
    header!("scale.cuh"),
    header!("tile.cuh"),
    header!("swiglu.cuh"),
    header!("gemm_tile.cuh"),
    header!("gemm_epilogue.cuh"),
    header!("gemm_problem.cuh"),
    header!("gemm_mainloop.cuh"),
];

static QUANTIZE_1X128: Source = source!("quantize_1x128.cu", Arch::ALL, &[Arch::Sm89]);
static QUANTIZE_128X128: Source = source!("quantize_128x128.cu", Arch::ALL, &[Arch::Sm89]);
static QUANTIZE_128X1: Source = source!("quantize_128x1.cu", Arch::ALL, &[Arch::Sm89]);
static DEQUANTIZE: Source = source!("dequantize.cu", Arch::ALL, &[Arch::Sm89]);
static SWIGLU_QUANTIZE: Source = source!("swiglu_quantize_1x128.cu", Arch::ALL, &[Arch::Sm89]);
static GEMM_REFERENCE: Source = source!("gemm_f32_reference.cu", Arch::ALL, &[Arch::Sm89]);
static GEMM_MMA: Source = source!("sm89_fp8_gemm_promoted.cu", &[Arch::Sm89, Arch::Sm120a], &[Arch::Sm89]);
static GEMM_WGMMA: Source = source!("sm90a_fp8_gemm_promoted.cu", &[Arch::Sm90a], &[Arch::Sm90a]);

/// Every source.
pub static SOURCES: &[&Source] = &[
    &QUANTIZE_1X128,
    &QUANTIZE_128X128,
    &QUANTIZE_128X1,
    &DEQUANTIZE,
    &SWIGLU_QUANTIZE,
    &GEMM_REFERENCE,
    &GEMM_MMA,
    &GEMM_WGMMA,
];

impl Source {
    /// The headers it includes, directly or not, each once, in the order of [`HEADERS`].
    pub fn headers(&self) -> Vec<&'static Header> {
        let mut wanted = Vec::new();
        let mut texts = vec![self.text];
        while let Some(text) = texts.pop() {
            for name in text.lines().filter_map(|l| l.strip_prefix("#include \"")?.strip_suffix('"')) {
                if let Some(header) = HEADERS.iter().find(|h| h.file == name && !wanted.contains(&h.file)) {
                    wanted.push(header.file);
                    texts.push(header.text);
                }
            }
        }
        HEADERS.iter().filter(|h| wanted.contains(&h.file)).collect()
    }

    /// Looks a source up by its file name.
    pub fn by_file(file: &str) -> Option<&'static Source> {
        SOURCES.iter().find(|s| s.file == file).copied()
    }
}

/// What a launch is asked to do: the sizes that its geometry depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Rows of the input (of D for a GEMM).
    pub rows: usize,
    /// Columns of the input (of D for a GEMM).
    pub cols: usize,
    /// K of a GEMM; otherwise 0.
    pub depth: usize,
    /// Groups of a grouped GEMM; otherwise 1.
    pub groups: usize,
}

impl Desc {
    /// A matrix.
    pub const fn matrix(rows: usize, cols: usize) -> Desc {
        Desc { rows, cols, depth: 0, groups: 1 }
    }
}

impl fmt::Display for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Desc { rows, cols, depth, groups } = self;
        match depth {
            0 => write!(f, "{rows}×{cols}"),
            _ => write!(f, "{rows}×{cols}×{depth} in {groups} groups"),
        }
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub dynamic_shared: u32,
}

impl Config {
    /// The most dynamic shared memory, in bytes, that every kernel may have without being allowed more.
    pub const SHARED_WITHOUT_ASKING: u32 = 48 * 1024;
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        write!(f, "<<<({gx}, {gy}, {gz}), ({bx}, {by}, {bz}), {} B>>>", self.dynamic_shared)
    }
}

/// One kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its name, `extern "C"`.
    pub name: &'static str,
    /// Where it is defined.
    pub source: &'static Source,
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks that one multiprocessor is planned to hold at a time; bounds the registers.
    pub blocks: u32,
    /// Static shared memory, in bytes.
    pub static_shared: u32,
    /// Dynamic shared memory, in bytes.
    pub dynamic_shared: u32,
    /// Blocks along x, y and z. A 0 means that there is nothing to launch.
    pub grid: fn(Desc) -> [usize; 3],
    /// Opcodes that its machine code must contain, as [`Histogram::count`](super::disasm::Histogram::count) reads them.
    pub expected: &'static [&'static str],
}

impl Kernel {
    /// Threads of a block.
    pub const fn threads(&self) -> u32 {
        self.block[0] * self.block[1] * self.block[2]
    }

    /// The most registers a thread may have for the planned occupancy.
    pub const fn max_registers(&self) -> u32 {
        let share = Arch::REGISTERS / (self.threads() * self.blocks);
        let whole = share / Arch::REGISTER_UNIT * Arch::REGISTER_UNIT;
        if whole > Arch::MAX_REGISTERS_A_THREAD { Arch::MAX_REGISTERS_A_THREAD } else { whole }
    }

    /// The launch for a problem; `None` if there is nothing to do or the grid is larger than a launch can be.
    pub fn config(&self, desc: Desc) -> Option<Config> {
        /// Blocks a grid may have along x, y and z.
        const LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        let grid = (self.grid)(desc);
        let legal = grid.iter().zip(LIMITS).all(|(&n, limit)| (1..=limit).contains(&n));
        let config = || Config {
            grid: grid.map(|n| n as u32),
            block: self.block,
            dynamic_shared: self.dynamic_shared,
        };
        legal.then(config)
    }

    /// Looks a kernel up.
    pub fn by_name(name: &str) -> Option<&'static Kernel> {
        KERNELS.iter().find(|k| k.name == name)
    }
}

/// Elements of a tile, rows and columns of a block.
const GRANULE: usize = 128;
/// Tiles that a warp takes (SEGMENTS of `tile.cuh`) times the 8 warps of a block.
const TILES_A_BLOCK: usize = 32;
/// Columns that a block of the transposing kernels takes.
const TRANSPOSED_COLUMNS: usize = 64;

fn by_tiles(d: Desc) -> [usize; 3] {
    // Kernels number tiles in 32 bits; a larger grid is refused as one that no launch can have.
    let tiles = d.rows.saturating_mul(d.cols.div_ceil(GRANULE));
    [if tiles <= i32::MAX as usize { tiles.div_ceil(TILES_A_BLOCK) } else { usize::MAX }, 1, 1]
}

fn by_blocks(d: Desc) -> [usize; 3] {
    [d.cols.div_ceil(GRANULE), d.rows.div_ceil(GRANULE), 1]
}

fn by_transposed_blocks(d: Desc) -> [usize; 3] {
    [d.cols.div_ceil(TRANSPOSED_COLUMNS), d.rows.div_ceil(GRANULE), 1]
}

/// A kernel over tiles: 256 threads, five blocks at a time (1280 threads: 83 % of Ada's 1536).
const fn tiles(name: &'static str, source: &'static Source, expected: &'static [&'static str]) -> Kernel {
    Kernel {
        name,
        source,
        block: [256, 1, 1],
        blocks: 5,
        static_shared: 0,
        dynamic_shared: 0,
        grid: by_tiles,
        expected,
    }
}

/// A kernel over 128×128 blocks: 512 threads with 32 elements each in registers, two blocks at a time.
const fn blocks(name: &'static str, expected: &'static [&'static str]) -> Kernel {
    Kernel {
        block: [512, 1, 1],
        blocks: 2,
        static_shared: 64,
        grid: by_blocks,
        ..tiles(name, &QUANTIZE_128X128, expected)
    }
}

/// A transposing kernel over 128 rows × 64 columns: 256 threads with 32 elements each, four blocks at a time. Shared: 64
/// columns of 128 codes, 8 × 64 partial amax, 64 factors.
const fn transposed(name: &'static str, expected: &'static [&'static str]) -> Kernel {
    Kernel {
        blocks: 4,
        static_shared: 64 * 128 + 8 * 64 * 4 + 64 * 4,
        grid: by_transposed_blocks,
        ..tiles(name, &QUANTIZE_128X1, expected)
    }
}

/// Rows and columns of D that a block of the fast GEMMs takes.
const GEMM_TILE: usize = 128;
/// Columns and rows of D that a block of the plain GEMM takes.
const REFERENCE_BLOCK: [u32; 3] = [32, 4, 1];

fn by_gemm_tiles(d: Desc) -> [usize; 3] {
    [d.rows.div_ceil(GEMM_TILE), d.cols.div_ceil(GEMM_TILE), d.groups]
}

fn by_elements(d: Desc) -> [usize; 3] {
    let [columns, rows, _] = REFERENCE_BLOCK;
    [d.cols.div_ceil(columns as usize), d.rows.div_ceil(rows as usize), d.groups]
}

/// The plain GEMM: 128 threads with one element each, eight blocks at a time.
const fn gemm_reference(name: &'static str) -> Kernel {
    Kernel {
        block: REFERENCE_BLOCK,
        blocks: 8,
        grid: by_elements,
        ..tiles(name, &GEMM_REFERENCE, &["FFMA", "FMUL"])
    }
}

/// A GEMM by mma.sync: one block a multiprocessor, whose accumulators and partial sums fill the registers; three stages
/// of 33 KiB.
const fn gemm_mma(name: &'static str) -> Kernel {
    Kernel {
        blocks: 1,
        dynamic_shared: 101_376,
        grid: by_gemm_tiles,
        ..tiles(name, &GEMM_MMA, &["QMMA", "LDSM", "LDGSTS.BYPASS.128"])
    }
}

/// A GEMM by wgmma: the same with four stages.
const fn gemm_wgmma(name: &'static str) -> Kernel {
    Kernel {
        blocks: 1,
        dynamic_shared: 135_168,
        grid: by_gemm_tiles,
        ..tiles(name, &GEMM_WGMMA, &["QGMMA", "LDGSTS.BYPASS.128"])
    }
}

/// 16-byte accesses, a hardware cast and shuffles.
const QUANTIZES: &[&str] = &["LDG.128", "STG.128", "F2FP.E4M3.SATFINITE", "SHFL.BFLY"];
/// The same with codes passing through shared memory.
const TRANSPOSES: &[&str] =
    &["LDG.128", "STG.128", "F2FP.E4M3.SATFINITE", "SHFL.BFLY", "STS", "LDS.128", "BAR.SYNC"];
const DEQUANTIZES: &[&str] = &["LDG.128", "STG.128", "F2FP.F16.E4M3", "SHFL.BFLY"];

/// Every kernel.
pub static KERNELS: &[Kernel] = &[
    tiles("quantize_1x128_f32", &QUANTIZE_1X128, QUANTIZES),
    tiles("quantize_1x128_bf16", &QUANTIZE_1X128, QUANTIZES),
    blocks("quantize_128x128_f32", QUANTIZES),
    blocks("quantize_128x128_bf16", QUANTIZES),
    transposed("quantize_128x1_f32", TRANSPOSES),
    transposed("quantize_128x1_bf16", TRANSPOSES),
    transposed("requantize_transpose_e4m3", TRANSPOSES),
    tiles("dequantize_e4m3_f32", &DEQUANTIZE, DEQUANTIZES),
    tiles("dequantize_e4m3_bf16", &DEQUANTIZE, DEQUANTIZES),
    tiles("swiglu_quantize_1x128_f32", &SWIGLU_QUANTIZE, QUANTIZES),
    tiles("swiglu_quantize_1x128_bf16", &SWIGLU_QUANTIZE, QUANTIZES),
    gemm_reference("gemm_f32_reference"),
    gemm_reference("gemm_f32_reference_contiguous"),
    gemm_reference("gemm_f32_reference_masked"),
    gemm_reference("gemm_f32_reference_k_grouped"),
    gemm_mma("sm89_e4m3_e4m3_gemm_promoted"),
    gemm_mma("sm89_e4m3_e5m2_gemm_promoted"),
    gemm_mma("sm89_e5m2_e4m3_gemm_promoted"),
    gemm_mma("sm89_e5m2_e5m2_gemm_promoted"),
    gemm_mma("sm89_e4m3_e4m3_gemm_promoted_contiguous"),
    gemm_mma("sm89_e4m3_e4m3_gemm_promoted_masked"),
    gemm_mma("sm89_e4m3_e4m3_gemm_promoted_k_grouped"),
    gemm_wgmma("sm90a_e4m3_e4m3_gemm_promoted"),
    gemm_wgmma("sm90a_e4m3_e5m2_gemm_promoted"),
    gemm_wgmma("sm90a_e5m2_e4m3_gemm_promoted"),
    gemm_wgmma("sm90a_e5m2_e5m2_gemm_promoted"),
    gemm_wgmma("sm90a_e4m3_e4m3_gemm_promoted_contiguous"),
    gemm_wgmma("sm90a_e4m3_e4m3_gemm_promoted_masked"),
    gemm_wgmma("sm90a_e4m3_e4m3_gemm_promoted_k_grouped"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_followed() {
        let names: Vec<_> = SWIGLU_QUANTIZE.headers().iter().map(|h| h.file).collect();
        assert_eq!(
            names,
            ["types.cuh", "ptx.cuh", "fp8.cuh", "stats.cuh", "scale.cuh", "tile.cuh", "swiglu.cuh"]
        );
        let names: Vec<_> = QUANTIZE_1X128.headers().iter().map(|h| h.file).collect();
        assert_eq!(names, ["types.cuh", "ptx.cuh", "fp8.cuh", "stats.cuh", "scale.cuh", "tile.cuh"]);
    }

    /// Nothing of `kernels/` is forgotten in the tables.
    #[test]
    fn every_file_is_listed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let files = |folder: &std::path::Path, extension: &str| {
            let mut names: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.ends_with(extension))
                .collect();
            names.sort();
            names
        };
        fn sorted(mut names: Vec<&'static str>) -> Vec<&'static str> {
            names.sort_unstable();
            names
        }
        assert_eq!(files(&folder, ".cu"), sorted(SOURCES.iter().map(|s| s.file).collect()));
        assert_eq!(files(&folder.join("common"), ".cuh"), sorted(HEADERS.iter().map(|h| h.file).collect()));
    }

    #[test]
    fn geometry_covers_the_matrix() {
        let config = |name: &str, rows, cols| Kernel::by_name(name).unwrap().config(Desc::matrix(rows, cols));
        assert_eq!(config("quantize_1x128_f32", 33, 129).unwrap().grid, [3, 1, 1]);
        assert_eq!(config("quantize_128x128_f32", 129, 300).unwrap().grid, [3, 2, 1]);
        assert_eq!(config("quantize_128x1_f32", 129, 65).unwrap().grid, [2, 2, 1]);
        assert_eq!(config("quantize_1x128_f32", 0, 128), None);
        assert_eq!(config("quantize_128x128_f32", 128 * 65_536, 1), None);
        assert_eq!(config("quantize_1x128_f32", 1 << 24, 128 * 127).unwrap().grid, [127 << 19, 1, 1]);
        assert_eq!(config("quantize_1x128_f32", 1 << 24, 128 * 128), None);
        assert_eq!(Kernel::by_name("quantize_128x128_f32").unwrap().max_registers(), 64);
        assert_eq!(Kernel::by_name("quantize_1x128_f32").unwrap().max_registers(), 48);
    }
}
