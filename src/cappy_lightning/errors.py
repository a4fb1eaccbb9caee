"""The one exception that is the user's to mend, and what others say in a line of it."""


def first_line(error: BaseException) -> str:
    """What an exception says first, for a message of one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: where (a file and line, or a config key), what is wrong, and what was
    expected. The command line prints it and exits with code 2; a traceback is for our own bugs.
    """

    def __init__(self, where: object, problem: str) -> None:
        super().__init__(" ".join(f"{where}: {problem}".split()))
        self.where, self.problem = where, problem

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        """For its way from a loader process to the main one."""
        return InputError, (str(self.where), self.problem)
