"""Threads, signals, memory, docstrings, stubs, the command line."""

import doctest
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import finegrain as fg
from finegrain import _finegrain

X = np.random.default_rng(2).standard_normal((512, 2048), np.float32)


def test_another_thread_advances() -> None:
    q = fg.quantize(X, "deepseek-v3", role="activation")
    ticks, done = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = ticks
    start = time.perf_counter()
    fg.gemm(q, q, accumulate="exact")
    seconds, advanced = time.perf_counter() - start, ticks - before
    done.set()
    thread.join()
    assert advanced > 100 * seconds, (advanced, seconds)


def test_bits_do_not_depend_on_threads() -> None:
    q = fg.quantize(X, "deepseek-v3", role="activation", threads=1)
    one = fg.gemm(q, q, accumulate="hopper", threads=1)
    assert np.array_equal(one, fg.gemm(q, q, accumulate="hopper", threads=2))
    results: list[np.ndarray] = []
    work = [threading.Thread(target=lambda: results.append(fg.gemm(q, q, accumulate="hopper"))) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(one, d) for d in results)


def test_ctrl_c_stops_long_work() -> None:
    # A job in the background has SIGINT ignored, and its children inherit that.
    script = """
import signal, numpy as np, finegrain as fg
signal.signal(signal.SIGINT, signal.default_int_handler)
x = fg.quantize(np.ones((4096, 8192), np.float32), "deepseek-v3", role="activation")
print("ready", flush=True)
try:
    for _ in range(1000):
        fg.gemm(x, x, accumulate="exact")
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "stopped\n"
        assert time.perf_counter() - start < 10
    finally:
        process.kill()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_nothing_leaks() -> None:
    x = X[:16, :128].copy()

    def calls(count: int) -> None:
        for _ in range(count):
            q = fg.quantize(x, "deepseek-v3", role="activation")
            fg.gemm(q.codes, q, q.scales)
            _codes, _scales = q
            q.dequantize()
            fg.cast(x, "e5m2")
            try:
                fg.quantize(x.T, "te", role="weight")
            except fg.Error:
                pass

    calls(2000)
    gc.collect()
    references, before = sys.getrefcount(x), resident()
    calls(20_000)
    gc.collect()
    # 100,000 calls and refusals: one object of 100 bytes each would be 10 MB.
    assert resident() - before < 4 << 20
    assert sys.getrefcount(x) == references


def test_docstrings_are_there_and_run() -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL * 0)
    examples = 0
    for name in [*fg.__all__, "assert_same_bits"]:
        thing = getattr(_finegrain, name, None) or getattr(fg, name)
        doc = thing.__doc__
        assert doc, name
        if name in ("Error", "Match", "RecipeMatch", "testing"):
            continue
        test = doctest.DocTestParser().get_doctest(doc, {}, name, None, 0)
        assert test.examples, f"{name} has no example"
        examples += len(test.examples)
        assert runner.run(test).failed == 0, name
    assert examples > 20
    assert doctest.testmod(fg).failed == 0


def test_stubs_are_complete_and_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    stubs = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "finegrain", "--ignore-disjoint-bases"], capture_output=True, text=True
    )
    assert stubs.returncode == 0, stubs.stdout + stubs.stderr
    strict = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "-p", "finegrain"], capture_output=True, text=True
    )
    assert strict.returncode == 0, strict.stdout


def test_the_command_line_comes_along() -> None:
    shown = subprocess.run([sys.executable, "-m", "finegrain", "formats", "e4m3"], capture_output=True, text=True)
    assert shown.returncode == 0 and "448" in shown.stdout
    assert subprocess.run([sys.executable, "-m", "finegrain", "--nonsense"], capture_output=True).returncode == 2
    assert fg.__version__ in subprocess.run(
        [sys.executable, "-m", "finegrain", "--version"], capture_output=True, text=True
    ).stdout


def test_import_needs_neither_torch_nor_ml_dtypes() -> None:
    script = """
import sys
sys.modules["torch"] = None
sys.modules["ml_dtypes"] = None
import numpy as np, finegrain as fg
x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
q = fg.quantize(x, "mxfp8", role="activation")
assert (q.codes.dtype, q.scales.dtype) == (np.uint8, np.uint8)
assert abs(q.dequantize() - x).max() < 0.13
d = fg.gemm(q, q, out="bfloat16")
assert d.dtype == np.uint16
"""
    subprocess.run([sys.executable, "-c", script], check=True)
