"""Adapters as Hugging Face's PEFT writes them: `adapter_config.json` beside `adapter_model.safetensors`, in and out.

`folder.py` opens and writes the two, `settings.py` says what of the first has a meaning here, `low_rank.py` and
`virtual.py` turn tensors into our leaves and back, and `modules.py` knows which of their modules holds which kernels.
"""
