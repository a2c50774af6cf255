"""The `offload` command, one file per subcommand."""

import sys

from offload_runtimes.serving.handshakes import report_handshakes

if sys.argv[1:2] == ["serve"]:  # before any command imports gRPC
    report_handshakes()
