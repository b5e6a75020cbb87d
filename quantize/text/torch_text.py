"""Text that a target writes on a GPU: hundreds of answers at once, and then what it thought of each token.

`teacher.py` writes with any backend's own steps, thirty answers at a time. On a GPU that leaves most of the
device idle, so here transformers generates, and the likeliest tokens come from a second reading of the whole
text. Both give the same kind of `Dialogue`.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.text.teacher import ANSWER_TOKENS, TOP_K, Dialogue, save_shard
from specport.quantize.train import batches

from specport.progress import Progress, silent
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE, SHARD = 256, 128  # answers that are written at once at most; dialogues of a file
LONGEST = 1536  # tokens of a prompt; longer ones are left out
_CACHED = 131_072  # tokens of the answers that are written at once, prompts and padding included
_READ, _ROWS = 32_768, 4096  # tokens of a forward pass, and rows of its logits that exist at one time


def write(
    folder: Path,
    turns: Sequence[str],
    out: Path,
    *,
    processes: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Path]:
    """Answers to each of the user's turns, greedy, as shards in the folder `out`, in mixed order.

    folder: the target, a Hugging Face folder with its tokenizer. processes: that write beside each other;
    one leaves a GPU waiting for Python. Raises ModelError where a shard cannot be written.
    """
    tokenizer = load_tokenizer(folder)
    asked = sorted((encode(tokenizer, turn) for turn in dict.fromkeys(turns)), key=len)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    longest = min(LONGEST, config.get("max_position_embeddings", LONGEST) - ANSWER_TOKENS)
    asked = [ids for ids in asked if len(ids) <= longest]
    # The longest first: the end is then even.
    jobs = [(group, tokenizer.eos_ids) for group in reversed(_together(asked))]
    found: list[Dialogue] = []
    # CUDA does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(processes, _start, (folder,)) as pool:
        for number, dialogues in enumerate(pool.imap_unordered(_answers, jobs)):
            found += dialogues
            progress("the target writes", (1 + number) / len(jobs))
        # In an order that does not depend on which process was faster.
        found.sort(key=lambda dialogue: dialogue.tokens.tobytes())
        mixed = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
        size = max(1, min(SHARD, -(-len(mixed) // 2)))  # two files at least: one is for measuring
        groups = [mixed[i : i + size] for i in range(0, len(mixed), size)]
        paths = [out / f"text-{number:05}.npz" for number in range(len(groups))]
        pool.starmap(save_shard, zip(paths, groups, strict=True))
    return paths


def _together(asked: Sequence[list[int]]) -> list[list[list[int]]]:
    """Prompts, shortest first, in groups that are answered at once."""
    groups: list[list[list[int]]] = []
    for ids in asked:
        most = min(AT_ONCE, _CACHED // (len(ids) + ANSWER_TOKENS))
        if not groups or len(groups[-1]) >= most:
            groups.append([])
        groups[-1].append(ids)
    return groups


_model: Any = None  # of a writing process


def _start(folder: Path) -> None:
    global _model  # noqa: PLW0603  # a pool's processes have nothing else to keep it in
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    _model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    _model.to("cuda" if cuda else "cpu").eval()


def _answers(job: tuple[list[list[int]], frozenset[int]]) -> list[Dialogue]:
    asked, ends = job
    return answers(_model, asked, ends)


def answers(
    model: Any, asked: Sequence[Sequence[int]], ends: frozenset[int], num_tokens: int = ANSWER_TOKENS
) -> list[Dialogue]:
    """The model's greedy answers, at most so many tokens each, the one that ends it included.

    asked: token ids of the prompts, which are written to at once; ends: ids that end a text.
    """
    longest = max(len(ids) for ids in asked)
    prompts = np.full((len(asked), longest), min(ends), dtype=np.int64)
    mask = np.zeros_like(prompts)
    for row, ids in enumerate(asked):
        prompts[row, longest - len(ids) :], mask[row, longest - len(ids) :] = ids, 1
    with torch.no_grad():
        written = model.generate(
            input_ids=torch.from_numpy(prompts).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            max_new_tokens=num_tokens, do_sample=False, repetition_penalty=1.0,
            eos_token_id=sorted(ends), pad_token_id=min(ends),
        )[:, longest:].cpu().numpy()  # fmt: skip
    texts = []
    for ids, row in zip(asked, written, strict=True):
        over = np.flatnonzero(np.isin(row, sorted(ends)))
        texts.append(([*ids, *row[: over[0] + 1 if over.size else None].tolist()], len(ids)))
    with torch.no_grad():
        return [*_with_tops(model, texts)]


def _with_tops(model: Any, texts: Sequence[tuple[list[int], int]]) -> Iterator[Dialogue]:
    """texts: tokens, and where the answer begins."""
    group: list[tuple[list[int], int]] = []
    for text in [*sorted(texts, key=lambda text: len(text[0])), None]:
        if group and (text is None or len(text[0]) * (len(group) + 1) > _READ):
            yield from _read(model, group)
            group = []
        if text is not None:
            group.append(text)


def _read(model: Any, texts: Sequence[tuple[list[int], int]]) -> Iterator[Dialogue]:
    ids, mask = (torch.from_numpy(a).to(model.device) for a in batches.padded([t for t, _ in texts]))
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    answers = torch.cat([hidden[row, start - 1 : len(t) - 1] for row, (t, start) in enumerate(texts)])
    top_probs, top_ids = _tops(model.get_output_embeddings(), answers)
    first = 0
    for tokens, start in texts:
        last = first + len(tokens) - start
        yield Dialogue(np.asarray(tokens, np.int32), start, top_ids[first:last], top_probs[first:last])
        first = last


def _tops(head: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Any, Any]:
    """Probabilities [n, TOP_K] and ids of the likeliest tokens, likeliest first."""
    found = [torch.softmax(head(part).float(), dim=-1).topk(TOP_K, dim=-1) for part in hidden.split(_ROWS)]
    probs = torch.cat([part.values for part in found]).cpu().numpy()
    return probs, torch.cat([part.indices for part in found]).to(torch.int32).cpu().numpy()
