"""Side-by-side measurements; each file says how to run it, results stand beside it as JSON."""
