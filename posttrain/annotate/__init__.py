"""A round's collection: who judges which pair, and what they said, durable before it is told."""
