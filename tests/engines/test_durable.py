"""A run that was killed, stopped or met a full disk goes on as it says, and touches nothing that is not its own."""

import contextlib
import errno
import faulthandler
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from grata.data import Discovery
from grata.engines import AdaptationHandler, AdaptationRun, OutputHandler
from grata.errors import GrataError
from grata.files import atomic_write
from grata.session import Journal
from grata.states import read_state, write_state

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and links of POSIX")

SEGMENTS = [{"value": 1, "label": "a", "category": ["1", "SCT", "a"], "type": ["1", "SCT", "a"]}]
NAMES = ["case0", "case1", "case2"]


class Outputs(OutputHandler):
    """An ``OutputHandler`` that writes the raw prediction alone."""

    def write(self, engine):
        for item, output in zip(engine.state.batch, engine.state.output):
            path = self.paths(item["case"])[0]
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(torch.as_tensor(output["pred"]).numpy().tobytes())


@pytest.fixture
def make_run(make_method, tmp_path):
    """Function that makes a run; ``trouble`` is called with the name of each case when it is read."""

    def make(output="out", trouble=lambda name: None, names=NAMES, **options):
        def read(item):
            trouble(item["case"])
            image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(int(item["case"][-1])))
            return {**item, "image": image}

        cases = [{"case": name, "site": "A", "format": "nifti"} for name in names]
        folder = tmp_path / output
        method = make_method("tent")
        outputs = Outputs(cases, folder, SEGMENTS, "tent")
        adaptation = AdaptationHandler(method, guard=False, journal=folder / "journal.jsonl")
        engine = SupervisedEvaluator("cpu", DataLoader(Dataset(cases, read), batch_size=1), method.given)
        engine.add_event_handler(Events.ITERATION_COMPLETED, outputs.write)
        adaptation.attach(engine)
        return AdaptationRun(engine, Discovery(cases), adaptation, outputs, folder, **options)

    return make


def run_in_a_child(make_run, **options) -> int:
    """Run in a process of its own, and return how it ended, as ``os.waitstatus_to_exitcode`` does."""
    child = os.fork()
    if child == 0:
        # a shell starts what it runs in the background with Ctrl-C and the end of the terminal ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            make_run(**options).run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def segmentations(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "segmentations").iterdir())}


def cases_of(folder: Path) -> list[str]:
    return [line["case"] for line in Journal(folder / "journal.jsonl").lines() if "fault" not in line]


def on(case, act):
    return lambda name: act() if name == case else None


DEATHS = {
    "killed for its memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed in a library": lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)),
    "ended by a library": lambda: os._exit(137),
}


@pytest.mark.parametrize("death, case", zip(DEATHS, NAMES))
def test_a_case_that_ends_the_process_twice_is_passed_over(make_run, tmp_path, capsys, death, case):
    for resume in (False, True):
        assert run_in_a_child(make_run, resume=resume, trouble=on(case, DEATHS[death])) != 0
    for _ in range(2):
        # now the file would be harmless, and is passed over all the same
        assert make_run(resume=True).run() == 1
        printed = capsys.readouterr().out
        assert f"{case}: the process ended twice" in printed and "2 of 3 cases finished" in printed
        assert str(tmp_path / "out" / ".begun") in printed
        assert cases_of(tmp_path / "out") == [name for name in NAMES if name != case]
    (tmp_path / "out" / ".begun").write_text("")
    assert make_run(resume=True).run() == 0
    assert sorted(cases_of(tmp_path / "out")) == NAMES and not (tmp_path / "out" / ".begun").exists()


def test_a_case_that_failed_after_it_ended_the_process_once_is_an_ordinary_fault(make_run, tmp_path):
    def fail():
        raise GrataError("It is broken. Mend it.")

    assert run_in_a_child(make_run, trouble=on("case1", DEATHS["ended by a library"])) == 137
    assert make_run(resume=True, trouble=on("case1", fail)).run() == 1
    assert make_run(resume=True).run() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_stops_a_run_during_the_same_case_again_and_again_loses_nothing(make_run, tmp_path, number):
    make_run("whole").run()

    def stop():
        os.kill(os.getpid(), number)
        time.sleep(5)

    for resume in (False, True):
        # Python makes an exception of Ctrl-C
        ended = run_in_a_child(make_run, resume=resume, trouble=on("case1", stop))
        assert ended == (0 if number == signal.SIGINT else -number)
    assert (tmp_path / "out" / ".begun").read_text() == "0\tcase1\n"
    assert make_run(resume=True).run() == 0
    assert segmentations(tmp_path / "out") == segmentations(tmp_path / "whole")
    assert cases_of(tmp_path / "out") == NAMES


def test_a_note_of_the_last_release_counts_as_one_attempt(make_run, tmp_path):
    folder = tmp_path / "out"
    (folder / "segmentations").mkdir(parents=True)
    (folder / "segmentations" / "case1.nii.gz").write_text("half")
    (folder / ".begun").write_text("case1")
    assert run_in_a_child(make_run, trouble=on("case1", DEATHS["ended by a library"])) == 137
    assert make_run(resume=True).run() == 1
    assert cases_of(folder) == ["case0", "case2"] and "case1.nii.gz" not in segmentations(folder)


WAYS_OUT = ["../../victim", "x/../../../victim", "{tmp}/victim", "..", "", "victim\0", "figures/../../../victim"]
WAYS_OUT += ["x" * 5000, "x" * 252]


@pytest.mark.parametrize("place", ["journal", "begun", "removing", "state"])
def test_names_in_damaged_files_lead_to_nothing_outside(make_run, tmp_path, capsys, place):
    make_run().run()
    folder = tmp_path / "out"
    victims = [tmp_path / "victim.nii.gz", tmp_path.parent / "victim.nii.gz", tmp_path / "victim.png", folder / ".png"]
    for victim in victims:
        victim.write_text("mine")
    names = [way.format(tmp=tmp_path) for way in WAYS_OUT]
    if place == "journal":
        (folder / "journal.jsonl").write_text("".join(json.dumps({"case": name}) + "\n" for name in names))
    elif place == "state":
        state = read_state(folder / "state.pt")
        write_state(folder / "state.pt", state | {"finished": [*state["finished"], *names]})
    else:
        (folder / f".{place}").write_text("\n".join(names))
    assert make_run(overwrite=place != "removing", names=["case3"]).run() == 0
    assert "Nothing was removed by them" in capsys.readouterr().out
    assert all(victim.read_text() == "mine" for victim in victims)
    if place != "journal":
        assert list(segmentations(folder)) == ["case3.nii.gz"]
    for victim in victims:
        victim.unlink()


@pytest.mark.parametrize("name", ["segmentations", "figures"])
def test_a_link_out_of_the_output_folder_is_refused(make_run, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "case0.nii.gz").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / ".begun").write_text("case0")
    with pytest.raises(GrataError, match=f"{name} is a link out of the output folder.*Remove the link"):
        make_run()
    assert (tmp_path / "elsewhere" / "case0.nii.gz").read_text() == "mine"
    # within the folder, and the folder itself, are no matter
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "kept").mkdir()
    (tmp_path / "out" / name).symlink_to("kept")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert make_run("link").run() == 0


def occupy(path, how):
    path.unlink(missing_ok=True)
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"nothing": "nowhere", "itself": path.name, "a folder": "."}[how.removeprefix("a link to ")])


@pytest.mark.parametrize("how", ["a folder", "a pipe", "a link to nothing", "a link to itself", "a link to a folder"])
@pytest.mark.parametrize("name", ["journal.jsonl", "state.pt", ".begun", "cases.csv", "summary.json"])
def test_what_lies_where_a_file_of_the_run_belongs_is_named_at_the_start(make_run, tmp_path, name, how):
    stopped = tmp_path / "out"
    for folder in ("segmentations", "figures"):
        (stopped / folder).mkdir(parents=True)
        (stopped / folder / "case0.nii.gz").write_text("finished")
    for file in ("journal.jsonl", "state.pt", "cases.csv"):
        (stopped / file).write_text('{"case": "case0"}')
    kept = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != name}
    occupy(stopped / name, how)
    found = "is a link that does not lead to one" if "link" in how else "is not a file"
    for options in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(GrataError, match=f"{name} {found}.* Remove it, or name another folder"):
            make_run(**options)
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("name", ["segmentations", "figures"])
def test_a_file_where_a_folder_of_the_run_belongs_is_named_at_the_start(make_run, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(GrataError, match=f"{name} is not a folder.* Remove it, or name another folder"):
        make_run()
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).symlink_to("nowhere")
    with pytest.raises(GrataError, match=f"{name} is a link that does not lead to one"):
        make_run()


def test_temporary_files_of_another_run_below_are_left_alone(make_run, tmp_path):
    folder = tmp_path / "out"
    (folder / "other" / "segmentations").mkdir(parents=True)
    (folder / "segmentations").mkdir()
    others = [folder / "other" / ".0123456789ab-state.pt", folder / "other" / "segmentations" / ".0123456789ab-a.png"]
    others += [folder / ".0123456789ab-notes.txt", folder / ".hidden"]
    own = [folder / ".0123456789ab-state.pt", folder / "segmentations" / ".0123456789ab-case0.nii.gz"]
    for path in (*others, *own):
        path.write_text("half")
    make_run().run()
    assert all(path.exists() for path in others) and not any(path.exists() for path in own)


def test_an_earlier_run_is_removed_whole_even_if_the_process_is_killed(make_run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    unlink, left = Path.unlink, [0]

    def killing(path, missing_ok=False):
        if path.exists() and ".0" not in path.name:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        unlink(path, missing_ok)

    names, ways = ["case3"], [{"resume": True}, {"overwrite": True}, {}]
    make_run("earlier").run()
    for moment in itertools.count(1):
        output = f"out{moment}"
        shutil.copytree(tmp_path / "earlier", tmp_path / output)
        left[0] = moment
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killing)
            try:
                make_run(output, names=names, overwrite=True)
                break
            except Killed:
                pass
        assert make_run(output, names=names, **ways[moment % 3]).run() == 0
        assert list(segmentations(tmp_path / output)) == ["case3.nii.gz"], moment
        assert cases_of(tmp_path / output) == names and not (tmp_path / output / ".removing").exists()
    assert moment > 5


def test_whatever_is_advised_on_a_full_disk_works(make_run, tmp_path, monkeypatch, capsys):
    make_run("whole", names=NAMES[:2]).run()
    fsync, replace, truncate = os.fsync, os.replace, os.truncate
    for moment in itertools.count(1):
        output, left, full = f"out{moment}", [moment], []

        def write(moment=moment, left=left, full=full):
            left[0] -= 1
            # a disk stays full, or something else makes space at once; some need space to cut a file
            if left[0] == 0 or (left[0] < 0 and moment % 2):
                full.append(True)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        capsys.readouterr()
        status = 1
        with monkeypatch.context() as patch:
            for name, own in (("fsync", fsync), ("replace", replace), ("truncate", truncate)):
                patch.setattr(os, name, lambda *given, own=own, write=write: (write(), own(*given))[1])
            with contextlib.suppress(GrataError):
                status = make_run(output, names=NAMES[:2]).run()
        if not full:
            break
        text = capsys.readouterr().out
        # before the first case, with paths.csv, there is nothing to go on with
        assert status == 1 and ("--resume true" in text or moment <= 3)
        assert make_run(output, names=NAMES[:2], resume=True).run() == 0, moment
        assert segmentations(tmp_path / output) == segmentations(tmp_path / "whole")
        assert cases_of(tmp_path / output) == NAMES[:2]
        assert not (tmp_path / output / ".begun").exists()
    assert moment > 10


@pytest.mark.parametrize("threads", [None, 2, 7])
def test_another_number_of_threads_is_said(make_run, tmp_path, capsys, threads):
    make_run(names=["case0"]).run()
    if threads is not None:
        state = read_state(tmp_path / "out" / "state.pt")
        assert state["threads"] == torch.get_num_threads()
        write_state(tmp_path / "out" / "state.pt", state | {"threads": torch.get_num_threads() + threads})
    assert make_run(resume=True).run() == 0
    printed = capsys.readouterr().out
    said = f"note: the stopped run computed with {torch.get_num_threads() + (threads or 0)} threads" in printed
    assert said == (threads is not None)


@pytest.mark.parametrize("damage", [b'{"case": "case1", "lo', b"\xff\xfe\n", b"null\n[1]\n", b"[" * 100_000])
def test_damaged_lines_of_a_journal_end_nothing(make_run, tmp_path, capsys, damage):
    make_run(names=NAMES[:2]).run()
    with (tmp_path / "out" / "journal.jsonl").open("ab") as file:
        file.write(damage)
    assert make_run(resume=True).run() == 0
    assert "lines of journal.jsonl that are damaged or cut short were left out: " in capsys.readouterr().out
    assert cases_of(tmp_path / "out") == NAMES


def test_a_segmentation_that_was_taken_away_is_said(make_run, tmp_path, capsys):
    make_run(names=NAMES[:2]).run()
    next(iter((tmp_path / "out" / "segmentations").glob(f"{NAMES[0]}.*"))).unlink()
    assert make_run(resume=True).run() == 0
    printed = capsys.readouterr().out
    assert f"finished cases without a segmentation, which was removed since: {NAMES[0]} (1)." in printed


def test_a_finished_case_without_its_line_is_said(make_run, tmp_path, capsys):
    make_run(names=NAMES[:2]).run()
    (tmp_path / "out" / "journal.jsonl").write_bytes(b'{"case": "caseX"}\n')
    assert make_run(resume=True).run() == 0
    assert "finished cases without a line in journal.jsonl, which has lost it: 2." in capsys.readouterr().out
