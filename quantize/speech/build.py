"""`specport quantize speech`: a draft for a Whisper, cut from its decoder and distilled on recordings.

Slow stages keep their results in `OUT.partial`: what the target heard, and the training. The finished folder
is moved to OUT.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from specport.quantize.convert.whisper import export, source
from specport.quantize.provenance import provenance
from specport.quantize.speech import about, recordings
from specport.quantize.speech.about import About
from specport.quantize.speech.cut import cut, kept_layers, with_mask
from specport.quantize.speech.hearing import hear
from specport.quantize.speech.material import Material
from specport.quantize.speech.measure import Pair, measure
from specport.quantize.speech.recipe import Recipe

from specport.calibration.heads import kept_ids
from specport.errors import ModelError
from specport.jobs import workdir, worker
from specport.models.atomic import write_json
from specport.models.identity import fingerprint
from specport.models.kinds.whisper import CTRANSLATE2_FILE, FACTS, find_encoder_key, noted, speech_form
from specport.models.source import original
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name
from specport.speech.decoding.options import TranscribeOptions
from specport.speech.packaged import named
from specport.speech.ports import FRAMES
from specport.speech.whisper.load import load
from specport.speech.whisper.tokens import WhisperTokens
from specport.text.tokenizer import load_tokenizer

TRAIN = worker.Job("specport.quantize.speech.training:train", grace_s=120.0)
LAYERS = 2
HEAD = (
    8192  # ids of text that a draft can propose: the whole head of base reads as much as seven of its layers
)
_MOST_OF_HEAD = 0.75  # a head of more than this share of the ids stays whole


def build(
    target: str | None,
    audio: Sequence[str | Path],
    out: Path,
    recipe: Recipe,
    *,
    layers: int = LAYERS,
    language: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> About:
    """Build a draft for `target`, and write it to the new Hugging Face folder `out`.

    target:   as for `specport.speech.load`. audio: files, and folders in which audio is looked for.
    layers:   of the decoder that are kept.
    language: of all recordings; None = found for each.
    Other arguments as for `specport.speech.whisper.load.load`. Raises SpecportError; what is done is kept.
    """
    workdir.check_new(out)
    found = recordings.find(audio)
    files = [path for path, _ in found]
    options = TranscribeOptions(language=language)
    name = named(target, part(progress, 0.0, 0.02))
    folder = original(name, part(progress, 0.0, 0.02))
    if not folder.is_dir() or speech_form(folder) is None:
        raise ModelError(f"{target} is no Whisper model", "name a folder or hub id of one, or base")
    model = source.read(folder)
    shape = model.shape
    if 2 * shape.frames != FRAMES:
        raise ModelError(f"{target} hears {2 * shape.frames} frames, not the {FRAMES} of 30 s")
    kept = kept_layers(shape.decoder_layers, layers)
    work = workdir.path_for(out)
    weights = sorted(folder.glob("*.safetensors")) or [folder / CTRANSLATE2_FILE]
    # The training's own checkpoint knows its recipe: with another one, what was heard is kept.
    request = {
        "speech": fingerprint(folder, ["config.json"], [path.name for path in weights]),
        "audio": recordings.identity(files),
        "language": options.language,
        "layers": [*kept],
        "device": device,
        "precision": precision,
    }
    with workdir.hold_workdir(work, request):
        heard = work / "heard"
        heard.mkdir(exist_ok=True)
        material = Material(heard, (shape.frames, shape.width))
        if not (material.parts and material.parts[-1].ended and material.parts[-1].file == len(files) - 1):
            listening = load(
                name, draft="suffix", device=device, precision=precision, threads=threads,
                progress=part(progress, 0.02, 0.05),
            )  # fmt: skip
            with closing(listening):
                hear(listening, found, options, material, shape.context, part(progress, 0.05, 0.5))
        held_out = material.held_out(recipe.seed)
        start, made = work / "start", work / "made"
        trained = made / out.name  # the cache of conversions knows it by this name already
        for each in (start, made):
            shutil.rmtree(each, ignore_errors=True)
        start.mkdir()
        trained.mkdir(parents=True)
        small = cut(model, kept)
        export.write(folder, start, with_mask(small) if recipe.parallel else small)
        head = _head(material, held_out, WhisperTokens(load_tokenizer(start), shape.vocab))
        write_json(start / FACTS, noted(find_encoder_key(start), head))
        del model, small
        arguments = {
            "source": str(start), "heard": str(heard), "work": str(work), "out": str(trained),
            "held_out": held_out, "recipe": asdict(recipe),
        }  # fmt: skip
        result = worker.run(
            TRAIN, arguments, "the draft cannot be trained", progress=part(progress, 0.5, 0.85)
        )
        pair = Pair(name, trained, device, precision, threads)
        measured = measure(pair, material, files, held_out, shape.context, part(progress, 0.85, 1.0))
        facts = {
            "target": target or "base",
            "layers": [*kept],
            "num_layers": shape.decoder_layers,
            "head": shape.vocab if head is None else len(head),
            "recipe": asdict(recipe),
            "files": len(files),
            "unreadable": sum(bool(each.problem) for each in material.parts),
            "windows": len(material.windows),
            "held_out": len(held_out),
            **result,
            "measured": asdict(measured),
            "device": device,
            "processor": cpu_name(),
            **provenance(),
        }
        about.write(trained, facts)
        workdir.publish(trained, out)
    progress("done", 1.0)
    return about.read(out)


def _head(material: Material, held_out: Sequence[int], tokens: WhisperTokens) -> tuple[int, ...] | None:
    """Return the ids that the draft's head keeps: what was said, frequent ones, and all special ones.

    None = all, where few would be dropped.
    """
    if _MOST_OF_HEAD * tokens.eot < HEAD:
        return None
    held, texts = {*held_out}, enumerate(material.texts())
    said = Counter(
        int(i) for number, text in texts if number not in held for i in text.tokens if i < tokens.eot
    )
    return kept_ids(HEAD, tokens.vocab, range(tokens.eot, tokens.vocab), said)
