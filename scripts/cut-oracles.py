#!/usr/bin/env python3
"""Cuts the golden files in tests/data out of the full ones.

    python3 scripts/cut-oracles.py ../shared/oracles [tests/data]

Recordings of real silicon are looked for in the folder `silicon` beside the one that is named. Needs the Python standard library only. A tensor is taken whole, or as a rectangle that leaves every remaining value
true: rows of a matrix product, or whole scaling tiles. tests/data/README.md says what is in the cut.
"""
import json
import pathlib
import re
import struct
import sys

WIDTH = {"U8": 1, "U16": 2, "U32": 4, "F32": 4, "F64": 8, "U64": 8}


def read(path):
    """Tensors of a safetensors file: name -> (dtype, shape, bytes)."""
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    offsets = lambda info: slice(*(start + o for o in info["data_offsets"]))
    return {name: (info["dtype"], info["shape"], raw[offsets(info)]) for name, info in header.items()}


def write(path, tensors):
    """Writes a safetensors file, wide types first as the full files do, so that all data is aligned."""
    header, end = {}, 0
    names = sorted(tensors, key=lambda name: (-WIDTH[tensors[name][0]], name))
    for name in names:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[name][2] for name in names))


def rectangle(tensor, rows, cols):
    """The part rows × cols (two slices) of the last two dimensions."""
    dtype, shape, data = tensor
    *outer, m, n = shape
    rows, cols = range(m)[rows], range(n)[cols]
    width, planes = WIDTH[dtype], len(data) // (WIDTH[dtype] * m * n)
    at = lambda plane, i: ((plane * m + i) * n + cols.start) * width
    parts = [data[at(p, i):at(p, i) + len(cols) * width] for p in range(planes) for i in rows]
    return dtype, [*outer, len(rows), len(cols)], b"".join(parts)


def casts(full):
    """All decode tables and hard cases; every kind of cast for at least one format; no f32_stride tables."""
    keep = re.compile(
        r".*\.(decode_f32|hard_f32_bits|hard_codes)"
        r"|e4m3fn\.from_bf16|e4m3fnuz\.from_f16"
        r"|e4m3fn\.(rna\.nosat|up\.sat|sr8_add\.sat)\.from_bf16"
        r"|e5m2\.(down\.nosat|sr8_rne\.sat)\.from_bf16"
        r"|e2m1fn\.rtz\.sat\.from_bf16|sr8\.random_bits"
        r"|e5m6\.tilekernels\.from_bf16|e5m6\.pack\..*"
    )
    return {name: tensor for name, tensor in full.items() if keep.fullmatch(name)}


def recipes(full):
    """Whole tiles at an edge of each matrix: `clean` for all recipes, `special` for a few kinds."""
    out = {name: tensor for name, tensor in full.items() if name.startswith("nvfp4.")}
    special = re.compile(
        r"1x128\.(nonfinite|log2_sensitive)|1x32\.nonfinite"
        r"|1x128\.(deepseek-v3(-ue8m0)?|te|te-kernel|tilekernels|compressed-tensors)\.[qs]"
        r"|mxfp8-e4m3\.(floor|floor-torchao|rceil|rceil-te)\.[qs]|mxfp4-e2m1\.floor\.[qs]"
    )
    for name, tensor in full.items():
        matrix, rest = name.split(".", 1)
        if matrix == "clean" and "e5m6-row" not in rest:  # a whole row shares that scale
            first_row, rows, first_col = 128, 44, 384
        elif matrix == "special" and (rest == "x" or special.fullmatch(rest)):
            first_row, rows, first_col = 0, 48, 0  # tiles of one row; the special ones are among the first 46
        else:
            continue
        block_rows, block_cols = (1, 1) if rest == "x" or rest.endswith(".q") else granule(rest)
        last_row = -(-(first_row + rows) // block_rows)
        area = slice(first_row // block_rows, last_row), slice(first_col // block_cols, None)
        out[name] = rectangle(tensor, *area)
    return out


def granule(name):
    """Elements that share a value of a tensor with one value per tile."""
    size = re.search(r"(\d+)x(\d+)", name)
    return (int(size[1]), int(size[2])) if size else (1, 32)


def tensor_core(full):
    """Every kind of operand; the first rows of A and B are enough, since every result stands alone."""
    sizes = [
        (r"mma\.(e4m3\.e4m3|e5m2\.e4m3|e3m2.*|e2m3.*|e2m1.*)\.k32\..*", 16),
        (r"mma\.(e4m3\.e5m2|e5m2\.e5m2)\.k32\.(any|zeros|cancel)", 16),
        (r"mma\..*\.k128\..*", 5),
        (r"mma\.e4m3\.e4m3\.k4096\.(normal|cancel)", 4),
        (r"(mxfp8|mxfp4|nvfp4)\..*\.k64\..*", 8),
        (r"(mxfp8\.e4m3|nvfp4)\..*\.k256\.finite", 8),
        (r"promoted\..*\.e4m3\.e4m3\.positive", 8),
    ]
    out = {}
    for name, tensor in full.items():
        case = re.sub(r"\.(a|b|sa|sb|sb_block|sb_tile|c_bits|d_bits\..*|partial_bits)$", "", name)
        for pattern, size in sizes:
            if re.fullmatch(pattern, case):
                per_result = "_bits" in name[len(case):]
                out[name] = rectangle(tensor, slice(0, size), slice(0, size if per_result else None))
    return out


def gemm(full):
    """Cases with ragged edges, short K, a single product, subnormals and mixed formats."""
    keep = ("e4m3.e4m3.5x3x1.", "e4m3.e4m3.16x16x127.", "e4m3.e4m3.20x140x385.", "e5m2.e4m3.45x70x520.b1x128.")
    return {name: tensor for name, tensor in full.items() if name.startswith(keep)}


def silicon_products(full):
    """Rows of A and B of every product, fewer where K is long; each result stands alone. With scales of rows those where
    the order of the scales shows."""
    out = {}
    for name, tensor in full.items():
        *_, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", name).groups())
        rows, cols = (slice(0, 8), slice(0, 16)) if k < 1024 else (slice(0, 4), slice(0, 8))
        if re.search(r"\brow\..*x512\b", name):
            rows, cols = slice(80, 88), slice(240, 256)
        if name.startswith("d."):
            out[name] = rectangle(tensor, rows, cols)
            continue
        form, side = name.split(".")[0], name.rsplit(".", 1)[1]
        height = rows if side in ("a", "sa") else cols
        if side == "sb" and form == "tile_block":
            height = slice(0, 1)  # the scales of one block of 128 rows
        whole = form == "tensor" and side in ("sa", "sb")
        out[name] = tensor if whole else rectangle(tensor, height, slice(None))
    return out


def silicon_chains(full):
    """The first problem of every instruction, kind of operand and of accumulator: one step, and four of a few."""
    out = {}
    for name, (dtype, shape, data) in full.items():
        kind, steps = name.split(".")[2], name.rsplit(".", 1)[1]
        if steps == "1" or steps == "4" and kind == "any" and (name[0] in "ab" or ".near." in name):
            first = dtype, shape[1:], data[:len(data) // shape[0]]
            rows = slice(None) if name[0] == "b" else slice(0, 24)
            out[name] = rectangle(first, rows, slice(None))
    return out


def silicon_casts(full):
    """The sum of every 64th block of f32 patterns, one table of the instructions and one of PyTorch."""
    out = {name: full[name] for name in ("bf16.e4m3.sat.table", "torch.bf16.e8m0.table")}
    for name, (dtype, shape, data) in full.items():
        if name.endswith(".sums"):
            data = b"".join(data[at:at + 8] for at in range(0, len(data), 64 * 8))
            out[name] = dtype, [len(data) // 8], data
    return out


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    source = pathlib.Path(sys.argv[1])
    target = pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else "tests/data")
    target.mkdir(parents=True, exist_ok=True)
    for cut in (casts, recipes, tensor_core, gemm):
        name = f"{cut.__name__}.safetensors"
        tensors = cut(read(source / name))
        write(target / name, tensors)
        print(f"{target / name}: {len(tensors)} tensors, {(target / name).stat().st_size:,} bytes")
    for cut in (silicon_products, silicon_chains, silicon_casts):
        name = f"{cut.__name__}.safetensors"
        tensors = cut(read(source.parent / "silicon" / name.removeprefix("silicon_")))
        write(target / name, tensors)
        print(f"{target / name}: {len(tensors)} tensors, {(target / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
