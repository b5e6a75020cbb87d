"""Pair models on OpenVINO: the decoder reads two tokens as one (`models.kinds.pipo`)."""
