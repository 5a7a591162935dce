"""`python -m gptoss_converters.cli` is `gptoss-convert`."""

from gptoss_converters.cli.program import main

main()
