"""Audio: reading any format, log-mel features, voice activity."""
