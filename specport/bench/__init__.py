"""Measure the decode speed of drafting methods against plain decoding and peers, in one interleaved run.

The protocol is Spec-Bench's (github.com/hemingkx/Spec-Bench): greedy, one prompt at a time, speed-up over
plain decoding by category. All methods are measured by their output token ids. Spec-Bench differs: it counts
the tokens of plain decoding by encoding cleaned text again, and those of the other methods as generated.
"""
