"""Engines that answer generation requests: transformers in this process, vLLM in one of its own."""
