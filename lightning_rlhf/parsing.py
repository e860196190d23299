"""Parsers whose complaints are one message: where the option stands, what was found, what was expected.

jsonargparse says which option is wrong; here its place in the config files is looked up, and names that are alike.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from .tasks import UsageError

UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)")
UNKNOWN = re.compile(r"Option '([^']+)' is not accepted|(?:Group '([^']+)'|Subcommand '\w+') does not accept option '([^']+)'")
WRONG = re.compile(r"key \"([\w.]+)\":\s+Expected a <class '([\w.]+)'>\. Got value: (.*)")
NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'|Expected a dot import path string: (\S+)")
CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
KEY = re.compile(r"key \"([\w.]+)\":")  # from the outermost block of options inwards


def config_files(args: Sequence[str]) -> list[str]:
    """The config files that a command line names, in order."""
    files = [(i, word.split("=", 1)[1]) for i, word in enumerate(args) if word.startswith("--config=")]
    files += [(i, after) for i, (word, after) in enumerate(pairwise(args)) if word in ("-c", "--config")]
    return [file for _, file in sorted(files)]


def check_yaml(args: Sequence[str]) -> None:
    """Every config file named in the arguments is there and is YAML; raises UsageError with file and line."""
    for file in config_files(args):
        try:
            found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}, expected a YAML file of options") from None
        except UnicodeDecodeError:
            raise UsageError(f"{file}: found a byte that is not UTF-8, expected a YAML file of options") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UsageError(f"{file}:{line}: {error.problem}, expected YAML") from None
        if not isinstance(found, dict):
            raise UsageError(f"{file}: found {type(found).__name__}, expected a YAML file of options")


class OneMessage:
    """A parser that raises UsageError in place of printing every option there is."""

    words: Sequence[str] = ()

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """As in jsonargparse."""
        self.words = args if isinstance(args, (list, tuple)) else ()
        return super().parse_args(args, *more, **options)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Never returns.

        Raises:
            UsageError: What was wrong, in one message; a parser inside another raises what that one expects.
        """
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]
        raise UsageError(explained(message, _names(self), config_files(self.words))) from None


class Parser(OneMessage, ArgumentParser):
    """Of a function's options."""


def explained(message: str, names: Sequence[str], files: Sequence[str]) -> str:
    """What jsonargparse says, in the words of this project.

    Args:
        message: Its own.
        names: The parser's options, with dots.
        files: Config files, later ones over earlier ones.
    """
    block = ".".join(KEY.findall(message))
    if found := UNRECOGNIZED.search(message):
        word = found[1].split()[0].split("=")[0]
        if not word.startswith("-"):
            return f"{found[1]}: found a word, expected options alone (--NAME VALUE)"
        return f"{found[1]}: found an unknown option{_instead(word.lstrip('-'), names)}"
    if found := UNKNOWN.search(message):
        name, group, in_group = found.groups()
        if group:  # of a linked block too: its name is enough
            name, block = in_group, group
            names = [n.removeprefix(f"{group}.") for n in names if n.startswith(f"{group}.")]
        elif in_class := CLASS.findall(message):
            names = _options_of(in_class[-1])
        name = name or in_group
        whole = f"{block}.{name}" if block else name
        return f"{place(name, files)}{whole}: found an unknown option{_instead(name, names)}"
    if found := WRONG.search(message):
        name, kind, value = found[1], found[2], found[3].strip()
        return f"{place(name, files, value)}{block}: found {value}, expected {kind}"
    if found := NO_CLASS.search(message):
        path = found[3] or f"{found[1]}.{found[2]}"
        at = place("class_path", files, path) or place(block.rsplit(".", 1)[-1], files, path)
        return f"{at}{block}: found {path}, expected a class that is there, by its import path"
    return " ".join(message.split())


def place(option: str, files: Sequence[str], value: str | None = None) -> str:
    """`file:line: ` of an option, from the last of the files that has it; nothing where none has.

    Args:
        option: Its name, or the end of it: `kl_coef`, `model.init_args.kl_coef`.
        value: Its value; without, any.
    """
    end = option.split(".")
    for file in reversed(files):
        with open(file, encoding="utf-8") as handle:
            for path, key, said in _entries(yaml.compose(handle), ()):
                if path[-len(end) :] == tuple(end) and value in (None, getattr(said, "value", None)):
                    return f"{file}:{key.start_mark.line + 1}: "
    return ""


def _entries(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, key, value) of every entry of a YAML file, as nodes."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = (*path, str(key.value))
            yield inside, key, value
            yield from _entries(value, inside)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _entries(value, path)


def _names(parser: Any) -> list[str]:
    """A parser's options, and those of its subcommands."""
    inside = [p for action in parser._actions for p in (getattr(action, "_name_parser_map", None) or {}).values()]
    return [action.dest for action in parser._actions] + [name for p in inside for name in _names(p)]


def _options_of(path: str) -> list[str]:
    """A class's options; none where there is no such class."""
    module, _, name = path.rpartition(".")
    try:
        made = getattr(__import__(module, fromlist=[name]), name)
        return [p for p in inspect.signature(made).parameters if p != "self"]
    except (ImportError, AttributeError, ValueError):
        return []


def _instead(option: str, names: Sequence[str]) -> str:
    """What was probably meant."""
    parts = option.split(".")
    known = {".".join(name.split(".")[: len(parts)]) for name in names} | {name.rsplit(".", 1)[-1] for name in names}
    alike = difflib.get_close_matches(option, sorted(known), n=1) or difflib.get_close_matches(parts[-1], sorted(known), n=1)
    return f", expected perhaps {alike[0]}" if alike else ", expected one that --help lists"
