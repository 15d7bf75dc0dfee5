"""The loss against transformers' own."""

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from trainers import colour_data

from afina.data.load import Dataset
from afina.models.load import Base
from afina.training import mean_loss


@pytest.fixture
def data(colours: Path, tiny: Base) -> Dataset:
    return colour_data(colours, tiny)


def test_loss_is_transformers_own(data, tiny: Base) -> None:
    module, total, labelled = tiny_module(), 0.0, 0
    with torch.no_grad():
        for row in data.train[:5]:
            labels = torch.tensor([row.labels])  # transformers shifts by itself
            total += module(input_ids=torch.tensor([row.input_ids]), labels=labels).loss.item() * row.labelled
            labelled += row.labelled
    assert math.isclose(mean_loss(tiny, data.train[:5]), total / labelled, rel_tol=1e-5)
