"""Errors that a user can cause and fix.

Every such error derives from `SpecportError`; the command line prints it on one line and exits with code 2.
Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class SpecportError(Exception):
    """An error in the input or the set-up, with the next step to take.

    hint: the command or change that fixes it; printed after the message.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(SpecportError):
    """A prompt, parameter or option that cannot be used."""


class PromptTooLong(InvalidInput):
    """A prompt that the model's context cannot hold."""


class UnusableTools(InvalidInput):
    """Tools whose calls an answer cannot be held to."""


class ModelError(SpecportError):
    """A model that cannot be found, read, converted or trusted."""


class DeviceError(SpecportError):
    """A device or runtime that is unknown, not installed or not present."""


class ContextFull(SpecportError):
    """A sequence would grow past the model's context or the cache's memory limit."""
