"""Running a scheduled batch: tensors, weights, KV cache, sampling."""
