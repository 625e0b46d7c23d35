import pytest
import torch

from grata.errors import GrataError
from grata.predictions import activate


def test_an_unknown_activation_is_refused():
    with pytest.raises(GrataError, match="sigmoid, softmax"):
        activate(torch.zeros(1, 2, 3), "tanh")
