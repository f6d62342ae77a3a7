"""What runs a network behind the shared backend: PyTorch as it is, PyTorch compiled, or OpenVINO.

Eager float32 is the truth; `choice.py` holds the others against it when an entry is built, and writes on
the card what serves it. `openvino.py` serves an exported graph in a process that never imports torch.
"""
