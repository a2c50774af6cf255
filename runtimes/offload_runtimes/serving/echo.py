"""Answer probes of the link."""

from google.protobuf.message import DecodeError
from offload.errors import ServerError

import offload_runtimes.wire.offload_pb2 as pb
from offload_runtimes.grpc import PROBE_LIMIT_BYTES
from offload_runtimes.wire.transport import Connection


def echo(connection: Connection) -> None:
    """Answer every request with as many bytes as it asks for, until the stream ends.

    As in a session whose segments are short, the thread that receives answers, too.
    """
    try:
        while (data := connection.receive()) is not None:
            _answer(connection, data)
    finally:
        connection.close()


def _answer(connection: Connection, data: bytes) -> None:
    """Send the answer; what is no request, or is never read, ends the stream."""
    request = pb.ProbeRequest()
    try:
        request.ParseFromString(data)
        size_bytes = min(request.reply_bytes, PROBE_LIMIT_BYTES - 1024)
        connection.send(pb.ProbeReply(data=bytes(size_bytes)).SerializeToString())
    except (DecodeError, ServerError):
        connection.close()
