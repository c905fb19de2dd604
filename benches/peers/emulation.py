"""finegrain's emulated tensor cores against mmaemu's, on the same operands, in the same run.

mmaemu emulates torch._scaled_mm of an H100 or an RTX 4060. Where both can: one chain over K, without block scales and
without a split of K (mmaemu.accumulate, use_fast_accum=True, splitk=1; finegrain gemm --promote none). Its answer is
compared with ours bit for bit first. finegrain is timed twice: the whole command, which starts a process, reads the
operands from a file and writes the result, and the product alone (finegrain bench, which decodes and packs inside the
measured time).

    python3 -m venv target/peers-venv
    target/peers-venv/bin/pip install torch==2.9.1 mmaemu==0.1.0 safetensors==0.8.0 numpy
    cargo build --release
    target/peers-venv/bin/python benches/peers/emulation.py --finegrain target/release/finegrain
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finegrain", required=True, type=Path, help="the binary")
    parser.add_argument("--threads", type=int, default=1, help="threads of both")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, alternating; medians count")
    parser.add_argument("--shapes", default="64x512x1024,256x2048x1024", help="MxNxK, separated by commas")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    return parser.parse_args()


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    args = parse()
    for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"]:
        os.environ[name] = str(args.threads)
    import mmaemu
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(args.threads)
    binary = str(args.finegrain)
    generator = torch.Generator().manual_seed(1)

    def operand(rows, k):
        values = torch.randn(rows, k, generator=generator) * 40
        return values.clamp(-448, 448).to(torch.float8_e4m3fn)

    rows = []
    for shape in args.shapes.split(","):
        m, n, k = map(int, shape.split("x"))
        a, b = operand(m, k), operand(n, k)
        for model in ["hopper", "ada"]:
            with tempfile.TemporaryDirectory() as folder:
                source, result = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
                save_file({"a": a, "b": b}, source)
                command = [binary, "gemm", source, result, "--accumulate", model, "--promote", "none"]
                command += ["--threads", str(args.threads)]
                answers = {}

                def ours():
                    subprocess.run(command, check=True, capture_output=True)

                def theirs():
                    answers["mmaemu"] = mmaemu.accumulate(a, b, use_fast_accum=True, profile=model, splitk=1)

                times = {"ours": [], "theirs": []}
                for _ in range(args.rounds):
                    times["ours"].append(seconds(ours))
                    times["theirs"].append(seconds(theirs))
                d = load_file(result)["d"]
                bits, expected = d.view(torch.int32), answers["mmaemu"].view(torch.int32)
                differ = int((bits != expected).sum())
            bench = [binary, "bench", "emulate", "--json", "--accumulate", f"{model}/none"]
            bench += ["--m", str(m), "--n", str(n), "--k", str(k), "--threads", str(args.threads)]
            bench += ["--recipe", "te-current", "--seconds", "0.3"]
            alone = json.loads(subprocess.run(bench, check=True, capture_output=True, text=True).stdout)
            flops = 2 * m * n * k
            ours_s, theirs_s = (statistics.median(times[who]) for who in ["ours", "theirs"])
            rows.append(
                {
                    "shape": shape,
                    "model": model,
                    "differ": differ,
                    "elements": m * n,
                    "mmaemu_gflops": flops / theirs_s / 1e9,
                    "command_gflops": flops / ours_s / 1e9,
                    "product_gflops": alone["gflops"],
                    "command_ratio": theirs_s / ours_s,
                    "product_ratio": theirs_s / alone["seconds"],
                    "isa": alone["isa"],
                }
            )
    versions = {
        "mmaemu": mmaemu.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": args.threads,
    }
    if args.json:
        print(json.dumps({"versions": versions, "rows": rows}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    print("shape            model   elements that differ  mmaemu GFLOP/s  command GFLOP/s      x  product GFLOP/s      x")
    for r in rows:
        print(
            f"{r['shape']:16} {r['model']:7} {r['differ']:9} of {r['elements']:8} {r['mmaemu_gflops']:15.3f}"
            f" {r['command_gflops']:16.1f} {r['command_ratio']:6.0f} {r['product_gflops']:16.1f}"
            f" {r['product_ratio']:6.0f}"
        )


if __name__ == "__main__":
    main()
