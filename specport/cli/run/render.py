"""Print a generation: streamed text, the drafter of each token, and the summary line.

Model output is untrusted: control characters never reach a terminal (`terminal.write`).
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from specport.cli import terminal
from specport.cli.run.explain import lines

if TYPE_CHECKING:
    from specport.stream import Result, Stream

# Colours of drafters in order of appearance. The target's own tokens stay uncoloured.
PALETTE = ("32", "36", "35", "33", "34")


class Printer:
    """Print answers to stdout and notes about them to stderr."""

    def __init__(self, *, quiet: bool = False, show_drafts: bool = False, explain: bool = False) -> None:
        self._quiet = quiet
        self._explain = explain
        self._show_drafts = show_drafts
        self._colours: dict[str, str] = {}

    def note(self, text: str) -> None:
        """Print a line on stderr, unless quiet."""
        if not self._quiet:
            terminal.say(text)

    def legend(self, draft_name: str) -> None:
        """Print the colours of the drafters in a draft name such as "ngram|model"."""
        if not self._show_drafts or self._quiet:
            return
        names = [] if draft_name == "none" else draft_name.split("|")
        shown = ["the model itself", *(self._mark(f"{name} draft", name) for name in names)]
        terminal.tell(f"drafts: {', '.join(shown)}\n")

    def answer(self, stream: Stream) -> Result:
        """Print a stream as it arrives. Ctrl-C ends the text; a second one raises KeyboardInterrupt."""
        last = "\n"
        with closing(stream), terminal.on_ctrl_c(stream.cancel):
            for chunk in stream:
                text = self._marked(chunk.spans) if self._show_drafts else chunk.text
                terminal.write(text)
                last = text[-1:] or last
        if last != "\n":
            terminal.write("\n")
        return stream.result

    def summary(self, result: Result) -> None:
        """Print the summary line of a generation, unless quiet, and its account where that was asked for."""
        self.note(summary(result))
        if self._explain:
            for line in lines(result.explain()):
                terminal.say(line)

    def _marked(self, spans: tuple[tuple[str, str], ...]) -> str:
        """Mark adjacent spans of one source as one span."""
        pieces: list[tuple[str, str]] = []
        for text, source in spans:
            if pieces and pieces[-1][1] == source:
                pieces[-1] = (pieces[-1][0] + text, source)
            else:
                pieces.append((text, source))
        return "".join(self._mark(text, source) for text, source in pieces)

    def _mark(self, text: str, source: str) -> str:
        if not source:
            return text
        if not terminal.coloured(sys.stdout):
            return f"[{source}:{text}]"
        code = self._colours.setdefault(source, PALETTE[len(self._colours) % len(PALETTE)])
        return terminal.paint(text, code)


def summary(result: Result) -> str:
    """Return the summary line: tokens, TTFT, TPOT, acceptance, and the time shares of draft and verify."""
    metrics = result.metrics
    ends = {"length": " (cut at the length limit)", "cancelled": " (stopped)"}
    plural = "" if metrics.num_output_tokens == 1 else "s"
    parts = [f"{metrics.num_output_tokens} token{plural}{ends.get(result.finish_reason, '')}"]
    if metrics.num_output_tokens:
        parts += [f"TTFT {_duration(metrics.ttft_s)}"]
    if metrics.num_cached_tokens:
        parts += [f"{metrics.num_cached_tokens} of {metrics.num_prompt_tokens} prompt tokens cached"]
    if metrics.num_output_tokens > 1:
        parts += [f"TPOT {_duration(metrics.tpot_s)}", f"{metrics.tokens_per_second:.1f} tokens/s"]
    if metrics.second_tokens:
        tokens = metrics.num_accepted_tokens
        parts += [f"lossy ({metrics.lossy}): {tokens} of {metrics.num_drafts} second tokens kept"]
    elif metrics.num_drafts:
        parts += [
            f"mean acceptance length {metrics.mean_acceptance_length:.2f}",
            f"acceptance rate {metrics.acceptance_rate:.0%}",
        ]
    else:
        parts += ["nothing drafted"]
    if metrics.num_steps and metrics.decode_s > 0:
        draft, verify = metrics.draft_s / metrics.decode_s, metrics.verify_s / metrics.decode_s
        loop = max(0.0, 1 - draft - verify)
        names = ("second tokens", "steps") if metrics.second_tokens else ("draft", "verify")
        parts += [f"{names[0]} {draft:.0%}, {names[1]} {verify:.0%}, loop {loop:.0%} of the time"]
    return " | ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
