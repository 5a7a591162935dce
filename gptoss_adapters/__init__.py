"""gpt-oss checkpoints, MXFP4, the reference model and its backends. Importing this package imports nothing heavy."""
