"""Conversion, compression, pruning and training of models. Needs the packages of the extra `openvino`."""
