"""Shards written by tasks on a Ray cluster, each shard by one task.

A shard does not depend on what else is written, by whom, or in which order. Where a process or a machine is
lost, Ray runs its task again. All machines must have specport, and reach the target under the same name.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.turns import Turn
from specport.quantize.text.writer import TextWriter

from specport.core.ports import Model
from specport.errors import InvalidInput, ModelError, SpecportError
from specport.jobs import ray_cluster
from specport.outside.places import expanded
from specport.progress import Progress, silent
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.tokenizer import Tokenizer, load_tokenizer

RETRIES = 3  # times that a shard is written again because its process or machine was lost
AHEAD = 1  # shards that wait for each worker, so that none waits for this process
_PACKAGES = ("openvino", "torch", "transformers")
Written = list[Dialogue | None]


@dataclass(frozen=True)
class Target:
    """Say how a worker loads the target. Plain data.

    function: "module:function", called with `arguments` by name; returns the target and its tokenizer.
    """

    arguments: Mapping[str, Any]
    function: str = "specport.quantize.text.on_ray:load"


@dataclass
class RayWriter:
    """Write shards on a cluster.

    address: see `ray_cluster.connected`. cores: of each worker; None = all of a machine's.
    """

    address: str
    target: Target
    cores: int | None = None
    _makers: set[str] = field(default_factory=set)

    def write(self, asked: Iterator[Sequence[Turn] | None]) -> Generator[tuple[int, Written], None, None]:
        """Yield the number of a shard, counted in the order of `asked`, and its dialogues, as they come.

        asked: read ahead. None in place of a shard means that no more are wanted for now.
        Raises ModelError where a shard cannot be written, and InvalidInput where machines differ.
        """
        own_cores = self.cores or os.cpu_count() or 1
        with ray_cluster.connected(self.address, max(own_cores, os.cpu_count() or 1)) as found:
            import ray

            cores = self.cores or min(found.nodes, default=1)
            found.check(cores, "--threads")
            most = (1 + AHEAD) * max(1, sum(each // cores for each in found.nodes))
            task = ray.remote(num_cpus=cores, max_retries=RETRIES, scheduling_strategy="SPREAD")(write_shard)
            running: dict[Any, int] = {}
            count = 0
            try:
                while True:
                    while len(running) < most and (turns := next(asked, None)) is not None:
                        running[task.remote(self.target.function, json.dumps(self.target.arguments),
                                            cores, [*turns])] = count  # fmt: skip
                        count += 1
                    if not running:
                        return
                    done, _ = ray.wait([*running])
                    yield running.pop(done[0]), self._result(done[0])
            finally:
                for each in running:
                    ray.cancel(each, force=True)

    def _result(self, reference: Any) -> Written:
        import ray

        try:
            dialogues, maker = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpecportError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"a shard of text cannot be written: {reason}", "ray status") from error
        self._makers.add(maker)
        if len(self._makers) > 1:
            raise InvalidInput(
                "the machines of the cluster differ, so a text would depend on which one writes it: "
                + "; ".join(sorted(self._makers)),
                "use machines with one processor and the same packages",
            )
        written: Written = dialogues
        return written


def writer_on(
    cluster: str | None, target: str | None, fingerprint: str, threads: int | None, **options: Any
) -> RayWriter | None:
    """Return the writer that a user asks for; None without a cluster.

    target, fingerprint: of the target, by name and weights. threads: of each worker. options: of `load`.
    """
    if cluster is None:
        return None
    if target is not None and (path := expanded(target)).exists():
        target = str(path.resolve())
    return RayWriter(cluster, Target({"name": target, "fingerprint": fingerprint, **options}), threads)


def write_shard(function: str, arguments: str, threads: int, turns: list[Turn]) -> tuple[Written, str]:
    """Return the dialogues of a shard, None for turns that are too long, and who wrote them.

    Runs on the cluster. The target stays loaded for the process's next shard.
    """
    target, tokenizer = _loaded(function, arguments, threads)
    facts = ", ".join(f"{name} {version}" for name, version in installed(_PACKAGES).items())
    return [*TextWriter(target, tokenizer).write(turns)], f"{cpu_name()} with {facts}"


@lru_cache(maxsize=1)
def _loaded(function: str, arguments: str, threads: int) -> tuple[Model, Tokenizer]:
    module, _, name = function.partition(":")
    found: tuple[Model, Tokenizer] = getattr(importlib.import_module(module), name)(
        **json.loads(arguments), threads=threads
    )
    return found


def load(
    name: str | None,
    fingerprint: str,
    threads: int,
    device: str,
    precision: str | None,
    trust_remote_code: bool,
    progress: Progress = silent,
) -> tuple[Model, Tokenizer]:
    """Return a target with its fast kernels, and its tokenizer.

    fingerprint: of its weights. Raises ModelError where they are others on this machine.
    """
    loader = Loader.on(device, threads, None, trust_remote_code, progress)
    files = loader.files(name, precision or loader.profile.precision)
    if files.fingerprint != fingerprint:
        raise ModelError(
            f"{files.name} has other weights on another machine of the cluster",
            "copy the model to all machines",
        )
    return loader.target_with(files, exact=False).model, load_tokenizer(files.folder)
