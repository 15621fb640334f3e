"""Owns how a result looks as Markdown: its parts, its lists and its tables."""

from collections.abc import Iterable


def document(parts: Iterable[str]) -> str:
    """Parts with an empty line between them, as the text of a file."""
    return "\n\n".join(parts) + "\n"


def bullet_list(facts: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def table(head: str, lines: Iterable[str]) -> str:
    """Lines of cells below a head of cells, each as `| a | b |`."""
    rule = "|---" * (head.count("|") - 1) + "|"
    return "\n".join([head, rule, *lines])
