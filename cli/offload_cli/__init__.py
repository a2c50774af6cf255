"""The `offload` command: one file a verb."""

import sys

from offload_runtimes.serving.handshakes import report_handshakes

if sys.argv[1:2] == ["serve"]:  # here, since every verb imports gRPC
    report_handshakes()
