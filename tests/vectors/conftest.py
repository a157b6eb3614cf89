"""A small edition of two vectors, written the way the packaged one is."""

from pathlib import Path

import pytest

from siglip_ref.vectors.content import drafts
from siglip_ref.vectors.generate import build

SMALL = ("loss/one-pair", "ops/attention-mask")


@pytest.fixture(scope="session")
def small_files() -> dict[str, bytes]:
    return build([draft for draft in drafts() if draft.id in SMALL])


@pytest.fixture
def small(tmp_path: Path, small_files: dict[str, bytes]) -> Path:
    for name, data in small_files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path
