from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypedDict, final

# What arrays are: of numpy, PyTorch, or with __dlpack__; their types would need all of these installed.
_Array = Any
_Role = Literal["activation", "weight", "transposed"]
_Round = Literal[
    "nearest-even", "toward-zero", "up", "down", "nearest-away", "stochastic", "tilekernels"
]
_Promotion = Literal["scales-first", "partial-first", "scales-last", "unfused"]

__all__ = [
    "Error",
    "Match",
    "Quantized",
    "RecipeMatch",
    "assert_same_bits",
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
    "run_cli",
    "version",
]

version: Final[str]

class Error(ValueError): ...

class _Stats(TypedDict):
    elements: int
    nan: int
    infinite: int
    saturated: int
    flushed: int
    lost: int
    granules: int
    zero_granules: int
    floored_granules: int
    nonfinite_granules: int

@final
class Quantized:
    @property
    def codes(self) -> _Array: ...
    @property
    def scales(self) -> _Array: ...
    @property
    def tensor_scale(self) -> float: ...
    @property
    def format(self) -> str: ...
    @property
    def scale_format(self) -> str: ...
    @property
    def granule(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    @property
    def stats(self) -> _Stats: ...
    def dequantize(
        self, dtype: object = "float32", threads: int | None = None, into: _Array | None = None
    ) -> _Array: ...
    def __iter__(self) -> Iterator[_Array]: ...

@final
class Match:
    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def accumulation(self) -> str: ...
    @property
    def differ(self) -> int: ...
    @property
    def of(self) -> int: ...
    @property
    def max_ulps(self) -> int: ...

@final
class RecipeMatch:
    @property
    def recipe(self) -> str: ...
    @property
    def roles(self) -> list[str]: ...
    @property
    def differ(self) -> int: ...
    @property
    def of(self) -> int: ...

def quantize(
    x: _Array,
    recipe: str,
    *,
    role: _Role,
    threads: int | None = None,
    into: Quantized | tuple[_Array, _Array] | None = None,
    copy: bool = False,
) -> Quantized: ...
def requantize_transposed(q: Quantized, *, threads: int | None = None) -> Quantized: ...
def dequantize(
    codes: _Array,
    scales: _Array | None = None,
    *,
    granule: str | None = None,
    format: str | None = None,
    tensor_scale: float | None = None,
    dtype: object = "float32",
    scale_format: str | None = None,
    threads: int | None = None,
    into: _Array | None = None,
    copy: bool = False,
) -> _Array: ...
def cast(
    x: _Array,
    format: str,
    *,
    round: _Round = "nearest-even",
    overflow: Literal["saturate", "nonsaturating"] = "saturate",
    seed: int | None = None,
    threads: int | None = None,
    into: _Array | None = None,
    copy: bool = False,
) -> _Array: ...
def gemm(
    a: _Array,
    b: _Array,
    a_scale: _Array | None = None,
    b_scale: _Array | None = None,
    c: _Array | None = None,
    accumulate: str = "f32",
    promote: int | Literal["default", "none"] | None = "default",
    promotion: _Promotion | None = None,
    split_k: int | str | Sequence[int] = 1,
    out: object = "float32",
    granule_a: str | None = None,
    granule_b: str | None = None,
    format_a: str | None = None,
    format_b: str | None = None,
    a_tensor_scale: float | None = None,
    b_tensor_scale: float | None = None,
    fold_scales: bool = False,
    threads: int | None = None,
    into: _Array | None = None,
    scale_format_a: str | None = None,
    scale_format_b: str | None = None,
    copy: bool = False,
) -> _Array: ...
def identify(
    d: _Array,
    a: _Array,
    b: _Array,
    a_scale: _Array | None = None,
    b_scale: _Array | None = None,
    c: _Array | None = None,
    granule_a: str | None = None,
    granule_b: str | None = None,
    format_a: str | None = None,
    format_b: str | None = None,
    a_tensor_scale: float | None = None,
    b_tensor_scale: float | None = None,
    threads: int | None = None,
    scale_format_a: str | None = None,
    scale_format_b: str | None = None,
    copy: bool = False,
    all: bool = False,
) -> list[Match]: ...
def identify_recipe(
    x: _Array,
    codes: _Array,
    scales: _Array | None = None,
    *,
    granule: str | None = None,
    format: str | None = None,
    tensor_scale: float | None = None,
    scale_format: str | None = None,
    threads: int | None = None,
    copy: bool = False,
    all: bool = False,
) -> list[RecipeMatch]: ...
def assert_same_bits(
    d: _Array,
    a: _Array,
    b: _Array,
    a_scale: _Array | None = None,
    b_scale: _Array | None = None,
    c: _Array | None = None,
    accumulate: str = "f32",
    promote: int | Literal["default", "none"] | None = "default",
    promotion: _Promotion | None = None,
    split_k: int | str | Sequence[int] = 1,
    granule_a: str | None = None,
    granule_b: str | None = None,
    format_a: str | None = None,
    format_b: str | None = None,
    a_tensor_scale: float | None = None,
    b_tensor_scale: float | None = None,
    fold_scales: bool = False,
    threads: int | None = None,
    scale_format_a: str | None = None,
    scale_format_b: str | None = None,
    copy: bool = False,
) -> None: ...
def recipes() -> dict[str, str]: ...
def formats() -> dict[str, dict[str, int | float]]: ...
def models() -> dict[str, str]: ...
def run_cli(args: list[str]) -> int: ...
