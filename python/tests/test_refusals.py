"""Hostile arguments: one sentence each."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import finegrain as fg

X = np.random.default_rng(1).standard_normal((32, 256), np.float32)
Q = fg.quantize(X, "deepseek-v3", role="activation")


def refused(words: str, call: Any) -> None:
    with pytest.raises(fg.Error, match=words) as caught:
        call()
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "x"),
    [
        ("last dimension is to be contiguous.*copy=True", X.T),
        ("last dimension is to be contiguous", X[:, ::2]),
        ("last dimension is to be contiguous", X[::-1]),
        ("rows that do not overlap", np.broadcast_to(X[0], (4, 256))),
        ("expected a matrix", X[0]),
        ("expected a matrix", X.reshape(2, 16, 256)),
        ("integers or codes", X.astype(np.int32)),
        ("dtype complex64", X.astype(np.complex64)),
        ("dtype >f4", X.astype(">f4")),
        ("holds e4m3", Q.codes),
        ("x is a NoneType", None),
        ("x is a list", [[1.0]]),
        ("multiple of 4 bytes", np.frombuffer(b"x" * 1025, np.float32, 256, 1).reshape(2, 128)),
    ],
)
def test_sources(words: str, x: Any) -> None:
    refused(words, lambda: fg.quantize(x, "te", role="weight"))


def test_copy_reads_what_is_not_contiguous() -> None:
    for x in (X.T, X[:, ::2], X[::-1], np.broadcast_to(X[0], (4, 256))):
        q = fg.quantize(x, "te", role="activation", copy=True)
        assert np.array_equal(q.dequantize(), fg.quantize(x.copy(), "te", role="activation").dequantize())


def test_words() -> None:
    refused("unknown recipe 'nope'; known: deepseek-v3", lambda: fg.quantize(X, "nope", role="weight"))
    refused("unknown role 'both'", lambda: fg.quantize(X, "te", role="both"))  # type: ignore[arg-type]
    refused("unknown format 'e9m9'", lambda: fg.cast(X, "e9m9"))
    refused("unknown rounding 'odd'", lambda: fg.cast(X, "e4m3", round="odd"))  # type: ignore[arg-type]
    refused("seed is for", lambda: fg.cast(X, "e4m3", seed=1))
    refused("at most 16 bits", lambda: fg.cast(X, "f32"))
    refused("unknown accumulation model 'abacus'", lambda: fg.gemm(Q, Q, accumulate="abacus"))
    refused("promote=", lambda: fg.gemm(Q, Q, promote="often"))  # type: ignore[arg-type]
    refused("promote=-1", lambda: fg.gemm(Q, Q, promote=-1))
    refused("unknown promotion", lambda: fg.gemm(Q, Q, promotion="last"))  # type: ignore[arg-type]
    refused("split", lambda: fg.gemm(Q, Q, split_k=0))
    refused("threads=0", lambda: fg.gemm(Q, Q, threads=0))
    refused("at most 1024", lambda: fg.gemm(Q, Q, threads=100_000))
    refused("dtype 'int8', expected one of float32", lambda: fg.gemm(Q, Q, out="int8"))
    refused("sets model, interval and order", lambda: fg.gemm(Q, Q, accumulate="deepgemm", promote=128))
    refused("says all", lambda: fg.gemm(Q, Q, accumulate="hopper/128", split_k=2))


def test_operands() -> None:
    codes, scales = Q
    refused("differ in K", lambda: fg.gemm(codes, codes[:, :128]))
    refused("name the format", lambda: fg.gemm(codes.view(np.uint8), codes))
    refused("a holds e4m3, but format_a is e5m2", lambda: fg.gemm(codes, codes, format_a="e5m2"))
    refused("none of the field's granules", lambda: fg.gemm(codes, codes, scales[:5], scales))
    refused("scale grid is 32×2", lambda: fg.gemm(codes, codes, scales, scales, granule_a="1x64"))
    refused("a has no a_scale, but granule_a", lambda: fg.gemm(codes, codes, granule_a="1x128"))
    refused("a_scale is not for it", lambda: fg.gemm(Q, Q, scales))
    refused("a is float32, which hopper-tf32", lambda: fg.gemm(X, X))
    refused("expected scales in f32", lambda: fg.gemm(codes, codes, scales.astype(np.float16), scales))
    refused("addend is 2×2", lambda: fg.gemm(Q, Q, c=np.zeros((2, 2), np.float32)))
    refused("c is to be float32", lambda: fg.gemm(Q, Q, c=np.zeros((32, 32))))
    refused("wider than the 4 bits", lambda: fg.dequantize(codes.view(np.uint8), format="e2m1"))
    refused("change every 128 elements", lambda: fg.gemm(Q, Q, promote=None))


def test_places_for_results() -> None:
    codes, scales = Q
    d = np.zeros((32, 32), np.float32)
    refused("into has shape", lambda: fg.gemm(Q, Q, into=np.zeros((32, 31), np.float32)))
    refused("another dtype", lambda: fg.gemm(Q, Q, into=np.zeros((32, 32))))
    refused("another dtype", lambda: fg.gemm(Q, Q, out="bfloat16", into=d))
    refused("last dimension", lambda: fg.gemm(Q, Q, into=d.T))
    d.flags.writeable = False
    refused("read-only", lambda: fg.gemm(Q, Q, into=d))
    c = np.zeros((32, 32), np.float32)
    refused("c shares memory with into", lambda: fg.gemm(Q, Q, c=c, into=c))
    memory = np.zeros((32, 256), np.float32)
    refused(
        "x shares memory",
        lambda: fg.quantize(memory, "te", role="activation", into=(memory.view(np.uint8)[:, :256], scales)),
    )
    refused("into is to be", lambda: fg.quantize(X, "te", role="activation", into=codes))
    refused("has shape", lambda: fg.quantize(X, "te", role="weight", into=(codes, scales)))
    refused("shares memory", lambda: fg.cast(c, "bf16", into=c.view(ml_dtypes.bfloat16)[:, :32]))


def test_tensors_elsewhere(torch: Any) -> None:
    refused(r"x is on meta, expected a CPU tensor: pass x\.cpu\(\)", lambda: fg.cast(torch.empty(2, 2, device="meta"), "e4m3"))
    if torch.cuda.is_available():
        refused(r"x is on cuda:0.*\.cpu\(\)", lambda: fg.cast(torch.ones(2, 2, device="cuda"), "e4m3"))
    refused("without memory", lambda: fg.cast(torch.eye(3).to_sparse(), "e4m3"))
    refused("negated", lambda: fg.cast(torch.ones(3, 1, dtype=torch.complex64).conj().imag, "e4m3"))
    refused(r"x\.contiguous\(\)", lambda: fg.quantize(torch.ones(4, 8).t(), "te", role="weight"))
