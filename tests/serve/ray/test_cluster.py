"""Replicas and writers on a Ray cluster. All tests share one cluster, and those of the server one server."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from specport.quantize.text import shards
from specport.quantize.text.on_ray import RayWriter, Target
from support.processes.served import Process, events, wait_for
from support.toys import ray_toys
from support.toys.toy_pipeline import ToyTokenizer, greedy

from specport.errors import ModelError

pytest.importorskip("ray", reason="needs the extra ray")
KEY = {"authorization": "Bearer sesame"}
LONG = 300  # tokens: three seconds
SYSTEM = "abc" * 150


class Server:
    """The server on the cluster."""

    def __init__(self, process: Process, cluster: str, keys: Path) -> None:
        self.process, self.url, self.cluster, self.keys = process, process.url, cluster, keys

    def again(self, *arguments: str) -> list[str]:
        """The command for another process with the same cluster and keys."""
        options = ["--ray", "--ray-address", self.cluster, "--api-key-file", str(self.keys)]
        return [*ray_toys.PROGRAM, "serve", *options, *arguments]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json={"temperature": 0, **body}, headers=KEY, timeout=60)

    def complete(self, prompt: str = "abc", **body: Any) -> httpx.Response:
        return self.post("completions", prompt=prompt, **body)

    def metrics(self, name: str) -> dict[str, float]:
        """The values of a metric, by replica."""
        text = httpx.get(f"{self.url}/metrics", headers=KEY, timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith(f"specport:{name}{{")]
        return {line.split('engine="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def running(self, *expected: int) -> bool:
        return sorted(self.metrics("num_requests_running").values()) == [*expected]


class Asking(threading.Thread):
    """A request that runs beside the test."""

    def __init__(self, server: Server, prompt: str = "abc", **body: Any) -> None:
        super().__init__(daemon=True)
        self.server, self.prompt, self.body = server, prompt, body
        self.reply: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.reply = self.server.complete(self.prompt, **self.body)

    def text(self) -> str:
        self.join(60)
        assert self.reply is not None and self.reply.status_code == 200, self.reply
        if not self.body.get("stream"):
            return str(self.reply.json()["choices"][0]["text"])
        return "".join(e["choices"][0]["text"] for e in events(self.reply) if "choices" in e)


def replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:specport:Replica"):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def server(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("sesame\n", encoding="utf-8")
    options = ["--ray", "--ray-address", cluster, "--replicas", "2", "--cores", "1"]
    arguments = [
        *options,
        "--api-key-file",
        str(keys),
        "--max-running",
        "4",
        "--max-queue",
        "2",
        "--draft",
        "none",
    ]
    with Process(ray_toys.PROGRAM, arguments) as process:
        served = Server(process, cluster, keys)
        yield served
        began = Asking(served, max_tokens=LONG)
        wait_for(lambda: sum(served.metrics("num_requests_running").values()) == 1)
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{process.url}/health", timeout=60).status_code == 503)
        code, err = process.end()
        assert code == 0 and "Traceback" not in err
        assert began.text() == greedy("abc", LONG)  # a running request finishes
        assert not replicas()


def test_answers_are_those_of_a_server_of_its_own(server: Server) -> None:
    assert server.complete(max_tokens=20).json()["choices"][0]["text"] == greedy("abc", 20)
    found = events(server.complete(max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert "".join(e["choices"][0]["text"] for e in found[:-1]) == greedy("abc", 20)
    assert found[-1]["usage"]["completion_tokens"] == 20
    wrong = server.complete(max_tokens="many")
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "max_tokens"
    assert server.post("nothing").status_code == 404
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=60)
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/health", timeout=60).json() == {"status": "ready", "model": "toy"}
    assert len(server.metrics("generation_tokens_total")) == 2
    page = httpx.get(f"{server.url}/", timeout=60)  # without a key
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    style = httpx.get(f"{server.url}/page/style.css", timeout=60)
    assert style.status_code == 200 and "default-src 'none'" in style.headers["content-security-policy"]
    assert httpx.head(f"{server.url}/health", timeout=60).status_code == 200


def test_a_conversation_stays_with_the_replica_that_has_read_it(server: Server) -> None:
    for number in range(4):
        messages = [{"role": "system", "content": f"{number}" + SYSTEM}]
        homes = []
        for turn in ("abc", "cab", "bca"):
            messages.append({"role": "user", "content": turn})
            before = server.metrics("prompt_tokens_total")
            reply = server.post("chat/completions", messages=messages, max_tokens=5).json()
            messages.append(reply["choices"][0]["message"])
            after = server.metrics("prompt_tokens_total")
            homes += [engine for engine in after if after[engine] > before[engine]]
        assert len(homes) == 3 and len({*homes}) == 1


def test_a_client_that_goes_away_frees_its_sequence(server: Server) -> None:
    body = {"prompt": "abc", "max_tokens": 4000, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=KEY, timeout=60) as reply:
        lines = reply.iter_lines()  # kept: a generator that is dropped may close the connection
        assert reply.status_code == 200 and "text_completion" in next(lines)
        wait_for(lambda: server.running(0, 1))
    wait_for(lambda: server.running(0, 0))


def test_more_than_may_wait_are_refused(server: Server) -> None:
    asking = [Asking(server, max_tokens=100) for _ in range(14)]
    for each in asking:
        each.join(60)
    replies = [each.reply for each in asking if each.reply is not None]
    refused = [each for each in replies if each.status_code == 429]
    assert refused and len(replies) == 14 and all(int(each.headers["retry-after"]) > 0 for each in refused)
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert {each.json()["choices"][0]["text"] for each in replies if each not in refused} == {
        greedy("abc", 100)
    }


def test_requests_of_a_dead_replica_are_repeated_or_end_with_an_error(server: Server) -> None:
    asking = []
    for number, expected in enumerate([(0, 1), (1, 1), (1, 2), (2, 2)]):  # two that come together may collide
        asking.append(Asking(server, max_tokens=LONG, stream=number < 2))
        wait_for(lambda expected=expected: server.running(*expected))  # type: ignore[misc]
    streams, whole = asking[:2], asking[2:]
    replicas()[0].kill()
    assert [each.text() for each in whole] == [greedy("abc", LONG)] * 2
    texts = sorted((each.text() for each in streams), key=len)
    assert texts[1] == greedy("abc", LONG) and texts[1].startswith(texts[0]) and 0 < len(texts[0]) < LONG
    errors = [
        e["error"] for each in streams if each.reply is not None for e in events(each.reply) if "error" in e
    ]
    assert [error["code"] for error in errors] == ["replica_lost"]
    wait_for(lambda: len(server.metrics("num_requests_running")) == 2, 60)  # another one has started


def test_an_update_starts_new_replicas_before_old_ones_end(server: Server) -> None:
    old = server.metrics("num_requests_running")
    running = [Asking(server, max_tokens=3 * LONG, stream=stream) for stream in (False, True)]
    wait_for(lambda: sum(server.metrics("num_requests_running").values()) == 2)
    command = server.again("--replicas", "2", "--cores", "1", "--update")
    update = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    answered = 0
    while update.poll() is None:
        assert server.complete(max_tokens=5).json()["choices"][0]["text"] == greedy("abc", 5)
        answered += 1
    assert update.returncode == 0, update.stderr and update.stderr.read()
    assert answered > 2 and [each.text() for each in running] == [greedy("abc", 3 * LONG)] * 2
    assert not {*old} & {*server.metrics("num_requests_running")}


def test_an_update_does_not_open_a_server_that_has_keys(server: Server) -> None:
    command = server.again("--update")
    at = command.index("--api-key-file")
    done = subprocess.run([*command[:at], *command[at + 2 :]], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the server has keys, and the update has none" in done.stderr
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=60)
    assert refused.status_code == 401


def test_a_model_that_cannot_be_loaded_is_one_line_and_the_old_one_stays(server: Server) -> None:
    command = server.again("--replicas", "2", "--cores", "1", "--update", "--model", "missing")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "there is no model 'missing' (name another)" in done.stderr
    assert server.complete(max_tokens=5).status_code == 200


def write(cluster: str, folder: Path, cores: int, target: Target) -> list[bytes]:
    writer = RayWriter(cluster, target, cores)
    paths = shards.write_shards(
        lambda: None,
        ToyTokenizer(),
        folder,
        15_000,
        0,
        (),
        lambda what, share: None,
        2,
        elsewhere=writer,  # type: ignore[arg-type]
    )
    return [path.name.encode() + path.read_bytes() for path in paths]


def test_one_and_two_writers_give_the_same_shards_whoever_dies(cluster: str, tmp_path: Path) -> None:
    function = "support.toys.ray_toys:target"
    one = write(cluster, tmp_path / "one", 5, Target({}, function))
    dies = tmp_path / "dies"
    dies.touch()
    two = write(cluster, tmp_path / "two", 3, Target({"dies": str(dies)}, function))
    assert one == two and len(one) > 2 and not dies.exists()
    (tmp_path / "one" / "passage-00000.npz").unlink()
    assert write(cluster, tmp_path / "one", 3, Target({}, function)) == one
    with pytest.raises(ModelError, match="there is no such model"):
        write(cluster, tmp_path / "three", 3, Target({}, "support.toys.ray_toys:broken"))
