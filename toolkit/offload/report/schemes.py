"""How schemes look wherever they are drawn: one colour and one name each."""

from collections.abc import Mapping

COLOURS: Mapping[str, str] = {
    "local": "#0072b2",
    "cloud": "#e69f00",
    "cloud-raw": "#a6761d",
    "neurosurgeon": "#56b4e9",
    "partition": "#009e73",
    "fifo": "#f0e442",
    "paper": "#8c8c8c",
    "opss": "#cc79a7",
    "joint": "#d55e00",
    "auto-raw": "#000000",
}
"""Told apart by colour-blind readers too (Okabe and Ito 2008, and two more)."""

NAMES: Mapping[str, str] = {
    "local": "local: all on the device",
    "cloud": "cloud: all on the server",
    "cloud-raw": "cloud: the camera's bytes sent",
    "neurosurgeon": "neurosurgeon: one tensor",
    "partition": "partition: no overlap",
    "fifo": "same cut, any order overlapped",
    "paper": "same cut, the paper's order",
    "opss": "opss: same cut, overlapped",
    "joint": "joint: cut for overlap",
    "auto-raw": "the planner's, for a camera's bytes",
}

SHORT: Mapping[str, str] = {
    "local": "LO",
    "cloud": "CO fp32",
    "cloud-raw": "CO raw",
    "neurosurgeon": "Neurosurgeon",
    "partition": "PO",
    "fifo": "PO + any order",
    "paper": "PO + paper's order",
    "opss": "OPSS",
    "joint": "joint",
    "auto-raw": "planner, raw",
}
"""As the paper names them, for tables and legends."""
