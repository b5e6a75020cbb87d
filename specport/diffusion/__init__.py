"""Masked-diffusion language models: text is denoised block by block, plainly or with a draft (SimSD)."""
