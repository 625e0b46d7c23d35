import pytest

from grata.errors import GrataError
from grata.session.attempts import Attempts


@pytest.mark.parametrize("case", ["scan", "a name with spaces", "north/7", "3\u00e4"])
def test_a_case_is_tried_twice(tmp_path, case):
    path = tmp_path / ".begun"
    for number in (1, 2):
        attempts = Attempts(path)
        assert not attempts.gave_up(case) and attempts.pending() == (number == 2)
        attempts.check(case, "wait")
        attempts.begin(case)
        assert path.read_text() == f"{number}\t{case}\n"
    attempts = Attempts(path)
    with pytest.raises(GrataError, match="ended twice while this case was done.*To try it again, wait"):
        attempts.check(case, "wait")
    assert not attempts.pending()
    attempts.begin("other")
    attempts.end()
    attempts.close()
    assert Attempts(path).counts == {case: 2}


@pytest.mark.parametrize("how", ["end", "raise", "interrupt"])
def test_what_python_sees_is_no_attempt(tmp_path, how):
    path = tmp_path / ".begun"
    for _ in range(3):
        attempts = Attempts(path)
        try:
            with attempts.running():
                attempts.begin("scan")
                if how == "end":
                    attempts.end()
                else:
                    raise KeyboardInterrupt if how == "interrupt" else MemoryError
        except (MemoryError, KeyboardInterrupt):
            pass
        attempts.close()
    assert Attempts(path).counts == ({} if how == "end" else {"scan": 0})


@pytest.mark.parametrize(
    "data, counts",
    [(b"scan", {"scan": 1}), (b"scan\nscan\n", {"scan": 2}), (b"1\ta\n\xff\n", {"a": 1, "\udcff": 1}), (b"", {})],
)
def test_notes_of_the_last_release_and_damaged_ones_are_read(tmp_path, data, counts):
    (tmp_path / ".begun").write_bytes(data)
    assert Attempts(tmp_path / ".begun").counts == counts
