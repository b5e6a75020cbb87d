"""The shapes of OpenAI's API: requests, replies, streams, errors. Knows nothing of engines and threads."""
