//! Calls of libraries by the names that people have for them, and the arithmetic that they compute.

use super::accumulation::{Accumulation, Model};
use super::promotion::Promotion;
use crate::error::{Error, Result};
use crate::scaled::{Granule, ScaledRef};

/// A call of a library on a GPU, and the arithmetic that gives every bit of what it returned.
///
/// ```
/// use finegrain::gemm::{Accumulation, Arithmetic, LibraryCall};
/// for call in LibraryCall::ALL {
///     println!("{:16} {:40} {}", call.name(), call.arithmetic(), call.recorded());
/// }
/// let fast = LibraryCall::by_name("cublaslt-fast").unwrap();
/// assert_eq!(fast.arithmetic(), Accumulation::HOPPER.to_string());
/// assert_eq!("cublaslt-fast".parse::<Arithmetic>()?.to_string(), "cublaslt-fast");
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// A library splits K for some shapes on top of that: see [`SplitK`](super::SplitK).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LibraryCall {
    name: &'static str,
    call: &'static str,
    recorded: &'static str,
    granules: &'static [(Granule, Granule)],
    rule: Rule,
}

/// What decides the arithmetic of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rule {
    /// Nothing.
    Always(&'static Accumulation),
    /// The granules of A and B.
    Granules {
        /// 1×128 by 128×128.
        tile_block: &'static Accumulation,
        /// 1×128 by 1×128.
        tile_tile: &'static Accumulation,
    },
}

/// Hopper's FP8 `wgmma`, which all of them are built on.
const HOPPER: Accumulation = Accumulation::HOPPER;
const HOPPER_128: Accumulation = HOPPER.promoted::<128>();
const SCALES_LAST: Accumulation = HOPPER_128.with_promotion(Promotion::ScalesLast);
const PARTIAL_FIRST: Accumulation = HOPPER_128.with_promotion(Promotion::PartialFirst);
const CUBLASLT_BLOCK: Rule = Rule::Granules { tile_block: &HOPPER_128, tile_tile: &PARTIAL_FIRST };

/// Granules of A and B.
const TENSORS_AND_ROWS: &[(Granule, Granule)] =
    &[(Granule::TENSOR, Granule::TENSOR), (Granule::ROW, Granule::ROW)];
const TILE_BLOCK: (Granule, Granule) = (Granule::TILE_1X128, Granule::BLOCK_128X128);
const TILE_TILE: (Granule, Granule) = (Granule::TILE_1X128, Granule::TILE_1X128);

const CUBLASLT_ON: &str = "H200: cuBLASLt of CUDA 13.0, PyTorch 2.11";

impl LibraryCall {
    /// Every call with a name: the one table of them.
    pub const ALL: &[LibraryCall] = &[
        LibraryCall {
            name: "cublaslt-fast",
            call: "cuBLASLt, scales of tensors or rows, fast accumulation (torch._scaled_mm, use_fast_accum=True)",
            recorded: CUBLASLT_ON,
            granules: TENSORS_AND_ROWS,
            rule: Rule::Always(&HOPPER),
        },
        LibraryCall {
            name: "cublaslt",
            call: "cuBLASLt, scales of tensors or rows (torch._scaled_mm, use_fast_accum=False)",
            recorded: CUBLASLT_ON,
            granules: TENSORS_AND_ROWS,
            rule: Rule::Always(&SCALES_LAST),
        },
        LibraryCall {
            name: "cublaslt-block",
            call: "cuBLASLt, scales in 1x128 by 128x128 or by 1x128 (torch._scaled_mm)",
            recorded: CUBLASLT_ON,
            granules: &[TILE_BLOCK, TILE_TILE],
            rule: CUBLASLT_BLOCK,
        },
        LibraryCall {
            name: "deepgemm",
            call: "DeepGEMM, fp8_gemm_nt",
            recorded: "H200: DeepGEMM 2.6.1",
            granules: &[TILE_BLOCK, TILE_TILE],
            rule: Rule::Always(&HOPPER_128),
        },
        LibraryCall {
            name: "triton-deepseek",
            call: "Triton, acc += dot(a, b) * sa[:, None] * sb[None, :], as in DeepSeek-V3's inference code",
            recorded: "H200: Triton 3.6",
            granules: &[TILE_BLOCK],
            rule: Rule::Always(&PARTIAL_FIRST),
        },
        LibraryCall {
            name: "te-blockwise",
            call: "TransformerEngine, FP8 linear layers with blockwise scales: calls cuBLASLt as cublaslt-block",
            recorded: "as cublaslt-block",
            granules: &[TILE_BLOCK, TILE_TILE],
            rule: CUBLASLT_BLOCK,
        },
    ];

    /// The one of [`LibraryCall::ALL`] with this name.
    pub fn by_name(name: &str) -> Option<&'static LibraryCall> {
        LibraryCall::ALL.iter().find(|call| call.name == name)
    }

    /// The name, as the command line takes it.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What is called.
    pub const fn call(&self) -> &'static str {
        self.call
    }

    /// On what it was recorded.
    pub const fn recorded(&self) -> &'static str {
        self.recorded
    }

    /// The granules of A and B that it is recorded with.
    pub const fn granules(&self) -> &'static [(Granule, Granule)] {
        self.granules
    }

    /// The model that it is built on.
    pub const fn model(&self) -> Model {
        match self.rule {
            Rule::Always(accumulation) | Rule::Granules { tile_block: accumulation, .. } => {
                accumulation.model()
            }
        }
    }

    /// The arithmetic in words.
    pub fn arithmetic(&self) -> String {
        match self.rule {
            Rule::Always(accumulation) => accumulation.to_string(),
            Rule::Granules { tile_block, tile_tile } => {
                format!("{tile_block} by 128x128, {tile_tile} by 1x128")
            }
        }
    }

    /// The arithmetic for operands A and B, each of one group or of several.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for granules that the call does not take.
    pub(super) fn accumulation(&self, a: &[ScaledRef<'_>], b: &[ScaledRef<'_>]) -> Result<Accumulation> {
        let (tile_block, tile_tile) = match self.rule {
            Rule::Always(accumulation) => return Ok(*accumulation),
            Rule::Granules { tile_block, tile_tile } => (tile_block, tile_tile),
        };
        let all = |operands: &[ScaledRef<'_>], granule| {
            operands.iter().all(|x| x.scales().is_some_and(|s| s.granule == granule))
        };
        for ((of_a, of_b), accumulation) in [(TILE_BLOCK, tile_block), (TILE_TILE, tile_tile)] {
            if all(a, of_a) && all(b, of_b) {
                return Ok(*accumulation);
            }
        }
        let granule = |operands: &[ScaledRef<'_>]| {
            let granules = operands.iter().map(|x| x.scales().map(|s| s.granule));
            granules.flatten().next().map_or("none".to_owned(), |granule| granule.to_string())
        };
        Err(Error::Unsupported(format!(
            "{} takes scales in 1x128 by 128x128 or in 1x128 by 1x128; A has {}, B has {}",
            self.name,
            granule(a),
            granule(b)
        )))
    }
}

impl std::fmt::Display for LibraryCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name)
    }
}
