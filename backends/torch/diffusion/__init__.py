"""Masked-diffusion language models on slots: any decoder, whose rows bring their own attention masks."""
