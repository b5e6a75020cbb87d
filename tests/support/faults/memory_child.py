"""Read hostile files in a process of its own, and say how much memory and time each took.

`python -m support.faults.memory_child FOLDER [--all]` writes a line of JSON for each: name, mb,
seconds, said. Linux only: the kernel can be told to measure the peak anew.
"""

from __future__ import annotations

import importlib
import io
import json
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import specport
from specport.errors import SpecportError
from specport.outside import Format, plain_values

_MB = 1 << 20
SLOW = {  # allowed files at their bounds, which take a second or more to read
    "foreign json, lists", "foreign json, numbers", "foreign json, long names", "tokenizer, vocabulary",
    "rttm, lines", "json, lists", "json, numbers", "json, long names",
}  # fmt: skip
Read = Callable[[], object]


def json_formats() -> Iterator[tuple[str, Format[object]]]:
    """Yield each kind of file that the package declares, by the name of its variable."""
    root = Path(specport.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = ".".join(("specport", *path.relative_to(root).with_suffix("").parts))
        if "Format(" in path.read_text(encoding="utf-8") and not name.endswith("outside.format"):
            module = importlib.import_module(name)
            found = {key: value for key, value in vars(module).items() if isinstance(value, Format)}
            yield from ((f"{name.removeprefix('specport.')}.{key}", value) for key, value in found.items())


def under_the_bound(most: int) -> dict[str, bytes]:
    """Return JSON texts of about `most` values: what Python makes of them is as large as it gets."""
    return {
        "lists": b"[" + b"[]," * (most // 2 - 8) + b"[]]",
        "objects": b"[" + b'{"a":9999},' * (most // 2 - 8) + b"{}]",
        "numbers": b"[" + b"12345678901," * (most - 8) + b"1]",
        "long names": b"{" + b",".join(b'"%060d":""' % i for i in range(most // 4)) + b"}",
        "a text": b'"' + "ü".encode() * (31 * _MB) + b'"',
    }


def cases(folder: Path) -> Iterator[tuple[str, Read]]:
    """Yield a name and what reads a hostile file."""
    dense = folder / "dense.json"
    dense.write_bytes(b"[" + b"[]," * (20 * _MB) + b"[]]")
    for name, kind in json_formats():
        sparse = folder / "sparse"
        with open(sparse, "wb") as file:
            file.truncate(kind.most_bytes + 1)
        yield f"{name}, too large", lambda kind=kind, sparse=sparse: kind.read(sparse)
        yield f"{name}, dense", lambda kind=kind: kind.read(dense)
    dense.unlink()
    for name, parse, most in (
        ("json", plain_values.from_json, plain_values._MOST_VALUES),
        ("foreign json", plain_values.from_foreign_json, plain_values._MOST_FOREIGN),
    ):
        for kind, text in under_the_bound(most).items():
            yield f"{name}, {kind}", lambda parse=parse, text=text: parse(text)
    for kind, text in {
        "keys": b"a" + b".a" * 100_000 + b" = 1",
        "lists": b"a = [" + b"[]," * 80_000 + b"]",
        "deep": b"a = " + b"[" * 250_000,
        "tables": b"".join(b"[[a]]\n" for _ in range(37_000)),
    }.items():
        yield f"toml, {kind}", lambda text=text: plain_values.from_toml(text)
    yield from _models(folder)
    yield from _sounds(folder)
    yield from _archives(folder)


def _models(folder: Path) -> Iterator[tuple[str, Read]]:
    from specport.models import tensors
    from specport.models.gguf.file import read_header
    from specport.text.tokenizer import load_tokenizer

    def key(name: bytes) -> bytes:
        return struct.pack("<Q", len(name)) + name

    def gguf(tensor_count: int, keys: int, body: bytes) -> Read:
        path = folder / "m.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensor_count, keys) + body)
        return lambda: read_header(path)

    array = key(b"a") + struct.pack("<IIQ", 9, 8, 7 * _MB)
    many = b"".join(key(b"%d" % i) + struct.pack("<IB", 0, 1) for i in range(200_000))
    yield "gguf, tensors", gguf(1 << 60, 0, b"")
    yield "gguf, keys", gguf(0, 1 << 60, b"")
    yield "gguf, a long text", gguf(0, 1, struct.pack("<Q", 1 << 60))
    yield "gguf, empty strings", gguf(0, 1, array + bytes(56 * _MB))
    yield "gguf, many keys", gguf(0, 200_000, many)
    yield "gguf, a huge tensor", gguf(1, 0, key(b"t") + struct.pack("<I4QIQ", 4, *[1 << 62] * 4, 0, 0))

    def safetensors(length: int, header: bytes) -> Read:
        path = folder / "m.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + header)
        return lambda: tensors.header(path)

    entry = b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    whole = b"{" + b",".join(entry % i for i in range(480_000)) + b"}"
    yield "safetensors, length", safetensors(1 << 60, b"{}")
    yield "safetensors, entries", safetensors(len(whole), whole + bytes(4))
    wide = b'{"a":{"dtype":"F32","shape":[' + b"1," * 4_000_000 + b'1],"data_offsets":[0,4]}}'
    yield "safetensors, axes", safetensors(len(wide), wide + bytes(4))
    for kind, text in {
        "vocabulary": b'{"model":{"type":"BPE","vocab":{%s},"merges":[]}}'
        % b",".join(b'"%d":%d' % (i, i) for i in range(1_000_000)),
        "merges": b'{"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[%s]}}'
        % b",".join([b'["a","b"]'] * 850_000),
        "an id": b'{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}',
        "added": b'{"added_tokens":[{"id":4294967295,"content":"x","special":true,"single_word":false,'
        b'"lstrip":false,"rstrip":false,"normalized":false}],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}',
        "deep": b'{"model":' * 100_000,
    }.items():
        (folder / "tokenizer.json").write_bytes(text)
        yield f"tokenizer, {kind}", lambda: load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()


def _sounds(folder: Path) -> Iterator[tuple[str, Read]]:
    from specport.speech.audio.buffer import AudioBuffer
    from specport.speech.audio.source import Source
    from specport.speech.speakers.score import read_rttm

    rttm = folder / "a.rttm"
    rttm.write_bytes(b"SPEAKER a 1 0 1 a a b\n" * (16 * _MB // 22 - 1))
    yield "rttm, lines", lambda: read_rttm(rttm)
    rttm_many = folder / "b.rttm"
    rttm_many.write_bytes(b"".join(b"SPEAKER a 1 0 1 a a %d\n" % i for i in range(500_000)))
    yield "rttm, speakers", lambda: read_rttm(rttm_many)

    def wav(name: str, channels: int, rate: int, claimed: int, data: bytes) -> Read:
        path = folder / f"{name}.wav"
        rates = ((rate * channels * 2) & 0xFFFFFFFF, channels * 2, 16)
        form = struct.pack("<IHHIIHH", 16, 1, channels, rate, *rates)
        path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data" + struct.pack("<I", claimed) + data)
        return lambda: AudioBuffer(Source(path).blocks()).finish()

    yield "audio, a length", wav("length", 1, 16000, 0xFFFFFFF0, bytes(64_000))
    yield "audio, channels", wav("channels", 32767, 16000, 1 << 20, bytes(1 << 20))
    yield "audio, a rate", wav("rate", 1, 0xFFFFFFF0, 64_000, bytes(64_000))
    yield "audio, slow", wav("slow", 1, 1, 20_000, bytes(20_000))


def _archives(folder: Path) -> Iterator[tuple[str, Read]]:
    from specport.traffic.dialogues import read_shard

    def npz(name: str, arrays: dict[str, bytes]) -> Read:
        path = folder / f"{name}.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in arrays.items():
                archive.writestr(f"{each}.npy", data)
        return lambda: read_shard(path)

    def npy(shape: str, data: bytes = b"") -> bytes:
        head = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data

    yield "shard, a bomb", npz("bomb", {"lengths": npy(f"({64 * _MB},)", bytes(256 * _MB))})
    yield "shard, a shape", npz("shape", {"lengths": npy("(1152921504606846976,)")})
    yield "shard, many", npz("many", {f"a{i}": npy("(1,)", bytes(4)) for i in range(20_000)})


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise OSError("the kernel tells no peak")


def _now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Read them all."""
    folder = Path(sys.argv[1])
    np.zeros(1)  # numpy is there
    for name, read in cases(folder):
        if name in SLOW and "--all" not in sys.argv:
            continue
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _now(), time.process_time()
        said = "read"
        try:
            read()
        except (SpecportError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"[:200]
        mb, seconds = (_peak() - before) / _MB, time.process_time() - began
        line = {"name": name, "mb": mb, "seconds": seconds, "said": said}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    main()
