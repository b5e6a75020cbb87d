"""Pair models on torch: the decoder reads two tokens as one (`models.kinds.pipo`)."""
