"""Run `python -m grata ...` and `python -m monai.bundle ...` without waiting for their imports each time.

    python tests/forkserver.py <socket> <client>

Nine tenths of the time of a small command are imports. This process imports once what commands need, writes an
executable <client>, and forks itself for each call of the client: a process of its own, with the caller's arguments,
folder, environment, streams and exit status. Whatever it cannot stand for, the client gives to Python itself: other
modules, and an environment in which modules would come from elsewhere. A client that is killed takes its command along.

Commands run as a user without privileges, also where the tests run as root, and under the client's limit of a file's
size. Not for tests about processes: what a command imports, how it is killed, or whether two of them agree whose hashes
of text differ.
"""

import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys

MODULES = ("grata", "monai.bundle")
IMPORTED = (
    *("monai.bundle", "monai.engines", "monai.handlers", "monai.data", "monai.transforms", "monai.networks.nets"),
    *("torch._dynamo", "typer", "pydantic", "shellingham", "PIL.JpegImagePlugin"),
    *("itk", "nibabel", "pydicom", "highdicom", "skimage", "pandas", "matplotlib.figure", "safetensors.torch"),
    *(f"grata.{room}" for room in ("benchmark", "data", "handlers", "methods", "networks", "preparation")),
    *(f"grata.{room}" for room in ("cli", "doctor", "nnunet", "report", "workflows", "zoo")),
)
CLIENT = """#!{python} -SE
import json, os, resource, socket, sys
known = sys.argv[1:2] == ["-m"] and sys.argv[2] in {modules}
if not known or os.environ.get("PYTHONPATH", "") != {path!r}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
call = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ), limit]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    status = int(server.recv(16) or 1)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def serve(address: str, client: str) -> None:
    """Fork for each call, for ever; return in the process that is to run one."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        text = CLIENT.format(
            python=sys.executable, modules=MODULES, path=os.environ.get("PYTHONPATH", ""), address=address
        )
        with open(client, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
            file.write(text)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who watches over a call is not waited for
        while True:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    watch(connection)
                    return


def watch(connection: socket.socket) -> None:
    """Fork the process that runs a call and return in it; pass its exit status on, or end it with its client."""
    head, streams, *_ = socket.recv_fds(connection, 8, 3)
    call = b""
    while len(call) < int.from_bytes(head, "big"):
        call += connection.recv(1 << 16)
    command = os.fork()
    if command == 0:
        become(streams, *json.loads(call))
        return
    ended = os.pidfd_open(command)
    for stream in streams:
        os.close(stream)
    readable, _, _ = select.select([ended, connection], [], [])
    if ended not in readable:
        os.kill(command, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    if ended in readable:
        connection.sendall(str(status).encode())
    os._exit(0)


def text_stream(number: int, encoding: str) -> io.TextIOWrapper:
    """Return a stream that writes to a descriptor, as Python makes its own where no terminal is behind them."""
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    errors = "backslashreplace" if number == 2 else "strict"
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=number == 2)


def become(
    streams: list[int], arguments: list[str], folder: str, environment: dict[str, str], limit: list[int]
) -> None:
    """Take over the client's streams, arguments, folder, environment and limit of a file's size."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout, sys.stderr = (text_stream(number, encoding) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(limit))
    sys.path[0] = folder
    sys.argv = arguments


if __name__ == "__main__":
    if os.geteuid() == 0 and sys.argv[-1] != "--unprivileged":
        for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, lost when a program starts
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
        os.execv(sys.executable, [sys.executable, *sys.argv, "--unprivileged"])
    for name in IMPORTED:
        importlib.import_module(name)
    # fire asks each time which module a frame belongs to, and inspect keeps what it found.
    inspect.stack()
    # What is imported is not looked through again for what can be freed, which would copy its pages in each process.
    gc.freeze()
    serve(*sys.argv[1:3])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
