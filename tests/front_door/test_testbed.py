"""A kernel without the queues that shape links, in the words of several versions of tc."""

from pathlib import Path

import pytest

from tests.front_door.door import Door

TC = """#!/bin/sh
case "$*" in *{kind}*) echo "{said}" >&2; exit 2;; esac
"""
WORDINGS = [
    "Error: Specified qdisc kind is unknown.",
    "RTNETLINK answers: No such file or directory",
    "RTNETLINK answers: Operation not supported",
    'Unknown qdisc \\"{kind}\\", hence option \\"delay\\" is unparsable',
    "Error: Qdisc not supported.",
    "modprobe: FATAL: Module sch_{kind} not found in directory /lib/modules/6.1",
]


@pytest.mark.parametrize("kind", ["netem", "tbf"])
@pytest.mark.parametrize("said", WORDINGS)
def test_a_queue_that_the_kernel_lacks(door: Door, kind: str, said: str) -> None:
    """`ip` and `tc` of another machine, played by scripts."""
    tools = door.folder / "tools"
    tools.mkdir()
    for name in ("ip", "tc"):
        script = Path(tools / name)
        script.write_text(TC.format(kind=kind, said=said.replace("{kind}", kind)))
        script.chmod(0o755)
    sentence = door.refused(
        "testbed", "up", "--link", "20 Mbit/s,10 ms", env={"PATH": f"{tools}:/bin"}
    )
    if "root" in sentence:
        pytest.skip("not root")
    assert sentence.startswith(f"this kernel has no {kind} queue, so the link can't be shaped")
