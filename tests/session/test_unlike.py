"""Images that differ from the training images by what their bundle declares: flagged at every door."""

import json
from functools import partial

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

import grata
from grata.engines import AdaptationHandler
from grata.errors import GrataError
from grata.methods import create
from grata.quality import Judgement
from grata.session import Session

WORDS = "the modality is CT, and the network was trained on MR"


def journal_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def stream(make_outliner, tmp_path):
    def stream(**options):
        method = create("source", make_outliner(), {}, activation="softmax")
        return Session(method, journal=tmp_path / "journal.jsonl", **options)

    return stream


def do(session, images, **options):
    with session.case(images, **options) as case, torch.no_grad():
        case.adapt()
        case.judge(SimpleInferer()(images, session.network))
    return case


def test_the_verdict_is_review_at_least_and_says_why(stream, blob, tmp_path):
    session = stream()
    do(session, blob(1)[None], name="right")
    do(session, blob(1)[None], name="other", unlike=WORDS)
    right, other = session.judgements["right"], session.judgements["other"]
    assert right.verdict == "ok" and WORDS not in right.reasons
    assert other.verdict == "review" and other.reasons[0] == WORDS and other.used == right.used
    lines = journal_of(tmp_path / "journal.jsonl")
    assert [line["verdict"] for line in lines] == ["ok", "review"]
    assert lines[0]["flags"] == [] and lines[1]["flags"] == ["unlike_training"]
    # it is told once, with the verdict
    assert session.flags == {"other": ("unlike_training",)} and session.remarks() == []


def test_without_a_guard_it_is_a_flag_of_the_journal(stream, blob, tmp_path):
    session = stream(guard=False)
    do(session, blob(1)[None], name="other", unlike=WORDS)
    (line,) = journal_of(tmp_path / "journal.jsonl")
    assert line["flags"] == ["unlike_training"] and line["unlike_training"] == WORDS and "verdict" not in line
    (remark,) = session.remarks()
    assert WORDS in remark and remark.startswith("other: ")


def test_of_a_batch_the_one_image_is_flagged(stream, blob, tmp_path):
    session = stream()
    do(session, torch.stack([blob(1), blob(2)]), name=["a", "b"], unlike=["", WORDS])
    assert [session.judgements[name].verdict for name in "ab"] == ["ok", "review"]
    assert session.flags == {"b": ("unlike_training",)}
    with pytest.raises(GrataError, match="1 for 2 images"):
        session.case(torch.stack([blob(1), blob(2)]), unlike=[WORDS])


@pytest.mark.parametrize(("before", "after"), [("ok", "review"), ("review", "review"), ("reject", "reject")])
def test_a_doubt_never_makes_a_verdict_better(before, after):
    judgement = Judgement(before, reasons=("first",)).doubted("second")
    assert judgement.verdict == after and judgement.reasons == ("second", "first")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_evaluator_and_a_loop_pass_on_what_the_transforms_found(make_outliner, blob, batch_size):
    items = [{"image": blob(seed), "case": f"c{seed}", "unexpected": WORDS * (seed == 2)} for seed in range(4)]
    loader = partial(DataLoader, Dataset(items), batch_size=batch_size)
    network = make_outliner()
    handler = AdaptationHandler(create("source", network, {}, activation="softmax"))
    SupervisedEvaluator("cpu", loader(), network, inferer=SimpleInferer(), val_handlers=[handler]).run()
    verdicts = {name: judgement.verdict for name, judgement in handler.session.judgements.items()}
    assert verdicts == {"c0": "ok", "c1": "ok", "c2": "review", "c3": "ok"}
    found = grata.adapt(make_outliner(), loader(), "source", activation="softmax")
    assert ["review" in [one.verdict for one in batch.judgements] for batch in found].index(True) == 2 // batch_size
