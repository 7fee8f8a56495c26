"""The arguments of a command, also where make passes several of them in one text."""

from collections.abc import Iterator, Sequence

ARGS = "--args"
"""Option whose text stands for several arguments."""


def expanded(argv: Sequence[str]) -> list[str]:
    """Return arguments, with those that `--args TEXT` stands for in its place.

    Raises:
        ValueError: a bracket or quote of the text is left open.
    """
    if ARGS not in argv[:-1]:
        return list(argv)
    place = list(argv).index(ARGS)
    return [*argv[:place], *words(argv[place + 1]), *argv[place + 2 :]]


def words(text: str) -> Iterator[str]:
    """Yield the arguments of one text, such as make's ARGS: split at spaces outside brackets and quotes.

    Quotes outside brackets group as in a shell; inside they are YAML's and stay.

    Raises:
        ValueError: a bracket or quote is left open.
    """
    word, open_, quote, begun = "", [], "", False
    for letter in text:
        if quote:
            if letter == quote:
                quote = ""
                if not open_:
                    continue
            word += letter
        elif letter in "'\"" and (open_ or not begun or word.endswith("=")):
            quote, begun = letter, True
            if open_:
                word += letter
        elif letter.isspace() and not open_:
            if begun:
                yield word
            word, begun = "", False
        else:
            begun = True
            word += letter
            if letter in "[{":
                open_.append(letter)
            elif letter in "]}" and open_:
                open_.pop()
    if quote or open_:
        raise ValueError(f"ARGS={text!r}: {quote or open_[-1]} is left open; close it")
    if begun:
        yield word
