"""Serve an exported model over HTTP, with rows of several requests in one call of the model.

    pip install 'aiohttp>=3.9'
    python scripts/examples/serve_http.py models/digits --port=8501
    curl -d '{"instances": [...]}' http://127.0.0.1:8501/v1/models/digits:predict

An example on aiohttp, for a model of one input; requests and answers are those of TensorFlow
Serving's REST interface, which is what to take for heavy traffic. A request waits until its batch
is full, or for --wait_ms. It listens on 127.0.0.1 alone: before you let others in, put a server in
front that knows who they are.
"""

import argparse
import asyncio
import pathlib
from typing import Any

import numpy as np
from aiohttp import web

from tfdp import run as run_lib
from tfdp.serving import manifest


class Batcher:
    """Gathers rows of concurrent requests, and runs them in one call."""

    def __init__(self, served: Any, wait_seconds: float) -> None:
        self.rows = self.calls = 0
        self._served = served
        self._wait_seconds = wait_seconds
        self._waiting: asyncio.Queue = asyncio.Queue(maxsize=16 * served.batch_size)

    async def predict(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return the outputs of each row; ValueError for one that the model refuses."""
        answers = []
        for row in rows:
            answers.append(asyncio.get_running_loop().create_future())
            await self._waiting.put((row, answers[-1]))
        return await asyncio.gather(*answers)

    async def run(self) -> None:
        """Make batches for ever."""
        while True:
            batch = [await self._waiting.get()]
            deadline = asyncio.get_running_loop().time() + self._wait_seconds
            while len(batch) < self._served.batch_size:
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self._waiting.get())
                except TimeoutError:
                    break
            rows = np.stack([row for row, _ in batch])
            try:
                # In a thread: the next batch is gathered while this one is run.
                outputs, refused = await asyncio.to_thread(self._call, rows)
            except Exception as error:  # whatever it is, the clients have to hear of it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(ValueError(str(error)))
                continue
            self.rows, self.calls = self.rows + len(batch), self.calls + 1
            self._answer(batch, outputs, dict(refused))

    def _call(self, rows: np.ndarray) -> Any:
        (name,) = self._served.signature.inputs
        return self._served.run({name: rows})

    def _answer(self, batch: list[Any], outputs: dict[str, Any], refused: dict[int, str]) -> None:
        good = iter(range(len(batch)))
        for place, (_, answer) in enumerate(batch):
            if answer.done():  # the client has gone away
                if place not in refused:
                    next(good)
            elif place in refused:
                answer.set_exception(ValueError(refused[place]))
            else:
                at = next(good)
                answer.set_result({name: array[at].tolist() for name, array in outputs.items()})


def application(name: str, served: Any, wait_seconds: float) -> web.Application:
    """Return the application that serves one model."""
    (spec,) = served.signature.inputs.values()

    async def start(app: web.Application) -> None:
        app["batcher"] = Batcher(served, wait_seconds)
        app["task"] = asyncio.create_task(app["batcher"].run())

    async def stop(app: web.Application) -> None:
        app["task"].cancel()

    async def predict(request: web.Request) -> web.Response:
        try:
            instances = (await request.json())["instances"]
            rows = np.asarray(instances, spec.dtype)
            if rows.ndim == 0 or rows.shape[1:] != spec.row:
                raise ValueError(f"instances have the shape {rows.shape}, not {spec}")
            outputs = await request.app["batcher"].predict(rows)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return web.json_response({"error": str(error) or repr(error)}, status=400)
        # One output is given by itself, as TensorFlow Serving does.
        plain = [next(iter(o.values())) if len(o) == 1 else o for o in outputs]
        return web.json_response({"predictions": plain})

    async def status(request: web.Request) -> web.Response:
        batcher = request.app["batcher"]
        return web.json_response({"rows": batcher.rows, "calls": batcher.calls})

    app = web.Application(client_max_size=64 << 20)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.add_routes(
        [
            web.post(f"/v1/models/{name}:predict", predict),
            web.get(f"/v1/models/{name}/status", status),
        ]
    )
    return app


async def serve(app: web.Application, port: int) -> None:
    """Serve for ever."""
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print("http://{}:{}".format(*runner.addresses[0][:2]), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a version of a SavedModel, or the folder of its versions")
    parser.add_argument("--port", type=int, default=8501, help="0: any that is free")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--wait_ms", type=float, default=5.0)
    options = parser.parse_args()
    folder = manifest.version_folder(options.model)
    manifest.verify(folder)
    run_lib.import_tensorflow()
    from tfdp.inference import model

    loaded, signatures = model.load(folder)
    served = model.Served(loaded, signatures["serving_default"], options.batch_size)
    served.warm_up()
    name = folder.parent.name if pathlib.Path(folder).name.isdecimal() else folder.name
    asyncio.run(serve(application(name, served, options.wait_ms / 1000), options.port))


if __name__ == "__main__":
    main()
