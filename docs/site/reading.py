"""What a page needs before Sphinx reads it: links in Sphinx's form, numbers in titles, alternative texts."""

import json
import re
from pathlib import PurePath

from myst_parser.mdit_to_docutils.base import default_slugify

ANCHOR = re.compile(r"(\]\([^)#\s]*#)([^)\s]+)(?=\))")
MODULE = re.compile(r"\]\((?:\.\./)*lib/attrobust/([\w/]+)\.py\)")


def prepare(app, name, content):
    """Rewrite what was read of a page or notebook, in place."""
    path = PurePath(app.env.doc2path(name))
    if path.suffix == ".ipynb":
        content[0] = notebook(content[0], number=path.stem.split("_")[0])
    elif path.suffix == ".md":
        content[0] = links(content[0])


def links(text):
    """Anchors as Sphinx makes them of headings, from those of GitHub or JupyterLab; library files by their module.

    Example:
        >>> links("[design](03_sgd_flattens.ipynb#2-·-The-design), [heavy](../lib/attrobust/attacks/heavy.py)")
        '[design](03_sgd_flattens.ipynb#2--the-design), [heavy](#attrobust.attacks.heavy)'
    """
    text = ANCHOR.sub(lambda found: found[1] + default_slugify(found[2]), text)
    return MODULE.sub(lambda found: f"](#attrobust.{found[1].replace('/', '.')})", text)


def notebook(text, *, number):
    """A notebook whose title starts with its number and whose figures bring their alternative texts."""
    book = json.loads(text)
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = links(re.sub(r"\A# ", f"# {number} · ", source))
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return json.dumps(book)
