"""What each command of `cappy` does, from its options to its exit code.

Modules that need torch are imported by the functions that use them: help and refusals come without it.
"""
