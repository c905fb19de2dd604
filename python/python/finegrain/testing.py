"""Assertions for tests of kernels."""

from finegrain._finegrain import assert_same_bits

__all__ = ["assert_same_bits"]
