"""Speech: what was said, and by whom. Whisper with drafts, for audio of any length.

with specport.speech.load() as transcriber:
    print(transcriber.transcribe("talk.mp3").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specport.progress import Progress
    from specport.speech.transcriber import Transcriber


def load(model: str | None = None, *, progress: Progress | None = None, **options: Any) -> Transcriber:
    """Load a Whisper model; return what transcribes with it.

    model:   "base" (the default, 99 languages) or "tiny.en" (English), which come through packages and need
             no model hub; a folder of Hugging Face's or CTranslate2's format; or a hub id.
    options: draft, device, precision and more, of `specport.speech.whisper.load.load`; a draft may be named
             "base" or "tiny.en", too.

    Raises SpecportError with the next step.
    """
    from specport.drafters.spec import parse
    from specport.progress import silent
    from specport.speech.packaged import named, with_named
    from specport.speech.transcriber import Transcriber
    from specport.speech.whisper.load import load as load_whisper

    show = silent if progress is None else progress
    if "draft" in options:
        options["draft"] = with_named(parse(options["draft"]), show)
    found = load_whisper(named(model, show), progress=show, **options)
    return Transcriber(
        found,
        model_name=found.model_name,
        device_name=found.device_name,
        draft_name=found.draft_name,
        notes=found.notes,
        identity=found.identity,
    )
