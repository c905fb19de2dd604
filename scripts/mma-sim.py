#!/usr/bin/env python3
"""Writes tests/data/mma_sim.safetensors: what MMA-Sim gives for the tensor cores that no recording holds.

    pip install mmasim==2.1.1 torch numpy && python3 scripts/mma-sim.py OUT

Operands are random patterns of four kinds, accumulators of four, 16x16 results of K = 64 each; models are named as
`finegrain gemm --accumulate` takes them. The same seed gives the same bytes.
"""

import json
import struct
import sys
import types

import numpy as np
import torch

# It compiles C++ when it is imported, for F32 and F64 operands, which are not asked for here.
sys.modules["mmasim.arithmetic.fma"] = types.SimpleNamespace(MMA_FMA=None)
import mmasim.arithmetic

mmasim.arithmetic.fma = sys.modules["mmasim.arithmetic.fma"]
from mmasim.amd import MFMA
from mmasim.nv_ptx import MMA, TCGen05MMA, WGMMA

M, N, K = 16, 16, 64
E4, E5, E4Z, E5Z, H, B, T = "e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz", "f16", "bf16", "f32"
TORCH = {
    E4: torch.float8_e4m3fn,
    E5: torch.float8_e5m2,
    E4Z: torch.float8_e4m3fnuz,
    E5Z: torch.float8_e5m2fnuz,
    H: torch.float16,
    B: torch.bfloat16,
    T: torch.float32,
}
# (width, fraction bits, bias) and the patterns of what is no number.
SHAPE = {E4: (8, 3, 7), E5: (8, 2, 15), E4Z: (8, 3, 8), E5Z: (8, 2, 16), H: (16, 10, 15), B: (16, 7, 127), T: (32, 23, 127)}
SPECIAL = {
    E4: [0x7F, 0xFF],
    E5: [0x7C, 0xFC, 0x7E],
    E4Z: [0x80],
    E5Z: [0x80],
    H: [0x7C00, 0xFC00, 0x7E00],
    B: [0x7F80, 0xFF80, 0x7FC0],
    T: [0x7F800000, 0xFF800000, 0x7FC00000],
}
UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32}
rng = np.random.default_rng(20270101)


def finite(fmt, codes):
    x = as_torch(fmt, codes).float()
    return torch.isfinite(x).numpy()


def as_torch(fmt, codes):
    signed = {8: np.uint8, 16: np.int16, 32: np.int32}[SHAPE[fmt][0]]
    return torch.from_numpy(codes.view(signed).copy()).view(TORCH[fmt])


def operand(fmt, kind, rows):
    width, fraction, bias = SHAPE[fmt]
    codes = rng.integers(0, 1 << width, (rows, K), np.uint64).astype(UINT[width])
    if kind in ("mid", "onesign", "special"):  # exponents around 1
        field = rng.integers(bias - 6, bias + 5, (rows, K), np.uint64)
        sign = rng.integers(0, 1 if kind == "onesign" else 2, (rows, K), np.uint64)
        low = codes.astype(np.uint64) & ((1 << fraction) - 1)
        codes = (sign << (width - 1) | field << fraction | low).astype(UINT[width])
    if kind == "special":
        hard = SPECIAL[fmt] + [0, 1, 1 << (width - 1) | 1, (1 << fraction) - 1]
        if fmt not in (E4Z, E5Z):
            hard.append(1 << (width - 1))
        there = rng.random((rows, K)) < 0.02
        codes[there] = rng.choice(np.array(hard, UINT[width]), there.sum())
        return codes
    bad = ~finite(fmt, codes)
    codes[bad] = 0
    return codes


def accumulator(acc, kind, dot):
    fmt, width = (H, 16) if acc == "f16" else (T, 32)
    if kind == "zero":
        return np.zeros((M, N), UINT[width])
    if kind == "near":  # what the products make of it, and nearly the opposite
        near = dot * rng.choice(np.array([1.0, -1.0, -1.0 + 2.0**-9, 2.0**-12, 300.0]), (M, N))
        x = torch.from_numpy(near).to(TORCH[fmt])
        return x.view(torch.int16 if width == 16 else torch.int32).numpy().view(UINT[width])
    codes = rng.integers(0, 1 << width, (M, N), np.uint64).astype(UINT[width])
    codes[~finite(fmt, codes)] = 1
    if kind == "special":
        largest = {16: 0x7BFF, 32: 0x7F7FFFFF}[width]
        hard = SPECIAL[fmt] + [0, 1 << (width - 1), 1, 1 << (width - 1) | 1, largest, largest | 1 << (width - 1)]
        codes = rng.choice(np.array(hard, UINT[width]), (M, N))
    return codes


def nv(arch, shape):
    return MMA(arch, shape)


MODELS = {
    "volta": (nv("Volta", "m8n8k4.f32.f16.f16.f32"), [(H, H)], "f32"),
    "volta:result=f16": (nv("Volta", "m8n8k4.f16.f16.f16.f16"), [(H, H)], "f16"),
    "turing": (nv("Turing", "m16n8k8.f32.f16.f16.f32"), [(H, H)], "f32"),
    "turing:result=f16": (nv("Turing", "m16n8k8.f16.f16.f16.f16"), [(H, H)], "f16"),
    "ampere": (nv("Ampere", "m16n8k16.f32.f16.f16.f32"), [(H, H), (B, B)], "f32"),
    "ampere:result=f16": (nv("Ampere", "m16n8k16.f16.f16.f16.f16"), [(H, H)], "f16"),
    "ada:result=f16": (nv("Ada Lovelace", "m16n8k32.f16.e4m3.e5m2.f16"), [(E4, E4), (E5, E4)], "f16"),
    "hopper-f16": (WGMMA("Hopper", "m64n8k16.f32.bf16.bf16"), [(B, B)], "f32"),
    "hopper-tf32": (WGMMA("Hopper", "m64n8k8.f32.tf32.tf32"), [(T, T)], "f32"),
    "hopper:result=f16": (WGMMA("Hopper", "m64n8k32.f16.e4m3.e4m3"), [(E5, E4)], "f16"),
    "blackwell:result=f16": (TCGen05MMA("Blackwell", "m64n8k32.kind::f8f6f4.f16.e4m3.e4m3"), [(E4, E4), (E5, E5)], "f16"),
    "blackwell-f16": (TCGen05MMA("Blackwell", "m64n8k16.kind::f16.f32.f16.f16"), [(H, H), (B, B)], "f32"),
    "blackwell-f16:result=f16": (TCGen05MMA("Blackwell", "m64n8k16.kind::f16.f16.f16.f16"), [(H, H)], "f16"),
    "rtx-blackwell": (nv("RTX Blackwell", "m16n8k32.kind::f8f6f4.f32.e4m3.e4m3.f32"), [(E4, E4), (E5, E4)], "f32"),
    "rtx-blackwell:result=f16": (nv("RTX Blackwell", "m16n8k32.kind::f8f6f4.f16.e4m3.e4m3.f16"), [(E4, E5)], "f16"),
    "cdna3": (MFMA("CDNA3", "f32_16x16x32_fp8_fp8"), [(E4Z, E4Z), (E5Z, E5Z), (E4Z, E5Z), (E5Z, E4Z)], "f32"),
    "cdna3-f16": (MFMA("CDNA3", "f32_16x16x16_f16"), [(H, H), (B, B)], "f32"),
    "cdna3-xf32": (MFMA("CDNA3", "f32_16x16x8_xf32"), [(T, T)], "f32"),
    "cdna2": (MFMA("CDNA2", "f32_16x16x16bf16_1k"), [(H, H), (B, B)], "f32"),
    "cdna2-bf16": (MFMA("CDNA2", "f32_16x16x8bf16"), [(B, B)], "f32"),
    "cdna1": (MFMA("CDNA1", "f32_16x16x16f16"), [(H, H)], "f32"),
    "cdna1-bf16": (MFMA("CDNA1", "f32_16x16x8bf16"), [(B, B)], "f32"),
}
STORED = {np.dtype(np.uint8): "U8", np.dtype(np.uint16): "U16", np.dtype(np.uint32): "U32"}


def main(path):
    tensors = {}
    formats = {f for _, pairs, _ in MODELS.values() for pair in pairs for f in pair}
    kinds = ("any", "mid", "onesign", "special")
    for fmt in sorted(formats):
        for kind in kinds:
            tensors[f"a.{fmt}.{kind}"] = operand(fmt, kind, M)
            tensors[f"b.{fmt}.{kind}"] = operand(fmt, kind, N)
    for model, (op, pairs, acc) in MODELS.items():
        for fa, fb in pairs:
            for kind in kinds:
                a, b = as_torch(fa, tensors[f"a.{fa}.{kind}"]), as_torch(fb, tensors[f"b.{fb}.{kind}"])
                dot = (a.double().nan_to_num(0, 0, 0) @ b.double().nan_to_num(0, 0, 0).T).numpy()
                for ckind in ("zero", "near", "wide", "special"):
                    c = f"c.{fa}.{fb}.{acc}.{kind}.{ckind}"
                    if c not in tensors:
                        tensors[c] = accumulator(acc, ckind, dot)
                    x = as_torch(H if acc == "f16" else T, tensors[c])
                    d = op.dpa(a[:, None, :].expand(-1, N, -1), b[None, :, :].expand(M, -1, -1), x)
                    d = d.contiguous().view(torch.int16 if acc == "f16" else torch.int32).numpy()
                    tensors[f"d.{model}.{fa}.{fb}.{kind}.{ckind}"] = d.view(UINT[16 if acc == "f16" else 32])
    head, offset = {"__metadata__": {"source": "mmasim 2.1.1"}}, 0
    for name, x in tensors.items():
        head[name] = {"dtype": STORED[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    head = json.dumps(head, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head + b"".join(np.ascontiguousarray(x).tobytes() for x in tensors.values()))
    print(f"{path}: {8 + len(head) + offset} bytes, {sum(x.size for n, x in tensors.items() if n.startswith('d.'))} results")


main(sys.argv[1])
