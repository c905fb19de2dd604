"""Golden values, and the frameworks that a test needs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "F32": np.float32, "F64": np.float64}


def pytest_report_header() -> str:
    return f"golden values: {golden_folder() or 'the cut in tests/data'}"


def golden_folder() -> Path | None:
    shared = os.environ.get("FINEGRAIN_SHARED")
    folder = (Path(shared) if shared else ROOT.parent / "shared") / "oracles"
    return folder if folder.is_dir() else None


class Golden:
    """A safetensors file: tensors by name."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        self.entries, self.data = header, data[8 + size :]

    def names(self) -> list[str]:
        return list(self.entries)

    def __getitem__(self, name: str) -> Any:
        entry = self.entries[name]
        first, last = entry["data_offsets"]
        return np.frombuffer(self.data[first:last], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def golden(name: str) -> Golden:
    folder = golden_folder()
    if folder is None and os.environ.get("FINEGRAIN_REQUIRE_SHARED") == "1":
        pytest.fail("FINEGRAIN_REQUIRE_SHARED=1, but ../shared/oracles is not there")
    return Golden((folder or ROOT / "tests" / "data") / f"{name}.safetensors")


@pytest.fixture(scope="session")
def torch() -> Any:
    if os.environ.get("FINEGRAIN_REQUIRE_TORCH") == "1":
        import torch

        return torch
    return pytest.importorskip("torch")
