"""The server: OpenAI's HTTP API over one pipeline, whose sequences share the engine's rounds.

worker.py     one thread that steps the engine
admission.py  who may run, who waits, and whose turn it is
answer.py     the sequences of one request, as events for asyncio
service.py    joins these with the pipeline, and knows whether it is ready
metrics.py    counters and histograms for Prometheus
app.py        routes; guard.py: keys and hosts; openai/: the shapes of OpenAI's API
server.py     sockets, signals, and the end in order; protocol.py: time limits of connections
"""
