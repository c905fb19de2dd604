"""The library against its peers: the same shapes, alternately, in one run. README.md beside this says what to install.

    python benches/peers/run.py --finegrain target/release/finegrain [--gemm-crate PROGRAM] [--only TEXT] [--rounds N] [--json]

Each row names one piece of work and two ways to do it. Their answers are compared first; then both are timed in every
round, each for at least --seconds, and the ratio of the medians over the rounds is printed with its spread. A ratio above
1 says that finegrain is faster. What cannot run here is listed with the reason.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

# Libraries print to the standard output: they get the standard error, and the table a descriptor of its own.
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn
EXPERT = (4096, 2048)  # hidden and intermediate size of the expert that kt-kernel computes


class Unavailable(Exception):
    """A way that this machine or this version cannot go."""


@dataclasses.dataclass
class Row:
    work: str
    target: float
    unit: str  # "x": the peer's time over ours; "%": our share of a rate
    threads: int
    prepare: object  # a context -> two calls that return seconds (or a share and None), and what else to know


class Context:
    def __init__(self, options, folder):
        self.options, self.folder, self.operands_of = options, pathlib.Path(folder), {}

    # -- operands and ours

    def operands(self, m, n, k):
        """Quantised 1×128 and 128×128 with scales that are powers of two, and their values in f32."""
        if (m, n, k) not in self.operands_of:
            torch.manual_seed(m * n + k)
            a, a_scale, a_value = quantized(torch.randn(m, k), 1)
            b, b_scale, b_value = quantized(torch.randn(n, k), 128)
            self.operands_of.clear()  # one shape at a time: they are large
            self.operands_of[m, n, k] = (a, a_scale, b, b_scale, a_value, b_value)
        return self.operands_of[m, n, k]

    def ours_gemm(self, m, n, k, threads):
        a, a_scale, b, b_scale, *_ = self.operands(m, n, k)
        source, result = self.folder / "in.safetensors", self.folder / "out.safetensors"
        save_file({"a": a, "a_scale_inv": a_scale, "b": b, "b_scale_inv": b_scale}, source)
        self.finegrain("gemm", source, result, "--promote", 128, "--threads", threads)
        return load_file(result)["d"]

    def bench(self, operation, threads, **sizes):
        flags = [x for name, size in sizes.items() for x in (f"--{name}", size)]
        answer = self.finegrain("bench", operation, "--json", "--threads", threads, "--seconds", self.options.seconds, *flags)
        return json.loads(answer)

    def finegrain(self, *arguments):
        command = [self.options.finegrain, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


def quantized(x, rows):
    """Codes, scales and values of x in tiles of `rows` × 128."""
    m, k = x.shape
    padded = torch.nn.functional.pad(x, (0, -k % 128, 0, -m % rows))
    tiles = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // 128, 128)
    scale = torch.exp2(torch.ceil(torch.log2(tiles.abs().amax((1, 3)).clamp(min=1e-30) / 448)))
    wide = scale[:, None, :, None]
    codes = (tiles / wide).to(FP8)
    value = (codes.float() * wide).view(padded.shape)[:m, :k].contiguous()
    return codes.view(padded.shape)[:m, :k].contiguous(), scale, value


def close(what, ours, theirs, tolerance):
    error = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not error <= tolerance:
        sys.exit(f"error: {what}: the answers differ by {error:.2e} of their norm, allowed are {tolerance:.0e}")


def timed(call, seconds):
    """The median of at least three calls that take `seconds` together, after one that does not count."""
    call()
    times = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# -- the peers of the GEMM: each returns a call without arguments that returns D


def onednn_bf16(context, m, n, k, _threads):
    *_, a, b = context.operands(m, n, k)
    a, b = a.bfloat16(), b.bfloat16()
    return lambda: a @ b.t()


def mkl_f32(context, m, n, k, _threads):
    *_, a, b = context.operands(m, n, k)
    return lambda: a @ b.t()


def dequantize_bf16(context, m, n, k, _threads):
    a, a_scale, b, b_scale, *_ = context.operands(m, n, k)
    if n % 128 or k % 128:
        raise Unavailable("written for whole blocks")

    def call():
        x = (a.view(m, k // 128, 128).to(torch.bfloat16) * a_scale.bfloat16()[:, :, None]).view(m, k)
        blocks = b.view(n // 128, 128, k // 128, 128).to(torch.bfloat16)
        w = (blocks * b_scale.bfloat16()[:, None, :, None]).view(n, k)
        return x @ w.t()

    return call


def scaled_mm(context, m, n, k, _threads):
    """With one scale for each operand, the CPU's only form: other scales than ours, so held to its own reference."""
    a, _, b, _, *_ = context.operands(m, n, k)
    one = torch.ones((), dtype=torch.float32)
    try:
        torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError) as e:
        raise Unavailable(f"torch._scaled_mm: {str(e).splitlines()[0]}")
    call = lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    close("torch._scaled_mm", call(), a.float() @ b.float().t(), 1e-2)
    return call


def gemm_crate(context, m, n, k, threads):
    program = context.options.gemm_crate
    if not program:
        raise Unavailable("no --gemm-crate given")
    *_, a, b = context.operands(m, n, k)
    paths = [str(context.folder / name) for name in ("a.f32", "b.f32", "d.f32")]
    a.numpy().tofile(paths[0])
    b.numpy().tofile(paths[1])
    run = lambda: subprocess.run([program, *map(str, (m, n, k, threads)), *paths], capture_output=True, text=True, check=True)
    seconds = lambda: float(run().stdout)
    seconds()
    d = torch.from_file(paths[2], size=m * n, dtype=torch.float32).view(m, n).clone()
    return d, seconds


def gemm_row(work, target, m, n, k, threads, peer, tolerance=1e-2):
    def prepare(context):
        theirs = peer(context, m, n, k, threads)
        answer, seconds = theirs if isinstance(theirs, tuple) else (theirs(), lambda: timed(theirs, context.options.seconds))
        if peer is not scaled_mm:
            close(work, context.ours_gemm(m, n, k, threads), answer, tolerance)
        bf16_elsewhere = peer in (onednn_bf16, dequantize_bf16) and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        note = "not oneDNN, which has no BF16 on this CPU: PyTorch's own loops" if bf16_elsewhere else ""
        return (lambda: context.bench("gemm", threads, m=m, n=n, k=k)["seconds"]), seconds, note

    return Row(work, target, "x", threads, prepare)


# -- KTransformers: one expert, gate and up and down, against three of our products of the same shapes


def kt_row(target, m):
    hidden, inter = EXPERT

    def prepare(context):
        try:
            import kt_kernel
        except ImportError as e:
            raise Unavailable(f"kt-kernel: {e}")
        name, call, answer, expected = kt_expert(kt_kernel.kt_kernel_ext, m, hidden, inter)
        close(f"kt-kernel at M = {m}", answer, expected, 3e-2)
        up = lambda: context.bench("gemm", 1, m=m, n=inter, k=hidden)["seconds"]
        down = lambda: context.bench("gemm", 1, m=m, n=hidden, k=inter)["seconds"]
        return (lambda: 2 * up() + down()), (lambda: timed(call, context.options.seconds)), name

    return Row(f"expert 4096/2048, M = {m}, against kt-kernel FP8", target, "x", 1, prepare)


def kt_expert(extension, m, hidden, inter):
    avx512 = "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
    name = "AMXFP8_MOE" if avx512 else "AVX2FP8_MOE"
    kernel = getattr(extension.moe, name, None)
    if kernel is None:
        raise Unavailable(f"kt-kernel has no {name} for this CPU")
    torch.manual_seed(7)
    weights = [quantized(torch.randn(n, k) / math.sqrt(k), 128) for n, k in ((inter, hidden), (inter, hidden), (hidden, inter))]
    pool = extension.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [1]
    cpu = extension.CPUInfer(pool)
    on_gpu = torch.zeros(1, dtype=torch.bool)
    config = extension.moe.MOEConfig(1, 1, hidden, inter, on_gpu.data_ptr())
    config.layer_idx, config.pool, config.max_len = 0, cpu.backend_, max(m, 128)
    for (codes, scales, _), role in zip(weights, ("gate", "up", "down")):
        setattr(config, f"{role}_projs", [[codes.data_ptr()]])
        setattr(config, f"{role}_scales", [[scales.data_ptr()]])
    config.quant_config.bits, config.quant_config.group_size, config.quant_config.zero_point = 8, 128, False
    moe = kernel(config)
    identity = torch.zeros(1, dtype=torch.int64)
    cpu.submit(moe.load_weights_task(identity.data_ptr()))
    cpu.sync()
    x = torch.randn(m, hidden).bfloat16()
    y = torch.zeros(m, hidden, dtype=torch.bfloat16)
    count, ids, shares = torch.tensor([m], dtype=torch.int32), torch.zeros(m, 1, dtype=torch.int64), torch.ones(m, 1)
    keep = (weights, on_gpu, identity, config)

    def call(_keep=keep):
        cpu.submit(moe.forward_task(count.data_ptr(), 1, ids.data_ptr(), shares.data_ptr(), x.data_ptr(), y.data_ptr(), False))
        cpu.sync()

    call()
    gate, up, down = (value for *_, value in weights)
    expected = (torch.nn.functional.silu(x.float() @ gate.t()) * (x.float() @ up.t())).bfloat16().float() @ down.t()
    return name, call, y, expected


# -- quantise, dequantise, copies


def quantize_eager(x):
    tiles = x.view(x.shape[0], -1, 128)
    scale = tiles.abs().amax(2, keepdim=True).clamp(min=1e-30) / 448
    return (tiles / scale).to(FP8), scale


def cast_row(work, target, unit, operation, peer, m=4096, k=4096, threads=2):
    def prepare(context):
        x = torch.randn(m, k)
        if peer == "copy":
            # As many bytes read as written, together those of the operation.
            moved = {"quantize": 4 + 1, "dequantize": 1 + 2}[operation] * m * k // 2
            source = torch.zeros(moved, dtype=torch.uint8)
            target_memory = torch.empty_like(source)
            call = lambda: target_memory.copy_(source)
        else:
            call = quantize_eager if peer == "eager" else torch.compile(quantize_eager)
            codes, scale = call(x)
            close(work, (codes.float() * scale).view(m, k), x, 4e-2)
            bound, call = call, None
            call = lambda: bound(x)
        return (lambda: context.bench(operation, threads, m=m, k=k)["seconds"]), (lambda: timed(call, context.options.seconds)), ""

    return Row(work, target, unit, threads, prepare)


# -- figures of our own program: a share of a measured peak, or two of its times


def peak_row(work, target, m, n, k, threads, rate="gflops", isa=None):
    def prepare(context):
        flags = {"isa": isa} if isa else {}

        def share():
            answer = context.bench("gemm", threads, m=m, n=n, k=k, **flags)
            return answer[rate] / answer[f"peak_{rate}"]

        return share, None, ""

    return Row(work, target, "%", threads, prepare)


def own_row(work, target, unit, threads, ours, other):
    return Row(work, target, unit, threads, lambda context: ((lambda: ours(context)), (lambda: other(context)), ""))


def rows(flags):
    table = []
    shapes = [(1024, 4096, 4096), (2048, 2048, 2048), (4096, 2112, 7168)]
    has_bf16, has_avx512 = "avx512_bf16" in flags, "avx512f" in flags
    for m, n, k in shapes:
        table.append(gemm_row(f"dense {m}x{n}x{k} against oneDNN BF16", 1.0, m, n, k, 2, onednn_bf16))
    for m, n, k in shapes:
        work = f"dense {m}x{n}x{k} against the VDPBF16PS peak"
        table.append(peak_row(work, 0.92, m, n, k, 2, isa="avx512-bf16") if has_bf16 else missing(work, 0.92, "%", "AVX-512 BF16"))
    for m, target in ((1, 100), (16, 25), (128, 6), (1024, 1.6)):
        table.append(gemm_row(f"dense M = {m} against dequantise-then-BF16", target, m, 4096, 4096, 2, dequantize_bf16))
    table.append(gemm_row("dense M = 128 against oneDNN BF16", 1.0, 128, 4096, 4096, 2, onednn_bf16))
    table += [kt_row(target, m) for m, target in ((1, 1.8), (16, 1.6), (128, 2.6), (1024, 3))]
    table.append(peak_row("M = 1 weight stream (16384x16384) against reading", 0.85, 1, 16384, 16384, 2, "gbytes_per_s"))
    table.append(gemm_row("M = 1 against oneDNN BF16", 4, 1, 4096, 4096, 2, onednn_bf16))
    table.append(gemm_row("M = 1 against MKL f32", 5, 1, 4096, 4096, 2, mkl_f32, 1e-5))
    table.append(gemm_row("M = 16 against oneDNN BF16", 1.8, 16, 4096, 4096, 2, onednn_bf16))
    gemm = lambda threads: lambda context: context.bench("gemm", threads, m=1024, n=4096, k=4096)["seconds"]
    table.append(own_row("dense 1024x4096x4096, two threads against one", 1.9, "x", 2, gemm(2), gemm(1)))
    for isa, present in (("avx512", has_avx512), ("avx2", "avx2" in flags)):
        work = f"dense 1024x4096x4096 on {isa} against its f32 FMA peak"
        table.append(peak_row(work, 0.88, 1024, 4096, 4096, 2, isa=isa) if present else missing(work, 0.88, "%", isa))
    table.append(cast_row("quantise 1x128 from f32 against PyTorch eager", 10, "x", "quantize", "eager"))
    table.append(cast_row("quantise 1x128 from f32 against PyTorch compiled", math.nan, "x", "quantize", "compiled"))
    table.append(cast_row("quantise 1x128 from f32 against a copy of the same bytes", 0.75, "%", "quantize", "copy"))
    table.append(cast_row("dequantise 128x128 to bf16 against a copy of the same bytes", 0.75, "%", "dequantize", "copy"))
    grouped = lambda context: context.bench("grouped", 2, groups=4, m=1024, n=7168, k=3072)["seconds"]
    dense = lambda context: context.bench("gemm", 2, m=4096, n=7168, k=3072)["seconds"]
    table.append(own_row("grouped 4 x 1024x7168x3072 against dense", 0.95, "%", 2, grouped, dense))
    # Not in the list of figures to reach, but what a reader asks next.
    table.append(gemm_row("dense 1024x4096x4096 against MKL f32", math.nan, 1024, 4096, 4096, 2, mkl_f32, 1e-5))
    table.append(gemm_row("dense 1024x4096x4096 against the gemm crate, f32", math.nan, 1024, 4096, 4096, 2, gemm_crate, 1e-5))
    table.append(gemm_row("dense M = 128 against torch._scaled_mm, one scale", math.nan, 128, 4096, 4096, 2, scaled_mm))
    return table


def missing(work, target, unit, what):
    def prepare(_context):
        raise Unavailable(f"this CPU lacks {what}")

    return Row(work, target, unit, 2, prepare)


def measure(row, context):
    """The ratio's median, least and largest over the rounds, and the median times."""
    torch.set_num_threads(row.threads)
    ours, theirs, note = row.prepare(context)
    pairs = [(ours(), theirs() if theirs else None) for _ in range(context.options.rounds)]
    ratios = [b / a if theirs else a for a, b in pairs]
    middle = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs) if theirs else statistics.median(ratios)
    times = {"ours_seconds": statistics.median(a for a, _ in pairs), "peer_seconds": statistics.median(b for _, b in pairs)} if theirs else {}
    return {"ratio": middle, "least": min(ratios), "largest": max(ratios), **times, "note": note}


def machine(context):
    facts = dict(line.split(":", 1) for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    version = lambda name: next((d.version for d in importlib.metadata.distributions() if d.metadata["Name"] == name), "absent")
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return facts["flags"].split(), {
        "cpu": f"{facts['model name']}, family {facts['cpu family']} model {facts['model']}, {os.cpu_count()} CPUs",
        "isa": context.bench("gemm", 1, m=16, n=128, k=128)["isa"],
        "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
        "onednn_bf16": "oneDNN" if bf16 else "no oneDNN BF16 on this CPU: PyTorch multiplies BF16 with loops of its own",
        "kt-kernel": version("kt-kernel"),
        "finegrain": context.finegrain("--version").strip(),
    }


def shown(value, unit):
    if math.isnan(value):
        return "-"
    return f"{100 * value:.0f} %" if unit == "%" else f"{value:.2f}x"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--finegrain", required=True, help="the finegrain program")
    parser.add_argument("--gemm-crate", help="the program of benches/peers/gemm-crate")
    parser.add_argument("--only", default="", help="rows whose text contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of one measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        context = Context(options, folder)
        flags, facts = machine(context)
        results = []
        if not options.json:
            print("\n".join(f"{name}: {value}" for name, value in facts.items()), file=OUT)
            print("\n| work | threads | reached | spread | at least | note |\n|---|---|---|---|---|---|", file=OUT)
        for row in rows(flags):
            if options.only not in row.work:
                continue
            try:
                result = measure(row, context)
                reached, note = shown(result["ratio"], row.unit), result["note"]
                spread = f"{shown(result['least'], row.unit)} to {shown(result['largest'], row.unit)}"
            except Unavailable as e:
                result = {"not_available": str(e)}
                reached, spread, note = "not available", "", str(e)
            target = None if math.isnan(row.target) else row.target
            results.append({"work": row.work, "threads": row.threads, "unit": row.unit, "at_least": target, **result})
            if not options.json:
                print(f"| {row.work} | {row.threads} | {reached} | {spread} | {shown(row.target, row.unit)} | {note} |", file=OUT, flush=True)
        if options.json:
            print(json.dumps({"machine": facts, "rounds": options.rounds, "results": results}, indent=1), file=OUT)


main()
