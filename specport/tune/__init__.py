"""`specport tune`: try what can make a model faster on this device, and keep what was best.

Candidates are measured by `specport.bench` in heats, each beside plain decoding on the same prompts. The best
of them meet in a final, in one interleaved run. The result is kept by `specport.runtime.stored.tuned`.
"""
