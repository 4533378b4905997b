"""Sphinx configuration of the site (`make site`): the committed notebooks and pages as they are, and a reference.

Notebooks and pages link to each other, and to figures, by paths relative to the root of the tree. So the folder of
sources is a copy of the tree's pages under the same names, and no link is written anew. Nothing is executed and
nothing is fetched.
"""

import importlib.resources
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "lib")]

import reading  # noqa: E402
import reference  # noqa: E402

project, author, copyright = "attrobust", "the attrobust authors", "the attrobust authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
root_doc = "index"
include_patterns = ["*.md", "docs/*.md", "notebooks/*.ipynb", "figures/benchmarks/*.md", "reference/*.rst"]
templates_path, html_static_path = [], ["style.css", "summaries.js"]

# ------------------------------------------------------------------ pages and notebooks
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 6

# ------------------------------------------------------------------ the reference
default_role = "code"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
python_use_unqualified_type_names = True
add_module_names = False

# ------------------------------------------------------------------ appearance
html_theme = "pydata_sphinx_theme"
html_title = "attrobust"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_favicon = "favicon.svg"
html_css_files, html_js_files = ["style.css"], ["summaries.js"]
html_sidebars = {page: [] for page in (root_doc, "README", "CONTRIBUTING", "CHANGELOG")}
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "search_bar_text": "Search the site",
}
# One file with every TeX extension and its glyphs as paths: nothing else is loaded, from a server or from a folder.
MATHJAX = importlib.resources.files("mathjax") / "static/mathjax/es5/tex-svg-full.js"
mathjax_path = "tex-svg-full.js"


def setup(app):
    """Lay the sources out, hook in what reads them, and copy what pages load by themselves."""
    lay_out(Path(app.srcdir))
    app.connect("source-read", reading.prepare)
    app.connect("autodoc-process-docstring", reference.as_rest, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", reference.as_written)
    app.connect("missing-reference", reference.by_last_name)
    app.connect("build-finished", copy)


def lay_out(source):
    """Fill a folder with the pages, the notebooks and their pictures, and the pages of the reference."""
    shutil.rmtree(source)
    for pattern in (
        "*.md",
        "docs/*",
        "notebooks/*.ipynb",
        "figures/*/*.png",
        "figures/*/*.gif",
        "figures/benchmarks/*.md",
    ):
        for file in filter(Path.is_file, ROOT.glob(pattern)):
            target = source / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    for page in HERE.glob("*.md"):
        shutil.copy2(page, source)
    reference.write(source / "reference", ROOT / "lib" / "attrobust")


def copy(app, error):
    """MathJax, and the frames of the slider where they are."""
    shutil.copy(MATHJAX, Path(app.outdir) / "_static")
    if (frames := ROOT / "docs" / "slider").is_dir():
        shutil.copytree(frames, Path(app.outdir) / "docs" / "slider", dirs_exist_ok=True)
