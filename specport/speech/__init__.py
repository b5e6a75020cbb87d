"""Speech: Whisper behind the model port, with drafts."""
