"""A web service in front of a session: POST the inputs as .npz, get the outputs as .npz.

python examples/web.py net.bundle 8080 [HOST:PORT]      # needs aiohttp
curl --data-binary @in.npz http://127.0.0.1:8080/ -o out.npz

One session and one event loop answer many requests at the same time."""

import io
import sys
from collections.abc import AsyncIterator
from zipfile import BadZipFile

import numpy as np
from aiohttp import web
from offload_runtimes import DeadlineError, InputError, OffloadSession, ServerError, open_session

SESSION = web.AppKey("session", OffloadSession)
STATUS = {InputError: 400, ServerError: 503, DeadlineError: 504}


async def answer(request: web.Request) -> web.Response:
    """Run the session on the arrays of a request."""
    session = request.app[SESSION]
    try:
        with np.load(io.BytesIO(await request.read())) as inputs:
            feeds = dict(inputs)
    except (ValueError, OSError, EOFError, BadZipFile):
        return web.Response(status=400, text="the body must be an .npz file\n")
    try:
        # If the client goes away, the task is cancelled, and with it the work on both sides.
        outputs = await session.arun(None, feeds)
    except tuple(STATUS) as error:
        return web.Response(status=STATUS[type(error)], text=f"{error}\n")
    names = [value.name for value in session.get_outputs()]
    body = io.BytesIO()
    np.savez(body, **dict(zip(names, outputs, strict=True)))
    return web.Response(body=body.getvalue(), content_type="application/octet-stream")


def application(bundle: str, server: str | None = None) -> web.Application:
    """The service with its session, which is closed when the service stops."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        with open_session(bundle, server, deadline_s=10) as app[SESSION]:
            yield

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(session)
    app.router.add_post("/", answer)
    return app


def main(bundle: str, port: str, server: str | None = None) -> None:
    """Serve on loopback until Ctrl-C."""
    app = application(bundle, server)
    web.run_app(app, host="127.0.0.1", port=int(port), handler_cancellation=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
