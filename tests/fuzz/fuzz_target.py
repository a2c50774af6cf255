"""Fuzz one target with atheris, in a process of its own with limited memory.

Run as `python -m tests.fuzz.fuzz_target NAME SECONDS FOLDER`; atheris is not a dependency,
`make fuzz` installs it beside. Findings are written to FOLDER as files.
"""

import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30
_HANG_S = 10
_LONGEST_BYTES = 4096


def main(name: str, seconds: int, folder: Path) -> None:
    """Fuzz for some seconds; libFuzzer ends the process, with code 0 if nothing was found."""
    import atheris

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with atheris.instrument_imports(include=["offload", "offload_runtimes"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "timeout": _HANG_S,
        "max_len": _LONGEST_BYTES,
        "rss_limit_mb": MEMORY_BYTES >> 20,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/{name}-",
    }
    words = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *words, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
