"""Certificates, tokens, metrics and logs by the command line, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np

from tests.runtimes import bundles

COMMAND = [sys.executable, "-c", "from offload_cli.main import main; main()"]


def offload(*arguments: str | Path, token: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OFFLOAD_TOKEN": token},
        timeout=120,
        check=False,
    )


def test_serve_with_mutual_tls_token_metrics_and_log(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    done = offload("certs", "init", certs, "--server", "127.0.0.1", "--device", "camera")
    assert done.returncode == 0, done.stderr
    again = offload("certs", "init", certs, "--device", "camera")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "offload certs renew" in again.stderr
    made = bundles.branches(tmp_path / "bundle")
    feeds = made.feeds()
    np.savez(tmp_path / "in.npz", **feeds)  # type: ignore[arg-type]
    (tmp_path / "token").write_text("open sesame\n")
    serve = [*COMMAND, "serve", made.bundle.path, "--listen", "127.0.0.1:0", "--format", "json"]
    serve += ["--cert", certs / "127.0.0.1.pem", "--key", certs / "127.0.0.1.key"]
    serve += ["--client-ca", certs / "ca.pem", "--token-file", tmp_path / "token"]
    serve += ["--metrics", "127.0.0.1:0", "--log"]
    with subprocess.Popen(
        [str(word) for word in serve], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        head = ""
        while not head.endswith("}\n"):
            head += server.stdout.readline()
        told = json.loads(head)
        run: list[str | Path] = [
            "run",
            made.bundle.path,
            "--input",
            tmp_path / "in.npz",
            "--format",
            "json",
        ]
        run += ["--server", told["listening"], "--ca", certs / "ca.pem"]
        pair: list[str | Path] = ["--cert", certs / "camera.pem", "--key", certs / "camera.key"]
        out: list[str | Path] = ["--output", tmp_path / "out.npz"]
        good = offload(*run, *pair, *out, token="open sesame")
        assert good.returncode == 0, good.stderr
        found = np.load(tmp_path / "out.npz")["y"]
        np.testing.assert_allclose(found, made.expected(feeds)[0], rtol=1e-5)
        for refused in (offload(*run, *pair, token="guess"), offload(*run, token="open sesame")):
            assert refused.returncode == 1
            assert refused.stderr.startswith("error: ")
            assert "Traceback" not in refused.stderr
        with urllib.request.urlopen(f"http://{told['metrics']}/metrics") as answer:
            assert 'outcome="answered",plan="0"} 1' in answer.read().decode()
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
    assert "session opened" in events
