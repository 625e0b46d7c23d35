"""Images of any number type are taken, and a network that changes its input does not change the caller's image."""

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

import grata
from grata.engines import AdaptationHandler
from grata.errors import GrataError
from grata.methods import create
from grata.session import Session

COMMON = {"activation": "softmax", "guard": False}
IMAGE = torch.randint(0, 4, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32)


def by_stream(network, images, method):
    return next(grata.adapt(network, [images], method, **COMMON)).prediction


def by_session(network, images, method):
    session = Session(create(method, network, activation="softmax"), guard=False)
    with session.case(images) as case, torch.no_grad():
        case.adapt()
        return case.judge(session.network(case.images))


def by_handler(network, images, method):
    handler = AdaptationHandler(create(method, network, activation="softmax"), guard=False)
    engine = SupervisedEvaluator("cpu", [{"image": images}], network, val_handlers=[handler], decollate=False)
    engine.run()
    return engine.state.output["pred"]


DOORS = [by_stream, by_session, by_handler]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["ptbn", "tent"])
def test_every_number_type_predicts_as_float32(make_network, door, method):
    expected = door(make_network(), IMAGE.float(), method)
    for dtype in DTYPES:
        found = door(make_network(), IMAGE.to(dtype), method)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.bool])
def test_what_is_no_grey_value_is_refused_in_words(make_network, door, dtype):
    with pytest.raises(GrataError, match=f"images: must be real numbers, got {dtype}"):
        door(make_network(), IMAGE.to(dtype), "tent")


def test_a_double_network_gets_doubles(make_network):
    assert by_stream(make_network().double(), IMAGE.float(), "tent").dtype == torch.float64


class Scaling(nn.Module):
    """A network that changes its input in place, in one of several ways."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x):
        self.change(x)
        return self.network(x)


CHANGES = {
    "scaled": lambda x: x.sub_(1).div_(2),
    "clipped": lambda x: x.clamp_(1, 2),
    "filled": lambda x: x[..., :2, :2].fill_(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("door", DOORS)
def test_a_network_that_changes_its_input_leaves_the_image_alone(make_network, door, change):
    images = IMAGE.float()

    class Clean(Scaling):
        def forward(self, x):
            y = x.clone()
            self.change(y)
            return self.network(y)

    found = door(Scaling(make_network(), change), images, "tent")
    assert torch.equal(images, IMAGE.float())
    assert torch.equal(found, door(Clean(make_network(), change), images, "tent"))
