"""A small application that does everything wrong with what it is sent: raises it, logs it, names tasks and loggers after it.

It has a file of its own, so that the name which a test sends is not a constant of the file that logs it.
"""

import asyncio
import logging
import threading
import warnings
from collections.abc import AsyncIterator

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from clinical_ser.api.metrics import Denial, Outcome, Stage
from clinical_ser.api.observing import Observing
from clinical_ser.api.tracing import NO_FASTAPI_TELEMETRY
from clinical_ser.audit.checkpoint import parse_decimal
from clinical_ser.strict import Strict


class Asked(Strict):
    """What a route expects."""

    age: int


def careless_app(observing: Observing) -> FastAPI:
    app = FastAPI(telemetry=NO_FASTAPI_TELEMETRY)
    logger = logging.getLogger("json.careless")
    tasks: set[asyncio.Task[None]] = set()

    async def fails(name: str) -> None:
        raise ValueError(f"{name} in a task")

    @app.post("/raises/{name}")
    async def raises(name: str, request: Request) -> None:
        secret = (await request.body()).decode()
        try:
            {}[secret]
        except KeyError as error:
            raise ValueError(f"{name}: {secret}") from error

    @app.post("/ours/{name}")
    async def ours(name: str) -> None:
        with observing.stage(Stage.WORK):
            parse_decimal(name, name)

    @app.get("/refuses/{name}")
    async def refuses(name: str) -> None:
        observing.metrics.denied(Denial.TENANT)
        observing.metrics.screening(Outcome.FAILED, name)
        raise HTTPException(403, name)

    @app.post("/strict")
    async def strict(asked: Asked) -> int:
        return asked.age

    @app.get("/background/{name}")
    async def background(name: str, later: BackgroundTasks) -> None:
        later.add_task(fails, name)

    @app.get("/task/{name}")
    async def task(name: str) -> None:
        made = asyncio.create_task(fails(name), name=name)
        tasks.add(made)
        made.add_done_callback(tasks.discard)
        asyncio.get_running_loop().call_soon(lambda given: 1 / len(given[:0]), name)

    @app.get("/thread/{name}")
    def thread(name: str) -> None:
        def ends() -> None:
            raise ValueError(name)

        started = threading.Thread(target=ends, name=name)
        started.start()
        started.join()

    @app.get("/logs/{name}")
    async def logs(name: str) -> None:
        logger.error("A constant, %s.", name)
        logger.error(f"Not a constant: {name}")
        logger.error(name)
        logging.error(name)  # on the root logger, as the careless do
        logging.getLogger(name).error("Its name is a name.")
        observing.logs.write(f"x {name}", code=f"name: {name}")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(name, stacklevel=1)
        try:
            int(name)
        except ValueError:
            logger.exception("It failed.")

    @app.get("/stream/{name}")
    async def stream(name: str) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"x"
            raise ValueError(name)

        return StreamingResponse(parts())

    return app
