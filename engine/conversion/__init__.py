"""From one form of a model's files to another: quantising, and safetensors to GGUF. Run in a worker process."""
