"""FP8 with named arithmetic: quantisation and GEMM whose bits do not depend on the path.

Every call takes arrays of numpy (with ml_dtypes), PyTorch tensors on the CPU and what has ``__dlpack__``, reads them where
they lie, and gives results of the same framework. A result is determined by its recipe (how numbers became codes and scales)
and its accumulation (how products became sums), never by threads, instruction sets or machines.

>>> import numpy as np, finegrain as fg
>>> x = fg.quantize(np.ones((4, 256), np.float32), "deepseek-v3", role="activation")
>>> w = fg.quantize(np.ones((8, 256), np.float32), "deepseek-v3", role="weight")
>>> round(float(fg.gemm(x, w, accumulate="hopper", promote=128)[0, 0]), 2)
256.0
"""

from finegrain import testing
from finegrain._finegrain import (
    Error,
    Match,
    Quantized,
    RecipeMatch,
    cast,
    dequantize,
    formats,
    gemm,
    identify,
    identify_recipe,
    models,
    quantize,
    recipes,
    requantize_transposed,
)
from finegrain._finegrain import version as __version__

__all__ = [
    "Error",
    "Match",
    "Quantized",
    "RecipeMatch",
    "cast",
    "dequantize",
    "formats",
    "gemm",
    "identify",
    "identify_recipe",
    "models",
    "quantize",
    "recipes",
    "requantize_transposed",
    "testing",
]
