"""A target and its draft for vLLM: their weights in one folder, and the value of `--speculative-config`.

The keys are those of `SpeculativeConfig` in vLLM's `vllm/config/speculative.py`. vLLM reads float weights
from Hugging Face folders: a draft's IR and a target's GGUF file become one, of float16.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.quantize.convert.to_huggingface import new_folder, to_hugging_face
from specport.quantize.train.layerskip import about

from specport.errors import InvalidInput, ModelError
from specport.models import bundle, json_file, source
from specport.models.atomic import write_atomically, write_json
from specport.models.bundle import BUNDLE_FILE, Bundle
from specport.models.fetch import download
from specport.models.json_file import read_json
from specport.models.kinds import mtp
from specport.models.manifest import MANIFEST_FILE
from specport.outside.places import expanded
from specport.progress import Progress, part, silent
from specport.runtime.conversion import resolve
from specport.text.tokenizer import load_tokenizer

CONFIG_FILE, DRAFT, TARGET = "vllm.json", "draft", "target"
WITHOUT_WEIGHTS = ("ngram", "suffix", "mtp")  # names of both systems; the target needs nothing beside it
_PRECISION = "fp16"
# Drafts that fewer rounds accept cost more than they bring, wherever a step of the draft costs something.
_LEAST_REACH = 1 / 3
_UNMEASURED = 3
_COPIED = (".json", ".jinja", ".model", ".txt", ".safetensors")  # never code
# Kinds of models with whose own weights vLLM drafts, of those that `models.kinds.mtp` finds.
_MTP_KINDS = (
    "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "mimo", "qwen3_next", "qwen3_5",
    "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
)  # fmt: skip
_NO_DRAFT = "name a draft that specport quantize built, or use --draft ngram or --draft suffix"


@dataclass(frozen=True)
class Exported:
    """Hold what was written, and how vLLM is told of it.

    model: what vLLM is to serve: a path, relative to `folder` where it is in there, or a hub id.
    speculative: value of --speculative-config; its paths are relative to `folder`.
    """

    folder: Path
    model: str
    speculative: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command for a shell in `folder`."""
        name, revision = self.model, ""
        if not (Path(name).is_absolute() or name.startswith("./")):  # a hub id; folders may have an @, too
            name, _, revision = name.partition("@")
        words = ["vllm", "serve", name, *(["--revision", revision] if revision else [])]
        return shlex.join([*words, "--speculative-config", json.dumps(self.speculative)])


def to_vllm(
    spec: str,
    out: Path,
    *,
    target: str | None = None,
    draft: str | None = None,
    tokens: int | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write what vLLM needs to the new folder `out`.

    spec:   a draft bundle, a model that drafts for `target`, or a target that needs no second model.
    target: as for `specport.load`; None = the default model, where the bundle is for that.
    draft:  one of `WITHOUT_WEIGHTS`, for the target `spec`; None = mtp, where the target has such weights.
    tokens: drafted in a round; None = by what was measured of the draft.

    Raises InvalidInput for a request that makes no sense, and ModelError where vLLM has no equal of the
    draft, or target and draft do not belong together; then nothing is left of `out`.
    """
    if out.exists():
        raise InvalidInput(f"{out} is there already", "choose another folder")
    if tokens is not None and not 1 <= tokens <= 64:
        raise InvalidInput(f"--tokens is {tokens}", "choose a number from 1 to 64")
    if draft is not None and draft not in WITHOUT_WEIGHTS:
        raise InvalidInput(f"unknown draft {draft!r}", f"choose one of {', '.join(WITHOUT_WEIGHTS)}")
    folder = expanded(spec)
    is_bundle = (folder / BUNDLE_FILE).is_file()
    if draft is not None and (is_bundle or target is not None):
        raise InvalidInput(f"{spec} and --draft {draft} are two drafts", "leave one of them out")
    with new_folder(out) as work:
        if is_bundle or target is not None:
            made = _pair(spec, work, target, tokens, progress)
        else:
            made = _alone(spec, work, draft, tokens, progress)
        write_json(work / CONFIG_FILE, dict(made.speculative), indent=2)
        write_atomically(work / "README.md", _readme(made))
    progress("done", 1.0)
    return Exported(out, made.model, made.speculative, made.notes)


def _alone(spec: str, work: Path, draft: str | None, tokens: int | None, progress: Progress) -> Exported:
    """Return a target that drafts without a second folder of weights."""
    original = source.original(spec, part(progress, 0.0, 0.3))
    module = mtp.find(original) if draft in (None, "mtp") and original.is_dir() else None
    if draft is None and module is None:
        if (original / about.NAME).is_file():
            raise ModelError(f"vLLM has no early exit, with which {spec} drafts", _NO_DRAFT)
        raise ModelError(f"{spec} has no draft", _NO_DRAFT)
    if draft == "mtp" and module is None:
        raise ModelError(f"{spec} has no weights for multi-token prediction", _NO_DRAFT)
    if module is not None:
        kind = str(module.config.get("model_type"))
        whole = str(read_json(original / "config.json").get("model_type"))
        if not {kind, whole} & {*_MTP_KINDS}:
            raise ModelError(f"vLLM has no multi-token prediction for models of the kind {whole}", _NO_DRAFT)
    model, _ = _target(spec, original, work, part(progress, 0.3, 1.0))
    if module is not None:
        return Exported(work, model, {"method": "mtp", "num_speculative_tokens": tokens or 1})
    if draft == "suffix":
        notes = ("suffix decoding in vLLM needs one more package: pip install arctic-inference",)
        return Exported(work, model, {"method": "suffix", "num_speculative_tokens": tokens or 32}, notes)
    window = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    return Exported(work, model, {"method": "ngram", "num_speculative_tokens": tokens or 4, **window})


def _pair(spec: str, work: Path, target: str | None, tokens: int | None, progress: Progress) -> Exported:
    """Return a target and a draft that is a model of its own."""
    folder = expanded(spec)
    made = None
    if (folder / BUNDLE_FILE).is_file():
        made = bundle.read(folder, thorough=True)
        if made.mtp is not None:
            raise ModelError(
                f"{spec} is an MTP head of its own; vLLM reads one inside models of DeepSeek's, Qwen's and "
                "MiMo's kinds only",
                _NO_DRAFT,
            )
        if made.recurrent is not None:
            raise ModelError(
                f"vLLM has no equal of {spec}, a recurrent head without attention: its heads on hidden "
                "states are EAGLE, EAGLE-3, Medusa, MLP speculators and MTP",
                _NO_DRAFT,
            )
    name = _target_name(target, made)
    model, whole = _target(name, source.original(name), work, part(progress, 0.0, 0.4))
    parts = folder if made else resolve(spec, precision=_PRECISION, weights="huggingface").folder
    other = load_tokenizer(parts).mismatch(load_tokenizer(whole))
    if made:
        made.check_target(whole, name or "the default model", mismatch=other)
    elif other:
        raise ModelError(f"{spec} has another tokenizer than its target: {other}", "choose another draft")
    speculative = _speculative(made, _vocabulary(parts), _vocabulary(whole), spec, tokens)
    if any(parts.glob("*.safetensors")):
        _copy(parts, work / DRAFT)
    else:
        to_hugging_face(parts, work / DRAFT, part(progress, 0.4, 1.0))
    return Exported(work, model, speculative)


def _target_name(target: str | None, made: Bundle | None) -> str | None:
    if target is None and made is not None and made.target != download.NAME:
        raise InvalidInput(f"the draft is for {made.target}", "name that model with --target MODEL")
    return target


def _speculative(made: Bundle | None, own: int, target: int, spec: str, tokens: int | None) -> dict[str, Any]:
    """Return the configuration of a draft model. own, target: sizes of the vocabularies."""
    found: dict[str, Any] = {"method": "draft_model", "model": f"./{DRAFT}"}
    if made and made.parallel:
        if own != target:
            raise ModelError(
                f"vLLM wants vocabularies of one size, and {spec} has {own} rows for the target's {target}: "
                "a row was appended for MASK",
                "train a parallel draft from a model whose vocabulary has a spare row, or use --draft ngram",
            )
        if tokens is not None and tokens > made.parallel.depth:
            raise InvalidInput(f"{spec} drafts {made.parallel.depth} tokens a pass", "choose fewer --tokens")
        return found | {
            "num_speculative_tokens": tokens or made.parallel.depth,
            "parallel_drafting": True,  # MASK is pard_token in the draft's config.json
        }
    reach = made.reach if made else ()
    likely = sum(share >= _LEAST_REACH for share in reach) if reach else _UNMEASURED
    found["num_speculative_tokens"] = tokens or max(1, likely)
    if own != target:  # padded differently, as between sizes of Qwen2.5
        found["use_heterogeneous_vocab"] = True
    return found


def _target(spec: str | None, original: Path, work: Path, progress: Progress) -> tuple[str, Path]:
    """Return what vLLM serves, and the folder that has it: the user's own, or a new one of float weights."""
    if original.is_dir():
        local = spec is not None and expanded(spec).is_dir()
        return (str(original.resolve()) if local else str(spec)), original
    files = resolve(spec, precision=_PRECISION, weights="huggingface", progress=progress)
    _copy(files.folder, work / TARGET)
    return f"./{TARGET}", work / TARGET


def _copy(folder: Path, made: Path) -> None:
    made.mkdir()
    for path in folder.iterdir():
        if path.suffix in _COPIED and path.is_file() and path.name not in (BUNDLE_FILE, MANIFEST_FILE):
            shutil.copyfile(path, made / path.name)


def _vocabulary(folder: Path) -> int:
    return json_file.whole(json_file.text_config(folder), "vocab_size") or 0


def _readme(made: Exported) -> str:
    lines = [
        "# For vLLM", "",
        "Made by `specport quantize export --to vllm`. Run this in this folder:", "",
        "```sh", made.command, "```", "",
        f"`{CONFIG_FILE}` has the same `--speculative-config`. The folder can be moved"
        + ("." if made.model.startswith("./") else "; the target is where it was."),
        *(f"\n{note}." for note in made.notes),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
