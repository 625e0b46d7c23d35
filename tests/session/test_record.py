"""Record of one case."""

import math

import torch
from monai.inferers import SlidingWindowInferer

from grata.methods import GradientRecord, Tent
from grata.session import Session, WindowSelection, merged_record


def test_one_step_is_its_own_record():
    record = GradientRecord(auxiliary_loss=1.0, agreement=0.5)
    merged = merged_record([record])
    assert merged["auxiliary_loss"] == 1.0 and merged["agreement"] == 0.5 and "steps" not in merged


def test_several_windows_give_the_last_record_and_the_mean_agreement():
    records = [GradientRecord(cosine=c, agreement=a, flags=f) for c, a, f in ((0.1, 0.5, ("x",)), (0.2, 0.9, ()))]
    merged = merged_record(records)
    assert merged["cosine"] == 0.2 and merged["flags"] == ["x"]
    assert math.isclose(merged["agreement"], 0.7)
    assert [step["agreement"] for step in merged["steps"]] == [0.5, 0.9]


def test_a_case_that_began_from_the_source_is_recorded_as_reset_whatever_followed():
    several = [GradientRecord(reset=True), GradientRecord()]
    assert merged_record(several)["reset"] is True
    assert merged_record([GradientRecord(reset=True, steps=(GradientRecord(), GradientRecord()))])["reset"] is True
    assert merged_record([GradientRecord(), GradientRecord()])["reset"] is False


def test_the_second_case_of_an_episodic_method_is_recorded_as_reset(make_network):
    method = Tent(make_network(2), activation="sigmoid")
    session = Session(method, WindowSelection(uncertain=1, random=1), reset="per-case", guard=False)
    inferer = SlidingWindowInferer((8, 8), sw_batch_size=1, overlap=0)
    resets = []
    for _ in range(2):
        images = torch.rand(1, 1, 16, 16)
        with session.case(images) as case:
            assert len(case.adapt(inferer)) == 2
            case.judge(inferer(images, session.network))
        assert len(case.record["steps"]) == 2
        resets.append(case.record["reset"])
    assert resets == [False, True]
