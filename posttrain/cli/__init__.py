"""The command line: thin, typer, nothing heavy at start-up.

posttrain --help
"""
