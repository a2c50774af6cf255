"""How processes with sessions end and fork: nothing left behind, nothing printed, no hang."""

import gc
import threading

import pytest
from offload_runtimes import open_session

from tests.front_door.apps import frame, python, split_chain
from tests.front_door.door import Door


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A folder with a model and its bundle."""
    made = Door(tmp_path_factory.mktemp("chain"))
    split_chain(made)
    return made


# At exit, after close_at_exit: the parts of gRPC that are alive, by class, and its threads.
LEFT = """
import atexit, gc, sys, threading
def left():
    gc.collect()
    kinds = {"_MultiThreadedRendezvous", "Channel", "_RPCState"}
    found = [type(each) for each in gc.get_objects()]
    alive = {k.__name__ for k in found if str(vars(k).get("__module__")).startswith("grpc")}
    threads = {each.name for each in threading.enumerate()} - {"MainThread", "alarm"}
    print("left:", sorted(kinds & alive), sorted(threads))
atexit.register(left)
"""
SLOW = """
import time
from offload_runtimes.closing import close_at_exit
class Owner: pass
def close():
    forget()
    time.sleep(0.5)
    print("closed")
owner = Owner()
forget = close_at_exit(close, owner)
del owner
"""
RUN = """
import numpy as np
from offload_runtimes import open_session, OffloadSession
def main():
    session = open_session("b", sys.argv[1] if len(sys.argv) > 1 else None)
    x = {"x": np.ones((1, 16), np.float32)}
    session.run(None, x)
    %s
"""


@pytest.mark.parametrize(
    "kept", ["", "globals()['kept'] = session", "next(session.stream([x] * 9))"]
)
@pytest.mark.parametrize("served", [False, True])
def test_nothing_is_left_when_the_interpreter_ends(chain: Door, kept: str, served: bool) -> None:
    """atexit runs what was registered first last, so `left` looks after close_at_exit."""
    code = f"{LEFT}{RUN % kept}\nmain()"
    if served:
        with chain.serving("b") as address:
            done = python(chain, code, address)
    else:
        done = python(chain, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "left: [] []\n"


def test_a_forgotten_session_ends(chain: Door) -> None:
    before = set(threading.enumerate())
    session = open_session(chain.folder / "b")
    session.run(None, frame(0))
    started = [t for t in threading.enumerate() if t not in before and t.name != "alarm"]
    assert started
    del session
    gc.collect()
    for thread in [*started, *(t for t in threading.enumerate() if t.name == "closing")]:
        thread.join(20)
        assert not thread.is_alive(), f"{thread.name} runs on"


def test_an_inference_outlives_the_name_of_its_session(chain: Door) -> None:
    running = open_session(chain.folder / "b").begin(None, frame(1))
    gc.collect()
    assert running.finish()[0].shape == frame(1)["x"].shape


FORK = """
import os, sys
import numpy as np
from offload_runtimes import OffloadSession, open_session
x = {"x": np.ones((1, 16), np.float32)}
def child(what):
    pid = os.fork()
    if not pid:
        try:
            what()
        finally:
            sys.stdout.flush()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def sentence(call):
    try:
        call()
        print("no error")
    except Exception as error:
        print(type(error).__name__, error)
def inherited():
    sentence(lambda: session.run(None, x))
    sentence(lambda: session.stream([x]))
    session.close()
def own():
    with OffloadSession("b", sys.argv[1], on_server_loss="raise") as mine:
        print(mine.run(None, x)[0].shape)
session = OffloadSession("b", sys.argv[1], on_server_loss="raise")
for number in range(8):
    session.run(None, x)
    child(own)
child(inherited)
child(lambda: None)
print("parent", session.run(None, x)[0].shape)
"""


def test_forks(chain: Door) -> None:
    with chain.serving("b") as address:
        done = python(chain, FORK, address)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:8] == ["(1, 16)"] * 8
    for line in lines[8:10]:
        assert line.startswith("InputError the session was opened before this process was forked")
    assert lines[10:] == ["parent (1, 16)"]


def test_the_end_waits_for_a_session_that_is_being_closed(chain: Door) -> None:
    """Collected just before the end, a session is closed on a thread of its own."""
    done = python(chain, SLOW)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
