"""Speed through Python: small calls, large ones against the command line, and against PyTorch on this CPU.

Each answer is checked before it is timed, and both sides of a ratio are timed in turns.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import finegrain as fg

Work = Callable[[], object]


def best(work: dict[str, Work], seconds: float = 1.0) -> dict[str, float]:
    """The shortest time of each, taken in turns."""
    for one in work.values():
        one()
    times = {name: float("inf") for name in work}
    end = time.perf_counter() + seconds * len(work)
    while time.perf_counter() < end:
        for name, one in work.items():
            start = time.perf_counter()
            one()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def line(what: str, value: float, unit: str, goal: str) -> None:
    print(f"{what:68} {value:9.2f} {unit:3} {goal}")


def small() -> None:
    x = np.random.default_rng(0).standard_normal((16, 128), np.float32)
    t = torch.from_numpy(x)
    q = fg.quantize(x, "deepseek-v3", role="activation")
    qt = fg.quantize(t, "deepseek-v3", role="activation")
    assert np.array_equal(q.dequantize(), qt.dequantize().numpy())
    times = best(
        {
            "quantize 16x128, numpy": lambda: fg.quantize(x, "deepseek-v3", role="activation"),
            "quantize 16x128, torch": lambda: fg.quantize(t, "deepseek-v3", role="activation"),
            "gemm 16x16x128, numpy": lambda: fg.gemm(q, q),
            "gemm 16x16x128, torch": lambda: fg.gemm(qt, qt),
        },
        0.3,
    )
    for name, seconds in times.items():
        line(name, 1e6 * seconds, "us", "<= 15")


def command_line(*arguments: str) -> float:
    shown = subprocess.run(
        [sys.executable, "-m", "finegrain", "bench", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    return float(json.loads(shown.stdout)["seconds"])


def large() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, 4096), np.float32)
    q = fg.quantize(x, "deepseek-v3", role="activation")
    w = fg.quantize(x, "deepseek-v3", role="weight")
    a = fg.quantize(x[:1024], "deepseek-v3", role="activation")
    d = fg.gemm(a, w)
    times = best(
        {
            "quantize into": lambda: fg.quantize(x, "deepseek-v3", role="activation", into=q),
            "quantize": lambda: fg.quantize(x, "deepseek-v3", role="activation"),
            "gemm into": lambda: fg.gemm(a, w, into=d),
            "gemm": lambda: fg.gemm(a, w),
        }
    )
    quantize = command_line("quantize", "--m", "4096", "--k", "4096")
    gemm = command_line("gemm", "--m", "1024", "--n", "4096", "--k", "4096")
    for name, rust in [("quantize", quantize), ("gemm", gemm)]:
        line(f"{name}: command line's time / Python's, with into=", rust / times[f"{name} into"], "", ">= 0.97")
        line(f"{name}: command line's time / Python's", rust / times[name], "", ">= 0.8")


def eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """DeepSeek-V3's activation quantiser, as PyTorch would write it."""
    tiles = x.view(x.shape[0], -1, 128)
    scales = tiles.abs().amax(-1).clamp(1e-4) / 448
    return (tiles / scales[..., None]).view_as(x).to(torch.float8_e4m3fn), scales


def against_torch(compiled: bool) -> None:
    x = torch.randn(4096, 4096)
    codes, scales = fg.quantize(x, "deepseek-v3", role="activation")
    theirs = eager(x)
    assert torch.equal(codes.view(torch.uint8), theirs[0].view(torch.uint8)) and torch.equal(scales, theirs[1])
    work: dict[str, Work] = {
        "ours": lambda: fg.quantize(x, "deepseek-v3", role="activation", into=(codes, scales)),
        "eager": lambda: eager(x),
    }
    if compiled:
        fast = torch.compile(eager)
        work["compiled"] = lambda: fast(x)
    times = best(work)
    line("quantize 4096x4096: torch eager / ours", times["eager"] / times["ours"], "x", ">= 10")
    if compiled:
        line("quantize 4096x4096: torch.compile / ours", times["compiled"] / times["ours"], "x", ">= 5")
    w = fg.quantize(x, "deepseek-v3", role="weight")
    for m, goal in [(1, ">= 50"), (128, ">= 3"), (1024, ">= 1.2")]:
        a = fg.quantize(x[:m], "deepseek-v3", role="activation")

        def theirs_of(q: fg.Quantized, m: int = m) -> torch.Tensor:
            rows, cols = (1, 128) if q is not w else (128, 128)
            wide = q.scales.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
            return (q.codes.float() * wide).bfloat16()

        def product(a: fg.Quantized = a) -> torch.Tensor:
            return theirs_of(a) @ theirs_of(w).t()

        d = fg.gemm(a, w, out=torch.bfloat16)
        assert torch.linalg.norm((d - product()).float()) < 0.02 * torch.linalg.norm(d.float())
        times = best({"ours": lambda a=a, d=d: fg.gemm(a, w, out=torch.bfloat16, into=d), "theirs": product})  # type: ignore[misc]
        line(f"gemm {m}x4096x4096: dequantise, BF16 in torch / ours", times["theirs"] / times["ours"], "x", goal)


def imports() -> None:
    def run(code: str) -> Work:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    times = best({"numpy": run("import numpy"), "both": run("import numpy, finegrain")}, 3)
    line("import of numpy and finegrain / numpy alone", times["both"] / times["numpy"], "x", "<= 1.2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="against torch.compile too, which needs a C++ compiler")
    arguments = parser.parse_args()
    small()
    large()
    against_torch(arguments.compile)
    imports()
