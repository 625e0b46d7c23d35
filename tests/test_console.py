"""Whatever the console, whatever the names: what is printed is shown, steers nothing and ends quietly."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from grata.cli import main
from grata.console import CLOSED_PIPE, fit_console, printable, say, say_beside_bar

STEERING = {
    "colours": "\x1b[31mred\x1b[0m",
    "title of the terminal": "\x1b]0;owned\x07",
    "one byte": "\x9b2J",
    "line taken back": "done\rFAIL",
    "backspace": "abc\b\b\b",
    "right to left": "scan\u202egpj.exe",
    "isolate": "\u2066x\u2069",
    "line separator": "a\u2028b",
    "null": "a\x00b",
}


@pytest.mark.parametrize("name", STEERING.values(), ids=STEERING)
def test_names_do_not_steer_the_terminal(name, capsys):
    say(f"{name}: done")
    say(f"{name}: failed", sys.stderr)
    say_beside_bar(f"{name}: beside")
    shown = "".join(capsys.readouterr())
    assert shown.count("\N{REPLACEMENT CHARACTER}") >= 3 and shown.count("\n") == 3
    assert not set("\x1b\x07\x9b\r\b\u202e\u2066\u2069\u2028\x00") & set(shown)


def test_what_no_terminal_takes_for_an_order_stays():
    text = "Müller 患者二 \u0928\u094d\u200d\u092f 👩\u200d⚕️\tTab"
    assert printable(text) == text
    assert printable("a\nb") == "a\N{REPLACEMENT CHARACTER}b"


def test_names_in_errors_and_tables_of_the_commands_do_not_steer_either(tmp_path, capsys):
    for words in (
        ["doctor", f"{tmp_path}/\x1b[2Jx"],
        ["bank", "list", f"{tmp_path}/\x1b[2Jx"],
        ["benchmark", f"{tmp_path}/\x1b[2Jx.yaml"],
        ["\x1b[2Jx"],
    ):
        assert main(words) == 1
        assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
def test_a_console_shows_what_its_encoding_lacks_as_an_escape(encoding, monkeypatch):
    consoles = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, console in consoles.items():
        monkeypatch.setattr(sys, name, console)
    fit_console()
    say("患者二 ∇θ")
    say_beside_bar("患者二")
    say("患者二", sys.stderr)
    for _ in tqdm(range(2), desc="患者二"):
        pass
    for console in consoles.values():
        console.flush()
        assert rb"\u60a3\u8005\u4e8c" in console.buffer.getvalue()


@pytest.mark.parametrize("words", [["methods"], ["methods", "grata"], ["doctor", "nowhere"], ["--help"]])
def test_a_command_whose_reader_is_gone_ends_quietly(words):
    reading, writing = os.pipe()
    os.close(reading)
    errors_too = words[0] == "doctor"
    process = subprocess.Popen(
        [sys.executable, "-m", "grata", *words],
        stdout=writing,
        stderr=writing if errors_too else subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    _, error = process.communicate(timeout=200)
    assert not error
    # click answers for --help itself
    assert process.returncode in ((1, CLOSED_PIPE) if words == ["--help"] else (CLOSED_PIPE,))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="devices of Linux")
@pytest.mark.parametrize(
    "ending, status, words",
    [
        (">&-", 0, "note: standard output is closed"),
        ("> /dev/full", 1, "error: What is printed or a file could not be written (No space left on device). Free"),
        ("2>&-", 0, ""),
    ],
)
def test_an_output_that_is_closed_or_full_is_named(ending, status, words):
    done = subprocess.run(
        f'"{sys.executable}" -m grata --version {ending}', shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and done.stderr.startswith(words) and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == bool(words)
