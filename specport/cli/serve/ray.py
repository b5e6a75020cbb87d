"""`specport serve --ray`: the server on a Ray cluster."""

from __future__ import annotations

import argparse
import math
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import specport
from specport.cli import options, terminal
from specport.errors import InvalidInput
from specport.jobs import ray_cluster
from specport.outside.places import expanded

if TYPE_CHECKING:
    from specport.jobs.ray_cluster import Cluster
    from specport.serve.settings import Limits, Sampling

OPTIONS = ("ray_address", "replicas", "cores", "target_running", "update")
# Options of `specport.load` that name a folder, and those that may name the file of a profile.
FOLDERS, DEVICES = ("history", "datastore", "prefix_cache"), ("device", "draft_device")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scale-out (extra ray)")
    group.add_argument(
        "--ray", action="store_true",
        help="serve with replicas on a Ray cluster: this machine, or the one of --ray-address",
    )  # fmt: skip
    group.add_argument(
        "--ray-address", metavar="ADDRESS",
        help="host:port of a Ray cluster, or auto for the one that this machine is part of",
    )  # fmt: skip
    group.add_argument(
        "--replicas", metavar="MIN:MAX", type=_range,
        help="replicas; their number follows the load (default: 1:2)",
    )  # fmt: skip
    group.add_argument(
        "--cores", type=int, metavar="N",
        help="processor cores of each replica (default: so that all replicas fit)",
    )  # fmt: skip
    group.add_argument(
        "--target-running", type=float, metavar="N",
        help="requests of a replica that their number is chosen for (default: a quarter of --max-running)",
    )  # fmt: skip
    group.add_argument(
        "--update", action="store_true",
        help="replace what the cluster serves: new replicas start before old ones end, and these finish "
        "their requests",
    )  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Raise InvalidInput for options that do not go together, or are out of range."""
    for name in OPTIONS:
        if getattr(args, name) not in (None, False) and not args.ray:
            raise InvalidInput(f"--{name.replace('_', '-')} needs --ray")
    if args.cores is not None and args.cores < 1:
        raise InvalidInput(f"cores is {args.cores}; it must be 1 or more")
    if args.target_running is not None and not args.target_running > 0:
        raise InvalidInput(f"target_running is {args.target_running}; it must be more than 0")
    if args.ray and (args.speech_model, args.speech_draft) != (None, None):
        raise InvalidInput(
            "replicas on a Ray cluster have no speech model", "leave out --ray, or what begins with --speech"
        )
    if args.update and args.ray_address is None:
        raise InvalidInput("--update needs the address of the cluster", "--ray-address auto")


def run(
    args: argparse.Namespace,
    limits: Limits,
    sampling: Sampling,
    keys: Sequence[str],
    hosts: Collection[str] | None,
) -> int:
    """Serve until a signal comes; with --update until the replicas are replaced."""
    ray_cluster.check()
    least, most = args.replicas or (1, 2)
    own_cores = args.cores or max(1, (os.cpu_count() or 1) // most)
    port = args.port if args.ray_address and args.port else _free(args.host, args.port)
    model, chosen = _absolute(args.model), _load_options(args)
    from specport.serve import guard, server

    # A cluster of its own has room for an update: new replicas start beside the old ones.
    with ray_cluster.connected(args.ray_address or ray_cluster.THIS_MACHINE, 2 * most * own_cores) as found:
        from specport.serve.ray import deploy
        from specport.serve.ray.replica import Served

        if args.update and not deploy.is_running():
            raise InvalidInput("the cluster serves nothing that could be replaced", "leave --update out")
        if args.update and not keys and deploy.has_keys():
            raise InvalidInput("the server has keys, and the update has none", "--api-key-file FILE")
        if not args.update and deploy.is_running():
            raise InvalidInput("the cluster serves already", "--update replaces what it serves")
        cores = args.cores or (own_cores if found.own else _fitting(found, most))
        found.check(cores, "--cores")
        target = args.target_running or max(1.0, limits.max_running / 4)
        replicas = deploy.Replicas(least, most, cores, target)
        load = f"{specport.load.__module__}:{specport.load.__qualname__}"
        served = Served(
            model, {"threads": cores, **chosen}, args.served_model_name, limits, sampling,
            args.metrics_prefix, not args.no_page, replicas.reports, load,
        )  # fmt: skip
        with _signals() as stop:
            try:
                if not args.update:
                    deploy.start(args.host, port)
                about = deploy.deploy(served, replicas, terminal.say, keys=guard.digests(keys), hosts=hosts)
            except BaseException:
                if not args.update:
                    deploy.remove()
                raise
            terminal.say(server.serving(about["name"], about["device"], about["draft"], about["mode"]))
            where = "a Ray cluster of its own" if found.own else f"the Ray cluster {found.address}"
            terminal.say(f"{least} to {most} replicas of {cores} cores, on {where}")
            for note in about["notes"]:
                terminal.say(f"note: {note}")
            if args.update:
                terminal.say("the replicas are replaced")
                return 0
            if not keys and hosts is None:
                terminal.say(guard.NO_KEYS)
            terminal.say(server.told(args.host, port, page=served.page))
            return _until_signal(stop, limits.shutdown_seconds, own=found.own)


class _Stop:
    """What signals came. While `raises`, one ends what runs, as Ctrl-C does everywhere."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.raises = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        if self.raises:
            raise KeyboardInterrupt


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Handle signals; Ray has a handler of its own, which would end this process at once."""
    from specport.serve.server import ending_signals

    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in ending_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _until_signal(stop: _Stop, seconds: float, *, own: bool) -> int:
    """Wait for a signal, then let running requests finish; a second signal cancels them."""
    from specport.serve.ray import deploy

    stop.raises = False
    while not stop.numbers:
        time.sleep(0.1)
    draining = threading.Thread(target=deploy.drain, args=(seconds,), daemon=True)
    draining.start()
    while draining.is_alive() and len(stop.numbers) == 1:
        draining.join(0.1)
    if not own:  # one of its own ends as a whole
        deploy.remove(wait=len(stop.numbers) == 1)
    return 130 if stop.numbers[0] == signal.SIGINT else 0


def _free(host: str, port: int) -> int:
    """Return a port that is free now; 0 = any. Raises InvalidInput."""
    from specport.serve import server

    with closing(server.bind(host, port)) as bound:
        found: int = bound.getsockname()[1]
        return found


def _fitting(found: Cluster, most: int) -> int:
    """Return the cores of a replica so that all fit on the machines of a cluster."""
    on_one = math.ceil(most / max(1, len(found.nodes)))
    return max(1, min(found.nodes, default=1) // on_one)


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `specport.load`. Replicas run in another folder than this process."""
    load = options.given(args, options.LOAD_OPTIONS)
    for name in {*FOLDERS, *DEVICES} & {*load}:
        load[name] = _absolute(load[name], name in FOLDERS)
    if "draft" in load:
        load["draft"] = _with_whole_paths(load["draft"])
    return load


def _with_whole_paths(draft: str) -> str:
    """Return a draft expression whose models have whole paths. Raises InvalidInput."""
    from specport.drafters import spec

    found = spec.parse(draft)
    return str(replace(found, parts=tuple(replace(p, model=_absolute(p.model)) for p in found.parts)))


def _absolute(value: Any, folder: bool = False) -> Any:
    """Return the whole path of what names a file or folder; anything else as it is. Raises InvalidInput."""
    if isinstance(value, str):
        path = expanded(value)
        if folder or path.exists():
            return str(path.resolve())
    return value


def _range(text: str) -> tuple[int, int]:
    """Return the numbers of a text like 1:4, or 3 for 3:3."""
    least, _, most = text.partition(":")
    try:
        found = (int(least), int(most or least))
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of replicas like 1:4")
    return found
