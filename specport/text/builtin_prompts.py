"""Built-in prompts, used by calibration where the user gives none."""

from __future__ import annotations

from specport.text.tokenizer import Tokenizer

# One prompt for each common task.
PROMPTS = (
    "Write a Python function that merges two sorted lists, with a short explanation.",
    "Why does the moon have phases? Explain it to a class of ten-year-olds.",
    "Translate into German: The train was late because of the snow, so we missed the last bus.",
    "A farmer sells 48 eggs in April and half as many in May. How many in both? Think step by step.",
    "Write a polite e-mail that asks to move Tuesday's meeting to Thursday afternoon.",
)


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt, as a user turn where the model has a chat template."""
    if tokenizer.has_chat_template:
        return tokenizer.chat([{"role": "user", "content": prompt}])
    return tokenizer.encode(prompt)
