"""OpenAI's API: its types, and what translates between them and daemon.generation."""
