import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.methods import Source
from grata.session import Session
from grata.session.faults import check_finite


def judge(prediction):
    """Let a session judge a prediction, and return what it gives back."""
    session = Session(Source(nn.Conv2d(1, 1, 1)))
    with session.case(torch.zeros(1, 1, 3, 3)) as case:
        case.adapt()
        return case.judge(prediction)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_prediction_that_is_not_finite_is_refused_wherever_it_stands(value):
    good, bad = torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    bad[1, 0, 2, 2] = value
    for prediction in (bad, [good, bad], {"logits": good, "coarse": bad}):
        with pytest.raises(GrataError, match="The prediction holds NaN or infinite values"):
            judge(prediction)
    with pytest.raises(GrataError, match="check the weights"):
        check_finite([good, bad])


def test_a_finite_prediction_and_what_is_not_a_tensor_pass():
    good = torch.full((1, 2, 3, 3), 1e30)
    for prediction in (good, [good, good.int()], {"logits": good, "name": "scan"}, "none"):
        assert judge(prediction) is prediction
    check_finite([])
