"""How the documentation is built: ``nox -s docs``. Nothing is downloaded, and every code cell runs."""

import importlib
import os
import re
import shutil
import sys
from inspect import isroutine
from pathlib import Path

import nbformat
from docutils import nodes
from jupyter_client import KernelManager
from sphinx.util.nodes import make_refnode

import xpconv

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
from subjects import subjects_of, summary_tables  # noqa: E402

ROOT = DOCS.parent

project = "xpconv"
copyright = "the xpconv contributors"  # noqa: A001
version = release = xpconv.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build", "examples"]
templates_path = ["_templates"]
nitpicky = True
default_role = "py:obj"  # `conv_forward` in a docstring is a link, `x` is not

# ---- pages whose code runs: each in a folder of its own, with the tools of this Python and no settings of the machine

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_execution_timeout = 240
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which has tables
myst_heading_anchors = 3
for name in [name for name in os.environ if name == "XP_BACKEND" or name.startswith("XPCONV_")]:
    del os.environ[name]
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(DOCS), str(ROOT)])  # drawings.py, and the tests' table of layers
KernelManager.transport_encryption.default_value = "auto"  # else each kernel warns that its connection is not encrypted
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the kernel's debugger warns of frozen modules

# ---- the reference: one page a module, in the order in which a name is looked for

numpydoc_show_class_members = False
autosummary_ignore_module_all = False
autosummary_generate_overwrite = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints = "none"

PUBLIC = re.findall(r"^   (xpconv[\w.]*)$", (DOCS / "reference" / "index.md").read_text(), re.M)
MODULES = {module: importlib.import_module(module) for module in PUBLIC}


def home(thing):
    """Return the first module that has an object: there it is described, elsewhere it is linked to."""
    return next(name for name, module in MODULES.items() if any(getattr(module, n) is thing for n in module.__all__))


HOMES = {name: {n: home(getattr(module, n)) for n in module.__all__} for name, module in MODULES.items()}
autosummary_context = {
    "homes": HOMES,
    "subjects": {name: subjects_of(name, module.__all__) for name, module in MODULES.items()},
}


def insert_summaries(app, name, source):
    """Put the tables of a module's names in the place of its comment, as in ``% names of xpconv.nn``."""
    if name == "reference/index":
        names = re.compile(r"^% names of (xpconv[\w.]*)$", re.M)
        source[0] = names.sub(lambda found: summary_tables(found[1], _documented(found[1])), source[0])


def _documented(module):
    """Return the functions and classes of a module, of which autosummary can make tables, with their homes."""
    members = {name: getattr(MODULES[module], name) for name in HOMES[module]}
    return {name: HOMES[module][name] for name, thing in members.items() if isroutine(thing) or isinstance(thing, type)}


# ---- appearance: nothing of it is fetched from elsewhere

html_theme = "pydata_sphinx_theme"
html_title = "xpconv"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {page.stem: [] for page in DOCS.glob("*.md") if page.stem != "gpu"}  # nothing to choose from there
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def skip_tuple_fields(app, what, name, thing, skip, options):
    """Leave out the fields of named tuples, of which Python says no more than their number."""
    return True if type(thing).__name__ == "_tuplegetter" else skip


def link_by_short_name(app, env, node, text):
    """Link what docstrings call by its short name to where it is described, and leave arguments as they are."""
    if node["reftype"] != "obj":
        return None
    objects, target = env.get_domain("py").objects, node["reftarget"]
    here, found = node.get("py:module") or "", [name for name in objects if name.endswith(f".{target}")]
    if "." not in target:
        found = [name for name in found if name.removesuffix(f".{target}") in PUBLIC]
    if not found:
        return text
    best = max(found, key=lambda name: sum(1 for a, b in zip(name.split("."), here.split("."), strict=False) if a == b))
    return make_refnode(app.builder, node["refdoc"], objects[best].docname, objects[best].node_id, text, best)


def show_as_shell(app, doctree):
    """Show a cell that a shell runs as what one types: without the line that says so to the notebook."""
    for block in doctree.findall(nodes.literal_block):
        first, _, rest = block.astext().partition("\n")
        if first.startswith("%%sh"):
            block.replace_self(nodes.literal_block(rest, rest, language="sh", classes=block["classes"]))


SITE_ONLY = ("index", "architecture", "equivalence")  # the last two need the repository


def is_notebook(app, page):
    """Return whether a page runs code, and can be downloaded as a notebook."""
    source = Path(app.srcdir, f"{page}.md")
    if page in SITE_ONLY or not source.exists():
        return False
    return source.read_text(encoding="utf-8").startswith("---\nfile_format: mystnb")


def link_to_notebook(app, page, template, context, doctree):
    """Say below the title of a notebook where it can be downloaded."""
    if is_notebook(app, page):
        name = f"{page.rpartition('/')[2]}.ipynb"
        link = f'<p class="notebook">This page is a notebook: <a href="{name}" download>{name}</a></p>'
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def write_notebooks(app, error):
    """Write the notebooks that were run beside their pages, without the cells that only the site needs."""
    if error or app.builder.name != "html":
        return
    executed = Path(app.outdir).parent / "jupyter_execute"
    for page in filter(lambda page: is_notebook(app, page), app.env.found_docs):
        if not (executed / f"{page}.ipynb").exists():  # the build ran no code
            continue
        book = nbformat.read(executed / f"{page}.ipynb", 4)
        book.cells = [cell for cell in map(without_site, book.cells) if cell.source]
        nbformat.write(book, Path(app.outdir, f"{page}.ipynb"))
        if any("drawings" in cell.source for cell in book.cells):
            shutil.copy(DOCS / "drawings.py", Path(app.outdir, page).parent)


def without_site(cell):
    """Return a cell as it runs in any notebook: shell cells have the magic of IPython."""
    if cell.cell_type == "code":
        cell.source = re.sub(r"^import pages\n?", "", cell.source, flags=re.M)
        cell.source = re.sub(r"^%%sh.*", "%%bash", cell.source)
    return cell


def setup(app):
    app.connect("html-page-context", link_to_notebook)
    app.connect("build-finished", write_notebooks)
    app.connect("source-read", insert_summaries)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("missing-reference", link_by_short_name)
    app.connect("doctree-read", show_as_shell)
