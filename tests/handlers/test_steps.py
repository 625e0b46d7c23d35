"""The record of one case."""

import math

from grata.handlers import merged_record
from grata.methods import GradientRecord


def test_one_step_is_its_own_record():
    record = GradientRecord(auxiliary_loss=1.0, agreement=0.5)
    merged = merged_record([record])
    assert merged["auxiliary_loss"] == 1.0 and merged["agreement"] == 0.5 and "steps" not in merged


def test_of_several_windows_the_last_speaks_and_the_agreement_is_the_mean():
    records = [GradientRecord(cosine=c, agreement=a, flags=f) for c, a, f in ((0.1, 0.5, ("x",)), (0.2, 0.9, ()))]
    merged = merged_record(records)
    assert merged["cosine"] == 0.2 and merged["flags"] == ["x"]
    assert math.isclose(merged["agreement"], 0.7)
    assert [step["agreement"] for step in merged["steps"]] == [0.5, 0.9]
