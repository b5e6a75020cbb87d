"""Decode speed of drafting methods against plain decoding and peers, in one interleaved run.

The protocol is Spec-Bench's (github.com/hemingkx/Spec-Bench): greedy, one prompt at a time, speed-up over
plain decoding by category. What is counted for all alike are the token ids that came out: Spec-Bench
counts the plain text's tokens anew from cleaned text, and the other methods' as they came.
"""
