"""An agent on the device: it searches documents, computes, and writes a slide deck.

    python examples/agent_core_ultra.py --device xeon
    python examples/agent_core_ultra.py --device core-ultra-gpu --draft-device core-ultra-cpu \\
        --model Qwen/Qwen2.5-Coder-1.5B-Instruct --draft 'suffix|Qwen/Qwen2.5-Coder-0.5B-Instruct'

A CodeAgent of smolagents writes Python, one line a step; each line is held to a grammar of tool calls, which
small models need. What it does, in which words and with which numbers, is its own. Give your own files and
--task. Several --task run one after the other: what was written in the first is a draft in the next
(--history DIR keeps it for later runs). Needs: pip install 'specport[openvino,agents]'.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import Counter
from pathlib import Path

import ending
from pptx import Presentation
from smolagents import CodeAgent, LogLevel, Tool

from specport.agents import SpecportModel
from specport.agents.code_steps import code_step
from specport.errors import InvalidInput

DOCUMENTS = Path(__file__).parent / "agent_documents"
TASK = """\
Make slides about the {subject} of the island of Norsey. Make one step for each line:
1. search the documents for the {solar} of the solar park
2. search the documents for the {wind} of the wind farm
3. compute the sum of these two numbers
4. add a slide about the solar park, with its {solar}
5. add a slide about the wind farm, with its {wind}
6. add a slide with the sum
7. give the sum as the final answer"""
TASKS = (
    TASK.format(subject="electricity", solar="production in 2025", wind="production in 2025"),
    TASK.format(subject="building costs", solar="building cost", wind="building cost"),
)
SYSTEM = """\
You solve a task in steps. Each step is a thought and one line of Python code, as in
Thought: I look for the height of the tower.
<code>
print(search_documents(query="height of the tower"))
</code>
Then you see what the code prints, and write the next step. Never repeat a step.
Numbers come from the documents.
To compute, print the numbers, as in print(12 + 30).
At the end give the answer itself, as in final_answer("42 m").
These functions can be called:
{%- for tool in tools.values() %}
{{ tool.to_code_prompt() }}
{%- endfor %}"""
# smolagents asks for all of them; what this agent never uses is short.
PROMPTS = {
    "system_prompt": SYSTEM,
    "planning": {
        "initial_plan": "{{task}}", "update_plan_pre_messages": "", "update_plan_post_messages": "",
    },
    "managed_agent": {"task": "{{task}}", "report": "{{final_answer}}"},
    "final_answer": {"pre_messages": "Answer the task from what was found.", "post_messages": "{{task}}"},
}  # fmt: skip


class SearchDocuments(Tool):
    """Find the paragraphs of text files that share the rarest words with a query."""

    name = "search_documents"
    description = "Returns the best paragraph of the documents for a query."
    inputs = {"query": {"type": "string", "description": "a few words", "maxLength": 60}}  # noqa: RUF012
    output_type = "string"

    def __init__(self, files: list[Path]) -> None:
        super().__init__()
        self.num_calls = 0
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        self._paragraphs = [p.strip() for text in texts for p in re.split(r"\n\s*\n", text) if p.strip()]
        if not self._paragraphs:
            raise InvalidInput("the documents have no text")
        seen = Counter(word for paragraph in self._paragraphs for word in _words(paragraph))
        self._weights = {word: math.log(1 + len(self._paragraphs) / count) for word, count in seen.items()}

    def forward(self, query: str) -> str:
        self.num_calls += 1
        asked = _words(query)
        return max(self._paragraphs, key=lambda p: sum(self._weights[w] for w in asked & _words(p)))


class AddSlide(Tool):
    """Add slides to one deck, which is saved after each."""

    name = "add_slide"
    description = "Adds a slide to the deck."
    inputs = {  # noqa: RUF012
        "title": {"type": "string", "description": "title of the slide", "maxLength": 50},
        "bullets": {
            "type": "array", "description": "one to three short facts", "maxItems": 3,
            "items": {"type": "string", "maxLength": 80},
        },
    }  # fmt: skip
    output_type = "string"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.num_slides = 0
        self._path = path
        self._deck = Presentation()

    def forward(self, title: str, bullets: list) -> str:
        slide = self._deck.slides.add_slide(self._deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = "\n".join(map(str, bullets))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._deck.save(self._path)
        self.num_slides += 1
        return f"The deck has {self.num_slides} slides."


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def run(
    model: SpecportModel, files: list[Path], deck: Path, task: str, *, steps: int = 12, quiet: bool = False
) -> dict[str, object]:
    """Let an agent do a task; return what it answered, what it did and what that took."""
    search, slides = SearchDocuments(files), AddSlide(deck)
    model.kwargs["grammar"] = code_step([search, slides])
    agent = CodeAgent(
        [search, slides], model, prompt_templates=PROMPTS, max_steps=steps,
        verbosity_level=LogLevel.OFF if quiet else LogLevel.INFO,
    )  # fmt: skip
    model.reset_totals()
    start = time.perf_counter()
    found = agent.run(task, return_full_result=True)
    seconds = time.perf_counter() - start
    lines = [step.code_action for step in agent.memory.steps if getattr(step, "code_action", None)]
    return {
        "answer": found.output,
        "finished": found.state == "success",
        "lines": lines,
        "num_lines": len(lines),
        "num_searches": search.num_calls,
        "num_slides": slides.num_slides,
        "seconds": seconds,
        **model.totals.as_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "documents", nargs="*", type=Path, help="text files (default: those beside this script)"
    )
    parser.add_argument("--task", action="append", help="what to do; may be given again (default: two tasks)")
    parser.add_argument("--out", type=Path, default=Path("decks"), help="folder of the slide decks")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct; one of 1.5B or more does better")
    parser.add_argument("--draft", default="auto", help="as in specport run; 'none' is plain decoding")
    parser.add_argument("--device", default="auto", help="such as core-ultra-gpu or xeon")
    parser.add_argument("--draft-device", help="such as core-ultra-cpu, where the draft has a model")
    parser.add_argument("--history", type=Path, help="folder that keeps what was written, for later runs")
    parser.add_argument("--steps", type=int, default=12, help="most steps of a task")
    args = parser.parse_args()
    files = args.documents or sorted(DOCUMENTS.glob("*.txt"))
    if missing := next((file for file in files if not file.is_file()), None):
        raise InvalidInput(f"there is no file {missing}")
    with SpecportModel(
        args.model, draft=args.draft, device=args.device, draft_device=args.draft_device,
        history=args.history, max_tokens=300,
    ) as model:  # fmt: skip
        for i, task in enumerate(args.task or TASKS):
            deck = args.out / f"deck-{i + 1}.pptx"
            done = run(model, files, deck, task, steps=args.steps)
            drafted, accepted = done["num_draft_tokens"], done["num_accepted_tokens"]
            print(
                f"{deck}: {done['num_slides']} slides, {done['num_lines']} steps, {done['seconds']:.1f} s; "
                f"{accepted} of {drafted} drafted tokens accepted, {done['tpot_s'] * 1e3:.0f} ms a token"
                + ("" if done["finished"] else "; the agent did not come to an end")
            )


if __name__ == "__main__":
    ending.run(main)
