"""How a text that is to be classified becomes an instruction."""

from collections.abc import Sequence

from cappy_lightning.errors import InputError


def fill_template(template: str, text: str, choices: Sequence[str]) -> str:
    """The instruction: `{text}` stands for the text, `{choices}` for the choices, comma-separated.

    Other braces stay as they are.

    Raises:
        InputError: the template has no place for the text.
    """
    parts = template.split("{text}")
    if len(parts) < 2:
        raise InputError("template", f"is {template!r}, expected '{{text}}' in it")
    listed = ", ".join(choices)
    return text.join(part.replace("{choices}", listed) for part in parts)
