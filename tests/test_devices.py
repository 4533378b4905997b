"""What is computed follows its tensor to another device; without a card here, it is seen in the source."""

import ast

from attrobust import paths

ROOMS = ("attacks", "attributions", "captum", "curvature", "regularizers", "training")
FILES = ("attention.py", "balls.py", "similarity.py")
MADE = {f"torch.{name}" for name in ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")}
#: Numbers that are compared on the processor, and a name of a dtype.
ON_PROCESSOR = {"curvature/derivatives.py", "curvature/products.py"}


def sources():
    package = paths.root / "lib" / "attrobust"
    for path in (*(package / name for name in FILES), *(p for room in ROOMS for p in (package / room).glob("*.py"))):
        yield str(path.relative_to(package)), ast.parse(path.read_text())


def calls(tree, names):
    """Calls of these functions, each with its named arguments as they are written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node, {k.arg: ast.unparse(k.value) for k in node.keywords}


def moved(tree):
    """What `.to(...)` is called on."""
    to = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
    return {id(attribute.value) for attribute in to if attribute.attr == "to"}


def test_tensors_that_are_made_say_on_which_device_or_are_moved_there():
    found = {
        f"{name}:{node.lineno}": "device" in named or id(node) in there
        for name, tree in sources()
        for there in [moved(tree)]
        for node, named in calls(tree, MADE)
        if name not in ON_PROCESSOR
    }
    assert [place for place, told in found.items() if not told] == []
    assert len(found) > 30


def test_numbers_are_drawn_where_the_generator_of_the_user_lives():
    """As users call theirs; ours is `draw`, of the processor."""
    found = {
        f"{name}:{node.lineno}": named.get("device") == f"{named['generator']}.device"
        for name, tree in sources()
        if not name.startswith(("attacks", "training"))  # whose streams are of the processor
        for node, named in calls(tree, {"torch.rand", "torch.randn", "torch.randint"})
        if named["generator"].endswith("generator")
    }
    assert [place for place, told in found.items() if not told] == []
    assert len(found) > 5
