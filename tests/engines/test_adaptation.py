import copy
import dataclasses
import json
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import PatchInferer, SimpleInferer, SliceInferer, SlidingWindowInferer

from grata import engines
from grata.errors import GrataError
from grata.methods import PTBN, GraTa, Source
from grata.session import Journal

# The networks are random, and a guard would rightly object; it has tests of its own.
AdaptationHandler = partial(engines.AdaptationHandler, guard=False)
GraTaHandler = partial(engines.GraTaHandler, guard=False)

ROI = (8, 8, 8)


def volumes(n=3, size=(8, 8, 8)):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(1, *size, generator=generator), "case": f"case{i}", "site": "B"} for i in range(n)]


def evaluator(network, items, handlers, inferer=None, **options):
    loader = DataLoader(Dataset(items), batch_size=1, num_workers=0)
    return SupervisedEvaluator(
        "cpu", loader, network, inferer=inferer or SimpleInferer(), val_handlers=handlers, **options
    )


def predictions(engine):
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output[0]["pred"].clone()))
    engine.run()
    return seen


def test_each_batch_is_predicted_by_the_network_adapted_to_it(make_network):
    items = volumes()
    by_handler = predictions(evaluator(n := make_network(3), items, [GraTaHandler(n, activation="sigmoid", lr=1e-2)]))
    method = GraTa(make_network(3), activation="sigmoid", lr=1e-2)
    for item, seen in zip(items, by_handler):
        method.adapt(item["image"][None])
        with torch.no_grad():
            torch.testing.assert_close(seen, method.network(item["image"][None])[0])


def test_source_weights_are_those_loaded_on_start(make_network, tmp_path):
    """Bundles load weights by a handler on STARTED, after the construction of the method."""
    trained = make_network(3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)

    class Load:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, lambda e: network.load_state_dict(trained.state_dict()))

    network = make_network(3)
    handler = GraTaHandler(network, activation="sigmoid", lr=1e-2)
    evaluator(network, volumes(1), [Load(), handler]).run()
    assert handler.method.parameter_change()["l2"] > 0
    handler.method.restore()
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in network.state_dict().items())


def test_the_journal_holds_one_line_a_case_with_what_was_done(make_network, tmp_path):
    network = make_network(3)
    journal = tmp_path / "deep" / "journal.jsonl"
    evaluator(network, volumes(), [GraTaHandler(network, activation="sigmoid", lr=1e-2, journal=journal)]).run()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["case0", "case1", "case2"]
    method = GraTa(make_network(3), activation="sigmoid", lr=1e-2)
    for line, item in zip(lines, volumes()):
        record = method.adapt(item["image"][None])
        assert line["auxiliary_loss"] == pytest.approx(record.auxiliary_loss)
        assert line["loss"] == pytest.approx(record.loss)
        assert line["cosine"] == pytest.approx(record.cosine, rel=1e-4)
        assert line["learning_rate"] == pytest.approx(record.learning_rate, rel=1e-4)
        assert line["gradient_norm"] == pytest.approx(record.gradient_norm, rel=1e-4)
        assert line["parameter_change"]["l2"] == pytest.approx(method.parameter_change()["l2"], rel=1e-4)
        assert line["site"] == "B" and line["method"] == "grata" and line["version"]
        assert line["seconds"] > 0 and line["peak_memory_mib"] > 0


class Spoilt(GraTa):
    """GraTa that sees NaN in place of an image whose first voxel is 0: the step is skipped, the prediction finite."""

    def _adapt(self, images, **options):
        spoilt = images.flatten()[0] == 0
        return super()._adapt(images * float("nan") if spoilt else images, **options)


def test_a_skipped_step_is_journalled_and_the_next_case_goes_on(make_network, tmp_path):
    network = make_network(3)
    items = volumes()
    items[1]["image"][0, 0, 0, 0] = 0
    handler = AdaptationHandler(Spoilt(network, activation="sigmoid", lr=1e-2), journal=tmp_path / "j.jsonl")
    evaluator(network, items, [handler]).run()
    lines = Journal(tmp_path / "j.jsonl").lines()
    assert [line["flags"] for line in lines] == [[], ["non_finite_auxiliary_loss", "step_skipped"], []]
    assert lines[1]["auxiliary_loss"] is None
    assert lines[1]["parameter_change"] == lines[0]["parameter_change"] != lines[2]["parameter_change"]
    assert handler.flags == {"case1": ("non_finite_auxiliary_loss", "step_skipped")}


def test_a_prediction_that_is_not_finite_ends_a_plain_run_and_leaves_no_trace(make_network, tmp_path):
    network, alone = make_network(3), make_network(3)
    items = volumes()
    items[1]["image"][0, 0, 0, 0] = float("nan")
    handler = GraTaHandler(network, activation="sigmoid", lr=1e-2, journal=tmp_path / "j.jsonl")
    with pytest.raises(GrataError, match="NaN or infinite values"):
        evaluator(network, items, [handler]).run()
    evaluator(alone, items[:1], [GraTaHandler(alone, activation="sigmoid", lr=1e-2)]).run()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in network.state_dict().items())
    assert [line["case"] for line in Journal(tmp_path / "j.jsonl").lines()] == ["case0"] and handler.flags == {}


class Flagging(Spoilt):
    """GraTa that flags every step, also one that is skipped."""

    def _adapt(self, images, **options):
        record = super()._adapt(images, **options)
        return dataclasses.replace(record, flags=("recovered", *record.flags))


def test_a_flag_of_a_step_that_was_taken_is_a_note_and_no_skipped_step(make_network):
    network = make_network(3)
    items = volumes(2)
    items[1]["image"][0, 0, 0, 0] = 0
    handler = AdaptationHandler(Flagging(network, activation="sigmoid"))
    evaluator(network, items, [handler]).run()
    skipped = ("recovered", "non_finite_auxiliary_loss", "step_skipped")
    assert handler.flags == {"case0": ("recovered",), "case1": skipped}
    flags = "recovered, non_finite_auxiliary_loss, step_skipped"
    assert handler.remarks() == [
        "case0: adapted (recovered)",
        f"case1: adaptation skipped ({flags}), predicted with the parameters before it",
    ]


@pytest.mark.parametrize("method", [Source, PTBN])
def test_methods_that_learn_nothing_run_through_the_same_handler(make_network, method):
    network = make_network(3)
    twin = copy.deepcopy(network).train(method is PTBN)
    expected = [twin(item["image"][None])[0] for item in volumes()]
    for seen, wanted in zip(predictions(evaluator(network, volumes(), [AdaptationHandler(method(network))])), expected):
        torch.testing.assert_close(seen, wanted)


def test_the_source_prediction_is_put_into_the_batch(make_network):
    network = make_network(3)
    source = copy.deepcopy(network).eval()
    engine = evaluator(
        network, volumes(2), [GraTaHandler(network, activation="sigmoid", lr=1e-1, source_key="source_pred")]
    )
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.batch[0]["source_pred"]))
    adapted = predictions(engine)
    for item, from_batch, after in zip(volumes(2), seen, adapted):
        torch.testing.assert_close(from_batch, source(item["image"][None])[0].detach())
        assert not torch.allclose(from_batch, after)


def test_episodic_cases_do_not_see_each_other(make_network):
    def last(items, **settings):
        network = make_network(3)
        return predictions(
            evaluator(network, items, [GraTaHandler(network, activation="sigmoid", lr=1e-1, **settings)])
        )[-1]

    items = volumes()
    assert torch.equal(last(items, reset="per-case"), last(items[-1:], reset="per-case"))
    assert not torch.equal(last(items), last(items[-1:]))


class Spy(GraTa):
    """GraTa that keeps the batches it adapted to."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches_seen = []

    def _adapt(self, images, **options):
        self.batches_seen.append(images.clone())
        return super()._adapt(images, **options)


@pytest.mark.parametrize(("uncertain", "random"), [(2, 2), (0, 3), (3, 0), (1, 1)])
def test_large_volumes_are_adapted_on_a_few_windows_of_the_inferer(make_network, uncertain, random):
    network = make_network(3)
    method = Spy(network, activation="sigmoid")
    inferer = SlidingWindowInferer(ROI, sw_batch_size=2, overlap=0.5)
    (item,) = volumes(1, (16, 20, 12))
    handler = AdaptationHandler(method, windows={"uncertain": uncertain, "random": random})
    evaluator(network, [item], [handler], inferer).run()
    assert all(len(batch) <= 2 and batch.shape[1:] == (1, *ROI) for batch in method.batches_seen)
    chosen = torch.cat(method.batches_seen)
    assert len(chosen) == uncertain + random
    windows = item["image"][0].unfold(0, 8, 4).unfold(1, 8, 4).unfold(2, 8, 4).reshape(-1, *ROI)
    where = [[i for i, w in enumerate(windows) if torch.equal(w, c[0])] for c in chosen]
    assert all(len(found) == 1 for found in where)
    assert len({found[0] for found in where}) == len(chosen)


def test_the_uncertain_windows_are_those_of_highest_entropy(make_network):
    network = make_network(3)
    method = Spy(network, activation="sigmoid")
    inferer = SlidingWindowInferer(ROI, sw_batch_size=1, overlap=0)
    (item,) = volumes(1, (16, 16, 16))
    entropy = {}
    probe = GraTa(make_network(3), activation="sigmoid")
    for i in range(8):
        corner = [8 * (i >> shift & 1) for shift in (2, 1, 0)]
        window = item["image"][None][(..., *(slice(c, c + 8) for c in corner))]
        entropy[i] = probe.uncertainty(window).item(), window
    evaluator(network, [item], [AdaptationHandler(method, windows={"uncertain": 3, "random": 0})], inferer).run()
    expected = [w for _, w in sorted(entropy.values(), key=lambda pair: -pair[0])[:3]]
    assert all(torch.equal(a, b) for a, b in zip(method.batches_seen, expected))


def test_never_all_windows(make_network):
    network = make_network(3)
    method = Spy(network, activation="sigmoid")
    handler = AdaptationHandler(method, windows={"uncertain": 50, "random": 50})
    evaluator(network, volumes(1, (16, 8, 8)), [handler], SlidingWindowInferer(ROI, 4, overlap=0)).run()
    assert sum(map(len, method.batches_seen)) == 1


@pytest.mark.parametrize(("padding_mode", "cval"), [("constant", 0.25), ("replicate", 0.0)])
def test_a_volume_smaller_than_the_window_is_padded_as_the_inferer_pads_it(make_network, padding_mode, cval):
    network = make_network(3)
    method = Spy(network, activation="sigmoid")
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    inferer = SlidingWindowInferer(ROI, padding_mode=padding_mode, cval=cval)
    evaluator(network, volumes(1, (5, 8, 6)), [AdaptationHandler(method)], inferer).run()
    assert torch.equal(method.batches_seen[0], seen[-1])


def test_slices_of_a_volume_for_a_2d_network(make_network):
    network = make_network(2)
    method = Spy(network, activation="sigmoid")
    inferer = SliceInferer(roi_size=(8, 8), spatial_dim=2, sw_batch_size=4)
    evaluator(network, volumes(1, (8, 8, 6)), [AdaptationHandler(method)], inferer).run()
    assert [batch.shape for batch in method.batches_seen] == [(4, 1, 8, 8)]


def test_windows_are_the_same_for_the_same_seed(make_network):
    def chosen(seed):
        network = make_network(3)
        method = Spy(network, activation="sigmoid", seed=seed)
        handler = AdaptationHandler(method, windows={"uncertain": 0, "random": 4})
        evaluator(network, volumes(1, (24, 24, 24)), [handler], SlidingWindowInferer(ROI, 4)).run()
        return torch.cat(method.batches_seen)

    assert torch.equal(chosen(0), chosen(0))
    assert not torch.equal(chosen(0), chosen(1))


def test_wrong_settings_and_unknown_inferers_are_refused_by_name(make_network):
    network = make_network(3)
    with pytest.raises(GrataError, match="windows#uncertian"):
        GraTaHandler(network, activation="sigmoid", windows={"uncertian": 1})
    with pytest.raises(GrataError, match="at least one window"):
        GraTaHandler(network, activation="sigmoid", windows={"uncertain": 0, "random": 0})
    engine = evaluator(network, volumes(1), [GraTaHandler(network, activation="sigmoid")], PatchInferer())
    with pytest.raises(GrataError, match="PatchInferer"):
        engine.run()


def test_a_batch_of_several_cases_gives_a_line_for_each(make_network, tmp_path):
    network = make_network(3)
    loader = DataLoader(Dataset(volumes(4)), batch_size=2, num_workers=0)
    handler = GraTaHandler(network, activation="sigmoid", journal=tmp_path / "j.jsonl")
    SupervisedEvaluator("cpu", loader, network, val_handlers=[handler]).run()
    assert [line["case"] for line in Journal(tmp_path / "j.jsonl").lines()] == [f"case{i}" for i in range(4)]


def test_prepare_batch_of_the_engine_is_used(make_network):
    def prepare(batch, device, non_blocking, **kwargs):
        return batch["scan"].to(device), None, (), {}

    network = make_network(3)
    method = Spy(network, activation="sigmoid")
    items = [{"scan": item["image"], "case": item["case"]} for item in volumes(1)]
    evaluator(network, items, [AdaptationHandler(method)], prepare_batch=prepare).run()
    assert torch.equal(method.batches_seen[0], items[0]["scan"][None])


def test_further_inputs_of_the_network_are_refused_where_they_cannot_be_mapped_to_views(make_network):
    def prepare(batch, device, non_blocking, **kwargs):
        return batch["image"].to(device), None, (torch.ones(1),), {}

    class Conditioned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_network(3)

        def forward(self, x, scale):
            return self.inner(x) * scale

    network = Conditioned()
    with pytest.raises(GrataError, match="prepare_batch"):
        evaluator(network, volumes(1), [GraTaHandler(network, activation="sigmoid")], prepare_batch=prepare).run()
    network = Conditioned()
    evaluator(network, volumes(1), [AdaptationHandler(PTBN(network))], prepare_batch=prepare).run()


class WithActivation(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).sigmoid()


def test_a_module_around_the_network_stays_the_one_that_predicts(make_network):
    inner = make_network(3)
    handler = GraTaHandler(inner, activation="sigmoid", lr=1e-2, source_key="source_pred")
    engine = evaluator(WithActivation(inner), volumes(2), [handler])
    sources = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: sources.append(e.state.batch[0]["source_pred"]))
    seen = predictions(engine)
    alone = make_network(3)
    logits = predictions(evaluator(alone, volumes(2), [GraTaHandler(alone, activation="sigmoid", lr=1e-2)]))
    source = make_network(3).eval()
    for wrapped, plain, before, item in zip(seen, logits, sources, volumes(2)):
        torch.testing.assert_close(wrapped, plain.sigmoid())
        torch.testing.assert_close(before, source(item["image"][None])[0].sigmoid().detach())


def test_another_network_than_the_method_adapts_is_refused(make_network):
    with pytest.raises(GrataError, match="another UNet"):
        evaluator(make_network(3), volumes(1), [GraTaHandler(make_network(3), activation="sigmoid")]).run()
    scripted = torch.jit.script(make_network(3).eval())
    with pytest.raises(GrataError, match="a TorchScript network cannot be put inside a WithActivation"):
        evaluator(WithActivation(scripted), volumes(1), [GraTaHandler(scripted, activation="sigmoid")]).run()


class LoadOnStart:
    """A handler that loads weights on STARTED, as MONAI's CheckpointLoader does."""

    def __init__(self, network):
        self.network, self.weights = network, copy.deepcopy(network.state_dict())

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, lambda e: self.network.load_state_dict(self.weights))


def test_weights_loaded_on_start_do_not_undo_what_a_resumed_method_had_adapted(make_network):
    whole = make_network(3)
    evaluator(whole, volumes(4), [LoadOnStart(whole), GraTaHandler(whole, activation="sigmoid", lr=1e-2)]).run()

    begun = make_network(3)
    handler = GraTaHandler(begun, activation="sigmoid", lr=1e-2)
    evaluator(begun, volumes(4)[:2], [LoadOnStart(begun), handler]).run()
    again = make_network(3)
    resumed = GraTaHandler(again, activation="sigmoid", lr=1e-2)
    engine = evaluator(again, volumes(4)[2:], [LoadOnStart(again), resumed])
    resumed.method.load_state_dict(handler.method.state_dict())
    engine.run()
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("episodic", [False, True])
def test_a_run_after_one_that_failed_at_its_first_case_goes_well(make_network, episodic):
    network = make_network(3)
    handler = GraTaHandler(network, activation="sigmoid", lr=1e-2, reset="per-case" if episodic else "never")
    broken = [{"image": torch.rand(3, *ROI), "case": "three channels"}]
    with pytest.raises(GrataError, match="takes 1 channel, and got 3"):
        evaluator(network, broken, [handler]).run()
    seen = predictions(evaluator(network, volumes(1), [handler]))
    fresh = make_network(3)
    expected = predictions(
        evaluator(
            fresh,
            volumes(1),
            [GraTaHandler(fresh, activation="sigmoid", lr=1e-2, reset="per-case" if episodic else "never")],
        )
    )
    torch.testing.assert_close(seen, expected)


def test_batches_without_case_ids_are_journalled_image_by_image(make_network, tmp_path):
    network = make_network(3)
    images = torch.stack([item["image"] for item in volumes(2)])
    handler = GraTaHandler(network, activation="sigmoid", journal=tmp_path / "j.jsonl")
    SupervisedEvaluator(
        "cpu",
        [[images]],
        network,
        prepare_batch=lambda batch, device, non_blocking, **kwargs: (batch[0], None),
        val_handlers=[handler],
        decollate=False,
    ).run()
    assert [line["case"] for line in Journal(tmp_path / "j.jsonl").lines()] == ["iteration-1-0", "iteration-1-1"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_engines_amp_and_device_are_used(make_network):
    network = make_network(3).cuda()
    loader = DataLoader(Dataset(volumes(2)), batch_size=1, num_workers=0)
    handler = GraTaHandler(network, activation="sigmoid")
    SupervisedEvaluator("cuda:0", loader, network, amp=True, val_handlers=[handler]).run()
    assert handler.flags == {} and handler.method.batches == 2
