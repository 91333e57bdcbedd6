"""The files that describe or hold a model: Modelfile, templates, GGUF, safetensors, settings."""
