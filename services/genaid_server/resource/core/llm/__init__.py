"""The LLM engine: what it is started with, its process, and the one who keeps it alive."""
