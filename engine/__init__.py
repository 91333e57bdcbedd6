"""The engine: from token ids to token ids. One worker process per loaded model."""
