"""Every call against golden values, code by code."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import finegrain as fg

from conftest import golden

ROLES = {"1x128": "activation", "128x128": "weight", "128x1": "transposed"}


def cases() -> list[tuple[str, str, str]]:
    found = []
    for name in golden("recipes").names():
        parts = name.split(".")
        if parts[-1] == "q" and parts[0] in ("clean", "special") and parts[1] in ROLES:
            found.append((parts[0], parts[1], ".".join(parts[2:-1])))
    return found


def test_there_are_cases() -> None:
    assert len(cases()) > 20


@pytest.mark.parametrize("matrix", ["clean", "special"])
def test_recipes(matrix: str) -> None:
    file = golden("recipes")
    tried = 0
    for of, geometry, recipe in cases():
        # What is regrouped or extrapolated, and tiles that are not finite, are held to the source in the library's own tests.
        if of != matrix or recipe not in fg.recipes():
            continue
        prefix = f"{matrix}.{geometry}"
        codes, scales = file[f"{prefix}.{recipe}.q"], file[f"{prefix}.{recipe}.s"]
        q = fg.quantize(file[f"{matrix}.x"], recipe, role=ROLES[geometry])  # type: ignore[arg-type]
        ours, our_scales = q.codes.view(np.uint8), q.scales
        if geometry == "128x1":
            ours, our_scales = ours.T, our_scales.T
        finite = file[f"{prefix}.nonfinite"] == 0
        assert np.array_equal(our_scales[finite].view(np.uint32), scales[finite].view(np.uint32)), recipe
        rows, cols = (int(side) for side in geometry.split("x"))
        elements = np.repeat(np.repeat(finite, rows, 0), cols, 1)[: codes.shape[0], : codes.shape[1]]
        assert np.array_equal(ours[elements], codes[elements]), (recipe, geometry)
        tried += 1
    assert tried > 5


@pytest.mark.parametrize(
    ("format", "name"),
    [("e4m3", "e4m3fn"), ("e5m2", "e5m2"), ("e4m3fnuz", "e4m3fnuz"), ("e5m2fnuz", "e5m2fnuz")],
)
def test_casts_of_bf16(format: str, name: str) -> None:
    file = golden("casts")
    key = f"{name}.from_bf16"
    if key not in file.names():
        pytest.skip(f"{key} is not in the cut")
    x = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    codes = fg.cast(x, format, overflow="nonsaturating")
    expected = file[key]
    assert codes.dtype == np.dtype(f"float8_{name}")
    nan = np.isnan(expected.view(codes.dtype).astype(np.float32))
    assert np.array_equal(np.isnan(codes.astype(np.float32)), nan)
    assert np.array_equal(codes.view(np.uint8)[~nan], expected[~nan])


def products() -> list[str]:
    return [name.removesuffix(".d_f32") for name in golden("gemm").names() if name.endswith(".d_f32")]


@pytest.mark.parametrize("prefix", products())
def test_products(prefix: str) -> None:
    file = golden("gemm")
    fa, fb = prefix.split(".")[:2]
    dtypes: dict[str, Any] = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
    a, b = file[f"{prefix}.a"], file[f"{prefix}.b"]
    sa, sb = file[f"{prefix}.sa"], file[f"{prefix}.sb"]
    # Where a matrix is smaller than a block its shape does not tell which granule it has.
    granules = {"granule_a": "1x128", "granule_b": prefix.split(".b")[1].split(".")[0]}
    orders = {"": "scales-first", ".te": "partial-first", ".deepseek-v3": "unfused"}
    for suffix, promotion in orders.items():
        if f"{prefix}.d_f32{suffix}" not in file.names():
            continue
        expected = file[f"{prefix}.d_f32{suffix}"]
        d = fg.gemm(a.view(dtypes[fa]), b.view(dtypes[fb]), sa, sb, promotion=promotion, **granules)  # type: ignore[arg-type]
        assert np.array_equal(d.view(np.uint32), expected.view(np.uint32))
        plain = fg.gemm(
            a, b, sa, sb, promotion=promotion, format_a=fa, format_b=fb, threads=2, **granules  # type: ignore[arg-type]
        )
        assert np.array_equal(plain.view(np.uint32), expected.view(np.uint32))
        fg.testing.assert_same_bits(
            expected, a, b, sa, sb, promotion=promotion, format_a=fa, format_b=fb, **granules  # type: ignore[arg-type]
        )
    if f"{prefix}.d_bf16_bits" in file.names():
        d = fg.gemm(a, b, sa, sb, out="bfloat16", format_a=fa, format_b=fb, **granules)  # type: ignore[arg-type]
        assert np.array_equal(d.view(np.uint16), file[f"{prefix}.d_bf16_bits"])


def test_tensor_cores() -> None:
    file = golden("tensor_core")
    models = {"hopper-wgmma": "hopper", "ada-mma": "ada", "blackwell-tcgen05": "blackwell"}
    tried = 0
    for name in file.names():
        if not name.startswith("mma.e4m3.e5m2.k128.") or ".d_bits." not in name:
            continue
        prefix, arch = name.split(".d_bits.")
        d = fg.gemm(
            file[f"{prefix}.a"],
            file[f"{prefix}.b"],
            c=file[f"{prefix}.c_bits"].view(np.float32),
            accumulate=models[arch],
            promote=None,
            format_a="e4m3",
            format_b="e5m2",
        )
        expected = file[name]
        nan = np.isnan(expected.view(np.float32))
        assert np.array_equal(np.isnan(d), nan)
        assert np.array_equal(d.view(np.uint32)[~nan], expected[~nan]), name
        tried += 1
    if tried == 0:
        pytest.skip("none of these products is in the cut")


def test_dequantize() -> None:
    file = golden("recipes")
    codes, scales = file["clean.128x128.te.q"], file["clean.128x128.te.s"]
    values = fg.dequantize(codes, scales, format="e4m3")
    wide = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: codes.shape[0], : codes.shape[1]]
    assert np.array_equal(values, codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * wide)
    narrow = fg.dequantize(codes, scales, format="e4m3", dtype=ml_dtypes.bfloat16)
    assert narrow.dtype == ml_dtypes.bfloat16
    assert np.array_equal(narrow.view(np.uint16), values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_requantize_transposed_is_dequantise_and_quantise() -> None:
    x = golden("recipes")["clean.x"]
    q = fg.quantize(x, "deepseek-v3", role="activation")
    t = fg.requantize_transposed(q)
    again = fg.quantize(q.dequantize(), "deepseek-v3", role="transposed")
    assert np.array_equal(t.codes.view(np.uint8), again.codes.view(np.uint8))
    assert np.array_equal(t.scales, again.scales)


def test_nvfp4_has_a_tensor_scale() -> None:
    file = golden("recipes")
    q = fg.quantize(file["nvfp4.x"], "nvfp4-torchao", role="activation")
    assert np.array_equal(q.codes.view(np.uint8), file["nvfp4.torchao.q"])
    assert np.array_equal(q.scales.view(np.uint8), file["nvfp4.torchao.s"])
    assert np.float32(q.tensor_scale) == file["nvfp4.torchao.tensor_scale"][0]
    values = fg.dequantize(q.codes, q.scales, tensor_scale=q.tensor_scale)
    assert np.array_equal(values, q.dequantize())
