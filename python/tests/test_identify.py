"""Which arithmetic, which recipe; and the assertion that says so."""

import ml_dtypes
import numpy as np
import pytest

import finegrain as fg
from finegrain.testing import assert_same_bits

RNG = np.random.default_rng(3)
X = RNG.standard_normal((48, 1024), np.float32)
A = fg.quantize(X, "deepseek-v3", role="activation")
B = fg.quantize(RNG.standard_normal((64, 1024), np.float32), "deepseek-v3", role="weight")


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": "hopper", "promote": 128},
        {"accumulate": "f32", "promote": 64},
        {"accumulate": "hopper", "promote": 128, "promotion": "partial-first", "split_k": 2},
        {"accumulate": "exact", "promote": 128},
    ],
)
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_options_give_the_bits_again(options: dict[str, object], out: str) -> None:
    d = fg.gemm(A, B, out=out, **options)  # type: ignore[arg-type]
    found = fg.identify(d, A, B)
    assert found[0].differ == 0 and found[0].of == d.size and found[0].max_ulps == 0
    # Rounded to bfloat16, the bits of this one are those of a simpler one too.
    assert out == "bfloat16" or any(match.options == options for match in found)
    for match in found:
        again = fg.gemm(A, B, out=out, **match.options)
        assert np.array_equal(again.view(np.uint8), d.view(np.uint8)), match
        assert_same_bits(d, A, B, **match.options)


def test_an_addend_is_part_of_it() -> None:
    c = RNG.standard_normal((48, 64), np.float32)
    d = fg.gemm(A, B, c=c, accumulate="hopper", promote=128)
    assert fg.identify(d, A, B, c=c)[0].options == {"accumulate": "hopper", "promote": 128}
    with pytest.raises(AssertionError):
        assert_same_bits(d, A, B, accumulate="hopper", promote=128)
    assert_same_bits(d, A, B, c=c, accumulate="hopper", promote=128)


def test_the_assertion_names_the_arithmetic() -> None:
    d = fg.gemm(A, B, accumulate="hopper", promote=128, promotion="partial-first")
    with pytest.raises(AssertionError) as caught:
        assert_same_bits(d, A, B, accumulate="hopper", promote=128)
    message = str(caught.value)
    assert "elements of d differ from hopper/128, by at most" in message
    assert "every bit of d is hopper/128/partial-first" in message


def test_the_assertion_shows_what_differs() -> None:
    d = fg.gemm(A, B)
    d[5, 7] = np.nextafter(d[5, 7], np.float32(np.inf))
    with pytest.raises(AssertionError) as caught:
        assert_same_bits(d, A, B)
    message = str(caught.value)
    assert "1 of 3072 elements of d differ from f32/128, by at most 1 units" in message
    assert "in 1 of 48 rows, 1 of 64 columns, 1 of 1 tiles" in message
    given, expected = (f"{int(v.view(np.uint32)):08X}" for v in (d[5, 7], fg.gemm(A, B)[5, 7]))
    assert f"({given}), expected" in message and f"({expected}), 1 apart" in message


def test_the_assertion_checks_its_arguments() -> None:
    d = fg.gemm(A, B)
    with pytest.raises(fg.Error, match="d is 48×63, the product 48×64"):
        assert_same_bits(d[:, :63], A, B)
    with pytest.raises(fg.Error, match="d is to be float32"):
        assert_same_bits(d.astype(np.float64), A, B)
    with pytest.raises(fg.Error, match="NaN"):
        fg.identify(np.full_like(d, np.nan), A, B)


@pytest.mark.parametrize("recipe", ["deepseek-v3", "te", "mxfp8-e4m3-floor"])
def test_recipes_are_found(recipe: str) -> None:
    q = fg.quantize(X, recipe, role="activation")
    found = fg.identify_recipe(X, q.codes, q.scales)
    assert recipe in [match.recipe for match in found]
    assert found[0].differ == 0 and found[0].of == q.codes.size + q.scales.size
    assert "activation" in found[0].roles
    halves = X.astype(ml_dtypes.bfloat16)
    assert fg.identify_recipe(halves, fg.quantize(halves, recipe, role="activation"))[0].differ == 0
