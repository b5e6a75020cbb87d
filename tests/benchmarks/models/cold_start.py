"""Measure the time from process start to the first and to the 32nd token, in turns with other systems.

    python tests/benchmarks/models/cold_start.py --model MODEL.gguf --draft DRAFT.gguf --precision int4 \
        --rounds 3 [--json OUT.json]

Each run is a process of its own, with the models converted before. specport runs as `specport run`; its exit
is within milliseconds of its last token. openvino-genai runs in `python -c` on the same IR, with the text
converted by its own tokenizer, and fast numerics; llama.cpp on the GGUF file, where llama-cpp-python is
installed. The first run of each is not counted: it fills the file cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from specport.quantize.convert.to_genai import genai

from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import cpu_flags, usable_cores

PROMPT = "Write a function that returns the longest common prefix of a list of strings."
TOKENS = 32
# The first character written is the first token.
GENAI = """
import json, sys
import openvino_genai as g
a = json.loads(sys.argv[1])
options = {"draft_model": g.draft_model(a["draft"], "CPU")} if a["draft"] else {}
pipe = g.LLMPipeline(a["model"], "CPU", **options)
config = g.GenerationConfig(do_sample=False, max_new_tokens=a["tokens"])
if a["draft"]:
    config.num_assistant_tokens = 5
write = lambda text: print(text, end="", flush=True)
pipe.generate(a["prompt"], config, write)
"""
LLAMA = """
import json, sys
import llama_cpp.llama_cpp
from llama_cpp import Llama
a = json.loads(sys.argv[1])
if a["plain_weights"]:  # with AMX its repacked weights crash (0.3.36)
    module = llama_cpp.llama_cpp
    default = module.llama_model_default_params
    def settings():
        found = default()
        found.use_extra_bufts = False
        return found
    module.llama_model_default_params = settings
llama = Llama(a["model"], n_ctx=2048, n_threads=a["threads"], n_threads_batch=a["threads"], verbose=False)
messages = [{"role": "user", "content": a["prompt"]}]
for part in llama.create_chat_completion(messages, max_tokens=a["tokens"], temperature=0, stream=True):
    print(part["choices"][0]["delta"].get("content", ""), end="", flush=True)
"""


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Return the seconds from the start of a process to its first output and to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(1)
    at_first = time.perf_counter() - start
    process.communicate()
    at_end = time.perf_counter() - start
    if process.returncode or not first:
        raise SystemExit(f"{command[:3]} failed with exit code {process.returncode}")
    return at_first, at_end


def commands(args: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """Return the process of each method by name."""
    specport = [sys.executable, "-m", "specport", "run", "--quiet", "--max-new-tokens", str(TOKENS)]
    specport += ["--device", args.device, *(["--model", args.model] if args.model else [])]
    specport += ["--precision", args.precision]
    with_draft = ["--draft", args.draft, "--draft-precision", args.precision] if args.draft else []
    found = {
        f"specport {draft}": [*specport, "--draft", draft, PROMPT] for draft in ("none", "ngram", "auto")
    }
    folders = {"model": resolve(args.model, precision=args.precision).folder}
    if args.draft:
        found["specport draft"] = [*specport, *with_draft, PROMPT]
        folders["draft"] = resolve(args.draft, precision=args.precision).folder
    exported = {name: str(genai(folder, work / name, link=True)) for name, folder in folders.items()}
    about = {"prompt": PROMPT, "tokens": TOKENS, "draft": "", "model": exported["model"]}
    python = [sys.executable, "-c", GENAI]
    found["genai plain"] = [*python, json.dumps(about)]
    if args.draft:
        found["genai draft"] = [*python, json.dumps({**about, "draft": exported["draft"]})]
    if args.model and args.model.endswith(".gguf") and find_spec("llama_cpp"):
        llama = {"prompt": PROMPT, "tokens": TOKENS, "model": args.model, "threads": usable_cores()}
        llama["plain_weights"] = "amx_int8" in cpu_flags()
        found["llama.cpp plain"] = [sys.executable, "-c", LLAMA, json.dumps(llama)]
    return found


def table(measured: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    lines = [f"{'':16}{'first token, s':>24}{f'{TOKENS} tokens and exit, s':>28}"]
    for name, runs in measured.items():
        cells = []
        for column in zip(*runs, strict=True):
            cells.append(f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})")
        lines.append(f"{name:16}{cells[0]:>24}{cells[1]:>28}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--draft")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--device", default="xeon")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        methods = commands(args, Path(work))
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for turn in range(args.rounds + 1):
            for name, command in methods.items():
                seconds = timed(command)
                if turn:
                    measured[name].append(seconds)
                print(f"{name}: {seconds[0]:.2f} {seconds[1]:.2f}", file=sys.stderr, flush=True)
    print(table(measured))
    if args.json:
        args.json.write_text(json.dumps({"prompt": PROMPT, "tokens": TOKENS, "seconds": measured}, indent=1))


if __name__ == "__main__":
    main()
