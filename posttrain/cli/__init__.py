"""The command line: thin, typer, nothing heavy at start-up.

What a command does stands elsewhere; here it gets its options and its output.

    posttrain --help
"""
