"""Files of torch.save that end too early, wherever they end: torch raises an error of another kind for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.errors import CorruptFile, InvalidInput
from hyctas.pretrained.state_file import read_state
from hyctas.published.checkpoint import read_checkpoint


def test_every_length(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(64, 3, 3, 3), "b": torch.ones(4)}, tmp_path / "whole.pth")
    whole, path = (tmp_path / "whole.pth").read_bytes(), tmp_path / "cut.pth"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            read_state(path)
        with pytest.raises(InvalidInput):
            read_checkpoint(path)
