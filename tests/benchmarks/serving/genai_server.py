"""A server over openvino-genai's continuous batching, to measure it with the clients of `serve_load.py`.

    python tests/benchmarks/serving/genai_server.py IR_FOLDER --port 8001

Serves /health and /v1/chat/completions, greedy, streamed or whole. The pipeline steps in one thread, as the
library's own examples do. Prompts are formatted and texts decoded by specport's tokenizer, so that both
servers read the same tokens. The scheduler has the library's defaults, but for its cache of prompts, which
specport's server has too. Nothing of the rest of OpenAI's API is there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import uvicorn
from fastapi import FastAPI, Request
from specport.quantize.convert.to_genai import genai
from starlette.responses import JSONResponse, StreamingResponse

from specport.text.detokenize import Span, TextStream
from specport.text.tokenizer import load_tokenizer


class Batching:
    """Step the pipeline in a thread, and give each request its tokens as they come."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = load_tokenizer(folder)
        self._work = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        model = genai(folder, Path(self._work.name, "model"), link=True)
        self._pipe = openvino_genai.ContinuousBatchingPipeline(model, scheduler, device)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._work_is_there = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._work_is_there.wait():
            with self._lock:
                if self._pipe.has_non_finished_requests():
                    self._pipe.step()
                else:
                    self._work_is_there.clear()

    async def tokens(self, prompt: list[int], most: int) -> AsyncIterator[list[int]]:
        """Yield new tokens; a reader that stops ends its request."""
        config = openvino_genai.GenerationConfig(max_new_tokens=most, do_sample=False)
        config.stop_token_ids = set(self.tokenizer.eos_ids)
        ids = ov.Tensor(np.asarray([prompt], dtype=np.int64))
        with self._lock:
            handle = self._pipe.add_request(next(self._numbers), ids, config)
            self._work_is_there.set()
        running = openvino_genai.GenerationStatus.RUNNING
        try:
            while True:
                ended = handle.get_status() != running
                new: list[int] = []
                while handle.can_read():
                    new += next(iter(handle.read().values())).generated_ids
                if new:
                    yield new
                if ended and not handle.can_read():
                    return
                await asyncio.sleep(0.002)
        finally:
            if handle.get_status() == running:
                handle.cancel()


def make_app(batching: Batching) -> FastAPI:
    app = FastAPI()
    tokenizer = batching.tokenizer

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        prompt = tokenizer.chat(body["messages"])
        reading = batching.tokens(prompt, body["max_tokens"])
        if body.get("stream"):
            return StreamingResponse(events(reading), media_type="text/event-stream")
        ids = [token async for new in reading for token in new]
        message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        return JSONResponse(
            {"choices": [{"index": 0, "message": message}], "usage": {"completion_tokens": len(ids)}}
        )

    async def events(reading: AsyncIterator[list[int]]) -> AsyncIterator[str]:
        stream, count = TextStream(tokenizer), 0
        async for new in reading:
            count += len(new)
            for token in new:
                stream.push(token)
            yield piece(stream.take())
        yield piece(stream.finish())
        yield event({"choices": [], "usage": {"completion_tokens": count}})
        yield "data: [DONE]\n\n"

    return app


def piece(spans: Sequence[Span]) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": "".join(text for text, _ in spans)}}]})


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder with OpenVINO IR")
    parser.add_argument("--device", default="CPU", help="of OpenVINO")
    parser.add_argument("--port", type=int, default=8001)
    args = parser.parse_args()
    uvicorn.run(make_app(Batching(args.model, args.device)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
