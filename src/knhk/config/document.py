"""Reads a YAML document into entries, with the line of every value, `${VAR}` filled in, and all its errors at once.

The model decides how a scalar is read, not its look: `node_id: 123` is text, and truth values are those of YAML 1.2,
`true` and `false` alone. Anchors and aliases work; merge keys, tags and duplicate keys are refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knhk.config import keys, scalars
from knhk.config.entries import Entry, Layer, Origin, Place
from knhk.config.keys import Shape

if TYPE_CHECKING:  # PyYAML is imported only when there is something to read
    import yaml

_TAGS = "tag:yaml.org,2002:"


def read_file(file: Path, environ: Mapping[str, str], section: str = "", *, main: bool = False) -> Layer:
    """Read a file that holds the whole configuration, or one section of it. Every error is in the layer's problems.

    Problems of the main file do not name it, since the error as a whole does.
    """
    layer = Layer()
    origin = Origin(f"file:{file}", "" if main else f"in {file}")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        layer.complain(f"the file is not UTF-8 at byte {error.start}", section, origin)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        layer.complain(f"cannot read {file}: {reason}", section, Origin(origin.label))
    else:
        _Reader(layer, origin, environ, file.parent).read(text, section)
    return layer


def read_value(text: str, key: str, origin: Origin) -> Layer:
    """Read the YAML text of one key's value, without `${VAR}`: how a list comes from a variable or the command line."""
    layer = Layer()
    _Reader(layer, origin, None, Path()).read(text, key)
    return layer


class _Reader:
    """Walks a document beside the shape of the configuration, so that its depth is bounded by the model's."""

    def __init__(self, layer: Layer, origin: Origin, environ: Mapping[str, str] | None, directory: Path) -> None:
        self._layer = layer
        self._origin = origin
        self._environ = environ
        self._directory = directory
        self._inner: dict[Place, Origin] = {}
        self._secrets: set[Place] = set()

    def read(self, text: str, key: str) -> None:
        """Read a document that stands for the value of a key; the empty key is the whole configuration."""
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            node = yaml.compose(text, Loader=loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            message = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
            self._layer.complain(f"not valid YAML: {message}", key, self._at(mark) if mark else self._origin)
            return
        shape = _shape_at(key)
        if node is not None and shape.fields is not None and isinstance(node.value, str):
            # Not _walk, which would take the text for the name of a file to include, perhaps this one.
            self._complain("the file must be a mapping of keys to values", key, node)
        elif node is not None:
            self._walk(node, shape, key, node.start_mark)

    def _walk(self, node: "yaml.Node", shape: Shape, key: str, mark: Any) -> None:
        if shape.fields is None:
            self._leaf(node, shape, key, mark)
        elif isinstance(node.value, str):
            self._instead_of_section(node, key)
        else:
            for name, mark, value, inner in self._members(node, shape, key):
                self._walk(value, inner, f"{key}.{name}" if key else name, mark)

    def _leaf(self, node: "yaml.Node", shape: Shape, key: str, mark: Any) -> None:
        """Enter the value of a key. The key's mark is its source; the marks inside the value are for errors."""
        self._inner, self._secrets = {}, set()
        if _is_null(node):
            if not shape.optional:
                self._complain("has no value; give it one, or remove the key", key, node)
            return
        before = len(self._layer.problems)
        value = self._construct(node, shape, key, ())
        if len(self._layer.problems) == before:
            self._layer.entries[key] = Entry(value, self._at(mark), self._inner, frozenset(self._secrets))

    def _construct(self, node: "yaml.Node", shape: Shape, key: str, place: Place) -> Any:
        self._inner[place] = self._at(node.start_mark)
        if not node.tag.startswith(_TAGS):
            self._complain(f"the tag {node.tag} is not supported", key, node)
        elif isinstance(node.value, str):
            return self._scalar(node, shape, key, place)
        elif shape.item is not None and node.tag == f"{_TAGS}seq":
            return tuple(
                self._construct(child, shape.item, f"{key}[{index}]", (*place, index))
                for index, child in enumerate(node.value)
            )
        elif shape.fields is not None and node.tag == f"{_TAGS}map":
            return {
                name: self._construct(value, inner, f"{key}.{name}", (*place, name))
                for name, _, value, inner in self._members(node, shape, key)
            }
        else:
            self._complain(f"must be a {shape.kind}, not a {_kind(node)}", key, node)
        return None

    def _scalar(self, node: "yaml.Node", shape: Shape, key: str, place: Place) -> Any:
        if shape.item is not None or shape.fields is not None:
            self._complain(f"must be a {shape.kind}, not a single value", key, node)
            return None
        if _is_null(node) and shape.optional:
            return None
        text = self._expanded(node, key, place)
        return text if shape.text or not _is_plain(node) else scalars.resolve(text)

    def _expanded(self, node: "yaml.Node", key: str, place: Place) -> str:
        text: str = node.value
        if self._environ is None:
            return text
        try:
            text, secret = scalars.expand(text, self._environ)
        except ValueError as error:
            self._complain(str(error), key, node)
            return text
        if secret:
            self._secrets.add(place)
        return text

    def _members(self, node: "yaml.Node", shape: Shape, key: str) -> Iterator[tuple[str, Any, "yaml.Node", Shape]]:
        """The known keys of a mapping with their marks, values and shapes; says what is wrong with the others."""
        fields = shape.fields or {}
        seen: dict[str, int] = {}
        if node.tag != f"{_TAGS}map":
            self._complain(f"must be a mapping, not a {_kind(node)}", key, node)
            return
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node.value, str) else "?"
            path = f"{key}.{name}" if key else name
            if name in seen:
                self._complain(f"stands twice; the first is in line {seen[name]}", path, name_node)
                continue
            seen[name] = name_node.start_mark.line + 1
            if name in fields:
                yield name, name_node.start_mark, value, fields[name]
            else:
                what = "merge keys are not supported" if name == "<<" else _unknown(key)
                self._complain(what, path, name_node, keys.suggestion(key, name, shape))

    def _instead_of_section(self, node: "yaml.Node", key: str) -> None:
        if _is_null(node):
            return  # a section with all its keys commented out
        if key not in keys.INCLUDES:
            self._complain("must be a mapping of keys to values", key, node)
            return
        before = len(self._layer.problems)
        text = self._expanded(node, key, ())
        if len(self._layer.problems) == before:
            self._layer.absorb(read_file(self._directory / Path(text).expanduser(), self._environ or {}, key))

    def _complain(self, message: str, path: str, node: "yaml.Node", suggestion: str = "") -> None:
        self._layer.complain(message, path, self._at(node.start_mark), suggestion)

    def _at(self, mark: Any) -> Origin:
        if not self._origin.label.startswith("file:"):
            return self._origin  # a variable or an argument has no lines worth naming
        line = mark.line + 1
        return Origin(f"{self._origin.label}:{line}", self._origin.where, line, mark.column + 1)


def _shape_at(key: str) -> Shape:
    shape = keys.root()
    for part in key.split(".") if key else ():
        shape = (shape.fields or {})[part]
    return shape


def _is_plain(node: "yaml.Node") -> bool:
    return not getattr(node, "style", None)  # None from the Python loader, "" from the C one


def _is_null(node: "yaml.Node") -> bool:
    return isinstance(node.value, str) and _is_plain(node) and scalars.is_null(node.value)


def _kind(node: "yaml.Node") -> str:
    return "list" if node.tag == f"{_TAGS}seq" else "mapping" if node.tag == f"{_TAGS}map" else "single value"


def _unknown(section: str) -> str:
    return "unknown key" if section else "unknown section"
