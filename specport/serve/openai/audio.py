"""OpenAI's routes of audio: transcriptions and translations of uploaded files."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from specport.errors import InvalidInput, SpecportError
from specport.serve.openai.errors import (
    ApiError,
    JsonResponse,
    bad_request,
    from_input,
    naming,
    not_supported,
    too_late,
    too_many,
    unavailable,
)
from specport.serve.openai.streaming import DONE, GONE, ClientGone, EventStream, event, unless_gone
from specport.serve.service import NotReady, Service
from specport.serve.speech import SpeechService, TooLate, TooManyTalks
from specport.speech import formats
from specport.speech.decoding.options import TranscribeOptions
from specport.speech.decoding.recognizer import check_language
from specport.speech.languages import name_of
from specport.speech.transcript import Segment, Transcript

FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
_FIELDS = (
    "file", "model", "language", "prompt", "response_format", "temperature", "stream",
    "timestamp_granularities[]", "timestamp_granularities", "chunking_strategy",
)  # fmt: skip
_MOST_FIELDS = 64
_MOST_TEXT = 1 << 16  # bytes of a field


class AudioRoutes:
    """The routes. A request is a form with a file."""

    def __init__(self, service: Service, speech: SpeechService) -> None:
        self._service, self._speech, self._limits = service, speech, service.limits
        self._num_read = 0  # forms that are being read

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        app.add_api_route("/v1/audio/transcriptions", self.transcriptions, methods=["POST"])
        app.add_api_route("/v1/audio/translations", self.translations, methods=["POST"])

    async def transcriptions(self, request: Request) -> Response:
        return await self._answered(request, "transcribe")

    async def translations(self, request: Request) -> Response:
        return await self._answered(request, "translate")

    async def _answered(self, request: Request, task: str) -> Response:
        form: FormData | None = None
        streams = False
        try:
            form = await self._form(request)
            response = await self._answer(request, form, task)
            streams = isinstance(response, EventStream)
            return response
        except (ClientDisconnect, ClientGone):
            return Response(status_code=GONE)
        except NotReady as error:
            raise unavailable(str(error)) from None
        except TooManyTalks:
            raise too_many("too many audio files wait; try again later", 10, unread=True) from None
        except TooLate:
            raise too_late() from None
        except InvalidInput as error:
            raise from_input(error, "file") from error
        except SpecportError as error:
            raise ApiError(500, error.message) from error
        finally:
            if form is not None and not streams:
                await form.close()

    async def _form(self, request: Request) -> FormData:
        """Return the form of a request; its file is on disk. Raises ApiError, TooManyTalks."""
        headers = request.headers
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise ApiError(415, "the body must be a form with a file (multipart/form-data)")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            # A form, unlike JSON, could come from any page that the user's browser shows.
            raise ApiError(403, "pages of other sites may not send audio to this server")
        if self._num_read + self._speech.num_talks >= self._limits.max_talks:
            raise TooManyTalks
        parser = MultiPartParser(
            headers, self._body(request), max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_TEXT
        )
        self._num_read += 1
        try:
            return await asyncio.wait_for(parser.parse(), self._limits.audio_seconds)
        except MultiPartException as error:
            raise bad_request(f"the form cannot be read: {error.message}") from None
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"the audio did not arrive within {self._limits.audio_seconds:g} s",
                headers={"connection": "close"},
            ) from None  # fmt: skip
        finally:
            self._num_read -= 1

    async def _body(self, request: Request) -> AsyncGenerator[bytes, None]:
        size, most = 0, self._limits.max_audio
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise ApiError(413, f"the audio is larger than {most} bytes", headers={"connection": "close"})
            yield part

    async def _answer(self, request: Request, form: FormData, task: str) -> Response:
        fields = _fields(form)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise bad_request("file is missing", "file", "missing_required_parameter")
        if fields.get("model", self._speech.name) not in (self._speech.name, "whisper-1"):
            raise ApiError(
                404, f"this server has no speech model {fields['model']!r}; it has {self._speech.name!r}",
                code="model_not_found", param="model",
            )  # fmt: skip
        form_of = naming("response_format", lambda: _format(fields.get("response_format", "json")))
        options = _options(form, fields, task)
        tokens = self._speech.transcriber.model.tokens
        param = "language" if "language" in options else "model"
        naming(param, lambda: check_language(tokens, TranscribeOptions(**options)))
        if form_of == "diarized_json":
            options["diarize"] = True
        whole: list[Transcript] = []
        segments = self._speech.segments(file.file, options, whole.append, self._limits.request_seconds)
        if fields.get("stream", "false").lower() in ("true", "1"):
            if form_of == "diarized_json":
                raise not_supported("stream", "is not supported with diarized_json")
            return EventStream(self._events(segments, whole, form), lambda: None)

        async def finish() -> None:
            with self._service.other_work():
                async for _ in segments:
                    pass

        await unless_gone(request.receive, finish())
        return _reply(whole[0], form_of, bool(options.get("word_timestamps")))

    async def _events(
        self, segments: AsyncGenerator[Segment, None], whole: list[Transcript], form: FormData
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream. An error in its middle is an event, too."""
        try:
            with self._service.other_work():
                async with aclosing(segments):  # before its file is closed
                    async for segment in segments:
                        yield event({"type": "transcript.text.delta", "delta": segment.text})
            yield event({"type": "transcript.text.done", "text": whole[0].text, "usage": _usage(whole[0])})
        except (NotReady, TooManyTalks):
            yield event(ApiError(503, "the server cannot take this audio now; try again later").body())
        except TooLate:
            yield event(too_late().body())
        except InvalidInput as error:
            yield event(from_input(error, "file").body())
        except SpecportError as error:
            yield event(ApiError(500, error.message).body())
        finally:
            await form.close()
        yield DONE


def _fields(form: FormData) -> dict[str, str]:
    """Return the text fields of a form. Raises ApiError for those that this server does not have."""
    found = {}
    for name, value in form.multi_items():
        if name not in _FIELDS:
            raise not_supported(name)
        if isinstance(value, str):
            found[name] = value
    return found


def _options(form: FormData, fields: Mapping[str, str], task: str) -> dict[str, Any]:
    """Return the options of a transcription. Raises ApiError."""
    options: dict[str, Any] = {"task": task}
    if fields.get("chunking_strategy", "auto") != "auto":
        raise not_supported("chunking_strategy", "must be auto: this server chooses the chunks")
    if fields.get("language"):
        options["language"] = fields["language"]
    if fields.get("prompt"):
        options["initial_prompt"] = fields["prompt"]
    if float_text := fields.get("temperature"):
        try:
            first = float(float_text)
        except ValueError:
            raise bad_request("temperature must be a number", "temperature", "invalid_value") from None
        rest = () if first else TranscribeOptions().temperature[1:]
        options["temperature"] = (first, *rest)
    kinds = [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]
    for kind in kinds:
        if kind not in ("word", "segment"):
            raise bad_request(
                "timestamp_granularities must be word or segment", "timestamp_granularities", "invalid_value"
            )
    if "word" in kinds:
        options["word_timestamps"] = True
    naming("temperature", lambda: TranscribeOptions(**options))
    return options


def _format(name: str) -> str:
    if name not in FORMATS:
        raise InvalidInput(f"response_format must be one of {', '.join(FORMATS)}")
    return name


def _language(found: Transcript) -> str:
    """Return the name of the text's language, as OpenAI does."""
    return "english" if found.task == "translate" else name_of(found.language)


def _reply(found: Transcript, form: str, words: bool) -> Response:
    if form == "text":
        return PlainTextResponse(found.text + "\n")
    if form == "srt":
        return PlainTextResponse(formats.srt(found))
    if form == "vtt":
        return PlainTextResponse(formats.vtt(found), media_type="text/vtt")
    body: dict[str, Any] = {"text": found.text, "usage": _usage(found)}
    if form == "verbose_json":
        body |= {
            "task": found.task, "language": _language(found), "duration": round(found.duration, 3),
            "segments": [_segment(i, segment) for i, segment in enumerate(found.segments)],
        }  # fmt: skip
        if words:
            body["words"] = [
                {"word": word.text.strip(), "start": word.start, "end": word.end}
                for segment in found.segments
                for word in segment.words
            ]
    if form == "diarized_json":
        body |= {
            "task": found.task, "duration": round(found.duration, 3),
            "segments": [
                {
                    "type": "transcript.text.segment", "id": f"seg_{i}", "start": s.start, "end": s.end,
                    "text": s.text, "speaker": s.speaker,
                }
                for i, s in enumerate(found.segments)
            ],
        }  # fmt: skip
    return JsonResponse(body)


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    quality = segment.no_speech_prob
    return {
        "id": number, "seek": round(100 * segment.start), "start": segment.start, "end": segment.end,
        "text": segment.text, "tokens": [*segment.ids], "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob, "compression_ratio": segment.compression_ratio,
        "no_speech_prob": None if math.isnan(quality) else quality,  # nan: the model has no such token
    }  # fmt: skip


def _usage(found: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(found.duration)}
