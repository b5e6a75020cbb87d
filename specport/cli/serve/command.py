"""`specport serve`: OpenAI's HTTP API over one model."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import specport
from specport.cli import options, terminal
from specport.cli.serve import ray
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from socket import socket

    from specport.pipeline import Pipeline
    from specport.serve.settings import Limits
    from specport.serve.speech import SpeechService

EXAMPLES = """\
examples:
  specport serve                                   SmolLM2-135M-Instruct on http://127.0.0.1:8000/v1
  specport serve --model Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct --port 8080
  specport serve --host 0.0.0.0 --api-key-file keys.txt
  specport serve --metrics-prefix vllm             for dashboards that were made for vLLM
  specport serve --ray --replicas 1:4              replicas on a Ray cluster, as many as the load needs
  specport serve --speech-model base               also transcribes audio

GET /health says when the model is ready. Ctrl-C lets running requests finish; a second one cancels them.
"""
INSTALL = "pip install 'specport[serve]'"


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "serve", help="serve a model over OpenAI's HTTP API", epilog=EXAMPLES,
        description="Serve one model over OpenAI's HTTP API, with streaming, batching and metrics.",
    )  # fmt: skip
    options.add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port; 0 = a free one (default: 8000)"
    )
    group.add_argument(
        "--api-key-file", metavar="FILE", help="file of keys, one a line; who has none is refused"
    )
    group.add_argument(
        "--allowed-host", action="append", metavar="NAME",
        help="answer under this host name, too, on a server without keys for this machine only; repeatable",
    )  # fmt: skip
    group.add_argument("--served-model-name", metavar="NAME", help="name of the model for clients")
    group.add_argument(
        "--metrics-prefix", default="specport", metavar="NAME",
        help="prefix of the metrics; vllm gives them vLLM's names (default: specport)",
    )  # fmt: skip
    group.add_argument("--no-page", action="store_true", help="serve no page at /, the API only")
    group.add_argument("--quiet", action="store_true", help="no line for each request")
    speech = parser.add_argument_group("speech (adds /v1/audio/transcriptions and /v1/audio/translations)")
    speech.add_argument(
        "--speech-model",
        metavar="MODEL",
        help="base, tiny.en, a folder or a hub id, as for specport transcribe",
    )
    speech.add_argument("--speech-draft", metavar="DRAFT", help="as for specport transcribe --draft")
    ray.add_options(parser)
    limits = parser.add_argument_group("limits")
    for name, kind, unit, text in LIMITS:
        limits.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=unit, help=text)
    sampling = parser.add_argument_group("sampling of requests that do not say how")
    for name, kind, text in SAMPLING:
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)


# The fields of Limits and Sampling that are options. A test compares the defaults with theirs.
LIMITS = (
    ("max_running", int, "N", "sequences that run at once (default: 64)"),
    ("max_queue", int, "N", "sequences that may wait; more are refused with status 429 (default: 256)"),
    ("max_choices", int, "N", "sequences of one request, prompts times n (default: 16)"),
    ("request_seconds", float, "S", "most time for a request (default: 600.0)"),
    ("shutdown_seconds", float, "S", "most time for running requests to finish at the end (default: 60.0)"),
)
SAMPLING = (
    ("temperature", float, "0 = greedy (default: 1.0)"),
    ("top_p", float, "(default: 1.0)"),
    ("top_k", int, "0 = off (default: 0)"),
    ("min_p", float, "0 = off (default: 0.0)"),
    ("repetition_penalty", float, "1 = off (default: 1.0)"),
)


def run(args: argparse.Namespace) -> int:
    ray.check(args)
    if args.speech_draft is not None and args.speech_model is None:
        raise InvalidInput("a speech draft needs a speech model", "add --speech-model base")
    try:
        from specport.serve import guard, metrics, server, settings
    except ImportError as error:
        raise InvalidInput(f"the server needs a package that is not here: {error.name}", INSTALL) from error
    # Reject bad options now, not after a model was downloaded and converted.
    limits = settings.Limits(**options.given(args, tuple(name for name, *_ in LIMITS)))
    sampling = settings.Sampling(**options.given(args, tuple(f.name for f in fields(settings.Sampling))))
    metrics.check_prefix(args.metrics_prefix)
    keys = guard.read_keys(Path(args.api_key_file)) if args.api_key_file else []
    hosts = None
    if not keys and guard.is_loopback(args.host):
        hosts = {args.host.lower(), "127.0.0.1", "::1", "localhost", *(args.allowed_host or ())}
    if args.ray:
        return ray.run(args, limits, sampling, keys, hosts)
    listening = server.bind(args.host, args.port)
    try:
        with closing(_load(args)) as pipeline:
            speech = _load_speech(args, limits)
            return _serve(
                args,
                pipeline,
                listening,
                limits=limits,
                sampling=sampling,
                keys=keys,
                hosts=hosts,
                page=not args.no_page,
                speech=speech,
            )
    finally:
        listening.close()


def _load(args: argparse.Namespace) -> Pipeline:
    with terminal.progress(args.quiet) as progress:
        return specport.load(args.model, **options.given(args, options.LOAD_OPTIONS), progress=progress)


def _load_speech(args: argparse.Namespace, limits: Limits) -> SpeechService | None:
    if args.speech_model is None:
        return None
    from specport import speech
    from specport.serve.speech import SpeechService

    given = options.given(args, ("device", "threads"))
    if args.speech_draft is not None:
        given["draft"] = args.speech_draft
    with terminal.progress(args.quiet) as progress:
        found = speech.load(args.speech_model, **given, progress=progress)
    return SpeechService(found, found.model_name, limits.max_talks)


def _serve(args: argparse.Namespace, pipeline: Pipeline, listening: socket, **settings: Any) -> int:
    from specport.serve import app, guard, metrics, server, service

    limits = settings.pop("limits")
    name = args.served_model_name or pipeline.model_name
    served = service.Service(pipeline, limits, metrics.ServerMetrics(name, args.metrics_prefix))
    running = server.make_server(app.make_app(served, name, **settings), served, limits, not args.quiet)
    host, port = listening.getsockname()[:2]
    device, draft = pipeline.device_name, pipeline.draft_name
    terminal.say(server.serving(name, device, draft, pipeline.mode))
    for note in pipeline.notes:
        terminal.say(f"note: {note}")
    if settings["speech"] is not None:
        found = settings["speech"].transcriber
        terminal.say(f"{found.model_name} for speech on {found.device_name}, draft {found.draft_name}")
    if not settings["keys"] and settings["hosts"] is None:
        terminal.say(guard.NO_KEYS)
    server.listen(listening)
    terminal.say(server.told(host, port, page=settings["page"]))
    asyncio.run(running.serve([listening]))
    return 130 if running.signal == signal.SIGINT else 0
