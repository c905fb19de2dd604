//! The catalogue: every public recipe as a row of data.
//!
//! A geometry that a source does not define uses the same arithmetic.

use super::recipe::{
    Amax, ElementCast, MultiplierForm, MxRule, NanAmax, Nvfp4Rule, PayloadForm, PowerOfTwo, Recipe,
    ScaleForm, Scaling,
};
use crate::formats::e5m6::E5m6Rounding;
use crate::formats::{Format, Overflow};
use crate::name::Name;
use crate::scaled::Granule;

const FLOOR: f32 = 1e-4;
const SATURATE: ElementCast = ElementCast::Plain(Overflow::Saturate);
const NON_SATURATING: ElementCast = ElementCast::Plain(Overflow::NonSaturating);
const IGNORE: Amax = Amax { nan: NanAmax::Ignored, floor: FLOOR };
const PROPAGATE: Amax = Amax { nan: NanAmax::Propagates, floor: FLOOR };
const NO_FLOOR: Amax = Amax { nan: NanAmax::Propagates, floor: 0.0 };

/// A recipe with E4M3 codes in DeepSeek-V3's granules.
const fn fp8(
    name: &'static str,
    source: &'static str,
    amax: Amax,
    cast: ElementCast,
    scaling: Scaling,
) -> Recipe {
    Recipe {
        name: Name::literal(name),
        source,
        element: Format::E4M3,
        gradient: Format::E4M3,
        cast,
        activation: Granule::TILE_1X128,
        weight: Granule::BLOCK_128X128,
        amax,
        scaling,
    }
}

const fn scale(form: ScaleForm, power_of_two: PowerOfTwo, payload: PayloadForm) -> Scaling {
    Scaling::Scale { form, power_of_two, payload, zero: None }
}

const fn te(power_of_two: bool, infinite: Option<f32>, nan: Option<f32>) -> Scaling {
    let form = MultiplierForm::Quotient;
    Scaling::Multiplier { form, overflow: Some(f32::MAX), power_of_two, zero: Some(1.0), infinite, nan }
}

const fn multiplier(form: MultiplierForm, overflow: Option<f32>) -> Scaling {
    Scaling::Multiplier { form, overflow, power_of_two: false, zero: None, infinite: None, nan: None }
}

const fn mx(name: &'static str, source: &'static str, element: Format, rule: MxRule) -> Recipe {
    Recipe {
        element,
        gradient: element,
        activation: Granule::MX_1X32,
        weight: Granule::MX_1X32,
        ..fp8(name, source, NO_FLOOR, SATURATE, Scaling::Mx(rule))
    }
}

const fn nvfp4(name: &'static str, source: &'static str, weight: Granule, rule: Nvfp4Rule) -> Recipe {
    Recipe {
        element: Format::E2M1,
        gradient: Format::E2M1,
        activation: Granule::NVFP4_1X16,
        weight,
        ..fp8(name, source, NO_FLOOR, SATURATE, Scaling::Nvfp4(rule))
    }
}

const fn e5m6(
    name: &'static str,
    activation: Granule,
    power_of_two: PowerOfTwo,
    payload: PayloadForm,
) -> Recipe {
    Recipe {
        element: Format::E5M6,
        gradient: Format::E5M6,
        activation,
        weight: activation,
        ..fp8(
            name,
            "DeepSeek TileKernels, cast to E5M6",
            PROPAGATE,
            ElementCast::E5m6(E5m6Rounding::TileKernels),
            scale(ScaleForm::Quotient, power_of_two, payload),
        )
    }
}

const NVFP4_16X16: Granule = Granule::square(16);

impl Recipe {
    /// DeepSeek-V3 as published: inference/kernel.py.
    pub const DEEPSEEK_V3: Recipe = fp8(
        "deepseek-v3",
        "DeepSeek-V3, inference/kernel.py",
        IGNORE,
        SATURATE,
        scale(ScaleForm::Quotient, PowerOfTwo::No, PayloadForm::Quotient),
    );

    /// TransformerEngine's blockwise recipe: power-of-two scales, no floor. The training default here.
    pub const TE: Recipe = fp8(
        "te",
        "TransformerEngine, blockwise reference in tests/pytorch/references",
        NO_FLOOR,
        SATURATE,
        te(true, None, Some(0.5)),
    );

    /// Per-tensor FP8 with current scaling, E4M3 throughout: the baseline that fine granules replace.
    pub const TE_CURRENT: Recipe = Recipe {
        activation: Granule::TENSOR,
        weight: Granule::TENSOR,
        ..fp8(
            "te-current",
            "TransformerEngine, per-tensor current scaling (te-f32's arithmetic)",
            NO_FLOOR,
            SATURATE,
            te(false, None, None),
        )
    };

    /// Every recipe, in the order in which `--recipe` lists them.
    pub const ALL: &'static [Recipe] = &[
        Recipe::DEEPSEEK_V3,
        fp8(
            "deepseek-v3-ue8m0",
            "DeepSeek-V3.1, inference/kernel.py with scale_fmt ue8m0",
            IGNORE,
            SATURATE,
            scale(ScaleForm::Quotient, PowerOfTwo::CeilLog2F32, PayloadForm::Quotient),
        ),
        fp8(
            "deepseek-v3.2",
            "DeepSeek-V3.2-Exp, inference/kernel.py",
            IGNORE,
            SATURATE,
            scale(ScaleForm::Reciprocal, PowerOfTwo::No, PayloadForm::Quotient),
        ),
        fp8(
            "deepseek-v3.2-ue8m0",
            "DeepSeek-V3.2-Exp, inference/kernel.py with round_scale",
            IGNORE,
            SATURATE,
            scale(ScaleForm::Reciprocal, PowerOfTwo::CeilField, PayloadForm::Quotient),
        ),
        fp8(
            "deepgemm",
            "DeepGEMM, deep_gemm/utils/math.py on a CPU",
            PROPAGATE,
            NON_SATURATING,
            scale(ScaleForm::Quotient, PowerOfTwo::No, PayloadForm::Inverse),
        ),
        fp8(
            "deepgemm-ue8m0",
            "DeepGEMM, deep_gemm/utils/math.py with use_ue8m0, on a CPU",
            PROPAGATE,
            NON_SATURATING,
            scale(ScaleForm::Quotient, PowerOfTwo::CeilFieldClamped, PayloadForm::Inverse),
        ),
        fp8(
            "deepgemm-cuda",
            "DeepGEMM, deep_gemm/utils/math.py on CUDA, where tensor / float multiplies by a reciprocal",
            PROPAGATE,
            NON_SATURATING,
            scale(ScaleForm::Reciprocal, PowerOfTwo::No, PayloadForm::Inverse),
        ),
        fp8(
            "deepgemm-cuda-ue8m0",
            "DeepGEMM, deep_gemm/utils/math.py with use_ue8m0, on CUDA",
            PROPAGATE,
            NON_SATURATING,
            scale(ScaleForm::Reciprocal, PowerOfTwo::CeilFieldClamped, PayloadForm::Inverse),
        ),
        fp8(
            "tilekernels",
            "DeepSeek TileKernels, torch/cast.py",
            PROPAGATE,
            SATURATE,
            scale(ScaleForm::Quotient, PowerOfTwo::No, PayloadForm::MaxOverAmax),
        ),
        fp8(
            "tilekernels-pow2",
            "DeepSeek TileKernels, torch/cast.py with power-of-two scales",
            PROPAGATE,
            SATURATE,
            scale(ScaleForm::Quotient, PowerOfTwo::CeilMask, PayloadForm::Inverse),
        ),
        Recipe::TE,
        fp8(
            "te-f32",
            "TransformerEngine, blockwise reference without power-of-two scales",
            NO_FLOOR,
            SATURATE,
            te(false, None, None),
        ),
        fp8(
            "te-kernel",
            "TransformerEngine, blockwise CUDA kernel",
            Amax { nan: NanAmax::Ignored, floor: 0.0 },
            SATURATE,
            te(true, Some(1.0), None),
        ),
        fp8(
            "te-f32-kernel",
            "TransformerEngine, blockwise CUDA kernel without power-of-two scales",
            Amax { nan: NanAmax::Ignored, floor: 0.0 },
            SATURATE,
            te(false, Some(1.0), None),
        ),
        Recipe::TE_CURRENT,
        Recipe {
            name: Name::literal("te-current-hybrid"),
            source: "TransformerEngine, per-tensor current scaling, E4M3 forward and E5M2 for gradients",
            gradient: Format::E5M2,
            ..Recipe::TE_CURRENT
        },
        fp8(
            "torchao-blockwise",
            "torchao 0.18.0, blockwise FP8 training",
            NO_FLOOR,
            SATURATE,
            multiplier(MultiplierForm::Reciprocal64, None),
        ),
        Recipe {
            activation: Granule::TENSOR,
            weight: Granule::TENSOR,
            ..fp8(
                "torchao-tensorwise",
                "torchao 0.18.0, tensorwise scaling (torchao-blockwise's arithmetic)",
                NO_FLOOR,
                SATURATE,
                multiplier(MultiplierForm::Reciprocal64, None),
            )
        },
        Recipe {
            activation: Granule::ROW,
            weight: Granule::ROW,
            ..fp8(
                "torchao-rowwise",
                "torchao 0.18.0, rowwise scaling (torchao-blockwise's arithmetic)",
                NO_FLOOR,
                SATURATE,
                multiplier(MultiplierForm::Reciprocal64, None),
            )
        },
        fp8(
            "vllm",
            "vLLM, native reference of the per-token-group and block quantisers",
            Amax { nan: NanAmax::Propagates, floor: 1e-10 },
            SATURATE,
            scale(ScaleForm::Quotient, PowerOfTwo::No, PayloadForm::Quotient),
        ),
        fp8(
            "fbgemm",
            "FBGEMM, Triton kernels",
            Amax { nan: NanAmax::Ignored, floor: 1e-12 },
            SATURATE,
            multiplier(MultiplierForm::Quotient, None),
        ),
        fp8(
            "fbgemm-eager",
            "FBGEMM, torch fallback",
            Amax { nan: NanAmax::Propagates, floor: 1e-12 },
            NON_SATURATING,
            multiplier(MultiplierForm::Reciprocal, Some(1.0)),
        ),
        fp8(
            "compressed-tensors",
            "compressed-tensors 0.20.0",
            NO_FLOOR,
            ElementCast::PositiveZero,
            Scaling::Scale {
                form: ScaleForm::Quotient,
                power_of_two: PowerOfTwo::No,
                payload: PayloadForm::Quotient,
                zero: Some(1.0 / 8_388_608.0), // f32 epsilon, 2^-23
            },
        ),
        fp8(
            "deepep-ll",
            "DeepEP, low-latency dispatch kernel",
            IGNORE,
            SATURATE,
            scale(ScaleForm::Reciprocal, PowerOfTwo::No, PayloadForm::MaxOverAmax),
        ),
        fp8(
            "deepep-ll-ue8m0",
            "DeepEP, low-latency dispatch kernel with round_scale",
            IGNORE,
            SATURATE,
            scale(ScaleForm::Reciprocal, PowerOfTwo::CeilField, PayloadForm::NegatedExponent),
        ),
        fp8(
            "deepep-eager",
            "DeepEP, tests/utils.py",
            PROPAGATE,
            NON_SATURATING,
            scale(ScaleForm::Quotient, PowerOfTwo::No, PayloadForm::MaxTimesReciprocal),
        ),
        mx("mxfp8-e4m3-floor", "OCP Microscaling Formats 1.0", Format::E4M3, MxRule::Floor),
        mx("mxfp8-e5m2-floor", "OCP Microscaling Formats 1.0", Format::E5M2, MxRule::Floor),
        mx("mxfp6-e3m2-floor", "OCP Microscaling Formats 1.0", Format::E3M2, MxRule::Floor),
        mx("mxfp6-e2m3-floor", "OCP Microscaling Formats 1.0", Format::E2M3, MxRule::Floor),
        mx("mxfp4-e2m1-floor", "OCP Microscaling Formats 1.0", Format::E2M1, MxRule::Floor),
        mx("mxfp8-e4m3-floor-torchao", "torchao 0.18.0, to_mx FLOOR", Format::E4M3, MxRule::FloorTorchao),
        mx("mxfp8-e5m2-floor-torchao", "torchao 0.18.0, to_mx FLOOR", Format::E5M2, MxRule::FloorTorchao),
        mx("mxfp6-e3m2-floor-torchao", "torchao 0.18.0, to_mx FLOOR", Format::E3M2, MxRule::FloorTorchao),
        mx("mxfp6-e2m3-floor-torchao", "torchao 0.18.0, to_mx FLOOR", Format::E2M3, MxRule::FloorTorchao),
        mx("mxfp4-e2m1-floor-torchao", "torchao 0.18.0, to_mx FLOOR", Format::E2M1, MxRule::FloorTorchao),
        mx("mxfp8-e4m3-rceil", "torchao 0.18.0, to_mx RCEIL", Format::E4M3, MxRule::Rceil),
        mx("mxfp8-e5m2-rceil", "torchao 0.18.0, to_mx RCEIL", Format::E5M2, MxRule::Rceil),
        mx("mxfp6-e3m2-rceil", "torchao 0.18.0, to_mx RCEIL", Format::E3M2, MxRule::Rceil),
        mx("mxfp6-e2m3-rceil", "torchao 0.18.0, to_mx RCEIL", Format::E2M3, MxRule::Rceil),
        mx("mxfp4-e2m1-rceil", "torchao 0.18.0, to_mx RCEIL", Format::E2M1, MxRule::Rceil),
        mx("mxfp8-e4m3-rceil-te", "TransformerEngine, MXFP8 kernel", Format::E4M3, MxRule::RceilTe),
        mx("mxfp8-e5m2-rceil-te", "TransformerEngine, MXFP8 kernel", Format::E5M2, MxRule::RceilTe),
        nvfp4(
            "nvfp4-te-1x16",
            "TransformerEngine, reference_nvfp4.py",
            Granule::NVFP4_1X16,
            Nvfp4Rule::TransformerEngine,
        ),
        Recipe {
            activation: NVFP4_16X16,
            ..nvfp4(
                "nvfp4-te-16x16",
                "TransformerEngine, reference_nvfp4.py",
                NVFP4_16X16,
                Nvfp4Rule::TransformerEngine,
            )
        },
        nvfp4("nvfp4-torchao", "torchao 0.18.0, nvfp4_quantize", Granule::NVFP4_1X16, Nvfp4Rule::Torchao),
        nvfp4(
            "nvfp4-torchao-1level",
            "torchao 0.18.0, nvfp4_quantize without a tensor scale",
            Granule::NVFP4_1X16,
            Nvfp4Rule::TorchaoOneLevel,
        ),
        e5m6("e5m6-1x128", Granule::TILE_1X128, PowerOfTwo::No, PayloadForm::MaxOverAmax),
        e5m6("e5m6-1x128-pow2", Granule::TILE_1X128, PowerOfTwo::CeilField, PayloadForm::Inverse),
        e5m6("e5m6-row", Granule::ROW, PowerOfTwo::No, PayloadForm::MaxOverAmax),
        e5m6("e5m6-row-pow2", Granule::ROW, PowerOfTwo::CeilField, PayloadForm::Inverse),
    ];
}
