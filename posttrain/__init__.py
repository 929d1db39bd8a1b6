"""posttrain: post-train a language model in rounds, the way the Llama 3 paper did.

Importing this package loads nothing heavy; see `posttrain --help`.
"""

__version__ = "0.1.0"
