"""Fixtures of the front-door tests."""

from pathlib import Path

import pytest

from tests.front_door.door import Door


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """The command in an empty folder."""
    return Door(tmp_path)
