"""Parsers whose complaints are one message: where the option stands, what was found, what was expected.

jsonargparse tells a mistake in a block within a block as a nested text; `explained` takes the innermost part of it, and looks its
place up in the config files. What it does not understand it tells as it is, in one line.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import ArgumentParser

from .tasks import UsageError

LONGEST = 400  # characters of a message that is told as it is
KEY = re.compile(r"key \"([\w.+-]+)\":")  # of each block, from the outermost inwards
CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)")
UNKNOWN = re.compile(r"Option '([^']+)' is not accepted|(?:Group '([^']+)'|Subcommand '\w+') does not accept option '([^']+)'")
REQUIRED = re.compile(r"the following arguments are required: ([\w., -]+?)(?:\.? Got value|$)", re.MULTILINE)
NO_CLASS = re.compile(r"(module '\S+' has no attribute '\w+'|No module named '\S+')|Expected a dot import path string: (\S+)")
WRONG = re.compile(r"Expected a (.+?)\. Got value: (.*?)(?:\. Got value: .*)?$", re.MULTILINE)
NONE_OF = re.compile(r"Subtypes: \[(.*)\]\n(?:.|\n)*?Given value: (.*)")
BULLET = re.compile(r"^ *- (?!Expected a <class 'NoneType'>)(.+:(?:\n {6,}.+)+|.+)", re.MULTILINE)


class ConfigFile(NamedTuple):
    """A config file of the command line."""

    name: str  # as it was given
    path: Path  # wherever the program is by now


def config_files(args: Sequence[str]) -> list[ConfigFile]:
    """The config files that a command line names, in order."""
    names = [(i, word.split("=", 1)[1]) for i, word in enumerate(args) if word.startswith("--config=")]
    names += [(i, word[2:].removeprefix("=")) for i, word in enumerate(args) if re.match(r"-c.", word)]
    names += [(i, after) for i, (word, after) in enumerate(pairwise(args)) if word in ("-c", "--config")]
    return [ConfigFile(name, Path(name).absolute()) for _, name in sorted(names)]


def check_yaml(args: Sequence[str]) -> None:
    """Every config file named in the arguments is there and is YAML; raises UsageError with file and line."""
    for file, path in config_files(args):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}, expected a YAML file of options") from None
        except UnicodeDecodeError:
            raise UsageError(f"{file}: found a byte that is not UTF-8, expected a YAML file of options") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UsageError(f"{file}:{mark.line + 1 if mark else 1}: {problem}, expected YAML") from None
        if not isinstance(found, dict):
            raise UsageError(f"{file}: found {type(found).__name__}, expected a YAML file of options")


class OneMessage:
    """A parser that raises UsageError in place of printing every option there is."""

    words: Sequence[str] = ()
    files: Sequence[ConfigFile] = ()

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """As in jsonargparse."""
        self.words = args if isinstance(args, (list, tuple)) else ()
        self.files = config_files(self.words)
        return super().parse_args(args, *more, **options)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Never returns.

        Raises:
            UsageError: What was wrong, in one message; a parser inside another raises what that one expects.
        """
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]
        raise UsageError(explained(message, _names(self), self.files, self.words)) from None


class Parser(OneMessage, ArgumentParser):
    """The parser of a command that is a function, or of the steps of an evaluation."""

    def values(self, of: Callable[..., Any], args: Sequence[str]) -> dict[str, Any]:
        """Option → value, as `of`, a function or class whose arguments they are, wants it; raises UsageError."""
        parsed = self.parse_args(args)
        if problems := nulls(of, vars(parsed), self):
            raise UsageError("\n".join(problems))
        return {k: v for k, v in vars(self.instantiate(parsed)).items() if k != "config"}


def explained(message: str, names: Sequence[str] = (), files: Sequence[ConfigFile] = (), words: Sequence[str] = ()) -> str:
    """What jsonargparse says, in the words of this project.

    Args:
        message: Its own.
        names: The parser's options, with dots.
        files: Config files, later ones over earlier ones.
        words: The command line: an option that stands there has no place in a file.
    """
    keys = list(KEY.finditer(message))
    block, inside = ".".join(k[1] for k in keys), message[keys[-1].end() :] if keys else message
    classes = CLASS.findall(message)

    def told(option: str, found: str, expected: str, value: str | None = None) -> str:
        at = place(option, files, words, value)
        return f"{at}{option}: found {_short(found)}, expected {expected}"

    if found := UNRECOGNIZED.search(message):
        word = found[1].split()[0].split("=")[0]
        if not word.startswith("-"):
            return f"{found[1]}: found a word, expected options alone (--NAME VALUE)"
        return f"{found[1]}: found an unknown option, expected {_instead(word.lstrip('-'), names)}"
    if found := UNKNOWN.search(message):
        name, group, in_group = found.groups()
        if group:  # a linked block has another name inside
            name, block = in_group, group
            names = [n.removeprefix(f"{group}.") for n in names if n.startswith(f"{group}.")]
        elif classes:
            names = [*_options_of(classes[-1]), "class_path", "init_args"]
        name = name or in_group
        return told(_join(block, name), "an unknown option", _instead(name, names))
    if found := REQUIRED.search(inside):
        return "\n".join(told(_join(block, name), "nothing", "a value") for name in found[1].split(", "))
    if (found := NO_CLASS.search(inside)) and (found[2] or classes):
        why = f" ({found[1]})" if found[1] else ""
        at = place(f"{block}.class_path", files, words) or place(block, files, words)
        return f"{at}{block}: found {found[2] or classes[-1]}, expected a class that is there, by its import path{why}"
    if found := WRONG.search(inside):
        return told(block, found[2], _kinds(found[1]), found[2])
    if (found := NONE_OF.search(inside)) and not CLASS.search(inside):
        return told(block, found[2], _kinds(found[1]), found[2])
    reason = BULLET.search(inside)
    at = f"{place(block, files, words)}{block}: " if block else ""
    return at + _short(" ".join((reason[1] if reason else inside).split()), LONGEST)


def nulls(of: Callable[..., Any], given: Mapping[str, Any], parser: Any, block: str = "") -> list[str]:
    """Options that are null although they may not be, in words; jsonargparse lets them pass.

    Args:
        of: The function or class that they are for.
        given: Option → value.
        parser: A `OneMessage` that has parsed.
        block: Where they stand.
    """
    made_by: Any = of if is_dataclass(of) or not isinstance(of, type) else inspect.getattr_static(of, "__init__")
    hints = typing.get_type_hints(made_by)
    wrong = [name for name, value in given.items() if value is None and name in hints and not _may_be_null(hints[name])]
    told = [(_join(block, name), _kinds(str(hints[name]))) for name in wrong]
    return [f"{place(name, parser.files, parser.words)}{name}: found null, expected {kind}" for name, kind in told]


def overruled(linked: Mapping[str, tuple[str, Any]], files: Sequence[ConfigFile], words: Sequence[str]) -> list[str]:
    """Options of one part that were given a value although they are set once for all parts, and to another one; in words.

    Args:
        linked: Option of a part → the option that sets it, and its value.
        files, words: As for `explained`.
    """
    flags = [(word[2:].partition("="), after) for word, after in pairwise([*words, ""]) if word.startswith("--")]
    given = [(_parts(name), "", value if equals else after) for (name, equals, value), after in flags]
    for file in files:
        entries = _entries(yaml.compose(file.path.read_text(encoding="utf-8")), ())
        given += [(path, f"{file.name}:{line}: ", said) for path, line, said in entries if said is not None]
    problems = []
    for path, at, said in given:
        for target, (source, value) in linked.items():
            parts = _parts(target)
            if path[: len(parts)] != parts:
                continue
            inside = path[len(parts) :]
            for key in inside:
                value = getattr(value, key, None)
            if said not in (str(value), f"${{{source}}}") and yaml.safe_load(said) != value:
                name = ".".join([source, *inside])
                option = ".".join(path)
                problems.append(f"{at}{option}: found {_short(said)}, expected it once for all parts, as {name} (now {value})")
    return problems


def _may_be_null(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def place(option: str, files: Sequence[ConfigFile], words: Sequence[str] = (), value: str | None = None) -> str:
    """`file:line: ` of an option, from the last of the files that has it; nothing where none has, or where a flag says it.

    Args:
        option: Its blocks and name, with dots and without `init_args`.
        files, words: As for `explained`.
        value: What was found: of several files, one that says so comes first.
    """
    wanted = _parts(option)
    if any(_parts(word[2:].split("=")[0]) == wanted for word in words if word.startswith("--")):
        return ""
    there: list[tuple[bool, str]] = []
    for file in files:
        for path, line, said in _entries(yaml.compose(file.path.read_text(encoding="utf-8")), ()):
            rest = iter(path)
            if path[0] == wanted[0] and path[-1] == wanted[-1] and all(part in rest for part in wanted):
                there.append((said == value is not None, f"{file.name}:{line}: "))
    same = [at for as_found, at in there if as_found]
    return (same or [at for _, at in there] or [""])[-1]


def _entries(node: Any, path: tuple[str, ...], seen: tuple[int, ...] = ()) -> Iterator[tuple[tuple[str, ...], int, Any]]:
    """(path without `init_args`, line, text of a scalar) of every entry of a YAML file."""
    if id(node) in seen:  # an alias inside what it stands for
        return
    seen = (*seen, id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = (*path, *_parts(str(key.value)))
            if inside:
                yield inside, key.start_mark.line + 1, value.value if isinstance(value, yaml.ScalarNode) else None
            yield from _entries(value, inside, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _entries(value, path, seen)


def _parts(option: str) -> tuple[str, ...]:
    """An option's blocks and name."""
    return tuple(part for part in option.removesuffix("+").split(".") if part != "init_args")


def _join(block: str, name: str) -> str:
    return f"{block}.{name}" if block else name


def _short(text: str, longest: int = 100) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _kinds(types: str) -> str:
    """Python's names of types → those of YAML: `<class 'int'>, <class 'NoneType'>` → `int or null`."""
    plain = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", types)
    plain = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", lambda m: m[1].replace(", ", " or "), plain)
    plain = re.sub(r"\bNone(Type)?\b", "null", re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", plain))
    parts, depth = [""], 0
    for letter in plain:
        depth += (letter == "[") - (letter == "]")
        if letter in ",|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return " or ".join(part.strip() for part in parts)


def _names(parser: Any) -> list[str]:
    """A parser's options, and those of its subcommands."""
    inside = [p for action in parser._actions for p in (getattr(action, "_name_parser_map", None) or {}).values()]
    return [action.dest for action in parser._actions] + [name for p in inside for name in _names(p)]


def _options_of(path: str) -> list[str]:
    """A class's options; none where there is no such class."""
    module, _, name = path.rpartition(".")
    try:
        return [p for p in inspect.signature(getattr(import_module(module), name)).parameters if p != "self"]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _instead(option: str, names: Sequence[str]) -> str:
    """What was probably meant."""
    parts = option.split(".")
    if parts[-1] in ("lr", "learning_rate") and any(name.split(".")[-1] == "optimizer" for name in names):
        return "perhaps model.optimizer.lr"
    known = sorted({".".join(name.split(".")[: len(parts)]) for name in names} | {name.rsplit(".", 1)[-1] for name in names})
    alike = difflib.get_close_matches(option, known, n=1) or difflib.get_close_matches(parts[-1], known, n=1)
    return f"perhaps {alike[0]}" if alike else "one that --help lists"
