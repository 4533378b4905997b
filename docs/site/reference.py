"""The library reference: a page per room, its modules in order, each name where a user imports it from."""

import ast
import inspect
import re
import textwrap

HEAD = """{title}
{rule}

.. automodule:: {module}
{options}
"""
ENTRY = """
.. py:currentmodule:: {module}
.. auto{kind}:: {name}
{options}
"""
SECTION = re.compile(r"(Args|Attributes|Examples?|Note|Raises|Returns|Yields):$", re.MULTILINE)
LAYOUT = re.compile(r"^ |\S  +\S", re.MULTILINE)
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")


def write(folder, package):
    """A page for every room of the package, and the page that lists them."""
    folder.mkdir(exist_ok=True)
    rooms = sorted(p for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file())
    rooms = [room for room in rooms if not room.name.startswith("_")]
    lines = ["Library reference", "=================", "", ".. toctree::", "   :hidden:", ""]
    lines += [f"   {room.stem}" for room in rooms] + [""]
    for room in rooms:
        start = room / "__init__.py" if room.is_dir() else room
        first = ast.get_docstring(ast.parse(start.read_text())).split("\n\n")[0].replace("\n", " ")
        lines.append(f":doc:`{room.stem}`\n   {first}\n")
        (folder / f"{room.stem}.rst").write_text(page(room, start))
    (folder / "index.rst").write_text("\n".join(lines))


def page(room, start):
    """What the room says of itself, then each of its modules with its public names."""
    name, exported = f"attrobust.{room.stem}", imported(start)
    parts = [HEAD.format(title=room.stem, rule="=" * len(room.stem), module=name, options="")]
    parts += entries(start, name, name, set())
    for file in sorted(room.glob("[!_]*.py")):
        title, module = f"{room.stem}.{file.stem}", f"{name}.{file.stem}"
        # A function called as its module has the module's name in the index.
        hidden = "   :no-index:" if (module, file.stem) in exported else ""
        parts.append(HEAD.format(title=title, rule="-" * len(title), module=module, options=hidden))
        parts += entries(file, module, name, {own for source, own in exported if source == module})
    return "\n".join(parts)


def imported(start):
    """The names that a room's first file brings up from its modules, each with its module."""
    nodes = [node for node in ast.parse(start.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {(node.module, alias.name) for node in nodes for alias in node.names}


def entries(file, module, room, exported):
    """A directive for each public function, class and described value of a file, in the order of the file."""
    text = file.read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            where = room if node.name in exported else module
            yield ENTRY.format(module=where, kind=kind, name=node.name, options="   :members:" * (kind == "class"))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            described = text.splitlines()[node.lineno - 2].startswith("#:") or file.stem == "shapes"
            if described and isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield ENTRY.format(module=module, kind="data", name=target.id, options="   :no-value:")


def as_rest(app, what, name, thing, options, lines):
    """A docstring, which is plain text with sections, as reStructuredText: layouts kept, signs of formulas escaped."""
    blocks, section = [], False
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        section = bool(SECTION.match(block)) or (section and block.startswith(" "))
        if ">>>" in block:
            blocks.append(block)
        elif not section and LAYOUT.search(block):
            blocks.append(".. code-block:: none\n\n" + textwrap.indent(textwrap.dedent(block), "    "))
        else:
            parts = CODE.split(block)
            blocks.append("".join(part if i % 2 else MARKUP.sub(r"\\\g<0>", part) for i, part in enumerate(parts)))
    lines[:] = [*"\n\n".join(blocks).splitlines(), ""]


def as_written(app, what, name, thing, options, signature, returns):
    """A function's signature as its source has it: names of shapes instead of what they stand for."""
    if what not in ("function", "method"):
        return None
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body
    except (OSError, TypeError):
        return None
    known = inspect.unwrap(thing).__globals__
    for name in (part for part in ast.walk(node) if isinstance(part, ast.Name)):
        found = known.get(name.id)
        if isinstance(found, type) and found.__module__.startswith("attrobust"):
            name.id = f"{found.__module__}.{found.__qualname__}"  # two rooms may have a class of one name
    arguments = ast.unparse(node.args)
    if what == "method":
        arguments = arguments.removeprefix("self").removeprefix(", ")
    return f"({arguments})", node.returns and ast.unparse(node.returns)


def by_last_name(app, env, node, content):
    """A name in a signature leads to the one thing of the library that is called so."""
    domain = env.get_domain("py")
    last = node.get("reftarget", "").split(".")[-1]
    found = [name for name, it in domain.objects.items() if name.split(".")[-1] == last and not it.aliased]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    document = node.get("refdoc", "index")
    return domain.resolve_xref(env, document, app.builder, "obj", found[0], node, content)
