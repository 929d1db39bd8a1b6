"""One file per step of the paper, each a plain function run(inputs, settings, out)."""
