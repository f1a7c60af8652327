"""``make check``: a linter for the gallery's ES modules, without npm.

Node checks the syntax, either from the path or from Playwright. The other checks read the names in the text. They rely
on one rule: a top-level name has the same meaning in all modules, so that every user of the name must import it.

Errors: an import of a file or name that does not exist or is not used; a name that is used without import or
declaration; an export that nobody imports; an unused top-level name; an import cycle; a module that is too long.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "airflow_provider_geminiimg" / "gallery" / "static"
ENTRY = "main.js"
MOST_LINES = 400

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.-]+)";$', re.MULTILINE)
_TOP_LEVEL = re.compile(r"^(export )?(?:async )?(?:const|let|function|class) ([\w$]+)", re.MULTILINE)
_DESTRUCTURED = re.compile(r"^(export )?const [{\[]([^}\]]*)[}\]] = ", re.MULTILINE)
_TEXT = re.compile(  # comments, regular expressions, strings, and the beginning of a template
    r"/\*.*?\*/|//[^\n]*|(?<=[(,=:])\s*/(?:[^/\\\n]|\\.)+/[a-z]*|\"(?:[^\"\\\n]|\\.)*\"|`", re.DOTALL
)
# A name that is read: not a property (``.name``), and not the key of one (``name:``).
_NAME = re.compile(r"(?<![\w$.])([A-Za-z_$][\w$]*)(?![\w$]|\s*:)|\.\.\.([A-Za-z_$][\w$]*)|\?\s*([A-Za-z_$][\w$]*)\s*:")
_GIVEN = re.compile(  # words of the language, and what browsers have
    "async|await|break|case|catch|class|const|continue|default|delete|do|else|export|extends|false|finally|for|from|"
    "function|get|if|import|in|instanceof|let|new|null|of|return|set|super|switch|this|throw|true|try|typeof|undefined|"
    "while|"
    "Array|Boolean|Date|Error|Image|IntersectionObserver|JSON|Map|Math|MutationObserver|Number|Object|Promise|"
    "ResizeObserver|Set|String|URLSearchParams|clearTimeout|decodeURIComponent|document|encodeURIComponent|fetch|"
    "getComputedStyle|history|localStorage|location|matchMedia|navigator|parent|performance|requestAnimationFrame|"
    "setTimeout|window"
)
# Where a name is declared within a function: patterns, parameters, and what is caught. Rather one too many.
_DECLARED = re.compile(
    r"\b(?:const|let)\s+(?P<pattern>[{\[][^;]*?[}\]]\s*(?:=|of\b)|[\w$]+)"
    r"|(?P<one>[\w$]+)\s*=>"
    r"|(?<!\bif )(?<!\bwhile )\((?P<several>(?:[^()]|\([^()]*\))*)\)\s*(?:=>|\{)"
    r"|^  (?:get |async |static )*(?P<method>[\w$]+)(?=\()",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Module:
    """What one file imports, declares at its top level, exports, and how often it names what.

    :param local: what else is declared in it.
    """

    imports: Mapping[str, tuple[str, ...]]
    declared: tuple[str, ...]
    exported: frozenset[str]
    local: frozenset[str]
    used: Mapping[str, int]
    lines: int
    bare_imports: int


def code_of(text: str) -> str:
    """The text without comments and strings; what a template holds between ``${`` and ``}`` is code."""
    kept, at = [], 0
    while found := _TEXT.search(text, at):
        kept.append(text[at : found.start()])
        at = found.end()
        if found[0] == "`":
            inner, at = _template(text, at)
            kept.append(f" {inner} ")
    return "".join(kept) + text[at:]


def _template(text: str, at: int) -> tuple[str, int]:
    """The code in the template that begins at `at`, and where it ends."""
    inner = []
    while text[at] != "`":
        if text[at] == "\\":
            at += 2
        elif text.startswith("${", at):
            start, at, depth = at + 2, at + 2, 1
            while depth:
                if text[at] == "`":
                    _, at = _template(text, at + 1)
                    continue
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            inner.append(f"({code_of(text[start : at - 1])})")
        else:
            at += 1
    return " ".join(inner), at + 1


def read(path: Path) -> Module:
    """Take a file apart."""
    text = path.read_text()
    imports = {file: tuple(re.findall(r"[\w$]+", names)) for names, file in _IMPORT.findall(text)}
    code = code_of(re.sub(_IMPORT, "", text))
    found = _TOP_LEVEL.findall(code)
    for export, names in _DESTRUCTURED.findall(code):
        found += [(export, name) for name in re.findall(r"[\w$]+", names)]
    used: dict[str, int] = {}
    for match in _NAME.finditer(code):
        name = next(filter(None, match.groups()))
        used[name] = used.get(name, 0) + 1
    return Module(
        imports,
        tuple(name for _, name in found),
        frozenset(name for export, name in found if export),
        frozenset(re.findall(r"[\w$]+", " ".join(filter(None, itertools.chain(*_DECLARED.findall(code)))))),
        used,
        text.count("\n"),
        len(re.findall(r"^import\b", text, re.MULTILINE)),
    )


def problems(modules: Mapping[str, Module]) -> Iterator[str]:
    """What is wrong, each as a line."""
    declared_by = {name: file for file, module in modules.items() for name in module.declared}
    wanted = {(file, name) for module in modules.values() for file, names in module.imports.items() for name in names}
    for file, module in modules.items():
        if module.bare_imports != len(module.imports):
            yield f'{file}: each import is one line or more of the form: import {{ name }} from "./file.js";'
        if module.lines > MOST_LINES:
            yield f"{file} has {module.lines} lines, more than {MOST_LINES}"
        yield from _imports(file, module, modules)
        imported = {name for names in module.imports.values() for name in names}
        for name in module.used.keys() & declared_by.keys() - imported - set(module.declared):
            yield f"{file} uses {name} of {declared_by[name]} without importing it, or has a name of its own like that"
        for name in module.used.keys() - imported - set(module.declared) - declared_by.keys() - module.local:
            if not _GIVEN.fullmatch(name):
                yield f"{file} uses {name}, which is declared nowhere"
        for name in module.declared:
            if declared_by[name] != file or name in imported:
                yield f"{file} declares {name}, as {declared_by[name]} does"
            if name in module.exported and (file, name) not in wanted:
                yield f"{file} exports {name}, and nobody imports it"
            if name not in module.exported and module.used.get(name, 0) < 2:
                yield f"{file} declares {name}, and does not use it"
    yield from _unreachable_and_circles(modules)


def _imports(file: str, module: Module, modules: Mapping[str, Module]) -> Iterator[str]:
    for source, names in module.imports.items():
        for name in names:
            if source not in modules or name not in modules[source].exported:
                yield f"{file} imports {name} from {source}, which does not export it"
            if name not in module.used:
                yield f"{file} imports {name} from {source}, and does not use it"


def _unreachable_and_circles(modules: Mapping[str, Module]) -> Iterator[str]:
    reached, rest = set(), [ENTRY]
    while rest:
        file = rest.pop()
        if file not in reached and file in modules:
            reached.add(file)
            rest += modules[file].imports
    for file in modules.keys() - reached:
        yield f"{file} is imported by nobody"
    left = {file: set(module.imports) for file, module in modules.items()}
    while ready := {file for file, imported in left.items() if not imported & left.keys()}:
        for file in ready:
            del left[file]
    if left:
        yield f"imports go in a circle among: {', '.join(sorted(left))}"


def syntax(path: Path) -> Iterator[str]:
    """What Node says of a file's syntax."""
    node = shutil.which("node") or str(files("playwright") / "driver" / "node")
    command = [node, "--input-type=module", "--check"]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, check=False)
    if done.returncode:
        yield f"{path.name}: {done.stderr.decode(errors='replace').strip()}"


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    paths = sorted(STATIC.glob("*.js"))
    wrong = [line for path in paths for line in syntax(path)] or [*problems({path.name: read(path) for path in paths})]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"modules of the gallery's page: {len(paths)}, problems: {len(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
