"""Folders of special kinds: diffusion and pair models, Whisper, and drafts that are no model of their own.

diffusion.py, pipo.py, whisper.py  models that decode in ways of their own
mtp.py, mtp_head.py                multi-token prediction: a model's own weights for it, and trained heads
recurrent.py, parallel.py          draft heads on hidden states; drafts of several tokens in one pass
layer_mask.py                      layers that a slim verifier skips
"""
